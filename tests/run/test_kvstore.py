"""The KV store: bytes, chunks, padding, chains, and copies of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.method import About, Granularity, Kind, Method
from loci.core.spec import ModelSpec
from loci.errors import (
    BudgetError,
    ContextError,
    FingerprintError,
    FormatError,
    MethodError,
    ModelError,
    ParameterError,
)
from loci.methods.kv.base import Encode, Shapes
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.chain import Chain, check_chain
from loci.methods.kv.kvzip import KVzip
from loci.methods.kv.random import Random
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import (
    BLOCK_TOKENS,
    budget_for,
    decoded_tokens,
    predict_store,
    slots_for,
)
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.nn.attend import attend, attend_reference
from loci.nn.kv import KVBlock, Seen
from loci.run import measure
from loci.run.kvstore import KVStore
from loci.testing.kv import SCALE, Text, read, spec_of, store_of
from loci.testing.models import tiny_spec

CHAINS: tuple[Chain, ...] = (
    (),
    (StreamingLLM(sinks=2, window=20),),
    (SnapKV(window=4),),
    (KVzip(),),
    (Random(window=2),),
    (Bfp(tail=8, window=5),),
    (Bfp(bits=5, block=16, sort="none", tail=3, window=0, sinks=0),),
    (SnapKV(window=4), Bfp(bits=4, tail=8, window=0)),
    (StreamingLLM(sinks=2, window=20), Bfp(bits=6, tail=5, window=3)),
)


@dataclass(frozen=True, kw_only=True)
class ByLayer(Encode):
    """An encoder whose heads share codes, so that all heads must keep the same tokens."""

    about = About(name="by_layer", kind=Kind.KV, paper="none", idea="for tests")
    granularity: ClassVar[Granularity] = Granularity.LAYER

    @property
    def closes_every(self) -> int:
        return 4

    def code_table(self, head_dim: int) -> Shapes:
        return {"keys": ((head_dim,), "float32"), "values": ((head_dim,), "float32")}

    def encode(self, block: KVBlock, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"keys": block.keys.float(), "values": block.values.float()}

    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        return codes["keys"], codes["values"]


@dataclass(frozen=True, kw_only=True)
class Stranger(Method):
    """A method of another kind."""

    about = About(name="stranger", kind=Kind.QUANT, paper="none", idea="for tests")


def exact(text: Text, stop: int) -> Tensor:
    """Return causal attention over the whole text [L, B, H, T, D]."""
    visible = torch.ones(stop, stop, dtype=torch.bool).tril()
    batch, kv_heads = text.keys_LBKTD.shape[1:3]
    return torch.stack(
        [
            attend_reference(q, k, v, visible.expand(batch, kv_heads, stop, stop), SCALE)[0]
            for q, k, v in zip(
                *(t[:, :, :, :stop] for t in vars(text).values()),
                strict=True,
            )
        ]
    )


# -- bytes --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    chain=st.sampled_from(CHAINS),
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([32, 64]),
    max_tokens=st.integers(1, 90),
    batch=st.integers(1, 3),
    half=st.booleans(),
    chunk=st.integers(5, 40),
    slots=st.one_of(st.none(), st.integers(1, 90)),
)
def test_predicted_bytes_are_held_bytes(
    chain: Chain,
    layers: int,
    kv_heads: int,
    head_dim: int,
    max_tokens: int,
    batch: int,
    half: bool,
    chunk: int,
    slots: int | None,
) -> None:
    spec = spec_of(layers=layers, kv_heads=kv_heads, heads=kv_heads, head_dim=head_dim)
    if any(isinstance(method, KVzip) for method in chain):
        batch = 1
    size = 2 if half else 4
    arguments = {"max_tokens": max_tokens, "batch": batch, "chunk": chunk}
    select = check_chain(chain).select
    budget = None
    if select is not None and slots is not None:
        slots = max(slots, slots_for(min(select.protects(), max_tokens)))
        budget = budget_for(spec, chain, slots, dtype_bytes=size, **arguments)
    predicted = predict_store(spec, chain, dtype_bytes=size, budget_bytes=budget, **arguments)
    ledger = Ledger({"dram": predicted})
    store = KVStore(
        spec,
        chain,
        dtype=torch.float16 if half else torch.float32,
        budget_bytes=budget,
        ledger=ledger,
        generator=torch.Generator(),
        **arguments,
    )
    ledger.check_integrity()
    assert store.nbytes() == {"dram": predicted} and ledger.by_kind("dram") == {"kv": predicted}
    assert budget is None or predicted <= budget
    read(store, Text.of(spec, max_tokens, batch))
    assert store.nbytes() == {"dram": predicted} and store.length == max_tokens
    store.release()
    store.release()
    assert ledger.used("dram") == 0


def test_an_exact_store_is_keys_values_and_positions() -> None:
    spec = spec_of(layers=2, kv_heads=2, head_dim=32)
    per_token = 2 * 2 * 2 * 32 * 4 + 4
    assert predict_store(spec, max_tokens=64) == 64 * per_token
    assert predict_store(spec, max_tokens=65) == 2 * BLOCK_TOKENS * per_token


def test_eight_bit_codes_take_8_25_bits_per_element() -> None:
    spec = spec_of(layers=2, kv_heads=2, head_dim=64)
    more = [predict_store(spec, (Bfp(sort="none"),), max_tokens=n, chunk=16) for n in (1000, 2000)]
    assert (more[1] - more[0]) == 1000 * (spec.kv_elements_per_token() * 8.25 / 8 + 4)


def test_budgets_that_are_too_small_are_refused_with_the_gap() -> None:
    spec = spec_of()
    with pytest.raises(BudgetError, match="short"):
        KVStore(spec, max_tokens=100, budget_bytes=1000)
    with pytest.raises(BudgetError, match=r"snapkv needs .* for 35 tokens"):
        KVStore(spec, (SnapKV(),), max_tokens=100, budget_bytes=1000)
    ledger = Ledger({"dram": 1000})
    with pytest.raises(BudgetError, match="kv needs"):
        KVStore(spec, max_tokens=100, ledger=ledger)
    assert ledger.used("dram") == 0


def test_decoding_is_bounded_by_a_tile() -> None:
    assert decoded_tokens((), 5000) == 0 == decoded_tokens((SnapKV(),), 5000)
    assert decoded_tokens((Bfp(),), 5000) == 1024 and decoded_tokens((Bfp(),), 50) == 50


# -- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [(), (ByLayer(),), (StreamingLLM(), ByLayer())])
@pytest.mark.parametrize("steps", [[60], [16] * 3 + [12], [1] * 60, [7, 1, 1, 30, 21]])
def test_chunks_do_not_change_exact_attention(chain: Chain, steps: list[int]) -> None:
    text = Text.of(spec_of(), 60, batch=2)
    store = store_of(KVStore, chain, max_tokens=60, chunk=60, batch=2)
    got = []
    for tokens in steps:
        got.append(read(store, text, store.length, store.length + tokens)[0])
    torch.testing.assert_close(torch.cat(got, 3), exact(text, 60), rtol=1e-4, atol=1e-5)
    assert store.length == 60 and store.held_tokens(1) == 60


@pytest.mark.parametrize("chain", [(), (ByLayer(),), (StreamingLLM(sinks=2, window=18),)])
def test_left_padding_is_never_seen(chain: Chain) -> None:
    spec, pad = spec_of(), 5
    text = Text.of(spec, 20, batch=2)
    store = store_of(KVStore, chain, max_tokens=40, chunk=8, batch=2)
    alone = store_of(KVStore, chain, max_tokens=40, chunk=8)
    short = Text(*(t[:, 1:, :, pad:] for t in vars(text).values()))
    want, _ = read(alone, short)
    got = []
    for first in range(0, 20, 4):
        slots = torch.arange(first, first + 4)
        positions = torch.stack([slots, (slots - pad).clamp(min=0)])
        layers = []
        for layer in range(spec.layers):
            q, k, v = (t[layer][:, :, first : first + 4] for t in vars(text).values())
            view = store.append(layer, k, v, positions)
            layers.append(attend(q, view, positions=positions, scale=SCALE)[0])
        store.advance(4)
        got.append(torch.stack(layers))
    both = torch.cat(got, 3)
    torch.testing.assert_close(both[:, 1:, :, pad:], want, rtol=1e-4, atol=1e-5)
    if not chain:
        torch.testing.assert_close(both[:, :1], exact(text, 20)[:, :1], rtol=1e-4, atol=1e-5)


def test_a_trial_keeps_nothing() -> None:
    text = Text.of(spec_of(), 40)
    for chain in CHAINS:
        store = store_of(KVStore, chain, max_tokens=60)
        read(store, text, stop=30)
        before = [store.view(layer).dense() for layer in (0, 1)]
        positions = torch.arange(30, 40)[None]
        with store.trial():
            for layer in (0, 1):
                view = store.append(
                    layer,
                    text.keys_LBKTD[layer][:, :, 30:],
                    text.values_LBKTD[layer][:, :, 30:],
                    positions,
                )
                assert view.tokens == before[layer].keys.shape[2] + 10
        assert store.length == 30
        for layer in (0, 1):
            assert torch.equal(store.view(layer).dense().keys, before[layer].keys)


def test_more_tokens_than_the_context_are_refused_before_anything_changes() -> None:
    store = store_of(KVStore, (), max_tokens=20)
    text = Text.of(spec_of(), 30)
    read(store, text, stop=16)
    with pytest.raises(ContextError, match="21 tokens do not fit"):
        read(store, text, start=16, stop=21)
    assert store.length == 16 and store.held_tokens(0) == 16
    with pytest.raises(ParameterError, match="at most one chunk"):
        read(store_of(KVStore, (), chunk=4), text, chunk=5)
    with pytest.raises(ParameterError, match="do not fit the store"):
        read(store_of(KVStore, (), batch=2), text)


def test_one_bad_value_is_refused_by_layer() -> None:
    text = Text.of(spec_of(), 10)
    text.values_LBKTD[0, 0, 1, 9, 31] = -torch.inf
    with pytest.raises(ModelError, match="values of layer 0"):
        read(store_of(KVStore, ()), text)
    text = Text.of(spec_of(), 10)
    text.keys_LBKTD[0, 0, 1, 9, 31] = 1e6  # finite, and too large for float16
    with pytest.raises(ModelError, match="float16"):
        read(store_of(KVStore, (), dtype=torch.float16), text)


def test_a_store_that_must_be_shown_something_says_so() -> None:
    text = Text.of(spec_of(), 60)
    with pytest.raises(MethodError, match="shown the queries"):
        _read_blindly(store_of(KVStore, (SnapKV(window=8),), keep=20), text)
    with pytest.raises(MethodError, match="finish_chunk"):
        _read_blindly(store_of(KVStore, (KVzip(),), keep=20), text)
    with pytest.raises(MethodError, match="seeded generator"):
        KVStore(spec_of(), (Random(),), max_tokens=9)
    with pytest.raises(MethodError, match="one row"):
        store_of(KVStore, (KVzip(),), keep=20, batch=2)


def _read_blindly(store: KVStore, text: Text) -> None:
    for first in range(0, text.tokens, store.chunk):
        last = min(first + store.chunk, text.tokens)
        for layer in range(store.spec.layers):
            _, k, v = (t[layer][:, :, first:last] for t in vars(text).values())
            store.append(layer, k, v, torch.arange(first, last)[None])
        store.advance(last - first)


# -- chains -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ((Bfp(), Bfp()), "both encode"),
        ((SnapKV(), Random()), "both select"),
        ((Bfp(), SnapKV()), "selects after"),
        ((SnapKV(), ByLayer()), "tolerates nothing finer than layer"),
        ((Stranger(),), "no method for a KV cache"),
    ],
)
def test_illegal_chains_raise_with_the_table(chain: Chain, why: str) -> None:
    with pytest.raises(MethodError, match=why) as caught:
        KVStore(spec_of(), chain, max_tokens=10)
    assert "global > layer_group > layer > head" in str(caught.value)
    assert all(method.about.name in str(caught.value) for method in chain)


def test_a_coarse_selection_goes_with_a_coarse_encoder() -> None:
    select, encode, _ = check_chain((StreamingLLM(), ByLayer()))
    assert select == StreamingLLM() and encode == ByLayer()


def test_selection_and_codes_keep_the_same_tokens_as_selection_alone() -> None:
    text = Text.of(spec_of(), 90)
    method = StreamingLLM(sinks=2, window=30)
    coded = store_of(KVStore, (method, ByLayer()), max_tokens=90)
    read(coded, text)
    places = coded.view(0).positions()[0, 0].tolist()
    assert places[:2] == [0, 1] and places[-30:] == list(range(60, 90))
    block = coded.view(0).dense()
    assert torch.equal(block.keys[0, 0], text.keys_LBKTD[0, 0, 0, places])


# -- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_snapshots_pass_through_json_and_read_on_alike(chain: Chain) -> None:
    text, spec = Text.of(spec_of(), 80), spec_of()
    keep = 24 if chain and check_chain(chain)[0] is not None else None
    store = store_of(KVStore, chain, keep=keep, max_tokens=90)
    read(store, text, stop=61)
    tensors, meta = store.snapshot()
    twin = KVStore.restore(
        spec, chain, tensors, json.loads(json.dumps(meta)), generator=torch.Generator()
    )
    fork = store.fork()
    assert torch.equal(read(store, text, 61)[0], read(twin, text, 61)[0])
    assert fork.length == 61 and twin.length == 80


def test_snapshots_of_something_else_are_refused() -> None:
    store = store_of(KVStore, ())
    read(store, Text.of(spec_of(), 10))
    tensors, meta = store.snapshot(ids=[1, 2])
    with pytest.raises(FingerprintError, match="chain"):
        KVStore.restore(spec_of(), (Bfp(),), tensors, meta)
    with pytest.raises(FingerprintError, match="layout"):
        KVStore.restore(spec_of(kv_heads=1), (), tensors, meta)
    with pytest.raises(FingerprintError, match="fingerprint"):
        KVStore.restore(spec_of().with_fingerprint("other"), (), tensors, meta)
    with pytest.raises(FingerprintError, match="tokens"):
        KVStore.restore(spec_of(), (), tensors, meta, ids=[1, 3])
    with pytest.raises(FormatError, match="version"):
        KVStore.restore(spec_of(), (), tensors, meta | {"version": 1})
    ledger = Ledger({"dram": 2**30})
    with pytest.raises(FormatError, match="lacks"):
        KVStore.restore(spec_of(), (), {}, meta, ledger=ledger)
    with pytest.raises(FormatError, match="another shape"):
        cut = tensors | {"slots": tensors["slots"][..., :3]}
        KVStore.restore(spec_of(), (), cut, meta, ledger=ledger)
    assert ledger.used("dram") == 0


@pytest.mark.parametrize("chain", [(), (Bfp(tail=8, window=2),)])
def test_cropping_forgets_the_end(chain: Chain) -> None:
    text = Text.of(spec_of(), 60)
    store, fresh = store_of(KVStore, chain), store_of(KVStore, chain)
    read(store, text, stop=47)
    store.crop(45)
    read(fresh, text, stop=45)
    assert torch.equal(store.view(0).dense().keys, fresh.view(0).dense().keys)
    store.crop(21)
    assert store.length == store.held_tokens(1) == 21
    torch.testing.assert_close(
        read(store, text, 21)[0], exact(text, 60)[:, :, :, 21:], rtol=0.05, atol=0.05
    )
    with pytest.raises(ParameterError, match="cropped"):
        store.crop(61)


def test_an_evicted_store_can_only_be_emptied() -> None:
    text = Text.of(spec_of(), 60)
    store = store_of(KVStore, (SnapKV(window=4),), keep=20)
    first, _ = read(store, text)
    with pytest.raises(MethodError, match="cannot be cropped"):
        store.crop(30)
    store.crop(0)
    assert store.length == 0 and store.held_tokens(0) == 0
    assert torch.equal(read(store, text)[0], first)


@pytest.mark.parametrize("chain", [(), (SnapKV(window=4),), (Bfp(tail=8, window=2),)])
def test_reordered_rows_go_on_as_the_rows_they_came_from(chain: Chain) -> None:
    text = Text.of(spec_of(), 60, batch=2)
    keep = 24 if chain == (SnapKV(window=4),) else None
    store, plain = (store_of(KVStore, chain, keep=keep, batch=2) for _ in range(2))
    read(store, text, stop=50)
    read(plain, text, stop=50)
    store.reorder(torch.tensor([1, 1]))
    swapped = Text(*(t[:, [1, 1]] for t in vars(text).values()))
    got, _ = read(store, swapped, 50)
    want, _ = read(plain, text, 50)
    torch.testing.assert_close(got, want[:, [1, 1]])


def test_a_store_has_no_options_to_shrink() -> None:
    store = store_of(KVStore, ())
    assert store.shrink_options() == ()


def test_the_first_layer_alone_is_checked_for_context() -> None:
    spec = ModelSpec(
        name="t", layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8, ffn=8, vocab=8, max_context=8
    )
    store = KVStore(spec, max_tokens=3, chunk=3)
    k = torch.zeros(1, 1, 3, 8)
    store.append(0, k, k, torch.arange(3)[None])
    store.observe(0, Seen(0, None, torch.arange(3)[None]))
    store.advance(3)
    with pytest.raises(ContextError):
        store.append(0, k[:, :, :1], k[:, :, :1], torch.tensor([[3]]))


def test_a_fork_draws_for_itself() -> None:
    generator = torch.Generator().manual_seed(3)
    store = KVStore(spec_of(), (Random(),), max_tokens=64, generator=generator)
    fork = store.fork()
    before = generator.get_state()
    assert fork._generator is not None and torch.equal(fork._generator.get_state(), before)
    torch.rand(4, generator=fork._generator)
    assert torch.equal(generator.get_state(), before)


def test_large_storage_has_pages_of_its_own_and_gives_them_back() -> None:
    spec = tiny_spec(layers=2, kv_heads=2, head_dim=64)
    for tokens, is_mapped in ((64, False), (20_000, True)):
        store = KVStore(spec, max_tokens=tokens)
        slots = store._pool.tensors["slots"]
        assert (slots.data_ptr() % 4096 == 0) or not is_mapped
        assert store.nbytes()["dram"] >= slots.nbytes
        before = measure.resident_bytes()
        slots.fill_(1.0)
        if is_mapped:
            assert measure.resident_bytes() - before > slots.nbytes / 2
        nbytes = slots.nbytes
        del slots
        held = measure.resident_bytes()
        store.release()
        if is_mapped:
            assert held - measure.resident_bytes() > nbytes / 2
