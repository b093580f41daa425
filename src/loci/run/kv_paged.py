"""Keys and values of many requests in one pool of blocks: grown as needed, shared, put out.

Every request has a range of addresses for the whole context, and blocks of the pool are mapped into
it one behind the other (vAttention, `loci.tiers.pages`). So a kernel reads one contiguous piece and
needs no table of blocks, a beginning that requests share is there once, and what a request holds
lies in long runs that are moved in few copies (FastSwitch, `loci.tiers.groups`, `loci.tiers.swap`).

    block = tokens, all layers of each: [tokens, layers, 2, kv heads, head size]

A block is as many times 16 tokens as fill whole pages of the system. The ledger pays for what was
ever touched; blocks that are free again stay paid for until somebody else needs the memory.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, ContextError, MethodError, ParameterError
from loci.run.kv_evict import Evictor
from loci.run.kv_fold import Folder
from loci.run.kv_lanes import Lane
from loci.run.kv_native import NativeSteps
from loci.run.kv_pool import Pool
from loci.run.kvstore import KVStore
from loci.tiers.groups import BlockGroups, runs_of
from loci.tiers.pages import MemfdPages, Range, why_not
from loci.tiers.swap import Place, SwapManager, Ticket
from loci.units import format_bytes

TOKENS = 16  # the least of a block
Places = Callable[[int], Sequence[Place]]

# Shapes: S tokens, L layers, K key/value heads, D head size.


def block_tokens(token_bytes: int) -> int:
    """Return the tokens of a block: as many times 16 as fill whole pages of the system."""
    return TOKENS * (mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, TOKENS * token_bytes))


def bytes_in_blocks(spec: ModelSpec, dtype_bytes: int, tokens: int) -> int:
    """Return what so many tokens of one request take in whole blocks."""
    token_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype_bytes
    block = block_tokens(token_bytes)
    return -(-tokens // block) * block * token_bytes


@dataclass(eq=False)
class Held:
    """What one request holds: a range, and how many blocks are mapped at its beginning."""

    number: int
    where: Range
    mapped: int = 0


class PagedMemory:
    """The pool. One thread may call it.

    Args:
        spec: sizes of the model.
        dtype: of keys and values.
        capacity_bytes: of the pool at most.
        context: tokens of a request at most.
        ledger: pays as the pool is touched; its limit holds too.
        places: told the bytes of a block, makes the places that requests are put out to.
        threads: that copy; see `SwapManager`.

    Raises:
        MethodError: where the system cannot map pages.
        BudgetError: if the pool has no room for one block.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dtype: torch.dtype,
        capacity_bytes: int,
        context: int,
        ledger: Ledger,
        tier: str = "dram",
        places: Places | None = None,
        threads: int = 2,
    ) -> None:
        if why_not() is not None:
            raise MethodError(f"keys and values in mapped blocks: {why_not()}")
        self.spec, self.dtype, self.context, self.tier = spec, dtype, context, tier
        self.token_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * dtype.itemsize
        self.block_tokens = block_tokens(self.token_bytes)
        self.block_bytes = self.block_tokens * self.token_bytes
        count = capacity_bytes // self.block_bytes
        if count < 1:
            raise BudgetError(
                f"a block of keys and values needs {format_bytes(self.block_bytes)}; there are "
                f"{format_bytes(capacity_bytes)}",
                way_out="a larger --dram or --kv",
            )
        self._ledger = ledger
        self._pages = MemfdPages(self.block_bytes, count)
        self.groups = BlockGroups(count)
        self._memory = self._pages.pool()
        self._ranges: list[Range] = []  # of requests that ended
        self._touched = bytearray(count)
        self._lease = ledger.reserve("kv", tier, 0, "kv")
        self._number = 0
        try:
            self.swap = SwapManager(
                self._memory,
                self.groups,
                () if places is None else places(self.block_bytes),
                threads=threads,
            )
        except BaseException:
            self._lease.release()
            self._pages.close()
            raise

    # -- requests -----------------------------------------------------------------------------

    def open(self) -> Held:
        """Return a new request that holds nothing yet."""
        self._number += 1
        nbytes = self.blocks_for(self.context) * self.block_bytes
        where = self._ranges.pop() if self._ranges else self._pages.reserve(nbytes)
        return Held(self._number, where)

    def grow(self, held: Held, tokens: int) -> None:
        """Map blocks until a request has room for so many tokens.

        Raises:
            ContextError: if the context has not.
            BudgetError: if blocks run short; nothing has changed then.
        """
        need = self.blocks_for(tokens) - held.mapped
        if need <= 0:
            return
        if tokens > self.context:
            raise ContextError(
                f"{tokens:,} tokens do not fit the context",
                value=tokens,
                allowed=f"<= {self.context}",
                way_out="open the plan with a larger --context",
            )
        self._afford(need)
        self._map(held, self.swap.alloc(held.number, need))

    def crop(self, held: Held, tokens: int) -> None:
        """Take blocks back behind so many tokens; what others share is copied where it is cut."""
        keep = self.blocks_for(tokens)
        if keep < held.mapped:
            self.groups.free(held.number, held.mapped - keep)
            self._unmap(held, keep)
        whole = tokens // self.block_tokens
        self.swap.cut(held.number, whole)
        if whole < keep:
            self._own(held)

    def share(self, held: Held, source: Held, tokens: int) -> None:
        """Give a new request the first tokens of another: whole blocks are there once."""
        if held.mapped:
            raise ParameterError("only a new request shares a beginning", value=held.number)
        whole = tokens // self.block_tokens
        if whole:
            self._map(held, self.groups.share(held.number, source.number, whole))
        if tokens > whole * self.block_tokens:
            self.grow(held, tokens)
            mine, theirs = (self.groups.blocks(x.number)[whole] for x in (held, source))
            self._memory[mine] = self._memory[theirs]

    def put_out(self, held: Held, tokens: int, least: Iterable[Held] = ()) -> Ticket:
        """Move what a request of so many tokens holds to another place.

        Args:
            least: whose copies give way first, the least important first.

        Raises:
            BudgetError: if no place has room; nothing has changed then.
        """
        self.crop_blocks(held, tokens)
        whole = tokens // self.block_tokens
        ticket = self.swap.swap_out(held.number, whole, [other.number for other in least])
        self._unmap(held, 0)
        return ticket

    def bring_back(self, held: Held) -> Ticket:
        """Bring a request back; it can be read when the ticket is done.

        Raises:
            BudgetError: if blocks run short; nothing has changed then.
        """
        self._afford(self.swap.out_blocks(held.number))
        ticket = self.swap.swap_in(held.number)
        self._map(held, self.groups.blocks(held.number))
        return ticket

    def close_one(self, held: Held) -> None:
        """Take everything back from a request."""
        self.swap.forget(held.number)
        if self.groups.blocks(held.number):
            self.groups.free(held.number)
        self._unmap(held, 0)
        self._ranges.append(held.where)

    def crop_blocks(self, held: Held, tokens: int) -> None:
        """Take blocks back that were mapped for tokens which have not come."""
        keep = self.blocks_for(tokens)
        if keep < held.mapped:
            self.groups.free(held.number, held.mapped - keep)
            self._unmap(held, keep)

    # -- memory -------------------------------------------------------------------------------

    def tensor(self, held: Held) -> Tensor:
        """Return a request's range as [S, L, 2, K, D]; only mapped blocks may be touched."""
        spec = self.spec
        nbytes = self.context * self.token_bytes
        flat = self._pages.tensor(held.where, nbytes).view(self.dtype)
        return flat.view(self.context, spec.layers, 2, spec.kv_heads, spec.head_dim)

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks so many tokens take."""
        return -(-tokens // self.block_tokens)

    def bytes_for(self, tokens: int) -> int:
        """Return how many bytes they take."""
        return self.blocks_for(tokens) * self.block_bytes

    def unused(self) -> int:
        """Return how many blocks can be had now, by the pool and by the ledger."""
        spare = sum(self._touched) - self.groups.used
        return min(self.groups.unused, spare + self._ledger.free(self.tier) // self.block_bytes)

    def nbytes(self) -> int:
        """Return the bytes of the pool that were touched and not given back."""
        return sum(self._touched) * self.block_bytes

    def trim(self) -> int:
        """Give back what nobody uses; return how many bytes that were."""
        self.swap.settle()  # what is still being copied must stay as it is
        used = self._used()
        spare = [i for i, touched in enumerate(self._touched) if touched and i not in used]
        for start, count in runs_of(spare):
            self._pages.drop(start, count)
            self._touched[start : start + count] = bytes(count)
        self._lease.commit(self.nbytes())
        return len(spare) * self.block_bytes

    def wipe(self) -> None:
        """Leave nothing of what nobody holds any more, neither here nor in other places."""
        self.trim()  # the system clears pages before it lends them again
        self.swap.wipe()

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks, lease and what was touched agree."""
        self.swap.check_integrity()
        assert self._lease.nbytes == self.nbytes()
        assert all(self._touched[block] for block in self._used())

    def close(self) -> None:
        """Give everything back; closing twice does nothing."""
        self.swap.close()
        self._memory = self._memory[:0]
        self._pages.close()
        self._lease.release()

    # -- private ------------------------------------------------------------------------------

    def _used(self) -> set[int]:
        return {block for block in range(self.groups.count) if self.groups.lists(block)}

    def _afford(self, count: int) -> None:
        """Raise BudgetError unless so many blocks, whichever they are, can be paid for."""
        if count > self.unused():
            raise BudgetError(
                f"{count} blocks of keys and values are needed, {max(0, self.unused())} of "
                f"{self.groups.count} can be had ({format_bytes(self.block_bytes)} each)",
                way_out="a larger --dram or --kv, or fewer requests at once",
            )
        if count * self.block_bytes > self._ledger.free(self.tier):
            self.trim()

    def _map(self, held: Held, blocks: Sequence[int]) -> None:
        fresh = [block for block in blocks if not self._touched[block]]
        for block in fresh:
            self._touched[block] = 1
        if fresh:
            self._lease.commit(self._lease.nbytes + len(fresh) * self.block_bytes)
        for start, count in runs_of(blocks):
            self._pages.map(held.where, held.mapped * self.block_bytes, start, count)
            held.mapped += count

    def _unmap(self, held: Held, keep: int) -> None:
        if keep < held.mapped:
            nbytes = (held.mapped - keep) * self.block_bytes
            self._pages.unmap(held.where, keep * self.block_bytes, nbytes)
            held.mapped = keep

    def _own(self, held: Held) -> None:
        """Let a request have its last block alone, which it will write to."""
        last = self.groups.blocks(held.number)[-1]
        if self.groups.lists(last) < 2:
            return
        self._afford(1)
        self.groups.free(held.number, 1)
        self._unmap(held, held.mapped - 1)
        (fresh,) = self.swap.alloc(held.number, 1)
        self._memory[fresh] = self._memory[last]
        self._map(held, [fresh])


