"""Any-Precision: a few bits with error compensation, and every further bit again with it.

Y. Park et al., "Any-Precision LLM: Low-Cost Deployment of Multiple, Different-Sized LLMs", 2024,
arXiv:2402.10517: a seed model of the fewest bits is made as well as it can be, and further bits are
appended one at a time, each splitting every value of the coarser grid in two. One stored model then
serves every width, as with `bipolar_int`, but its coarse forms are as good as if made alone.

The seed is rounded by `gptq` on a grid of `least` bits. With step s and what it leaves, R, a
further bit b moves each weight by half of the finer step,

    Q <- Q + (b - 1/2) s / 2

and the bits are chosen column by column with the same compensation, inputs that have no bit yet
making up for the error of those that have. Values split evenly, so a bit costs one bit and no more.
Compensation carries a weight away from its own value, and later bits can only take so much of that
back; so the first bits use `strength` of it, on the grid that fits two bits more than the seed.

Differs from the paper: its seed has free values per row (SqueezeLLM) and its splits are clusters;
ours are on even grids per group, which existing kernels multiply, and are compensated.
Not for: less than 2.3 bits a weight, where `bitstack` goes further down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant._grid import Grid, fitted
from loci.methods.quant._packed import check_matrix, check_stats
from loci.methods.quant.base import Nested, Quant
from loci.methods.quant.bipolar_int import BipolarInt
from loci.methods.quant.gptq import compensated, moment_of
from loci.nn.form import Form
from loci.nn.planes import PlanesWeight, pack_bits, to_planes
from loci.nn.taps import ActStats

# Shapes: N outputs, K inputs, G groups of a row, g inputs of a group.


@dataclass(frozen=True, kw_only=True)
class AnyPrecision(Nested):
    """Compensated planes on nested grids."""

    about = About(
        name="any_precision",
        kind=Kind.QUANT,
        paper="arXiv:2402.10517",
        idea="one model for every width, whose few-bit forms are as good as if made alone",
        phases=(Phase.LOAD, Phase.DECODE),
        needs=(Need.CALIBRATION, Need.MOMENT),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="even grids, error compensation for every bit",
    )

    bits: Annotated[int, Param(help="planes of a weight", unit="bits", ge=2, le=8)] = 6
    least: Annotated[int, Param(help="planes of the seed", ge=2, le=8, source="3")] = 2
    group: Annotated[
        int | None, Param(help="inputs that share a scale; nothing is the whole row", ge=8)
    ] = 64
    damping: Annotated[float, Param(help="added to H, of its mean diagonal", ge=1e-6, le=1)] = 0.01
    strength: Annotated[
        float, Param(help="share of the compensation that the first bits use", ge=0, le=1)
    ] = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._planes()

    @property
    def least_levels(self) -> int:
        return min(self.least, self.bits)

    def table(self) -> Quant:
        return BipolarInt(bits=8, least=4, group=32, symmetric=True)

    def level_bytes(self, out: int, inner: int) -> tuple[int, ...]:
        return self._planes().level_bytes(out, inner)

    def levels(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> list[dict[str, Tensor]]:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        self.level_bytes(out, inner)
        moment_KK = moment_of(check_stats(stats, inner, self.about.name), self.about.name)
        dense_NK = weight.detach().to(torch.float32)
        grouped_NGg = dense_NK.view(out, -1, self.group or inner)
        worth_Gg = (moment_KK.diagonal().clamp(min=0) + 1e-12).view(grouped_NGg.shape[1:])
        fit = fitted(
            grouped_NGg, min(self.least_levels + 2, self.bits), symmetric=False, worth_Gg=worth_Gg
        )
        grid, scales_NG, mins_NG = self._nested(fit)
        codes_NGg = compensated(
            dense_NK, grid, moment_KK, self.damping, strength=self._strength(grid.bits)
        )
        planes = list(to_planes(codes_NGg.reshape(out, inner).to(torch.uint8), grid.bits))
        held_NGg = grid.values(codes_NGg)
        step_NG = grid.scales_NG
        for width in range(grid.bits + 1, self.bits + 1):
            step_NG = step_NG / 2
            rest_NK = (grouped_NGg - held_NGg).view(out, inner)
            halves = Grid(step_NG, -step_NG / 2, 1)
            bits_NGg = compensated(
                rest_NK, halves, moment_KK, self.damping, strength=self._strength(width)
            )
            held_NGg = held_NGg + halves.values(bits_NGg)
            planes.append(pack_bits(bits_NGg.reshape(out, inner) > 0))
        found = [{"plane": plane} for plane in planes]
        found[0] |= {"scales": scales_NG, "mins": mins_NG}
        return found

    def first(self, levels: Sequence[Mapping[str, Tensor]], shape: tuple[int, int]) -> Form:
        return self._planes().first(levels, shape)

    def grow(self, form: Form, level: Mapping[str, Tensor]) -> Form:
        assert isinstance(form, PlanesWeight)
        return form.with_plane(level["plane"])

    def shrink(self, form: Form) -> Form:
        assert isinstance(form, PlanesWeight)
        return form.without_plane()

    def _strength(self, width: int) -> float:
        """Return how much compensation the bit at this width uses; none is saved for the last."""
        is_early = width <= self.least_levels + 1 and width < self.bits
        return self.strength if is_early else 1.0

    def _nested(self, fit: Grid) -> tuple[Grid, Tensor, Tensor]:
        """Return the seed's grid as the stored numbers have it, and those: the finest step and
        minimum of all planes in float16, from which every coarser grid follows exactly.

        Args:
            fit: a grid of some bits; the seed's covers the same range.
        """
        assert fit.mins_NG is not None
        bits = self.least_levels
        scales_NG = (fit.scales_NG / 2 ** (self.bits - fit.bits)).to(torch.float16)
        steps_NG = scales_NG.float() * 2 ** (self.bits - bits)
        centre_NG = fit.mins_NG + fit.scales_NG * ((2**fit.bits - 1) / 2)
        reach_NG = scales_NG.float() * ((2**self.bits - 1) / 2)
        mins_NG = (centre_NG - reach_NG).to(torch.float16)
        if not (torch.isfinite(steps_NG.to(torch.float16)).all() and torch.isfinite(mins_NG).all()):
            raise ParameterError(
                "weights this large have no scale in 16 bits", value=float(fit.mins_NG.abs().max())
            )
        centre_NG = mins_NG.float() + reach_NG
        return Grid(steps_NG, centre_NG - steps_NG * ((2**bits - 1) / 2), bits), scales_NG, mins_NG

    def _planes(self) -> BipolarInt:
        return BipolarInt(bits=self.bits, least=self.least, group=self.group)
