"""Bipolar integers against paper and pencil."""

import itertools

import pytest
import torch

from loci.errors import ParameterError
from loci.methods.quant.bipolar_int import BipolarInt
from loci.methods.quant.groupwise import Groupwise
from loci.nn.packing import dequantise, unpack_codes
from loci.nn.planes import plane_dot, to_bipolar, to_planes
from loci.testing import quant


def test_by_hand() -> None:
    # A grid of step 1 from 0 to 3: codes 0, 1, 2, 3 are the planes 0011 and 0101.
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0]])
    high, low = BipolarInt(bits=2, group=8).levels(weight)
    assert high["plane"].tolist() == [[0b11001100]] and low["plane"].tolist() == [[0b10101010]]
    form = BipolarInt(bits=2, group=8).pack_one(weight)
    assert torch.equal(form.dense(), weight)
    # Without the low plane the grid has two values, each in the middle of two of the old ones.
    coarse = BipolarInt(bits=2, group=8).shrink(form).dense()
    assert coarse.tolist() == [[0.5, 0.5, 2.5, 2.5, 0.5, 0.5, 2.5, 2.5]]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_is_a_lossless_encoding_of_its_grid(bits: int, symmetric: bool) -> None:
    weight = quant.weight_of(24, 192, bits)
    ours = BipolarInt(bits=bits, symmetric=symmetric).pack_one(weight)
    source = Groupwise(bits=bits, group=64, symmetric=symmetric).pack_one(weight)
    torch.testing.assert_close(ours.dense(), dequantise(source), rtol=0, atol=1e-6)
    assert ours.nbytes == source.nbytes


def test_planes_multiply_as_the_integers_of_the_source() -> None:
    # W3A4, ragged: K is no multiple of 8, and one group has but 11 columns.
    weight, x = quant.weight_of(6, 43), quant.inputs_of(43, 5)
    w = Groupwise(bits=3, group=None, symmetric=True).pack_one(weight)
    a = Groupwise(bits=4, group=None, symmetric=True).pack_one(x)
    w_codes, x_codes = unpack_codes(w.codes, 3, 43), unpack_codes(a.codes, 4, 43)
    for columns in (slice(0, 32), slice(32, 43)):
        found = plane_dot(
            to_planes(x_codes[:, columns], 4),
            to_planes(w_codes[:, columns], 3),
            columns.stop - columns.start,
        )
        exact = to_bipolar(x_codes[:, columns], 4) @ to_bipolar(w_codes[:, columns], 3).t()
        assert torch.equal(found, exact)


def test_one_model_serves_every_width() -> None:
    weight = quant.weight_of(32, 128)
    method = BipolarInt(bits=8, least=1)
    levels = method.levels(weight)
    form = method.first(levels[:1], (32, 128))
    errors = [float((form.dense() - weight).norm())]
    for level in levels[1:]:
        form = method.grow(form, level)
        errors.append(float((form.dense() - weight).norm()))
    # Each plane halves the step; the last ones meet the rounding of float16 scales.
    assert all(b < 0.62 * a for a, b in itertools.pairwise(errors[1:6]))
    assert errors == sorted(errors, reverse=True)


def test_its_limits_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"bipolar_int\.bits must be >= 1 and <= 8"):
        BipolarInt(bits=9)
    with pytest.raises(ParameterError, match="multiple of 8"):
        BipolarInt(group=12)
    with pytest.raises(ParameterError, match="does not divide a row of 100"):
        BipolarInt().levels(torch.ones(2, 100))
    with pytest.raises(ParameterError, match="no scale in 16 bits"):
        BipolarInt().levels(torch.ones(2, 64) * torch.tensor([1e6, -1e6]).repeat(32))
