"""Swapping blocks: what comes back is what left, whatever happens in between."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.errors import BudgetError, ParameterError, StorageError
from loci.tiers import swap
from loci.tiers.groups import BlockGroups
from loci.tiers.swap import Place, SwapManager

BYTES = 64  # of a block
POISON = 255


def manager(here: int, there: int, more: int = 0, **given: Any) -> SwapManager:
    ledger = Ledger({"dram": 1 << 20, "disk": 1 << 20})
    places = [swap.in_memory(there * BYTES, BYTES, ledger)]
    if more:
        places.append(Place("more", torch.zeros(more, BYTES, dtype=torch.uint8), BlockGroups(more)))
    memory = torch.full((here, BYTES), POISON, dtype=torch.uint8)
    given = {"small_bytes": 0} | given
    return SwapManager(memory, BlockGroups(here), places, **given)


def write(mine: SwapManager, owner: str, values: dict[int, int]) -> None:
    """Fill blocks of an owner, by their place in its list."""
    blocks = mine.groups.blocks(owner)
    for at, value in values.items():
        mine._memory[blocks[at]] = value


def read(mine: SwapManager, owner: str) -> list[int]:
    found = []
    for block in mine.groups.blocks(owner):
        assert int(mine._memory[block].min()) == int(mine._memory[block].max()), "torn"
        found.append(int(mine._memory[block, 0]))
    return found


def test_out_and_back_by_hand() -> None:
    mine = manager(8, 8)
    mine.alloc("a", 3)
    write(mine, "a", {0: 1, 1: 2, 2: 3})
    ticket = mine.swap_out("a", whole=2)
    ticket.wait()
    assert (ticket.copies, ticket.nbytes) == (1, 3 * BYTES) and ticket.done()
    assert mine.is_out("a") and mine.out_blocks("a") == 3 and mine.groups.used == 0
    mine._memory.fill_(POISON)
    mine.swap_in("a").wait()
    assert read(mine, "a") == [1, 2, 3] and not mine.is_out("a")
    # Two whole blocks stay valid; the third was not whole, so it and what came since are copied.
    mine.alloc("a", 1)
    write(mine, "a", {2: 9, 3: 4})
    assert mine.valid_prefix("a") == 2
    again = mine.swap_out("a", whole=4)
    again.wait()
    assert again.nbytes == 2 * BYTES and mine.stats().kept_bytes == 2 * BYTES
    mine._memory.fill_(POISON)
    mine.swap_in("a").wait()
    assert read(mine, "a") == [1, 2, 9, 4]
    mine.check_integrity()
    mine.close()


def test_without_reuse_everything_is_copied_each_time_block_by_block() -> None:
    mine = manager(8, 8, reuse=False, longest=1, threads=0)
    mine.alloc("a", 4)
    for _ in range(3):
        mine.swap_out("a", whole=4)
        mine.swap_in("a")
    stats = mine.stats()
    assert (stats.out_bytes, stats.copies) == (3 * 4 * BYTES, 3 * 2 * 4)
    assert mine.places[0].groups.used == 0
    mine.close()


class Slow:
    """Copies only when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, into: Tensor, what: Tensor) -> None:
        self.go.wait(30)
        into.copy_(what)


def test_blocks_still_being_read_are_not_given_away() -> None:
    slow = Slow()
    mine = manager(4, 8, copy=slow)
    mine.alloc("a", 2)
    write(mine, "a", {0: 1, 1: 2})
    out = mine.swap_out("a", whole=2)
    assert not out.done() and mine.groups.used == 0  # free to have, but not yet to write
    threading.Timer(0.1, slow.go.set).start()
    mine.alloc("b", 4)  # meets what is under way, so it waits for it
    assert out.done() and mine.stats().conflicts == 1 and mine.stats().waited_s > 0.05
    write(mine, "b", dict.fromkeys(range(4), POISON))
    mine.swap_out("b", whole=4).wait()
    mine.swap_in("a").wait()
    assert read(mine, "a") == [1, 2]
    mine.close()


