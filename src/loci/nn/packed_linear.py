"""Matrix products with packed or dense weights: y = x W^T in float32, by one of three back ends.

`reference` dequantises the whole weight and multiplies: simple, the oracle of the others. `tiled`
dequantises a tile of output rows at a time into scratch memory, so that a long prompt never holds a
whole float32 weight. `native` multiplies up to 16 rows of x straight from the codes: a decoded
token reads every weight once, in its packed size, and nothing else. With more rows it dequantises
panels that stay in the processor's cache while all rows pass by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any  # what torch hands to the two ways of a product

import torch
from torch import Tensor

from loci.core.work import TILE_ELEMENTS
from loci.errors import ParameterError
from loci.nn import native
from loci.nn.form import Form, tiled
from loci.nn.packing import PackedWeight, dequantise_reference

Weight = Form | Tensor
BACKENDS = ("reference", "tiled", "native")

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
        out: where to write the result; columns side by side, rows may be further apart.
        tile: one-dimensional float32 scratch of at least one weight row, for dequantised rows.
        backend: one of `BACKENDS`; by default native for few rows where it was built, else tiled.

    Raises:
        ParameterError: if shapes do not fit, or `native` was asked for where it cannot be used.
    """
    if backend is not None and backend not in BACKENDS:
        raise ParameterError("unknown back end", value=backend, allowed=", ".join(BACKENDS))
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ParameterError(
            f"x has {x.shape[-1]} columns", value=tuple(x.shape), allowed=f"[M, {weight.shape[1]}]"
        )
    if out is None:
        out = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    elif tuple(out.shape) != (x.shape[0], weight.shape[0]) or not _is_writable(out):
        raise ParameterError(
            "the result does not fit the product",
            value=(tuple(out.shape), out.stride(), str(out.dtype)),
            allowed=f"float32 {(x.shape[0], weight.shape[0])}, columns side by side",
        )
    if backend == "reference":
        return torch.mm(x, _reference(weight).t(), out=out)
    if (
        backend in (None, "native")
        and isinstance(weight, PackedWeight)
        and _is_native(x, weight)
        and _multiply(x, [weight], [out], tile)
    ):
        return out
    if backend == "native":
        raise ParameterError(
            "the native product cannot be used here",
            value=(tuple(x.shape), type(weight).__name__, native.why_not()),
            allowed="a packed weight, contiguous float32 rows of x, and a tile with room for them",
            way_out="leave the back end out, and the fastest that can is taken",
        )
    if isinstance(weight, Form):
        return weight.product(x, out, tile)
    return tiled(x, weight, out, tile)


def matmul_many(
    x: Tensor,
    weights: Sequence[Weight],
    outs: Sequence[Tensor],
    *,
    tile: Tensor | None = None,
    backend: str | None = None,
) -> Sequence[Tensor]:
    """Write x times each transposed weight into `outs` and return them; x is read once."""
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    if (
        backend in (None, "native")
        and len(packed) == len(weights) == len(outs) > 1
        and all(_is_native(x, weight) for weight in packed)
        and all(map(_is_writable, outs))
        and all(
            x.shape[1] == w.shape[1] and tuple(out.shape) == (x.shape[0], w.shape[0])
            for w, out in zip(packed, outs, strict=True)
        )
        and _multiply(x, packed, outs, tile)
    ):
        return outs
    for weight, out in zip(weights, outs, strict=True):
        matmul(x, weight, out, tile=tile, backend=backend)
    return outs


def matmul_back(dy_MN: Tensor, weight: Weight, *, tile: Tensor | None = None) -> Tensor:
    """Return dy [M, out] times the weight, float32 [M, in]: the way back through `matmul`.

    Args:
        tile: as for `matmul`; a weight is dequantised a tile of rows at a time here too.
    """
    if isinstance(weight, Tensor):
        return dy_MN @ weight.to(torch.float32)
    outputs, inner = weight.shape
    if tile is None:
        tile = torch.empty(max(inner, min(TILE_ELEMENTS, outputs * inner)))
    step = tile.numel() // inner
    dx_MK = dy_MN.new_zeros(dy_MN.shape[0], inner)
    for first in range(0, outputs, step):
        last = min(first + step, outputs)
        dense_nK = tile[: (last - first) * inner].view(last - first, inner)
        weight.write(dense_nK, first, last)
        dx_MK.addmm_(dy_MN[:, first:last], dense_nK)
    return dx_MK


def linear(x: Tensor, weight: Weight) -> Tensor:
    """Return x [M, in] times the transposed weight; gradients flow to x alone.

    For the way back nothing but a reference to the stored weight is kept: neither a dequantised
    copy nor the input (the memory-efficient fine-tuning of INT2.1, arXiv:2306.08162).
    """
    if isinstance(weight, Tensor) and weight.requires_grad:
        return x @ weight.t()
    found: Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    """A product whose way back dequantises the weight again."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight: Weight) -> Tensor:
        ctx.weight = weight
        return matmul(x_MK.detach().contiguous(), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return matmul_back(grads[0], ctx.weight), None


def _is_native(x_MK: Tensor, weight: PackedWeight) -> bool:
    return (
        native.handles(weight.bits)
        and x_MK.shape[0] > 0
        and native.is_plain(x_MK)
        and weight.codes.device.type == "cpu"
    )


def _multiply(
    x_MK: Tensor, weights: Sequence[PackedWeight], outs: Sequence[Tensor], tile: Tensor | None
) -> bool:
    """Multiply natively; False where the tile is too small for many rows."""
    if x_MK.shape[0] <= native.MAX_ROWS:
        native.gemv_many(x_MK, weights, outs)
        return True
    least = native.gemm_floats(x_MK.shape[1])
    if tile is None:
        tile = torch.empty(least * native.threads())
    if tile.numel() < least:
        return False
    native.gemm_many(x_MK, weights, outs, tile)
    return True


def _is_writable(out_MN: Tensor) -> bool:
    return out_MN.dtype == torch.float32 and (out_MN.shape[1] == 1 or out_MN.stride(1) == 1)


def _reference(weight: Weight) -> Tensor:
    """Return the weight in float32, by plain torch where a kernel would do it otherwise."""
    if isinstance(weight, PackedWeight):
        return dequantise_reference(weight)
    if isinstance(weight, Tensor):
        return weight.to(torch.float32)
    if not weight.is_linear:
        raise ParameterError(
            "this form rounds its input, so no dense weight says what it multiplies",
            value=type(weight).__name__,
            way_out="leave the back end out",
        )
    return weight.dense()
