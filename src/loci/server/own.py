"""Loci's own protocol: the plan, who holds which bytes, methods and cards, what happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from fastapi.encoders import jsonable_encoder
from starlette.responses import Response

from loci import config
from loci.core.card import load_card
from loci.core.event import Event
from loci.errors import NotFoundError
from loci.methods import catalogue
from loci.methods.describe import described
from loci.server.forms import Form
from loci.server.service import Service
from loci.server.streams import Sse, event

router = APIRouter(prefix="/api/v1", tags=["loci"])
Json = dict[str, Any]
QUIET_S = 15.0  # after which a stream of events says that it is still there


class PlanForm(Form):
    """A budget to plan for, in bytes or as people write sizes: "256MiB"."""

    dram: int | str | None = None
    gpu: int | str | None = None
    disk: int | str | None = None
    weights: int | str | None = None
    kv_bytes: int | str | None = None
    context: int | str | None = None
    prompt_tokens: int | str | None = None
    new_tokens: int | str | None = None
    kv: str | None = None
    quant: str | None = None
    activations: int | None = None


@router.get("/plan")
async def plan(request: Request) -> Json:
    """Return what is done with the model, why, and what it costs."""
    return _service(request).batch.plan.to_json()


@router.post("/plan")
async def replan(request: Request, form: PlanForm) -> Json:
    """Return what would be done in another budget, also in plain lines; nothing changes."""
    asked = form.model_dump(exclude_none=True)
    found = await asyncio.to_thread(lambda: _service(request).replan(**asked))
    return {"plan": found.to_json(), "lines": str(found).splitlines()}


@router.get("/ledger")
async def ledger(request: Request) -> Json:
    """Return who holds how many bytes where."""
    batch = _service(request).batch
    tiers = batch.plan.budget.limits()
    return {
        "tiers": {
            tier: {
                "limit": batch.ledger.limit(tier),
                "used": batch.ledger.used(tier),
                "free": batch.ledger.free(tier),
                "peak": batch.ledger.peak(tier),
                "by_kind": batch.ledger.by_kind(tier),
            }
            for tier in tiers
        },
        "held": batch.ledger.table(),
    }


@router.get("/blocks")
async def blocks(request: Request) -> list[Json]:
    """Return the blocks of the weights, each with its place, size, codec and checksum."""
    found = await asyncio.to_thread(_service(request).blocks)
    return [{"tier": tier, **asdict(block)} for tier, block in found]


@router.get("/load")
async def load(request: Request) -> Json:
    """Return how many requests run and wait, and what was done since the start."""
    service = _service(request)
    found = asdict(service.batch.load())
    scheduler = str(service.batch.scheduler)
    return {"model": service.model, "scheduler": scheduler, "rows": service.batch.rows, **found}


@router.get("/methods")
async def methods(kind: str | None = None) -> list[Json]:
    """Return the published methods of this version, each with its verdict."""

    def found() -> list[Json]:
        rows = []
        for method in catalogue.all_methods(kind):
            about, card = method.about, load_card(method.about.kind, method.about.name)
            rows.append(
                {
                    "name": about.name,
                    "kind": about.kind.value,
                    "idea": about.idea,
                    "paper": about.paper,
                    "verdict": None if card is None else card.verdict,
                    "because": None if card is None else card.because,
                }
            )
        return rows

    return await asyncio.to_thread(found)


@router.get("/methods/{name}")
async def method(name: str, kind: str | None = None) -> Json:
    """Return a method with its parameters and its card."""

    def found() -> Json:
        known = catalogue.method_class(name, kind)
        card = load_card(known.about.kind, known.about.name)
        shown: Json = jsonable_encoder(described(known, card))
        return shown

    return await asyncio.to_thread(found)


@router.get("/cards")
async def cards(kind: str | None = None) -> list[Json]:
    """Return all cards, or those of a kind: claim, measurements and verdict of each."""

    def found() -> list[Json]:
        there = []
        for known in catalogue.all_methods(kind):
            card = load_card(known.about.kind, known.about.name)
            if card is not None:
                there.append({"kind": known.about.kind.value, **jsonable_encoder(card)})
        return there

    return await asyncio.to_thread(found)


@router.get("/cards/{kind}/{name}")
async def card(kind: str, name: str) -> Json:
    """Return one card."""

    def found() -> Json:
        known = catalogue.method_class(name, kind)
        there = load_card(known.about.kind, known.about.name)
        if there is None:
            raise NotFoundError("this method has no card yet", value=name)
        return {"kind": kind, **jsonable_encoder(there)}

    return await asyncio.to_thread(found)


@router.get("/config")
async def configuration() -> Json:
    """Return every setting, and where its value comes from; secrets are not told."""
    settings = config.load()
    return {
        key.name: {
            "value": jsonable_encoder(config.shown(key, settings)),
            "source": settings.sources[key.name],
            "variable": key.variable,
            "help": key.help,
        }
        for key in config.KEYS
    }


@router.get("/events", response_model=None)
async def events(request: Request, prefix: str = "", recent: bool = True) -> Response:
    """Stream what happens, as server-sent events named like ours: run.answer, ledger.reserve."""
    return Sse(_stream(_service(request), prefix, recent))


# -- private ----------------------------------------------------------------------------------


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _stream(service: Service, prefix: str, recent: bool) -> AsyncIterator[str]:
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def take(what: Event) -> None:
        if what.name.startswith(prefix):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(queue.put_nowait, what)

    stop = service.batch.events.listen(take)
    try:
        before: Sequence[Event] = service.batch.events.recent(prefix) if recent else ()
        for what in before:
            yield event(dict(what.data), what.name)
        while not service.is_closing:
            try:
                what = await asyncio.wait_for(queue.get(), QUIET_S)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            yield event(dict(what.data), what.name)
    finally:
        stop()
