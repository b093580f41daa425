"""OpenAI's chat: streams, several choices, functions, schemas, and a memory where one is wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loci.errors import ParameterError
from loci.run.requests import End, Odds, Piece, Ticket
from loci.server import tools
from loci.server.chat_forms import ChatForm, plain_messages
from loci.server.forms import memory_of
from loci.server.openai import (
    check_model,
    check_whole,
    failed,
    finish_of,
    head_of,
    odds_in,
    remembered,
    submitted,
    usage_of,
)
from loci.server.service import Recalled, Service
from loci.server.streams import Sse, arrivals_of, event, wholes
from loci.server.tools import Called, Splitter, Tools

router = APIRouter(prefix="/v1", tags=["openai"])
PATH = "/v1/chat/completions"
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a request needs until its end."""

    service: Service
    form: ChatForm
    tools: Tools | None
    recalled: Recalled | None
    head: Json

    @property
    def usage(self) -> bool:
        options = self.form.stream_options
        return options is not None and options.include_usage


@router.post("/chat/completions", response_model=None)
async def chat(request: Request, form: ChatForm) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    called = Tools.of(form.tools, form.tool_choice)
    _check(form, called)
    messages = plain_messages(form.messages)
    recalled = None
    wants = memory_of(form.memory)
    if wants is not None:
        recalled = await service.recall(request.state.caller, messages, wants, form.user)
        messages = recalled.messages
    schema = None if form.response_format is None else form.response_format.schema_or_none
    if called is not None:
        messages, schema = called.told(messages), called.schema
    tickets = await submitted(
        service,
        form,
        messages,
        max_tokens=form.max_completion_tokens or form.max_tokens,
        logprobs=(form.top_logprobs or 0) if form.logprobs else None,
        scope=request.state.caller.tenant,
        schema=schema,
    )
    asked = _Asked(
        service=service,
        form=form,
        tools=called,
        recalled=recalled,
        head=head_of("chatcmpl", form.model),
    )
    if form.stream:
        return Sse(_events(asked, tickets), *tickets)
    found = await wholes(tickets, request)
    for _, end in found:
        check_whole(end)
    choices = [_choice(asked, number, *one) for number, one in enumerate(found)]
    if recalled is not None:
        await service.remember(recalled, _words(asked, found[0][1]))
    usage = usage_of([end for _, end in found])
    body = {**asked.head, "object": "chat.completion", "choices": choices, "usage": usage}
    if recalled is not None:
        body["memory"] = recalled.told()
    return JSONResponse(body)


# -- private ----------------------------------------------------------------------------------


def _check(form: ChatForm, called: Tools | None) -> None:
    """Refuse what does not go together."""
    if form.max_tokens is not None and form.max_completion_tokens is not None:
        raise ParameterError(
            "max_tokens is given twice", allowed="max_tokens or max_completion_tokens"
        )
    if form.top_logprobs is not None and not form.logprobs:
        raise ParameterError("top_logprobs goes with logprobs", value=form.top_logprobs)
    wants = memory_of(form.memory)
    if form.choices > 1 and wants is not None and wants["remember"]:
        raise ParameterError(
            "of several choices none can be remembered",
            value=form.choices,
            way_out='"memory": {"remember": false}, or n = 1',
        )
    if called is not None:
        Tools.alone(
            response_format=form.response_format is not None,
            stop=bool(form.stops),
            logprobs=bool(form.logprobs),
        )


def _choice(asked: _Asked, number: int, pieces: Sequence[Piece], end: End) -> Json:
    message: Json = {"role": "assistant", "content": end.text, "refusal": None}
    finish = finish_of(end)
    if asked.tools is not None:
        found = tools.read(end.text)
        message["content"] = found.reply if found.name is None else None
        if found.name is not None:
            message["tool_calls"] = [_call(found)]
        finish = _finish(found)
    odds = _odds(asked.service, odds_in(pieces)) if asked.form.logprobs else None
    return {"index": number, "message": message, "logprobs": odds, "finish_reason": finish}


