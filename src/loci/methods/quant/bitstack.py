"""BitStack: a weight as a pile of one-bit blocks, as many of which are loaded as memory allows.

X. Wang et al., "BitStack: Any-Size Compression of Large Language Models in Variable Memory
Environments", 2024, arXiv:2410.23918.

The inputs of a layer differ in size by orders of magnitude, so its columns are first scaled by
s[k] = the mean over texts of the norm of input k. What is left of the scaled weight is then taken
apart again and again into signs and magnitudes, and the magnitudes, all positive, are close to a
matrix of low rank:

    R_0 = W diag(s),    S_i = sign(R_i),    |R_i| ~ A_i B_i,    R_(i+1) = R_i - S_i o (A_i B_i)

Block i stores S_i in one bit a weight and A_i, B_i in float16. All blocks of a model are sorted by
how much they help into one pile, and any first part of the pile is a model.

Differs from the paper: B_i is divided by s when it is stored, so that neither norms nor other
weights change and any layer can be scaled; rows are scaled as well, by the root of the slopes,
where those are known; factors are rounded to float16 before they are subtracted, so that later
blocks make up for it; the decomposition is randomised. The paper's rank of 16 costs 0.6 to 1.8
bits a weight in matrices a few hundred wide, so it is what fits 0.2 bits, from 4 to 16. Blocks
are sorted by estimated KL per byte instead of one perplexity run for each of them.
Not for: models whose bytes never change. At 3 bits and more a grid per group loses less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant._packed import check_matrix, check_stats
from loci.methods.quant._pile import ORDERS
from loci.methods.quant.base import Nested, Quant
from loci.methods.quant.bipolar_int import BipolarInt
from loci.nn.form import Form
from loci.nn.lowrank import low_rank
from loci.nn.planes import pack_bits
from loci.nn.residual import ResidualWeight, level_bytes, with_levels
from loci.nn.taps import ActStats

_LEAST_SCALE = 1e-3  # added to every scale, of a mean of 1, so that silent inputs keep one
_OVERHEAD_BITS = 0.2  # a weight, for the factors of one block
_RANKS = (4, 16)  # at least and at most

# Shapes: N outputs, K inputs, k rank.


@dataclass(frozen=True, kw_only=True)
class BitStack(Nested):
    """Signs and magnitudes of low rank, block by block."""

    about = About(
        name="bitstack",
        kind=Kind.QUANT,
        paper="arXiv:2410.23918",
        idea="a pile of one-bit blocks, of which as many are loaded as memory allows",
        phases=(Phase.LOAD, Phase.DECODE),
        needs=(Need.CALIBRATION,),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="rows scaled by slopes; rank by size; order by estimated KL per byte",
    )

    blocks: Annotated[int, Param(help="blocks of a weight at most", ge=1, le=16, source="§4.1")] = 8
    rank: Annotated[
        int | None, Param(help="rank of the magnitudes; nothing goes by the size", ge=1)
    ] = None

    sort: Annotated[
        str, Param(help="order of blocks: by gain, depth by depth, or random", choices=ORDERS)
    ] = ORDERS[0]

    @property
    def least_levels(self) -> int:
        return 1

    @property
    def order(self) -> str:
        return self.sort

    def table(self) -> Quant:
        return BipolarInt(bits=8, least=4, group=32, symmetric=True)

    def level_bytes(self, out: int, inner: int) -> tuple[int, ...]:
        return (level_bytes(out, inner, self._rank_of(out, inner)),) * self.blocks

    def levels(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> list[dict[str, Tensor]]:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        rank = self._rank_of(out, inner)
        stats = check_stats(stats, inner, self.about.name)
        scale_K = _relative(stats.mean_norm())
        scale_N1 = torch.ones(out, 1)
        if stats.slopes_N is not None:
            scale_N1 = _relative(stats.slopes_N.sqrt()).unsqueeze(-1)
        rest_NK = weight.detach().to(torch.float32) * scale_N1 * scale_K
        found = []
        for _ in range(self.blocks):
            is_minus_NK = rest_NK < 0
            left_Nk, right_kK = low_rank(rest_NK.abs(), rank, generator=generator)
            left_Nk = (left_Nk / scale_N1).to(torch.float16)
            right_kK = (right_kK / scale_K).to(torch.float16)
            if not (torch.isfinite(left_Nk).all() and torch.isfinite(right_kK).all()):
                raise ParameterError(
                    "weights this large have no factors in float16", value=float(weight.abs().max())
                )
            part_NK = (left_Nk.float() * scale_N1) @ (right_kK.float() * scale_K)
            rest_NK = rest_NK - torch.where(is_minus_NK, -part_NK, part_NK)
            signs_NR = pack_bits(is_minus_NK)
            found.append({"signs": signs_NR, "left": left_Nk, "right": right_kK.contiguous()})
        return found

    def first(self, levels: Sequence[Mapping[str, Tensor]], shape: tuple[int, int]) -> Form:
        return with_levels(shape, levels)

    def grow(self, form: Form, level: Mapping[str, Tensor]) -> Form:
        assert isinstance(form, ResidualWeight)
        return with_levels(form.shape, [*(held.tensors() for held in form.levels), level])

    def shrink(self, form: Form) -> Form:
        assert isinstance(form, ResidualWeight)
        return ResidualWeight(form.levels[:-1], form.shape)

    def _rank_of(self, out: int, inner: int) -> int:
        smaller = min(out, inner)
        if self.rank is None:
            low, high = _RANKS
            fitting = int(_OVERHEAD_BITS * out * inner / (16 * (out + inner)))
            return min(max(low, min(fitting, high)), smaller)
        if self.rank > smaller:
            raise ParameterError(
                f"bitstack.rank is too large for a weight {out} x {inner}",
                value=self.rank,
                allowed=f"1 to {smaller}",
            )
        return self.rank


def _relative(size: Tensor) -> Tensor:
    """Return sizes with a mean of 1, none of them 0: float16 holds what is divided by them."""
    return size / size.mean().clamp(min=1e-30) + _LEAST_SCALE
