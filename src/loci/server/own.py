"""Loci's own protocol: the plan, who holds which bytes, what is remembered, and what happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any  # JSON values

from fastapi import APIRouter, Query, Request
from fastapi.encoders import jsonable_encoder
from pydantic import Field
from starlette.responses import Response

from loci.core.card import load_card
from loci.core.event import Event
from loci.core.item import Item, Turn
from loci.methods import catalogue
from loci.run.memory import Memory
from loci.server.forms import Form
from loci.server.service import Service
from loci.server.streams import Sse, event

router = APIRouter(prefix="/api/v1", tags=["loci"])
Json = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]
QUIET_S = 15.0  # after which a stream of events says that it is still there


class Said(Form):
    """What somebody said, to be remembered."""

    role: str = "user"
    content: str
    name: str | None = None
    time: str | None = None
    metadata: Json = Field(default_factory=dict)


class AddForm(Form):
    """A request to remember."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=1000)]
    user: str | None = None
    agent: str | None = None
    session: str | None = None
    infer: bool | None = None


class EditForm(Form):
    """A request to write an item anew."""

    text: str
    user: str | None = None
    reason: str = ""


class UserForm(Form):
    """Whose memory is meant."""

    user: str | None = None


@router.get("/plan")
async def plan(request: Request) -> Json:
    """Return what is done with the model, why, and what it costs."""
    return _service(request).batch.plan.to_json()


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


@router.get("/events", response_model=None)
async def events(request: Request, prefix: str = "", recent: bool = True) -> Response:
    """Stream what happens, as server-sent events named like ours: run.answer, ledger.reserve."""
    return Sse(_stream(_service(request), prefix, recent))


@router.get("/memories")
async def memories(
    request: Request,
    user: str | None = None,
    agent: str | None = None,
    session: str | None = None,
    kinds: Annotated[list[str] | None, Query()] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Json:
    """Return what is remembered of a user, newest first."""
    memory, who = _memory(request, user)
    found = await asyncio.to_thread(
        memory.list,
        user=who,
        agent=agent,
        session=session,
        kinds=kinds,
        limit=limit,
        offset=offset,
    )
    return {"user": who, "memories": [_plain(entry) for entry in found]}


@router.post("/memories")
async def remember(request: Request, form: AddForm) -> Json:
    """Remember messages; when this answers, they are on the disk."""
    memory, who = _memory(request, form.user)
    messages = [said.model_dump(exclude_none=True) for said in form.messages]
    added = await asyncio.to_thread(
        memory.add,
        messages,
        user=who,
        agent=form.agent,
        session=form.session,
        infer=form.infer,
    )
    turns, items = ([_plain(entry) for entry in part] for part in (added.turns, added.items))
    return {"user": who, "turns": turns, "memories": items}


@router.get("/memories/search")
async def search(
    request: Request,
    query: str,
    user: str | None = None,
    agent: str | None = None,
    session: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Json:
    """Return what answers a query, best first, each with the messages it comes from."""
    memory, who = _memory(request, user)
    hits = await asyncio.to_thread(
        memory.search, query, user=who, agent=agent, session=session, limit=limit
    )
    return {"user": who, "hits": jsonable_encoder(list(hits)), "pending": hits.pending}


@router.get("/memories/{id}")
async def memory_of(request: Request, id: str, user: str | None = None) -> Json:
    """Return an item or a turn."""
    memory, who = _memory(request, user)
    return _plain(await asyncio.to_thread(memory.get, id, user=who))


@router.get("/memories/{id}/history")
async def history(request: Request, id: str, user: str | None = None) -> Json:
    """Return the changes of an item, oldest first."""
    memory, who = _memory(request, user)
    return {"changes": jsonable_encoder(await asyncio.to_thread(memory.history, id, user=who))}


@router.patch("/memories/{id}")
async def edit(request: Request, id: str, form: EditForm) -> Json:
    """Write an item anew; its old text stays in its history."""
    memory, who = _memory(request, form.user)
    return _plain(await asyncio.to_thread(memory.edit, id, form.text, user=who, reason=form.reason))


@router.post("/memories/{id}/undo")
async def undo(request: Request, id: str, form: UserForm | None = None) -> Json:
    """Take back the last change of an item, a change, or all a message led to."""
    memory, who = _memory(request, None if form is None else form.user)
    found = await asyncio.to_thread(memory.undo, id, user=who)
    return {"memories": [_plain(entry) for entry in found]}


@router.delete("/memories/{id}")
async def forget(request: Request, id: str, user: str | None = None, dry_run: bool = False) -> Json:
    """Erase an item or a turn with all that came of it, and report what went."""
    memory, who = _memory(request, user)
    found = await asyncio.to_thread(memory.forget, id, user=who, dry_run=dry_run)
    report: Json = jsonable_encoder(found)
    return report


# -- private ----------------------------------------------------------------------------------


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _memory(request: Request, user: str | None) -> tuple[Memory, str]:
    """Return the memory of the key's tenant, and whose it is about."""
    service, caller = _service(request), request.state.caller
    return service.memory(caller.tenant), service.whose(caller, user)


def _plain(entry: Item | Turn) -> Json:
    found: Json = jsonable_encoder(entry)
    kind = "turn" if isinstance(entry, Turn) else entry.kind
    return {**found, "kind": kind}


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
