"""The door before several replicas: it listens, chooses who answers, and passes answers through.

A request goes to the replica that its key chooses (see `sticky`). Nothing of an answer is let out
before the replica is known to live: a stream from its first event on, any other answer as a whole.
So a request whose replica dies before that is asked of the next one, and its client notices
nothing; a stream that had begun ends with the error event of its protocol. What is remembered is in
the database before the answer says so, and the door keeps nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any  # JSON values, ASGI messages
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from loci.run.cluster import FailedError, LostError
from loci.server import gather, refusals
from loci.server.app import LOOPBACK, Gate
from loci.server.keys import Keys
from loci.server.metrics import CONTENT_TYPE
from loci.server.refusals import Refusal
from loci.server.relay import Relay
from loci.server.replica import LATE, TAKEN
from loci.server.service import LIMIT_BYTES
from loci.server.sticky import affinity, keeper_of, order
from loci.server.watch import BEGIN_S, LOOK_S, Replicas, Tend, Watch

EACH_S = 5.0  # for one replica to tell of itself
_LARGE = 1 << 18  # bytes of a body that is read beside the event loop
_MEMORIES = "/api/v1/memories"
_EVENTS = "/api/v1/events"
_BUSY = (429, 503)
_PASSED = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request, whole."""

    scope: dict[str, Any]
    body: bytes
    tenant: str
    only: str | None  # the replica it names

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def is_read(self) -> bool:
        return self.scope["method"] in ("GET", "HEAD", "OPTIONS")

    @property
    def is_write(self) -> bool:
        """Whether it changes a memory, and nothing else."""
        return self.path.startswith(_MEMORIES) and not self.is_read


