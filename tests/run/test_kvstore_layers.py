"""The KV store with methods that encode whole layers, or groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.method import About, Granularity, Kind, Need
from loci.core.ports import Artefact, Lab
from loci.core.spec import ModelSpec
from loci.errors import FingerprintError, FormatError, MethodError
from loci.methods.kv.base import EncodeLayers, LayerGroup, Shapes
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import predict_store
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing import kv_rules
from loci.testing.kv import FakeLab, Text, hidden_of, prepared, read, spec_of, store_of

SPEC = spec_of(layers=5)
PADDED = 4


@dataclass(frozen=True, kw_only=True)
class Whole(EncodeLayers):
    """Keeps everything as it is: keys without rotation as rows, values as bases."""

    about = About(name="whole", kind=Kind.KV, paper="none", idea="for tests")

    group: int | None = 2
    closes: int = 8
    exact: int = 3

    @property
    def closes_every(self) -> int:
        return self.closes

    @property
    def exact_tokens(self) -> int:
        return self.exact

    @property
    def group_layers(self) -> int | None:
        return self.group

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        return {"keys": ((len(layers), spec.kv_heads, spec.head_dim), "float32")}

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        shape = (len(layers), spec.kv_heads, self.closes, spec.head_dim)
        return {"values": (shape, "float32")}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert len(blocks) == len(group.layers)
        rows = torch.stack([block.keys.transpose(1, 2) for block in blocks], 2)
        values = torch.stack([block.values for block in blocks], 1)
        bases = values.unflatten(3, (-1, self.closes)).permute(0, 3, 1, 2, 4, 5)
        return {"keys": rows}, {"values": bases}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        at = layer - group.layers[0]
        values = bases["values"][:, :, at].permute(0, 2, 1, 3, 4).flatten(2, 3)
        return rows["keys"][:, :, at].transpose(1, 2).clone(), values.clone()


@dataclass(frozen=True, kw_only=True)
class Rows(Whole):
    """Keeps keys and values of each token as its row, so that single tokens may go."""

    about = About(name="rows", kind=Kind.KV, paper="none", idea="for tests")
    keeps_groups: ClassVar[bool] = False

    group: int | None = 1

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        return {"both": ((2, spec.kv_heads, spec.head_dim), "float32")}

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        return {}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        (block,) = blocks
        both = torch.stack([block.keys.transpose(1, 2), block.values.transpose(1, 2)], 2)
        return {"both": both}, {}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        keys, values = rows["both"].unbind(2)
        return keys.transpose(1, 2).clone(), values.transpose(1, 2).clone()


@dataclass(frozen=True, kw_only=True)
class Sums(Whole):
    """Keeps of each layer what it adds to the layer before, and carries the sum."""

    about = About(name="sums", kind=Kind.KV, paper="none", idea="for tests")
    granularity: ClassVar[Granularity] = Granularity.GLOBAL

    group: int | None = None

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        return {"more": ((len(layers), self.carried(spec)), "float32")}

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        return {}

    def carried(self, spec: ModelSpec) -> int:
        return 2 * spec.kv_heads * spec.head_dim

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        both = [
            torch.stack([block.keys, block.values], 2).permute(0, 3, 2, 1, 4).flatten(2)
            for block in blocks
        ]
        more = [both[0], *(now - before for before, now in pairwise(both))]
        return {"more": torch.stack(more, 2)}, {}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        assert carried_BTc is not None
        carried_BTc += rows["more"][:, :, layer]
        sizes = (2, group.spec.kv_heads, group.spec.head_dim)
        keys, values = carried_BTc.unflatten(2, sizes).permute(2, 0, 3, 1, 4)
        return keys.clone(), values.clone()


@dataclass(frozen=True, kw_only=True)
class FromHidden(Rows):
    """Keeps hidden states, and turns them into keys by a prepared weight."""

    about = About(
        name="from_hidden",
        kind=Kind.KV,
        paper="none",
        idea="for tests",
        needs=(Need.HIDDEN, Need.ARTEFACT),
    )

    def prepare(self, lab: Lab) -> Artefact:
        made = [lab.weights(f"layer.{layer}.k_proj") for layer in range(lab.spec.layers)]
        return lab.artefact(str(self), {"ways": torch.stack(made)})

    def shared_table(self, spec: ModelSpec) -> Shapes:
        return {"ways": ((spec.layers, spec.kv_heads * spec.head_dim, spec.hidden), "float32")}

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        return {"hidden": ((spec.hidden,), "float32")}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        (block,) = blocks
        assert block.hidden is not None
        return {"hidden": block.hidden}, {}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        keys_BTw = rows["hidden"] @ group.shared["ways"][layer].t()
        keys = keys_BTw.unflatten(2, (group.spec.kv_heads, -1)).transpose(1, 2)
        return keys.clone(), keys.clone()


@dataclass(frozen=True, kw_only=True)
class Uneven(StreamingLLM):
    """Gives later layers more tokens."""

    about = About(name="uneven", kind=Kind.KV, paper="none", idea="for tests")
    allocates: ClassVar[Granularity | None] = Granularity.LAYER

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
class First(Whole):
    """Loses everything but the first tokens, which stay exact."""

    about = About(name="first", kind=Kind.KV, paper="none", idea="for tests")

    @property
    def first_tokens(self) -> int:
        return 11

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().decode(rows, bases, layer, group, carried_BTc)
        return keys * 0, values * 0


METHODS = (Whole(), Whole(group=1), Whole(group=None), Rows(), Sums(), Whole(exact=0, closes=1))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_promised_of_every_method_holds(method: EncodeLayers) -> None:
    for check in (
        kv_rules.check_bytes,
        kv_rules.check_shapes,
        kv_rules.check_unchanged_inputs,
        kv_rules.check_rows,
        kv_rules.check_repeatable,
        kv_rules.check_snapshot,
        kv_rules.check_not_finite,
        kv_rules.check_short,
        kv_rules.check_codes,
    ):
        check(KVStore, method)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("steps", [[60], [16] * 3 + [12], [1] * 60, [7, 1, 1, 30, 21]])
def test_what_loses_nothing_changes_nothing(method: EncodeLayers, steps: list[int]) -> None:
    text = Text.of(SPEC, 60, batch=2)
    plain = store_of(KVStore, (), max_tokens=60, chunk=60, batch=2, spec=SPEC)
    store = store_of(KVStore, (method,), max_tokens=60, chunk=60, batch=2, spec=SPEC)
    for tokens in steps:
        at = store.length
        want, _ = read(plain, text, at, at + tokens)
        got, _ = read(store, text, at, at + tokens)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert all(store.held_tokens(layer) == 60 for layer in range(SPEC.layers))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_padding_is_never_seen(method: EncodeLayers) -> None:
    text = Text.of(SPEC, 40, batch=2)
    store = store_of(KVStore, (method,), max_tokens=40, chunk=10, batch=2, spec=SPEC)
    plain = store_of(KVStore, (), max_tokens=40, chunk=10, batch=2, spec=SPEC)
    for held in (store, plain):
        for first in range(0, 40, 10):
            places = torch.arange(first, first + 10)
            both = torch.stack([places, (places - PADDED).clamp(min=0)])
            for layer in range(SPEC.layers):
                keys, values = (
                    t[layer][:, :, first : first + 10] for t in (text.keys_LBKTD, text.values_LBKTD)
                )
                held.append(layer, keys, values, both)
            held.advance(10)
    for layer in range(SPEC.layers):
        ours, theirs = store.view(layer).dense(), plain.view(layer).dense()
        assert torch.equal(ours.positions, theirs.positions)
        real = (ours.positions >= 0).unsqueeze(-1)
        torch.testing.assert_close(ours.keys * real, theirs.keys * real, rtol=1e-4, atol=1e-4)


def test_bytes_are_rows_bases_and_one_block_exact() -> None:
    method = Whole(group=2, closes=8, exact=3)
    tokens, chunk, both = 100, 16, 2 * SPEC.kv_heads * SPEC.head_dim * 4
    coded = (tokens - 3) // 8 * 8
    expected = tokens * 4 + SPEC.layers * coded * both  # positions, keys and values
    expected += SPEC.layers * (3 + 8) * both  # the exact tail
    expected += 2 * chunk * both  # a chunk of each layer of a group
    assert predict_store(SPEC, (method,), max_tokens=tokens, chunk=chunk) == expected
    ledger = Ledger({"dram": expected})
    store = store_of(KVStore, (method,), max_tokens=tokens, spec=SPEC, ledger=ledger)
    assert store.nbytes() == {"dram": expected}


@pytest.mark.parametrize("method", [Sums(), Whole()], ids=repr)
def test_layers_may_be_read_in_any_order(method: EncodeLayers) -> None:
    text = Text.of(SPEC, 50)
    store = store_of(KVStore, (method,), max_tokens=60, spec=SPEC)
    read(store, text)
    for layer in (3, 3, 0, 4, 1, 2):
        got = store.view(layer).dense().keys
        torch.testing.assert_close(got, text.keys_LBKTD[layer], rtol=1e-4, atol=1e-4)
    store.crop(16)
    read(store, Text.of(SPEC, 50, seed=3), start=16)
    got = store.view(2).dense().keys[:, :, 16:]
    want = Text.of(SPEC, 50, seed=3).keys_LBKTD[2][:, :, 16:]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_tokens_leave_rows_that_stand_alone() -> None:
    text, chain = Text.of(SPEC, 90), (StreamingLLM(sinks=2, window=30), Rows())
    store = store_of(KVStore, chain, max_tokens=90, spec=SPEC)
    read(store, text)
    places = store.view(4).positions()[0, 0].tolist()
    assert places[:2] == [0, 1] and places[-30:] == list(range(60, 90)) and len(places) < 60
    block = store.view(4).dense()
    torch.testing.assert_close(
        block.keys[0, 1], text.keys_LBKTD[4, 0, 1, places], rtol=1e-4, atol=1e-4
    )
    with pytest.raises(MethodError, match="evicts by head"):
        store_of(KVStore, (SnapKV(), Rows()), spec=SPEC)
    with pytest.raises(MethodError, match="rows of several layers"):
        store_of(KVStore, (StreamingLLM(), Rows(group=2)), spec=SPEC)
    with pytest.raises(MethodError, match="decodes whole groups"):
        store_of(KVStore, (StreamingLLM(), Whole()), spec=SPEC)


def test_rows_of_layers_with_numbers_of_their_own_stay_together() -> None:
    text, chain = Text.of(SPEC, 120), (Uneven(sinks=2, window=500), Rows())
    store = store_of(KVStore, chain, keep=40, max_tokens=120, spec=SPEC)
    before = store.nbytes()
    read(store, text)
    held = [store.held_tokens(layer) for layer in range(SPEC.layers)]
    assert held[0] < held[2] < held[4] and store.nbytes() == before
    for layer in (0, 4):
        block = store.view(layer).dense()
        places = block.positions[0, 0]
        assert places[:2].tolist() == [0, 1] and int(places[-1]) == 119
        want = text.keys_LBKTD[layer][:, :, places]
        torch.testing.assert_close(block.keys, want, rtol=1e-4, atol=1e-4)
    tensors, meta = store.snapshot()
    twin = KVStore.restore(SPEC, chain, tensors, meta)
    assert torch.equal(twin.view(3).dense().keys, store.view(3).dense().keys)


@pytest.mark.parametrize("group", [1, 2, None])
def test_first_tokens_stay_exact(group: int | None) -> None:
    text = Text.of(SPEC, 60)
    store = store_of(KVStore, (First(group=group, closes=8, exact=3),), max_tokens=60, spec=SPEC)
    read(store, text)
    tensors, meta = store.snapshot()
    twin = KVStore.restore(SPEC, (First(group=group, closes=8, exact=3),), tensors, meta)
    for held in (store, store.fork(), twin):
        block = held.view(4).dense()
        assert torch.equal(block.keys[:, :, :11], text.keys_LBKTD[4][:, :, :11])
        assert not block.keys[:, :, 11:48].any() and not block.values[:, :, 11:48].any()
        assert torch.equal(block.values[:, :, -3:], text.values_LBKTD[4][:, :, -3:])


def test_hidden_states_and_what_was_prepared_reach_the_method() -> None:
    method = FromHidden()
    store = store_of(KVStore, (method,), max_tokens=60, spec=SPEC)
    text = Text.of(SPEC, 50)
    read(store, text, stop=40)
    states = hidden_of(store, text, 3, 0, 40)
    assert states is not None
    ways = FakeLab(SPEC).weights("layer.3.k_proj")
    want = (states @ ways.t()).unflatten(2, (2, -1)).transpose(1, 2)
    got = store.view(3).dense().values
    torch.testing.assert_close(got[:, :, :32], want[:, :, :32], rtol=1e-4, atol=1e-4)
    tensors, meta = store.snapshot()
    twin, fork = KVStore.restore(SPEC, (method,), tensors, meta), store.fork()
    after, _ = read(store, text, 40)
    for other in (twin, fork):
        assert torch.equal(read(other, text, 40)[0], after)
    with pytest.raises(MethodError, match="must be shown"):
        fork.append(0, *(torch.zeros(1, 2, 1, 32),) * 2, torch.tensor([[50]]))


def test_what_was_prepared_for_something_else_is_refused() -> None:
    method = FromHidden()
    made = prepared(method, SPEC)
    with pytest.raises(MethodError, match="loci methods prepare"):
        KVStore(SPEC, (method,), max_tokens=9)
    other = FakeLab(SPEC.with_fingerprint("other"))
    with pytest.raises(FingerprintError, match="something else"):
        KVStore(SPEC, (method,), max_tokens=9, artefacts={"from_hidden": method.prepare(other)})
    lab, ledger = FakeLab(SPEC), Ledger({"dram": 2**30})
    for bad in ({}, {"ways": made.tensors["ways"][:2]}):
        with pytest.raises(FormatError, match="lacks ways"):
            KVStore(
                SPEC,
                (method,),
                max_tokens=9,
                artefacts={"from_hidden": lab.artefact(str(method), bad)},
                ledger=ledger,
            )
    assert ledger.used("dram") == 0


@pytest.mark.parametrize("method", [Whole(), Rows(), Sums(), First(group=1)], ids=repr)
def test_reordered_rows_go_on_as_the_rows_they_came_from(method: EncodeLayers) -> None:
    text = Text.of(SPEC, 60, batch=2)
    store, plain = (
        store_of(KVStore, (method,), max_tokens=60, batch=2, spec=SPEC) for _ in range(2)
    )
    read(store, text, stop=50)
    read(plain, text, stop=50)
    store.reorder(torch.tensor([1, 1]))
    swapped = Text(*(t[:, [1, 1]] for t in vars(text).values()))
    got, want = read(store, swapped, 50)[0], read(plain, text, 50)[0]
    torch.testing.assert_close(got, want[:, [1, 1]])
