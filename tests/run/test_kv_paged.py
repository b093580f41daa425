"""Stores in mapped blocks hold what ordinary ones hold, whatever is shared, cut or put out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, ContextError, MethodError, ParameterError
from loci.nn.kv import DenseSegment
from loci.run.kv_paged import PagedMemory, PagedStore
from loci.run.kvstore import KVStore
from loci.testing.models import tiny_spec
from loci.tiers import swap
from loci.tiers.pages import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
SPEC: ModelSpec = tiny_spec(layers=2, kv_heads=2, head_dim=16)  # 512 bytes a token in float32
CONTEXT, BLOCK = 400, 16


@pytest.fixture
def ledger() -> Ledger:
    return Ledger({"dram": 4 << 20, "disk": 1 << 20})


@pytest.fixture
def memory(ledger: Ledger, tmp_path: Path) -> Iterator[PagedMemory]:
    opened = PagedMemory(
        SPEC,
        dtype=torch.float32,
        capacity_bytes=1 << 20,
        context=CONTEXT,
        ledger=ledger,
        places=lambda size: [
            swap.in_memory(30 * size, size, ledger),
            swap.on_disk(20 * size, size, ledger, tmp_path),
        ],
    )
    yield opened
    opened.close()
    assert ledger.used("dram") == ledger.used("disk") == 0


def fresh(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(1, 2, tokens, 16, generator=draw),
        torch.randn(1, 2, tokens, 16, generator=draw),
    )


def add(store: KVStore, tokens: int, seed: int) -> None:
    if isinstance(store, PagedStore):
        store.grow(tokens)
    places_1T = torch.arange(store.length, store.length + tokens)[None]
    for layer in range(2):
        store.append(layer, *fresh(tokens, 10 * seed + layer), places_1T)
    store.advance(tokens)


def held(store: KVStore) -> list[Tensor]:
    found = []
    for layer in range(2):
        for segment in store.view(layer).segments:
            assert isinstance(segment, DenseSegment)
            found += [segment.keys().clone(), segment.values().clone()]
    return found


def same(one: KVStore, other: KVStore) -> bool:
    return one.length == other.length and all(
        torch.equal(a, b) for a, b in zip(held(one), held(other), strict=True)
    )


def plain() -> KVStore:
    return KVStore(SPEC, max_tokens=CONTEXT)


def test_blocks_fill_whole_pages_of_the_system(memory: PagedMemory) -> None:
    assert (memory.block_tokens, memory.block_bytes) == (16, 8192)
    odd = PagedMemory(
        tiny_spec(layers=3, kv_heads=1, head_dim=4),
        dtype=torch.float16,
        capacity_bytes=1 << 20,
        context=CONTEXT,
        ledger=Ledger({"dram": 1 << 20}),
    )
    assert odd.block_bytes % 4096 == 0 and odd.block_tokens == 4096 // 16  # 48 bytes a token
    odd.close()


def test_memory_comes_with_tokens_and_the_ledger_pays(memory: PagedMemory, ledger: Ledger) -> None:
    store, before = PagedStore(memory), ledger.used("dram")
    assert store.nbytes() == {"dram": 0}
    add(store, 17, 1)
    assert store.nbytes() == {"dram": 2 * 8192} and ledger.used("dram") - before == 2 * 8192
    add(store, 15, 2)
    assert ledger.used("dram") - before == 2 * 8192
    with pytest.raises(ContextError, match="do not fit the context"):
        store.grow(CONTEXT)
    store.release()
    store.release()
    assert memory.trim() == 2 * 8192 and ledger.used("dram") == before
    memory.check_integrity()


def test_a_shared_beginning_is_there_once_and_each_writes_behind_it(memory: PagedMemory) -> None:
    first, wanted = PagedStore(memory), plain()
    add(first, 100, 1)
    add(wanted, 100, 1)
    used = memory.groups.used
    others = []
    for number in range(4):
        other, other_wanted = PagedStore(memory), plain()
        other.take_beginning(first, 90)
        add(other_wanted, 100, 1)
        other_wanted.crop(90)
        assert same(other, other_wanted)
        for store in (other, other_wanted):
            add(store, 30, 50 + number)
        others.append((other, other_wanted))
    assert memory.groups.used == used + 4 * (8 - 5)  # five whole blocks of 90 tokens are shared
    assert same(first, wanted) and all(same(a, b) for a, b in others)
    first.release()
    assert all(same(a, b) for a, b in others)
    memory.check_integrity()


def test_cutting_inside_a_shared_block_leaves_the_others_alone(memory: PagedMemory) -> None:
    first, wanted, other = PagedStore(memory), plain(), PagedStore(memory)
    add(first, 64, 1)
    add(wanted, 64, 1)
    other.take_beginning(first, 64)
    other.crop(40)
    add(other, 5, 9)
    assert same(first, wanted)
    wanted.crop(40)
    add(wanted, 5, 9)
    assert same(other, wanted)
    other.crop(0)
    add(other, 3, 4)
    memory.check_integrity()


def test_out_and_back_is_bit_for_bit_and_copies_only_what_is_new(memory: PagedMemory) -> None:
    store, wanted = PagedStore(memory), plain()
    for one in (store, wanted):
        add(one, 100, 1)
    store.put_out().wait()
    assert store.is_out and not store.is_here and memory.groups.used == 0
    memory._memory.fill_(0)
    store.bring_back()
    store.settle()
    assert store.is_here and same(store, wanted)
    for one in (store, wanted):
        add(one, 20, 2)
    moved = store.put_out()
    moved.wait()
    assert moved.nbytes == 2 * 8192  # six whole blocks of the first hundred tokens stay valid
    store.bring_back()
    store.settle()
    store.crop(50)
    wanted.crop(50)
    for one in (store, wanted):
        add(one, 60, 3)
    store.put_out().wait()
    store.bring_back()
    store.settle()
    assert same(store, wanted)
    memory.check_integrity()


def test_when_blocks_run_short_nothing_changes(memory: PagedMemory, ledger: Ledger) -> None:
    stores = []
    while memory.unused() >= 25:
        stores.append(PagedStore(memory))
        add(stores[-1], CONTEXT, len(stores))
    last, used = PagedStore(memory), memory.groups.used
    with pytest.raises(BudgetError, match="blocks of keys and values are needed"):
        last.grow(CONTEXT)
    assert memory.groups.used == used
    stores[0].put_out()
    last.grow(CONTEXT)
    with pytest.raises(BudgetError):
        stores[0].bring_back()
    assert stores[0].is_out
    last.release()
    stores[0].bring_back()
    stores[0].settle()
    wanted = plain()
    add(wanted, CONTEXT, 1)
    assert same(stores[0], wanted)
    lease = ledger.reserve("others", "dram", ledger.free("dram"))
    stores[1].release()
    add(last_one := PagedStore(memory), CONTEXT, 7)  # in blocks that are paid for already
    memory.check_integrity()
    lease.release()
    last_one.release()


def test_what_cannot_be_is_refused(memory: PagedMemory) -> None:
    store, other = PagedStore(memory), PagedStore(memory)
    add(store, 20, 1)
    add(other, 20, 2)
    with pytest.raises(ParameterError, match="only a new request"):
        memory.share(store._pool.held, other._pool.held, 5)
    with pytest.raises(MethodError, match="not forked"):
        store.fork()
    with pytest.raises(BudgetError, match="a block of keys and values needs"):
        PagedMemory(
            SPEC,
            dtype=torch.float32,
            capacity_bytes=100,
            context=9,
            ledger=Ledger({"dram": 1 << 20}),
        )


@pytest.mark.parametrize("seed", range(3))
def test_random_sharing_cutting_and_moving(memory: PagedMemory, seed: int) -> None:
    draw = random.Random(seed)
    pairs: list[tuple[PagedStore, KVStore]] = []
    for number in range(250):
        what = draw.random()
        here = [pair for pair in pairs if pair[0].is_here]
        if what < 0.3 or not pairs:
            pair = PagedStore(memory), plain()
            if here and draw.random() < 0.6:
                source, source_wanted = draw.choice(here)
                tokens = draw.randrange(source.length + 1)
                pair[0].take_beginning(source, tokens)
                for layer in range(2) if tokens else ():
                    keys, values = held(source_wanted)[2 * layer : 2 * layer + 2]
                    places_1T = torch.arange(tokens)[None]
                    pair[1].append(layer, keys[:, :, :tokens], values[:, :, :tokens], places_1T)
                if tokens:
                    pair[1].advance(tokens)
            pairs.append(pair)
        elif what < 0.6 and here:
            tokens = draw.randrange(1, 40)
            pair = draw.choice(here)
            if pair[0].length + tokens <= CONTEXT and memory.unused() >= 4:
                for store in pair:
                    add(store, tokens, number)
        elif what < 0.7 and here:
            pair = draw.choice(here)
            tokens = draw.randrange(pair[0].length + 1)
            for store in pair:
                store.crop(tokens)
        elif what < 0.85 and here:
            store = draw.choice(here)[0]
            others = [other for other, _ in here if other is not store]
            if store.length:
                try:
                    store.put_out(others)
                except BudgetError:
                    assert store.is_here
        elif what < 0.95:
            for store, _ in pairs:
                if store.is_out and memory.blocks_for(store.length) <= memory.unused():
                    store.bring_back()
                    store.settle()
                    break
        else:
            gone = pairs.pop(draw.randrange(len(pairs)))
            gone[0].settle()
            gone[0].release()
        if number % 10 == 0:
            memory.check_integrity()
            assert all(same(*pair) for pair in pairs if pair[0].is_here and pair[0].length)
    assert memory.swap.stats().outs > 10
