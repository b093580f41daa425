"""KeyDiff against paper and pencil."""

from __future__ import annotations

import math

import torch

from loci.methods.kv.keydiff import KeyDiff
from loci.methods.kv.random import Random
from loci.nn.kv import DenseSegment, KVView
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, read, spec_of, store_of


def view_of(keys: list[list[float]], places: list[int] | None = None) -> KVView:
    tensor = torch.tensor(keys)[None, None]
    positions = None if places is None else torch.tensor(places).view(1, 1, -1)
    return KVView(0, 1, (DenseSegment(tensor, tensor, len(keys), positions_BKS=positions),))


def test_scores_are_distances_from_the_mean_direction() -> None:
    # Directions (1,0), (1,0), (0,1): their mean points to (2,1); lengths do not matter.
    scores = KeyDiff().score(view_of([[3.0, 0.0], [1.0, 0.0], [0.0, 5.0]]), None)
    expected = -torch.tensor([2.0, 2.0, 1.0]) / math.sqrt(5)
    torch.testing.assert_close(scores[0, 0], expected)


def test_padding_is_no_key() -> None:
    padded = KeyDiff().score(view_of([[0.0, 9.0], [3.0, 0.0], [0.0, 5.0]], [-1, 0, 1]), None)
    alone = KeyDiff().score(view_of([[3.0, 0.0], [0.0, 5.0]]), None)
    torch.testing.assert_close(padded[0, 0, 1:], alone[0, 0])


def test_the_recent_always_stay() -> None:
    scores = KeyDiff(recent=2).score(view_of([[1.0, 0.0]] * 5), None)
    assert scores[0, 0].isinf().tolist() == [False, False, False, True, True]


def test_keeps_the_keys_that_stand_apart() -> None:
    # The paper's point on a toy: most keys point one way, three do not; no query is needed.
    spec, places = spec_of(), [5, 40, 77]
    text = Text.of(spec, 120)
    way_D = torch.ones(spec.head_dim)
    text.keys_LBKTD.mul_(0.2).add_(way_D)
    text.keys_LBKTD[:, :, :, places] -= 2 * way_D

    def share(method: KeyDiff | Random) -> float:
        store = store_of(KVStore, (method,), keep=24, chunk=32)
        read(store, text)
        held = kept_positions(store)[0]
        return float(torch.stack([(held == place).any(-1) for place in places]).float().mean())

    assert share(KeyDiff()) == 1.0
    assert share(Random(window=0)) < 0.7
