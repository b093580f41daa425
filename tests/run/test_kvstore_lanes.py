"""The KV store where layers or heads hold numbers of tokens of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.method import About, Granularity, Kind
from loci.core.spec import ModelSpec
from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import Select
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.store_plan import budget_for, fitted, predict_store
from loci.nn.attend import attend, attend_reference
from loci.nn.kv import KVView, Seen
from loci.run.kvstore import KVStore
from loci.testing import kv_rules
from loci.testing.kv import SCALE, Text, kept_positions, read, spec_of, store_of

SPEC = spec_of(layers=3, kv_heads=2, heads=4)


@dataclass(frozen=True, kw_only=True)
class Uneven(Select):
    """Keeps the newest; later layers get more, by a factor from the start."""

    about = About(name="uneven", kind=Kind.KV, paper="none", idea="for tests")
    granularity: ClassVar[Granularity] = Granularity.LAYER
    allocates: ClassVar[Granularity | None] = Granularity.LAYER

    def score(self, view: KVView, seen: Seen | None, generator: object = None) -> Tensor:
        return view.positions().float()

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        return [1.0 + layer for layer in range(spec.layers)]


@dataclass(frozen=True, kw_only=True)
class ByNeed(Uneven):
    """Gives slots by the number of large keys, found out while reading; by layer."""

    about = About(name="by_need", kind=Kind.KV, paper="none", idea="for tests")
    reallocates: ClassVar[bool] = True

    def score(self, view: KVView, seen: Seen | None, generator: object = None) -> Tensor:
        return view.dense().keys.abs().amax(-1).mean(1, keepdim=True).expand(-1, view.heads, -1)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        if scores is None:
            return None
        return [float((part > 10).sum()) + 1 for part in scores]


@dataclass(frozen=True, kw_only=True)
class ByHead(ByNeed):
    """The same by head."""

    about = About(name="by_head", kind=Kind.KV, paper="none", idea="for tests")
    granularity: ClassVar[Granularity] = Granularity.HEAD
    allocates: ClassVar[Granularity | None] = Granularity.HEAD

    def score(self, view: KVView, seen: Seen | None, generator: object = None) -> Tensor:
        return view.dense().keys.abs().amax(-1)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        if scores is None:
            return None
        return [float((head > 10).sum()) + 1 for part in scores for head in part[0]]


def loud(text: Text, layer: int, head: int, places: Sequence[int]) -> None:
    """Make the keys of some tokens large."""
    text.keys_LBKTD[layer][:, head, list(places)] *= 20


def exact_over(store: KVStore, text: Text, layer: int, queries: Tensor, now: int) -> Tensor:
    """Return attention over what a layer holds, one head after the other, computed plainly."""
    found, groups = [], store.spec.groups
    places = kept_positions(store, layer)[0]
    for head in range(store.spec.kv_heads):
        real = places[head][places[head] >= 0]
        keys = text.keys_LBKTD[layer][:, head : head + 1, real]
        values = text.values_LBKTD[layer][:, head : head + 1, real]
        q = queries[:, head * groups : (head + 1) * groups]
        sees = torch.ones(1, 1, q.shape[2], len(real), dtype=torch.bool)
        found.append(attend_reference(q, keys, values, sees, SCALE)[0])
    return torch.cat(found, 1)


@pytest.mark.parametrize("method", [Uneven(), ByNeed(), ByHead()], ids=str)
def test_what_is_promised_of_every_method_holds(method: Select) -> None:
    kv_rules.check(KVStore, method)


def test_later_layers_hold_more_in_the_same_bytes() -> None:
    budget = budget_for(SPEC, (Uneven(),), 20, max_tokens=100, chunk=16)
    ledger = Ledger({"dram": budget})
    store = KVStore(SPEC, (Uneven(),), max_tokens=100, budget_bytes=budget, chunk=16, ledger=ledger)
    read(store, Text.of(SPEC, 100))
    held = [store.held_tokens(layer) for layer in range(3)]
    assert held[0] < held[1] < held[2] and sum(held) <= 60
    assert held[2] >= 2.5 * held[0]
    predicted = predict_store(SPEC, (Uneven(),), max_tokens=100, budget_bytes=budget, chunk=16)
    assert store.nbytes() == {"dram": predicted} and predicted <= budget
    for layer in range(3):
        assert kept_positions(store, layer)[0, 0].tolist() == list(range(100 - held[layer], 100))


@pytest.mark.parametrize(("method", "head"), [(ByNeed(), None), (ByHead(), 1)])
def test_room_goes_where_it_is_needed(method: Select, head: int | None) -> None:
    text = Text.of(SPEC, 160)
    for one in range(2) if head is None else [head]:
        loud(text, 1, one, range(5, 160, 4))
    store = store_of(KVStore, (method,), keep=18, max_tokens=160, spec=SPEC)
    before = store.nbytes()
    read(store, text)
    assert store.nbytes() == before
    places = kept_positions(store, 1)[0]
    loudest = int((places[1] >= 0).sum())
    others = [kept_positions(store, layer)[0, 0] for layer in (0, 2)]
    assert loudest > 25 and all(int((other >= 0).sum()) < 18 for other in others)
    if head is not None:
        assert int((places[0] >= 0).sum()) < 18
    kept = {int(place) for place in places[1]}
    assert len(kept & set(range(5, 160, 4))) >= 25, "the loud tokens stay"


@pytest.mark.parametrize(
    "chain", [(ByNeed(),), (ByHead(),), (ByHead(), Bfp(tail=4, window=4))], ids=str
)
def test_attention_over_uneven_layers_is_attention_over_what_they_hold(
    chain: tuple[Select, ...],
) -> None:
    text = Text.of(SPEC, 120)
    loud(text, 1, 1, range(3, 120, 3))
    store = store_of(KVStore, chain, keep=18, max_tokens=130, spec=SPEC)
    read(store, text)
    queries = Text.of(SPEC, 2, seed=5).queries_LBHTD
    now = torch.full((1, 2), 125)
    tolerance = {"rtol": 0.1, "atol": 0.1} if len(chain) > 1 else {"rtol": 1e-4, "atol": 1e-5}
    for layer in range(3):
        got, _ = attend(queries[layer], store.view(layer), positions=now, scale=SCALE)
        want = exact_over(store, text, layer, queries[layer], 125)
        torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("method", [Uneven(), ByNeed(), ByHead()], ids=str)
def test_copies_of_uneven_stores_read_on_alike(method: Select) -> None:
    text = Text.of(SPEC, 140)
    loud(text, 2, 0, range(0, 140, 5))
    store = store_of(KVStore, (method,), keep=16, max_tokens=150, spec=SPEC)
    read(store, text, stop=100)
    tensors, meta = store.snapshot()
    twin, fork = KVStore.restore(SPEC, (method,), tensors, meta), store.fork()
    want, _ = read(store, text, 100)
    for other in (twin, fork):
        assert torch.equal(read(other, text, 100)[0], want)
    store.crop(0)
    fresh = store_of(KVStore, (method,), keep=16, max_tokens=150, spec=SPEC)
    assert torch.equal(read(store, text)[0], read(fresh, text)[0])


def test_shares_keep_their_proportions_and_their_sum() -> None:
    assert fitted([1, 2, 3], 60, 100) == [10, 20, 30] or sum(fitted([1, 2, 3], 60, 100)) == 60
    assert fitted([0, 0, 0], 9, 5) == [3, 3, 3]
    assert fitted([0, 1, 0], 12, 10) == [1, 10, 1]
    assert fitted([1, 100, 1], 18, 10) == [4, 10, 4]
    assert fitted([5, 5], 100, 10) == [10, 10]
    for bad in ([1.0, float("nan")], [1.0, -1.0]):
        with pytest.raises(ParameterError):
            fitted(bad, 10, 10)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(MethodError, match="one row at a time"):
        store_of(KVStore, (ByNeed(),), keep=10, batch=2)
