"""From the engine's thread to an event loop, and from there to a client that may go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any  # JSON values

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from loci.run.requests import End, Piece, Ticket

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def arrivals(ticket: Ticket) -> AsyncIterator[Piece | End]:
    """Yield pieces as they come, then the end; whoever stops reading cancels the request."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Piece | End] = asyncio.Queue()

    def hand_over(item: Piece | End) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            loop.call_soon_threadsafe(queue.put_nowait, item)

    ticket.listen(hand_over)
    try:
        while True:
            item = await queue.get()
            yield item
            if isinstance(item, End):
                return
            await asyncio.sleep(0)  # a client that has gone is noticed between two pieces
    finally:
        if ticket.end is None:
            ticket.cancel()


async def whole(ticket: Ticket, request: Request) -> tuple[list[Piece], End]:
    """Return everything once it has ended; a client that goes away cancels it.

    Raises:
        LociError: if the answer failed.
    """

    async def read() -> tuple[list[Piece], End]:
        pieces: list[Piece] = []
        async for item in arrivals(ticket):
            if isinstance(item, End):
                return pieces, item
            pieces.append(item)
        raise AssertionError("an answer always ends")

    reading, leaving = asyncio.ensure_future(read()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            ticket.cancel()
        pieces, end = await reading
    finally:
        leaving.cancel()
        if ticket.end is None:
            ticket.cancel()
    if end.error is not None:
        raise end.error
    return pieces, end


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Sse(StreamingResponse):
    """Server-sent events; however the response ends, the request behind it ends too."""

    def __init__(self, content: AsyncIterator[str], ticket: Ticket | None = None) -> None:
        super().__init__(content, media_type="text/event-stream", headers=HEADERS)
        self._ticket = ticket

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._ticket is not None and self._ticket.end is None:
                self._ticket.cancel()


def event(data: Mapping[str, Any] | str, name: str | None = None) -> str:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n"
