"""COMET's mixed precision against paper and pencil."""

from dataclasses import replace

import torch
from torch import Tensor

from loci.methods.quant.comet import Comet
from loci.nn.adjusted import AdjustedWeight
from loci.nn.packed_linear import matmul
from loci.nn.taps import stats_of
from loci.testing import quant

OUTLIERS = (3, 40, 77, 100, 150)  # spread over blocks of 32


def inputs(tokens: int = 400) -> Tensor:
    x = torch.randn(tokens, 192, generator=torch.Generator().manual_seed(0))
    x[:, OUTLIERS] *= 60
    return x


def packed(method: Comet, weight: Tensor, x: Tensor) -> AdjustedWeight:
    form = method.pack_one(weight, stats=stats_of(x, moment=True))
    assert isinstance(form, AdjustedWeight) and form.bits is not None
    return form


def error(form: AdjustedWeight, weight: Tensor, x: Tensor) -> float:
    exact = x @ weight.t()
    return float((matmul(x, form) - exact).norm() / exact.norm())


def test_outliers_are_sorted_into_the_first_block_which_alone_is_wide() -> None:
    form = packed(Comet(block=32), quant.weight_of(24, 192), inputs())
    assert form.perm is not None and set(form.perm[:5].tolist()) == set(OUTLIERS)
    assert form.bits.tolist() == [8, 4, 4, 4, 4, 4]


def test_the_order_of_channels_changes_no_product() -> None:
    weight, x = quant.weight_of(24, 192), inputs(8)
    form = packed(Comet(block=32, compensate=False), weight, x)
    plain = packed(Comet(block=32, compensate=False, permute=False), weight, x)
    assert plain.perm is None
    for one in (form, plain):
        exact = AdjustedWeight(one.base, perm=one.perm)  # nothing rounded on the way in
        torch.testing.assert_close(matmul(x, exact), x @ exact.dense().t(), rtol=1e-3, atol=1e-2)


def test_is_close_to_eight_bits_and_far_from_four() -> None:
    # The paper's point: one block in six wide, and what four bits lose is gone.
    weight, x = quant.weight_of(64, 192), inputs()
    method = Comet(block=32, compensate=False)
    mixed = packed(method, weight, x)
    plain = packed(replace(method, permute=False, wide=0.0), weight, x)
    all_wide = AdjustedWeight(mixed.base, mixed.perm, bits=torch.full((6,), 8, dtype=torch.uint8))
    # What rounding the inputs costs, beside the same weights; and everything together.
    assert error(mixed, mixed.dense(), x) < 0.6 * error(plain, plain.dense(), x)
    assert error(mixed, weight, x) < 1.15 * error(all_wide, weight, x)


def test_inputs_without_outliers_get_no_wide_block() -> None:
    x = torch.randn(300, 192, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    form = packed(Comet(block=32), quant.weight_of(8, 192), x)
    assert form.bits.tolist() == [4] * 6


def test_no_more_blocks_are_wide_than_allowed() -> None:
    x = torch.ones(4, 640)
    x[:, :320] *= 100  # half of all channels stand out
    form = packed(Comet(), quant.weight_of(8, 640), x)
    assert (form.bits == 8).sum() == 2  # 15 % of 10 blocks, rounded
