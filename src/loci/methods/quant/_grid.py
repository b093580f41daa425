"""Grids per group fitted to what they must hold: scales and minima of least weighted error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn.packing import PackedWeight, pack_codes

STEPS = 10  # parts of the range that are tried, from the whole one down
SMALLEST = 0.4  # of the whole range
REFITS = 2  # rounds of least squares after the search

# Shapes: N outputs, G groups of a row, g inputs of a group, K = G * g inputs.


@dataclass(frozen=True)
class Grid:
    """Scales float32 [N, G], as float16 holds them, and minima; None for a symmetric grid."""

    scales_NG: Tensor
    mins_NG: Tensor | None
    bits: int

    def codes(self, weight_NGg: Tensor) -> Tensor:
        """Return the nearest codes as float32 [N, G, g]."""
        divisor_NG1 = torch.where(self.scales_NG == 0, 1.0, self.scales_NG).unsqueeze(-1)
        low_NG = self.low()
        codes = ((weight_NGg - low_NG.unsqueeze(-1)) / divisor_NG1).round_()
        return codes.clamp_(0, 2**self.bits - 1)

    def values(self, codes_NGg: Tensor) -> Tensor:
        """Return what codes stand for."""
        return codes_NGg * self.scales_NG.unsqueeze(-1) + self.low().unsqueeze(-1)

    def low(self) -> Tensor:
        """Return the value of code 0, float32 [N, G]."""
        if self.mins_NG is None:
            return -(2 ** (self.bits - 1)) * self.scales_NG
        return self.mins_NG

    def packed(self, codes_NGg: Tensor) -> PackedWeight:
        """Return codes on this grid as a packed weight."""
        out, groups, group = codes_NGg.shape
        codes_NK = codes_NGg.reshape(out, -1).to(torch.uint8)
        return PackedWeight(
            pack_codes(codes_NK, self.bits).contiguous(),
            self.scales_NG.to(torch.float16),
            None if self.mins_NG is None else self.mins_NG.to(torch.float16),
            self.bits,
            group,
            (out, groups * group),
        )


def fitted(
    weight_NGg: Tensor, bits: int, *, symmetric: bool, worth_Gg: Tensor | None = None
) -> Grid:
    """Return the grid of every group with the least error, weighted by what inputs are worth.

    The whole range and parts of it are tried, cut at one end or at both; then scale and minimum are
    refitted to the codes by least squares, as long as that helps. Everything is rounded to float16
    as it is stored before it is judged.

    Args:
        worth_Gg: weight of each input's error; None weighs all alike.

    Raises:
        ParameterError: if a scale does not fit float16.
    """
    worth_Gg = torch.ones(weight_NGg.shape[1:]) if worth_Gg is None else worth_Gg
    tried = _grids(*torch.aminmax(weight_NGg, dim=-1), bits, symmetric)
    best = next(tried)
    if not torch.isfinite(best.scales_NG).all() or not torch.isfinite(best.low()).all():
        raise ParameterError(
            "weights this large have no scale in 16 bits", value=float(weight_NGg.abs().max())
        )
    error_NG = _error(weight_NGg, best, worth_Gg)
    for other in tried:
        best, error_NG = _better(weight_NGg, worth_Gg, best, error_NG, other)
    for _ in range(REFITS):
        again = _refit(weight_NGg, best, worth_Gg)
        best, error_NG = _better(weight_NGg, worth_Gg, best, error_NG, again)
    return best


def _grids(low_NG: Tensor, high_NG: Tensor, bits: int, symmetric: bool) -> Iterator[Grid]:
    """Yield the grid of the whole range, then those of parts of it."""
    shares = torch.linspace(1.0, SMALLEST, STEPS).tolist()
    if symmetric:
        half = 2 ** (bits - 1)
        extreme_NG = torch.where(-low_NG > high_NG, low_NG, high_NG)
        for share in (shares[0], half / (half - 1), *shares[1:]):  # the second: both signs alike
            yield Grid(_half(extreme_NG * share / -half), None, bits)
        return
    width_NG = high_NG - low_NG
    for share in shares:
        cut_NG = width_NG * (1 - share)
        ends = ((low_NG, high_NG - cut_NG), (low_NG + cut_NG, high_NG))
        both = (low_NG + cut_NG / 2, high_NG - cut_NG / 2)
        for bottom_NG, top_NG in (both, *(ends if share < 1 else ())):
            mins_NG = _half(bottom_NG)
            scales_NG = _half((top_NG - mins_NG).clamp(min=0) / (2**bits - 1))
            yield Grid(scales_NG, mins_NG, bits)


def _refit(weight_NGg: Tensor, grid: Grid, worth_Gg: Tensor) -> Grid:
    """Return scale and minimum of least error for the codes as they are."""
    codes_NGg = grid.codes(weight_NGg)
    if grid.mins_NG is None:
        codes_NGg = codes_NGg - 2 ** (grid.bits - 1)
        over_NG = (worth_Gg * codes_NGg * weight_NGg).sum(-1)
        under_NG = (worth_Gg * codes_NGg.square()).sum(-1)
        scales_NG = torch.where(under_NG == 0, grid.scales_NG, over_NG / under_NG)
        return Grid(_half(scales_NG), None, grid.bits)
    total_G = worth_Gg.sum(-1).clamp(min=1e-30)
    mean_q_NG = (worth_Gg * codes_NGg).sum(-1) / total_G
    mean_w_NG = (worth_Gg * weight_NGg).sum(-1) / total_G
    centred_NGg = codes_NGg - mean_q_NG.unsqueeze(-1)
    over_NG = (worth_Gg * centred_NGg * weight_NGg).sum(-1)
    under_NG = (worth_Gg * centred_NGg.square()).sum(-1)
    scales_NG = torch.where(under_NG == 0, grid.scales_NG, over_NG / under_NG)
    scales_NG = _half(scales_NG.clamp(min=0))
    return Grid(scales_NG, _half(mean_w_NG - scales_NG * mean_q_NG), grid.bits)


def _better(
    weight_NGg: Tensor, worth_Gg: Tensor, best: Grid, error_NG: Tensor, other: Grid
) -> tuple[Grid, Tensor]:
    """Return, group by group, the grid with less error, and that error."""
    other_NG = _error(weight_NGg, other, worth_Gg)
    is_less_NG = other_NG < error_NG
    mins_NG = None
    if best.mins_NG is not None and other.mins_NG is not None:
        mins_NG = torch.where(is_less_NG, other.mins_NG, best.mins_NG)
    scales_NG = torch.where(is_less_NG, other.scales_NG, best.scales_NG)
    return Grid(scales_NG, mins_NG, best.bits), torch.where(is_less_NG, other_NG, error_NG)


def _error(weight_NGg: Tensor, grid: Grid, worth_Gg: Tensor) -> Tensor:
    change_NGg = grid.values(grid.codes(weight_NGg)).sub_(weight_NGg).square_()
    error_NG = change_NGg.mul_(worth_Gg).sum(-1)
    return torch.where(torch.isfinite(error_NG), error_NG, torch.inf)


def _half(values: Tensor) -> Tensor:
    """Return values as float16 holds them, in float32."""
    return values.to(torch.float16).to(torch.float32)
