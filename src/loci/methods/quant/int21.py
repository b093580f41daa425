"""INT2.1: two or three bits, and a correction of low rank for what they lose.

Y. Chai et al., "INT2.1: Towards Fine-Tunable Quantized Large Language Models with Error Correction
through Low-Rank Adaptation", 2023, arXiv:2306.08162.

Rounding to so few bits leaves an error that is far from noise: E = W - Q(W). Two thin matrices are
added to the rounded weight and trained until the model imitates the original,

    y = Q(W) x + L (R x),    loss = KL(original || corrected) + 0.1 CE,  each a mean over tokens

They start where the error of the output on real inputs is least: with H = C C^T the second moment
of the inputs, E C ~ U S V^T cut off at rank r,

    L = U sqrt(S),   R = sqrt(S) V^T C^-1

This file rounds and starts; `correct` of `run` trains.

Differs from the paper: its start is random for R and 0 for L; ours loses a small part of that
before any training. Weights are rounded by `gptq` here as there, with grids fitted first. The paper
sums the KL over tokens, which amounts to the same weights for 2,048 tokens.
Not for: merging the correction into the weights, which would round it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.methods.quant._packed import check_matrix, check_stats
from loci.methods.quant.base import Quant
from loci.methods.quant.gptq import Gptq, moment_of
from loci.methods.quant.groupwise import Groupwise
from loci.nn.adjusted import AdjustedWeight
from loci.nn.form import Form
from loci.nn.lowrank import low_rank
from loci.nn.taps import ActStats

_DAMPING = 1e-3  # of the mean of H, so that its root can be undone

# Shapes: N outputs, K inputs, r rank.


@dataclass(frozen=True, kw_only=True)
class Int21(Quant):
    """Few bits with a correction of low rank."""

    about = About(
        name="int21",
        kind=Kind.QUANT,
        paper="arXiv:2306.08162",
        idea="what 2 or 3 bits lose is given back by a trained correction of low rank",
        phases=(Phase.LOAD,),
        needs=(Need.CALIBRATION, Need.MOMENT),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="the start by decomposing the output error",
    )

    bits: Annotated[int, Param(help="width of a code", unit="bits", ge=2, le=8)] = 2
    group: Annotated[
        int | None, Param(help="inputs that share a scale; nothing is the whole row", ge=8)
    ] = 64
    rank: Annotated[
        int, Param(help="rank of the correction, in matrices so large", ge=1, le=256)
    ] = 8
    compensate: Annotated[
        bool, Param(help="round with error compensation (gptq), else to the nearest")
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rounding()

    def packed_bytes(self, out: int, inner: int) -> int:
        rank = min(self.rank, out, inner)
        return self._rounding().packed_bytes(out, inner) + 2 * rank * (out + inner)

    def table(self) -> Quant:
        return Groupwise(bits=8, group=32, symmetric=True)

    def stand_in(self) -> Quant:
        return self._rounding().stand_in()

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        moment_KK = moment_of(check_stats(stats, inner, self.about.name), self.about.name)
        base = self._rounding().pack_one(weight, stats=stats)
        moment_KK = moment_KK + _DAMPING * (float(moment_KK.diagonal().mean()) or 1.0) * torch.eye(
            inner
        )
        root_KK = torch.linalg.cholesky(moment_KK)
        error_NK = weight.detach().to(torch.float32) - base.dense()
        left_Nr, seen_rK = low_rank(
            error_NK @ root_KK, min(self.rank, out, inner), generator=generator
        )
        right_rK = torch.linalg.solve_triangular(root_KK, seen_rK, upper=False, left=False)
        return AdjustedWeight(
            base,
            left=left_Nr.to(torch.float16).contiguous(),
            right=right_rK.to(torch.float16).contiguous(),
        )

    def _rounding(self) -> Quant:
        if self.compensate:
            return Gptq(bits=self.bits, group=self.group)
        return Groupwise(bits=self.bits, group=self.group)
