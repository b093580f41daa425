"""Rows rounded channel by channel and token by token, against paper and pencil."""

from __future__ import annotations

import pytest
import torch

from loci.errors import ParameterError
from loci.nn.grid import by_channel, by_token, of_channel, of_token


def test_a_token_by_hand() -> None:
    # Two bits; the first two numbers run from 0 to 3, the others from 10 to 16 in steps of 2.
    x = torch.tensor([[[0.0, 3.0, 10.0, 16.0]]])
    codes, grid = by_token(x, 2, 2)
    assert codes.tolist() == [[[0b11001100]]] and grid.tolist() == [[[0, 1, 10, 2]]]
    assert torch.equal(of_token(codes, grid, 2, 4), x)


def test_a_channel_by_hand() -> None:
    # Channel 0 runs from 0 to 3 and channel 1 from -6 to 0, over a group of four tokens.
    x = torch.tensor([[[0.0, -6.0], [1.0, -4.0], [2.0, -2.0], [3.0, 0.0]]])
    codes, grid = by_channel(x, 2, 4)
    assert codes.flatten().tolist() == [0b0000, 0b0101, 0b1010, 0b1111]
    assert grid.tolist() == [[[[0, -6], [1, 2]]]]
    assert torch.equal(of_channel(codes, grid, 2), x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_half_a_step_is_lost_at_most(bits: int) -> None:
    x = torch.randn(2, 64, 24, generator=torch.Generator().manual_seed(0))
    codes, grid = by_channel(x, bits, 16)
    steps = grid[:, :, 1].float().repeat_interleave(16, 1)
    # The highest number may lie above the grid, by what rounding its step to half precision takes.
    assert ((of_channel(codes, grid, bits) - x).abs() <= steps * 0.51 + 0.01).all()
    codes, grid = by_token(x, bits, 8)
    steps = grid.unflatten(2, (-1, 2))[..., 1].float().repeat_interleave(8, 2)
    assert ((of_token(codes, grid, bits, 24) - x).abs() <= steps * 0.51 + 0.01).all()


def test_groups_do_not_see_each_other() -> None:
    x = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(1))
    whole, grid = by_channel(x, 4, 16)
    first, first_grid = by_channel(x[:, :16], 4, 16)
    assert torch.equal(whole[:, :16], first) and torch.equal(grid[:, :1], first_grid)


def test_numbers_too_large_for_a_grid_are_refused() -> None:
    for rounds in (by_channel, by_token):
        with pytest.raises(ParameterError, match="too large for a grid"):
            rounds(torch.full((1, 8, 8), 1e6), 4, 8)
