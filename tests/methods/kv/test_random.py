"""The yardstick."""

from __future__ import annotations

import torch

from loci.methods.kv.random import Random
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, read, spec_of, store_of


def test_the_first_draw_counts() -> None:
    # Drawn before: 0.25 and 0.75 stay as they are; the third was never drawn.
    remembered = torch.tensor([[[0.25, 0.75, torch.inf]]])
    fresh = torch.tensor([[[0.9, 0.1, 0.5]]])
    assert Random().merge(remembered, fresh).tolist() == [[[0.25, 0.75, 0.5]]]


def test_a_window_as_large_as_the_store_is_a_sliding_window() -> None:
    store = store_of(KVStore, (Random(window=8),), keep=8)
    read(store, Text.of(spec_of(), 40))
    assert kept_positions(store)[0, 0].tolist() == list(range(32, 40))


def test_what_stays_of_a_long_text_is_a_fair_sample() -> None:
    spec = spec_of(layers=1, kv_heads=4)
    counts = torch.zeros(100)
    for seed in range(60):
        store = store_of(KVStore, (Random(window=0),), keep=20, chunk=10, seed=seed, spec=spec)
        read(store, Text.of(spec, 100, seed=seed))
        for places in kept_positions(store)[0]:
            counts[places] += 1
    thirds = counts[:99].view(3, 33).sum(1) / counts.sum()
    assert (thirds - 1 / 3).abs().max() < 0.05, thirds
