"""One of several processes that answer: the whole application, without a socket of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # ASGI messages, JSON values

from loci.core.ledger import Ledger
from loci.models.late import default_embedder
from loci.plan.solve import Plan
from loci.run.batch import Batch
from loci.run.cluster import BEAT_S
from loci.run.memory import Memory
from loci.server.app import make_app
from loci.server.keys import Keys
from loci.server.service import LIMIT_BYTES, Service

TAKEN, LATE, BEAT = "taken", "late", "beat"
Opener = Callable[[str, Any], Memory]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every replica is made of; it travels to another process, maybe on another machine.

    Attributes:
        plan: for one replica, within its share of the budget.
        keys_file, models_dir: have to be there under the same path on every machine.
        open_memory: opens the memory that all share.
        engine: arguments of `Batch`.
        threads: that one replica may use; None leaves that to the machine.
    """

    plan: Plan
    model: str
    models_dir: Path
    keys_file: Path | None = None
    open_memory: Opener | None = None
    user: str = "local"
    hosts: tuple[str, ...] = ()
    planner: Callable[..., Plan] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    limit_bytes: int = LIMIT_BYTES
    threads: int | None = None


class Replica:
    """Answers requests that came in elsewhere; all its methods are called from there.

    Attributes:
        batch: its engine.
    """

    def __init__(self, number: int, setup: Setup) -> None:
        if setup.threads is not None:
            _use_threads(setup.threads)
        self.batch = Batch(setup.plan, folder=setup.models_dir, **setup.engine)
        self._service = Service(
            batch=self.batch,
            model=setup.model,
            models_dir=setup.models_dir,
            keys=None if setup.keys_file is None else Keys(setup.keys_file),
            open_memory=setup.open_memory,
            user=setup.user,
            planner=setup.planner,
            limit_bytes=setup.limit_bytes,
            mark=f"{number}_",
        )
        self._app = make_app(self._service, hosts=setup.hosts)

    async def handle(
        self, scope: dict[str, Any], body: bytes, begin_by: float
    ) -> AsyncIterator[str | list[Any]]:
        """Yield TAKEN, then the messages of an ASGI answer in lists; who leaves cancels it.

        Where there is nothing to say for `BEAT_S`, it yields BEAT.

        Args:
            begin_by: seconds of the epoch after which it is somebody else's: LATE, and no more.
        """
        if time.time() > begin_by:
            yield LATE
            return
        yield TAKEN
        said: asyncio.Queue[Any] = asyncio.Queue()
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if given:
                return given.pop()
            return await asyncio.Future()  # whoever leaves cancels this

        async def send(message: Any) -> None:
            said.put_nowait(dict(message))

        answering = asyncio.ensure_future(self._app({**scope, "state": {}}, receive, send))
        answering.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        messages = [await said.get()]
                except TimeoutError:
                    yield BEAT
                    continue
                while not said.empty():
                    messages.append(said.get_nowait())
                if whole := [message for message in messages if message is not None]:
                    yield whole
                if len(whole) < len(messages):
                    break
            await answering  # raises what the application did not foresee
        finally:
            answering.cancel()

    async def about(self) -> dict[str, Any]:
        """Return where it runs, and what was noticed when it began."""
        notes = list(self.batch.notes)
        return {"pid": os.getpid(), "machine": socket.gethostname(), "notes": notes}

    async def forget_kept(self) -> None:
        """Drop what was read for others to use; see `Batch.forget_kept`."""
        await asyncio.to_thread(self.batch.forget_kept)

    async def stop(self, drain_s: float) -> None:
        """Let what runs end, and give everything back."""
        self._service.is_closing = True
        await asyncio.to_thread(self._service.close, drain_s)

    def check_health(self) -> None:
        """Raise if the engine has ended while it should run; Ray then starts a new one."""
        if not self.batch.is_running and not self._service.is_closing:
            raise RuntimeError("the engine has ended")


def tend(open_memory: Opener, tenant: str, models_dir: Path, budget_bytes: int) -> int:
    """Embed what waits in a tenant's memory and build what searches want; return how many texts.

    A search embeds what waits, too, but makes somebody wait for it.

    Args:
        budget_bytes: that the embedder may take; it is held in a ledger of its own.

    Raises:
        BudgetError: if the embedder does not fit.
    """
    embedder = default_embedder(models_dir)
    ledger = Ledger({"dram": budget_bytes})
    nbytes = embedder_bytes(models_dir)
    lease = ledger.reserve("embedder", "dram", nbytes, "index") if nbytes else None
    try:
        with open_memory(tenant, embedder) as memory:
            return memory.wait()
    finally:
        if lease is not None:
            lease.release()


def embedder_bytes(models_dir: Path) -> int:
    """Return what the default embedder holds; 0 where it was not pulled."""
    if default_embedder(models_dir) is None:
        return 0
    from loci.models.embed import MiniLM
    from loci.server.service import EMBEDDER

    return MiniLM(models_dir / EMBEDDER).nbytes


def _use_threads(count: int) -> None:
    """Several replicas share a machine: each uses its part of the processors."""
    import torch

    from loci.nn import native

    torch.set_num_threads(count)
    if native.available():
        native.set_threads(count)
