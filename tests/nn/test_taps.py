"""Activation statistics against their definitions."""

import pytest
import torch
from torch import Generator

from loci.errors import FormatError, ParameterError
from loci.nn.taps import ActStats, merged, stats_of


def inputs(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, 5, generator=Generator().manual_seed(seed))


def test_by_hand() -> None:
    # Two texts of two tokens, one channel: 3, 4 and 0, 5.
    stats = stats_of(torch.tensor([[3.0], [-4.0], [0.0], [5.0]]), samples=2, moment=True)
    assert stats.squares_K.tolist() == [50.0] and stats.absolutes_K.tolist() == [12.0]
    assert stats.mean_norm().tolist() == [5.0]  # both texts have norm 5
    assert stats.largest_K.tolist() == [5.0]
    assert stats.moment_KK is not None and stats.moment_KK.tolist() == [[50.0]]
    assert stats.mean_square().tolist() == [12.5] and stats.mean_absolute().tolist() == [3.0]


def test_parts_add_up_to_the_whole() -> None:
    x, slopes = inputs(12), torch.rand(3, generator=Generator().manual_seed(1))
    whole = stats_of(x, 3, moment=True, slopes_N=slopes)
    parts = merged(
        stats_of(x[:8], 2, moment=True, slopes_N=slopes),
        stats_of(x[8:], 1, moment=True, slopes_N=slopes),
    )
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor)


def test_the_loss_weighs_rows_by_slopes_and_columns_by_inputs() -> None:
    stats = stats_of(torch.tensor([[1.0, 2.0]]), slopes_N=torch.tensor([10.0, 1.0]))
    change = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # 1/2 (10 * 1 * 1 + 1 * 4 * 1)
    assert stats.loss(change) == pytest.approx(7.0)
    assert stats.with_slopes(None).loss(change) == pytest.approx(2.5)


def test_round_trip() -> None:
    stats = stats_of(inputs(6), 2, slopes_N=torch.ones(3))
    back = ActStats.from_tensors(stats.tensors())
    assert (back.tokens, back.samples) == (6, 2)
    for name, tensor in stats.tensors().items():
        assert torch.equal(back.tensors()[name], tensor)
    with pytest.raises(FormatError, match="no activation statistics"):
        ActStats.from_tensors({"squares_K": torch.ones(2)})


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ParameterError, match="equal length"):
        stats_of(inputs(5), 2)
    with pytest.raises(ParameterError, match="not finite"):
        stats_of(torch.tensor([[float("nan")]]))
