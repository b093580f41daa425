"""Aligned buffers that give their memory back: what direct reads need, and what a budget needs.

A direct read (O_DIRECT) must land on a page boundary. Buffers here are anonymous private mappings,
so they start on a page, hold exactly whole pages, and return them to the system the moment the
last tensor on them is gone; the heap would keep them. Pages count only once they are touched.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loci.core.ledger import Lease, Ledger
from loci.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

ALIGN = 4096  # bytes; the strictest alignment O_DIRECT asks for on common file systems
REUSE_WASTE = 1.25  # a free slot serves a request if it is at most this much larger


def round_up(nbytes: int, align: int = ALIGN) -> int:
    """Return the smallest multiple of `align` that is not below `nbytes`.

    >>> round_up(1), round_up(4096), round_up(0)
    (4096, 4096, 0)
    """
    return -(-nbytes // align) * align


def aligned_empty(nbytes: int, align: int = ALIGN, *, huge: bool = False) -> Tensor:
    """Return a uint8 tensor [nbytes] whose first byte lies on a multiple of `align`.

    The bytes are zero. `align` is a power of two up to the page size. With `huge` the system is
    asked for large pages, of which a kernel that reads far apart looks up fewer; where some bytes
    are touched, up to 2 MiB around them count.
    """
    import torch

    if nbytes < 0:
        raise ParameterError("a buffer cannot have a negative size", value=nbytes)
    if align < 1 or align & (align - 1) or mmap.PAGESIZE % align:
        raise ParameterError(
            "cannot align to this", value=align, allowed=f"powers of two up to {mmap.PAGESIZE}"
        )
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    place = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            place.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(place, dtype=torch.uint8, count=nbytes)


class AlignedPool:
    """Aligned buffers that are taken, given back and taken again, under one ledger.

    A buffer that is given back waits for the next request of about its size, so that a ring of
    layers costs no system call per layer. `trim` hands what waits back to the system.

    Args:
        ledger: who counts the bytes; None counts nowhere.
        tier, owner, kind: how the leases are written down.
    """

    def __init__(
        self,
        ledger: Ledger | None = None,
        *,
        tier: str = "dram",
        owner: str = "pool",
        kind: str = "work",
    ) -> None:
        self._ledger, self._tier, self._owner, self._kind = ledger, tier, owner, kind
        self._lock = threading.Lock()
        self._free: list[tuple[int, Tensor, Lease | None]] = []
        self._taken: dict[int, tuple[int, Tensor, Lease | None]] = {}  # by address
        self._closed = False

    def take(self, nbytes: int) -> Tensor:
        """Return an aligned uint8 tensor [nbytes]; its content is what was there before.

        Raises:
            BudgetError: if a new buffer is needed and the ledger has no room for it.
        """
        if nbytes < 1:
            raise ParameterError("a buffer must hold at least 1 byte", value=nbytes)
        size = round_up(nbytes)
        with self._lock:
            if self._closed:
                raise ParameterError("this pool was closed")
            fits = [slot for slot in self._free if size <= slot[0] <= size * REUSE_WASTE]
            if fits:
                slot = min(fits, key=lambda each: each[0])
                self._free = [each for each in self._free if each is not slot]
            else:
                lease = None
                if self._ledger is not None:
                    lease = self._ledger.reserve(self._owner, self._tier, size, self._kind)
                slot = (size, aligned_empty(size), lease)
            self._taken[slot[1].data_ptr()] = slot
        return slot[1][:nbytes]

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back; nobody may use it or a view of it afterwards."""
        with self._lock:
            slot = self._taken.pop(buffer.data_ptr(), None)
            if slot is None:
                raise ParameterError("this buffer does not belong to the pool, or was given back")
            if self._closed:
                self._drop(slot)
            else:
                self._free.append(slot)

    @contextmanager
    def borrow(self, nbytes: int) -> Iterator[Tensor]:
        """Take a buffer for the length of a `with` block."""
        buffer = self.take(nbytes)
        try:
            yield buffer
        finally:
            self.give(buffer)

    def trim(self) -> int:
        """Hand the waiting buffers back to the system; return how many bytes that were."""
        with self._lock:
            freed = sum(slot[0] for slot in self._free)
            for slot in self._free:
                self._drop(slot)
            self._free = []
        return freed

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of all buffers, taken and waiting."""
        with self._lock:
            slots = [*self._free, *self._taken.values()]
        return {self._tier: sum(slot[0] for slot in slots)}

    def close(self) -> None:
        """Free what waits; buffers still taken are freed when they are given back."""
        self._closed = True
        self.trim()

    def check_integrity(self) -> None:
        """Raise AssertionError unless slots and leases agree."""
        with self._lock:
            slots = [*self._free, *self._taken.values()]
            assert len({slot[1].data_ptr() for slot in slots}) == len(slots)
            for size, buffer, lease in slots:
                assert size == buffer.numel() and size % ALIGN == 0
                assert buffer.data_ptr() % ALIGN == 0
                assert lease is None or (lease.nbytes == size and not lease.released)

    def _drop(self, slot: tuple[int, Tensor, Lease | None]) -> None:
        if slot[2] is not None:
            slot[2].release()


def trim_heap() -> None:
    """Hand freed memory of the heap back to the system, where the C library can; costs a moment.

    Without it, freed tensors of less than a few pages stay with the process.
    """
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
