"""Bit streams and packed weights, checked against integers and paper."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from loci.errors import FormatError, ParameterError
from loci.nn.packing import (
    PackedWeight,
    dequantise,
    pack_codes,
    packed_bytes,
    row_bytes,
    rows,
    unpack_codes,
)


def packed(
    out: int,
    inner: int,
    bits: int = 4,
    group: int = 8,
    *,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> PackedWeight:
    """Return a random packed weight."""
    generator = Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, inner), generator=generator, dtype=torch.uint8)
    shape = (out, inner // group)
    return PackedWeight(
        codes=pack_codes(codes, bits),
        scales=(torch.rand(shape, generator=generator) + 0.5).to(dtype),
        mins=None if symmetric else torch.randn(shape, generator=generator).to(dtype),
        bits=bits,
        group=group,
        shape=(out, inner),
    )


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(2, 8), out=st.integers(1, 5), inner=st.integers(1, 70), seed=st.integers(0, 99)
)
def test_a_row_is_one_little_endian_number(bits: int, out: int, inner: int, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, inner), generator=generator, dtype=torch.uint8)
    before = codes.clone()
    stream = pack_codes(codes, bits)
    assert stream.shape == (out, row_bytes(inner, bits)) and stream.dtype == torch.uint8
    for row, expected in zip(stream.tolist(), codes.tolist(), strict=True):
        number = int.from_bytes(bytes(row), "little")
        assert number == sum(code << (i * bits) for i, code in enumerate(expected))
    assert torch.equal(unpack_codes(stream, bits, inner), codes)
    assert torch.equal(codes, before)


def test_four_bits_by_hand() -> None:
    assert pack_codes(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8), 4).tolist() == [[0x21, 0xF]]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_many_rows_are_packed_in_tiles(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (700, 800), dtype=torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, 800), codes)


def test_values_by_hand() -> None:
    codes = pack_codes(torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0]], dtype=torch.uint8), 2)
    scales = torch.tensor([[0.5, 2.0]])
    mins = torch.tensor([[1.0, -1.0]])
    weight = PackedWeight(codes, scales, mins, 2, 4, (1, 8))
    assert dequantise(weight).tolist() == [[1.0, 1.5, 2.0, 2.5, 5.0, 3.0, 1.0, -1.0]]
    centred = PackedWeight(codes, scales, None, 2, 4, (1, 8))
    assert dequantise(centred).tolist() == [[-1.0, -0.5, 0.0, 0.5, 2.0, 0.0, -2.0, -4.0]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_ranges_and_rows_are_parts_of_the_whole(bits: int, symmetric: bool) -> None:
    weight = packed(13, 48, bits, 16, symmetric=symmetric)
    whole = dequantise(weight)
    assert torch.equal(dequantise(weight, rows=slice(3, 9)), whole[3:9])
    assert dequantise(weight, rows=slice(9, 3)).shape == (0, 48)
    ids = torch.tensor([12, 0, 0, 7], dtype=torch.int32)
    assert torch.equal(rows(weight, ids), whole[[12, 0, 0, 7]])
    assert rows(weight, ids[:0]).shape == (0, 48)
    out = torch.empty(13, 48)
    assert dequantise(weight, out) is out and torch.equal(out, whole)


def test_rows_of_a_dense_weight_are_float32() -> None:
    weight = torch.randn(5, 3).to(torch.bfloat16)
    assert torch.equal(rows(weight, torch.tensor([4, 1])), weight[[4, 1]].float())


@settings(max_examples=50, deadline=None)
@given(
    bits=st.integers(2, 8),
    out=st.integers(1, 9),
    groups=st.integers(1, 5),
    group=st.integers(1, 40),
    symmetric=st.booleans(),
    wide=st.booleans(),
)
def test_bytes_are_as_predicted(
    bits: int, out: int, groups: int, group: int, symmetric: bool, wide: bool
) -> None:
    dtype = torch.float32 if wide else torch.float16
    weight = packed(out, groups * group, bits, group, symmetric=symmetric, dtype=dtype)
    assert weight.nbytes == packed_bytes(
        out, groups * group, bits, group, symmetric=symmetric, scale_bytes=dtype.itemsize
    )
    meta = json.loads(json.dumps(weight.meta()))
    back = PackedWeight.from_tensors(weight.tensors(), meta)
    assert back.codes is weight.codes and torch.equal(dequantise(back), dequantise(weight))


def test_what_does_not_fit_is_refused() -> None:
    weight = packed(4, 32)
    good = weight.tensors()
    for change, message in (
        ({"type": "planes"}, "unknown packed weight"),
        ({"bits": 3}, "codes of a packed weight do not fit"),
        ({"bits": 9}, "bits out of range"),
        ({"group": 16}, "scales of a packed weight do not fit"),
        ({"group": 7}, "does not divide"),
        ({"shape": [4]}, "this is no packed weight"),
    ):
        with pytest.raises(FormatError, match=message):
            PackedWeight.from_tensors(good, weight.meta() | change)
    with pytest.raises(FormatError, match="no packed weight"):
        PackedWeight.from_tensors({"codes": weight.codes}, weight.meta())
    with pytest.raises(FormatError, match="mins of a packed weight"):
        PackedWeight.from_tensors(good | {"mins": weight.scales.float()}, weight.meta())
    with pytest.raises(FormatError, match="contiguous"):
        turned = weight.scales.t().contiguous().t()
        PackedWeight.from_tensors(good | {"scales": turned}, weight.meta())
    with pytest.raises(FormatError, match="32 codes of 5 bits take 20 bytes"):
        unpack_codes(weight.codes, 5, 32)


def test_bad_arguments_are_refused() -> None:
    weight = packed(4, 32)
    with pytest.raises(ParameterError, match="row out of range"):
        rows(weight, torch.tensor([4]))
    with pytest.raises(ParameterError, match="step 1"):
        dequantise(weight, rows=slice(0, 4, 2))
    with pytest.raises(ParameterError, match="contiguous float32 of the rows"):
        dequantise(weight, torch.empty(3, 32))
    with pytest.raises(ParameterError, match="bits out of range"):
        pack_codes(torch.zeros(1, 8, dtype=torch.uint8), 9)
