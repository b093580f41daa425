"""GPTQ: round one input after the other, and let those to come make up for the error.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, arXiv:2210.17323.

What counts is not the error of a weight but that of the layer's output on real inputs,
tr(D H D^T) with H the second moment of the inputs. After column k is rounded, the columns that are
not rounded yet take the change that keeps the output closest:

    W[:, j] -= (w[:, k] - q[:, k]) / U[k, k] * U[k, j],    U^T U = H^-1, U upper triangular

Columns with large inputs go first (`act-order` of the authors' code), while all errors can still be
made up for.

Differs from the paper: grids are fitted before the first column is rounded, by least error weighted
with the inputs, so that the order of columns needs no place in the stored form, which is that of
plain rounding.
Not for: a model whose calibration text has nothing of what it will be used on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant._grid import Grid, fitted
from loci.methods.quant._packed import check_matrix, check_stats
from loci.methods.quant.base import Quant
from loci.methods.quant.groupwise import Groupwise
from loci.nn.form import Form
from loci.nn.taps import ActStats

_BLOCK = 128  # columns whose errors reach the rest of the row together

# Shapes: N outputs, K inputs, G groups of a row, g inputs of a group, b columns of a block.


@dataclass(frozen=True, kw_only=True)
class Gptq(Quant):
    """Rounding with error compensation, on a grid per group."""

    about = About(
        name="gptq",
        kind=Kind.QUANT,
        paper="arXiv:2210.17323",
        idea="inputs that are not rounded yet make up for the error of those that are",
        phases=(Phase.LOAD,),
        needs=(Need.CALIBRATION, Need.MOMENT),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="grids fitted beforehand, weighted by inputs",
    )

    bits: Annotated[int, Param(help="width of a code", unit="bits", ge=2, le=8)] = 4
    group: Annotated[
        int | None, Param(help="inputs that share a scale; nothing is the whole row", ge=8)
    ] = 64
    symmetric: Annotated[bool, Param(help="no minimum, the grid is centred on zero")] = False
    damping: Annotated[
        float, Param(help="added to H, of its mean diagonal", ge=1e-6, le=1, source="section 3.3")
    ] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._grid()

    def packed_bytes(self, out: int, inner: int) -> int:
        return self._grid().packed_bytes(out, inner)

    def table(self) -> Quant:
        return Groupwise(bits=8, group=32, symmetric=True)

    def stand_in(self) -> Quant:
        return self._grid()

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        self.packed_bytes(out, inner)  # refuses a group that does not divide
        moment_KK = moment_of(check_stats(stats, inner, self.about.name), self.about.name)
        dense_NK = weight.detach().to(torch.float32)
        group = self.group or inner
        worth_K = moment_KK.diagonal().clamp(min=0) + 1e-12
        grid = fitted(
            dense_NK.view(out, -1, group),
            self.bits,
            symmetric=self.symmetric,
            worth_Gg=worth_K.view(-1, group),
        )
        return grid.packed(compensated(dense_NK, grid, moment_KK, self.damping))

    def _grid(self) -> Groupwise:
        return Groupwise(bits=self.bits, group=self.group, symmetric=self.symmetric)


def compensated(
    weight_NK: Tensor, grid: Grid, moment_KK: Tensor, damping: float, *, strength: float = 1.0
) -> Tensor:
    """Return codes float32 [N, G, g] on a grid, later columns making up for earlier ones.

    Args:
        strength: how much of what would keep the output closest they take; less leaves them nearer
            to what they were.
    """
    out, inner = weight_NK.shape
    group = inner // grid.scales_NG.shape[1]
    order_K = moment_KK.diagonal().argsort(descending=True)
    upper_KK = _inverse_root(moment_KK[order_K][:, order_K], damping)
    rest_NK = weight_NK[:, order_K].clone()
    groups_K = order_K // group
    scales_NK, low_NK = grid.scales_NG[:, groups_K], grid.low()[:, groups_K]
    divisor_NK = torch.where(scales_NK == 0, 1.0, scales_NK)
    codes_NK = torch.empty_like(rest_NK)
    most = 2**grid.bits - 1
    for first in range(0, inner, _BLOCK):
        last = min(first + _BLOCK, inner)
        errors_Nb = torch.empty(out, last - first)
        for k in range(first, last):
            column_N = rest_NK[:, k]
            codes_N = ((column_N - low_NK[:, k]) / divisor_NK[:, k]).round_().clamp_(0, most)
            codes_NK[:, k] = codes_N
            error_N = column_N - (codes_N * scales_NK[:, k] + low_NK[:, k])
            error_N *= strength / upper_KK[k, k]
            errors_Nb[:, k - first] = error_N
            rest_NK[:, k:last] -= torch.outer(error_N, upper_KK[k, k:last])
        rest_NK[:, last:] -= errors_Nb @ upper_KK[first:last, last:]
    found_NK = torch.empty_like(codes_NK)
    found_NK[:, order_K] = codes_NK
    return found_NK.view(out, -1, group)


def moment_of(stats: ActStats, name: str) -> Tensor:
    """Return the mean of x x^T, [K, K].

    Raises:
        ParameterError: if the statistics were collected without it.
    """
    if stats.moment_KK is None:
        raise ParameterError(
            f"{name} needs how inputs vary together, and these statistics do not have it",
            way_out="collect them with moment=True",
        )
    return stats.moment_KK / stats.tokens


def _inverse_root(moment_KK: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with U^T U = (H + damping)^-1; more is added where it must."""
    mean = float(moment_KK.diagonal().mean()) or 1.0
    eye_KK = torch.eye(moment_KK.shape[0])
    for _ in range(10):
        damped = moment_KK + damping * mean * eye_KK
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10
    raise ParameterError("the inputs of a layer are too much alike to be told apart", value=mean)
