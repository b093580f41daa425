"""OpenAI's protocol: models, completions, embeddings, and what chat and responses share."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any  # JSON values

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from loci.errors import LociError, OverloadError, ParameterError
from loci.run.requests import End, Odds, Piece, Ticket
from loci.server import refusals
from loci.server.forms import Common, CompletionForm, EmbeddingForm
from loci.server.refusals import Refusal
from loci.server.service import EMBEDDER, Recalled, Service, sampling_of
from loci.server.streams import Sse, arrivals_of, cancel, event, wholes

router = APIRouter(prefix="/v1", tags=["openai"])
Json = dict[str, Any]


@router.get("/models")
async def models(request: Request) -> Json:
    """Return the models this server has."""
    service: Service = request.app.state.service
    names = [service.model, *([EMBEDDER] if service.embedder is not None else [])]
    return {"object": "list", "data": [_model(service, name) for name in names]}


@router.get("/models/{name:path}")
async def model(request: Request, name: str) -> Json:
    """Return one of the models."""
    service: Service = request.app.state.service
    check_model(service, name, embeds=name == EMBEDDER)
    return _model(service, name)


@router.post("/completions", response_model=None)
async def completions(request: Request, form: CompletionForm) -> Response:
    """Continue a text as it is."""
    service: Service = request.app.state.service
    check_model(service, form.model)
    tickets = await submitted(
        service,
        form,
        form.prompt,
        max_tokens=form.max_tokens,
        logprobs=form.logprobs,
        scope=request.state.caller.tenant,
    )
    before = form.prompt if isinstance(form.prompt, str) else ""
    if form.echo and not before:
        before = service.batch.tokenizer.decode(form.prompt)  # type: ignore[arg-type]  # ids
    before = before if form.echo else ""
    head = head_of("cmpl", form.model) | {"object": "text_completion"}
    if form.stream:
        usage = form.stream_options is not None and form.stream_options.include_usage
        return Sse(_text_events(service, tickets, head, before, usage), *tickets)
    found = await wholes(tickets, request)
    for _, end in found:
        check_whole(end)
    choices = [
        {
            "index": number,
            "text": before + end.text,
            "logprobs": None
            if form.logprobs is None
            else _text_odds(service, odds_in(pieces), len(before)),
            "finish_reason": finish_of(end),
        }
        for number, (pieces, end) in enumerate(found)
    ]
    return JSONResponse({**head, "choices": choices, "usage": usage_of([end for _, end in found])})


@router.post("/embeddings")
async def embeddings(request: Request, form: EmbeddingForm) -> Json:
    """Return a vector of each text."""
    service: Service = request.app.state.service
    check_model(service, form.model, embeds=True)
    texts = [form.input] if isinstance(form.input, str) else form.input
    empty = next((i for i, text in enumerate(texts) if not text), None)
    if empty is not None:
        raise ParameterError(
            "a text to embed is empty", value=empty, allowed="texts that say something"
        )
    vectors, tokens = await service.embed(texts)
    width = vectors.shape[1]
    if form.dimensions not in (None, width):
        raise ParameterError(
            "the embedder has one width", value=form.dimensions, allowed=str(width)
        )
    encoded: list[Any] = (
        [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
        if form.encoding_format == "base64"
        else [row.tolist() for row in vectors]
    )
    return {
        "object": "list",
        "model": form.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(encoded)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


# -- what the other protocols use too -----------------------------------------------------------


def check_model(service: Service, name: str, *, embeds: bool = False) -> None:
    """Refuse a model this server does not have.

    Raises:
        Refusal: with status 404.
    """
    known = EMBEDDER if embeds else service.model
    if name != known or (embeds and service.embedder is None):
        there = [service.model, *([EMBEDDER] if service.embedder is not None else [])]
        raise Refusal(
            status=404,
            message=f"there is no model {name!r} here; there is {', '.join(there)}",
            code="model_not_found",
            param="model",
        )


def check_whole(end: End) -> None:
    """Refuse to pass off as whole what was cut short.

    Raises:
        OverloadError: if it was cancelled because the server stops.
    """
    if end.reason == "cancelled":
        raise OverloadError("the server is stopping, the answer is not whole", retry_after_s=10.0)


def finish_of(end: End) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return "length" if end.reason == "length" else "stop"


def usage_of(ends: Sequence[End]) -> Json:
    """Return what all choices took; they have one prompt. Cached tokens were there before."""
    made, prompt = sum(end.new_tokens for end in ends), ends[0].prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": ends[0].reused_tokens},
    }


async def submitted(
    service: Service,
    form: Common,
    prompt: Any,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    scope: str,
    schema: Json | None = None,
) -> list[Ticket]:
    """Submit each choice of a request; one that is refused takes the others back."""
    tickets: list[Ticket] = []
    try:
        for number in range(form.choices):
            seed = None if form.seed is None else form.seed + number
            ticket = await service.submit(
                prompt,
                max_tokens=max_tokens,
                sampling=sampling_of(form.temperature, form.top_p, seed, form.top_k),
                stop=form.stops,
                schema=schema,
                logprobs=logprobs,
                scope=scope,
            )
            tickets.append(ticket)
    except LociError:
        cancel(tickets)
        raise
    return tickets


def failed(end: End, path: str) -> Json | None:
    """Return the error with which a stream ends that cannot go on; None where it ended well."""
    error = end.error
    if end.reason == "cancelled":
        error = OverloadError("the server is stopping, the answer is not whole", retry_after_s=10.0)
    return None if error is None else refusals.body(refusals.of(error), path)


async def remembered(service: Service, recalled: Recalled, end: End, path: str) -> Json | None:
    """Remember what was said in a stream; return the error with which it ends, if it could not."""
    try:
        await service.remember(recalled, end.text)
    except LociError as error:
        return refusals.body(refusals.of(error), path)
    return None


def head_of(kind: str, model: str) -> Json:
    """Return the fields with which every answer and every piece of it begins."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def odds_in(pieces: Sequence[Piece]) -> list[Odds]:
    """Return how likely the tokens of an answer were, in order."""
    return [one for piece in pieces for one in piece.odds]