def test_blocks_that_nobody_reads_are_had_without_waiting() -> None:
    slow = Slow()
    mine = manager(20, 8, copy=slow)
    mine.alloc("a", 2)
    mine.alloc("b", 2)
    out = mine.swap_out("a", whole=2)
    began = time.perf_counter()
    while not set(mine.groups.blocks("b")).isdisjoint(range(2)):
        pytest.fail("b lies where a lay")
    mine.groups.alloc("hole", 2)  # a's old blocks, which nobody writes
    mine.alloc("b", 3)
    assert time.perf_counter() - began < 5 and not out.done()
    slow.go.set()
    mine.close()


def test_copies_of_those_who_are_here_give_way_from_their_ends() -> None:
    mine = manager(12, 6)
    for owner, count in (("a", 3), ("b", 3)):
        mine.alloc(owner, count)
        write(mine, owner, {i: 10 * (owner == "b") + i for i in range(count)})
        mine.swap_out(owner, whole=count).wait()
        mine.swap_in(owner).wait()
    mine.alloc("c", 2)
    write(mine, "c", {0: 77, 1: 78})
    with pytest.raises(BudgetError, match="no place has room"):
        mine.swap_out("c", whole=2)  # nobody was named who would give way
    assert mine.groups.blocks("c") and mine.valid_prefix("a") == 3
    mine.swap_out("c", whole=2, least_important=["b", "a"]).wait()
    assert (mine.valid_prefix("a"), mine.valid_prefix("b")) == (3, 1)
    assert mine.stats().contaminated == 2
    mine.alloc("b", 0)
    mine.groups.free("a")
    mine.forget("a")
    mine.swap_out("b", whole=3).wait()
    mine._memory.fill_(POISON)
    mine.swap_in("b").wait()
    mine.swap_in("c").wait()
    assert (read(mine, "b"), read(mine, "c")) == ([10, 11, 12], [77, 78])
    mine.check_integrity()
    mine.close()


def test_who_is_out_never_gives_way_and_the_next_place_is_taken() -> None:
    mine = manager(12, 3, more=4)
    mine.alloc("a", 3)
    write(mine, "a", {0: 1, 1: 2, 2: 3})
    mine.swap_out("a", whole=3)
    mine.alloc("b", 4)
    write(mine, "b", {i: 5 + i for i in range(4)})
    mine.swap_out("b", whole=4, least_important=["a"]).wait()
    assert [place.groups.used for place in mine.places] == [3, 4]
    mine.alloc("c", 1)
    with pytest.raises(BudgetError):
        mine.swap_out("c", whole=1, least_important=["a", "b"])
    mine.swap_in("a").wait()
    mine.swap_in("b").wait()
    assert (read(mine, "a"), read(mine, "b")) == ([1, 2, 3], [5, 6, 7, 8])
    # What no longer fits where its copy lies goes elsewhere, whole.
    mine.swap_out("b", whole=4).wait()
    mine.alloc("a", 1)
    write(mine, "a", {3: 4})
    mine.groups.free("c")
    mine.swap_in("b").wait()
    mine.forget("b")
    moved = mine.swap_out("a", whole=4)
    moved.wait()
    assert moved.nbytes == 4 * BYTES and mine.places[0].groups.used == 0
    mine.swap_in("a").wait()
    assert read(mine, "a") == [1, 2, 3, 4]
    mine.check_integrity()
    mine.close()


def test_what_was_cut_off_is_copied_anew() -> None:
    mine = manager(8, 8)
    mine.alloc("a", 4)
    write(mine, "a", {i: i for i in range(4)})
    mine.swap_out("a", whole=4)
    mine.swap_in("a").wait()
    mine.groups.free("a", 2)
    mine.cut("a", whole=2)
    mine.alloc("a", 1)
    write(mine, "a", {2: 50})
    mine.swap_out("a", whole=3).wait()
    mine._memory.fill_(POISON)
    mine.swap_in("a").wait()
    assert read(mine, "a") == [0, 1, 50]
    mine.close()


def test_what_cannot_be_is_refused() -> None:
    mine = manager(4, 4)
    mine.alloc("a", 2)
    for wrong in (
        lambda: mine.swap_out("nobody", whole=0),
        lambda: mine.swap_out("a", whole=3),
        lambda: mine.swap_in("a"),
        lambda: SwapManager(torch.zeros(3, 4, dtype=torch.uint8), BlockGroups(4), []),
        lambda: swap.in_memory(3, BYTES, Ledger({"dram": 99})),
    ):
        with pytest.raises(ParameterError):
            wrong()
    with pytest.raises(BudgetError):
        swap.in_memory(10 * BYTES, BYTES, Ledger({"dram": 99}))
    mine.close()


