"""The native kernels, typed; each does what a torch expression does, faster.

Without a C++ compiler the extension is not there: `available` says so, `why_not` says why, and the
callers take their torch path. Nothing here may be called then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loci.errors import ParameterError

if TYPE_CHECKING:
    from loci.nn.packing import PackedWeight

try:
    from loci.nn import _native  # type: ignore[attr-defined]  # built from native.cpp
except ImportError as error:
    _native = None
    _WHY_NOT: str | None = str(error)
else:
    _WHY_NOT = None

MAX_ROWS = 16  # rows of x one product takes
LEVELS = ("plain", "avx2", "avx512")

# Shapes: M rows, K inputs, N outputs, H query heads, K key/value heads, S stored tokens, D head.


def available() -> bool:
    """Return whether the kernels were built."""
    return _native is not None


@cache
def handles(bits: int) -> bool:
    """Return whether the kernels were built and read codes of this width."""
    if _native is None:
        return False
    try:
        _native.Weight(0, 0, 0, 0, 8, bits, 8, True)
    except ValueError:
        return False
    return True


def why_not() -> str | None:
    """Return why they are not there, or None when they are."""
    if _native is not None:
        return None
    if find_spec("loci.nn._native") is None:
        return "the extension was not built; install again with a C++ compiler (c++ or g++)"
    return _WHY_NOT


def simd() -> str:
    """Return the instructions in use: "plain", "avx2" or "avx512"."""
    return LEVELS[_native.level()]


@contextmanager
def force_simd(name: str) -> Iterator[None]:
    """Use only these instructions within the block; for tests."""
    if name not in LEVELS or LEVELS.index(name) > _native.best_level():
        raise ParameterError(
            "this machine has no such instructions",
            value=name,
            allowed=", ".join(LEVELS[: _native.best_level() + 1]),
        )
    before = _native.level()
    _native.set_level(LEVELS.index(name))
    try:
        yield
    finally:
        _native.set_level(before)


def threads() -> int:
    """Return how many threads the kernels use."""
    count: int = _native.threads()
    return count


def set_threads(count: int) -> None:
    """Use so many threads from now on."""
    if count < 1:
        raise ParameterError("kernels need at least one thread", value=count)
    _native.set_threads(count)


def handle(weight: PackedWeight) -> object:
    """Return the kernels' own view of a weight, made once and kept with it."""
    held = weight.__dict__.get("_native")
    if held is None:
        out, inner = weight.shape
        held = _native.Weight(
            weight.codes.data_ptr(),
            weight.scales.data_ptr(),
            0 if weight.mins is None else weight.mins.data_ptr(),
            out,
            inner,
            weight.bits,
            weight.group,
            weight.scales.dtype == torch.float16,
        )
        weight.__dict__["_native"] = held  # the weight owns the tensors, so it outlives the view
    return held


def gemv(x_MK: Tensor, weight: PackedWeight, out_MN: Tensor) -> None:
    """Write x times the transposed weight into out; x contiguous, rows of out contiguous."""
    _native.gemv(
        x_MK.data_ptr(), x_MK.shape[0], handle(weight), out_MN.data_ptr(), out_MN.stride(0)
    )


def gemv_many(x_MK: Tensor, weights: Sequence[PackedWeight], outs_MN: Sequence[Tensor]) -> None:
    """Write x times each transposed weight, in one go."""
    _native.gemv_many(
        x_MK.data_ptr(),
        x_MK.shape[0],
        [handle(weight) for weight in weights],
        [out.data_ptr() for out in outs_MN],
        [out.stride(0) for out in outs_MN],
    )


def dequantise(weight: PackedWeight, first: int, last: int, out_nK: Tensor) -> None:
    """Write rows first..last of a weight into out, float32 and contiguous."""
    _native.dequantise(handle(weight), first, last, out_nK.data_ptr())


def rows(weight: PackedWeight, ids_n: Tensor, out_nK: Tensor) -> None:
    """Write the rows `ids` (int64, contiguous, in range) into out."""
    _native.rows(handle(weight), ids_n.data_ptr(), ids_n.numel(), out_nK.data_ptr())


def rmsnorm(x_MK: Tensor, weight_K: Tensor, eps: float, offset: float, out_MK: Tensor) -> None:
    """Write x / rms(x) * (weight + offset) into out, which may be x; all contiguous."""
    size = x_MK.shape[-1]
    _native.rmsnorm(
        x_MK.data_ptr(),
        weight_K.data_ptr(),
        eps,
        offset,
        x_MK.numel() // size,
        size,
        out_MK.data_ptr(),
    )


def silu_mul(gate_MK: Tensor, up_MK: Tensor) -> None:
    """Replace gate by silu(gate) * up; both contiguous."""
    size = gate_MK.shape[-1]
    _native.silu_mul(gate_MK.data_ptr(), up_MK.data_ptr(), gate_MK.numel() // size, size)


def gelu_tanh_mul(gate_MK: Tensor, up_MK: Tensor) -> None:
    """Replace gate by gelu(gate) * up, gelu by its tanh formula; both contiguous."""
    size = gate_MK.shape[-1]
    _native.gelu_tanh_mul(gate_MK.data_ptr(), up_MK.data_ptr(), gate_MK.numel() // size, size)


def rope(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, out_THD: Tensor) -> None:
    """Write x turned by the angles into another tensor; all contiguous."""
    tokens, heads, size = x_THD.shape
    _native.rope(
        x_THD.data_ptr(),
        cos_TD.data_ptr(),
        sin_TD.data_ptr(),
        tokens,
        heads,
        size,
        out_THD.data_ptr(),
    )


def attend_decode(
    q_HD: Tensor, keys_KSD: Tensor, values_KSD: Tensor, scale: float, out_HD: Tensor, lse_H: Tensor
) -> None:
    """Write what one token's queries read from all stored tokens, and the log-sum-exp.

    Args:
        q_HD: float32, contiguous.
        keys_KSD, values_KSD: float32 or float16; the last dimension contiguous, others strided.
    """
    _native.attend_decode(
        q_HD.data_ptr(),
        keys_KSD.data_ptr(),
        values_KSD.data_ptr(),
        keys_KSD.stride(0),
        keys_KSD.stride(1),
        values_KSD.stride(0),
        values_KSD.stride(1),
        keys_KSD.shape[1],
        q_HD.shape[0],
        keys_KSD.shape[0],
        q_HD.shape[1],
        keys_KSD.dtype == torch.float16,
        scale,
        out_HD.data_ptr(),
        lse_H.data_ptr(),
    )


def bfp_dequant(
    packed_NR: Tensor, exponents_Nb: Tensor, bits: int, block: int, out_ND: Tensor
) -> None:
    """Write values of block floating point into out; all contiguous.

    Args:
        packed_NR: uint8, the mantissas of a row as a bit stream, biased by 2^(bits - 1).
        exponents_Nb: uint8, one per block, biased by 127.
    """
    size = out_ND.shape[-1]
    _native.bfp_dequant(
        packed_NR.data_ptr(),
        exponents_Nb.data_ptr(),
        bits,
        block,
        out_ND.numel() // size,
        size,
        packed_NR.shape[-1],
        out_ND.data_ptr(),
    )
