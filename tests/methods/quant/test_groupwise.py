"""Group-wise quantisation against paper and pencil, and against the grids of llama.cpp."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.methods.quant.groupwise import Groupwise
from loci.nn.packing import dequantise, unpack_codes
from loci.testing import quant


def test_by_hand_asymmetric() -> None:
    # min 1, max 4, three steps of 1: codes are w - 1, and 2.4 rounds to 2.
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.4, 2.6, 1.0, 4.0]])
    packed = Groupwise(bits=2, group=8).pack_one(weight)
    assert packed.mins is not None
    assert packed.scales.tolist() == [[1.0]] and packed.mins.tolist() == [[1.0]]
    assert unpack_codes(packed.codes, 2, 8).tolist() == [[0, 1, 2, 3, 1, 2, 0, 3]]
    assert packed.nbytes == 2 + 2 + 2


def test_by_hand_symmetric() -> None:
    # The extreme -4 stands at the end of the grid -2..1, so the step is 2 and 3 is cut to 2.
    weight = torch.tensor([[-4.0, 2.0, 0.0, -2.0, 3.0, 0.5, -4.0, 2.0]])
    packed = Groupwise(bits=2, group=8, symmetric=True).pack_one(weight)
    assert packed.mins is None and packed.scales.tolist() == [[2.0]]
    assert dequantise(packed).tolist() == [[-4.0, 2.0, 0.0, -2.0, 2.0, 0.0, -4.0, 2.0]]


def test_a_negative_scale_puts_a_positive_extreme_at_the_long_end() -> None:
    weight = torch.tensor([[4.0, -2.0, 0.0, 2.0, -2.0, 0.0, 4.0, 2.0]])
    packed = Groupwise(bits=2, group=8, symmetric=True).pack_one(weight)
    assert packed.scales.tolist() == [[-2.0]]
    assert torch.equal(dequantise(packed), weight)


def blocks(seed: int, rows: int = 24) -> tuple[Tensor, Tensor, Tensor, Generator]:
    """Return scales and minima that float16 holds, and codes for blocks of 32."""
    generator = Generator().manual_seed(seed)
    scales = (torch.rand(rows, 6, 1, generator=generator) * 0.02 + 1e-3).half().float()
    mins = (torch.randn(rows, 6, 1, generator=generator) * 0.1).half().float()
    codes = torch.randint(0, 16, (rows, 6, 32), generator=generator)
    codes[..., 3], codes[..., 17] = 0, 15  # a fitted block uses both ends of its grid
    return scales, mins, codes, generator


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_of_q4_1_comes_back_without_loss(seed: int) -> None:
    scales, mins, codes, _ = blocks(seed)
    weight = (scales * codes + mins).flatten(1)
    assert torch.equal(dequantise(Groupwise(bits=4, group=32).pack_one(weight)), weight)


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_of_q4_0_comes_back_without_loss(seed: int) -> None:
    scales, _, codes, generator = blocks(seed)
    signs = torch.randint(0, 2, scales.shape, generator=generator) * 2 - 1
    weight = (signs * scales * (codes - 8)).flatten(1)
    packed = Groupwise(bits=4, group=32, symmetric=True).pack_one(weight)
    assert torch.equal(dequantise(packed), weight)


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_of_q8_0_comes_back_without_loss(seed: int) -> None:
    scales, _, _, generator = blocks(seed)
    codes = torch.randint(-127, 128, (24, 6, 32), generator=generator)
    codes[..., 5] = torch.where(codes[..., 5] < 0, -127, 127)  # the extreme is at either end
    weight = (scales * codes).flatten(1)
    packed = Groupwise(bits=8, group=32, symmetric=True).pack_one(weight)
    assert torch.equal(dequantise(packed), weight)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([8, 16, 24, 48, 96, None]),
    symmetric=st.booleans(),
    scale_bits=st.sampled_from([16, 32]),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1e-4, 1.0, 300.0]),
)
def test_no_weight_is_further_than_the_grid_allows(
    bits: int, group: int | None, symmetric: bool, scale_bits: int, seed: int, size: float
) -> None:
    method = Groupwise(bits=bits, group=group, symmetric=symmetric, scale_bits=scale_bits)
    weight = quant.weight_of(5, 96, seed) * size
    packed = quant.check_one(method, weight)
    off = (dequantise(packed) - weight).abs().view(5, -1, group or 96)
    grid = weight.view(5, -1, group or 96)
    if symmetric:  # the end of the grid that is one step short may cut a weight by a whole step
        step = grid.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    else:
        step = (grid.amax(-1, keepdim=True) - grid.amin(-1, keepdim=True)) / (2**bits - 1) * 0.5
    rounding = grid.abs().amax(-1, keepdim=True) * 2e-3 + (2**bits + 2) * 3.1e-8  # float16
    assert (off <= step * (1 + 1e-3) + rounding).all()


def test_smaller_groups_have_less_error() -> None:
    weight = quant.weight_of(64, 192)
    errors = [
        float((dequantise(Groupwise(bits=3, group=g).pack_one(weight)) - weight).norm())
        for g in (8, 24, 64, None)
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_keeps_the_rules(bits: int) -> None:
    weight = quant.weight_of(7, 192)
    for symmetric in (False, True):
        for group in (8, 64, 192, None):
            method = Groupwise(bits=bits, group=group, symmetric=symmetric)
            quant.check_one(method, weight)
            quant.check_one(dataclasses.replace(method, scale_bits=32), weight)


def test_a_whole_row_may_have_any_length() -> None:
    weight = quant.weight_of(3, 13)
    packed = quant.check_one(Groupwise(bits=3, group=None), weight)
    assert packed.group == 13


@pytest.mark.parametrize(("inner", "near"), [(576, 144), (96, 96), (100, None)])
def test_a_group_that_does_not_divide_is_refused_with_the_nearest(
    inner: int, near: int | None
) -> None:
    for call in (
        lambda: Groupwise(group=128).pack_one(torch.ones(2, inner)),
        lambda: Groupwise(group=128).packed_bytes(2, inner),
    ):
        with pytest.raises(ParameterError, match=rf"groupwise\(group={near}\)"):
            call()


def test_a_group_that_is_no_multiple_of_eight_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"multiple of 8; got 30\n.*nearest is 32"):
        Groupwise(group=30)


def test_a_scale_too_large_for_float16_is_refused_with_the_way_out() -> None:
    weight = torch.full((2, 32), 1e6)
    with pytest.raises(ParameterError, match="scale_bits=32"):
        Groupwise().pack_one(weight)
    assert torch.equal(dequantise(Groupwise(scale_bits=32).pack_one(weight)), weight)


def test_written_as_chains_write_it() -> None:
    assert str(Groupwise()) == "groupwise"
    assert str(Groupwise(bits=3, group=None)) == "groupwise(bits=3, group=None)"


def test_what_is_packed_offers_no_shrinking() -> None:
    packed = Groupwise().pack([("a", torch.ones(2, 32)), ("b", torch.ones(3))])
    assert packed.nbytes() == {"dram": 2 * 20 + 12}
    with pytest.raises(ParameterError, match="one name"):
        Groupwise().pack([("a", torch.ones(2, 32)), ("a", torch.ones(2, 32))])
