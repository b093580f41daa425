"""Work buffers of a decoder, allocated from the table in `loci.core.work`.

Buffers are taken once under the ledger and reused by every layer, so that what the planner adds up
is what the process holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loci.core.ledger import Lease, Ledger
from loci.core.work import TILE_ELEMENTS, decoder_work, work_bytes
from loci.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TILE_ELEMENTS", "Buffers", "decoder_work", "work_bytes"]


class Buffers:
    """Named float32 scratch tensors, each allocated once at its largest and handed out as views.

    Satisfies `loci.core.ports.Workspace`. The lease covers the whole table, including what torch
    allocates for a moment inside attention.
    """

    def __init__(
        self,
        table: dict[str, tuple[tuple[int, ...], int]],
        ledger: Ledger,
        *,
        tier: str = "dram",
        owner: str = "work",
    ) -> None:
        self._sizes = {name: _count(shape) for name, (shape, _) in table.items()}
        nbytes = sum(_count(shape) * size for shape, size in table.values())
        self._lease: Lease = ledger.reserve(owner, tier, nbytes, "work")
        self._tensors: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a float32 tensor of `shape`, a view of the buffer `name`."""
        count = _count(shape)
        if name not in self._sizes or count > self._sizes[name]:
            raise ParameterError(
                f"work buffer {name!r} holds {self._sizes.get(name, 0)} elements",
                value=tuple(shape),
                allowed="shapes within the table it was made from",
            )
        held = self._tensors.get(name)
        if held is None:
            held = self._tensors[name] = torch.empty(self._sizes[name], dtype=dtype)
        return held[:count].view(*shape)

    def whole(self, name: str) -> Tensor:
        """Return all of the buffer `name`, one-dimensional."""
        return self.take(name, (self._sizes[name],))

    def nbytes(self) -> int:
        """Return the bytes under the lease."""
        return self._lease.nbytes

    def release(self) -> None:
        """Give everything back."""
        self._tensors.clear()
        self._lease.release()


def _count(shape: Sequence[int]) -> int:
    elements = 1
    for side in shape:
        elements *= side
    return elements
