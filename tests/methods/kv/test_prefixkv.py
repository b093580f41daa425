"""PrefixKV: one threshold for all layers, and sums of attention by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.core.method import Method
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.cskv import Cskv
from loci.methods.kv.kvtc import Kvtc
from loci.methods.kv.prefixkv import POINTS, PrefixKV, PrefixKVOffline, prefix_lengths
from loci.nn.kv import DenseSegment, KVView, Seen
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, kept_positions, prepared, read, spec_of, store_of

SPEC = spec_of(layers=3, kv_heads=2, heads=4)


def test_by_hand() -> None:
    # Halves and quarters: with one token for two layers each the threshold is a half.
    layers = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([8.0, 1.0, 1.0])]
    assert prefix_lengths(layers, 2) == [1, 1]
    # Three quarters: two of the flat layer, one of the steep one, where one holds 0.8.
    assert prefix_lengths(layers, 3) == [2, 1]
    assert prefix_lengths([torch.ones(3), torch.ones(4)], 99) == [3, 4]
    assert prefix_lengths([torch.ones(0), torch.ones(4)], 2) == [0, 2]


@settings(max_examples=50, deadline=None)
@given(
    masses=st.lists(
        st.lists(st.floats(0.001, 10), min_size=2, max_size=30), min_size=1, max_size=6
    ),
    share=st.floats(0.1, 0.99),
)
def test_budgets_are_met_by_one_threshold(masses: list[list[float]], share: float) -> None:
    layers = [torch.tensor(mass) for mass in masses]
    total = max(len(layers), round(share * sum(map(len, layers))))
    found = prefix_lengths(layers, total)
    assert sum(found) == min(total, sum(map(len, layers)))
    held, without, more = [], [], []
    for mass, n in zip(layers, found, strict=True):
        curve = [0.0, *(mass.sort(descending=True).values.double().cumsum(0) / mass.double().sum())]
        held.append(float(curve[n]))
        without.append(float(curve[max(n - 1, 0)]))
        more.append(float(curve[min(n + 1, len(mass))]))
    # One token less lies below everybody's share, within one token.
    assert max(without) <= min(more) + 1e-6
    assert all(a <= b + 1e-9 for a, b in zip(without, held, strict=True))


def test_equal_layers_get_equal_numbers_and_more_with_more() -> None:
    mass = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert len(set(prefix_lengths([mass, mass.flip(0), mass], 60))) == 1
    steep = mass**8
    last = [0, 0]
    for total in range(2, 100, 7):
        found = prefix_lengths([mass, steep], total)
        assert all(now >= before for now, before in zip(found, last, strict=True))
        last = found
    assert prefix_lengths([mass, steep], 40)[0] > 2 * prefix_lengths([mass, steep], 40)[1]


def test_sums_of_attention_by_hand() -> None:
    # Keys 0, 0, 0 and queries that see one, two, three tokens: 1 + 1/2 + 1/3, 1/2 + 1/3, 1/3.
    zeros = torch.zeros(1, 1, 3, 2)
    places = torch.arange(3)
    view = KVView(0, 1, (DenseSegment(zeros, zeros, 3, positions_BKS=places.view(1, 1, -1)),))
    seen = Seen(0, zeros, places[None])
    found = PrefixKV(sinks=1, recent=1).score(view, seen)[0, 0].tolist()
    assert found == pytest.approx([math.inf, 1 / 2 + 1 / 3, math.inf])
    even = PrefixKV(sinks=0, recent=1, normalise=True).score(view, seen)[0, 0].tolist()
    assert even[:2] == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, (1 / 2 + 1 / 3) / 2])


def _concentrated(text: Text, layer: int) -> None:
    """Let all queries of a layer look at four tokens."""
    way = torch.zeros(SPEC.head_dim)
    way[0] = 8.0
    text.queries_LBHTD[layer] += way
    text.keys_LBKTD[layer][:, :, [10, 20, 30, 40]] += way


@pytest.mark.parametrize("method", [PrefixKV(recent=1), PrefixKVOffline(recent=1)], ids=str)
def test_layers_that_look_at_few_tokens_get_few(method: PrefixKV | PrefixKVOffline) -> None:
    text = Text.of(SPEC, 200)
    _concentrated(text, 1)
    store = store_of(KVStore, (method,), keep=40, max_tokens=200, spec=SPEC)
    if isinstance(method, PrefixKVOffline):
        made = prepared(method, SPEC)
        assert made.tensors["curves"].shape == (3, POINTS)
    before = store.nbytes()
    read(store, text)
    assert store.nbytes() == before
    held = [store.held_tokens(layer) for layer in range(3)]
    if isinstance(method, PrefixKV):
        assert held[1] < 0.7 * min(held[0], held[2])
        kept = set(kept_positions(store, 1)[0, 0].tolist())
        assert {0, 1, 2, 3, 10, 20, 30, 40, 199} <= kept
    assert sum(held) <= 120
    for layer in range(3):
        assert torch.equal(*kept_positions(store, layer)[0])


def test_prepared_curves_decide_before_anything_is_read() -> None:
    flat = torch.linspace(1 / POINTS, 1, POINTS)
    steep = flat ** (1 / 8)
    curves = torch.stack([flat, steep, flat])
    method = PrefixKVOffline(sinks=2, recent=3)
    asked = method.allocate(None, 30, SPEC, {"curves": curves}, context=100)
    assert asked is not None and all(n > 5 for n in asked)
    free = [n - 5 for n in asked]  # what is protected comes on top
    assert abs(free[0] - free[2]) <= 1 and free[2] > 2 * free[1]
    assert sum(free) == pytest.approx(3 * 25, abs=1)
    assert method.allocate([flat.view(1, 1, -1)] * 3, 25, SPEC, {}, context=100) is None


@pytest.mark.parametrize(
    "codec", [Bfp(tail=8, window=8), Cskv(window=8), Kvtc(window=8, sinks=0)], ids=str
)
def test_layers_with_numbers_of_their_own_are_encoded(codec: Method) -> None:
    text, chain = Text.shared(SPEC, 200), (PrefixKV(recent=1), codec)
    _concentrated(text, 1)
    store = store_of(KVStore, chain, keep=40, max_tokens=200, spec=SPEC)
    before = store.nbytes()
    read(store, text)
    assert store.nbytes() == before
    held = [store.held_tokens(layer) for layer in range(3)]
    assert held[1] < held[0] and sum(held) <= 3 * (40 + 16)
    block = store.view(0).dense()
    want = text.keys_LBKTD[0][:, :, block.positions[0, 0]]
    assert float((block.keys - want).norm() / want.norm()) < 0.2
