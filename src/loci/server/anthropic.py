"""Anthropic's protocol: messages."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loci.run.requests import End, Piece, Ticket
from loci.server import tools
from loci.server.anthropic_forms import CountForm, MessagesForm, conversation
from loci.server.forms import memory_of
from loci.server.openai import check_model, check_whole, failed, remembered
from loci.server.service import Recalled, Service, sampling_of
from loci.server.streams import Sse, arrivals, event, whole
from loci.server.tools import Splitter, Tools

router = APIRouter(prefix="/v1/messages", tags=["anthropic"])
Json = dict[str, Any]


@router.post("", response_model=None)
async def messages(request: Request, form: MessagesForm) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    said, recalled = conversation(form), None
    called = Tools.among(form.functions, *form.how)
    schema = form.schema_or_none
    if called is not None:
        Tools.alone(output_config=schema is not None, stop_sequences=bool(form.stop_sequences))
    wants = memory_of(form.memory)
    if wants is not None:
        user = None if form.metadata is None else form.metadata.user_id
        recalled = await service.recall(request.state.caller, said, wants, user)
        said = recalled.messages
    if called is not None:
        said, schema = called.told(said), called.schema
    ticket = await service.submit(
        said,
        max_tokens=form.max_tokens,
        sampling=sampling_of(form.temperature, form.top_p, None, form.top_k),
        stop=tuple(word for word in form.stop_sequences or () if word),
        schema=schema,
        scope=request.state.caller.tenant,
    )
    head: Json = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": form.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if form.stream:
        return Sse(_events(service, ticket, head, recalled, called), ticket)
    _, end = await whole(ticket, request)
    check_whole(end)
    words, blocks = _read(end, called)
    if recalled is not None:
        await service.remember(recalled, words)
    body = {**head, "content": blocks, **_stop(end, blocks), "usage": _usage(end)}
    if recalled is not None:
        body["memory"] = recalled.told()
    return JSONResponse(body)


@router.post("/count_tokens")
async def count_tokens(request: Request, form: CountForm) -> Json:
    """Return how many tokens a conversation takes."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    said, called = conversation(form), Tools.among(form.functions, *form.how)
    return {"input_tokens": await service.count(said if called is None else called.told(said))}


# -- private ----------------------------------------------------------------------------------


def _read(end: End, called: Tools | None) -> tuple[str, list[Json]]:
    """Return what was said in words, and the blocks of an answer."""
    if called is None:
        return end.text, [{"type": "text", "text": end.text}] if end.text else []
    found = tools.read(end.text)
    if found.name is None:
        return found.reply, [{"type": "text", "text": found.reply}] if found.reply else []
    input_ = json.loads(found.arguments)
    return "", [{"type": "tool_use", "id": _use(), "name": found.name, "input": input_}]


class _Block:
    """The one block of an answer; what it is shows when it begins."""

    def __init__(self, called: Tools | None) -> None:
        self._splitter = None if called is None else Splitter()
        self._is_open = False

    def feed(self, text: str) -> list[Json]:
        """Return the events of a piece of the answer."""
        if self._splitter is not None:
            text = self._splitter.feed(text)
        events = []
        name = None if self._splitter is None else self._splitter.name
        if not self._is_open and (text or name is not None or self._splitter is None):
            events.append(self._begin(name))
        if text:
            delta = {"type": "text_delta", "text": text}
            if name is not None:
                delta = {"type": "input_json_delta", "partial_json": text}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        return events

    def end(self) -> list[Json]:
        """Return the events that close it."""
        begun = [] if self._is_open else [self._begin(None)]
        return [*begun, {"type": "content_block_stop", "index": 0}]

    @property
    def stop(self) -> list[Json]:
        """The block as far as the reason to stop is concerned."""
        is_call = self._splitter is not None and self._splitter.name is not None
        return [{"type": "tool_use"}] if is_call else []

    def _begin(self, name: str | None) -> Json:
        self._is_open = True
        block: Json = {"type": "text", "text": ""}
        if name is not None:
            block = {"type": "tool_use", "id": _use(), "name": name, "input": {}}
        return {"type": "content_block_start", "index": 0, "content_block": block}


async def _events(
    service: Service,
    ticket: Ticket,
    head: Json,
    recalled: Recalled | None,
    called: Tools | None,
) -> AsyncIterator[str]:
    def one(data: Json) -> str:
        return event(data, data["type"])

    usage, block = {"input_tokens": len(ticket.ask.ids), "output_tokens": 0}, _Block(called)
    yield one({"type": "message_start", "message": {**head, "usage": usage}})
    async for item in arrivals(ticket):
        if isinstance(item, Piece):
            for data in block.feed(item.text):
                yield one(data)
            continue
        problem = failed(item, "/v1/messages")
        if problem is None and recalled is not None:
            said = replace(item, text=_read(item, called)[0])
            problem = await remembered(service, recalled, said, "/v1/messages")
        if problem is not None:
            yield event(problem, "error")
            return
        for data in block.end():
            yield one(data)
        last: Json = {"type": "message_delta", "delta": _stop(item, block.stop)}
        last["usage"] = _usage(item)
        if recalled is not None:
            last["memory"] = recalled.told()
        yield one(last)
        yield one({"type": "message_stop"})


def _use() -> str:
    return f"toolu_{uuid.uuid4().hex[:24]}"


def _stop(end: End, blocks: list[Json]) -> Json:
    reason = {"length": "max_tokens", "stop": "stop_sequence"}.get(end.reason, "end_turn")
    if any(block["type"] == "tool_use" for block in blocks):
        reason = "tool_use"
    return {"stop_reason": reason, "stop_sequence": end.stopped_by}


def _usage(end: End) -> Json:
    return {
        "input_tokens": end.prompt_tokens - end.reused_tokens,
        "cache_read_input_tokens": end.reused_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": end.new_tokens,
    }
