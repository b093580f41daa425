"""xKV against a singular value decomposition, and against layers by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import EncodeLayers, LayerGroup
from loci.methods.kv.chain import check_chain
from loci.methods.kv.store_plan import predict_store
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.methods.kv.xkv import LANDMARK, Xkv, top_rows
from loci.nn.attend import attend, attend_reference
from loci.nn.kv import KVBlock
from loci.run.kv_segments import ChosenChunks, LayersSegment
from loci.run.kvstore import KVStore
from loci.testing import kv_rules
from loci.testing.kv import SCALE, Text, low_rank, read, spec_of, store_of

SPEC = spec_of(layers=6, kv_heads=2, head_dim=32)
WIDTH = 64


def blocks_of(seed: int = 0, tokens: int = 128) -> list[KVBlock]:
    keys, values = low_rank(SPEC, tokens, seed=seed)
    places = torch.arange(tokens)[None]
    return [KVBlock(k, v, places) for k, v in zip(keys, values, strict=True)]


def flat(blocks: list[KVBlock], name: str) -> Tensor:
    return torch.cat([getattr(b, name).transpose(1, 2).flatten(2) for b in blocks], -1)[0]


def test_by_hand() -> None:
    # Two tokens whose rows are (3, 4) and (6, 8): one direction, (0.6, 0.8), lengths 5 and 10.
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    basis = top_rows(x, 1)
    torch.testing.assert_close(basis.abs(), torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close((x @ basis.mT).abs(), torch.tensor([[5.0], [10.0]]))


@pytest.mark.parametrize(("tokens", "width", "rank"), [(50, 20, 7), (20, 50, 7), (30, 30, 30)])
def test_the_product_is_the_truncated_decomposition(tokens: int, width: int, rank: int) -> None:
    x = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    want = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    basis = top_rows(x, rank)
    got = (x @ basis.mT) @ basis
    assert float((got - want).norm() / want.norm()) < 1e-3


@pytest.mark.parametrize("group", [1, 2, 4, 6])
def test_full_rank_is_exact(group: int) -> None:
    text = Text.of(SPEC, 600)
    full = group * WIDTH
    method = Xkv(group=group, rank_k=full, rank_v=full, segment=full, window=5, dtype="float32")
    store = store_of(KVStore, (method,), max_tokens=600, chunk=100, spec=SPEC)
    plain = store_of(KVStore, (), max_tokens=600, chunk=100, spec=SPEC)
    got, want = read(store, text)[0], read(plain, text)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for layer in range(6):
        ours, theirs = store.view(layer).dense(), plain.view(layer).dense()
        assert float((ours.keys - theirs.keys).abs().max()) < 1e-4


def test_layers_that_say_the_same_are_kept_once() -> None:
    # The paper's point: what layers share is paid for once. At equal bytes, three layers together
    # lose less than three alone.
    blocks = blocks_of()[:3]
    together = Xkv(group=3, rank_k=6, rank_v=6, segment=128)
    alone = Xkv(group=1, rank_k=4, rank_v=4, segment=128)

    def loss(method: Xkv, groups: list[range]) -> tuple[float, int]:
        lost, nbytes = 0.0, 0
        for layers in groups:
            group = LayerGroup(spec=SPEC, layers=layers)
            rows, bases = method.encode([blocks[i] for i in layers], group)
            nbytes += sum(t.nbytes for t in (*rows.values(), *bases.values()))
            for layer in layers:
                keys, values = method.decode(rows, bases, layer, group, None)
                lost += float((keys - blocks[layer].keys).square().sum())
                lost += float((values - blocks[layer].values).square().sum())
        return lost, nbytes

    ours, our_bytes = loss(together, [range(3)])
    theirs, their_bytes = loss(alone, [range(1), range(1, 2), range(2, 3)])
    assert our_bytes <= their_bytes and ours < 0.1 * theirs


def test_bytes_count_the_bases() -> None:
    method = Xkv(group=3, rank_k=8, rank_v=12, segment=64, window=0)
    tokens = 64 * 40
    one = predict_store(SPEC, (method,), max_tokens=tokens, chunk=16)
    two = predict_store(SPEC, (method,), max_tokens=2 * tokens, chunk=16)
    # Per group: 20 numbers a token, and 20 * 3 * 64 a segment of 64, in two bytes; positions.
    assert two - one == tokens * (2 * 20 * 2 + 4) + 40 * 2 * 20 * 3 * WIDTH * 2


def test_a_shorter_last_group_has_a_smaller_rank() -> None:
    method = Xkv(group=4, rank_k=8, rank_v=12, segment=64)
    assert method.row_table(SPEC, range(4, 6)) == {
        "keys": ((4,), "float16"),
        "values": ((6,), "float16"),
    }
    store = store_of(KVStore, (method,), max_tokens=200, spec=SPEC)
    text = Text.shared(SPEC, 200)
    read(store, text)
    got = store.view(5).dense().keys
    assert float((got - text.keys_LBKTD[5]).norm() / text.keys_LBKTD[5].norm()) < 0.8


def test_the_papers_shares_are_the_default() -> None:
    table = Xkv().row_table(spec_of(layers=4, kv_heads=8, heads=8, head_dim=128), range(4))
    assert table["keys"][0] == (512,) and table["values"][0] == (768,)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ParameterError, match="rank_k"):
        store_of(KVStore, (Xkv(group=1, rank_k=65, rank_v=4, segment=128),), spec=SPEC)
    with pytest.raises(ParameterError, match="rank_v"):
        store_of(KVStore, (Xkv(group=2, rank_k=4, rank_v=20, segment=16),), spec=SPEC)
    with pytest.raises(MethodError, match="decodes whole groups"):
        check_chain((StreamingLLM(), Xkv()))
    blocks = [KVBlock(b.keys * 1e6, b.values, b.positions) for b in blocks_of()[:2]]
    with pytest.raises(ParameterError, match="too large for rows"):
        Xkv(group=2, segment=128).encode(blocks, LayerGroup(spec=SPEC, layers=range(2)))


def test_the_first_tokens_may_stay_exact() -> None:
    text = Text.of(SPEC, 150)
    method = Xkv(group=3, rank_k=4, rank_v=4, segment=64, sinks=2)
    store = store_of(KVStore, (method,), max_tokens=150, spec=SPEC)
    read(store, text)
    block = store.view(4).dense()
    assert torch.equal(block.values[:, :, :2], text.values_LBKTD[4][:, :, :2])
    assert not torch.equal(block.values[:, :, 2], text.values_LBKTD[4][:, :, 2])


# -- selective reconstruction -----------------------------------------------------------------

SOME = Xkv(group=3, rank_k=8, rank_v=8, segment=64, window=8, sinks=4, chunks=3)
LONG = 300  # tokens: four segments of 64, the rest exact


def opened(method: Xkv, text: Text, pad: int = 0) -> KVStore:
    """Return a store that has read all but the last ten tokens."""
    batch = text.keys_LBKTD.shape[1]
    store = store_of(KVStore, (method,), max_tokens=LONG, chunk=100, batch=batch, spec=SPEC)
    read(store, text, stop=LONG - 10, pad=pad)
    return store


def by_the_book(store: KVStore, text: Text, layer: int, at: int, method: Xkv, pad: int) -> Tensor:
    """Return what token `at` reads, from everything rebuilt and loops over rows and heads."""
    assert method.chunks is not None
    block = store.view(layer).dense()
    coded = (at + 1 - method.window) // method.segment * method.segment
    found = []
    for row in range(text.keys_LBKTD.shape[1]):
        for head in range(SPEC.kv_heads):
            keys_SD = text.keys_LBKTD[layer, row, head, :coded]
            q_GD = text.queries_LBHTD[layer, row, 2 * head : 2 * head + 2, at]
            marks = []
            for first in range(0, coded, LANDMARK):
                real = [t for t in range(first, first + LANDMARK) if t >= pad]
                mean = keys_SD[real].mean(0).half().float() if real else torch.full((32,), -1e4)
                marks.append(q_GD @ mean * SCALE if real else torch.full((2,), -torch.inf))
            shares_N = torch.stack(marks, 1).softmax(1).amax(0)
            shares_N[0] = torch.inf
            best = shares_N.topk(method.chunks + 1).indices.tolist()
            tokens = [t for c in sorted(best) for t in range(c * LANDMARK, (c + 1) * LANDMARK)]
            tokens = [t for t in [*tokens, *range(coded, at + 1)] if t >= pad]
            one = (slice(row, row + 1), slice(head, head + 1), tokens)
            all_seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
            o, _ = attend_reference(
                q_GD[None, :, None], block.keys[one], block.values[one], all_seen, SCALE
            )
            found.append(o[0, :, 0])
    return torch.stack(found).view(-1, SPEC.heads, 32)


@pytest.mark.parametrize("pad", [0, 13])
def test_a_decoded_token_reads_the_chunks_whose_landmarks_it_looks_at(pad: int) -> None:
    text = Text.shared(SPEC, LONG, batch=2)
    store = opened(SOME, text, pad)
    for at in (LONG - 10, LONG - 9):
        o_LBHTD, _ = read(store, text, start=at, stop=at + 1, pad=pad)
        for layer in (0, 4):
            want = by_the_book(store, text, layer, at, SOME, pad)
            torch.testing.assert_close(o_LBHTD[layer, :, :, 0], want, rtol=1e-3, atol=1e-4)


def test_all_chunks_are_the_whole_product() -> None:
    text = Text.shared(SPEC, LONG)
    plain = Xkv(**SOME.parameters() | {"chunks": None})
    every = Xkv(**SOME.parameters() | {"chunks": 1000})
    got = read(opened(every, text), text, start=LONG - 10, chunk=1)[0]
    want = read(opened(plain, text), text, start=LONG - 10, chunk=1)[0]
    assert torch.equal(got, want)
    # The way of choosing, told to choose all, is the way that does not choose.
    store = opened(every, text)
    whole = store.view(4).segments[0]
    assert isinstance(whole, LayersSegment)
    marks_BKND = store.snapshot()[0]["landmarks"][:, 4]
    q_BHTD, places_BT = text.queries_LBHTD[4][:, :, -1:], torch.tensor([[LONG - 1]])
    shown = store.view(4)
    alone = type(shown)(4, SPEC.kv_heads, (whole,))
    o, lse = attend(q_BHTD, alone, positions=places_BT, scale=SCALE)
    chosen = ChosenChunks(whole, marks_BKND, chosen=marks_BKND.shape[2])
    grouped = q_BHTD.view(1, SPEC.kv_heads, 2, 1, 32)
    o_some, lse_some = chosen.attend(4, grouped, places_BT, SCALE, None)
    torch.testing.assert_close(o_some.flatten(1, 2), o)
    torch.testing.assert_close(lse_some.flatten(1, 2), lse)


def test_a_sliding_window_hides_chunks() -> None:
    text = Text.shared(SPEC, LONG)
    store = opened(SOME, text)
    whole = store.view(0).segments[0]
    assert isinstance(whole, LayersSegment)
    marks_BKND = store.snapshot()[0]["landmarks"][:, 0]
    chosen = ChosenChunks(whole, marks_BKND, chosen=2)
    q_BKG1D = text.queries_LBHTD[0][:, :, -1:].view(1, SPEC.kv_heads, 2, 1, 32)
    now = torch.tensor([[whole.tokens]])
    # Sixteen tokens are in reach: the two chunks at the end.
    o, lse = chosen.attend(0, q_BKG1D, now, SCALE, 17)
    end = type(store.view(0))(0, SPEC.kv_heads, (whole,))
    want, want_lse = attend(q_BKG1D.flatten(1, 2), end, positions=now, scale=SCALE, window=17)
    torch.testing.assert_close(o.flatten(1, 2), want)
    torch.testing.assert_close(lse.flatten(1, 2), want_lse)


def test_steps_of_several_tokens_read_all() -> None:
    text = Text.shared(SPEC, LONG)
    plain = Xkv(**SOME.parameters() | {"chunks": None})
    got = read(opened(SOME, text), text, start=LONG - 10, chunk=2)[0]
    want = read(opened(plain, text), text, start=LONG - 10, chunk=2)[0]
    assert torch.equal(got, want)


class Counting(Xkv):
    """Counts the tokens of a head that were rebuilt."""

    rebuilt = 0

    def decode_heads(self, rows, bases, layer, heads, group):  # type: ignore[no-untyped-def]
        """Count, then rebuild."""
        Counting.rebuilt += rows["keys"].shape[0] * rows["keys"].shape[1]
        return super().decode_heads(rows, bases, layer, heads, group)

    def decode(self, rows, bases, layer, group, carried_BTc):  # type: ignore[no-untyped-def]
        """Refuse to rebuild all."""
        raise AssertionError("a decoded token rebuilt everything")


def test_only_what_was_chosen_is_rebuilt() -> None:
    text = Text.shared(SPEC, LONG)
    store = store_of(KVStore, (Counting(**SOME.parameters()),), max_tokens=LONG, spec=SPEC)
    read(store, text, stop=64)  # nothing is encoded yet
    for start in range(64, LONG - 10, 8):
        read(store, text, start=start, stop=min(start + 8, LONG - 10), chunk=1)
    Counting.rebuilt = 0
    read(store, text, start=LONG - 10, stop=LONG - 9)
    # Three chunks and the first, of eight tokens, in every head of every layer; not 256.
    assert Counting.rebuilt == 4 * LANDMARK * SPEC.kv_heads * SPEC.layers


def test_bytes_count_the_landmarks() -> None:
    tokens = 64 * 40
    plain = Xkv(**SOME.parameters() | {"chunks": None})
    less = predict_store(SPEC, (plain,), max_tokens=tokens, chunk=16)
    more = predict_store(SPEC, (SOME,), max_tokens=tokens, chunk=16)
    coded = (tokens - SOME.window) // 64 * 64
    assert more - less == SPEC.layers * SPEC.kv_heads * coded // LANDMARK * SPEC.head_dim * 2


def test_a_needle_is_read_from_few_chunks() -> None:
    # The point of choosing: what a query looks for is rebuilt, whatever else is not.
    text = Text.shared(SPEC, LONG)
    way_D = torch.nn.functional.normalize(
        torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0
    )
    text.keys_LBKTD[:, :, :, 100] = way_D * 60
    text.values_LBKTD[:, :, :, 100] = 5.0
    text.queries_LBHTD[:, :, :, -10:] += way_D * 20
    found = {}
    for chunks in (1, None):
        method = Xkv(**SOME.parameters() | {"chunks": chunks, "rank_k": 40, "rank_v": 40})
        found[chunks] = read(opened(method, text), text, start=LONG - 10, chunk=1)[0]
    assert float((found[None] - 5.0).abs().mean()) < 0.5, "the whole product reads the needle"
    torch.testing.assert_close(found[1], found[None], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "check",
    [
        kv_rules.check_bytes,
        kv_rules.check_shapes,
        kv_rules.check_unchanged_inputs,
        kv_rules.check_rows,
        kv_rules.check_repeatable,
        kv_rules.check_snapshot,
        kv_rules.check_half,
        kv_rules.check_short,
        kv_rules.check_codes,
    ],
)
def test_choosing_keeps_the_rules_of_every_method(check: object) -> None:
    assert callable(check)
    check(KVStore, Xkv(**SOME.parameters() | {"group": 2, "rank_k": 16, "rank_v": 24}))


def test_segments_must_be_whole_chunks_to_choose_from() -> None:
    with pytest.raises(ParameterError, match="whole chunks") as error:
        Xkv(segment=100, chunks=4)
    assert "segment=104" in str(error.value)
    assert Xkv(segment=100).landmarks is None
    method: EncodeLayers = Xkv()
    assert method.landmarks is None
