"""KVzip against paper and pencil."""

from __future__ import annotations

import math

import torch

from loci.methods.kv.kvzip import KVzip
from loci.methods.kv.random import Random
from loci.nn.kv import DenseSegment, KVView, Seen
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, needle_kept, read, spec_of, store_of


def test_the_best_probe_query_decides() -> None:
    # Keys ln 3, 0; queries 1 and -1: weights 3 : 1 and 1 : 3, so both get 3/4 once.
    keys = torch.tensor([math.log(3), 0.0]).view(1, 1, 2, 1)
    view = KVView(0, 1, (DenseSegment(keys, keys, 2),))
    seen = Seen(0, torch.tensor([1.0, -1.0]).view(1, 1, 2, 1), torch.tensor([[2, 3]]))
    torch.testing.assert_close(KVzip().score(view, seen), torch.full((1, 1, 2), 0.75))


def test_scores_only_grow_and_the_first_replaces_none() -> None:
    remembered = torch.tensor([[[0.5, 0.5, math.inf]]])
    fresh = torch.tensor([[[0.9, 0.1, 0.2]]])
    torch.testing.assert_close(KVzip().merge(remembered, fresh), torch.tensor([[[0.9, 0.5, 0.2]]]))


def test_repeats_each_chunk_once_after_its_prompt() -> None:
    method = KVzip(prompt=(7, 8))
    assert method.probe_ids([1, 2]) == [7, 8, 1, 2]
    text = Text.of(spec_of(), 60)
    store = store_of(KVStore, (KVzip(),), keep=20, chunk=16)
    _, prefiller = read(store, text)
    assert prefiller.probes == 4 and store.held_tokens(0) <= 20
    roomy = store_of(KVStore, (KVzip(),), keep=200, chunk=16)
    _, prefiller = read(roomy, text)
    assert prefiller.probes == 0, "nothing can be evicted, so nothing needs a score"


def test_keeps_what_repeating_reads_whatever_is_asked_later() -> None:
    # The paper's point on a toy: no query of the text asks for the needle, repeating it does.
    found = [needle_kept(KVStore, KVzip(), asked=False, seed=seed) for seed in range(3)]
    by_lot = [needle_kept(KVStore, Random(window=4), asked=False, seed=seed) for seed in range(3)]
    assert min(found) == 1.0 and sum(by_lot) / 3 < 0.5


def test_decoded_tokens_are_the_newest_and_stay() -> None:
    text = Text.of(spec_of(), 70)
    store = store_of(KVStore, (KVzip(),), keep=20, chunk=16)
    read(store, text, stop=60)
    for first in range(60, 70):
        positions = torch.tensor([[first]])
        for layer in (0, 1):
            _, k, v = (t[layer][:, :, first : first + 1] for t in vars(text).values())
            store.append(layer, k, v, positions)
        store.advance(1)
    assert set(range(60, 70)) <= set(kept_positions(store)[0, 0].tolist())
