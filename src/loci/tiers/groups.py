"""Blocks handed out in long runs, so that moving what somebody holds takes few copies.

"FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving", 2024,
arXiv:2411.18424 (abstract and digests; no program of the authors is public, so the data structures
and thresholds below are a reconstruction).

A paged cache hands out single blocks; after some coming and going what a request holds lies
scattered, and putting it out takes a copy for each block. Here a request gets blocks beside each
other, and some more behind them are set aside for its growth: 4, then 8, 16, up to 64 blocks, twice
as many each time it needs a new place. Nothing is lost by that: what is set aside serves others as
soon as nothing else is free (the largest first, from its end), so an allocation fails only when
more is asked for than is unused.

    blocks = used (in a request's list, each with a count of lists) + set aside + free

Free blocks are intervals in order of address, joined when neighbours meet; the smallest that has
room is taken. The first blocks of a request can be shared with others, as a common beginning is.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from loci.errors import BudgetError, ParameterError

FIRST, MOST = 4, 64  # blocks set aside for growth: the first time, and at most


@dataclass(eq=False)
class _Held:
    """What one owner holds, in its order, and the blocks set aside behind the last of them."""

    blocks: list[int] = field(default_factory=list)
    tail: tuple[int, int] = (0, 0)  # first block and how many
    growth: int = FIRST


class BlockGroups:
    """Which blocks of a pool belong to whom. One thread at a time may use it.

    Args:
        count: blocks of the pool.
        first, most: blocks set aside behind a request's own, at first and at most; 0 and 0 sets
            nothing aside.

    >>> groups = BlockGroups(100)
    >>> groups.alloc("ada", 3), groups.alloc("bob", 2), groups.alloc("ada", 2)
    ([0, 1, 2], [7, 8], [3, 4])
    >>> groups.runs("ada")
    [(0, 5)]
    """

    def __init__(self, count: int, *, first: int = FIRST, most: int = MOST) -> None:
        if count < 1 or not 0 <= first <= most:
            raise ParameterError(
                "a pool needs blocks, and 0 <= first <= most", value=(count, first, most)
            )
        self.count, self._first, self._most = count, first, most
        self._held: dict[Hashable, _Held] = {}
        self._lists = [0] * count  # of each block, how many owners have it
        self._used = 0
        self._length: dict[int, int] = {}  # free intervals by their first block
        self._starts: list[int] = []
        self._sizes: list[tuple[int, int]] = []
        self._give(0, count)

    # -- asking -------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Blocks that somebody has, each once."""
        return self._used

    @property
    def unused(self) -> int:
        """Blocks that can still be had, whether set aside or not."""
        return self.count - self._used

    def blocks(self, owner: Hashable) -> list[int]:
        """Return an owner's blocks in its order; of somebody unknown, none."""
        held = self._held.get(owner)
        return [] if held is None else list(held.blocks)

    def runs(self, owner: Hashable) -> list[tuple[int, int]]:
        """Return an owner's blocks as (first, count) of blocks that lie beside each other."""
        return runs_of(self.blocks(owner))

    def is_shared(self, owner: Hashable) -> bool:
        """Return whether somebody else has one of an owner's blocks."""
        return any(self._lists[block] > 1 for block in self.blocks(owner))

    def lists(self, block: int) -> int:
        """Return how many owners have a block."""
        return self._lists[block]

    # -- taking -------------------------------------------------------------------------------

    def alloc(self, owner: Hashable, count: int) -> list[int]:
        """Give an owner more blocks and return them.

        Raises:
            BudgetError: if fewer are unused; nothing has changed then.
        """
        if count < 0:
            raise ParameterError("nobody takes a negative number of blocks", value=count)
        if count > self.unused:
            raise BudgetError(
                f"{count} blocks are needed and {self.unused} of {self.count} are unused "
                f"({count - self.unused} short)",
                way_out="give some back, or make the pool larger",
            )
        held = self._held.setdefault(owner, _Held(growth=self._first))
        taken: list[int] = []
        while len(taken) < count:
            start, length = self._take(held, count - len(taken))
            found = range(start, start + length)
            taken += found
            held.blocks += found
            for block in found:
                self._lists[block] = 1
            self._used += length
        return taken

    def share(self, owner: Hashable, other: Hashable, count: int) -> list[int]:
        """Make the first blocks of one owner the first of another too, who has none yet."""
        mine = self._held.setdefault(owner, _Held(growth=self._first))
        theirs = self.blocks(other)
        if mine.blocks or count > len(theirs) or count < 0:
            raise ParameterError(
                "an owner without blocks can be given the first ones of another",
                value=(len(mine.blocks), count),
                allowed=f"0 held, 0 to {len(theirs)} shared",
            )
        mine.blocks = theirs[:count]
        for block in mine.blocks:
            self._lists[block] += 1
        return list(mine.blocks)

    def free(self, owner: Hashable, count: int | None = None) -> list[int]:
        """Take the last blocks of an owner back, or all; return those nobody has any more.

        Raises:
            ParameterError: if it has fewer.
        """
        held = self._held.get(owner)
        if held is None or (count is not None and not 0 <= count <= len(held.blocks)):
            raise ParameterError(
                "only what somebody has can be taken back",
                value=(owner, count),
                allowed="nothing" if held is None else f"0 to {len(held.blocks)} blocks",
            )
        self._drop_tail(held)
        rest = 0 if count is None else len(held.blocks) - count
        gone = []
        for block in held.blocks[rest:]:
            self._lists[block] -= 1
            if not self._lists[block]:
                gone.append(block)
        del held.blocks[rest:]
        self._used -= len(gone)
        for start, length in runs_of(sorted(gone)):
            self._give(start, length)
        if count is None:
            del self._held[owner]
        return gone

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is used, set aside or free, and once so."""
        lists = [0] * self.count
        for held in self._held.values():
            assert len(set(held.blocks)) == len(held.blocks), "an owner has a block twice"
            for block in held.blocks:
                lists[block] += 1
        assert lists == self._lists, "counts and lists of blocks differ"
        state = [min(1, n) for n in lists]
        assert sum(state) == self._used, "the number of used blocks is wrong"
        for held in self._held.values():
            start, length = held.tail
            for block in range(start, start + length):
                state[block] += 1
            assert not length or held.blocks[-1] == start - 1, "what is set aside lies elsewhere"
        ordered = [(start, self._length[start]) for start in self._starts]
        assert sorted((n, s) for s, n in ordered) == self._sizes, "the indexes of intervals differ"
        for at, (start, length) in enumerate(ordered):
            for block in range(start, start + length):
                state[block] += 1
            assert at == 0 or sum(ordered[at - 1]) < start, "neighbours were not joined"
        assert state == [1] * self.count, "a block is in two places, or in none"

    # -- private ------------------------------------------------------------------------------

    def _take(self, held: _Held, count: int) -> tuple[int, int]:
        """Find up to `count` blocks beside each other, as near to what is held as can be."""
        start, length = held.tail
        if length:
            taken = min(length, count)
            held.tail = start + taken, length - taken
            return start, taken
        behind = held.blocks[-1] + 1 if held.blocks else None
        if behind is not None and behind in self._length:
            return self._cut(held, behind, count)
        if self._sizes:
            wanted = count + held.growth
            at = bisect_left(self._sizes, (wanted, -1))
            size, start = self._sizes[min(at, len(self._sizes) - 1)]
            return self._cut(held, start, min(count, size))
        victim = max(self._held.values(), key=lambda each: each.tail[1])
        start, length = victim.tail
        taken = min(length, count)
        assert taken, "blocks were promised that are not there"
        victim.tail = start, length - taken
        return start + length - taken, taken

    def _cut(self, held: _Held, start: int, count: int) -> tuple[int, int]:
        """Take the first blocks of a free interval, and set those behind them aside."""
        size = self._length[start]
        count = min(count, size)
        aside = min(held.growth, size - count)
        self._forget(start)
        held.tail = start + count, aside
        if size > count + aside:
            self._remember(start + count + aside, size - count - aside)
        held.growth = min(self._most, 2 * held.growth)
        return start, count

    def _drop_tail(self, held: _Held) -> None:
        start, length = held.tail
        held.tail = 0, 0
        if length:
            self._give(start, length)

    def _give(self, start: int, length: int) -> None:
        """Make blocks free, joined with free neighbours."""
        if start + length in self._length:
            length += self._forget(start + length)
        at = bisect_left(self._starts, start)
        if at and self._starts[at - 1] + self._length[self._starts[at - 1]] == start:
            start = self._starts[at - 1]
            length += self._forget(start)
        self._remember(start, length)

    def _remember(self, start: int, length: int) -> None:
        self._length[start] = length
        insort(self._starts, start)
        insort(self._sizes, (length, start))

    def _forget(self, start: int) -> int:
        length = self._length.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        del self._sizes[bisect_left(self._sizes, (length, start))]
        return length


def runs_of(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Return blocks as (first, count) of those that follow each other.

    >>> runs_of([4, 5, 6, 9, 2])
    [(4, 3), (9, 1), (2, 1)]
    """
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and sum(runs[-1]) == block:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((block, 1))
    return runs
