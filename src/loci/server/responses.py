"""OpenAI's newer protocol: responses, which may go on from an earlier one.

What is stored is kept in this process, the newest `KEPT` of each tenant, and is gone when it ends.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loci.run.requests import End, Piece, Ticket
from loci.server import tools
from loci.server.forms import memory_of
from loci.server.openai import check_model, check_whole, failed, remembered
from loci.server.refusals import Refusal
from loci.server.response_forms import ResponseForm, plain_items
from loci.server.service import Recalled, Service, sampling_of
from loci.server.streams import Sse, arrivals, event, whole
from loci.server.tools import Called, Splitter, Tools, written

router = APIRouter(prefix="/v1/responses", tags=["openai"])
Json = dict[str, Any]
KEPT = 256


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A response and the conversation that led to it, without notes of a memory."""

    body: Json
    messages: list[dict[str, str]]
    calls: dict[str, str] = field(default_factory=dict)  # names of functions, by ids of calls


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
    calls: dict[str, str]
    tools: Tools | None
    recalled: Recalled | None


@router.post("", response_model=None)
async def create(request: Request, form: ResponseForm) -> Response:
    """Answer, from an earlier response on where one is named."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    tenant, stored = request.state.caller.tenant, _stored(request)
    called = Tools.among(form.tools or (), *form.how)
    style = None if form.text is None else form.text.format
    schema = None if style is None else style.schema_
    if called is not None:
        Tools.alone(text=schema is not None)
    before: list[dict[str, str]] = []
    calls: dict[str, str] = {}
    if form.previous_response_id is not None:
        earlier = stored.get(tenant, form.previous_response_id)
        before, calls = earlier.messages, dict(earlier.calls)
    said = [{"role": "user", "content": form.input}] if isinstance(form.input, str) else []
    if not isinstance(form.input, str):
        said = plain_items(form.input, calls)
    messages = [*before, *said]
    asked = messages
    if form.instructions is not None:  # they hold for this response alone
        asked = [{"role": "system", "content": form.instructions}, *messages]
    recalled, wants = None, memory_of(form.memory)
    if wants is not None:
        recalled = await service.recall(request.state.caller, asked, wants, form.user)
        asked = recalled.messages
    if called is not None:
        asked, schema = called.told(asked), called.schema
    ticket = await service.submit(
        asked,
        max_tokens=form.max_output_tokens,
        sampling=sampling_of(form.temperature, form.top_p, None),
        schema=schema,
        scope=tenant,
    )
    what = _Asked(
        service=service,
        stored=stored,
        tenant=tenant,
        form=form,
        head=_head(form, service.mark),
        messages=messages,
        calls=calls,
        tools=called,
        recalled=recalled,
    )
    if form.stream:
        return Sse(_events(what, ticket), ticket)
    _, end = await whole(ticket, request)
    check_whole(end)
    said_back = _read(what, end)
    if recalled is not None:
        await service.remember(recalled, said_back.reply)
    return JSONResponse(_finish(what, end, said_back, _id(said_back.name)))


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


def _head(form: ResponseForm, mark: str) -> Json:
    style = {"type": "text"}
    if form.text is not None and form.text.format is not None:
        style = form.text.format.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": f"resp_{mark}{uuid.uuid4().hex}",
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
        "tool_choice": _choice(form),
        "tools": [tool.model_dump(exclude_none=True) for tool in form.tools or ()],
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


def _choice(form: ResponseForm) -> Any:
    how, only = form.how
    if not form.tools:
        return "none"
    return how if only is None else {"type": "function", "name": only}


def _id(name: str | None) -> str:
    return f"{'msg' if name is None else 'fc'}_{uuid.uuid4().hex}"


def _read(what: _Asked, end: End) -> Called:
    """Return what was said: words, or a call."""
    return Called(reply=end.text) if what.tools is None else tools.read(end.text)


def _call(id: str, called: Called, status: str) -> Json:
    return {
        "type": "function_call",
        "id": id,
        "call_id": called.id,
        "name": called.name,
        "arguments": called.arguments,
        "status": status,
    }


def _finish(what: _Asked, end: End, said: Called, item: str) -> Json:
    """Return the whole response, and store it if that was asked."""
    is_cut = end.reason == "length"
    status = "incomplete" if is_cut else "completed"
    body: Json = {
        **what.head,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": [
            _item(item, said.reply, status) if said.name is None else _call(item, said, status)
        ],
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
        text, calls = said.reply, what.calls
        if said.name is not None:
            text, calls = written(said.name, said.arguments), {**calls, said.id: said.name}
        messages = [*what.messages, {"role": "assistant", "content": text}]
        what.stored.put(what.tenant, Stored(body=body, messages=messages, calls=calls))
    return body


class _Output:
    """The one item of a response that streams; what it is shows when it begins."""

    def __init__(self, called: Tools | None) -> None:
        self._splitter = None if called is None else Splitter()
        self.called = Called()  # its id is the call's
        self.item = ""

    @property
    def name(self) -> str | None:
        """Of the function, once it is known."""
        return None if self._splitter is None else self._splitter.name

    def feed(self, text: str) -> list[tuple[str, Json]]:
        """Return the events of a piece of the answer."""
        if self._splitter is not None:
            text = self._splitter.feed(text)
        events = []
        if text or self.name is not None or self._splitter is None:
            events += self.opened()
        if text and self.name is None:
            events.append(
                ("response.output_text.delta", {**self._place(), "delta": text, "logprobs": []})
            )
        elif text:
            place = {"item_id": self.item, "output_index": 0}
            events.append(("response.function_call_arguments.delta", {**place, "delta": text}))
        return events

    def end(self, body: Json) -> list[tuple[str, Json]]:
        """Return the events that close it, by the whole response."""
        events: list[tuple[str, Json]] = []
        (item,) = body["output"]
        if self.name is None:
            text = item["content"][0]["text"]
            part = {"type": "output_text", "text": text, "annotations": []}
            events.append(
                ("response.output_text.done", {**self._place(), "text": text, "logprobs": []})
            )
            events.append(("response.content_part.done", {**self._place(), "part": part}))
        else:
            place = {"item_id": self.item, "output_index": 0, "name": self.name}
            done = {**place, "arguments": item["arguments"]}
            events.append(("response.function_call_arguments.done", done))
        events.append(("response.output_item.done", {"output_index": 0, "item": item}))
        return events

    def opened(self) -> list[tuple[str, Json]]:
        """Return the events that begin it, where it has not begun."""
        if self.item:
            return []
        self.item = _id(self.name)
        if self.name is not None:
            begun = _call(self.item, replace(self.called, name=self.name), "in_progress")
            return [("response.output_item.added", {"output_index": 0, "item": begun})]
        empty = {"type": "output_text", "text": "", "annotations": []}
        added = {"output_index": 0, "item": _item(self.item, "", "")}
        return [
            ("response.output_item.added", added),
            ("response.content_part.added", {**self._place(), "part": empty}),
        ]

    def _place(self) -> Json:
        return {"item_id": self.item, "output_index": 0, "content_index": 0}


async def _events(what: _Asked, ticket: Ticket) -> AsyncIterator[str]:
    number, output = 0, _Output(what.tools)

    def one(name: str, data: Json) -> str:
        nonlocal number
        number += 1
        return event({"type": name, "sequence_number": number - 1, **data}, name)

    yield one("response.created", {"response": what.head})
    yield one("response.in_progress", {"response": what.head})
    async for arrived in arrivals(ticket):
        if isinstance(arrived, Piece):
            for name, data in output.feed(arrived.text):
                yield one(name, data)
            continue
        problem = failed(arrived, "/v1/responses")
        said = Called()
        if problem is None:
            said = replace(_read(what, arrived), id=output.called.id)
            if what.recalled is not None:
                spoken = replace(arrived, text=said.reply)
                problem = await remembered(what.service, what.recalled, spoken, "/v1/responses")
        if problem is not None:
            error = {"code": problem["error"]["code"] or "server_error"}
            error["message"] = problem["error"]["message"]
            yield one("error", {**error, "param": None})
            failure = {**what.head, "status": "failed", "error": error}
            yield one("response.failed", {"response": failure})
            return
        for name, data in output.opened():
            yield one(name, data)
        body = _finish(what, arrived, said, output.item)
        for name, data in output.end(body):
            yield one(name, data)
        yield one(f"response.{body['status']}", {"response": body})
