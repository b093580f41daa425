"""Groups of blocks: by hand, at their limits, and under a hundred thousand random operations."""

from __future__ import annotations

import random

import pytest

from loci.errors import BudgetError, ParameterError
from loci.tiers.groups import BlockGroups, runs_of


def test_growth_stays_in_one_run_while_others_come() -> None:
    groups = BlockGroups(64)
    assert groups.alloc("a", 2) == [0, 1]  # four are set aside behind them
    assert groups.alloc("b", 2) == [6, 7]
    assert groups.alloc("a", 4) == [2, 3, 4, 5]
    assert groups.runs("a") == [(0, 6)]
    # The next place of a is behind what b set aside, with eight blocks of its own.
    assert groups.alloc("a", 1) == [12]
    assert groups.alloc("c", 1) == [21]
    groups.check_integrity()


def test_what_is_set_aside_is_never_a_reason_to_refuse() -> None:
    groups = BlockGroups(10)
    groups.alloc("a", 2)
    groups.alloc("b", 1)
    assert groups.unused == 7
    assert len(groups.alloc("c", 7)) == 7  # all that a and b had set aside
    groups.check_integrity()
    with pytest.raises(BudgetError, match="1 blocks are needed and 0 of 10 are unused"):
        groups.alloc("a", 1)
    groups.free("c", 1)
    assert len(groups.alloc("a", 1)) == 1
    groups.check_integrity()


def test_the_largest_tail_is_taken_first_and_from_its_end() -> None:
    groups = BlockGroups(16, first=4, most=8)
    groups.alloc("a", 1)  # 0, aside 1-4
    groups.alloc("b", 1)  # 5, aside 6-9
    groups.alloc("b", 4)  # aside is used up
    groups.alloc("b", 1)  # 10, aside 11-15
    assert groups.alloc("c", 2) == [14, 15]
    assert groups.alloc("b", 3) == [11, 12, 13]
    assert groups.alloc("c", 1) == [4]
    groups.check_integrity()


def test_a_shared_beginning_is_counted_once_and_outlives_its_first_owner() -> None:
    groups = BlockGroups(32)
    first = groups.alloc("a", 5)
    assert groups.share("b", "a", 3) == first[:3]
    groups.alloc("b", 1)
    assert groups.used == 6 and groups.is_shared("a") and groups.lists(first[0]) == 2
    assert groups.free("a") == first[3:]
    assert groups.blocks("b")[:3] == first[:3] and not groups.is_shared("b")
    groups.check_integrity()
    groups.free("b")
    assert groups.used == 0 and groups.alloc("c", 32)


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    groups = BlockGroups(8)
    groups.alloc("a", 2)
    for wrong in (
        lambda: groups.free("nobody"),
        lambda: groups.free("a", 3),
        lambda: groups.alloc("a", -1),
        lambda: groups.share("a", "a", 1),
        lambda: groups.share("b", "a", 3),
        lambda: BlockGroups(0),
        lambda: BlockGroups(4, first=8, most=2),
    ):
        with pytest.raises(ParameterError):
            wrong()
    groups.check_integrity()
    groups.free("a")
    with pytest.raises(ParameterError, match="taken back"):
        groups.free("a")


def test_runs_are_found_in_order() -> None:
    assert runs_of([]) == [] and runs_of([3]) == [(3, 1)]
    assert runs_of([3, 2, 1]) == [(3, 1), (2, 1), (1, 1)]


@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_thousand_random_operations_lose_and_double_nothing(seed: int) -> None:
    draw, count = random.Random(seed), 300
    groups = BlockGroups(count, first=draw.choice([0, 1, 4]), most=draw.choice([4, 64]))
    mine: dict[int, list[int]] = {}
    for number in range(25_000):
        owner, what = draw.randrange(40), draw.random()
        wanted = draw.choice([1, 1, 1, draw.randrange(1, 30)])
        if what < 0.6:
            if wanted > groups.unused:
                with pytest.raises(BudgetError):
                    groups.alloc(owner, wanted)
            else:  # fragmentation never refuses
                mine.setdefault(owner, []).extend(groups.alloc(owner, wanted))
        elif what < 0.7 and mine and owner not in mine:
            other = draw.choice(sorted(mine))
            shared = draw.randrange(len(mine[other]) + 1)
            mine[owner] = groups.share(owner, other, shared)
        elif what < 0.85 and mine.get(owner):
            gone = draw.randrange(len(mine[owner]) + 1)
            groups.free(owner, gone)
            del mine[owner][len(mine[owner]) - gone :]
        elif owner in mine:
            groups.free(owner)
            del mine[owner]
        assert groups.blocks(owner) == mine.get(owner, [])
        if number % 100 == 0:
            groups.check_integrity()
            assert groups.used == len({block for blocks in mine.values() for block in blocks})
    groups.check_integrity()


def test_churn_leaves_long_runs_where_single_blocks_scatter() -> None:
    def churn(groups: BlockGroups) -> float:
        draw, live = random.Random(1), []
        for number in range(600):
            groups.alloc(number, draw.randrange(4, 40))
            live.append(number)
            for _ in range(30):
                owner = draw.choice(live)
                if groups.unused:
                    groups.alloc(owner, 1)
            while groups.unused < 60:
                groups.free(live.pop(draw.randrange(len(live))))
        return sum(len(groups.blocks(o)) for o in live) / sum(len(groups.runs(o)) for o in live)

    assert churn(BlockGroups(600)) > 1.5 * churn(BlockGroups(600, first=0, most=0))
