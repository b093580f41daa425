"""Aligned buffers: where they start, what they hold, who counts them."""

from __future__ import annotations

import gc

import psutil
import pytest

from loci.core.ledger import Ledger
from loci.errors import BudgetError, ParameterError
from loci.tiers.pool import ALIGN, AlignedPool, aligned_empty, round_up


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 1_000_003])
def test_buffer_starts_on_a_page_and_has_the_size_asked_for(nbytes: int) -> None:
    buffer = aligned_empty(nbytes)
    assert buffer.numel() == nbytes and buffer.element_size() == 1
    assert nbytes == 0 or buffer.data_ptr() % ALIGN == 0
    buffer.fill_(7)
    assert int(buffer.sum(dtype=__import__("torch").int64)) == 7 * nbytes


def test_rounds_up_to_whole_pages() -> None:
    assert [round_up(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


@pytest.mark.parametrize(("nbytes", "align"), [(-1, 4096), (8, 0), (8, 3), (8, 2**30)])
def test_refuses_impossible_buffers(nbytes: int, align: int) -> None:
    with pytest.raises(ParameterError):
        aligned_empty(nbytes, align)


def test_memory_returns_to_the_system_when_the_last_view_is_gone() -> None:
    process, size = psutil.Process(), 64 * 2**20
    gc.collect()
    before = process.memory_info().rss
    buffer = aligned_empty(size)
    buffer.fill_(1)
    view = buffer[:16]
    del buffer
    assert process.memory_info().rss - before > size // 2
    del view
    assert process.memory_info().rss - before < size // 2


def test_pool_reuses_a_slot_of_about_the_size() -> None:
    pool = AlignedPool()
    first = pool.take(10_000)
    address = first.data_ptr()
    pool.give(first)
    assert pool.take(9_000).data_ptr() == address
    pool.check_integrity()


def test_pool_does_not_waste_a_large_slot_on_a_small_request() -> None:
    pool = AlignedPool()
    large = pool.take(2**20)
    pool.give(large)
    small = pool.take(4096)
    assert small.data_ptr() != large.data_ptr()
    assert pool.nbytes() == {"dram": 2**20 + 4096}


def test_pool_holds_a_lease_for_every_slot_until_it_is_trimmed() -> None:
    ledger = Ledger({"dram": 3 * ALIGN})
    pool = AlignedPool(ledger, owner="ring", kind="weights")
    first, second = pool.take(ALIGN), pool.take(ALIGN + 1)
    assert ledger.by_kind("dram") == {"weights": 3 * ALIGN}
    with pytest.raises(BudgetError):
        pool.take(1)
    pool.give(first)
    pool.give(second)
    pool.check_integrity()
    assert ledger.used("dram") == 3 * ALIGN
    assert pool.trim() == 3 * ALIGN
    assert ledger.used("dram") == 0
    ledger.check_integrity()


def test_borrow_gives_back_also_when_the_body_raises() -> None:
    pool = AlignedPool(Ledger({"dram": ALIGN}))
    for _ in range(2):
        with pytest.raises(RuntimeError), pool.borrow(100) as buffer:
            assert buffer.numel() == 100
            raise RuntimeError


def test_pool_refuses_what_is_not_its_own() -> None:
    pool = AlignedPool()
    buffer = pool.take(1)
    pool.give(buffer)
    for stranger in (buffer, aligned_empty(1)):
        with pytest.raises(ParameterError):
            pool.give(stranger)
    with pytest.raises(ParameterError):
        pool.take(0)


def test_closed_pool_frees_what_comes_back() -> None:
    ledger = Ledger({"dram": ALIGN})
    pool = AlignedPool(ledger)
    buffer = pool.take(1)
    pool.close()
    assert ledger.used("dram") == ALIGN
    pool.give(buffer)
    assert ledger.used("dram") == 0 and pool.nbytes() == {"dram": 0}
    with pytest.raises(ParameterError):
        pool.take(1)
