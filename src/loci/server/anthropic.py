"""Anthropic's protocol: messages."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loci.run.requests import End, Piece, Ticket
from loci.server.forms import CountForm, MessagesForm, conversation, memory_of
from loci.server.openai import check_model, check_whole, failed, remembered
from loci.server.service import Recalled, Service, sampling_of
from loci.server.streams import Sse, arrivals, event, whole

router = APIRouter(prefix="/v1/messages", tags=["anthropic"])
Json = dict[str, Any]


@router.post("", response_model=None)
async def messages(request: Request, form: MessagesForm) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    said, recalled = conversation(form), None
    wants = memory_of(form.memory)
    if wants is not None:
        user = None if form.metadata is None else form.metadata.user_id
        recalled = await service.recall(request.state.caller, said, wants, user)
        said = recalled.messages
    ticket = await service.submit(
        said,
        max_tokens=form.max_tokens,
        sampling=sampling_of(form.temperature, form.top_p, None, form.top_k),
        stop=tuple(word for word in form.stop_sequences or () if word),
        schema=form.schema_or_none,
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
        return Sse(_events(service, ticket, head, recalled), ticket)
    _, end = await whole(ticket, request)
    check_whole(end)
    if recalled is not None:
        await service.remember(recalled, end.text)
    content = [{"type": "text", "text": end.text}] if end.text else []
    body = {**head, "content": content, **_stop(end), "usage": _usage(end)}
    if recalled is not None:
        body["memory"] = recalled.told()
    return JSONResponse(body)


@router.post("/count_tokens")
async def count_tokens(request: Request, form: CountForm) -> Json:
    """Return how many tokens a conversation takes."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    return {"input_tokens": await service.count(conversation(form))}


# -- private ----------------------------------------------------------------------------------


async def _events(
    service: Service, ticket: Ticket, head: Json, recalled: Recalled | None
) -> AsyncIterator[str]:
    def one(name: str, **data: Any) -> str:
        return event({"type": name, **data}, name)

    usage = {"input_tokens": len(ticket.ask.ids), "output_tokens": 0}
    yield one("message_start", message={**head, "usage": usage})
    yield one("content_block_start", index=0, content_block={"type": "text", "text": ""})
    async for item in arrivals(ticket):
        if isinstance(item, Piece):
            if item.text:
                delta = {"type": "text_delta", "text": item.text}
                yield one("content_block_delta", index=0, delta=delta)
            continue
        problem = failed(item, "/v1/messages")
        if problem is not None:
            yield event(problem, "error")
            return
        yield one("content_block_stop", index=0)
        more: Json = {}
        if recalled is not None:
            problem = await remembered(service, recalled, item, "/v1/messages")
            if problem is not None:
                yield event(problem, "error")
                return
            more["memory"] = recalled.told()
        yield one("message_delta", delta=_stop(item), usage=_usage(item), **more)
        yield one("message_stop")


def _stop(end: End) -> Json:
    reason = {"length": "max_tokens", "stop": "stop_sequence"}.get(end.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": end.stopped_by}


def _usage(end: End) -> Json:
    return {
        "input_tokens": end.prompt_tokens - end.reused_tokens,
        "cache_read_input_tokens": end.reused_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": end.new_tokens,
    }
