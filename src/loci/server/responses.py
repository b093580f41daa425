"""OpenAI's newer protocol: responses, which may go on from an earlier one.

What is stored is kept in this process, the newest `KEPT` of each tenant, and is gone when it ends.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loci.run.requests import End, Piece, Ticket
from loci.server.forms import ResponseForm, memory_of
from loci.server.openai import check_model, check_whole, failed, remembered
from loci.server.refusals import Refusal
from loci.server.service import Recalled, Service, sampling_of
from loci.server.streams import Sse, arrivals, event, whole

router = APIRouter(prefix="/v1/responses", tags=["openai"])
Json = dict[str, Any]
KEPT = 256


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A response and the conversation that led to it, without notes of a memory."""

    body: Json
    messages: list[dict[str, str]]


@dataclass
class Responses:
    """The newest responses of each tenant."""

    _of: dict[str, OrderedDict[str, Stored]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, tenant: str, stored: Stored) -> None:
        """Keep one; the oldest goes when there are too many."""
        with self._lock:
            held = self._of.setdefault(tenant, OrderedDict())
            held[stored.body["id"]] = stored
            while len(held) > KEPT:
                held.popitem(last=False)

    def get(self, tenant: str, id: str) -> Stored:
        """Return one.

        Raises:
            Refusal: with status 404.
        """
        with self._lock:
            found = self._of.get(tenant, OrderedDict()).get(id)
        if found is None:
            raise Refusal(
                status=404,
                message=f"there is no response {id!r}; the newest {KEPT} that were stored are kept",
                param="previous_response_id",
            )
        return found

    def drop(self, tenant: str, id: str) -> None:
        """Forget one."""
        self.get(tenant, id)
        with self._lock:
            self._of.get(tenant, OrderedDict()).pop(id, None)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a request needs until its end."""

    service: Service
    stored: Responses
    tenant: str
    form: ResponseForm
    head: Json
    messages: list[dict[str, str]]
    recalled: Recalled | None


@router.post("", response_model=None)
async def create(request: Request, form: ResponseForm) -> Response:
    """Answer, from an earlier response on where one is named."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    tenant, stored = request.state.caller.tenant, _stored(request)
    before = []
    if form.previous_response_id is not None:
        before = stored.get(tenant, form.previous_response_id).messages
    said = [{"role": "user", "content": form.input}] if isinstance(form.input, str) else []
    if not isinstance(form.input, str):
        said = [item.plain() for item in form.input]
    messages = [*before, *said]
    asked = messages
    if form.instructions is not None:  # they hold for this response alone
        asked = [{"role": "system", "content": form.instructions}, *messages]
    recalled, wants = None, memory_of(form.memory)
    if wants is not None:
        recalled = await service.recall(request.state.caller, asked, wants, form.user)
        asked = recalled.messages
    style = None if form.text is None else form.text.format
    ticket = await service.submit(
        asked,
        max_tokens=form.max_output_tokens,
        sampling=sampling_of(form.temperature, form.top_p, None),
        schema=None if style is None else style.schema_,
        scope=tenant,
    )
    what = _Asked(
        service=service,
        stored=stored,
        tenant=tenant,
        form=form,
        head=_head(form),
        messages=messages,
        recalled=recalled,
    )
    if form.stream:
        return Sse(_events(what, ticket), ticket)
    _, end = await whole(ticket, request)
    check_whole(end)
    if recalled is not None:
        await service.remember(recalled, end.text)
    return JSONResponse(_finish(what, end, f"msg_{uuid.uuid4().hex}"))


@router.get("/{id}", response_model=None)
async def get(request: Request, id: str) -> Response:
    """Return a stored response."""
    return JSONResponse(_stored(request).get(request.state.caller.tenant, id).body)


@router.delete("/{id}")
async def delete(request: Request, id: str) -> Json:
    """Forget a stored response."""
    _stored(request).drop(request.state.caller.tenant, id)
    return {"id": id, "object": "response", "deleted": True}


# -- private ----------------------------------------------------------------------------------


def _stored(request: Request) -> Responses:
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = Responses()
    found: Responses = state.responses
    return found


def _head(form: ResponseForm) -> Json:
    style = {"type": "text"}
    if form.text is not None and form.text.format is not None:
        style = form.text.format.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": form.instructions,
        "max_output_tokens": form.max_output_tokens,
        "model": form.model,
        "output": [],
        "parallel_tool_calls": False,
        "previous_response_id": form.previous_response_id,
        "store": form.store,
        "temperature": 1.0 if form.temperature is None else form.temperature,
        "text": {"format": style},
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0 if form.top_p is None else form.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": dict(form.metadata or {}),
    }


def _item(id: str, text: str, status: str) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}] if status else []
    return {
        "type": "message",
        "id": id,
        "status": status or "in_progress",
        "role": "assistant",
        "content": content,
    }


def _finish(what: _Asked, end: End, item: str) -> Json:
    """Return the whole response, and store it if that was asked."""
    is_cut = end.reason == "length"
    status = "incomplete" if is_cut else "completed"
    body: Json = {
        **what.head,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": [_item(item, end.text, status)],
        "usage": {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": end.reused_tokens},
            "output_tokens": end.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": end.prompt_tokens + end.new_tokens,
        },
    }
    if what.recalled is not None:
        body["memory"] = what.recalled.told()
    if what.form.store:
        said = {"role": "assistant", "content": end.text}
        what.stored.put(what.tenant, Stored(body=body, messages=[*what.messages, said]))
    return body


async def _events(what: _Asked, ticket: Ticket) -> AsyncIterator[str]:
    number = 0

    def one(name: str, **data: Any) -> str:
        nonlocal number
        number += 1
        return event({"type": name, "sequence_number": number - 1, **data}, name)

    item = f"msg_{uuid.uuid4().hex}"
    place = {"item_id": item, "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": []}
    yield one("response.created", response=what.head)
    yield one("response.in_progress", response=what.head)
    yield one("response.output_item.added", output_index=0, item=_item(item, "", ""))
    yield one("response.content_part.added", **place, part=empty)
    async for arrived in arrivals(ticket):
        if isinstance(arrived, Piece):
            if arrived.text:
                delta = arrived.text
                yield one("response.output_text.delta", **place, delta=delta, logprobs=[])
            continue
        problem = failed(arrived, "/v1/responses")
        if problem is None and what.recalled is not None:
            problem = await remembered(what.service, what.recalled, arrived, "/v1/responses")
        if problem is not None:
            error = {"code": problem["error"]["code"] or "server_error"}
            error["message"] = problem["error"]["message"]
            yield one("error", **error, param=None)
            yield one("response.failed", response={**what.head, "status": "failed", "error": error})
            return
        body = _finish(what, arrived, item)
        text = arrived.text
        yield one("response.output_text.done", **place, text=text, logprobs=[])
        yield one("response.content_part.done", **place, part={**empty, "text": text})
        yield one("response.output_item.done", output_index=0, item=body["output"][0])
        yield one(f"response.{body['status']}", response=body)
