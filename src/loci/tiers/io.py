"""Reads in the background: what is needed now goes before what may be needed soon.

Worker threads take requests from one queue with two priorities. A demand read overtakes every
prefetch that has not begun; waiting for a prefetch turns it into a demand. Within a priority the
order is that of asking. A read that has begun is not interrupted, so a demand waits for one read
per thread at most. Reading a file releases Python's lock, so computation goes on beside it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar  # tensors of any reader

from loci.core.clock import SystemClock
from loci.core.ports import Clock
from loci.errors import ParameterError

Result = TypeVar("Result")


class Priority(IntEnum):
    """How urgent a read is; the lower is served first."""

    DEMAND = 0
    PREFETCH = 1


class Reader(Protocol):
    """What the engine reads blocks from: a BlockStore, a tier, or one of them throttled."""

    def nbytes(self, name: str) -> int:
        """Return the bytes of a block."""
        ...

    def read(self, name: str, into: Any = None) -> Any:
        """Return the block's tensors, read into `into`."""
        ...


@dataclass(frozen=True, kw_only=True)
class IOStats:
    """What an engine did so far.

    Attributes:
        requests, demand, prefetch: reads asked for; a promoted prefetch still counts as one.
        completed, failed, cancelled: how they ended.
        nbytes: bytes of completed reads.
        busy_s: seconds that threads spent reading, summed.
        waited_s: seconds that callers spent waiting in `result`: reading that nothing hid.
    """

    requests: int = 0
    demand: int = 0
    prefetch: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    nbytes: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0


