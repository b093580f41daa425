"""Beside requests: which replicas are there, and whose memory wants looking after."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol  # what replicas yield and return

from loci.run.cluster import FailedError, LostError

BEGIN_S = 5.0  # in which a replica takes a request, or it is asked of the next
LOOK_S = 0.25
_AGAIN_S = 1.0
Tend = Callable[[str], Awaitable[int]]


class Replicas(Protocol):
    """Those who answer; `loci.run.cluster.Cluster` is one."""

    @property
    def names(self) -> Sequence[str]:
        """Their names."""
        ...

    def stream(
        self, name: str, method: str, *given: Any, begin_s: float = BEGIN_S
    ) -> AsyncIterator[Any]:
        """Yield what a method yields."""
        ...

    async def call(self, name: str, method: str, *given: Any, timeout_s: float | None) -> Any:
        """Return what a method returns."""
        ...

    def ask(self, name: str, method: str, *given: Any, timeout_s: float) -> Any:
        """The same, from a thread."""
        ...


class Watch:
    """Who is down until it answers again, and memories in which something may wait.

    Args:
        tend: looks after a tenant's memory somewhere else; None where there is none.

    Attributes:
        down: replicas that were lost and have not been heard of since.
        tended: runs of `tend` by how they ended, and texts they embedded.
    """

    def __init__(self, replicas: Replicas, tend: Tend | None) -> None:
        self._replicas, self._tend = replicas, tend
        self.down: set[str] = set()
        self.tended: Counter[str] = Counter()
        self._sought: set[str] = set()
        self._said: set[str] = set()
        self._tending: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def said(self, *tenants: str) -> None:
        """Note that something was remembered."""
        self._said.update(tenants)

    def look(self, *, tends: bool) -> None:
        """Begin what is to be done now."""
        for name in self.down - self._sought:
            self._sought.add(name)
            self._begin(self._seek(name))
        if self._tend is None or not tends:
            return
        for tenant in self._said - self._tending:
            self._said.discard(tenant)
            self._tending.add(tenant)
            self._begin(self._look_after(tenant, self._tend))

    def close(self) -> None:
        """End what was begun."""
        for task in list(self._tasks):
            task.cancel()

    async def _seek(self, name: str) -> None:
        """Wait until a replica answers again: Ray starts it anew."""
        try:
            await self._replicas.call(name, "about", timeout_s=None)
            self.down.discard(name)
        except (LostError, FailedError):
            await asyncio.sleep(_AGAIN_S)
        finally:
            self._sought.discard(name)

    async def _look_after(self, tenant: str, tend: Tend) -> None:
        try:
            self.tended["texts"] += await tend(tenant)
            self.tended["runs"] += 1
        except FailedError:  # whoever searches embeds what waits
            self.tended["failed"] += 1
        finally:
            self._tending.discard(tenant)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
