"""A weight as a sum of levels, each a matrix of signs times a matrix of low rank.

    W = sum_i  S_i o (A_i B_i)          S_i = +-1 [out, in], A_i [out, k], B_i [k, in]

A level costs one bit a weight and 16 k (out + in) bits more. Levels are ordered: any number of the
first ones is a coarser weight, so bytes are given back by letting go of the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.errors import FormatError
from loci.nn.form import Form
from loci.nn.planes import plane_bytes

_STRIP = 2**16  # weights reconstructed at once: what a level needs for a moment stays in the cache

# Shapes: N outputs, K inputs, k rank, R = ceil(K / 8), n rows of a strip.


@dataclass(frozen=True, eq=False)
class Level:
    """One summand: a set bit of `signs` uint8 [N, R] means minus; factors are float16."""

    signs: Tensor
    left: Tensor
    right: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {"signs": self.signs, "left": self.left, "right": self.right}


def level_bytes(out: int, inner: int, rank: int) -> int:
    """Return exactly the bytes of one level.

    >>> level_bytes(1536, 576, 4)
    127488
    """
    return out * plane_bytes(inner) + 2 * rank * (out + inner)


@dataclass(frozen=True, eq=False)
class ResidualWeight(Form):
    """A weight [out, in] as the sum of its levels, at least one."""

    levels: tuple[Level, ...]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if not self.levels:
            raise FormatError("a residual weight has at least one level")
        for number, level in enumerate(self.levels):
            out, inner = self.shape
            rank = level.left.shape[-1]
            expected = {
                "signs": ((out, plane_bytes(inner)), torch.uint8),
                "left": ((out, rank), torch.float16),
                "right": ((rank, inner), torch.float16),
            }
            for name, tensor in level.tensors().items():
                if (tuple(tensor.shape), tensor.dtype) != expected[name]:
                    raise FormatError(
                        f"{name} of level {number} do not fit a weight {self.shape}",
                        value=(tuple(tensor.shape), str(tensor.dtype)),
                        allowed=str(expected[name]),
                    )

    def tensors(self) -> dict[str, Tensor]:
        """Return {"0.signs": .., "0.left": .., "0.right": .., "1.signs": ..}."""
        return {
            f"{number}.{name}": tensor
            for number, level in enumerate(self.levels)
            for name, tensor in level.tensors().items()
        }

    def meta(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON values."""
        return {"type": "residual", "levels": len(self.levels), "shape": list(self.shape)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> ResidualWeight:
        """Return the weight from `tensors()` and `meta()`."""
        try:
            out, inner = meta["shape"]
            names = Level.__dataclass_fields__
            levels = [
                Level(**{name: tensors[f"{number}.{name}"] for name in names})
                for number in range(meta["levels"])
            ]
            return cls(tuple(levels), (out, inner))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"this is no residual weight: {error}") from error

    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out."""
        inner = self.shape[1]
        step = max(1, _STRIP // inner)
        factors = [(level, level.right.float()) for level in self.levels]
        for start in range(first, last, step):
            rows = slice(start, min(start + step, last))
            strip_nK = out[rows.start - first : rows.stop - first]
            for number, (level, right_kK) in enumerate(factors):
                target = strip_nK if number == 0 else torch.empty_like(strip_nK)
                torch.mm(level.left[rows].float(), right_kK, out=target)
                _flip(target, level.signs[rows])
                if number:
                    strip_nK += target


def with_levels(shape: tuple[int, int], levels: Sequence[Mapping[str, Tensor]]) -> ResidualWeight:
    """Return the weight of these levels' tensors."""
    return ResidualWeight(tuple(Level(**level) for level in levels), shape)


def _flip(values_nK: Tensor, signs_nR: Tensor) -> None:
    """Change the sign of float32 values where a bit is set, in place: an exclusive or."""
    flips_nK = _flips()[signs_nR.flatten().to(torch.int32)].view(signs_nR.shape[0], -1)
    if flips_nK.shape[1] != values_nK.shape[1]:
        flips_nK = flips_nK[:, : values_nK.shape[1]]
    values_nK.view(torch.int32).bitwise_xor_(flips_nK)


@cache
def _flips() -> Tensor:
    """Return, for each byte of signs, the bits to flip in eight float32 numbers, int32 [256, 8]."""
    bits = (torch.arange(256, dtype=torch.int32).unsqueeze(-1) >> torch.arange(8)) & 1
    return (bits << 31).to(torch.int32).contiguous()