class Request(Generic[Result]):
    """A read that was asked for."""

    def __init__(
        self, engine: IOEngine, work: Callable[[], Result], nbytes: int, priority: Priority
    ) -> None:
        self.nbytes, self.priority = nbytes, priority
        self._engine, self._work = engine, work
        self._future: Future[Result] = Future()

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the read and return what it gave, or raise what it raised.

        A prefetch that has not begun becomes a demand.

        Raises:
            concurrent.futures.CancelledError: if it was cancelled.
            TimeoutError: if it took longer than `timeout_s`; the read goes on.
        """
        if not self._future.done():
            self.promote()
            return self._engine._timed(lambda: self._future.result(timeout_s))
        return self._future.result()

    def done(self) -> bool:
        """Return whether it ended, in whatever way."""
        return self._future.done()

    def promote(self) -> None:
        """Make a prefetch a demand."""
        self._engine._promote(self)

    def cancel(self) -> bool:
        """Give the read up; return False when it has begun: its buffer then is still written."""
        return self._engine._cancel(self)


class IOEngine:
    """Threads that read. Use as a context manager, or call `close`.

    Args:
        threads: reads under way at the same time.
        depth: prefetches that may wait or run; the next one waits for room. Demands never wait.
        clock: what the statistics are timed with.
    """

    def __init__(self, threads: int = 2, depth: int = 8, *, clock: Clock | None = None) -> None:
        if threads < 1 or depth < 1:
            raise ParameterError("threads and depth must be >= 1", value=(threads, depth))
        self._count, self._depth, self._clock = threads, depth, clock or SystemClock()
        self._changed = threading.Condition()
        self._queue: list[tuple[int, int, Request[Any]]] = []
        self._sequence = 0
        self._prefetching = 0  # waiting or running
        self._workers: list[threading.Thread] = []
        self._closed = False
        self._sums: dict[str, float] = dict.fromkeys(IOStats.__dataclass_fields__, 0)

    def read(
        self,
        reader: Reader,
        name: str,
        into: Any = None,
        *,
        priority: Priority = Priority.DEMAND,
    ) -> Request[Any]:
        """Ask for a block; `into` must be left alone until the request is done."""
        return self.submit(lambda: reader.read(name, into), reader.nbytes(name), priority)

    def submit(
        self,
        work: Callable[[], Result],
        nbytes: int = 0,
        priority: Priority = Priority.DEMAND,
    ) -> Request[Result]:
        """Ask for any piece of work that moves `nbytes`."""
        request = Request(self, work, nbytes, priority)
        with self._changed:
            if priority is Priority.PREFETCH:
                self._changed.wait_for(lambda: self._closed or self._prefetching < self._depth)
                self._prefetching += not self._closed
            if self._closed:
                raise ParameterError("this engine was closed")
            self._sums["requests"] += 1
            self._sums[priority.name.lower()] += 1
            self._push(request)
            if len(self._workers) < self._count:
                # Daemons, so that an engine nobody closed does not keep the process alive.
                name = f"loci-io-{len(self._workers)}"
                worker = threading.Thread(target=self._serve, name=name, daemon=True)
                self._workers.append(worker)
                worker.start()
            self._changed.notify_all()
        return request

    def stats(self) -> IOStats:
        """Return what was done so far."""
        with self._changed:
            sums = self._sums
            counts = {
                key: value if key.endswith("_s") else int(value) for key, value in sums.items()
            }
        return IOStats(**counts)  # type: ignore[arg-type]  # whole numbers where it says int

    def close(self) -> None:
        """Cancel what has not begun, wait for what has, and end the threads."""
        with self._changed:
            self._closed = True
            waiting = [request for _, _, request in self._queue]
            self._changed.notify_all()
        for request in waiting:
            request.cancel()
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> IOEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check_integrity(self) -> None:
        """Raise AssertionError unless the counts agree with each other."""
        with self._changed:
            sums = self._sums
            assert sums["requests"] == sums["demand"] + sums["prefetch"]
            ended = sums["completed"] + sums["failed"] + sums["cancelled"]
            assert 0 <= ended <= sums["requests"]
            assert 0 <= self._prefetching <= self._depth
            assert len(self._workers) <= self._count

    # -- private ------------------------------------------------------------------------------

    def _push(self, request: Request[Any]) -> None:
        heapq.heappush(self._queue, (int(request.priority), self._sequence, request))
        self._sequence += 1

    def _promote(self, request: Request[Any]) -> None:
        with self._changed:
            waits = any(each is request for _, _, each in self._queue)
            if waits and request.priority is Priority.PREFETCH:
                self._take_out(request)
                request.priority = Priority.DEMAND
                self._room()
                self._push(request)
                self._changed.notify_all()

    def _cancel(self, request: Request[Any]) -> bool:
        with self._changed:
            if not any(each is request for _, _, each in self._queue):
                return request._future.cancelled()
            self._take_out(request)
            request._future.cancel()
            self._sums["cancelled"] += 1
            if request.priority is Priority.PREFETCH:
                self._room()
        return True

    def _take_out(self, request: Request[Any]) -> None:
        self._queue = [each for each in self._queue if each[2] is not request]
        heapq.heapify(self._queue)

    def _room(self) -> None:
        self._prefetching -= 1
        self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                request = heapq.heappop(self._queue)[2]
                request._future.set_running_or_notify_cancel()
            begun = self._clock.monotonic()
            result, failure = None, None
            try:
                result = request._work()
            except BaseException as error:  # whatever it is belongs to who waits for the result
                failure = error
            with self._changed:
                self._sums["busy_s"] += self._clock.monotonic() - begun
                self._sums["failed" if failure else "completed"] += 1
                self._sums["nbytes"] += 0 if failure else request.nbytes
                if request.priority is Priority.PREFETCH:
                    self._room()
            if failure is not None:
                request._future.set_exception(failure)
            else:
                request._future.set_result(result)
            del request, result, failure  # an idle thread must not keep buffers alive

    def _timed(self, wait: Callable[[], Result]) -> Result:
        begun = self._clock.monotonic()
        try:
            return wait()
        finally:
            with self._changed:
                self._sums["waited_s"] += self._clock.monotonic() - begun
