"""KV memory that grows page by page under tensors that stay contiguous.

R. Prabhu et al., "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention",
ASPLOS 2025, arXiv:2405.04437.

Every request owns a range of addresses for its longest context, which costs nothing; pages are
mapped into it as its tokens come. Attention reads one contiguous piece, so any kernel will do.

    megacache   one region a request, [tokens, layers, 2, kv heads, head size]: a page covers all
                layers, so growth takes one page
    per_layer   2 * layers regions, [tokens, kv heads, head size]: growth takes as many pages

    pages of a region = ceil(tokens * bytes of a token / bytes of a page)

Freed requests keep their pages (deferred reclamation), and the next request takes the inactive id
whose pages fit best: the fewest that suffice, else the most there are. What it has beyond the next
two pages goes back. When pages run short they are taken from inactive ids, the highest first; while
nobody is active each step takes one.
`step_async` maps what is needed now, and in the background what the next ten steps need, two pages
at most.

Differs from the authors' program: keys and values lie in one region, so the megacache grows by one
page instead of two; a short request does not keep all that a long one left; pages come in runs (see
`loci.tiers.groups`), which one system call maps; a prefix can be shared whose end is no page's, by
copying the rest.
Not for: heads that keep other numbers of tokens, or few tokens of a small model in large pages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, ContextError, ParameterError
from loci.tiers.groups import BlockGroups, runs_of
from loci.tiers.pages import Pages, Range, open_pages
from loci.tiers.pool import round_up

PAGE_BYTES = 64 << 10
AHEAD_TOKENS, AHEAD_PAGES = 10, 2
Layout = Literal["megacache", "per_layer"]

# Shapes: S tokens, L layers, K key/value heads, D head size.


@dataclass(eq=False)
class _Slot:
    """One id: its ranges, one a region, and how many pages of each are mapped."""

    ranges: list[Range]
    mapped: int = 0
    length: int = 0
    is_active: bool = False


@dataclass(frozen=True, kw_only=True)
class VirtualStats:
    """What is mapped now, and what was done.

    Attributes:
        reserved_bytes: of addresses. committed_bytes: of pages in use, each once, those that
            inactive ids keep included. needed_bytes: of the tokens of active ids.
        mapped_pages: pages that were mapped since the start, those ahead of need included.
        calls: system calls for them. map_s: seconds that callers waited for mapping; ahead_s:
            seconds of the background.
        reclaimed_pages: taken from inactive ids. shared_pages: mapped a second time.
        ahead_short: times that nothing was left to map ahead.
    """

    reserved_bytes: int
    committed_bytes: int
    needed_bytes: int
    free_pages: int
    mapped_pages: int
    calls: int
    map_s: float
    ahead_s: float
    reclaimed_pages: int
    shared_pages: int
    ahead_short: int


@dataclass
class _Counts:
    mapped: int = 0
    calls: int = 0
    map_s: float = 0.0
    ahead_s: float = 0.0
    reclaimed: int = 0
    shared: int = 0
    ahead_short: int = 0


class VirtualKVAllocator:
    """Contiguous keys and values for many requests out of one pool of pages.

    Args:
        spec: sizes of the model.
        max_len, max_batch: tokens of a request, and requests, at most.
        pool_bytes: of physical memory at most.
        page_bytes: of one page; on a GPU its driver's granularity, 2 MiB.
        ledger: pays for pages as they are mapped.
        pages: makes the pages; by default those of `device`.

    Raises:
        ParameterError: if the pool has no room for one token, or a size is impossible.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        max_len: int,
        max_batch: int,
        pool_bytes: int,
        page_bytes: int = PAGE_BYTES,
        layout: Layout = "megacache",
        dtype: torch.dtype = torch.float16,
        device: str = "cpu",
        ledger: Ledger | None = None,
        tier: str = "dram",
        pages: Callable[[int, int], Pages] | None = None,
    ) -> None:
        if layout not in ("megacache", "per_layer"):
            raise ParameterError("no such layout", value=layout, allowed="megacache, per_layer")
        if min(max_len, max_batch, page_bytes) < 1:
            raise ParameterError(
                "max_len, max_batch and page_bytes must be >= 1",
                value=(max_len, max_batch, page_bytes),
            )
        self.spec, self.max_len, self.max_batch = spec, max_len, max_batch
        self.page_bytes, self.layout, self.dtype, self.tier = page_bytes, layout, dtype, tier
        is_mega = layout == "megacache"
        self.regions = 1 if is_mega else 2 * spec.layers
        own = spec.kv_heads * spec.head_dim * dtype.itemsize
        self.token_bytes = own * (2 * spec.layers if is_mega else 1)  # of one region
        count = pool_bytes // page_bytes
        if count < self.regions:
            raise ParameterError(
                "this pool has no page for every region of one request",
                value=count,
                allowed=f">= {self.regions} pages of {page_bytes:,} bytes",
                way_out="a larger pool, smaller pages, or the layout megacache",
            )
        self._groups, self._counts = BlockGroups(count), _Counts()
        self._pages = (pages or (lambda n, m: open_pages(n, m, device)))(page_bytes, count)
        self._lock = threading.RLock()
        self._worker: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None
        region = round_up(max_len * self.token_bytes, page_bytes)
        self._reserved = region * self.regions * max_batch
        try:
            self._slots = [
                _Slot([self._pages.reserve(region) for _ in range(self.regions)])
                for _ in range(max_batch)
            ]
        except BaseException:
            self._pages.close()
            raise
        self._lease = None if ledger is None else ledger.reserve("virtual kv", tier, 0, "kv")

    # -- requests -----------------------------------------------------------------------------

    def alloc(self, length: int) -> int:
        """Return the id of a new request with room for `length` tokens.

        Raises:
            ContextError: if no request may be so long.
            BudgetError: if all ids are active, or pages run short.
        """
        with self._lock:
            want = self._pages_for(length)
            idle = [rid for rid, slot in enumerate(self._slots) if not slot.is_active]
            if not idle:
                raise BudgetError(
                    f"all {self.max_batch} requests are active",
                    way_out="free one, or allow a larger max_batch",
                )
            enough = [rid for rid in idle if self._slots[rid].mapped >= want]
            if enough:
                rid = min(enough, key=lambda r: self._slots[r].mapped)
            else:
                rid = max(idle, key=lambda r: self._slots[r].mapped)
            self._slots[rid].is_active = True
            self._unmap(rid, max(0, self._slots[rid].mapped - want - AHEAD_PAGES))
            try:
                self.step({rid: length})
            except BaseException:
                self._slots[rid].is_active = False
                raise
            return rid

    def step(self, lengths: Mapping[int, int]) -> None:
        """Map what requests of these lengths need; on an error nothing has changed.

        Raises:
            ParameterError: for an id that is not active.
            ContextError: if a request grows beyond its range.
            BudgetError: if pages run short; it says how many are needed and free.
        """
        began = time.perf_counter()
        with self._lock:
            want = {rid: self._pages_for(length) for rid, length in lengths.items()}
            more = {rid: want[rid] - self._active(rid).mapped for rid in want}
            self._find(sum(max(0, n) for n in more.values()) * self.regions, keep=set(want))
            for rid in lengths:
                self._map(rid, more[rid])
            for rid, length in lengths.items():
                self._slots[rid].length = length
            if not any(slot.is_active for slot in self._slots):
                self._reclaim(self.regions)
            self._counts.map_s += time.perf_counter() - began

    def step_async(self, lengths: Mapping[int, int]) -> None:
        """Do `step`, and map in the background what the next steps will need."""
        self.step(lengths)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="loci-pages")
        if self._job is None or self._job.done():
            self._job = self._worker.submit(self._map_ahead)

    def free(self, rid: int) -> None:
        """End a request; its pages stay for the next one that fits.

        Raises:
            ParameterError: if there is no such request, or it was freed before.
        """
        with self._lock:
            slot = self._active(rid)
            slot.length, slot.is_active = 0, False
            if self._groups.is_shared(rid):  # the next one would write into somebody's prefix
                self._unmap(rid, slot.mapped)

    def alias_prefix(self, source: int, target: int, tokens: int) -> int:
        """Give a request of length 0 the first tokens of another; return how many are shared.

        Whole pages are shared. What of the prefix lies in a page that also holds later tokens is
        copied. The source must hold the tokens, and neither may write to them again.
        """
        with self._lock:
            theirs, mine = self._active(source), self._active(target)
            if mine.length or source == target:
                raise ParameterError("only a new request can be given a prefix", value=target)
            if not 0 <= tokens <= theirs.length:
                raise ParameterError(
                    "a prefix is what a request has",
                    value=tokens,
                    allowed=f"0 to {theirs.length} tokens",
                )
            whole = tokens * self.token_bytes // self.page_bytes if self._pages.shares else 0
            rest = self._pages_for(tokens) - whole
            self._unmap(target, mine.mapped)
            self._find(rest * self.regions, keep={source, target})
            blocks = self._groups.share(target, source, whole * self.regions)
            self._map_blocks(target, blocks, 0)
            self._counts.shared += len(blocks)
            self._map(target, rest)
            first, last = whole * self.page_bytes, tokens * self.token_bytes
            for here, there in zip(mine.ranges, theirs.ranges, strict=True):
                part = self._pages.tensor(there, last)[first:]
                self._pages.tensor(here, last)[first:] = part
            mine.length = tokens
            return first // self.token_bytes

    def view(self, rid: int, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of a layer, [S, K, D], S the length of the last step.

        They are views of the memory itself and hold until the request is freed; where pages are
        not mapped but copied (`stats` and `moves` say so) until its next step.
        """
        with self._lock:
            slot = self._active(rid)
            K, D, size = self.spec.kv_heads, self.spec.head_dim, slot.length
            if not 0 <= layer < self.spec.layers:
                raise ParameterError(
                    "no such layer", value=layer, allowed=f"0 to {self.spec.layers - 1}"
                )
            nbytes = size * self.token_bytes
            if self.layout == "megacache":
                whole = self._pages.tensor(slot.ranges[0], nbytes).view(self.dtype)
                both = whole.view(size, self.spec.layers, 2, K, D)[:, layer]
                return both[:, 0], both[:, 1]
            keys, values = (
                self._pages.tensor(where, nbytes).view(self.dtype).view(size, K, D)
                for where in slot.ranges[2 * layer : 2 * layer + 2]
            )
            return keys, values

    # -- accounts -----------------------------------------------------------------------------

    @property
    def moves(self) -> bool:
        """Whether a step may move what it grows, so that views must be taken again."""
        return self._pages.moves

    def mapped_pages(self, rid: int) -> int:
        """Return how many pages of each region an id has, active or not."""
        return self._slots[rid].mapped

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of the pages in use."""
        return {self.tier: self._groups.used * self.page_bytes}

    def stats(self) -> VirtualStats:
        """Return what is mapped and what was done."""
        with self._lock:
            counts = self._counts
            tokens = sum(slot.length for slot in self._slots if slot.is_active)
            return VirtualStats(
                reserved_bytes=self._reserved,
                committed_bytes=self._groups.used * self.page_bytes,
                needed_bytes=tokens * self.token_bytes * self.regions,
                free_pages=self._groups.unused,
                mapped_pages=counts.mapped,
                calls=counts.calls,
                map_s=counts.map_s,
                ahead_s=counts.ahead_s,
                reclaimed_pages=counts.reclaimed,
                shared_pages=counts.shared,
                ahead_short=counts.ahead_short,
            )

    def trim(self) -> int:
        """Give back what inactive ids keep; return how many bytes that were."""
        with self._lock:
            return self._reclaim(self._groups.count) * self.page_bytes

    def check_integrity(self) -> None:
        """Raise AssertionError unless ids, pages and lease agree."""
        with self._lock:
            self._groups.check_integrity()
            for rid, slot in enumerate(self._slots):
                assert len(self._groups.blocks(rid)) == slot.mapped * self.regions
                assert self._pages_for(slot.length) <= slot.mapped and (
                    slot.is_active or not slot.length
                )
            assert self._lease is None or self._lease.nbytes == sum(self.nbytes().values())

    def close(self) -> None:
        """Give everything back; views must not be used any more."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        with self._lock:
            self._pages.fence()
            self._pages.close()
            if self._lease is not None:
                self._lease.release()

    # -- private ------------------------------------------------------------------------------

    def _active(self, rid: int) -> _Slot:
        if not 0 <= rid < self.max_batch or not self._slots[rid].is_active:
            raise ParameterError(
                "there is no such request, or it was freed",
                value=rid,
                allowed=f"an active one of 0 to {self.max_batch - 1}",
            )
        return self._slots[rid]

    def _pages_for(self, tokens: int) -> int:
        if tokens < 0:
            raise ParameterError("a request has no negative length", value=tokens)
        if tokens > self.max_len:
            raise ContextError(
                f"{tokens:,} tokens do not fit a range made for {self.max_len:,}",
                value=tokens,
                allowed=f"<= {self.max_len}",
                way_out="open it with a larger max_len",
            )
        return -(-tokens * self.token_bytes // self.page_bytes)

    def _find(self, count: int, keep: set[int]) -> None:
        """See to it that so many pages can be had, at the cost of inactive ids."""
        short = count - self._groups.unused
        if short > 0:
            self._reclaim(short, keep)
        if count > self._groups.unused:
            raise BudgetError(
                f"{count} pages are needed and {self._groups.unused} of {self._groups.count} are "
                f"free ({count - self._groups.unused} short)",
                way_out="free a request, or make the pool larger",
            )
        if self._lease is None or not count:
            return
        try:
            self._lease.commit((self._groups.used + count) * self.page_bytes)
        except BudgetError:
            self._reclaim(self._groups.count, keep)
            self._lease.commit((self._groups.used + count) * self.page_bytes)

    def _map(self, rid: int, more: int) -> None:
        if more <= 0:
            return
        before = self._slots[rid].mapped
        blocks = self._groups.alloc(rid, more * self.regions)
        try:
            self._map_blocks(rid, blocks, before)
        except BaseException:  # the system has less than the pool
            self._slots[rid].mapped = before + more
            self._unmap(rid, more)
            raise

    def _map_blocks(self, rid: int, blocks: list[int], at: int) -> None:
        """Map pages behind the first `at` of each region; pages of a step lie region by region."""
        slot = self._slots[rid]
        for region, where in enumerate(slot.ranges):
            offset = at * self.page_bytes
            for start, count in runs_of(blocks[region :: self.regions]):
                self._pages.map(where, offset, start, count)
                offset += count * self.page_bytes
                self._counts.calls += 1
        slot.mapped = at + len(blocks) // self.regions
        self._counts.mapped += len(blocks)

    def _unmap(self, rid: int, count: int) -> None:
        """Take the last pages of an id."""
        slot = self._slots[rid]
        if count == 0:
            return
        self._pages.fence()
        slot.mapped -= count
        for where in slot.ranges:
            offset = slot.mapped * self.page_bytes
            self._pages.unmap(where, offset, count * self.page_bytes)
        gone = self._groups.free(rid, count * self.regions)
        for start, length in runs_of(sorted(gone)):
            self._pages.drop(start, length)
        if self._lease is not None:
            self._lease.commit(self._groups.used * self.page_bytes)

    def _reclaim(self, count: int, keep: set[int] | frozenset[int] = frozenset()) -> int:
        """Take pages from inactive ids, the highest first; return how many there were."""
        found = 0
        for rid in reversed(range(self.max_batch)):
            slot = self._slots[rid]
            if slot.is_active or rid in keep or found >= count:
                continue
            steps = min(slot.mapped, -(-(count - found) // self.regions))
            self._unmap(rid, steps)
            found += steps * self.regions
        self._counts.reclaimed += found
        return found

    def _map_ahead(self) -> None:
        """Map what active requests need within the next steps."""
        began = time.perf_counter()
        with self._lock:
            for rid, slot in enumerate(self._slots):
                if not slot.is_active:
                    continue
                soon = self._pages_for(min(self.max_len, slot.length + AHEAD_TOKENS))
                more = min(soon - slot.mapped, AHEAD_PAGES)
                if more <= 0:
                    continue
                try:
                    self._find(more * self.regions, keep={rid})
                except BudgetError:  # the step that needs it will say so
                    self._counts.ahead_short += 1
                    return
                self._map(rid, more)
            self._counts.ahead_s += time.perf_counter() - began
