"""WindowKV against paper and pencil."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from loci.methods.kv.bfp import Bfp
from loci.methods.kv.chain import check_chain
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.windowkv import WindowKV, pyramid, window_scores
from loci.nn.kv import DenseSegment, KVView, Seen
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, read, spec_of, store_of

INF = math.inf


def scores_of(votes: list[list[float]], window: int, best: bool, without: int = 0) -> Tensor:
    votes_BHS = torch.tensor(votes)[None]
    places_BS = torch.arange(votes_BHS.shape[2])[None]
    without_BS = places_BS >= votes_BHS.shape[2] - without
    return window_scores(votes_BHS, places_BS, without_BS, window, best)[0]


def test_a_window_has_the_mean_of_its_votes_or_of_the_better_half() -> None:
    votes = [[1.0, 3.0, 0.0, 0.0, 5.0, 1.0], [0.0, 0.0, 2.0, 2.0, 1.0, 1.0]]
    # Windows of 4: the second has two tokens, and is measured by them.
    assert scores_of(votes, 4, False).tolist() == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    assert scores_of(votes, 4, True).tolist() == [2.0, 2.0, 2.0, 2.0, 3.0, 3.0]


def test_the_suffix_is_in_no_window() -> None:
    votes = [[1.0, 3.0, 8.0, 8.0]]
    assert scores_of(votes, 4, False, without=2)[:2].tolist() == [2.0, 2.0]


def test_windows_stay_the_same_when_some_are_gone() -> None:
    votes_BHS = torch.tensor([[[1.0, 3.0, 4.0, 2.0]]])
    places_BS = torch.tensor([[4, 5, 12, 13]])  # of windows 1 and 3; a padded slot beside them
    padded_BS = torch.tensor([[-1, 4, 5, 12]])
    nobody = torch.zeros(1, 4, dtype=torch.bool)
    assert window_scores(votes_BHS, places_BS, nobody, 4, False)[0].tolist() == [2, 2, 3, 3]
    assert window_scores(votes_BHS, padded_BS, nobody, 4, False)[0, 1:].tolist() == [3.5, 3.5, 2]


def test_groups_get_what_the_papers_code_gives_them() -> None:
    # Mean 2048, groups of 8 of 32 layers, beta 14: [2926, 2341, 1756, 1170] after whole steps.
    found = pyramid(4, 2048, 8 / 14)
    assert [round(x) for x in found] == pytest.approx([2926, 2341, 1756, 1170], abs=1)
    assert sum(found) == pytest.approx(4 * 2048) and pyramid(1, 100.0, 0.5) == [100.0]


def test_the_suffix_votes_and_stays() -> None:
    keys = torch.tensor([math.log(9), 0, 0, 0, 0, 0]).view(1, 1, 6, 1)
    view = KVView(0, 1, (DenseSegment(keys, keys, 6),))
    seen = Seen(0, torch.ones(1, 1, 1, 1), torch.tensor([[5]]))
    scores = WindowKV(window=2, suffix=1, strategy="average").score(view, seen)
    # 9 : 1 : 1 : 1 : 1 : 1 of 14; the third window has one token beside the suffix.
    expected = torch.tensor([5 / 14, 5 / 14, 1 / 14, 1 / 14, 1 / 14, INF])
    torch.testing.assert_close(scores[0, 0], expected)


def test_one_layer_of_a_group_is_asked_and_all_keep_its_windows() -> None:
    asked: list[int] = []

    class Counting(WindowKV):
        def score(self, view: KVView, seen: Seen | None, generator: object = None) -> Tensor:
            asked.append(view.layer)
            return super().score(view, seen)

    spec = spec_of(layers=5)
    method = Counting(shared_layers=2, suffix=4, window=4)
    store = store_of(KVStore, (method,), keep=40, chunk=32, spec=spec)
    read(store, Text.of(spec, 160))
    assert set(asked) == {0, 2, 4}
    kept = [kept_positions(store, layer)[0, 0].tolist() for layer in range(5)]
    assert kept[0] == kept[1] and kept[2] == kept[3] and kept[1] != kept[2]
    assert len(kept[0]) > len(kept[2]) > len(kept[4])


def test_keeps_the_phrase_where_single_votes_tear_it() -> None:
    # The paper's point on a toy: the question looks at some words of a phrase, the rest goes
    # without saying; noise elsewhere is loud but lonely.
    spec, phrase = spec_of(layers=6, kv_heads=1, heads=2), range(40, 48)
    text = Text.of(spec, 120)
    way = torch.zeros(spec.head_dim)
    way[0] = 8.0
    text.keys_LBKTD.mul_(0.05)
    text.queries_LBHTD.mul_(0.05)
    text.queries_LBHTD[..., 112:, :] += way
    text.keys_LBKTD[..., list(phrase)[::2], :] += way / 4
    text.keys_LBKTD[..., list(range(3, 36, 3)), :] += way / 5  # one in three

    def held(method: WindowKV | SnapKV) -> int:
        store = store_of(KVStore, (method,), keep=30, chunk=120, max_tokens=120, spec=spec)
        read(store, text)
        return sum(place in phrase for place in kept_positions(store)[0, 0].tolist())

    assert held(WindowKV(suffix=8, shared_layers=6)) == 8
    assert held(SnapKV(window=8, kernel=1)) == 4


def test_chains_with_codes_of_any_granularity_are_legal() -> None:
    check_chain((WindowKV(), Bfp()))
