"""Bit planes and bipolar integers against whole numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.errors import FormatError, ParameterError
from loci.methods.quant.groupwise import Groupwise
from loci.nn.packed_linear import matmul
from loci.nn.packing import dequantise, unpack_codes
from loci.nn.planes import (
    PlanesWeight,
    from_bipolar,
    from_planes,
    pack_bits,
    plane_dot,
    to_bipolar,
    to_planes,
    unpack_bits,
)


def codes_of(rows: int, columns: int, bits: int, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator).to(torch.uint8)


def test_bits_by_hand() -> None:
    # Columns 0, 1 and 9 are set: 1 + 2 in the first byte, 2 in the second.
    bits = torch.zeros(1, 10, dtype=torch.bool)
    bits[0, [0, 1, 9]] = True
    assert pack_bits(bits).tolist() == [[3, 2]]
    assert torch.equal(unpack_bits(pack_bits(bits), 10).bool(), bits)


def test_bipolar_by_hand() -> None:
    # Bits 101 are +4 - 2 + 1 = 3: the offset code 5 of three bits.
    assert to_bipolar(torch.tensor([5], dtype=torch.uint8), 3).tolist() == [3]
    assert to_bipolar(torch.arange(4), 2).tolist() == [-3, -1, 1, 3]


@pytest.mark.parametrize("bits", range(1, 9))
def test_signed_integers_become_bipolar_and_come_back(bits: int) -> None:
    signed = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    codes = (signed + 2 ** (bits - 1)).to(torch.uint8)
    values = to_bipolar(codes, bits)
    assert torch.equal(values, 2 * signed.to(torch.int32) + 1)
    assert torch.equal(from_bipolar(values, bits), codes)
    planes = to_planes(codes.unsqueeze(0), bits)
    assert torch.equal(from_planes(planes, 2**bits)[0], codes)


@settings(max_examples=60, deadline=None)
@given(
    p=st.integers(1, 8),
    q=st.integers(1, 8),
    rows=st.integers(1, 5),
    outputs=st.integers(1, 6),
    columns=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_products_of_planes_are_exact(
    p: int, q: int, rows: int, outputs: int, columns: int, seed: int
) -> None:
    x, w = codes_of(rows, columns, q, seed), codes_of(outputs, columns, p, seed + 1)
    expected = to_bipolar(x, q).to(torch.int64) @ to_bipolar(w, p).to(torch.int64).t()
    assert torch.equal(plane_dot(to_planes(x, q), to_planes(w, p), columns).long(), expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_dropping_the_lowest_plane_is_rounding_to_the_nearest(bits: int) -> None:
    values = to_bipolar(torch.arange(2**bits), bits)
    coarse = to_bipolar(torch.arange(2**bits) >> 1, bits - 1)
    grid = 2 * to_bipolar(torch.arange(2 ** (bits - 1)), bits - 1)
    nearest = (values[:, None] - grid[None]).abs().amin(1)
    assert torch.equal((values - 2 * coarse).abs(), nearest)
    assert (nearest == 1).all()  # always one up or one down: no bias


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_all_planes_are_the_grid_they_were_cut_from(bits: int, symmetric: bool) -> None:
    weight = torch.randn(12, 64, generator=Generator().manual_seed(bits))
    source = Groupwise(bits=bits, group=32, symmetric=symmetric).pack_one(weight)
    planes = to_planes(unpack_codes(source.codes, bits, 64), bits)
    form = PlanesWeight.highest(planes[0], source.scales, source.mins, bits, (12, 64))
    for plane in planes[1:]:
        form = form.with_plane(plane)
    torch.testing.assert_close(form.dense(), dequantise(source), rtol=0, atol=1e-6)
    x = torch.randn(3, 64)
    torch.testing.assert_close(matmul(x, form), matmul(x, source), rtol=1e-5, atol=1e-5)
    assert torch.equal(form.codes, source.codes)


def test_one_plane_less_moves_every_weight_by_half_a_step() -> None:
    weight = torch.randn(4, 64, generator=Generator().manual_seed(0))
    source = Groupwise(bits=4, group=64, symmetric=True).pack_one(weight)
    planes = to_planes(unpack_codes(source.codes, 4, 64), 4)
    form = PlanesWeight.highest(planes[0], source.scales, None, 4, (4, 64))
    for plane in planes[1:3]:
        form = form.with_plane(plane)
    off = (form.dense() - dequantise(source)).abs() / source.scales.float().abs()
    torch.testing.assert_close(off, torch.full_like(off, 0.5), rtol=1e-4, atol=0)


def test_what_has_no_bits_is_refused() -> None:
    with pytest.raises(ParameterError, match="the odd numbers from -7 to 7"):
        from_bipolar(torch.tensor([2]), 3)
    with pytest.raises(ParameterError, match="1 to 8"):
        to_planes(codes_of(1, 8, 2), 9)
    planes = torch.zeros(8, 1, 5000, dtype=torch.uint8)
    with pytest.raises(ParameterError, match="may not fit 32 bits"):
        plane_dot(planes, planes, 40_000)
    with pytest.raises(FormatError, match="no bit planes"):
        PlanesWeight.from_tensors({}, {"bits": 2, "whole": 2, "group": 8})
    with pytest.raises(FormatError, match="planes out of range"):
        PlanesWeight(torch.zeros(1, 1), torch.ones(1, 1), None, 3, 2, 8, (1, 8))
