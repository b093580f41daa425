"""AWQ: scale the inputs that matter up before rounding, and their activations down.

J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
2023, arXiv:2306.00978.

A few inputs are far larger than the others, and the weights on them decide the output. Multiplying
their columns by s > 1 and the inputs by 1 / s changes nothing but the rounding error, which shrinks
for them. How much is searched per layer:

    s[k] = (mean |x[k]|)^a, a from 0 to 1 in steps,   least tr(D H D^T) of the rounded weight

Differs from the paper: 1 / s is kept with the weight and applied to the input, so that no norm is
changed and every layer can be scaled; ranges are cut by the same fit of grids as in `gptq`, after
the exponent was chosen.
Not for: the fewest bytes at 2 and 3 bits; error compensation does better there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.methods.quant._grid import fitted
from loci.methods.quant._packed import check_matrix, check_stats
from loci.methods.quant.base import Quant
from loci.methods.quant.gptq import moment_of
from loci.methods.quant.groupwise import Groupwise
from loci.nn.adjusted import AdjustedWeight
from loci.nn.form import Form
from loci.nn.taps import ActStats

_LEAST = 1e-4  # of the mean: silent inputs are not scaled without end

# Shapes: N outputs, K inputs.


@dataclass(frozen=True, kw_only=True)
class Awq(Quant):
    """Rounding after scaling by what flows in."""

    about = About(
        name="awq",
        kind=Kind.QUANT,
        paper="arXiv:2306.00978",
        idea="weights on large inputs are scaled up before rounding",
        phases=(Phase.LOAD,),
        needs=(Need.CALIBRATION, Need.MOMENT),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="scales stay with the weight; ranges fitted by weighted error",
    )

    bits: Annotated[int, Param(help="width of a code", unit="bits", ge=2, le=8)] = 4
    group: Annotated[
        int | None, Param(help="inputs that share a scale; nothing is the whole row", ge=8)
    ] = 64
    steps: Annotated[int, Param(help="exponents that are tried", ge=2, le=40)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._grid()

    def packed_bytes(self, out: int, inner: int) -> int:
        return self._grid().packed_bytes(out, inner) + 2 * inner

    def table(self) -> Quant:
        return Groupwise(bits=8, group=32, symmetric=True)

    def stand_in(self) -> Quant:
        return self._grid()

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        self.packed_bytes(out, inner)
        stats = check_stats(stats, inner, self.about.name)
        moment_KK = moment_of(stats, self.about.name)
        dense_NK = weight.detach().to(torch.float32)
        sizes_K = stats.mean_absolute()
        sizes_K = sizes_K / sizes_K.mean().clamp(min=1e-30) + _LEAST
        best, least = torch.ones(inner), float("inf")
        for step in range(self.steps + 1):
            scale_K = sizes_K ** (step / self.steps)
            scale_K = scale_K / (scale_K.max() * scale_K.min()).sqrt()
            change_NK = self._grid().pack_one(dense_NK * scale_K).dense() / scale_K - dense_NK
            error = float(((change_NK @ moment_KK) * change_NK).sum())
            if error < least:
                best, least = scale_K, error
        inverse_K = (1 / best).to(torch.float16)
        scaled_NK = dense_NK / inverse_K.float()
        group = self.group or inner
        worth_K = moment_KK.diagonal() * inverse_K.float().square() + 1e-12
        grouped_NGg = scaled_NK.view(out, -1, group)
        grid = fitted(grouped_NGg, self.bits, symmetric=False, worth_Gg=worth_K.view(-1, group))
        return AdjustedWeight(grid.packed(grid.codes(grouped_NGg)), scale=inverse_K)

    def _grid(self) -> Groupwise:
        return Groupwise(bits=self.bits, group=self.group)
