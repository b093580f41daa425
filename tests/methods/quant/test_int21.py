"""INT2.1's correction against paper and pencil."""

import pytest
import torch
from torch import Tensor

from loci.methods.quant.gptq import Gptq
from loci.methods.quant.int21 import Int21
from loci.nn.adjusted import AdjustedWeight
from loci.nn.taps import stats_of
from loci.testing import quant


def output_error(weight: Tensor, dense: Tensor, x: Tensor) -> float:
    return float((x @ (weight - dense).t()).norm() / (x @ weight.t()).norm())


def test_a_correction_of_full_rank_gives_everything_back() -> None:
    weight, x = quant.weight_of(16, 64), quant.inputs_of(64)
    form = Int21(bits=2, rank=16).pack_one(weight, stats=stats_of(x, moment=True))
    assert output_error(weight, form.dense(), x) < 5e-3  # the factors are in half precision


@pytest.mark.parametrize("bits", [2, 3])
def test_the_start_already_loses_less_than_the_bytes_would_cost(bits: int) -> None:
    weight, x = quant.weight_of(96, 192), quant.inputs_of(192, 2000)
    stats = stats_of(x, moment=True)
    bare = Gptq(bits=bits).pack_one(weight, stats=stats)
    ours = Int21(bits=bits, rank=8).pack_one(weight, stats=stats)
    assert isinstance(ours, AdjustedWeight)
    torch.testing.assert_close(ours.base.dense(), bare.dense())
    assert output_error(weight, ours.dense(), x) < 0.9 * output_error(weight, bare.dense(), x)


def test_the_error_of_the_output_is_cut_not_that_of_the_weight() -> None:
    # A few inputs carry everything: the correction serves them, and the weight may be far off.
    weight, x = quant.weight_of(32, 64), quant.inputs_of(64, 500) * 0.01
    x[:, :4] *= 1000
    stats = stats_of(x, moment=True)
    ours = Int21(bits=2, rank=4, compensate=False).pack_one(weight, stats=stats)
    assert isinstance(ours, AdjustedWeight)
    blind = stats_of(torch.eye(64), moment=True)
    other = Int21(bits=2, rank=4, compensate=False).pack_one(weight, stats=blind)
    assert output_error(weight, ours.dense(), x) < 0.1 * output_error(weight, other.dense(), x)
    assert (weight - ours.dense()).norm() > (weight - other.dense()).norm()