# -- private ----------------------------------------------------------------------------------


def _model(service: Service, name: str) -> Json:
    return {"id": name, "object": "model", "created": int(service.started), "owned_by": "loci"}


async def _text_events(
    service: Service, tickets: Sequence[Ticket], head: Json, before: str, usage: bool
) -> AsyncIterator[str]:
    at = [0] * len(tickets)
    ends: dict[int, End] = {}

    def chunk(number: int, text: str, odds: Sequence[Odds] = (), finish: str | None = None) -> Json:
        is_told = tickets[number].ask.logprobs is not None and odds
        told = _text_odds(service, odds, at[number]) if is_told else None
        choice = {"index": number, "text": text, "logprobs": told, "finish_reason": finish}
        return {**head, "choices": [choice]}

    for number in range(len(tickets) if before else 0):
        yield event(chunk(number, before))
        at[number] = len(before)
    async for number, item in arrivals_of(tickets):
        if isinstance(item, Piece):
            if item.text or item.odds:
                yield event(chunk(number, item.text, item.odds))
                at[number] += len(item.text)
            continue
        problem = failed(item, "/v1/completions")
        if problem is not None:
            yield event(problem)
            return
        ends[number] = item
        yield event(chunk(number, "", finish=finish_of(item)))
    if usage:
        told = usage_of([ends[number] for number in range(len(tickets))])
        yield event({**head, "choices": [], "usage": told})
    yield event("[DONE]")


def _text_odds(service: Service, odds: Sequence[Odds], at: int) -> Json:
    bytes_of = service.batch.tokenizer.bytes_of
    tokens = [found.raw.decode("utf-8", "replace") for found in odds]
    offsets = []
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [found.logprob for found in odds],
        "top_logprobs": [
            {bytes_of(id).decode("utf-8", "replace"): value for id, value in found.top}
            for found in odds
        ],
        "text_offset": offsets,
    }