class Front:
    """An ASGI application over replicas, behind a gate of its own.

    Args:
        keys: who may ask; the replicas have the same.
        tend: looks after a tenant's memory beside the rest; None where there is none.

    Attributes:
        counts: requests by what became of them: "answered", "retried", "cut", "lost".
        watch: who is down, and what was done for memories.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        model: str,
        keys: Keys | None = None,
        tend: Tend | None = None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.replicas, self.model, self.keys = replicas, model, keys
        self.limit_bytes, self.is_closing = limit_bytes, False
        self.counts: Counter[str] = Counter()
        self.watch = Watch(replicas, tend)
        self._endless: set[asyncio.Task[Any]] = set()
        self._in_flight = 0

    def app(self, hosts: tuple[str, ...] = ()) -> ASGIApp:
        """Return the application; see `make_app` for the hosts."""
        return Gate(self._asgi, self, hosts=(*LOOPBACK, *hosts))

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let those that run end, then stop the replicas."""
        self.is_closing = True
        self._drain(drain_s)
        for name in self.replicas.names:
            with contextlib.suppress(LostError, FailedError):
                self.replicas.ask(name, "stop", 0.0, timeout_s=EACH_S)
        self._drain(EACH_S)  # streams that were cut are told

    # -- requests -----------------------------------------------------------------------------

    async def _asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        counts = scope["path"] != _EVENTS
        self._in_flight += counts
        try:
            response = await self._answered(scope, receive, send)
        except Refusal as refusal:
            response = refusals.response(refusal, scope["path"])
        finally:
            self._in_flight -= counts
        if response is not None:
            await response(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Return the answer where it is the front's own; None once it was passed on."""
        path = scope["path"]
        if path == "/health":
            return JSONResponse({"status": "ok"})
        if path == "/ready":
            return self._ready()
        if self.is_closing:
            raise _stopping()
        body = await _read(receive)
        if body is None:  # the client left, or sent too much
            return None
        caller = scope.get("state", {}).get("caller")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        asked = _Asked(
            scope={name: scope[name] for name in _PASSED if name in scope},
            body=body,
            tenant="" if caller is None else caller.tenant,
            only=query.get("replica", [None])[0],
        )
        own = {
            "/api/v1/ledger": self._ledger,
            "/api/v1/load": self._load,
            "/metrics": self._metrics,
        }.get(path)
        if own is not None and asked.is_read and asked.only is None:
            return await own(asked)
        passing = asyncio.ensure_future(self._pass(asked, send))
        leaving = asyncio.ensure_future(_gone(receive))
        if path == _EVENTS:
            self._endless.add(passing)
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not passing.done():
                passing.cancel()
            self._endless.discard(passing)
        with contextlib.suppress(asyncio.CancelledError):
            await passing
        return None

    async def _pass(self, asked: _Asked, send: Send) -> None:
        """Have a replica answer, and the next one if it dies or has no room.

        Raises:
            Refusal: if none can.
        """
        names, is_only = await self._order(asked)
        full: Relay | None = None
        for name in names:
            relay, taken = Relay(name, asked.path, send), False
            try:
                begin_by = time.time() + BEGIN_S
                answer = self.replicas.stream(
                    name, "handle", asked.scope, asked.body, begin_by, begin_s=BEGIN_S
                )
                async with aclosing(answer) as items:  # type: ignore[type-var]
                    async for item in items:
                        if item == LATE:
                            raise LostError(name, began=False)
                        if isinstance(item, str):
                            taken = taken or item == TAKEN
                            continue
                        for message in item:
                            await relay.take(message)
            except LostError as error:
                self.watch.down.add(name)
                self.counts["lost"] += 1
                refusal = Refusal(
                    status=503,
                    message=f"{error}; what it had begun is not whole",
                    kind="server_error",
                    code="replica_lost",
                    retry_after_s=1.0,
                )
                if relay.begun:
                    self.counts["cut"] += 1
                    await relay.cut_short(refusal)
                    return
                if taken and asked.is_write:
                    await self._reach_kept(asked, name)
                    refusal.message = f"{error}; look whether it was stored before you send it anew"
                    raise refusal from error
                if is_only:
                    if asked.only is None:
                        refusal.message = f"{error}, and kept this response: send all of it anew"
                    raise refusal from error
                self.counts["retried"] += 1
                continue
            except FailedError as error:
                message = "internal error; the replica's log has more"
                refusal = Refusal(status=500, message=message, kind="server_error")
                if relay.begun:
                    await relay.cut_short(refusal)
                    return
                raise refusal from error
            if relay.status in _BUSY and not relay.begun and not is_only:
                full = relay
                continue
            await self._after(asked, relay, name)
            await relay.flush()
            self.counts["answered"] += 1
            return
        if full is not None:
            await full.flush()
            return
        raise Refusal(
            status=503,
            message="no replica answers now",
            kind="server_error",
            code="replica_lost",
            retry_after_s=5.0,
        )

    async def _order(self, asked: _Asked) -> tuple[list[str], bool]:
        """Return whom to ask, in order, and whether only one can know."""
        names = self.replicas.names
        if asked.only is not None:
            if asked.only not in names:
                known = ", ".join(names)
                raise Refusal(status=404, message=f"no replica {asked.only!r}; allowed: {known}")
            return [asked.only], True
        if asked.path == _EVENTS:
            message = f"each replica has its own events: add ?replica=, one of {', '.join(names)}"
            raise Refusal(status=400, message=message)

        def chosen() -> tuple[str | None, list[str]]:
            keeper = keeper_of(asked.path, asked.body)
            headers = Headers(raw=asked.scope["headers"])
            key = affinity(asked.tenant, asked.path, headers, asked.body)
            return keeper, order(key, names)

        if len(asked.body) > _LARGE:
            keeper, tried = await asyncio.to_thread(chosen)
        else:
            keeper, tried = chosen()
        if keeper in names and keeper is not None:
            return [keeper], True
        up = [name for name in tried if name not in self.watch.down]
        return up + [name for name in tried if name in self.watch.down][:2], False

    async def _after(self, asked: _Asked, relay: Relay, name: str) -> None:
        """Do what follows from a request that went well, before its client knows."""
        if relay.status != 200:
            return
        if asked.scope["method"] == "DELETE" and asked.is_write and relay.json().get("done"):
            await self._reach_kept(asked, name)
        if asked.is_write or (not asked.is_read and b'"memory"' in asked.body):
            self.watch.said(asked.tenant)

    async def _reach_kept(self, asked: _Asked, name: str) -> None:
        """Have all others drop what they read for later, for something in it was erased.

        Raises:
            Refusal: if one lives and does not say that it did.
        """
        if asked.scope["method"] != "DELETE":
            return
        others = [one for one in self.replicas.names if one not in {name, *self.watch.down}]
        calls = [self.replicas.call(one, "forget_kept", timeout_s=EACH_S) for one in others]
        told = await asyncio.gather(*calls, return_exceptions=True)
        silent = [one for one, error in zip(others, told, strict=True) if error is not None]
        if silent:
            self.watch.down.update(silent)
            raise Refusal(
                status=503,
                message=f"it was erased, but {', '.join(silent)} did not say that nothing read "
                "from it is kept; that ends with --keep, or when it is started anew",
                kind="server_error",
                code="replica_lost",
            )

    # -- of all replicas ----------------------------------------------------------------------

    def _ready(self) -> Response:
        if self.is_closing:
            headers = {"Retry-After": "10"}
            return JSONResponse({"status": "stopping"}, status_code=503, headers=headers)
        states = {name: "down" if name in self.watch.down else "up" for name in self.replicas.names}
        is_ready = "up" in states.values()
        told = {"status": "ready" if is_ready else "waiting", "model": self.model}
        return JSONResponse({**told, "replicas": states}, status_code=200 if is_ready else 503)

    async def _ledger(self, asked: _Asked) -> Response:
        return JSONResponse(gather.ledgers(await self._each(asked, json.loads)))

    async def _load(self, asked: _Asked) -> Response:
        found = gather.loads(await self._each(asked, json.loads))
        front = {"requests": dict(self.counts), "tended": dict(self.watch.tended)}
        return JSONResponse({**found, "front": {**front, "down": sorted(self.watch.down)}})

    async def _metrics(self, asked: _Asked) -> Response:
        found = await self._each(asked, bytes.decode)
        texts = {name: text for name, text in found.items() if text is not None}
        own = [
            "# HELP loci_front_requests_total Requests by what became of them.",
            "# TYPE loci_front_requests_total counter",
            *(f'loci_front_requests_total{{what="{one}"}} {n}' for one, n in self.counts.items()),
        ]
        text = gather.metrics(texts) + "".join(f"{line}\n" for line in own)
        return Response(text, media_type=CONTENT_TYPE)

    async def _each(self, asked: _Asked, read: Callable[[bytes], Any]) -> dict[str, Any]:
        """Return what every replica answers; None for one that does not."""

        async def one(name: str) -> Any:
            relay = Relay(name, asked.path, None)
            try:
                async with asyncio.timeout(EACH_S):
                    begin_by = time.time() + EACH_S
                    answer = self.replicas.stream(name, "handle", asked.scope, b"", begin_by)
                    async for item in answer:
                        for message in () if isinstance(item, str) else item:
                            await relay.take(message)
            except (LostError, FailedError, TimeoutError):
                return None
            return read(relay.body()) if relay.status == 200 else None

        names = self.replicas.names
        found = await asyncio.gather(*(one(name) for name in names))
        return dict(zip(names, found, strict=True))

    # -- the end ------------------------------------------------------------------------------

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watching = asyncio.ensure_future(self._look())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        self.watch.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _look(self) -> None:
        """Look after replicas and memories, and end what has no end of its own at a stop."""
        tenants = {"local"}
        if self.keys is not None:
            tenants = {key.tenant for key in self.keys.read().values()}
        self.watch.said(*tenants)  # something may wait from before
        while True:
            self.watch.look(tends=not self.is_closing)
            if self.is_closing:
                for task in list(self._endless):
                    task.cancel()
            await asyncio.sleep(LOOK_S)

    def _drain(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._in_flight and time.monotonic() < end:
            time.sleep(0.02)


def _stopping() -> Refusal:
    return Refusal(
        status=503,
        message="this server is stopping",
        kind="server_error",
        code="stopping",
        retry_after_s=10.0,
    )


async def _read(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
