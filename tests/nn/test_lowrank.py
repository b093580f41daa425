"""The randomised decomposition against the exact one."""

import pytest
import torch
from torch import Generator

from loci.errors import ParameterError
from loci.nn.lowrank import low_rank


def test_a_matrix_of_low_rank_comes_back() -> None:
    generator = Generator().manual_seed(0)
    matrix = torch.randn(60, 3, generator=generator) @ torch.randn(3, 90, generator=generator)
    left, right = low_rank(matrix, 3)
    torch.testing.assert_close(left @ right, matrix, rtol=1e-4, atol=1e-4)


def test_is_nearly_as_good_as_the_exact_one() -> None:
    matrix = torch.randn(120, 200, generator=Generator().manual_seed(1)).abs()
    errors = []
    for exact in (True, False):
        left, right = low_rank(matrix, 4, exact=exact)
        errors.append(float((matrix - left @ right).norm()))
    assert errors[0] <= errors[1] <= 1.02 * errors[0]


def test_the_same_seed_gives_the_same_factors() -> None:
    matrix = torch.randn(50, 70, generator=Generator().manual_seed(2))
    first, second = (low_rank(matrix, 2, generator=Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(low_rank(matrix, 2)[0], low_rank(matrix, 2)[0])


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(ParameterError, match="1 to 5"):
        low_rank(torch.ones(5, 9), rank)
