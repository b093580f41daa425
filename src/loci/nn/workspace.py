"""Work buffers of a decoder: one table that allocation and prediction both read.

A forward of `chunk` tokens needs room for hidden states, projections, the attention output, one
tile of dequantised weights, and one row of logits. Buffers are taken once under the ledger and
reused by every layer, so that what the planner adds up is what the process holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loci.core.ledger import Lease, Ledger
from loci.core.spec import ModelSpec
from loci.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

TILE_ELEMENTS = 4 * 2**20  # float32 elements of one dequantised weight tile: at most 16 MiB

# Shapes: B batch, T tokens of one chunk, d hidden, q query width, k key width, f ffn, V vocabulary.


def decoder_work(
    spec: ModelSpec, chunk: int, batch: int = 1, *, decoded_tokens: int = 0
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return {buffer: (shape, bytes per element)} of a forward over `chunk` tokens.

    Args:
        chunk: tokens a step appends at most.
        batch: rows at once.
        decoded_tokens: stored tokens that attention decodes from codes at once (one layer);
            0 when the KV cache is kept as it is.
    """
    rows = batch * chunk
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    linears = spec.layer_linears().values()
    largest = max(out * inner for out, inner in linears)
    tile = min(largest, TILE_ELEMENTS) if rows > 1 else 0
    table: dict[str, tuple[tuple[int, ...], int]] = {
        "hidden": ((rows, spec.hidden), 4),
        "normed": ((rows, spec.hidden), 4),
        "qkv": ((rows, queries + 2 * keys), 4),
        "heads": ((rows, queries + keys), 4),  # queries and keys head-major, rotated
        "mixed": ((rows, queries), 4),  # the attention output
        "gate_up": ((rows, 2 * spec.ffn), 4),
        "rope": ((2, rows, spec.head_dim), 4),
        "tile": ((tile,), 4),
        "logits": ((batch, spec.vocab), 4),
        "attention": ((rows, 2 * queries + 2 * spec.heads), 4),  # parts that are merged
    }
    if decoded_tokens:
        table["decoded"] = ((2, batch, keys, decoded_tokens), 4)
    return table


def work_bytes(spec: ModelSpec, chunk: int, batch: int = 1, *, decoded_tokens: int = 0) -> int:
    """Return the bytes of all work buffers of `decoder_work`."""
    total = 0
    for shape, size in decoder_work(spec, chunk, batch, decoded_tokens=decoded_tokens).values():
        elements = 1
        for side in shape:
            elements *= side
        total += elements * size
    return total


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
