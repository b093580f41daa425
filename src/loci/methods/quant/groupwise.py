"""Group-wise round to nearest: a scale, and perhaps a minimum, for every group of inputs.

The grid of llama.cpp's Q4_0, Q4_1 and Q8_0 blocks, for any width and group; first described for
language models by Yao et al., "ZeroQuant", 2022, arXiv:2206.01861, section 4.1.

A row is cut into groups that are quantised alone, so that one large weight spoils only its group:

    asymmetric   min = min(w), scale = (max(w) - min) / (2**bits - 1), code = round((w - min)/scale)
    symmetric    code = round(w / scale) + 2**(bits - 1); of two scales the one with less error:
                 the extreme at the end of the grid, -extreme / 2**(bits - 1)    (as Q4_0)
                 or both signs alike, max|w| / (2**(bits - 1) - 1)               (as Q8_0)

Scales and minima are rounded to their stored width first and the codes computed from those, so the
rounding of a scale costs no further error, and weights that lie on such a grid with their extremes
in use come back exactly.

Differs from the paper: one of two candidate scales is taken, and activations stay as they are.
Not for: 2 and 3 bits of a model that was not trained for them; error compensation is needed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant._packed import check_matrix
from loci.methods.quant.base import Quant
from loci.nn.packing import PackedWeight, pack_codes, packed_bytes, row_bytes
from loci.nn.taps import ActStats

_STEP = 8  # groups are multiples: eight codes of any width end on a byte
_TILE = 2**20  # weights quantised at once

# Shapes: N outputs, n rows of one tile, K inputs, G groups of a row, g inputs of a group.


@dataclass(frozen=True, kw_only=True)
class Groupwise(Quant):
    """Round to nearest on a grid per group."""

    about = About(
        name="groupwise",
        kind=Kind.QUANT,
        paper="arXiv:2206.01861",
        idea="a scale for every few weights, so that an outlier spoils only its group",
        phases=(Phase.LOAD,),
        frees=Frees.STORAGE,
        lossy=True,
    )

    bits: Annotated[int, Param(help="width of a code", unit="bits", ge=2, le=8)] = 4
    group: Annotated[
        int | None, Param(help="inputs that share a scale; nothing is the whole row", ge=_STEP)
    ] = 32
    symmetric: Annotated[bool, Param(help="no minimum, the grid is centred on zero")] = False
    scale_bits: Annotated[int, Param(help="width of scales", unit="bits", choices=(16, 32))] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is not None and self.group % _STEP:
            raise ParameterError(
                f"groupwise.group must be a multiple of {_STEP}",
                value=self.group,
                way_out=f"the nearest is {max(_STEP, round(self.group / _STEP) * _STEP)}",
            )

    def packed_bytes(self, out: int, inner: int) -> int:
        return packed_bytes(
            out,
            inner,
            self.bits,
            self._group_of(inner),
            symmetric=self.symmetric,
            scale_bytes=self.scale_bits // 8,
        )

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> PackedWeight:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        group = self._group_of(inner)
        dtype = torch.float16 if self.scale_bits == 16 else torch.float32
        codes_NR = torch.empty(out, row_bytes(inner, self.bits), dtype=torch.uint8)
        scales_NG = torch.empty(out, inner // group, dtype=dtype)
        mins_NG = None if self.symmetric else torch.empty_like(scales_NG)
        quantise = self._symmetric if self.symmetric else self._asymmetric
        step = max(1, _TILE // inner)
        for first in range(0, out, step):
            part_nGg = weight.detach()[first : first + step].to(torch.float32)
            part_nGg = part_nGg.reshape(part_nGg.shape[0], -1, group)
            codes_nGg, scales_nG, mins_nG = quantise(part_nGg, dtype)
            codes_NR[first : first + step] = pack_codes(codes_nGg.flatten(1), self.bits)
            scales_NG[first : first + step] = scales_nG
            if mins_NG is not None and mins_nG is not None:
                mins_NG[first : first + step] = mins_nG
        if not all(torch.isfinite(t).all() for t in (scales_NG, mins_NG) if t is not None):
            raise ParameterError(
                f"weights this large have no scale in {self.scale_bits} bits",
                value=float(weight.abs().max()),
                way_out="groupwise(scale_bits=32)" if self.scale_bits == 16 else (),
            )
        return PackedWeight(codes_NR, scales_NG, mins_NG, self.bits, group, (out, inner))

    def _group_of(self, inner: int) -> int:
        """Return the group for rows of `inner` weights, or refuse with the nearest that divides."""
        group = self.group or inner
        if inner % group:
            fits = [size for size in range(_STEP, inner + 1, _STEP) if inner % size == 0]
            near = min(fits, key=lambda size: abs(size - group), default=None)
            raise ParameterError(
                f"groupwise.group does not divide a row of {inner} weights",
                value=self.group,
                way_out=f"the nearest that does is groupwise(group={near})",
            )
        return group

    def _asymmetric(self, w_nGg: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        levels = 2**self.bits - 1
        low_nG, high_nG = torch.aminmax(w_nGg, dim=-1)
        mins_nG = low_nG.to(dtype)
        scales_nG = ((high_nG - mins_nG.to(torch.float32)) / levels).clamp_(min=0).to(dtype)
        codes_nGg = _divide(w_nGg - mins_nG.to(torch.float32).unsqueeze(-1), scales_nG)
        return codes_nGg.round_().clamp_(0, levels).to(torch.uint8), scales_nG, mins_nG

    def _symmetric(self, w_nGg: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, None]:
        half = 2 ** (self.bits - 1)
        low_nG, high_nG = torch.aminmax(w_nGg, dim=-1)
        extreme_nG = torch.where(-low_nG > high_nG, low_nG, high_nG)
        best_nGg, scales_nG = _centred(w_nGg, (extreme_nG / -half).to(dtype), half)
        other_nGg, others_nG = _centred(w_nGg, (extreme_nG.abs() / (half - 1)).to(dtype), half)
        better_nG = _error(w_nGg, other_nGg, others_nG) < _error(w_nGg, best_nGg, scales_nG)
        best_nGg = torch.where(better_nG.unsqueeze(-1), other_nGg, best_nGg)
        scales_nG = torch.where(better_nG, others_nG, scales_nG)
        return (best_nGg + half).to(torch.uint8), scales_nG, None


def _centred(w_nGg: Tensor, scales_nG: Tensor, half: int) -> tuple[Tensor, Tensor]:
    return _divide(w_nGg, scales_nG).round_().clamp_(-half, half - 1), scales_nG


def _divide(w_nGg: Tensor, scales_nG: Tensor) -> Tensor:
    """Return w / scale, and 0 where the scale is 0 (a group of equal weights)."""
    divisor_nG1 = scales_nG.to(torch.float32).unsqueeze(-1)
    return torch.where(divisor_nG1 == 0, 0.0, w_nGg / divisor_nG1)


def _error(w_nGg: Tensor, codes_nGg: Tensor, scales_nG: Tensor) -> Tensor:
    return (codes_nGg * scales_nG.to(torch.float32).unsqueeze(-1) - w_nGg).square_().sum(-1)
