"""BitStack against paper and pencil."""

import pytest
import torch
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.methods.quant.bitstack import BitStack
from loci.methods.quant.groupwise import Groupwise
from loci.nn.taps import stats_of
from loci.testing import quant


def even(inner: int) -> Tensor:
    """Return inputs that are all alike, so that no column is scaled."""
    return torch.ones(4, inner)


def test_by_hand() -> None:
    # Magnitudes 1, 2 | 2, 4 are of rank 1, so one block holds the weight as it is.
    weight = torch.tensor([[1.0, -2.0], [-2.0, 4.0]])
    [level] = BitStack(blocks=1, rank=1).levels(weight, stats=stats_of(even(2)))
    assert level["signs"].tolist() == [[2], [1]]
    magnitudes = level["left"].float() @ level["right"].float()
    torch.testing.assert_close(magnitudes, weight.abs(), rtol=2e-3, atol=0)


def test_a_zero_counts_as_plus() -> None:
    weight = torch.tensor([[0.0, -1.0]])
    [level] = BitStack(blocks=1, rank=1).levels(weight, stats=stats_of(even(2)))
    assert level["signs"].tolist() == [[2]]


def test_full_rank_without_scaling_is_the_weight_in_half_precision() -> None:
    weight = quant.weight_of(12, 16)
    form = BitStack(blocks=1, rank=12).pack_one(weight, stats=stats_of(even(16)))
    torch.testing.assert_close(form.dense(), weight, rtol=1e-2, atol=2e-3)


def test_bytes_of_a_block() -> None:
    # 0.2 bits a weight pay for rank 5 in the large one; the narrow one has rank 4 all the same.
    assert BitStack().level_bytes(1536, 576)[0] == 1536 * 72 + 2 * 5 * (1536 + 576)
    assert BitStack().level_bytes(192, 576)[0] == 192 * 72 + 2 * 4 * (192 + 576)
    assert BitStack().level_bytes(4096, 4096)[0] == 4096 * 512 + 2 * 16 * 8192
    assert BitStack(rank=2, blocks=3).packed_bytes(8, 8) == 3 * (8 + 2 * 2 * 16)


def loss(method: BitStack | Groupwise, weight: Tensor, x: Tensor, stats: Tensor) -> float:
    form = method.pack_one(weight, stats=stats_of(stats))
    return float((x @ (weight - form.dense()).t()).norm() / (x @ weight.t()).norm())


def test_loses_less_than_a_grid_of_as_many_bits_where_inputs_differ_in_size() -> None:
    # The paper's point at 2 bits: columns that matter are told from those that do not.
    weight, x = quant.weight_of(128, 256), quant.inputs_of(256, 512)
    x[:, 7] *= 30
    ours, grid = BitStack(blocks=2, rank=2), Groupwise(bits=2, group=32)
    assert ours.packed_bytes(128, 256) < grid.packed_bytes(128, 256)
    assert loss(ours, weight, x, x) < 0.6 * loss(grid, weight, x, x)


def test_scaling_by_inputs_is_what_makes_it_work() -> None:
    weight, x = quant.weight_of(128, 256), quant.inputs_of(256, 512)
    x[:, 7] *= 100
    method = BitStack(blocks=2)
    assert loss(method, weight, x, x) < 0.3 * loss(method, weight, x, even(256))


def test_signs_and_magnitudes_beat_low_rank_alone() -> None:
    # As many bits spent on a plain truncated decomposition leave far more of the weight.
    weight = torch.randn(128, 256, generator=Generator().manual_seed(0))
    form = BitStack(blocks=2).pack_one(weight, stats=stats_of(even(256)))
    rank = form.nbytes // (2 * (128 + 256))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    plain = u[:, :rank] * s[:rank] @ v[:rank]
    assert (weight - form.dense()).norm() < 0.5 * (weight - plain).norm()


def test_rows_that_matter_more_are_kept_better() -> None:
    weight, x = quant.weight_of(64, 192), quant.inputs_of(192)
    slopes = torch.ones(64)
    slopes[:8] = 1000.0
    plain = BitStack(blocks=2).pack_one(weight, stats=stats_of(x))
    aware = BitStack(blocks=2).pack_one(weight, stats=stats_of(x, slopes_N=slopes))
    stats = stats_of(x, slopes_N=slopes)
    assert stats.loss(weight - aware.dense()) < stats.loss(weight - plain.dense())


def test_a_rank_beyond_the_matrix_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"bitstack\.rank is too large.*1 to 8"):
        BitStack(rank=9).level_bytes(8, 64)
    with pytest.raises(ParameterError, match=r"bitstack\.sort must be one of gain"):
        BitStack(sort="best")
