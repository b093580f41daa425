"""One answer on its way from a replica to a client: held until the client may have it."""

from __future__ import annotations

import json
from typing import Any  # ASGI messages, JSON values

from starlette.types import Send

from loci.server import refusals
from loci.server.refusals import Refusal
from loci.server.streams import event

HEADER = b"x-loci-replica"
_RESPONSES = "/v1/responses"


class Relay:
    """Passes a stream on from its first event, and holds any other answer until it is flushed.

    Args:
        name: of the replica, which the client is told in a header.
        send: to the client; None holds everything.

    Attributes:
        status: of the answer; 0 before it is known.
        begun: whether the client has some of it.
    """

    def __init__(self, name: str, path: str, send: Send | None) -> None:
        self._name, self._path, self._send = name, path, send
        self.status, self.begun = 0, False
        self._held: list[dict[str, Any]] = []
        self._is_stream = False
        self._first = b""
        self._events = 0

    async def take(self, message: dict[str, Any]) -> None:
        """Take a message of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            kind = next((value for name, value in headers if name == b"content-type"), b"")
            self._is_stream = kind.startswith(b"text/event-stream")
            message = {**message, "headers": [*headers, (HEADER, self._name.encode())]}
        self._held.append(message)
        body = message.get("body", b"")
        if self._is_stream and body:
            self._first = self._first or body
            self._events += body.count(b"\n\n")
            if self._send is not None:
                await self.flush()

    async def flush(self) -> None:
        """Let the client have what is held."""
        assert self._send is not None
        for message in self._held:
            self.begun = True
            await self._send(message)
        self._held.clear()

    async def cut_short(self, refusal: Refusal) -> None:
        """End a stream that cannot go on, as its protocol tells errors."""
        assert self._send is not None
        text = "".join(self._last_events(refusal))
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": False})

    def body(self) -> bytes:
        """Return what is held of the body."""
        return b"".join(message.get("body", b"") for message in self._held)

    def json(self) -> dict[str, Any]:
        """Return the body as an object; empty where it is none."""
        try:
            found = json.loads(self.body())
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _last_events(self, refusal: Refusal) -> list[str]:
        if not self._path.startswith("/v1/"):
            return []
        problem = refusals.body(refusal, self._path)
        if self._path.startswith("/v1/messages"):
            return [event(problem, "error")]
        if not self._path.startswith(_RESPONSES):
            return [event(problem)]
        error = {"code": refusal.code or "server_error", "message": refusal.message}
        told = {"type": "error", "sequence_number": self._events, **error, "param": None}
        failure = {**self._begun_response(), "status": "failed", "error": error}
        last = {"type": "response.failed", "sequence_number": self._events + 1}
        return [event(told, "error"), event({**last, "response": failure}, "response.failed")]

    def _begun_response(self) -> dict[str, Any]:
        """Return the response as its first event told it."""
        line = next(
            (one for one in self._first.splitlines() if one.startswith(b"data: ")), b"data: {}"
        )
        found: dict[str, Any] = json.loads(line.removeprefix(b"data: ")).get("response", {})
        return found
