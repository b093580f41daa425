"""Pages of a GPU, by the virtual memory calls of the CUDA driver.

Written against the CUDA driver API (section "Virtual Memory Management" of its reference) and
tested against a driver in miniature that keeps its rules; it has not run on a GPU yet.

Each page is one allocation of `cuMemCreate`, made when it is first mapped. A range is
`cuMemAddressReserve`; mapping is `cuMemMap` and `cuMemSetAccess`. Pages leave a range only after
everything that was begun on the device has passed, then `cuMemUnmap`, and `cuMemRelease` when the
memory is to go back.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_ubyte, c_uint64, c_ushort, c_void_p
from typing import TYPE_CHECKING, Any  # the driver has no types

import torch

from loci.errors import BudgetError, ParameterError, StorageError
from loci.tiers.pages import Range
from loci.tiers.pool import round_up
from loci.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

_PINNED, _DEVICE, _READ_WRITE, _MINIMUM = 1, 1, 3, 0  # enumerations of <cuda.h>
_OUT_OF_MEMORY = 2


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _Flags(ctypes.Structure):
    _fields_ = [
        ("compression", c_ubyte),
        ("direct_rdma", c_ubyte),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 4),
    ]


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32", c_void_p),
        ("flags", _Flags),
    ]


class AccessDesc(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", _Location), ("flags", c_int)]


class CudaPages:
    """Pages of one GPU.

    Args:
        device: "cuda" or "cuda:N".
        driver: the driver's library; None opens it.

    Raises:
        ParameterError: if the page size is no multiple of the driver's granularity.
        StorageError: if there is no driver, or a call fails.
        BudgetError: if the GPU has no memory left.
    """

    shares, moves = True, False

    def __init__(
        self, page_bytes: int, count: int, device: str = "cuda", driver: Any = None
    ) -> None:
        self._driver = driver or _open_driver()
        self.page_bytes, self.count, self.device = page_bytes, count, device
        self._number = int(device.partition(":")[2] or 0)
        self._call("cuInit", 0)
        self._context = c_void_p()
        handle = c_int()
        self._call("cuDeviceGet", byref(handle), self._number)
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), handle)
        self._device_handle = handle
        self._call("cuCtxSetCurrent", self._context)
        place = _Location(_DEVICE, self._number)
        self._prop = AllocationProp(type=_PINNED, handle_types=0, location=place)
        self._access = AccessDesc(location=place, flags=_READ_WRITE)
        grain = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(grain), byref(self._prop), _MINIMUM)
        if page_bytes < 1 or page_bytes % grain.value or count < 1:
            raise ParameterError(
                "pages of a GPU are multiples of what its driver maps, and there is at least one",
                value=(page_bytes, count),
                allowed=f"multiples of {grain.value:,} bytes",
            )
        self._handles: dict[int, int] = {}
        self._ranges: dict[int, int] = {}
        self._mapped: dict[int, dict[int, int]] = {}  # range -> offset -> page

    def reserve(self, nbytes: int) -> Range:
        nbytes = round_up(nbytes, self.page_bytes)
        address = c_uint64()
        self._call(
            "cuMemAddressReserve", byref(address), c_size_t(nbytes), c_size_t(0), c_uint64(0),
            c_uint64(0),
        )  # fmt: skip
        self._ranges[address.value] = nbytes
        self._mapped[address.value] = {}
        return Range(address.value, nbytes)

    def map(self, where: Range, offset: int, page: int, count: int) -> None:
        self._check(where, offset, count * self.page_bytes)
        self._call("cuCtxSetCurrent", self._context)  # the caller may be another thread
        for index in range(count):
            at = offset + index * self.page_bytes
            handle = self._handle(page + index)
            self._call(
                "cuMemMap", c_uint64(where.address + at), c_size_t(self.page_bytes), c_size_t(0),
                c_uint64(handle), c_uint64(0),
            )  # fmt: skip
            self._mapped[where.address][at] = page + index
        start, nbytes = c_uint64(where.address + offset), c_size_t(count * self.page_bytes)
        self._call("cuMemSetAccess", start, nbytes, byref(self._access), c_size_t(1))

    def unmap(self, where: Range, offset: int, nbytes: int) -> None:
        self._check(where, offset, nbytes)
        mapped = self._mapped[where.address]
        for at in range(offset, offset + nbytes, self.page_bytes):
            if mapped.pop(at, None) is not None:
                start = c_uint64(where.address + at)
                self._call("cuMemUnmap", start, c_size_t(self.page_bytes))

    def drop(self, page: int, count: int) -> None:
        for number in range(page, page + count):
            handle = self._handles.pop(number, None)
            if handle is not None:
                self._call("cuMemRelease", c_uint64(handle))

    def tensor(self, where: Range, nbytes: int) -> Tensor:
        """Return mapped memory as a tensor; PyTorch asks the driver about its first byte."""
        self._check(where, 0, nbytes)
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8, device=self.device)

        return torch.as_tensor(_Memory(where.address, nbytes), device=self.device)

    def fence(self) -> None:
        self._call("cuCtxSynchronize")

    def release(self, where: Range) -> None:
        nbytes = self._ranges.get(where.address)
        if nbytes is not None:
            self.unmap(Range(where.address, nbytes), 0, nbytes)
            self._call("cuMemAddressFree", c_uint64(where.address), c_size_t(nbytes))
            del self._ranges[where.address], self._mapped[where.address]

    def close(self) -> None:
        for address, nbytes in list(self._ranges.items()):
            self.release(Range(address, nbytes))
        for page in list(self._handles):
            self.drop(page, 1)
        if self._context:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device_handle)
            self._context = c_void_p()

    def _handle(self, page: int) -> int:
        if not 0 <= page < self.count:
            raise ParameterError(
                "the pool has no such page", value=page, allowed=f"0 to {self.count - 1}"
            )
        if page not in self._handles:
            handle = c_uint64()
            self._call(
                "cuMemCreate", byref(handle), c_size_t(self.page_bytes), byref(self._prop),
                c_uint64(0),
            )  # fmt: skip
            self._handles[page] = handle.value
        return self._handles[page]

    def _check(self, where: Range, offset: int, nbytes: int) -> None:
        known = self._ranges.get(where.address, -1)
        if not 0 <= offset <= offset + nbytes <= known:
            raise ParameterError(
                "this lies outside the range, or the range was given up",
                value=(offset, nbytes),
                allowed=f"0 to {max(known, 0)} bytes",
            )

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise BudgetError(
                f"the GPU has no memory left for {format_bytes(self.page_bytes)} ({name})",
                way_out="a smaller pool, or end what else uses the GPU",
            )
        if status:
            raise StorageError(f"the CUDA driver refused {name}", value=int(status))


class _Memory:
    """Device memory as other libraries take it over."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _open_driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise StorageError(
            f"there is no CUDA driver: {error}", way_out='use device="cpu", or install the driver'
        ) from None
