"""A safetensors file, mapped or read in part, with every offset checked first.

The format (github.com/huggingface/safetensors): u64 length, a JSON header {name: {dtype, shape,
data_offsets}}, then the data without gaps. Our own reader, because it gives single rows without
the rest of a tensor, and says where a damaged file is damaged.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.errors import FormatError, ModelError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER = 100_000_000  # the limit of the format's own library


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies; `dtype` as the file names it."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """One file: its table, and tensors by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error
        try:
            self.tensors = self._table()
        except BaseException:
            self.close()
            raise
        self._map: mmap.mmap | None = None

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Return a tensor, or a range of its rows, in memory of its own."""
        place, dtype = self._known(name)
        first, last, _ = (rows or slice(None)).indices(place.shape[0] if place.shape else 1)
        whole = place.shape[0] if place.shape else 1
        row_bytes = place.nbytes // max(whole, 1)
        shape = (last - first, *place.shape[1:]) if place.shape else ()
        raw = bytearray((last - first) * row_bytes)
        if not raw:
            return torch.empty(shape, dtype=dtype)
        view, done = memoryview(raw), 0
        while done < len(raw):
            got = os.preadv(self._fd, [view[done:]], place.offset + first * row_bytes + done)
            if not got:
                raise FormatError(
                    f"{self.path}: {name} at byte {place.offset} is cut short",
                    allowed=f"{place.nbytes} bytes",
                )
            done += got
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)

    def mapped(self, name: str) -> Tensor:
        """Return a tensor as a view of the mapped file, for reading; nothing is copied."""
        place, dtype = self._known(name)
        count, size = math.prod(place.shape), dtype.itemsize
        if count == 0 or place.offset % size:
            return self.read(name)
        if self._map is None:
            # Private and writable, because torch warns about read-only memory; nobody writes.
            self._map = mmap.mmap(
                self._fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=place.offset)
        return flat.view(place.shape)

    def close(self) -> None:
        """Close the file; mapped tensors stay valid."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def _known(self, name: str) -> tuple[TensorPlace, torch.dtype]:
        place = self.tensors[name]
        if place.dtype not in DTYPES:
            raise ModelError(
                f"{self.path}: the tensor {name} is stored in a type that we do not read",
                value=place.dtype,
                allowed=", ".join(DTYPES),
            )
        return place, DTYPES[place.dtype]

    def _table(self) -> dict[str, TensorPlace]:
        size = os.fstat(self._fd).st_size
        head = os.pread(self._fd, 8, 0)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise FormatError(
                f"{self.path}: absurd length of the header at byte 0",
                value=length,
                allowed=f"2 to {max(2, min(size - 8, _MAX_HEADER))}",
                way_out="the file is cut short or no safetensors file; fetch it again",
            )
        try:
            entries = json.loads(os.pread(self._fd, length, 8))
            entries.pop("__metadata__", None)
            table = {name: _place(entry, 8 + length) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{self.path}: the header at byte 8 cannot be read: {error}",
                way_out="the file is damaged; fetch it again",
            ) from None
        for name, place in table.items():
            if place.offset + place.nbytes > size:
                raise FormatError(
                    f"{self.path}: the tensor {name} at byte {place.offset} reaches past the end",
                    value=f"{place.nbytes} bytes",
                    allowed=f"{max(0, size - place.offset)} bytes are left of {size}",
                    way_out="the file is cut short; fetch it again",
                )
        return table


def _place(entry: dict[str, Any], start: int) -> TensorPlace:
    first, last = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), str(entry["dtype"])
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError("a size or an offset is no whole number")
    known = DTYPES.get(dtype)
    if last < first or (known and math.prod(shape) * known.itemsize != last - first):
        raise ValueError(f"shape {shape} of {dtype} does not fit bytes {first} to {last}")
    return TensorPlace(dtype=dtype, shape=shape, offset=start + first, nbytes=last - first)
