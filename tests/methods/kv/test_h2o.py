"""H2O against paper and pencil."""

from __future__ import annotations

import math

import torch

from loci.methods.kv.h2o import H2O
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.nn.kv import DenseSegment, KVView, Seen
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, read, spec_of, store_of


def view_of(keys: list[float]) -> KVView:
    tensor = torch.tensor(keys).view(1, 1, -1, 1)
    return KVView(0, 1, (DenseSegment(tensor, tensor, len(keys)),))


def test_scores_are_column_sums() -> None:
    # Queries 0 and 1 at positions 2 and 3 of keys ln 4, 0, 0, 0: thirds, then 4 : 1 : 1 : 1.
    queries = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    seen = Seen(0, queries, torch.tensor([[2, 3]]))
    scores = H2O(recent=1).score(view_of([math.log(4), 0, 0, 0]), seen)
    expected = torch.tensor([1 / 3 + 4 / 7, 1 / 3 + 1 / 7, 1 / 3 + 1 / 7, math.inf])
    torch.testing.assert_close(scores[0, 0], expected)


def test_votes_add_up_and_new_tokens_start_from_nothing() -> None:
    remembered = torch.tensor([1.5, 0.25, math.inf])
    fresh = torch.tensor([0.5, 0.5, 0.125])
    assert H2O().merge(remembered, fresh).tolist() == [2.0, 0.75, 0.125]


def test_without_weight_on_the_past_only_the_recent_are_special() -> None:
    # Limit case: uniform attention gives every token the votes of all that could see it.
    text = Text.of(spec_of(), 64)
    text.queries_LBHTD.zero_()
    store = store_of(KVStore, (H2O(recent=8),), keep=24, chunk=64)
    read(store, text)
    ours = kept_positions(store)[0, 0].tolist()
    window = store_of(KVStore, (StreamingLLM(sinks=len(ours) - 8, window=8),), chunk=64)
    read(window, text)
    assert ours == kept_positions(window)[0, 0].tolist()


def test_keeps_a_heavy_hitter_that_the_latest_queries_left() -> None:
    # The paper's point on a toy: most queries look at token 20, only the very last ones do not.
    text, place = Text.of(spec_of(), 120), 20
    text.keys_LBKTD[:, :, :, place] = 3.0
    text.queries_LBHTD.mul_(0.1)
    text.queries_LBHTD[:, :, :, :112] += 1.0
    text.queries_LBHTD[:, :, :, 112:] -= 1.0

    def share(method: H2O | SnapKV) -> float:
        store = store_of(KVStore, (method,), keep=24, chunk=120)
        read(store, text)
        return float((kept_positions(store) == place).any(-1).float().mean())

    assert share(H2O(recent=8)) == 1.0
    assert share(SnapKV(window=8)) == 0.0
