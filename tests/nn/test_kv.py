"""Views and their segments."""

from __future__ import annotations

import torch

from loci.nn.kv import TILE_TOKENS, DenseSegment, KVView


def test_a_view_counts_and_copies_its_segments() -> None:
    keys = torch.arange(24.0).view(1, 2, 6, 2)
    view = KVView(
        3,
        2,
        (
            DenseSegment(keys, keys, 4),
            DenseSegment(keys, keys, 1, positions_BKS=torch.tensor([[[9]]])),
        ),
    )
    assert view.tokens == 5 and view.layer == 3
    block = view.dense()
    assert block.positions.tolist() == [[[0, 1, 2, 3, 9]] * 2]
    assert torch.equal(block.keys[:, :, :4], keys[:, :, :4])
    assert torch.equal(view.positions(), block.positions)
    block.keys.zero_()
    assert keys.sum() > 0


def test_short_floats_are_converted_a_tile_at_a_time() -> None:
    keys = torch.zeros(1, 1, TILE_TOKENS + 5, 2, dtype=torch.float16)
    tiles = list(DenseSegment(keys, keys, TILE_TOKENS + 3).tiles())
    assert [tile[0].shape[2] for tile in tiles] == [TILE_TOKENS, 3]
    assert all(tile[0].dtype == torch.float32 for tile in tiles)


def test_float32_is_handed_out_as_it_is() -> None:
    keys = torch.zeros(1, 1, 8, 2)
    [(got, _, places)] = DenseSegment(keys, keys, 5).tiles()
    assert got.data_ptr() == keys.data_ptr() and got.shape[2] == 5 and places is None
