"""What an engine of many requests is made of: opened from a plan, given back last first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loci.core.event import Event, Events
from loci.core.ledger import Ledger
from loci.core.work import work_bytes
from loci.errors import MethodError
from loci.methods import catalogue
from loci.methods.kv.store_plan import decoded_tokens
from loci.methods.sched.base import Sched
from loci.models.tokenizer import Tokenizer
from loci.nn import native
from loci.run.adapters import Adapter, Adapters
from loci.run.engine import DTYPES
from loci.run.kv_paged import bytes_in_blocks
from loci.run.patched import laid_out_bytes
from loci.run.runner import Runner
from loci.run.sources import Sources
from loci.run.stores import PagedStores, Stores, SwapRoom
from loci.tiers import pages

if TYPE_CHECKING:
    from loci.plan.solve import Plan

Progress = Callable[[str, int, int], None]


class Parts:
    """Weights and what runs them, tokenizer, adapter, and the stores of requests.

    Args:
        plan: what is opened, and what all of it may take; `ledger` has its limits.
        folder: where models are kept.
        scheduler: says whether requests are moved, which needs mapped blocks.
        rows, keep_s, paged, swap, adapter: see `loci.run.batch.Batch`.

    Attributes:
        chain: of KV methods; rows: that decode together, as many as fit.
        at_once: a step of all layers is one native call.
        states: room for what passes between layers [S, d], where it is not.
        is_resting: the weights are out of the memory.

    Raises:
        BudgetError, FingerprintError, MethodError: as `Batch` says; nothing is held then.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        folder: Path,
        ledger: Ledger,
        events: Events,
        scheduler: Sched,
        rows: int,
        keep_s: float,
        paged: bool | None,
        swap: SwapRoom,
        adapter: Adapter | None,
        progress: Progress | None,
    ) -> None:
        self.plan, self.ledger, self._events = plan, ledger, events
        self.stores: Stores
        self.is_resting = False
        self._closers: list[Callable[[], None]] = []
        try:
            self._sources = Sources(plan, folder, ledger, events=events, progress=progress)
            self._closers.append(self._sources.close)
            self._open_model()
            self._open_runner(rows, adapter)
            self._open_stores(scheduler, keep_s, paged, swap)
        except BaseException:
            self.close()
            raise

    def rest(self) -> None:
        """Unload the weights; their room in the budget waits for them."""
        held = self.ledger.used("dram")
        self.stores.aside = self.ledger.by_kind("dram").get("weights", 0)  # nobody takes it now
        self.runner.rest()
        self.adapters.rest()
        self._sources.rest()
        self.is_resting, self.stores.aside = True, held - self.ledger.used("dram")
        self._events.emit(Event(name="run.rest", data={"nbytes": self.stores.aside}))

    def wake(self) -> None:
        """Load the weights again.

        Raises:
            ModelError: if they are gone.
        """
        began = time.perf_counter()
        self._sources.wake(self.plan)
        self.adapters.rebase()
        self.is_resting, self.stores.aside = False, 0
        took = time.perf_counter() - began
        self._events.emit(Event(name="run.wake", data={"seconds": took}))

    def close(self) -> None:
        """Give everything back; closing twice does nothing."""
        while self._closers:
            self._closers.pop()()

    # -- private ------------------------------------------------------------------------------

    def _open_model(self) -> None:
        plan = self.plan
        spec = self.spec = self._sources.pack.spec
        lease = self.ledger.reserve("tokenizer", "dram", spec.tokenizer_bytes, "tokenizer")
        self._closers.append(lease.release)
        self.tokenizer = Tokenizer(self._sources.pack.folder)
        self.chain = catalogue.parse_chain(plan.kv, "kv") if plan.kv else ()

    def _open_runner(self, rows: int, adapter: Adapter | None) -> None:
        plan, spec = self.plan, self.spec
        weights = self._sources.open(plan)
        decoded = decoded_tokens(self.chain, plan.workload.context)
        beside = 0 if adapter is None else laid_out_bytes(adapter.patch)
        self.rows = self._rows_that_fit(rows, decoded, beside)
        self.runner = Runner(
            spec,
            weights,
            self.ledger,
            chunk=plan.chunk,
            batch=self.rows,
            rows=max(plan.chunk, self.rows),
            decoded_tokens=decoded,
            activation_bits=plan.activation_bits,
        )
        self._closers.append(self.runner.release)
        self.adapters = Adapters(self.runner, lambda: self._sources.weights, spec, self.ledger)
        self._closers.append(self.adapters.close)
        if adapter is not None:
            self.adapters.load(adapter)
            self.adapters.use(adapter.name)
        # Where a step is no single native call, states between layers need memory of their own.
        self.at_once = self.runner.is_whole and not self.chain
        self.states: Tensor | None = None
        if not self.at_once:
            count = plan.chunk + self.rows
            held = self.ledger.reserve("states", "dram", 4 * count * spec.hidden, "work")
            self._closers.append(held.release)
            self.states = torch.empty(count, spec.hidden)

    def _open_stores(
        self, scheduler: Sched, keep_s: float, paged: bool | None, swap: SwapRoom
    ) -> None:
        plan, spec, folder = self.plan, self.spec, self._sources.pack.folder
        swaps = scheduler.swaps
        if paged is False and swaps:
            raise MethodError(
                f"{scheduler} moves requests, which needs keys and values in mapped blocks",
                way_out="leave paged out, or take another scheduler",
            )
        plain = Stores(plan, spec, self.chain, self.ledger, folder, keep_s)
        if not (swaps or paged or (paged is None and self._is_tight(plain))):
            self.stores = plain
        elif self.chain or not native.available():
            raise MethodError(
                "keys and values in mapped blocks need the native kernels and a cache that keeps "
                "every token",
                value=plan.kv or native.why_not(),
                way_out='serve with --kv "", or with another scheduler',
            )
        else:
            self.stores = PagedStores(
                plan, spec, self.ledger, folder, keep_s, room=swap, promises=not swaps
            )
        self.stores.reader = self.adapters.reader
        self._closers.append(self.stores.close)

    def _is_tight(self, plain: Stores) -> bool:
        """Return whether blocks can be mapped, and not every row can have its longest request."""
        if self.chain or not native.available() or pages.why_not() is not None:
            return False
        context, most = self.plan.workload.context, plain.most()
        dtype_bytes = DTYPES[self.plan.kv_dtype].itemsize
        alone = bytes_in_blocks(self.spec, dtype_bytes, context)
        return alone <= most < self.rows * plain.bytes_for(context)

    def _rows_that_fit(self, rows: int, decoded: int, beside: int) -> int:
        """Return how many rows can be had beside the keys and values of one long request.

        Args:
            beside: bytes of an adapter that will be loaded.
        """
        plan = self.plan
        room = self.ledger.free("dram") - plan.held("kv") - beside
        while rows > 1:
            need = work_bytes(
                self.spec,
                plan.chunk,
                rows,
                decoded_tokens=decoded,
                rows=max(plan.chunk, rows),
            )
            if need + 4 * (plan.chunk + rows) * self.spec.hidden <= room:
                break
            rows //= 2
        return rows
