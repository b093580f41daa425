"""xKV against a singular value decomposition, and against layers by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import LayerGroup
from loci.methods.kv.chain import check_chain
from loci.methods.kv.store_plan import predict_store
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.methods.kv.xkv import Xkv, top_rows
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, low_rank, read, spec_of, store_of

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
