"""The application: routes, who may ask, how large a request may be, how errors are told."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from loci import __version__
from loci.errors import LociError, ParameterError, missing_extra

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from pydantic import BaseModel
    from starlette.datastructures import Headers
    from starlette.exceptions import HTTPException
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from loci.server import (
        anthropic,
        chat,
        chat_forms,
        openai,
        own,
        refusals,
        remembering,
        responses,
    )
    from loci.server.keys import Caller, Keys
    from loci.server.metrics import CONTENT_TYPE, Metrics
    from loci.server.page import sessions
    from loci.server.refusals import Refusal
    from loci.server.service import Service
except ImportError as problem:
    raise missing_extra(str(problem.name), "server") from problem

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/health", "/ready", "/openapi.json")  # asked by machines that have no key
ADMIN = (
    "/metrics",
    "/api/v1/plan",
    "/api/v1/ledger",
    "/api/v1/blocks",
    "/api/v1/load",
    "/api/v1/events",
    "/api/v1/config",
)
PAGE = ("/", "/favicon.ico", sessions.ENTER, sessions.LEAVE)
PAGE_FILES = ("/_nicegui/", "/_nicegui_ws/")
_FORMS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": chat_forms.ChatForm,
    "/v1/completions": openai.CompletionForm,
    "/v1/embeddings": openai.EmbeddingForm,
    "/v1/responses": responses.ResponseForm,
    "/v1/messages": anthropic.MessagesForm,
    "/v1/messages/count_tokens": anthropic.CountForm,
    "/api/v1/plan": own.PlanForm,
    "/api/v1/memories": remembering.AddForm,
    "/api/v1/memories/note": remembering.NoteForm,
}
_log = logging.getLogger("loci.server")


def check_address(host: str, has_keys: bool) -> None:
    """Refuse to answer other machines without keys.

    Raises:
        ParameterError: if it would.
    """
    if host not in LOOPBACK and not has_keys:
        raise ParameterError(
            "a server that other machines can reach needs keys",
            value=host,
            allowed=", ".join(LOOPBACK),
            way_out=["loci key add keys.json", "loci serve ... --host ... --keys keys.json"],
        )


def make_app(service: Service, *, hosts: tuple[str, ...] = (), page: bool = False) -> ASGIApp:
    """Return the application.

    Args:
        page: serve the page at `/` too; only one application of a process can have it.
        hosts: names that requests without a key may call this server by, besides those of this
            machine alone; others are refused, so that no page of a browser reaches it by a name
            that was made to point here.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="Loci",
        version=__version__,
        description="One model inside a byte budget, for many clients, with a memory.",
        lifespan=lifespan,
        docs_url=None,  # their pages come from elsewhere, and this works without a network
        redoc_url=None,
    )
    app.state.service = service
    app.state.metrics = Metrics(service.batch)
    for part in (openai, chat, responses, anthropic, own, remembering):
        app.include_router(part.router)

    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Tell that the server is there."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"], response_model=None)
    async def ready() -> Response:
        """Tell whether it takes requests."""
        if service.is_closing:
            headers = {"Retry-After": "10"}
            return JSONResponse({"status": "stopping"}, status_code=503, headers=headers)
        return JSONResponse({"status": "ready", "model": service.model})

    @app.get("/metrics", tags=["state"], response_model=None)
    async def metrics(request: Request) -> Response:
        """Return counters and gauges in Prometheus's form."""
        return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refusals.response(error, request.url.path)

    @app.exception_handler(LociError)
    async def ours(request: Request, error: LociError) -> Response:
        return refusals.response(refusals.of(error), request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        form = _FORMS.get(request.url.path)
        return refusals.response(refusals.of_validation(error.errors(), form), request.url.path)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        refusal = Refusal(status=error.status_code, message=str(error.detail))
        answer = refusals.response(refusal, request.url.path)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        # The server's last handler: what nobody foresaw is logged here, and told without details.
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        refusal = Refusal(
            status=500, message="internal error; the server's log has more", kind="server_error"
        )
        return refusals.response(refusal, request.url.path)

    app.state.sessions = None if service.keys is None else sessions.Sessions(service.keys)
    if page:
        from loci.server.page import site

        app.include_router(sessions.router)
        site.mount(app, service)
    return Gate(app, service, hosts=(*LOOPBACK, *hosts), sessions=app.state.sessions)


class Guarded(Protocol):
    """What a gate has to know of what is behind it."""

    keys: Keys | None
    limit_bytes: int


class Gate:
    """Lets in who may ask, and no more than a request may weigh."""

    def __init__(
        self,
        app: ASGIApp,
        service: Guarded,
        *,
        hosts: tuple[str, ...],
        sessions: sessions.Sessions | None = None,
    ) -> None:
        self.app, self._service, self._hosts = app, service, hosts
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        try:
            caller = self._caller(scope, path, headers)
            self._check_size(headers.get("content-length"))
        except Refusal as refusal:
            await refusals.response(refusal, path)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        heavy, begun = False, False
        taken = 0

        async def counted() -> Message:
            nonlocal taken, heavy
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._service.limit_bytes:
                heavy = True
                return {"type": "http.disconnect"}
            return message

        async def answered(message: Message) -> None:
            nonlocal begun
            if heavy and not begun:  # what the application says of half a body is of no use
                return
            begun = True
            await send(message)

        await self.app(scope, counted, answered)
        if heavy and not begun:
            await refusals.response(self._too_large(), path)(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the page talk with the server it came from, and no other page."""
        headers = Headers(scope=scope)
        try:
            self._check_own_page(headers)
            if self._service.keys is None:
                self._check_origin(headers)
        except Refusal:
            await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope, path: str, headers: Headers) -> Caller | None:
        keys = self._service.keys
        if path in OPEN:
            return Caller()
        if keys is None:
            self._check_origin(headers)
            return Caller(role="admin")
        if path in PAGE or path.startswith(PAGE_FILES):  # it asks for a key itself
            self._check_own_page(headers)
            word = HTTPConnection(scope).cookies.get(sessions.COOKIE)
            return None if self._sessions is None else self._sessions.caller(word)
        given = headers.get("x-api-key", "")
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = secret.strip()
        caller = keys.caller(given)
        if caller is None:
            message = "this server needs a key" if not given else "this key is not known here"
            raise Refusal(
                status=401, message=message, kind="authentication_error", code="invalid_api_key"
            )
        if caller.role != "admin" and path.startswith(ADMIN):
            raise Refusal(
                status=403, message="this needs a key of an admin", kind="permission_error"
            )
        return caller

    def _check_origin(self, headers: Headers) -> None:
        """Refuse pages of a browser, which could otherwise ask in a person's name."""
        name = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
        origin = headers.get("origin")
        if name not in self._hosts or (origin is not None and not self._is_ours(origin)):
            raise Refusal(
                status=403,
                message="without a key this server answers programs on this machine alone",
                kind="permission_error",
            )

    def _check_own_page(self, headers: Headers) -> None:
        """Refuse what a page of another server asks for."""
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            raise Refusal(
                status=403, message="this is for its own page alone", kind="permission_error"
            )

    def _is_ours(self, origin: str) -> bool:
        name = origin.partition("://")[2].rsplit(":", 1)[0].strip("[]")
        return name in self._hosts

    def _check_size(self, length: str | None) -> None:
        if length is not None and length.isdigit() and int(length) > self._service.limit_bytes:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        most = self._service.limit_bytes
        return Refusal(
            status=413,
            message=f"a request has at most {most:,} bytes",
            code="request_too_large",
        )
