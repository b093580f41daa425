"""COMET: four bits for weights and inputs, eight for the few blocks that hold the outliers.

L. Liu et al., "COMET: Towards Practical W4A4KV4 LLMs Serving", 2024, arXiv:2410.12168; its
fine-grained mixed precision (FMPQ). The 4-bit KV cache is `comet_kv` of kind kv.

Under one in a hundred channels is far larger than the others, always the same ones. Channels are
put in an order by their largest value, so that those stand together, and the columns of the weight
with them, which changes no product. Of the blocks of channels that result, the first few get eight
bits and all others four; weights have four everywhere. A block's product is a sum of small
integers:

    y[m, n] = sum_b sx[m, b] sw[n, b] (Qx[m, b] . Qw[n, b])  (+ a term for the minimum of the grid)

Differs from the paper: a channel is scored by its largest value in calibration, an eight-bit block
must stand out by `outlier` times the median score, and blocks are of 64 channels, which divide
widths that 128 do not (all left open there, or bound to its hardware). Scales are dynamic for each
token and block; weights are rounded with error compensation, where the paper trains them.
Not for: speed here. Integer products of 4 and 8 bits take the same time on this processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.methods.quant._packed import check_matrix, check_stats
from loci.methods.quant.base import Quant
from loci.methods.quant.gptq import Gptq
from loci.methods.quant.groupwise import Groupwise
from loci.nn.adjusted import AdjustedWeight
from loci.nn.form import Form
from loci.nn.taps import ActStats

_NARROW, _WIDE = 4, 8  # bits of a block of inputs

# Shapes: N outputs, K inputs, G blocks of a row.


@dataclass(frozen=True, kw_only=True)
class Comet(Quant):
    """Blocks of sorted channels in four or eight bits."""

    about = About(
        name="comet",
        kind=Kind.QUANT,
        paper="arXiv:2410.12168",
        idea="outlier channels are sorted into a few 8-bit blocks; everything else takes 4 bits",
        phases=(Phase.LOAD, Phase.PREFILL, Phase.DECODE),
        needs=(Need.CALIBRATION, Need.MOMENT),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="scores of channels, how many blocks are wide, scales, rounding of weights",
    )

    block: Annotated[int, Param(help="channels of a block", ge=8, source="128")] = 64
    wide: Annotated[
        float, Param(help="share of blocks that may have 8 bits", ge=0, le=1, source="under 20 %")
    ] = 0.15
    outlier: Annotated[
        float, Param(help="times the median score that makes a block wide", ge=1)
    ] = 4.0
    permute: Annotated[bool, Param(help="sort the channels; without, for comparison")] = True
    compensate: Annotated[
        bool, Param(help="round weights with error compensation (gptq), else to the nearest")
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rounding()

    def packed_bytes(self, out: int, inner: int) -> int:
        order = 4 * inner if self.permute else 0
        return self._rounding().packed_bytes(out, inner) + order + inner // self.block

    def table(self) -> Quant:
        return Groupwise(bits=8, group=32, symmetric=True)

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        self.packed_bytes(out, inner)
        stats = check_stats(stats, inner, self.about.name)
        perm_K = torch.arange(inner)
        if self.permute:
            perm_K = stats.largest_K.argsort(descending=True, stable=True)
        sorted_stats = replace(
            stats,
            squares_K=stats.squares_K[perm_K],
            largest_K=stats.largest_K[perm_K],
            moment_KK=None if stats.moment_KK is None else stats.moment_KK[perm_K][:, perm_K],
        )
        base = self._rounding().pack_one(weight[:, perm_K], stats=sorted_stats)
        return AdjustedWeight(
            base,
            perm=perm_K.to(torch.int32) if self.permute else None,
            bits=self.widths(sorted_stats.largest_K),
        )

    def widths(self, largest_K: Tensor) -> Tensor:
        """Return the bits of each block, uint8 [G], from the scores of channels in their order."""
        scores_G = largest_K.view(-1, self.block).amax(-1)
        count = math.floor(self.wide * scores_G.numel() + 0.5)
        bits_G = torch.full((scores_G.numel(),), _NARROW, dtype=torch.uint8)
        stands_out_G = scores_G > self.outlier * largest_K.median()
        for block in scores_G.argsort(descending=True, stable=True)[:count].tolist():
            if stands_out_G[block]:
                bits_G[block] = _WIDE
        return bits_G

    def _rounding(self) -> Quant:
        if self.compensate:
            return Gptq(bits=4, group=self.block)
        return Groupwise(bits=4, group=self.block)
