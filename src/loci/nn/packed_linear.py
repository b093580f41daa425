"""Matrix products with packed or dense weights: y = x W^T in float32, by one of three back ends.

`reference` dequantises the whole weight and multiplies: simple, the oracle of the others. `tiled`
dequantises a tile of output rows at a time into scratch memory, so that a long prompt never holds a
whole float32 weight. `native` multiplies straight from the codes, for up to 16 rows of x: a decoded
token reads every weight once, in its packed size, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn.packing import PackedWeight, dequantise

Weight = PackedWeight | Tensor
BACKENDS = ("reference", "tiled", "native")
TILE_ELEMENTS = 4 * 2**20  # float32 elements of scratch when the caller brings none

# Shapes: M rows of x, K inputs, N outputs.


def matmul(
    x: Tensor,
    weight: Weight,
    out: Tensor | None = None,
    *,
    tile: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return x [M, in] times the transposed weight, float32 [M, out].

    Args:
        out: where to write the result.
        tile: one-dimensional float32 scratch of at least one weight row, for dequantised rows.
        backend: one of `BACKENDS`.
    """
    if backend is not None and backend not in BACKENDS:
        raise ParameterError("unknown back end", value=backend, allowed=", ".join(BACKENDS))
    if x.shape[-1] != weight.shape[1]:
        raise ParameterError(
            f"x has {x.shape[-1]} columns", value=tuple(x.shape), allowed=f"[M, {weight.shape[1]}]"
        )
    if out is None:
        out = x.new_empty(x.shape[0], weight.shape[0])
    if backend == "reference":
        dense = weight if isinstance(weight, Tensor) else dequantise(weight)
        return torch.mm(x, dense.to(torch.float32).t(), out=out)
    return _tiled(x, weight, out, tile)


def matmul_many(
    x: Tensor,
    weights: Sequence[Weight],
    outs: Sequence[Tensor],
    *,
    tile: Tensor | None = None,
    backend: str | None = None,
) -> Sequence[Tensor]:
    """Write x times each transposed weight into `outs` and return them; x is read once."""
    for weight, out in zip(weights, outs, strict=True):
        matmul(x, weight, out, tile=tile, backend=backend)
    return outs


def _tiled(x_MK: Tensor, weight: Weight, out_MN: Tensor, tile: Tensor | None) -> Tensor:
    if isinstance(weight, Tensor) and weight.dtype == torch.float32:
        return torch.mm(x_MK, weight.t(), out=out_MN)
    outputs, inner = weight.shape
    if tile is None:
        tile = torch.empty(min(TILE_ELEMENTS, outputs * inner))
    step = tile.numel() // inner
    if step == 0:
        raise ParameterError(
            "the tile holds no whole row", value=tile.numel(), allowed=f">= {inner} elements"
        )
    for first in range(0, outputs, step):
        last = min(first + step, outputs)
        dense_nK = tile[: (last - first) * inner].view(last - first, inner)
        if isinstance(weight, Tensor):
            dense_nK.copy_(weight[first:last])
        else:
            dequantise(weight, dense_nK, slice(first, last))
        if step >= outputs:
            return torch.mm(x_MK, dense_nK.t(), out=out_MN)
        torch.mm(x_MK, dense_nK.t(), out=out_MN[:, first:last])
    return out_MN
