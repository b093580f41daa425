"""Keys and values of requests: of those that run, and of those that ended, for the next ones.

`Stores` gives every request one piece, as large as its longest possible end. `PagedStores` lets
pieces grow by blocks, shares beginnings, and puts requests out; see `loci.run.kv_paged`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import BudgetError
from loci.methods.kv.chain import Chain as Methods
from loci.methods.kv.store_plan import predict_store
from loci.methods.sched.base import Where
from loci.run import artefacts, prefixes
from loci.run.engine import DTYPES
from loci.run.kv_paged import PagedMemory, PagedStore
from loci.run.kvstore import KVStore
from loci.run.live import Live
from loci.run.prefixes import Kept
from loci.tiers import swap
from loci.tiers.swap import Place
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.plan.solve import Plan


@dataclass(frozen=True, kw_only=True)
class SwapRoom:
    """Where requests may be put out to: bytes of memory, bytes of a file, and its folder."""

    memory_bytes: int = 0
    disk_bytes: int = 0
    folder: Path | None = None

    def places(self, block_bytes: int, ledger: Ledger) -> list[Place]:
        """Make the places, the better one first."""
        found = []
        if self.memory_bytes:
            found.append(swap.in_memory(self.memory_bytes, block_bytes, ledger))
        try:
            if self.disk_bytes:
                folder = self.folder or Path.cwd()
                found.append(swap.on_disk(self.disk_bytes, block_bytes, ledger, folder))
        except BaseException:
            for place in found:
                place.close()
            raise
        return found


class Stores:
    """One piece for each request, and what those left that ended, used longest ago first.

    Args:
        plan: says how keys and values are kept.
        chain: the methods they go through.
        folder: of the model, for what was prepared.
        keep_s: how long what ended is kept.
    """

    def __init__(
        self,
        plan: Plan,
        spec: ModelSpec,
        chain: Methods,
        ledger: Ledger,
        folder: Path,
        keep_s: float,
    ) -> None:
        self.plan, self.spec, self.chain, self.ledger = plan, spec, chain, ledger
        self.folder, self.keep_s = folder, keep_s
        self.reader = ""  # fingerprint of the adapter by which all of it is read
        self.kept: list[Kept] = []
        self.aside = 0  # bytes of the budget that wait for weights which are unloaded now
        self.token_bytes: int | None = None  # where pieces grow
        self.block_tokens = 1

    # -- bytes --------------------------------------------------------------------------------

    def bytes_for(self, tokens: int) -> int:
        """Return what a request of so many tokens holds at its end."""
        return predict_store(
            self.spec,
            self.chain,
            max_tokens=tokens,
            dtype_bytes=DTYPES[self.plan.kv_dtype].itemsize,
            budget_bytes=self.plan.kv_budget_bytes,
            chunk=self.plan.chunk,
        )

    def most(self) -> int:
        """Return the bytes that all keys and values may take together now."""
        held = self.ledger.by_kind("dram").get("kv", 0)
        most = self.ledger.free("dram") + held - self.aside
        return most if self.plan.budget.kv is None else min(most, self.plan.budget.kv)

    def kept_bytes(self) -> int:
        """Return what those that ended hold."""
        return sum(kept.nbytes for kept in list(self.kept))

    def promised(self, running: Iterable[Live]) -> int:
        """Return what those that run will still take of the budget."""
        return 0

    def make_room(self, nbytes: int) -> None:
        """Drop what was kept, used longest ago first, until so many bytes are free."""
        while self.kept and not self._fits(nbytes):
            self.drop(self.kept[0])

    def _fits(self, nbytes: int) -> bool:
        cap = self.plan.budget.kv
        held = self.ledger.by_kind("dram").get("kv", 0)
        free = self.ledger.free("dram") - self.aside
        return nbytes <= free and (cap is None or held + nbytes <= cap)

    # -- one request --------------------------------------------------------------------------

    def begin(self, live: Live, running: Sequence[Live]) -> None:
        """Give a request its store, with what is known of its tokens already.

        Raises:
            BudgetError: if there is no room; then it has none.
        """
        shared, source = self._known(live, running)
        kept = next((one for one in self.kept if one.store is source), None)
        if kept is not None and kept.store.max_tokens >= live.tokens and 2 * shared > len(kept.ids):
            self.kept.remove(kept)
            kept.store.crop(shared)
            live.kv_bytes = kept.nbytes
            store = kept.store
        else:
            if kept is not None:
                self._use(kept)
            self.make_room(live.kv_bytes)
            store = self._store(live.tokens)
            if source is not None and kept is not None and kept not in self.kept:
                shared, source = 0, None  # it had to make room
            if source is not None:
                prefixes.copy(source, store, shared)
                if kept is not None and shared + prefixes.BLOCK > len(kept.ids):
                    self.drop(kept)  # the copy has all it had
        self._begun(live, store, shared)

    def grow(self, live: Live, tokens: int) -> None:
        """Have room for so many tokens more."""

    def where(self, live: Live) -> Where:
        """Return where what a request holds lies."""
        return "nowhere" if live.store is None else "here"

    def is_out(self, live: Live) -> bool:
        """Return whether what a request holds was put out."""
        return isinstance(live.store, PagedStore) and live.store.is_out

    def swapped_bytes(self) -> int:
        """Return what lies in the places for those who are out."""
        return 0

    def keep(self, live: Live, *, failed: bool) -> None:
        """Keep what a request read and wrote for others that begin alike, if that is exact."""
        store, live.store = live.store, None
        if store is None:
            return
        if live.is_secret:
            store.wipe()
        if self.chain or failed or live.is_secret or self.keep_s == 0 or not store.length:
            store.release()
            return
        ids = live.ids[: store.length]
        live.chain.extend(ids)
        self.kept.append(Kept(ids=ids, chain=live.chain, store=store, used_s=time.monotonic()))

    def drop(self, kept: Kept) -> None:
        """Forget what an ended request left."""
        self.kept.remove(kept)
        kept.store.release()

    def forget(self) -> None:
        """Drop all that was kept, and leave nothing of it in memory or in other places."""
        for kept in list(self.kept):
            kept.store.wipe()
            self.drop(kept)

    def is_here(self, kept: Kept) -> bool:
        """Return whether what an ended request left can be read where it is."""
        return True

    def fresh(self, tokens: int) -> KVStore:
        """Return an empty store with room for so many tokens, for which nothing else gives way.

        Raises:
            BudgetError: if there is no room.
        """
        need = self.bytes_for(tokens)
        if not self._fits(need):
            raise BudgetError(f"there is no room for {format_bytes(need)} of keys and values")
        return self._store(tokens)

    def drop_old(self) -> None:
        """Forget what nobody used for long."""
        while self.kept and time.monotonic() - self.kept[0].used_s >= self.keep_s:
            self.drop(self.kept[0])

    def until_old(self) -> float | None:
        """Return in how many seconds the oldest keep is dropped; None where there is none."""
        if not self.kept:
            return None
        return max(0.0, self.kept[0].used_s + self.keep_s - time.monotonic())

    def close(self) -> None:
        """Give everything back that ended requests hold."""
        for kept in list(self.kept):
            self.drop(kept)

    # -- private ------------------------------------------------------------------------------

    def _store(self, tokens: int) -> KVStore:
        return KVStore(
            self.spec,
            self.chain,
            max_tokens=tokens,
            dtype=DTYPES[self.plan.kv_dtype],
            budget_bytes=self.plan.kv_budget_bytes,
            chunk=self.plan.chunk,
            ledger=self.ledger,
            generator=torch.Generator().manual_seed(0),
            artefacts=artefacts.for_chain(self.chain, self.folder, self.spec.fingerprint),
        )

    def _known(self, live: Live, running: Sequence[Live]) -> tuple[int, KVStore | None]:
        """Return how much of what is to be read is known, but for its last token, and where."""
        if self.chain:
            return 0, None
        there = [
            (one.chain, one.store)
            for one in running
            if one.store is not None and one.states is None and self.where(one) == "here"
        ]
        tokens, store = prefixes.best(
            live.chain, [*((one.chain, one.store) for one in self.kept), *there]
        )
        tokens = min(tokens, live.read - 1)
        return (tokens, store) if tokens > 0 else (0, None)

    def _use(self, kept: Kept) -> None:
        """Let it go last, as it is used now."""
        self.kept.remove(kept)
        kept.used_s = time.monotonic()
        self.kept.append(kept)

    def _begun(self, live: Live, store: KVStore, shared: int) -> None:
        live.store, live.prefilled = store, shared
        if live.first_s is None:
            live.reused = shared


class PagedStores(Stores):
    """Pieces that grow by blocks, share beginnings, and can be put out.

    Args:
        room: where to. `promises`: nobody is ever put out, so what requests will still take is
            not given to anybody else.
    """

    def __init__(
        self,
        plan: Plan,
        spec: ModelSpec,
        ledger: Ledger,
        folder: Path,
        keep_s: float,
        *,
        room: SwapRoom,
        promises: bool,
    ) -> None:
        super().__init__(plan, spec, (), ledger, folder, keep_s)
        self._promises = promises
        self.memory = PagedMemory(
            spec,
            dtype=DTYPES[plan.kv_dtype],
            capacity_bytes=super().most(),
            context=plan.workload.context,
            ledger=ledger,
            places=lambda block_bytes: room.places(block_bytes, ledger),
        )
        self.token_bytes, self.block_tokens = self.memory.token_bytes, self.memory.block_tokens

    def bytes_for(self, tokens: int) -> int:
        return self.memory.bytes_for(tokens)

    def most(self) -> int:
        block = self.memory.block_bytes
        return min(super().most() // block, self.memory.groups.count) * block

    def promised(self, running: Iterable[Live]) -> int:
        if not self._promises:
            return 0
        used = self.memory.groups.used * self.memory.block_bytes
        return max(0, sum(live.kv_bytes for live in running if live.store is not None) - used)

    def make_room(self, nbytes: int) -> None:
        while not self._fits(nbytes):
            if not self.memory.trim() and not self.kept:
                return
            if self.kept and not self._fits(nbytes):
                self.drop(self.kept[0])

    def begin(self, live: Live, running: Sequence[Live]) -> None:
        shared, source = self._known(live, running)
        kept = next((one for one in self.kept if one.store is source), None)
        if kept is not None and not self._is_back(kept, shared):
            self.drop(kept)
            shared, source, kept = 0, None, None
        if kept is not None and (2 * shared > len(kept.ids) or kept.store.length == shared):
            self.kept.remove(kept)
            kept.store.crop(shared)
            self._begun(live, kept.store, shared)
            return
        if kept is not None:
            self._use(kept)
        store = PagedStore(self.memory, chunk=self.plan.chunk)
        if source is not None:
            assert isinstance(source, PagedStore)
            self._blocks(1, besides=source)
            try:
                store.take_beginning(source, shared)
            except BudgetError:  # the rest of a block has no room: share whole ones
                shared -= shared % self.block_tokens
            if kept is not None and shared + prefixes.BLOCK > len(kept.ids):
                self.drop(kept)
        self._begun(live, store, shared)

    def grow(self, live: Live, tokens: int) -> None:
        store = live.store
        assert isinstance(store, PagedStore)
        need = self.memory.blocks_for(store.length + tokens) - store.mapped
        if need > 0:
            self._blocks(need)
            store.grow(tokens)

    def where(self, live: Live) -> Where:
        store = live.store
        if not isinstance(store, PagedStore):
            return "nowhere"
        return "here" if store.is_here else "out" if store.is_out else "coming"

    def swapped_bytes(self) -> int:
        blocks = sum(place.groups.used for place in self.memory.swap.places)
        return blocks * self.memory.block_bytes

    def put_out(self, live: Live, others: Iterable[Live]) -> int:
        """Move a request to another place; return its bytes, 0 where it is to be read again.

        Args:
            others: those whose copies may give way, the least important first.
        """
        store = live.store
        assert isinstance(store, PagedStore)
        there = [*(kept.store for kept in self.kept), *(one.store for one in others)]
        least = [one for one in there if isinstance(one, PagedStore)]
        while store.length:
            try:
                return store.put_out(other for other in least if not other.is_out).nbytes
            except BudgetError:
                gone = next((one for one in self.kept if self._is_out(one)), None)
                if gone is None:
                    break
                self.drop(gone)
        live.forget()
        return 0

    def bring_back(self, live: Live) -> None:
        """Begin to bring a request back.

        Raises:
            BudgetError: if there is no room.
        """
        assert isinstance(live.store, PagedStore)
        self._blocks(self.memory.blocks_for(live.store.length))
        live.store.bring_back()

    def wait(self, coming: Iterable[Live]) -> None:
        """Wait for the first of those who are on their way."""
        for live in coming:
            if isinstance(live.store, PagedStore):
                live.store.settle()
                return

    def forget(self) -> None:
        super().forget()
        self.memory.wipe()

    def is_here(self, kept: Kept) -> bool:
        return not self._is_out(kept)

    def fresh(self, tokens: int) -> KVStore:
        if self.memory.unused() < self.memory.blocks_for(tokens):
            raise BudgetError(f"there are no blocks for {tokens:,} tokens")
        store = PagedStore(self.memory, chunk=self.plan.chunk)
        store.grow(tokens)
        return store

    def keep(self, live: Live, *, failed: bool) -> None:
        if isinstance(live.store, PagedStore):
            live.store.settle()
            if not live.store.is_out:
                live.store.trim()
        super().keep(live, failed=failed)
        if live.is_secret:
            self.memory.wipe()

    def close(self) -> None:
        super().close()
        self.memory.close()

    # -- private ------------------------------------------------------------------------------

    def _blocks(self, count: int, besides: KVStore | None = None) -> None:
        """See to it that so many blocks can be had: what was kept is put out, or dropped."""
        for kept in [one for one in self.kept if one.store is not besides]:
            if self.memory.unused() >= count:
                return
            if self._is_out(kept):
                continue
            store = kept.store
            assert isinstance(store, PagedStore)
            try:
                store.put_out()
            except BudgetError:
                self.drop(kept)

    def _is_out(self, kept: Kept) -> bool:
        return isinstance(kept.store, PagedStore) and kept.store.is_out

    def _is_back(self, kept: Kept, tokens: int) -> bool:
        """Bring so many tokens of what was kept back if it is out; return whether they are here."""
        store = kept.store
        assert isinstance(store, PagedStore)
        if store.is_out:
            self._blocks(self.memory.blocks_for(tokens), besides=store)
            try:
                store.bring_back(tokens)
            except BudgetError:
                return False
        store.settle()
        return True
