"""A packed weight with something done to its input, or added to its output.

In this order: channels are put in another order, scaled, rounded to few bits, multiplied by the
packed weight; and a product of low rank of the input as it came is added.

    y = Q(x[perm] * scale) W^T + (x R^T) L^T

Rounding is dynamic: every token has a scale of its own for every group of channels, symmetric,

    s = max|x| / (2^(bits - 1) - 1),    q = round(x / s)

so that products with integer codes are sums of small integers (`group_dot`, the exact oracle).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.errors import FormatError, ParameterError
from loci.nn.form import Form, from_tensors
from loci.nn.packed_linear import matmul

ACT_BITS = (4, 5, 6, 7, 8)

# Shapes: M rows of x, K inputs, N outputs, G groups of a row, g channels of a group, r rank.


@dataclass(frozen=True, eq=False)
class AdjustedWeight(Form):
    """A form with an adjusted input or a correction; parts that are None do nothing.

    Attributes:
        base: the packed weight [N, K], its inputs in the order of `perm`.
        perm: int32 [K]; input k of `base` is channel perm[k] of x.
        scale: float16 or float32 [K], by which inputs are multiplied, in the order of `base`.
        bits: uint8 [G], to which each group of inputs is rounded.
        left, right: float16 [N, r] and [r, K], in the order of x.
    """

    base: Form
    perm: Tensor | None = None
    scale: Tensor | None = None
    bits: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    def __post_init__(self) -> None:
        out, inner = self.base.shape
        expected: dict[str, tuple[tuple[int, ...], ...]] = {
            "perm": ((inner,),),
            "scale": ((inner,),),
            "bits": tuple((n,) for n in range(1, inner + 1) if inner % n == 0),
            "left": tuple((out, n) for n in _ranks(self.right, 0)),
            "right": tuple((n, inner) for n in _ranks(self.left, 1)),
        }
        for name, shapes in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) not in shapes:
                raise FormatError(
                    f"{name} does not fit a weight {self.base.shape}", value=tuple(tensor.shape)
                )
        object.__setattr__(self, "shape", self.base.shape)

    @property
    def is_linear(self) -> bool:
        """Whether inputs are used as they are, not rounded."""
        return self.bits is None and self.base.is_linear

    def tensors(self) -> dict[str, Tensor]:
        """Return the base's tensors as "base.codes" and so on, and those that are not None."""
        found = {f"base.{name}": tensor for name, tensor in self.base.tensors().items()}
        for name in _PARTS:
            tensor = getattr(self, name)
            if tensor is not None:
                found[name] = tensor
        return found

    def meta(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON values."""
        return {"type": "adjusted", "base": self.base.meta()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> AdjustedWeight:
        """Return the weight from `tensors()` and `meta()`."""
        try:
            inside = {k.removeprefix("base."): v for k, v in tensors.items() if k[:5] == "base."}
            parts = {k: v for k, v in tensors.items() if k[:5] != "base."}
            return cls(base=from_tensors(inside, meta["base"]), **parts)
        except (KeyError, TypeError) as error:
            raise FormatError(f"this is no adjusted weight: {error}") from error

    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out, for inputs that are not rounded."""
        self.base.write(out, first, last)
        if self.scale is not None:
            out *= self.scale
        if self.perm is not None:
            out[:, self.perm.to(torch.int64)] = out.clone()
        if self.left is not None and self.right is not None:
            out.addmm_(self.left[first:last].float(), self.right.float())

    def product(self, x_MK: Tensor, out_MN: Tensor, tile: Tensor | None) -> Tensor:
        """Write what x gives into out and return it."""
        inputs_MK = x_MK if self.perm is None else x_MK.index_select(1, self.perm)
        if self.scale is not None:
            inputs_MK = inputs_MK * self.scale
        if self.bits is not None:
            inputs_MK = rounded(inputs_MK, self.bits)
        matmul(inputs_MK.contiguous(), self.base, out_MN, tile=tile)
        if self.left is not None and self.right is not None:
            thin_Mr = x_MK @ self.right.float().t()
            out_MN.addmm_(thin_Mr, self.left.float().t())
        return out_MN


def quantised(x_MK: Tensor, bits_G: Tensor) -> tuple[Tensor, Tensor]:
    """Return integer values float32 [M, G, g] of x, and scales [M, G].

    Raises:
        ParameterError: if x has numbers that are not finite: nothing could be said of the others.
    """
    grouped_MGg = x_MK.reshape(x_MK.shape[0], bits_G.numel(), -1)
    largest_MG = grouped_MGg.abs().amax(-1)
    if not torch.isfinite(largest_MG).all():
        raise ParameterError("inputs that are not finite cannot be rounded")
    most_G = (1 << (bits_G.to(torch.int32) - 1)) - 1
    scales_MG = largest_MG / most_G
    divisor_MG1 = torch.where(scales_MG == 0, 1.0, scales_MG).unsqueeze(-1)
    return (grouped_MGg / divisor_MG1).round_(), scales_MG


def rounded(x_MK: Tensor, bits_G: Tensor) -> Tensor:
    """Return x with every group of channels of every token rounded to its bits, float32 [M, K]."""
    values_MGg, scales_MG = quantised(x_MK, bits_G)
    return (values_MGg * scales_MG.unsqueeze(-1)).reshape(x_MK.shape)


def group_dot(x_MGg: Tensor, w_NGg: Tensor) -> Tensor:
    """Return exact integer products of each group, int32 [G, M, N], from integer values in float32.

    Float32 products of integers are exact as long as sums stay below 2^24, which is what makes
    ordinary matrix products an integer unit.

    Raises:
        ParameterError: if sums could be larger.
    """
    most = float(x_MGg.abs().max()) * float(w_NGg.abs().max()) * x_MGg.shape[-1]
    if most >= 2**24:
        raise ParameterError(
            "sums of a group may not be exact in float32",
            value=most,
            allowed="below 2^24",
            way_out="take smaller groups",
        )
    products_GMN = torch.bmm(x_MGg.transpose(0, 1), w_NGg.permute(1, 2, 0))
    return products_GMN.to(torch.int32)


_PARTS = ("perm", "scale", "bits", "left", "right")


def _ranks(other: Tensor | None, axis: int) -> tuple[int, ...]:
    """Return the ranks that fit the other factor; none when it is missing."""
    return () if other is None else (other.shape[axis],)
