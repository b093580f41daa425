"""A reader behind a slower link: what a phone's flash or a shared disk would feel like.

A read of n bytes asked for at time t begins when the link is free, but not before t + latency,
and takes n / bandwidth. So the latencies of reads under way overlap and their bytes do not, which
is how a device with one data path behaves. Time comes from a clock that is handed in: tests turn
it by hand, benchmarks sleep.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any  # tensors of the reader inside

from loci.core.clock import SystemClock
from loci.core.ports import BlockReader, Clock
from loci.errors import ParameterError


class Link:
    """A data path with a bandwidth and a latency, shared by everything that reads over it.

    Args:
        bytes_per_s: bandwidth.
        latency_s: fixed time of each read.
        clock: tells the time.
        wait: lets it pass, such as `time.sleep` or `ManualClock.advance`.
    """

    def __init__(
        self,
        *,
        bytes_per_s: float,
        latency_s: float = 0.0,
        clock: Clock | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s <= 0 or latency_s < 0:
            raise ParameterError(
                "a link needs a positive bandwidth and no negative latency",
                value=(bytes_per_s, latency_s),
            )
        self.bytes_per_s, self.latency_s = bytes_per_s, latency_s
        self.clock, self._wait = clock or SystemClock(), wait
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.nbytes, self.busy_s = 0, 0.0

    def book(self, nbytes: int) -> float:
        """Take the link for `nbytes` asked for now; return when they will have arrived."""
        with self._lock:
            begins = max(self.clock.monotonic() + self.latency_s, self._free_at)
            self._free_at = begins + nbytes / self.bytes_per_s
            self.nbytes += nbytes
            self.busy_s += nbytes / self.bytes_per_s
            return self._free_at

    def wait_until(self, arrival: float) -> None:
        """Let time pass until then."""
        remaining = arrival - self.clock.monotonic()
        if remaining > 0:
            self._wait(remaining)


class Throttled:
    """Blocks of another reader over a link.

    Everything but time is that of the reader inside; its own time counts as part of the wait.
    """

    def __init__(self, inner: BlockReader, link: Link) -> None:
        self.inner, self.link = inner, link

    def names(self) -> Sequence[str]:
        """Return the blocks in order."""
        return self.inner.names()

    def nbytes(self, name: str) -> int:
        """Return the bytes of a block, padding excluded."""
        return self.inner.nbytes(name)

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that cross the link for a block."""
        stored = getattr(self.inner, "stored_bytes", self.inner.nbytes)
        return int(stored(name))

    def read(self, name: str, into: Any = None) -> Any:
        """Return the block's tensors when they would have arrived."""
        arrival = self.link.book(self.stored_bytes(name))
        tensors = self.inner.read(name, into)
        self.link.wait_until(arrival)
        return tensors
