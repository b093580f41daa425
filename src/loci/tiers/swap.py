"""Moving what a request holds out of fast memory and back, in few copies and beside the work.

"FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware LLM Serving", 2024,
arXiv:2411.18424 (abstract and digests; a reconstruction, see `loci.tiers.groups`).

    copies of a switch = runs of blocks that lie beside each other on both sides
    seconds of a switch = copies * dispatch + bytes / bandwidth

Worker threads do the copies; whoever asked gets a ticket and goes on. Blocks of somebody who leaves
can be had by others at once: what is to be written there, while they are still being read, waits
for that one ticket. After a request came back, its copy stays. Keys and values are only
appended, so what was whole when it left stays valid, and the next time only what came since is
copied. Where room for copies runs short, copies of those who are here give way, from their ends,
the least important first.

Copies lie in places, tried in order: main memory, then a file. A block that several share is copied
for each that leaves.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loci.core.ledger import Lease, Ledger
from loci.errors import BudgetError, ParameterError, StorageError
from loci.tiers.groups import BlockGroups, runs_of
from loci.tiers.pool import aligned_empty
from loci.units import format_bytes

SMALL_BYTES = 1 << 20  # what is copied faster than a thread is woken, and less than a step takes
PIECE_BYTES = 8 << 20  # of a long run that one thread copies at a time
Pair = tuple[int, int, int]  # first block here, first block there, how many


@dataclass(eq=False)
class Place:
    """Where copies lie: blocks of bytes, uint8 [count, block bytes], and whose they are."""

    name: str
    memory: Tensor
    groups: BlockGroups
    lease: Lease | None = None
    written: set[int] = field(default_factory=set, init=False)  # blocks, since they were wiped

    def close(self) -> None:
        """Give the memory back."""
        self.memory = self.memory[:0]
        self.written.clear()
        if self.lease is not None:
            self.lease.release()


def in_memory(nbytes: int, block_bytes: int, ledger: Ledger, tier: str = "dram") -> Place:
    """Return a place in main memory.

    Raises:
        BudgetError: if it does not fit the ledger.
    """
    count = _count(nbytes, block_bytes)
    lease = ledger.reserve("swap", tier, count * block_bytes, "swap")
    memory = aligned_empty(count * block_bytes).view(count, block_bytes)
    return Place(tier, memory, BlockGroups(count), lease)


def on_disk(nbytes: int, block_bytes: int, ledger: Ledger, folder: Path) -> Place:
    """Return a place in a file without a name: the system removes it when the process ends.

    Raises:
        BudgetError: if it does not fit the ledger.
        StorageError: if the disk has no room for all of it, or the folder cannot be used.
    """
    count = _count(nbytes, block_bytes)
    lease = ledger.reserve("swap", "disk", count * block_bytes, "swap")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".swap-") as file:
            os.posix_fallocate(file.fileno(), 0, count * block_bytes)
            size = count * block_bytes
            memory = torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        lease.release()
        raise StorageError(
            f"no room for {format_bytes(count * block_bytes)} in {folder}: {error}",
            way_out="name another folder, or swap less to disk",
        ) from error
    return Place("disk", memory.view(count, block_bytes), BlockGroups(count), lease)


class Ticket:
    """Copies under way.

    Attributes:
        nbytes, copies: what it moves, in how many pieces that lie together on both sides.
    """

    def __init__(self, nbytes: int, copies: int) -> None:
        self.nbytes, self.copies = nbytes, copies
        self.touched: list[tuple[str, range]] = []  # blocks that must not be given away yet
        self._parts: list[Future[None]] = []

    def done(self) -> bool:
        """Return whether all of it was copied."""
        return all(part.done() for part in self._parts)

    def wait(self) -> None:
        """Wait until it was; raise what went wrong."""
        for part in self._parts:
            part.result()


@dataclass(frozen=True, kw_only=True)
class SwapStats:
    """What was moved since the start.

    Attributes:
        out_bytes, in_bytes, copies: as moved. kept_bytes: that valid copies saved.
        waited_s: seconds that callers stood still, for small or conflicting copies and in `wait`.
        conflicts: allocations that made the caller wait. contaminated: blocks of copies that
            gave way.
    """

    outs: int
    ins: int
    out_bytes: int
    in_bytes: int
    copies: int
    kept_bytes: int
    waited_s: float
    conflicts: int
    contaminated: int


@dataclass(eq=False)
class _Copy:
    """What lies of an owner in a place.

    Attributes:
        valid: blocks, from the first, that equal the owner's.
        is_only: the owner is out, so there is nothing else.
    """

    place: Place
    valid: int = 0
    is_only: bool = False


@dataclass
class _Sums:
    outs: int = 0
    ins: int = 0
    out_bytes: int = 0
    in_bytes: int = 0
    copies: int = 0
    kept_bytes: int = 0
    waited_s: float = 0.0
    conflicts: int = 0
    contaminated: int = 0


class SwapManager:
    """Puts owners of blocks out and brings them back. One thread at a time may call it.

    Args:
        memory: the fast side, uint8 [count, block bytes]. groups: whose blocks they are.
        places: where copies go, best first.
        threads: that copy; 0 copies at once, in the caller's.
        reuse: keep copies of those who came back.
        longest: blocks of a run at most; None does not cut them.
        copy: copies one tensor into another.
    """

    HERE = "here"

    def __init__(
        self,
        memory: Tensor,
        groups: BlockGroups,
        places: Sequence[Place],
        *,
        threads: int = 2,
        reuse: bool = True,
        longest: int | None = None,
        small_bytes: int = SMALL_BYTES,
        copy: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    ) -> None:
        if threads < 0 or (longest is not None and longest < 1) or len(memory) != groups.count:
            raise ParameterError(
                "a swap needs threads >= 0, longest >= 1 and a block of memory for each block",
                value=(threads, longest, len(memory), groups.count),
            )
        self._memory, self.groups, self.places = memory, groups, tuple(places)
        self._reuse, self._longest, self._small, self._do = reuse, longest, small_bytes, copy
        self._workers = (
            ThreadPoolExecutor(threads, thread_name_prefix="loci-swap") if threads else None
        )
        self._copies: dict[Hashable, _Copy] = {}
        self._under_way: list[Ticket] = []
        self._sums = _Sums()
        self.block_bytes = int(memory.shape[1])

    # -- blocks -------------------------------------------------------------------------------

    def alloc(self, owner: Hashable, count: int) -> list[int]:
        """Give an owner blocks here that nobody reads or writes any more.

        Raises:
            BudgetError: if fewer are unused.
        """
        blocks = self.groups.alloc(owner, count)
        for ticket in self._touching(self.HERE, blocks):
            self._sums.conflicts += 1
            self._wait(ticket)
        return blocks

    def swap_out(
        self, owner: Hashable, whole: int, least_important: Iterable[Hashable] = ()
    ) -> Ticket:
        """Put an owner out: its blocks here can be had by others at once.

        Args:
            whole: how many of its blocks, from the first, will not be written again.
            least_important: whose copies give way first; those not named never do.

        Raises:
            BudgetError: if no place has room; nothing has changed then.
            ParameterError: if it holds nothing here.
        """
        blocks = self.groups.blocks(owner)
        if not blocks or not 0 <= whole <= len(blocks):
            raise ParameterError(
                "who holds blocks can be put out, with as many whole ones as it has",
                value=(owner, whole),
                allowed=f"{len(blocks)} blocks held",
            )
        there = self._room_for(owner, len(blocks), list(least_important))
        valid = there.valid if self._reuse else 0
        copies = there.place.groups.blocks(owner)
        pairs = _pairs(blocks[valid:], copies[valid : len(blocks)], self._longest)
        self._sums.kept_bytes += valid * self.block_bytes
        before = self._touching(there.place.name, copies[valid : len(blocks)])
        ticket = self._move(pairs, there.place, before, is_out=True)
        self.groups.free(owner)
        there.valid, there.is_only = whole, True
        self._sums.outs += 1
        return ticket

    def swap_in(self, owner: Hashable) -> Ticket:
        """Bring an owner back; it may be used when the ticket is done.

        Raises:
            BudgetError: if there are too few unused blocks; nothing has changed then.
            ParameterError: if it is not out.
        """
        there = self._copies.get(owner)
        if there is None or not there.is_only:
            raise ParameterError("who is out can be brought back", value=owner)
        copies = there.place.groups.blocks(owner)
        blocks = self.groups.alloc(owner, len(copies))
        before = self._touching(self.HERE, blocks) + self._touching(there.place.name, copies)
        pairs = _pairs(blocks, copies, self._longest)
        ticket = self._move(pairs, there.place, before, is_out=False)
        there.is_only = False
        self._sums.ins += 1
        if not self._reuse:
            ticket.wait()
            self.forget(owner)
        return ticket

    def is_out(self, owner: Hashable) -> bool:
        """Return whether an owner is out."""
        there = self._copies.get(owner)
        return there is not None and there.is_only

    def out_blocks(self, owner: Hashable) -> int:
        """Return how many blocks an owner who is out will need here."""
        there = self._copies.get(owner)
        return len(there.place.groups.blocks(owner)) if there is not None and there.is_only else 0

    def valid_prefix(self, owner: Hashable) -> int:
        """Return how many blocks of an owner, from the first, have a valid copy."""
        there = self._copies.get(owner)
        return 0 if there is None else there.valid

    def forget(self, owner: Hashable) -> None:
        """Drop the copy of an owner."""
        there = self._copies.pop(owner, None)
        if there is not None:
            there.place.groups.free(owner)

    def cut(self, owner: Hashable, whole: int, rest: int = 0) -> None:
        """Note that only the first whole blocks of an owner stay as they are.

        Args:
            rest: further blocks to keep of who is out, behind those.
        """
        there = self._copies.get(owner)
        if there is None:
            return
        held = len(there.place.groups.blocks(owner))
        there.valid = min(there.valid, whole)
        there.place.groups.free(owner, max(0, held - whole - rest))

    # -- accounts -----------------------------------------------------------------------------

    def stats(self) -> SwapStats:
        """Return what was moved."""
        return SwapStats(**vars(self._sums))

    def wipe(self) -> int:
        """Write zeros over copies that are nobody's any more; return how many bytes that were."""
        self.settle()
        wiped = 0
        for place in self.places:
            gone = sorted(block for block in place.written if not place.groups.lists(block))
            for start, count in runs_of(gone):
                place.memory[start : start + count] = 0
            place.written.difference_update(gone)
            wiped += len(gone) * self.block_bytes
        return wiped

    def settle(self) -> None:
        """Wait for all copies under way."""
        for ticket in self._under_way:
            self._wait(ticket)
        self._under_way.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks and copies agree."""
        self.groups.check_integrity()
        for place in self.places:
            place.groups.check_integrity()
        for owner, there in self._copies.items():
            held, here = there.place.groups.blocks(owner), self.groups.blocks(owner)
            assert there.valid <= len(held), "a copy is valid beyond its end"
            assert not (there.is_only and here), "somebody is here and out"
            assert there.is_only or there.valid <= len(here), "more was kept than there is"

    def close(self) -> None:
        """Wait for what is under way, and give the places back."""
        self.settle()
        if self._workers is not None:
            self._workers.shutdown(wait=True)
            self._workers = None
        for place in self.places:
            place.close()
        self._memory = self._memory[:0]

    # -- private ------------------------------------------------------------------------------

    def _room_for(self, owner: Hashable, count: int, least: list[Hashable]) -> _Copy:
        """Return a copy with so many blocks, in the first place that has or can make room."""
        old = self._copies.get(owner)
        first = () if old is None else (old.place,)
        for place in dict.fromkeys((*first, *self.places)):
            held = len(place.groups.blocks(owner))
            need = count - held
            if need > place.groups.unused:
                givers = [o for o in least if self._can_give(o, owner, place)]
                spare = sum(len(place.groups.blocks(o)) for o in givers)
                if need > place.groups.unused + spare:
                    continue
                self._contaminate(place, need - place.groups.unused, givers)
            if need > 0:
                place.groups.alloc(owner, need)
            elif need < 0:
                place.groups.free(owner, -need)
            if old is not None and old.place is not place:
                old.place.groups.free(owner)
                old = None
            if old is None:
                old = self._copies[owner] = _Copy(place)
            return old
        raise BudgetError(
            f"no place has room for {format_bytes(count * self.block_bytes)} of {owner}",
            way_out="give what is swapped more room, or let it be read again",
        )

    def _can_give(self, other: Hashable, owner: Hashable, place: Place) -> bool:
        there = self._copies.get(other)
        return there is not None and there.place is place and not there.is_only and other != owner

    def _contaminate(self, place: Place, count: int, givers: Sequence[Hashable]) -> None:
        """Take blocks from the ends of copies, so that what stays valid is a beginning."""
        for other in givers:
            held = len(place.groups.blocks(other))
            taken = min(count, held)
            self._sums.contaminated += taken
            self.cut(other, held - taken)
            count -= taken
            if not count:
                return

    def _move(
        self, pairs: Sequence[Pair], place: Place, before: Sequence[Ticket], *, is_out: bool
    ) -> Ticket:
        """Copy blocks once the tickets before, which touch some of them, are done."""
        nbytes = sum(count for _, _, count in pairs) * self.block_bytes
        ticket = Ticket(nbytes, len(pairs))
        self._sums.copies += len(pairs)
        if is_out:
            self._sums.out_bytes += nbytes
        else:
            self._sums.in_bytes += nbytes
        jobs = []
        step = max(1, PIECE_BYTES // self.block_bytes)
        for here, there, count in pairs:
            ticket.touched.append((self.HERE, range(here, here + count)))
            ticket.touched.append((place.name, range(there, there + count)))
            if is_out:
                place.written.update(range(there, there + count))
            for at in range(0, count, step):
                part = slice(here + at, here + min(count, at + step))
                other = slice(there + at, there + min(count, at + step))
                mine, its = self._memory[part], place.memory[other]
                jobs.append((its, mine) if is_out else (mine, its))
        if self._workers is None or (nbytes <= self._small and not before):
            began = time.perf_counter()
            for into, what in jobs:
                self._do(into, what)
            self._sums.waited_s += time.perf_counter() - began
            return ticket
        ticket._parts = [self._workers.submit(self._run, before, *job) for job in jobs]
        self._under_way = [t for t in self._under_way if not t.done()]
        self._under_way.append(ticket)
        return ticket

    def _run(self, before: Sequence[Ticket], into: Tensor, what: Tensor) -> None:
        for ticket in before:  # they were begun earlier, so no two wait for each other
            ticket.wait()
        self._do(into, what)

    def _touching(self, space: str, blocks: Sequence[int]) -> list[Ticket]:
        """Return the tickets under way that read or write some of these blocks."""
        self._under_way = [t for t in self._under_way if not t.done()]
        mine = set(blocks)
        return [
            ticket
            for ticket in self._under_way
            if any(name == space and not mine.isdisjoint(where) for name, where in ticket.touched)
        ]

    def _wait(self, ticket: Ticket) -> None:
        began = time.perf_counter()
        ticket.wait()
        self._sums.waited_s += time.perf_counter() - began


def _pairs(here: Sequence[int], there: Sequence[int], longest: int | None) -> list[Pair]:
    """Return runs of blocks that follow each other on both sides."""
    found: list[Pair] = []
    for mine, its in zip(here, there, strict=True):
        if found:
            first, other, count = found[-1]
            is_next = (first + count, other + count) == (mine, its)
            if is_next and (longest is None or count < longest):
                found[-1] = first, other, count + 1
                continue
        found.append((mine, its, 1))
    return found


def _count(nbytes: int, block_bytes: int) -> int:
    count = nbytes // block_bytes
    if count < 1:
        raise ParameterError(
            "what is swapped needs room for one block",
            value=nbytes,
            allowed=f">= {block_bytes:,} bytes",
        )
    return count
