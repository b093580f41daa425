"""From the engine's thread to an event loop, and from there to a client that may go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any  # JSON values

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from loci.run.requests import End, Piece, Ticket

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def arrivals(ticket: Ticket) -> AsyncIterator[Piece | End]:
    """Yield pieces as they come, then the end; whoever stops reading cancels the request."""
    async for _, item in arrivals_of([ticket]):
        yield item


async def arrivals_of(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece | End]]:
    """Yield (number, piece or end) of several answers, until each has ended."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Piece | End]] = asyncio.Queue()

    def taker(number: int) -> Callable[[Piece | End], None]:
        def hand_over(item: Piece | End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(queue.put_nowait, (number, item))

        return hand_over

    for number, ticket in enumerate(tickets):
        ticket.listen(taker(number))
    left = len(tickets)
    try:
        while left:
            number, item = await queue.get()
            left -= isinstance(item, End)
            yield number, item
            await asyncio.sleep(0)  # a client that has gone is noticed between two pieces
    finally:
        cancel(tickets)


def cancel(tickets: Sequence[Ticket]) -> None:
    """End what has not ended."""
    for ticket in tickets:
        if ticket.end is None:
            ticket.cancel()


async def whole(ticket: Ticket, request: Request) -> tuple[list[Piece], End]:
    """Return everything once it has ended; a client that goes away cancels it.

    Raises:
        LociError: if the answer failed.
    """
    (found,) = await wholes([ticket], request)
    return found


async def wholes(tickets: Sequence[Ticket], request: Request) -> list[tuple[list[Piece], End]]:
    """Return several answers once all have ended; see `whole`."""

    async def read() -> list[tuple[list[Piece], End]]:
        pieces: list[list[Piece]] = [[] for _ in tickets]
        ends: dict[int, End] = {}
        async for number, item in arrivals_of(tickets):
            if isinstance(item, End):
                ends[number] = item
            else:
                pieces[number].append(item)
        return [(pieces[number], ends[number]) for number in range(len(tickets))]

    reading, leaving = asyncio.ensure_future(read()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            cancel(tickets)
        found = await reading
    finally:
        leaving.cancel()
        cancel(tickets)
    error = next((end.error for _, end in found if end.error is not None), None)
    if error is not None:
        raise error
    return found


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Sse(StreamingResponse):
    """Server-sent events; however the response ends, the requests behind it end too."""

    def __init__(self, content: AsyncIterator[str], *tickets: Ticket) -> None:
        super().__init__(content, media_type="text/event-stream", headers=HEADERS)
        self._tickets = tickets

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            cancel(self._tickets)


def event(data: Mapping[str, Any] | str, name: str | None = None) -> str:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n"
