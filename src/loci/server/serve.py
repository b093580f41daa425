"""Running the application: one socket, one process, and an end that lets requests end first."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from loci.errors import ParameterError
from loci.server.service import DRAIN_S

_ENDING = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 5.0  # for answers to be told that they were cut short


class Ending(Protocol):
    """What takes no more requests once it is told, and ends when the last has ended."""

    is_closing: bool

    def close(self, drain_s: float) -> None:
        """Let what runs end."""
        ...


class Server(uvicorn.Server):
    """A server that stops taking requests at the first signal, and ends when the last has ended."""

    def __init__(
        self, app: ASGIApp, service: Ending, *, drain_s: float = DRAIN_S, has_page: bool = False
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="wsproto" if has_page else "none",
                timeout_graceful_shutdown=int(drain_s + GRACE_S),
            )
        )
        self._service, self._drain_s = service, drain_s
        self._closing: threading.Thread | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the two signals that end a program, for as long as the block.

        The server's own way raises them again afterwards, and nothing could be given back.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _ENDING}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal does not wait."""
        self.drain()
        super().handle_exit(sig, frame)

    def drain(self) -> None:
        """Take no more requests; what runs may end."""
        if self._closing is None:
            self._service.is_closing = True
            closing = threading.Thread(target=self._service.close, args=(self._drain_s,))
            self._closing = closing
            closing.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin; what is there by now stays, and no search for garbage looks at it again.

        Python searches all objects only once those it has not searched are a quarter of them. With
        the libraries among them, what requests leave in cycles would pile up for long.
        """
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for requests under way, then end."""
        gc.unfreeze()
        self.drain()
        await super().shutdown(sockets)
        if self._closing is not None:
            await asyncio.to_thread(self._closing.join)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Lend a socket that listens.

    Raises:
        ParameterError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ParameterError(
                f"cannot listen on {host}:{port}: {error}",
                way_out="name another --port; loci ps shows what runs",
            ) from None
        listener.listen(128)
        yield listener
