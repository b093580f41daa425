"""SnapKV against paper and pencil."""

from __future__ import annotations

import math

import torch

from loci.methods.kv.random import Random
from loci.methods.kv.snapkv import SnapKV
from loci.nn.kv import DenseSegment, KVView, Seen
from loci.run.kvstore import KVStore
from loci.testing.kv import needle_kept


def view_of(keys: list[float]) -> KVView:
    tensor = torch.tensor(keys).view(1, 1, -1, 1)
    return KVView(0, 1, (DenseSegment(tensor, tensor, len(keys)),))


def seen_of(queries: list[float], first: int) -> Seen:
    count = len(queries)
    positions = torch.arange(first, first + count)[None]
    return Seen(0, torch.tensor(queries).view(1, 1, count, 1), positions)


def test_scores_are_the_votes_of_the_window() -> None:
    # Keys ln 5, 0, 0, 0 and one query 1: weights 5 : 1 : 1 : 1; the last token is the window.
    scores = SnapKV(window=1, kernel=1).score(view_of([math.log(5), 0, 0, 0]), seen_of([1.0], 3))
    torch.testing.assert_close(scores[0, 0], torch.tensor([5 / 8, 1 / 8, 1 / 8, math.inf]))


def test_votes_are_spread_over_neighbours() -> None:
    # The same with kernel 3: each of the first three is the mean over the neighbours it has.
    scores = SnapKV(window=1, kernel=3).score(view_of([math.log(5), 0, 0, 0]), seen_of([1.0], 3))
    torch.testing.assert_close(scores[0, 0, :3], torch.tensor([3 / 8, 7 / 24, 1 / 8]))


def test_a_window_as_long_as_the_cache_prefers_nothing() -> None:
    scores = SnapKV(window=8).score(view_of([0.0] * 8), seen_of([1.0] * 8, 0))
    assert scores.isinf().all()


def test_finds_the_needle_that_chance_misses() -> None:
    # The paper's point on a toy: the question points back.
    found = [needle_kept(KVStore, SnapKV(window=4), seed=seed) for seed in range(3)]
    by_lot = [needle_kept(KVStore, Random(window=4), seed=seed) for seed in range(3)]
    assert min(found) == 1.0 and sum(by_lot) / 3 < 0.5


def test_the_question_must_be_there_when_it_chooses() -> None:
    assert needle_kept(KVStore, SnapKV(window=4), asked=False) < 1.0
