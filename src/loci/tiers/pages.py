"""Memory in pages that can be mapped at an address of one's choice, and mapped twice.

A pool of equal pages is made once; ranges of addresses are reserved, which costs nothing; pages are
then mapped into ranges as they are needed. What is mapped at neighbouring addresses is one
contiguous piece to whoever reads it, wherever its pages lie.

    MemfdPages     Linux: an anonymous file that lives in memory; mapping is mmap(MAP_FIXED),
                   releasing is a hole punched into the file
    ChunkedPages   everywhere else, and where the system refuses to reserve addresses it does not
                   back (strict overcommit, a limit on address space): every range is a buffer that
                   grows by copying, pages cannot be shared, and views go stale as a range grows
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from loci.errors import BudgetError, ParameterError, StorageError
from loci.tiers.pool import aligned_empty, round_up
from loci.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

_MAP_FIXED, _MAP_NORESERVE, _DONTFORK = 0x10, 0x4000, 10  # <linux/mman.h>
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_FAILED = ctypes.c_void_p(-1).value
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
STRICT = "2"


@dataclass(frozen=True)
class Range:
    """Reserved addresses."""

    address: int
    nbytes: int


class Pages(Protocol):
    """Equal pages, and ranges they are mapped into.

    Attributes:
        page_bytes, count: of the pool.
        shares: a page can be mapped into several ranges.
        moves: mapping more may move a range, so views must be taken again.
    """

    page_bytes: int
    count: int
    shares: bool
    moves: bool

    def reserve(self, nbytes: int) -> Range:
        """Return a new range; nothing of it may be touched before pages are mapped there."""
        ...

    def map(self, where: Range, offset: int, page: int, count: int) -> None:
        """Map pages of the pool that follow each other at an offset of a range."""
        ...

    def unmap(self, where: Range, offset: int, nbytes: int) -> None:
        """Take pages out of a range; whoever may still read there has to be done, see `fence`."""
        ...

    def drop(self, page: int, count: int) -> None:
        """Give the memory of pages that are mapped nowhere back to the system."""
        ...

    def tensor(self, where: Range, nbytes: int) -> Tensor:
        """Return the first bytes of a range, uint8."""
        ...

    def fence(self) -> None:
        """Wait until everything that was begun on the device has passed."""
        ...

    def release(self, where: Range) -> None:
        """Give a range up."""
        ...

    def close(self) -> None:
        """Give everything back; closing twice does nothing."""
        ...


def open_pages(page_bytes: int, count: int, device: str = "cpu") -> Pages:
    """Return the pages of a device that this system can provide.

    Raises:
        ParameterError: for a device without such pages, or a size it cannot map.
    """
    if device.startswith("cuda"):
        from loci.tiers.cuda_pages import CudaPages

        return CudaPages(page_bytes, count, device)
    if device != "cpu":
        raise ParameterError("no pages on this device", value=device, allowed="cpu, cuda, cuda:N")
    if why_not() is not None:
        return ChunkedPages(page_bytes, count)
    return MemfdPages(page_bytes, count)


def why_not() -> str | None:
    """Return why pages cannot be mapped here, or None when they can."""
    if sys.platform != "linux":
        return f"mapping pages is done on Linux; this is {sys.platform}"
    try:
        is_strict = OVERCOMMIT.read_text().strip() == STRICT
    except OSError:
        is_strict = False
    if is_strict:
        return "the system promises no memory it has not got (vm.overcommit_memory is 2)"
    return None


class MemfdPages:
    """Pages of an anonymous file in memory.

    Children of a fork do not get the ranges, and the file is closed when another program is run.

    Raises:
        ParameterError: if the page size is no multiple of the system's.
        StorageError: if the system has no such file.
    """

    shares, moves = True, False

    def __init__(self, page_bytes: int, count: int) -> None:
        if page_bytes < 1 or page_bytes % mmap.PAGESIZE or count < 1:
            raise ParameterError(
                "pages are whole pages of the system's, and there is at least one",
                value=(page_bytes, count),
                allowed=f"multiples of {mmap.PAGESIZE} bytes",
            )
        self.page_bytes, self.count = page_bytes, count
        self._libc = _libc()
        self._ranges: dict[int, int] = {}
        try:
            self._fd = os.memfd_create("loci-pages", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, page_bytes * count)
        except OSError as error:
            raise StorageError(f"no file in memory can be made: {error.strerror}") from error
        self._pool: Tensor | None = None

    def reserve(self, nbytes: int) -> Range:
        """Return a new range.

        Raises:
            BudgetError: if the system has no such addresses left.
        """
        nbytes = round_up(nbytes, self.page_bytes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        address = self._mmap(0, nbytes, 0, flags, -1, 0)
        self._libc.madvise(address, nbytes, _DONTFORK)
        self._ranges[address] = nbytes
        return Range(address, nbytes)

    def map(self, where: Range, offset: int, page: int, count: int) -> None:
        nbytes = count * self.page_bytes
        self._check(where, offset, nbytes)
        if not 0 <= page <= page + count <= self.count:
            raise ParameterError(
                "the pool has no such pages", value=(page, count), allowed=f"0 to {self.count}"
            )
        flags, write = mmap.MAP_SHARED | _MAP_FIXED, mmap.PROT_READ | mmap.PROT_WRITE
        address = where.address + offset
        self._mmap(address, nbytes, write, flags, self._fd, page * self.page_bytes)
        self._libc.madvise(address, nbytes, _DONTFORK)

    def unmap(self, where: Range, offset: int, nbytes: int) -> None:
        self._check(where, offset, nbytes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        self._mmap(where.address + offset, nbytes, 0, flags, -1, 0)

    def drop(self, page: int, count: int) -> None:
        start, nbytes = page * self.page_bytes, count * self.page_bytes
        if self._libc.fallocate(self._fd, _KEEP_SIZE | _PUNCH_HOLE, start, nbytes):
            raise StorageError(f"memory was not given back: {os.strerror(ctypes.get_errno())}")

    def tensor(self, where: Range, nbytes: int) -> Tensor:
        self._check(where, 0, nbytes)
        return _tensor_at(where.address, nbytes)

    def pool(self) -> Tensor:
        """Return the whole pool as it lies in memory, uint8 [count, page_bytes]."""
        if self._pool is None:
            nbytes = self.count * self.page_bytes
            place = mmap.mmap(self._fd, nbytes)
            place.madvise(_DONTFORK)
            flat = torch.frombuffer(place, dtype=torch.uint8)
            self._pool = flat.view(self.count, self.page_bytes)
        return self._pool

    def committed_bytes(self) -> int:
        """Return the bytes of memory that the pool really takes now."""
        return os.fstat(self._fd).st_blocks * 512

    def fence(self) -> None:
        """Nothing on this device runs behind the caller's back."""

    def release(self, where: Range) -> None:
        nbytes = self._ranges.pop(where.address, None)
        if nbytes is not None and self._libc.munmap(where.address, nbytes):
            raise StorageError(f"addresses were not given back: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        for address, nbytes in list(self._ranges.items()):
            self.release(Range(address, nbytes))
        self._pool = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check(self, where: Range, offset: int, nbytes: int) -> None:
        known = self._ranges.get(where.address, -1)
        if not 0 <= offset <= offset + nbytes <= known:
            raise ParameterError(
                "this lies outside the range, or the range was given up",
                value=(offset, nbytes),
                allowed=f"0 to {max(known, 0)} bytes",
            )

    def _mmap(self, address: int, nbytes: int, prot: int, flags: int, fd: int, start: int) -> int:
        found = self._libc.mmap(address, nbytes, prot, flags, fd, start)
        if found == _FAILED or found is None:
            number = ctypes.get_errno()
            if number == errno.ENOMEM:
                raise BudgetError(
                    f"the system gives no more addresses for {format_bytes(nbytes)}",
                    way_out=[
                        "lift the limit on addresses (ulimit -v) or mappings (vm.max_map_count)",
                        "or reserve less: fewer requests at once, or a shorter context",
                    ],
                )
            raise StorageError(f"pages were not mapped: {os.strerror(number)}")
        return int(found)


class ChunkedPages:
    """The fall-back: a buffer for each range, which grows by chunks and is copied as it does.

    Pages have no identity here: what is mapped at an offset is memory of that range alone.
    """

    shares, moves = False, True

    def __init__(self, page_bytes: int, count: int) -> None:
        if page_bytes < 1 or count < 1:
            raise ParameterError("pages have bytes, and there is one", value=(page_bytes, count))
        self.page_bytes, self.count = page_bytes, count
        self._buffers: dict[int, Tensor] = {}
        self._next = 1

    def reserve(self, nbytes: int) -> Range:
        where = Range(self._next, nbytes)
        self._next += 1
        self._buffers[where.address] = torch.empty(0, dtype=torch.uint8)
        return where

    def map(self, where: Range, offset: int, page: int, count: int) -> None:
        self._resize(where, offset + count * self.page_bytes, grow=True)

    def unmap(self, where: Range, offset: int, nbytes: int) -> None:
        if offset + nbytes >= len(self._buffer(where)):
            self._resize(where, offset, grow=False)

    def drop(self, page: int, count: int) -> None:
        """What was unmapped is gone already."""

    def tensor(self, where: Range, nbytes: int) -> Tensor:
        return self._buffer(where)[:nbytes]

    def fence(self) -> None:
        """Nothing on this device runs behind the caller's back."""

    def release(self, where: Range) -> None:
        self._buffers.pop(where.address, None)

    def close(self) -> None:
        self._buffers.clear()

    def _buffer(self, where: Range) -> Tensor:
        return self._buffers[where.address]

    def _resize(self, where: Range, nbytes: int, *, grow: bool) -> None:
        old = self._buffer(where)
        if (len(old) >= nbytes) if grow else (len(old) <= nbytes):
            return
        fresh = aligned_empty(nbytes)
        kept = min(len(old), nbytes)
        fresh[:kept] = old[:kept]
        self._buffers[where.address] = fresh


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    long, size, pointer = ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
    whole = ctypes.c_int
    _declare(libc, "mmap", pointer, (pointer, size, whole, whole, whole, long))
    _declare(libc, "munmap", whole, (pointer, size))
    _declare(libc, "madvise", whole, (pointer, size, whole))
    _declare(libc, "fallocate", whole, (whole, whole, long, long))
    return libc


def _declare(library: ctypes.CDLL, name: str, result: type, arguments: Sequence[type]) -> None:
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)


def _tensor_at(address: int, nbytes: int) -> Tensor:
    """Return memory as a tensor; whoever has it must not outlive the mapping."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)
