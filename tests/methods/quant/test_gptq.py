"""GPTQ, and the fit of grids, against paper and pencil."""

import pytest
import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.methods.quant._grid import Grid, fitted
from loci.methods.quant.gptq import Gptq, compensated
from loci.methods.quant.groupwise import Groupwise
from loci.nn.taps import stats_of
from loci.testing import quant


def output_error(weight: Tensor, dense: Tensor, x: Tensor) -> float:
    return float((x @ (weight - dense).t()).norm() / (x @ weight.t()).norm())


def test_by_hand() -> None:
    # Steps of 1, weights 0.4 and 0.4 on inputs that are always equal: 0.4 rounds to 0, so the other
    # must carry 0.8 and rounds to 1. To the nearest both would be 0.
    grid = Grid(torch.ones(1, 1), None, 3)
    codes = compensated(torch.tensor([[0.4, 0.4]]), grid, torch.ones(2, 2), damping=1e-4)
    assert sorted(grid.values(codes).flatten().tolist()) == [0.0, 1.0]
    apart = compensated(torch.tensor([[0.4, 0.4]]), grid, torch.eye(2), damping=1e-4)
    assert grid.values(apart).flatten().tolist() == [0.0, 0.0]


def test_without_anything_in_common_it_is_rounding() -> None:
    # H diagonal: no column can make up for another.
    weight = quant.weight_of(16, 64)
    grid = fitted(weight.view(16, 1, 64), 3, symmetric=False)
    codes = compensated(weight, grid, torch.diag(torch.rand(64) + 0.1), damping=1e-6)
    assert torch.equal(codes, grid.codes(weight.view(16, 1, 64)))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loses_less_than_rounding(bits: int) -> None:
    weight, x = quant.weight_of(96, 192), quant.inputs_of(192, 2000)
    stats = stats_of(x, moment=True)
    ours = Gptq(bits=bits).pack_one(weight, stats=stats)
    plain = Groupwise(bits=bits, group=64).pack_one(weight)
    assert ours.nbytes == plain.nbytes
    assert output_error(weight, ours.dense(), x) < 0.75 * output_error(weight, plain.dense(), x)


def test_blocks_of_columns_do_not_show() -> None:
    # More inputs than one block of 128 columns: the same as column by column.
    weight, x = quant.weight_of(4, 192), quant.inputs_of(192, 400)
    moment = x.t() @ x / 400
    grid = fitted(weight.view(4, 3, 64), 3, symmetric=False)
    codes = compensated(weight, grid, moment, damping=0.01)
    from loci.methods.quant import gptq

    before, gptq._BLOCK = gptq._BLOCK, 192
    try:
        whole = compensated(weight, grid, moment, damping=0.01)
    finally:
        gptq._BLOCK = before
    assert (codes != whole).float().mean() < 0.01  # sums are taken in another order


def test_a_grid_is_fitted_to_what_is_worth_most() -> None:
    weight = torch.tensor([[[0.0, 1.0, 2.0, 3.3, 7.0, 0.5, 1.5, 2.5]]])
    worth = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1e-6, 1.0, 1.0, 1.0]])
    plain, aware = (fitted(weight, 2, symmetric=False, worth_Gg=given) for given in (None, worth))
    off = [
        ((grid.values(grid.codes(weight)) - weight).square() * worth).sum().item()
        for grid in (plain, aware)
    ]
    assert off[1] < 0.2 * off[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_fit_is_never_worse_than_the_whole_range(symmetric: bool) -> None:
    weight = quant.weight_of(20, 192).view(20, 3, 64)
    for bits in (2, 3, 4, 8):
        grid = fitted(weight, bits, symmetric=symmetric)
        plain = Groupwise(bits=bits, group=64, symmetric=symmetric).pack_one(weight.flatten(1))
        ours = (grid.packed(grid.codes(weight)).dense() - weight.flatten(1)).norm()
        assert ours <= (plain.dense() - weight.flatten(1)).norm() * 1.001


def test_inputs_that_are_all_alike_are_no_trouble() -> None:
    weight = quant.weight_of(8, 64)
    x = torch.ones(3, 64)  # fewer tokens than inputs, rank one
    form = Gptq(bits=3).pack_one(weight, stats=stats_of(x, moment=True))
    assert output_error(weight, form.dense(), x) < 0.05
    silent = Gptq(bits=3).pack_one(weight, stats=stats_of(torch.zeros(3, 64), moment=True))
    assert torch.isfinite(silent.dense()).all()


def test_statistics_without_moments_are_refused() -> None:
    with pytest.raises(ParameterError, match="moment=True"):
        Gptq().pack_one(quant.weight_of(4, 64), stats=stats_of(torch.ones(3, 64)))
    with pytest.raises(ParameterError, match="no scale in 16 bits"):
        fitted(torch.full((1, 1, 8), 1e30), 4, symmetric=True)