def test_a_failed_copy_is_told_to_who_waits() -> None:
    def broken(into: Tensor, what: Tensor) -> None:
        raise RuntimeError("a cable came loose")

    mine = manager(4, 4, copy=broken)
    mine.alloc("a", 2)
    with pytest.raises(RuntimeError, match="cable"):
        mine.swap_out("a", whole=2).wait()


def test_a_file_takes_copies_is_paid_for_and_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger({"disk": 1 << 20})
    place = swap.on_disk(8 * 4096, 4096, ledger, tmp_path / "swap")
    assert ledger.used("disk") == 8 * 4096 and not list((tmp_path / "swap").iterdir())
    memory = torch.randint(0, 200, (4, 4096), dtype=torch.uint8)
    mine = SwapManager(memory.clone(), BlockGroups(4), [place], small_bytes=0)
    mine.alloc("a", 4)
    mine.swap_out("a", whole=4).wait()
    mine._memory.zero_()
    mine.swap_in("a").wait()
    assert torch.equal(mine._memory, memory)
    mine.close()
    assert ledger.used("disk") == 0
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="no room for"):
        swap.on_disk(8 * 4096, 4096, ledger, file)
    assert ledger.used("disk") == 0


@pytest.mark.parametrize("seed", range(3))
def test_random_coming_and_going_with_poisoned_blocks(seed: int) -> None:
    """Every freed block is overwritten at once by whoever gets it next."""
    draw = random.Random(seed)

    def late(into: Tensor, what: Tensor) -> None:
        if draw.random() < 0.2:
            time.sleep(0.0005)
        into.copy_(what)

    mine = manager(24, 20, more=16, copy=late)
    wanted: dict[str, list[int]] = {}
    for number in range(6000):
        owner = f"o{draw.randrange(9)}"
        here = owner in wanted and not mine.is_out(owner)
        what = draw.random()
        if not mine.is_out(owner) and what < 0.45:
            count = draw.randrange(1, 4)
            if count <= mine.groups.unused:
                mine.alloc(owner, count)
                old = len(wanted.setdefault(owner, []))
                new = {old + i: (number + i) % 200 for i in range(count)}
                write(mine, owner, new)
                wanted[owner] += new.values()
        elif here and what < 0.75:
            others = [o for o in wanted if not mine.is_out(o)]
            draw.shuffle(others)
            whole = draw.randrange(max(0, len(wanted[owner]) - 1), len(wanted[owner]) + 1)
            try:
                mine.swap_out(owner, whole=whole, least_important=others)
            except BudgetError:
                assert read(mine, owner) == wanted[owner]
            else:
                free = mine.groups.unused
                mine.alloc("poison", free)
                write(mine, "poison", dict.fromkeys(range(free), POISON))
                mine.groups.free("poison")
        elif mine.is_out(owner) and mine.out_blocks(owner) <= mine.groups.unused:
            mine.swap_in(owner).wait()
            assert read(mine, owner) == wanted[owner]
            if draw.random() < 0.5:  # the last block was not whole: it is written again
                last = len(wanted[owner]) - 1
                if last >= mine.valid_prefix(owner):
                    write(mine, owner, {last: number % 200})
                    wanted[owner][last] = number % 200
        elif here and what > 0.9:
            mine.groups.free(owner)
            mine.forget(owner)
            del wanted[owner]
        if number % 50 == 0:
            mine.check_integrity()
    assert mine.stats().outs > 100
    mine.close()


def test_copies_that_are_nobodys_any_more_can_be_wiped() -> None:
    mine = manager(8, 8)
    for owner in "ab":
        mine.alloc(owner, 2)
        write(mine, owner, {0: 7, 1: 7})
        mine.swap_out(owner, whole=2)
    mine.forget("a")
    (place,) = mine.places
    mine.settle()
    assert int((place.memory == 7).sum()) == 4 * BYTES
    assert mine.wipe() == 2 * BYTES
    assert int((place.memory == 7).sum()) == 2 * BYTES
    mine.swap_in("b").wait()
    assert read(mine, "b") == [7, 7]
    mine.forget("b")
    assert mine.wipe() == 2 * BYTES and not place.memory.any()
    assert mine.wipe() == 0
    mine.close()