class PagedPool(Pool):
    """The storage of one row that keeps every token, in blocks of a `PagedMemory`."""

    def __init__(self, memory: PagedMemory, chunk: int) -> None:
        super().__init__(
            memory.spec,
            (),
            max_tokens=memory.context,
            batch=1,
            dtype=memory.dtype,
            budget_bytes=None,
            chunk=chunk,
            tier=memory.tier,
        )
        self.memory, self.held = memory, memory.open()
        # [1, L, 2, K, S, D] like every pool, though tokens lie furthest apart in it.
        self.tensors["slots"] = memory.tensor(self.held).permute(1, 2, 3, 0, 4)[None]

    def cut(self, slots: Sequence[int]) -> None:
        """Make a lane of every layer."""
        self.lanes = []
        for layer in range(self.spec.layers):
            lane = Lane(layer, layer, slice(0, self.spec.kv_heads), self.max_tokens, 0)
            both = self.tensors["slots"][:, layer]
            lane.parts["keys"], lane.parts["values"] = both[:, 0], both[:, 1]
            self.lanes.append([lane])

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of its blocks here, shared ones included."""
        return {self.tier: self.held.mapped * self.memory.block_bytes}

    def release(self) -> None:
        """Give its blocks back; a second release does nothing."""
        if self.tensors:
            super().release()
            self.memory.close_one(self.held)


class PagedStore(KVStore):
    """An exact store of one row that grows by blocks, shares its beginning, and can be put out.

    Before a step `grow` has to make room for its tokens.
    """

    _pool: PagedPool

    def __init__(self, memory: PagedMemory, *, chunk: int = 512) -> None:
        self.spec, self.chain, self.dtype = memory.spec, (), memory.dtype
        self.max_tokens, self.batch, self.budget_bytes = memory.context, 1, None
        self.chunk, self.tier = min(chunk, memory.context), memory.tier
        self.largest = torch.finfo(memory.dtype).max
        self.memory, self.ticket = memory, None
        self._ledger, self._generator, self._files, self._pending = None, None, None, None
        self._pool = PagedPool(memory, self.chunk)
        self._evictor = Evictor(self._pool, None)
        self._folder = Folder(self._pool, self._evictor)
        self._native = NativeSteps(self._pool)
        self.wants_queries = self.wants_hidden = False
        self._pool.open(self._pool.even_slots())

    ticket: Ticket | None  # of its way back

    @property
    def is_out(self) -> bool:
        """Whether it was put out, so that nothing of it can be read."""
        return self.memory.swap.is_out(self._pool.held.number)

    @property
    def is_here(self) -> bool:
        """Whether it can be read: neither out, nor on its way back."""
        if self.ticket is not None and self.ticket.done():
            self.settle()
        return self.ticket is None and not self.is_out

    def settle(self) -> None:
        """Wait until it is back."""
        if self.ticket is not None:
            self.ticket.wait()
            self.ticket = None

    @property
    def mapped(self) -> int:
        """Blocks it has here."""
        return self._pool.held.mapped

    def grow(self, tokens: int) -> None:
        """Have room for so many tokens more."""
        self.memory.grow(self._pool.held, self.length + tokens)

    def trim(self) -> None:
        """Give blocks back that were mapped for tokens which have not come."""
        self.memory.crop_blocks(self._pool.held, self.length)

    def take_beginning(self, source: KVStore, tokens: int) -> None:
        """Begin, while empty, with the first tokens of another store."""
        assert isinstance(source, PagedStore) and not self.length
        self.memory.share(self._pool.held, source._pool.held, tokens)
        self._pool.length = tokens
        self._pool.end = [tokens] * self.spec.layers
        self._pool.count = [tokens] * self.spec.layers

    def put_out(self, least: Iterable[PagedStore] = ()) -> Ticket:
        """Put it out, and return the ticket; see `PagedMemory.put_out`."""
        others = [other._pool.held for other in least]
        return self.memory.put_out(self._pool.held, self.length, others)

    def bring_back(self, tokens: int | None = None) -> Ticket:
        """Begin to bring it back; it is here when the ticket, which it keeps too, is done.

        Args:
            tokens: from the first, that are wanted; None is all of them.
        """
        if tokens is not None and tokens < self.length:
            whole, blocks = tokens // self.memory.block_tokens, self.memory.blocks_for(tokens)
            super().crop(tokens)
            self.memory.swap.cut(self._pool.held.number, whole, blocks - whole)
        self.ticket = self.memory.bring_back(self._pool.held)
        return self.ticket

    def crop(self, tokens: int) -> None:
        super().crop(tokens)
        self.memory.crop(self._pool.held, tokens)

    def wipe(self) -> None:
        """Leave it to `PagedMemory.wipe`, once it was released: others may share its blocks."""

    def fork(self) -> KVStore:
        """Refuse: beginnings are shared by `take_beginning`."""
        raise MethodError("a store in mapped blocks is not forked", way_out="take_beginning(store)")
