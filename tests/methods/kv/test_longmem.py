"""LongMem against full attention, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.core.ledger import Ledger
from loci.core.method import Method
from loci.errors import BudgetError, MethodError, ParameterError
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.kivi import Kivi
from loci.methods.kv.longmem import LongMem, LongMemNear
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import predict_store, store_plan
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.nn.attend import attend_reference
from loci.nn.rope import Rope, rotate, undo
from loci.run.kvstore import KVStore
from loci.testing.kv import SCALE, Text, read, spec_of, store_of

# Shapes: L layers, B batch, H query heads, K key/value heads, T tokens, D head size.

DROPS = StreamingLLM(sinks=2, window=22)
ALL = 64  # chunks, more than there are


def _read(chain: tuple[Method, ...], text: Text, keep: int | None = None) -> torch.Tensor:
    store = store_of(KVStore, chain, keep=keep, batch=text.keys_LBKTD.shape[1])
    first, _ = read(store, text, stop=text.tokens - 10)
    rest, _ = read(store, text, start=text.tokens - 10, chunk=1)
    return torch.cat([first, rest], 3)


@pytest.mark.parametrize(
    ("chain", "error"),
    [
        ((DROPS, LongMem(chunks=ALL)), 2e-3),
        ((SnapKV(window=4), LongMem(chunks=ALL, chunk=3, capacity=300)), 2e-3),
        ((SnapKV(window=4), LongMem(chunks=ALL, bits=8)), 3e-2),
        ((SnapKV(window=4), Bfp(bits=8, window=0), LongMem(chunks=ALL)), 5e-2),
    ],
)
def test_a_bank_that_is_fetched_whole_is_full_attention(
    chain: tuple[Method, ...], error: float
) -> None:
    text = Text.of(spec_of(), 100, batch=2)
    found = _read(chain, text, keep=24)
    assert float((found - _read((), text)).abs().max()) < error


def test_tokens_without_a_position_stand_where_the_query_stands() -> None:
    spec, text = spec_of(layers=1), Text.of(spec_of(layers=1), 40)
    keep = 24  # streaming: two sinks and the last 22
    store = store_of(KVStore, (DROPS, LongMemNear(chunks=ALL)), max_tokens=60, chunk=40, spec=spec)
    read(store, text, stop=39)
    found, _ = read(store, text, start=39)
    held = store.view(0).positions()[0, 0].tolist()
    dropped = [place for place in range(39) if place not in held[:-1]]
    assert len(dropped) >= 39 - keep
    rope = Rope(spec)
    k_BKTD, v_BKTD = text.keys_LBKTD[0], text.values_LBKTD[0]
    near = undo(k_BKTD[:, :, dropped], *rope.table(torch.tensor([dropped])))
    near = rotate(near, *rope.table(torch.full((1, len(dropped)), 39)))
    keys = torch.cat([k_BKTD[:, :, held], near], 2)
    values = torch.cat([v_BKTD[:, :, held], v_BKTD[:, :, dropped]], 2)
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    expected, _ = attend_reference(text.queries_LBHTD[0][:, :, 39:], keys, values, seen, SCALE)
    torch.testing.assert_close(found[0], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", [LongMem(chunks=2), LongMem(chunks=2, bits=4)])
def test_fetches_what_the_method_before_it_lost(method: LongMem) -> None:
    # Token 20 has a key that the last query finds, and a value of its own; both left the cache.
    spec, text = spec_of(), Text.of(spec_of(), 120)
    rope, place, draw = Rope(spec), 20, torch.Generator().manual_seed(0)
    way_D = torch.nn.functional.normalize(torch.randn(spec.head_dim, generator=draw), dim=0) * 20
    for part, at in ((text.keys_LBKTD, place), (text.queries_LBHTD, 119)):
        turned = rope.table(torch.tensor([[at]]))
        part[:, :, :, at] = rotate(way_D.expand(1, 1, 1, -1), *turned)[0, 0, 0]
    text.values_LBKTD[:, :, :, place] = 7.0
    with_bank, without = (_read(chain, text) for chain in ((DROPS, method), (DROPS,)))
    assert (with_bank[:, :, :, 119] > 6.5).all() and (without[:, :, :, 119] < 4).all()


def test_the_bank_is_in_the_budget_to_the_byte() -> None:
    # 100 tokens of 2 layers and 2 heads of 32: index 25 x 32 x 2, keys and values 2 x 100 x 32 x 2,
    # positions 100 x 4 bytes.
    chain = (DROPS, LongMem())
    bank = 2 * 2 * (25 * 32 * 2 + 2 * 100 * 32 * 2 + 100 * 4)
    both, alone = (
        predict_store(spec_of(), c, max_tokens=100, chunk=16) for c in (chain, chain[:1])
    )
    assert both - alone == bank
    small = predict_store(
        spec_of(), (DROPS, LongMem(bits=4)), max_tokens=100, budget_bytes=80_000, chunk=16
    )
    assert small <= 80_000


def test_a_bank_on_disk_frees_memory_and_leaves_no_file(tmp_path: Path) -> None:
    chain = (DROPS, LongMem(tier="disk", chunk=8, capacity=64))
    plan = store_plan(spec_of(), chain, max_tokens=100, chunk=16)
    assert plan.disk_bytes == 2 * 2 * 2 * 64 * 32 * 2
    ledger = Ledger({"dram": 2**20, "disk": 2**20})
    store = KVStore(spec_of(), chain, max_tokens=100, chunk=16, ledger=ledger, folder=tmp_path)
    assert store.nbytes() == {"dram": plan.nbytes, "disk": plan.disk_bytes}
    assert ledger.used("disk") == plan.disk_bytes and not list(tmp_path.iterdir())
    read(store, Text.of(spec_of(), 90))
    store.release()
    assert ledger.used("disk") == 0
    with pytest.raises(BudgetError):
        KVStore(
            spec_of(), chain, max_tokens=100, chunk=16, folder=tmp_path,
            ledger=Ledger({"dram": 2**20, "disk": 0}),
        )  # fmt: skip
    with pytest.raises(MethodError, match="no folder"):
        KVStore(spec_of(), chain, max_tokens=100, chunk=16)


def test_capacity_is_whole_chunks() -> None:
    with pytest.raises(ParameterError, match="whole chunks"):
        LongMem(chunk=6)
    with pytest.raises(MethodError, match="decodes whole groups"):
        store_plan(spec_of(), (DROPS, Kivi(), LongMem()), max_tokens=100)