def _call(found: Called) -> Json:
    function = {"name": found.name, "arguments": found.arguments}
    return {"id": found.id, "type": "function", "function": function}


def _finish(found: Called) -> str:
    return "stop" if found.name is None else "tool_calls"


def _words(asked: _Asked, end: End) -> str:
    """Return what was said in words, which is what can be remembered."""
    return end.text if asked.tools is None else tools.read(end.text).reply


class _Choice:
    """One choice of a stream, on its way."""

    def __init__(self, asked: _Asked, number: int) -> None:
        self._asked, self._number = asked, number
        self._splitter = None if asked.tools is None else Splitter()
        self._id = Called().id
        self._is_named = False

    def begin(self) -> Json:
        return self._chunk({"role": "assistant", "content": None if self._splitter else ""})

    def piece(self, item: Piece) -> list[Json]:
        """Return what a piece of the answer is to the client."""
        if self._splitter is None:
            return (
                [self._chunk({"content": item.text}, item.odds)] if item.text or item.odds else []
            )
        return self._deltas(self._splitter.feed(item.text))

    def end(self, item: End) -> Json:
        if self._splitter is None:
            return self._chunk({}, finish=finish_of(item))
        return self._chunk({}, finish="stop" if self._splitter.name is None else "tool_calls")

    def _deltas(self, text: str) -> list[Json]:
        assert self._splitter is not None
        name = self._splitter.name
        if name is None:
            return [self._chunk({"content": text})] if text else []
        deltas: list[Json] = []
        if not self._is_named:
            self._is_named = True
            function = {"name": name, "arguments": ""}
            deltas.append({"index": 0, "id": self._id, "type": "function", "function": function})
        if text:
            deltas.append({"index": 0, "function": {"arguments": text}})
        return [self._chunk({"tool_calls": [delta]}) for delta in deltas]

    def _chunk(self, delta: Json, odds: Sequence[Odds] = (), finish: str | None = None) -> Json:
        asked = self._asked
        told = None if not asked.form.logprobs or not odds else _odds(asked.service, odds)
        choice = {
            "index": self._number,
            "delta": delta,
            "logprobs": told,
            "finish_reason": finish,
        }
        return {**asked.head, "object": "chat.completion.chunk", "choices": [choice]}


async def _events(asked: _Asked, tickets: Sequence[Ticket]) -> AsyncIterator[str]:
    choices = [_Choice(asked, number) for number in range(len(tickets))]
    ends: dict[int, End] = {}
    for choice in choices:
        yield event(choice.begin())
    async for number, item in arrivals_of(tickets):
        if isinstance(item, Piece):
            for chunk in choices[number].piece(item):
                yield event(chunk)
            continue
        problem = failed(item, PATH)
        if problem is None and asked.recalled is not None and not ends:
            said = item if asked.tools is None else replace(item, text=_words(asked, item))
            problem = await remembered(asked.service, asked.recalled, said, PATH)
        if problem is not None:
            yield event(problem)
            return
        ends[number] = item
        last = choices[number].end(item)
        if asked.recalled is not None:
            last["memory"] = asked.recalled.told()
        yield event(last)
    if asked.usage:
        usage = usage_of([ends[number] for number in range(len(tickets))])
        head = {**asked.head, "object": "chat.completion.chunk"}
        yield event({**head, "choices": [], "usage": usage})
    yield event("[DONE]")


def _odds(service: Service, odds: Sequence[Odds]) -> Json:
    bytes_of = service.batch.tokenizer.bytes_of

    def one(raw: bytes, logprob: float) -> Json:
        return {
            "token": raw.decode("utf-8", "replace"),
            "bytes": list(raw),
            "logprob": logprob,
        }

    return {
        "content": [
            one(found.raw, found.logprob)
            | {"top_logprobs": [one(bytes_of(id), logprob) for id, logprob in found.top]}
            for found in odds
        ],
        "refusal": None,
    }
