"""AWQ, HQQ and block floating point against paper and pencil."""

import pytest
import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.methods.quant.awq import Awq
from loci.methods.quant.bfp_weights import BfpWeights
from loci.methods.quant.groupwise import Groupwise
from loci.methods.quant.hqq import Hqq
from loci.nn import native
from loci.nn.adjusted import AdjustedWeight
from loci.nn.bfp_weight import BfpWeight
from loci.nn.taps import stats_of
from loci.testing import quant


def output_error(weight: Tensor, dense: Tensor, x: Tensor) -> float:
    return float((x @ (weight - dense).t()).norm() / (x @ weight.t()).norm())


def test_awq_scales_the_column_of_a_large_input_up() -> None:
    weight, x = quant.weight_of(32, 64), torch.randn(500, 64)
    x[:, 5] *= 50
    form = Awq(bits=3).pack_one(weight, stats=stats_of(x, moment=True))
    assert isinstance(form, AdjustedWeight) and form.scale is not None
    assert form.scale.argmin() == 5  # its input is scaled down the most
    plain = Groupwise(bits=3, group=64).pack_one(weight)
    assert output_error(weight, form.dense(), x) < 0.5 * output_error(weight, plain.dense(), x)


def test_awq_leaves_inputs_of_one_size_alone() -> None:
    weight = quant.weight_of(32, 64)
    x = torch.where(torch.randn(500, 64) < 0, -1.0, 1.0)
    form = Awq(bits=4).pack_one(weight, stats=stats_of(x, moment=True))
    assert isinstance(form, AdjustedWeight) and form.scale is not None
    torch.testing.assert_close(form.scale.float(), torch.ones(64), rtol=2e-3, atol=0)


def test_hqq_shifts_the_zero_so_that_most_errors_are_small() -> None:
    weight = quant.weight_of(64, 192)
    ours, plain = Hqq(bits=3).pack_one(weight), Groupwise(bits=3, group=64).pack_one(weight)
    assert ours.nbytes == plain.nbytes
    sums = [float((form.dense() - weight).abs().pow(0.7).sum()) for form in (ours, plain)]
    assert sums[0] < 0.98 * sums[1]


def test_hqq_leaves_a_grid_that_fits_alone() -> None:
    weight = torch.arange(64.0).remainder(8).view(1, 64)
    assert torch.equal(Hqq(bits=3).pack_one(weight).dense(), weight)


def test_bfp_by_hand() -> None:
    # The largest, 5, has exponent 2: with 4 bits the step is 2^(2 - 2) = 1, codes are w + 8.
    weight = torch.tensor([[5.0, 1.0, -2.0, 0.4, 0.0, -5.0, 3.0, 2.0]])
    form = BfpWeights(bits=4, block=8).pack_one(weight)
    assert isinstance(form, BfpWeight) and form.exponents.tolist() == [[127 + 2]]
    assert form.dense().tolist() == [[5.0, 1.0, -2.0, 0.0, 0.0, -5.0, 3.0, 2.0]]
    assert form.nbytes == 4 + 1


def test_bfp_cuts_the_largest_weight_where_that_is_worth_it() -> None:
    # 4.1 alone needs exponent 2; with exponent 1 it is cut to 3.5 and all others are exact.
    weight = torch.tensor([[4.1, 0.5, 1.5, 2.5, 0.5, 1.5, 2.5, 3.5]])
    form = BfpWeights(bits=4, block=8).pack_one(weight)
    assert isinstance(form, BfpWeight) and form.exponents.tolist() == [[127 + 1]]
    assert form.dense().tolist() == [[3.5, 0.5, 1.5, 2.5, 0.5, 1.5, 2.5, 3.5]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_bfp_kernel_and_plain_torch_agree(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quant.weight_of(9, 192) * torch.logspace(-40, 3, 9)[:, None]
    form = BfpWeights(bits=bits).pack_one(weight)
    found = form.dense()
    monkeypatch.setattr(native, "available", lambda: False)
    assert torch.equal(form.dense(), found)


def test_bfp_refuses_a_block_that_does_not_divide() -> None:
    with pytest.raises(ParameterError, match=r"row of 72 weights.*\n.*bfp_weights\(block=8\)"):
        BfpWeights().pack_one(torch.ones(2, 72))
