"""HQQ: fit the zero point of every group so that most errors are small and a few may be large.

H. Badri and A. Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023,
https://mobiusml.github.io/hqq_blog.

Weights have outliers, so the error that is minimised is |e|^p with p < 1, which lets a few weights
be far off. The problem is split in two by an auxiliary error e, and solved in turns:

    e    = shrink(w - (q - z) s),    shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / b)
    z    = mean over the group of  q - (w - e) / s,     b grows every round

No data is needed and nothing is differentiated.

Differs from the published code: the best zero point of all rounds is kept, and it is stored as the
minimum -z s in float16.
Not for: 2 bits without anything else; the data it does without is what helps there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Param, Phase
from loci.methods.quant._grid import Grid
from loci.methods.quant._packed import check_matrix
from loci.methods.quant.base import Quant
from loci.methods.quant.groupwise import Groupwise
from loci.nn.form import Form
from loci.nn.taps import ActStats

_START, _GROWTH = 10.0, 1.01  # b, and its factor a round: those of the published code

# Shapes: N outputs, G groups of a row, g inputs of a group.


@dataclass(frozen=True, kw_only=True)
class Hqq(Quant):
    """Zero points by half-quadratic splitting."""

    about = About(
        name="hqq",
        kind=Kind.QUANT,
        paper="https://mobiusml.github.io/hqq_blog",
        idea="zero points fitted so that a few large errors buy many small ones, without data",
        phases=(Phase.LOAD,),
        frees=Frees.STORAGE,
        lossy=True,
    )

    bits: Annotated[int, Param(help="width of a code", unit="bits", ge=2, le=8)] = 4
    group: Annotated[
        int | None, Param(help="inputs that share a scale; nothing is the whole row", ge=8)
    ] = 64
    power: Annotated[float, Param(help="p of |e|^p", ge=0.1, le=1)] = 0.7
    rounds: Annotated[int, Param(help="turns of the two steps", ge=1, le=100)] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source()

    def packed_bytes(self, out: int, inner: int) -> int:
        return self._source().packed_bytes(out, inner)

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out = weight.shape[0]
        packed = self._source().pack_one(weight)
        assert packed.mins is not None
        w_NGg = weight.detach().to(torch.float32).reshape(out, -1, packed.group)
        best = Grid(packed.scales.float(), packed.mins.float(), self.bits)
        error_NG = self._error(w_NGg, best)
        scales_NG1 = torch.where(best.scales_NG == 0, 1.0, best.scales_NG).unsqueeze(-1)
        grid, strength = best, _START
        for _ in range(self.rounds):
            codes_NGg = grid.codes(w_NGg)
            off_NGg = w_NGg - grid.values(codes_NGg)
            size_NGg = off_NGg.abs()
            cut_NGg = size_NGg.clamp(min=1e-12) ** (self.power - 1) / strength
            kept_NGg = off_NGg.sign() * (size_NGg - cut_NGg).clamp(min=0)
            zeros_NG = (codes_NGg - (w_NGg - kept_NGg) / scales_NG1).mean(-1)
            mins_NG = (-zeros_NG * best.scales_NG).to(torch.float16).float()
            grid = Grid(best.scales_NG, mins_NG, self.bits)
            other_NG = self._error(w_NGg, grid)
            is_less_NG = other_NG < error_NG
            assert best.mins_NG is not None
            best = Grid(best.scales_NG, torch.where(is_less_NG, mins_NG, best.mins_NG), self.bits)
            error_NG = torch.where(is_less_NG, other_NG, error_NG)
            strength *= _GROWTH
        return best.packed(best.codes(w_NGg))

    def _error(self, w_NGg: Tensor, grid: Grid) -> Tensor:
        return (w_NGg - grid.values(grid.codes(w_NGg))).abs_().pow_(self.power).sum(-1)

    def _source(self) -> Groupwise:
        return Groupwise(bits=self.bits, group=self.group)
