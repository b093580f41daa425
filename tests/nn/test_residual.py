"""Weights as sums of levels against their definition."""

import pytest
import torch
from torch import Generator

from loci.errors import FormatError
from loci.nn.packed_linear import matmul
from loci.nn.planes import pack_bits, unpack_bits
from loci.nn.residual import Level, ResidualWeight, level_bytes, with_levels


def level(out: int, inner: int, rank: int, seed: int) -> Level:
    generator = Generator().manual_seed(seed)
    return Level(
        pack_bits(torch.randn(out, inner, generator=generator) < 0),
        torch.rand(out, rank, generator=generator).half(),
        torch.rand(rank, inner, generator=generator).half(),
    )


def test_by_hand() -> None:
    # |W| = 2 * (1, 3); the second sign is minus.
    one = Level(torch.tensor([[2]], dtype=torch.uint8), torch.tensor([[2.0]]).half(),
                torch.tensor([[1.0, 3.0]]).half())  # fmt: skip
    assert ResidualWeight((one,), (1, 2)).dense().tolist() == [[2.0, -6.0]]


@pytest.mark.parametrize(("out", "inner", "rank"), [(37, 61, 2), (3, 8, 1), (200, 576, 4)])
def test_is_the_sum_of_its_levels(out: int, inner: int, rank: int) -> None:
    levels = [level(out, inner, rank, seed) for seed in range(3)]
    form = ResidualWeight(tuple(levels), (out, inner))
    expected = torch.zeros(out, inner)
    for one in levels:
        signs = 1 - 2 * unpack_bits(one.signs, inner).float()
        expected += signs * (one.left.float() @ one.right.float())
    torch.testing.assert_close(form.dense(), expected)
    torch.testing.assert_close(form.dense(rows=slice(1, 3)), expected[1:3])
    assert form.nbytes == 3 * level_bytes(out, inner, rank)
    for rows in (1, 7, 20):
        x = torch.randn(rows, inner, generator=Generator().manual_seed(rows))
        torch.testing.assert_close(matmul(x, form), x @ expected.t(), rtol=1e-4, atol=1e-3)


def test_levels_that_do_not_fit_are_refused() -> None:
    one = level(4, 16, 2, 0)
    with pytest.raises(FormatError, match="signs of level 1"):
        ResidualWeight((one, level(4, 24, 2, 0)), (4, 16))
    with pytest.raises(FormatError, match="at least one level"):
        with_levels((4, 16), [])
    with pytest.raises(FormatError, match="no residual weight"):
        ResidualWeight.from_tensors({}, {"levels": 1, "shape": [4, 16]})
