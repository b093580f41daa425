"""A bank of chunks by hand: what is found, what is forgotten, and what nobody may see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.nn import native
from loci.nn.bank import ChunkBank
from loci.nn.kv import KVBlock
from loci.nn.rope import Rope, rotate
from loci.testing.kv import spec_of

SPEC = spec_of(layers=1, kv_heads=2, heads=2, head_dim=8)


def bank_of(room: int, chunk: int, fetched: int, *, spec: ModelSpec = SPEC) -> ChunkBank:
    heads, size = spec.kv_heads, spec.head_dim
    tensors = {
        "index": torch.zeros(1, 1, heads, room // chunk, size, dtype=torch.float16),
        "positions": torch.zeros(1, 1, heads, room, dtype=torch.int32),
        "keys": torch.zeros(1, 1, heads, room, size, dtype=torch.float16),
        "values": torch.zeros(1, 1, heads, room, size, dtype=torch.float16),
    }
    return ChunkBank(spec, tensors, chunk=chunk, fetched=fetched, bits=16, is_near=True)


def block_of(places: list[int], heads: int = 2) -> KVBlock:
    """Keys that point along channel (position % 8); every value is the position."""
    plain = torch.stack([torch.eye(8)[max(p, 0) % 8] * 10 for p in places]).expand(1, heads, -1, -1)
    turned = Rope(SPEC).table(torch.tensor([places]))
    values = torch.tensor(places, dtype=torch.float32)[None, None, :, None].expand(1, heads, -1, 8)
    where = torch.tensor(places).expand(1, heads, -1)
    return KVBlock(rotate(plain.clone(), *turned), values, where)


def query_at(channel: int, place: int) -> Tensor:
    plain = (torch.eye(8)[channel] * 10).view(1, 1, 1, 8)
    turned = rotate(plain, *Rope(SPEC).table(torch.tensor([[place]])))
    return turned.view(1, 1, 1, 1, 8).expand(1, 2, 1, 1, 8).clone()


def reads(bank: ChunkBank, channel: int, place: int = 100, window: int | None = None) -> list[int]:
    o, lse = bank.attend(0, query_at(channel, place), torch.tensor([[place]]), 1.0, window)
    return [round(float(o[0, k, 0, 0, 0])) if lse[0, k, 0, 0].isfinite() else -1 for k in range(2)]


def test_an_empty_bank_gives_nothing() -> None:
    assert reads(bank_of(8, 2, 1), 0) == [-1, -1]


def test_a_query_fetches_the_chunk_whose_mean_it_likes() -> None:
    bank = bank_of(8, 2, 1)
    bank.add(0, slice(0, 2), block_of([0, 1, 2, 3, 4, 5]))
    assert [reads(bank, channel)[0] for channel in (1, 2, 5)] == [1, 2, 5]


def test_the_chunk_that_is_filling_is_always_read() -> None:
    bank = bank_of(8, 2, 1)
    bank.add(0, slice(0, 2), block_of([0, 1, 2]))
    assert reads(bank, 2) == [2, 2]
    bank.add(0, slice(0, 2), block_of([3]))
    assert reads(bank, 3) == [3, 3] and bank.held(0) == 4


def test_the_oldest_chunk_makes_room() -> None:
    bank = bank_of(4, 2, 1)
    for place in range(5):
        bank.add(0, slice(0, 2), block_of([place]))
    assert bank.held(0) == 3  # tokens 2, 3 and the first of a new chunk in the place of 0, 1
    assert reads(bank, 4) == [4, 4] and reads(bank, 3) == [3, 3]
    assert reads(bank, 0) != [0, 0]
    bank.add(0, slice(0, 2), block_of([*range(5, 16)]))  # more than there is room for
    assert reads(bank, 7) == [15, 15] and reads(bank, 6) == [14, 14]


def test_heads_may_hold_unequal_numbers() -> None:
    bank = bank_of(8, 2, 1)
    bank.add(0, slice(0, 1), block_of([0, 1], heads=1))
    bank.add(0, slice(1, 2), block_of([2, 3, 4, 5], heads=1))
    assert reads(bank, 1)[0] == 1 and reads(bank, 5)[1] == 5
    assert bank.held(0) == 4
    other = bank_of(8, 2, 1)
    other.set_state(bank.state())
    assert other.held(0) == 4


def test_nobody_finds_padding_nor_what_is_too_old_or_to_come() -> None:
    bank = bank_of(8, 2, 4)
    bank.add(0, slice(0, 2), block_of([-1, -1, 8, 9]))
    assert reads(bank, 0) == [8, 8]
    assert reads(bank, 0, place=100, window=10) == [-1, -1]
    assert reads(bank, 0, place=3) == [-1, -1]


@pytest.mark.skipif(not native.available(), reason="no kernels")
@pytest.mark.parametrize("is_near", [False, True])
@pytest.mark.parametrize("tokens", [3, 8, 29, 75])  # filling alone, one chunk, some, more than fit
def test_kernels_read_what_is_fetched_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, is_near: bool, tokens: int
) -> None:
    spec = replace(SPEC, layers=2, heads=4, kv_heads=2, head_dim=32)
    draw = torch.Generator().manual_seed(tokens)
    tensors = {
        "index": torch.zeros(2, 2, 2, 6, 32, dtype=torch.float16),
        "positions": torch.zeros(2, 2, 2, 48, dtype=torch.int32),
        "keys": torch.zeros(2, 2, 2, 48, 32, dtype=torch.float16),
        "values": torch.zeros(2, 2, 2, 48, 32, dtype=torch.float16),
    }
    bank = ChunkBank(spec, tensors, chunk=8, fetched=3, bits=16, is_near=is_near)
    keys, values = torch.randn(2, 2, 2, tokens, 32, generator=draw).unbind(0)
    places = torch.arange(tokens).expand(2, 2, -1)
    bank.add(1, slice(0, 2), KVBlock(keys, values, places))
    q_BKGTD = torch.randn(2, 1, 2, 2, 32, generator=draw).permute(0, 2, 3, 1, 4)
    now = torch.full((2, 1), tokens)
    with monkeypatch.context() as patch:
        patch.setattr(ChunkBank, "_is_plain", lambda *_: False)
        expected = bank.attend(1, q_BKGTD, now, 0.2, None)
    for level in native.levels():
        with native.force_simd(level):
            found = bank.attend(1, q_BKGTD, now, 0.2, None)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not bank.attend(0, q_BKGTD, now, 0.2, None)[0].any()


def test_padding_is_read_by_nobody_and_not_by_kernels() -> None:
    bank = bank_of(16, 4, 2)
    x = torch.randn(1, 2, 8, SPEC.head_dim, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[[-1, -1, 0, 1, 2, 3, 4, 5]]]).expand(1, 2, -1)
    bank.add(0, slice(0, 2), KVBlock(x, x, places))
    q = torch.randn(1, 2, 1, 1, SPEC.head_dim, generator=torch.Generator().manual_seed(1))
    assert not bank._is_plain(q)
    restored = ChunkBank(SPEC, bank._tensors, chunk=4, fetched=2, bits=16, is_near=True)
    restored.set_state(bank.state())
    assert not restored._is_plain(q)
    o, lse = bank.attend(0, q, torch.tensor([[6]]), 1.0, None)
    again = restored.attend(0, q, torch.tensor([[6]]), 1.0, None)
    assert torch.equal(o, again[0]) and torch.equal(lse, again[1])
