"""The KV store: what every layer remembers of the tokens seen, exact or compressed.

All storage is allocated once, under the ledger, by the table that `predict_store` adds up. A block
of the pool is one row of the batch: [rows, layers, 2, kv heads, tokens, head size].

One step brings up to `chunk` tokens: for each layer `append`, attend to the view it returns,
`observe` where the method wants queries; then `advance`. Tokens that do not fit the slots, or that
are to be encoded, wait in a staging area of one layer and are folded in after that layer attended:
append, attend, then evict. So a step needs room for one layer's chunk above the budget's slots, and
that room is part of the budget. Layers that are encoded together wait for the last of them; a
method that probes the model needs every layer's chunk at once and `finish_chunk` after each.

The slots of one layer are a lane; where heads keep numbers of tokens of their own, every head is
one. Lanes are regions of the pool. When a method gives them other sizes they move inside it, so the
bytes stay what was predicted.

The logical length counts all tokens seen; evicted slots are used again, never masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # JSON values; a prefiller's extra attributes

import torch
from torch import Tensor

from loci.core.holder import ShrinkOption, Undo
from loci.core.ledger import Ledger
from loci.core.ports import Artefact
from loci.core.spec import ModelSpec
from loci.errors import FormatError, MethodError, ParameterError
from loci.methods.kv.chain import Chain
from loci.nn import native
from loci.nn.kv import KVView, Seen
from loci.run.kv_append import begin, check_finite, take
from loci.run.kv_evict import Evictor
from loci.run.kv_fold import Folder
from loci.run.kv_native import NativeSteps
from loci.run.kv_pool import DTYPES, Pool
from loci.run.kv_snapshot import check_facts, facts_of, put_back, tensors_of
from loci.run.kv_views import fresh_segment, view, with_bank

# Shapes: B batch, L layers, K key/value heads, T new tokens, S stored tokens, D head size.


class KVStore:
    """Keys and values of one batch of rows that advance together.

    Args:
        chain: methods of `loci.methods.kv`, at most one that selects, then at most one that
            encodes, then at most one that retrieves; () is exact.
        max_tokens: logical tokens per row, kept or not.
        dtype: float32 or float16, of tokens that are not encoded.
        budget_bytes: the most bytes the store may hold; None holds everything.
        chunk: tokens one step appends at most.
        ledger: pays before anything is allocated; None pays nowhere.
        generator: for methods that draw.
        orders: [L, K, D] channel orders for an encoder that is told them.
        artefacts: by name of the method, what was prepared for those that need it.
        folder: where a method that retrieves may keep tokens in a file.
        is_copy: the caller fills in everything, what was prepared included.

    Raises:
        BudgetError: if the budget or the ledger is too small.
        MethodError: if the chain cannot work, or lacks what was to be prepared.
        FingerprintError: if that was prepared for another model or method.
    """

    largest: float  # what a key or value may be, in the dtype they are kept in
    _pending: int | None  # the layer whose tokens wait to be folded in

    def __init__(
        self,
        spec: ModelSpec,
        chain: Chain = (),
        *,
        max_tokens: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        budget_bytes: int | None = None,
        chunk: int = 512,
        ledger: Ledger | None = None,
        tier: str = "dram",
        generator: torch.Generator | None = None,
        orders: Tensor | None = None,
        artefacts: Mapping[str, Artefact] | None = None,
        folder: Path | None = None,
        is_copy: bool = False,
    ) -> None:
        if dtype not in (torch.float32, torch.float16):
            raise ParameterError(
                "a KV store cannot keep this dtype",
                value=str(dtype),
                allowed="torch.float32, torch.float16",
            )
        self.spec, self.chain = spec, tuple(chain)
        self.max_tokens, self.batch, self.dtype = max_tokens, batch, dtype
        self.budget_bytes, self.chunk, self.tier = budget_bytes, min(chunk, max_tokens), tier
        self.largest = torch.finfo(dtype).max
        self._ledger, self._generator, self._files = ledger, generator, folder
        pool = self._pool = Pool(
            spec,
            self.chain,
            max_tokens=max_tokens,
            batch=batch,
            dtype=dtype,
            budget_bytes=budget_bytes,
            chunk=chunk,
            tier=tier,
        )
        self._evictor = Evictor(pool, generator)
        self._folder = Folder(pool, self._evictor)
        self._native = NativeSteps(pool)
        self._evictor.check(batch)
        self.wants_queries, self.wants_hidden = self._evictor.wants_queries, pool.wants_hidden
        given = {} if is_copy else pool.checked(artefacts or {})
        try:
            pool.allocate(ledger, folder)
            for method in () if is_copy else (pool.select, pool.codec):
                if method is not None:
                    pool.share(method, given.get(method.about.name))
            self._evictor.prepared = pool.shared_of(pool.select)
            pool.open(pool.even_slots() if is_copy else self._evictor.slots_wanted(None))
        except BaseException:
            self.release()
            raise
        self._pending = None
        if orders is not None and pool.codec is not None:
            if "fixed.order" not in pool.tensors:
                raise MethodError(f"{pool.codec} takes no channel orders")
            pool.tensors["fixed.order"].copy_(orders)
            pool.is_given, pool.learned = True, [True] * spec.layers

    @property
    def length(self) -> int:
        """Logical tokens of each row."""
        return self._pool.length

    # -- one step -----------------------------------------------------------------------------

    def append(
        self,
        layer: int,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        hidden: Tensor | None = None,
    ) -> KVView:
        """Add a chunk to one layer and return everything it may attend to.

        Args:
            k: rotated keys [B, K, T, D].
            v: values [B, K, T, D].
            positions: [B, T]; rows padded on the left are recognised by their last position.
            hidden: [B, T, d] what the layer's projections were given, where `wants_hidden`.

        Raises:
            ContextError: if the row would be longer than `max_tokens`.
            MethodError: if the store wants hidden states and was given none.
            ModelError: if a key or value is not finite.
        """
        tokens = k.shape[2]
        if self.wants_hidden and hidden is None and not self._pool.is_trial:
            raise MethodError(
                f"{self._pool.codec} must be shown what the projections of a layer are given",
                way_out="append(..., hidden=states)",
            )
        if layer == 0:
            begin(self._pool, k, positions, self.chunk)
        check_finite(layer, k, v, self.largest)
        if self._pending is not None and not self._pool.is_trial:
            self._fold(self._pending, None)
        if self._pool.is_trial:
            fresh = fresh_segment(self._pool, k, v, positions[:, None])
            return with_bank(self._pool, view(self._pool, layer, fresh))
        shown, is_due = take(self._pool, layer, k, v, hidden)
        if is_due:
            self._pending = layer
        self._pool.end[layer] += tokens
        return with_bank(self._pool, shown)

    def observe(self, layer: int, seen: Seen) -> None:
        """Show the store the queries of a chunk, right after that layer attended."""
        if self._pool.is_trial:
            return
        if self._pending == layer:
            self._fold(layer, seen)
        elif (
            self._pool.evicts and seen.positions.shape[1] > 1 and not self._pool.staged_count[layer]
        ):
            assert self._pool.select is not None
            if self._pool.select.each_chunk and not self._pool.tail_count[layer]:
                self._evictor.remember(layer, self._evictor.scored(layer, seen))

    def advance(self, tokens: int) -> None:
        """Count a chunk as read, after all layers appended it; evict and encode what is due."""
        if self._pool.is_trial:
            return
        if self._pending is not None:
            self._fold(self._pending, None)
        self._pool.length += tokens
        if tokens > 1 and not self._pool.probes:
            self._evictor.reallocate()

    def finish_chunk(self, prefiller: Any = None) -> None:
        """Let a method that probes do its work between two chunks; others need no call.

        Args:
            prefiller: a `loci.core.ports.Prefiller` that also has `ids`, all tokens read so far.
        """
        if any(self._pool.staged_count):  # layers have room of their own
            self._folder.probe(prefiller, self.chunk)

    def finish_prompt(self, prefiller: Any = None) -> None:
        """End a prompt; a method that probes now scores what may have to go later."""
        if self._pool.probes and self._pool.evicts and self._pool.probed < self._pool.length:
            self._folder.probe(prefiller, self.chunk)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Within it, `append` shows the tokens to attention and keeps nothing."""
        self._pool.is_trial = True
        try:
            yield
        finally:
            self._pool.is_trial = False

    # -- one step by a kernel that keeps keys and values itself -------------------------------

    def pasts(self, with_spans: bool = False) -> list[native.Past] | None:
        """Return where a kernel may append the next keys and values of each row.

        None where it may not: tokens would have to be evicted or encoded, a row is padded, or a
        trial is under way. After the kernel, `took` counts the tokens.

        Args:
            with_spans: the kernel takes one token a row, and stretches; a store with a chain needs
                both.
        """
        if self._pool.bank is not None:  # kernels cannot fetch
            return None
        return self._native.pasts(with_spans)

    def begin(self, tokens: int) -> None:
        """Prepare for layers that append some of them here and some through `pasts`."""
        start = self._pool.length
        places_T = torch.arange(start, start + tokens, dtype=torch.int32)
        self._pool.step_places = places_T.expand(self.batch, 1, tokens)

    def took(self, tokens: int) -> None:
        """Count tokens whose keys and values were written to where `pasts` said."""
        self._native.took(tokens)
        if self._native.is_full:
            for group in self._pool.groups:
                self._folder.fold(group[-1], None)

    # -- what it holds ------------------------------------------------------------------------

    def held_tokens(self, layer: int) -> int:
        """Return how many tokens a layer still holds, per head; of unequal heads, the most."""
        slots = max(self._pool.count[lane.number] for lane in self._pool.lanes[layer])
        return slots + self._pool.tail_count[layer] + self._pool.staged_count[layer]

    def held_entries(self, layer: int) -> int:
        """Return how many tokens a layer still holds, all heads together."""
        pool, heads = self._pool, self.spec.kv_heads
        lanes = pool.lanes[layer]
        slots = sum(pool.count[lane.number] * (heads // len(lanes)) for lane in lanes)
        return slots + heads * (pool.tail_count[layer] + pool.staged_count[layer])

    def view(self, layer: int) -> KVView:
        """Return what a layer holds, for reading."""
        return view(self._pool, layer)

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of the storage really held, each storage once."""
        return self._pool.nbytes()

    def shrink_options(self) -> Sequence[ShrinkOption]:
        """Return no options: a store's chain is chosen before the first token."""
        return ()

    def apply(self, option: ShrinkOption) -> Undo:
        """Refuse; see `shrink_options`."""
        raise ParameterError("a KV store has no options to shrink", value=option.name)

    def crop(self, tokens: int) -> None:
        """Forget everything after the first `tokens` logical tokens; 0 empties the store.

        Raises:
            MethodError: if tokens were evicted, so that what remains is no prefix, or if the end
                lies inside tokens that can only be decoded together.
        """
        if not 0 <= tokens <= self._pool.length:
            raise ParameterError(
                "a KV store can be cropped to a length it has",
                value=tokens,
                allowed=f"0 to {self._pool.length}",
            )
        if tokens == 0:
            self._reset()
        if tokens == self._pool.length:
            return
        if self._pool.has_evicted or any(self._pool.staged_count):
            raise MethodError(
                f"a cache from which {self._pool.select} evicted tokens cannot be cropped",
                value=tokens,
                way_out="crop(0) and read the tokens again",
            )
        coded, codec = self._pool.count[0], self._pool.codec
        inside = 0
        if codec is not None and codec.keeps_groups and tokens < coded:
            inside = tokens % codec.closes_every
        if inside:
            raise MethodError(
                f"a cache cannot be cropped inside tokens that {codec} encoded together",
                value=tokens,
                allowed=f"{tokens - inside}, or {coded} and more",
                way_out="crop there and read the rest of the tokens again",
            )
        for lanes in self._pool.lanes:
            for lane in lanes:
                self._pool.count[lane.number] = min(self._pool.count[lane.number], tokens)
                self._pool.tail_count[lane.layer] = tokens - self._pool.count[lane.number]
        self._pool.end = [tokens] * self.spec.layers
        self._pool.length = tokens
        self._pool.probed = min(self._pool.probed, tokens)

    def reorder(self, rows: Tensor) -> None:
        """Replace row i of the batch by row `rows[i]`, as beam search does."""
        self._pool.reorder(rows)

    def fork(self) -> KVStore:
        """Return an independent copy, under the same ledger."""
        drawn = self._generator
        if drawn is not None:  # what one of them draws must not change what the other does
            drawn = torch.Generator().set_state(drawn.get_state())
        twin = KVStore(
            self.spec,
            self.chain,
            max_tokens=self.max_tokens,
            batch=self.batch,
            dtype=self.dtype,
            budget_bytes=self.budget_bytes,
            chunk=self.chunk,
            ledger=self._ledger,
            tier=self.tier,
            generator=drawn,
            folder=self._files,
            is_copy=True,
        )
        for name, tensor in self._pool.tensors.items():
            twin._pool.tensors[name].copy_(tensor)
        twin._pool.set_state(self._pool.state())
        return twin

    def release(self) -> None:
        """Give all storage back; a second release does nothing."""
        self._evictor.prepared = {}
        self._pool.release()

    def wipe(self) -> None:
        """Write zeros over all that is held, before it is released: it is to be found nowhere."""
        for tensor in self._pool.tensors.values():
            tensor.zero_()

    # -- on disk ------------------------------------------------------------------------------

    def snapshot(
        self, ids: Sequence[int] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of the tensors in use, and what is needed to take them back.

        Args:
            ids: the tokens the store was read from; their hash goes along.
        """
        tensors = tensors_of(self._pool)
        if self._generator is not None:
            tensors["generator"] = self._generator.get_state()
        meta = {
            **facts_of(self.spec, self.chain, ids),
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch": self.batch,
            "max_tokens": self.max_tokens,
            "budget_bytes": self.budget_bytes,
            "chunk": self.chunk,
            "state": self._pool.state(),
        }
        return tensors, meta

    @classmethod
    def restore(
        cls,
        spec: ModelSpec,
        chain: Chain,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        ids: Sequence[int] | None = None,
        ledger: Ledger | None = None,
        tier: str = "dram",
        generator: torch.Generator | None = None,
        folder: Path | None = None,
    ) -> KVStore:
        """Return the store of a snapshot; the tensors are copied and may be read-only.

        Raises:
            FormatError: if it is no snapshot of a version we know, or is incomplete.
            FingerprintError: if it was made for another model, layout, chain or tokens.
        """
        check_facts(meta, spec, chain, ids)
        if "generator" in tensors and generator is not None:
            generator.set_state(tensors["generator"].clone())  # torch cannot take a mapped file
        store = cls(
            spec,
            chain,
            max_tokens=meta["max_tokens"],
            batch=meta["batch"],
            dtype=DTYPES[meta["dtype"]],
            budget_bytes=meta["budget_bytes"],
            chunk=meta["chunk"],
            ledger=ledger,
            tier=tier,
            generator=generator,
            folder=folder,
            is_copy=True,
        )
        store._pool.set_state(meta["state"])
        try:
            put_back(store._pool, tensors)
        except FormatError:
            store.release()
            raise
        return store

    # -- private ------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._pending = None
        self._evictor.reset()
        self._pool.reset()

    def _fold(self, layer: int, seen: Seen | None) -> None:
        self._pending = None
        self._folder.fold(layer, seen)
