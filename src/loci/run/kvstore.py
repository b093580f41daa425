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

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any  # JSON values; a prefiller's extra attributes

import torch
from torch import Tensor

from loci.core.holder import ShrinkOption, Undo
from loci.core.ledger import Lease, Ledger
from loci.core.method import Granularity, Method, Need
from loci.core.ports import Artefact
from loci.core.spec import ModelSpec
from loci.errors import (
    ContextError,
    FingerprintError,
    FormatError,
    MethodError,
    ModelError,
    ParameterError,
)
from loci.methods.kv.base import Encode, EncodeLayers, KVMethod, LayerGroup
from loci.methods.kv.chain import Chain, check_chain, due_tokens, layer_groups
from loci.methods.kv.store_plan import fitted, kept_tokens, store_plan
from loci.nn import native
from loci.nn.kv import (
    DenseSegment,
    KVBlock,
    KVView,
    RaggedSegment,
    Seen,
    Segment,
)
from loci.nn.rope import Rope, undo
from loci.run.kv_lanes import Lane, best_of, keep_only, levelled
from loci.run.kv_segments import CodesSegment, LayersSegment

FORMAT, VERSION = "loci-kv", 1
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
}

# Shapes: B batch, L layers, K key/value heads, T new tokens, S stored tokens, D head size.


class KVStore:
    """Keys and values of one batch of rows that advance together.

    Args:
        chain: methods of `loci.methods.kv`, at most one that selects, then at most one that
            encodes; () is exact.
        max_tokens: logical tokens per row, kept or not.
        dtype: float32 or float16, of tokens that are not encoded.
        budget_bytes: the most bytes the store may hold; None holds everything.
        chunk: tokens one step appends at most.
        ledger: pays before anything is allocated; None pays nowhere.
        generator: for methods that draw.
        orders: [L, K, D] channel orders for an encoder that is told them.
        artefacts: by name of the method, what was prepared for those that need it.
        is_copy: the caller fills in everything, what was prepared included.

    Raises:
        BudgetError: if the budget or the ledger is too small.
        MethodError: if the chain cannot work, or lacks what was to be prepared.
        FingerprintError: if that was prepared for another model or method.
    """

    length: int  # logical tokens of each row
    largest: float  # what a key or value may be, in the dtype they are kept in
    _end: list[int]  # logical tokens each layer was given
    _count: list[int]  # tokens in the slots of each lane
    _tail_count: list[int]  # tokens in the exact tail
    _staged_count: list[int]  # tokens in the staging area
    _pending: int | None  # the layer whose tokens wait to be folded in
    _has_evicted: bool
    _is_regular: bool  # every row's token i stands at position i
    _probed: int  # logical tokens that a probe has scored
    _lanes: list[list[Lane]]  # by layer
    _tail: list[tuple[Tensor, Tensor]]

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
        self._ledger, self._generator = ledger, generator
        self._select, self._codec = check_chain(self.chain)
        needs = self._select.about.needs if self._select else ()
        self._probes = Need.PROBE in needs
        self._plan = store_plan(
            spec,
            self.chain,
            max_tokens=max_tokens,
            batch=batch,
            dtype_bytes=dtype.itemsize,
            budget_bytes=budget_bytes,
            chunk=chunk,
        )
        # A store that can never be full never evicts, so nobody needs to look.
        self._evicts = self._select is not None and self._plan.slots < max_tokens
        self.wants_queries = self._evicts and Need.QUERIES in needs
        self.wants_hidden = self._codec is not None and Need.HIDDEN in self._codec.about.needs
        if Need.GENERATOR in needs and generator is None:
            raise MethodError(
                f"{self._select} draws, and needs a seeded generator",
                way_out="KVStore(..., generator=torch.Generator().manual_seed(0))",
            )
        if self._probes and self._evicts and batch > 1:
            raise MethodError(f"{self._select} probes one row at a time", value=batch, allowed="1")
        grain = self._select.allocates if self._select is not None and self._evicts else None
        self._allocates = grain is not None
        self._by_head = grain is Granularity.HEAD
        self._reallocates = self._select is not None and grain is not None
        self._reallocates = self._reallocates and bool(self._select and self._select.reallocates)
        if self._reallocates and batch > 1:
            raise MethodError(
                f"{self._select} shares slots out for one row at a time", value=batch, allowed="1"
            )
        given = {} if is_copy else self._checked(artefacts or {})
        self._lease: Lease | None = None
        if ledger is not None:
            self._lease = ledger.reserve("kv", tier, self._plan.nbytes, "kv")
        self._tensors = {
            name: torch.empty(shape, dtype=_DTYPES[kind])
            for name, (shape, kind) in self._plan.tensors.items()
        }
        self._groups = layer_groups(spec, self._codec)
        self._group_of = [number for number, group in enumerate(self._groups) for _ in group]
        self._is_stacked = len(self._groups) == spec.layers  # rows of all layers are one tensor
        self._rope = Rope(spec) if isinstance(self._codec, EncodeLayers) else None
        try:
            for method in () if is_copy else (self._select, self._codec):
                if method is not None:
                    self._share(method, given.get(method.about.name))
            self._prepared = self._shared_of(self._select)
            self._first_slots = self._even_slots() if is_copy else self._slots_wanted(None)
        except BaseException:
            self.release()
            raise
        self._index()
        if self._lease is not None:
            self._lease.commit(self.nbytes()[tier])
        self._ordered = [False] * spec.layers
        if orders is not None and self._codec is not None:
            if "fixed.order" not in self._tensors:
                raise MethodError(f"{self._codec} takes no channel orders")
            self._tensors["fixed.order"].copy_(orders)
            self._ordered = [True] * spec.layers
        self._step_places = torch.empty(batch, 1, 0, dtype=torch.int32)
        self.largest = torch.finfo(dtype).max
        self._trying = False
        self._reset()

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
            ModelError: if a chunk holds a key or value that is not finite.
        """
        tokens = k.shape[2]
        if self.wants_hidden and hidden is None and not self._trying:
            raise MethodError(
                f"{self._codec} must be shown what the projections of a layer are given",
                way_out="append(..., hidden=states)",
            )
        if layer == 0:
            self._begin(k, positions)
        if tokens > 1:
            _check_finite(layer, k, v, self.largest)
        if self._pending is not None and not self._trying:
            self._fold(self._pending, None)
        if self._trying:
            return self._view(layer, self._fresh(layer, k, v, positions[:, None]))
        view = self._take(layer, k, v, tokens, hidden)
        self._end[layer] += tokens
        return view

    def observe(self, layer: int, seen: Seen) -> None:
        """Show the store the queries of a chunk, right after that layer attended."""
        if self._trying:
            return
        if self._pending == layer:
            self._fold(layer, seen)
        elif self._evicts and seen.positions.shape[1] > 1 and not self._staged_count[layer]:
            assert self._select is not None
            if self._select.each_chunk and not self._tail_count[layer]:
                self._remember(layer, self._scored(layer, seen))

    def advance(self, tokens: int) -> None:
        """Count a chunk as read, after all layers appended it; evict and encode what is due."""
        if self._trying:
            return
        if self._pending is not None:
            self._fold(self._pending, None)
        self.length += tokens
        if tokens > 1 and not self._probes:
            self._reallocate()

    def finish_chunk(self, prefiller: Any = None) -> None:
        """Let a method that probes do its work between two chunks; others need no call.

        Args:
            prefiller: a `loci.core.ports.Prefiller` that also has `ids`, all tokens read so far.
        """
        if self._staged_count[0]:
            self._probe(prefiller)

    def finish_prompt(self, prefiller: Any = None) -> None:
        """End a prompt; a method that probes now scores what may have to go later."""
        if self._probes and self._evicts and self._probed < self.length:
            self._probe(prefiller)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Within it, `append` shows the tokens to attention and keeps nothing."""
        self._trying = True
        try:
            yield
        finally:
            self._trying = False

    # -- one step by a kernel that keeps keys and values itself -------------------------------

    def pasts(self) -> list[native.Past] | None:
        """Return where a kernel may append the next keys and values of each row.

        None where it may not: the store compresses, a row is padded, or a trial is under way. After
        the kernel, `took` counts the tokens.
        """
        if self.chain or self._trying or not self._is_regular:
            return None
        slots = self._tensors["slots"]
        size, count = slots.element_size(), self.length
        row, layer, part, head, token, _ = slots.stride()
        base, half = slots.data_ptr(), int(self.dtype == torch.float16)
        return [
            native.Past(
                base + size * row * index,
                base + size * (row * index + part),
                layer,
                head,
                token,
                half,
                count,
                count,
            )
            for index in range(self.batch)
        ]

    def begin(self, tokens: int) -> None:
        """Prepare for layers that append some of them here and some through `pasts`."""
        start = self.length
        places_T = torch.arange(start, start + tokens, dtype=torch.int32)
        self._step_places = places_T.expand(self.batch, 1, tokens)

    def took(self, tokens: int) -> None:
        """Count tokens whose keys and values were written to where `pasts` said."""
        self.length += tokens
        self._count = [self.length] * self.spec.layers  # a store without a chain has whole layers
        self._end = [self.length] * self.spec.layers

    # -- what it holds ------------------------------------------------------------------------

    def held_tokens(self, layer: int) -> int:
        """Return how many tokens a layer still holds, per head; of unequal heads, the most."""
        slots = max(self._count[lane.number] for lane in self._lanes[layer])
        return slots + self._tail_count[layer] + self._staged_count[layer]

    def view(self, layer: int) -> KVView:
        """Return what a layer holds, for reading."""
        return self._view(layer)

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of the storage really held, each storage once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in self._tensors.values()
        }
        return {self.tier: sum(storages.values())}

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
        if not 0 <= tokens <= self.length:
            raise ParameterError(
                "a KV store can be cropped to a length it has",
                value=tokens,
                allowed=f"0 to {self.length}",
            )
        if tokens == 0:
            self._reset()
        if tokens == self.length:
            return
        if self._has_evicted or any(self._staged_count):
            raise MethodError(
                f"a cache from which {self._select} evicted tokens cannot be cropped",
                value=tokens,
                way_out="crop(0) and read the tokens again",
            )
        coded, codec = self._count[0], self._codec
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
        for lanes in self._lanes:
            for lane in lanes:
                self._count[lane.number] = min(self._count[lane.number], tokens)
                self._tail_count[lane.layer] = tokens - self._count[lane.number]
        self._end = [tokens] * self.spec.layers
        self.length = tokens
        self._probed = min(self._probed, tokens)

    def reorder(self, rows: Tensor) -> None:
        """Replace row i of the batch by row `rows[i]`, as beam search does."""
        for name, tensor in self._tensors.items():
            if name.startswith("shared."):
                continue
            # Layer by layer, so that little is copied at once.
            of_group = name.startswith(("rows.", "bases.", "carried")) and not self._is_stacked
            by_layer = tensor.dim() > 2 and not of_group and not name.startswith("bases.")
            for part in tensor.unbind(1) if by_layer else (tensor,):
                part.copy_(part.index_select(0, rows))

    def fork(self) -> KVStore:
        """Return an independent copy, under the same ledger."""
        drawn = self._generator
        if drawn is not None:  # what one of them draws must not change what the other does
            drawn = torch.Generator().set_state(drawn.get_state())
        twin = KVStore(self.spec, self.chain, generator=drawn, is_copy=True, **self._arguments())
        for name, tensor in self._tensors.items():
            twin._tensors[name].copy_(tensor)
        twin._set_state(self._state())
        return twin

    def release(self) -> None:
        """Give all storage back; a second release does nothing."""
        self._tensors, self._prepared = {}, {}
        self._lanes, self._tail = [], []
        if self._lease is not None:
            self._lease.release()

    # -- on disk ------------------------------------------------------------------------------

    def snapshot(
        self, ids: Sequence[int] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of the tensors in use, and what is needed to take them back.

        Args:
            ids: the tokens the store was read from; their hash goes along.
        """
        if any(self._staged_count):
            raise MethodError("a chunk is unfinished", way_out="call finish_prompt first")
        tensors = {
            name: tensor.narrow(self._token_axis(name), 0, used).clone()
            if (used := self._used(name)) is not None
            else tensor.clone()
            for name, tensor in self._tensors.items()
            if not name.startswith(("staged", "carried"))
        }
        if self._generator is not None:
            tensors["generator"] = self._generator.get_state()
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "made_by": "loci",
            "fingerprint": self.spec.fingerprint,
            "layout": self.spec.layout_hash(),
            "chain": " | ".join(map(str, self.chain)),
            "dtype": str(self.dtype).removeprefix("torch."),
            "tokens": None if ids is None else _hash(ids),
            "batch": self.batch,
            "max_tokens": self.max_tokens,
            "budget_bytes": self.budget_bytes,
            "chunk": self.chunk,
            "state": self._state(),
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
    ) -> KVStore:
        """Return the store of a snapshot; the tensors are copied and may be read-only.

        Raises:
            FormatError: if it is no snapshot of a version we know, or is incomplete.
            FingerprintError: if it was made for another model, layout, chain or tokens.
        """
        if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
            raise FormatError(
                "this is no KV snapshot of a version Loci knows",
                value=(meta.get("format"), meta.get("version")),
                allowed=f"{FORMAT} {VERSION}",
            )
        expected = {
            "fingerprint": spec.fingerprint,
            "layout": spec.layout_hash(),
            "chain": " | ".join(map(str, chain)),
        }
        if ids is not None:
            expected["tokens"] = _hash(ids)
        for name, value in expected.items():
            if meta.get(name) != value:
                raise FingerprintError(
                    f"this KV snapshot was made for another {name}",
                    value=meta.get(name),
                    allowed=value or "none",
                    way_out="read the tokens again",
                )
        if "generator" in tensors and generator is not None:
            generator.set_state(tensors["generator"])
        store = cls(
            spec,
            chain,
            max_tokens=meta["max_tokens"],
            batch=meta["batch"],
            dtype=_DTYPES[meta["dtype"]],
            budget_bytes=meta["budget_bytes"],
            chunk=meta["chunk"],
            ledger=ledger,
            tier=tier,
            generator=generator,
            is_copy=True,
        )
        store._set_state(meta["state"])
        try:
            for name, tensor in store._tensors.items():
                if name.startswith(("staged", "carried")):
                    continue
                used = store._used(name)
                part = tensor if used is None else tensor.narrow(store._token_axis(name), 0, used)
                if part.shape != tensors[name].shape or part.dtype != tensors[name].dtype:
                    raise FormatError(
                        f"{name} of a KV snapshot has another shape",
                        value=tuple(tensors[name].shape),
                        allowed=str(tuple(part.shape)),
                    )
                part.copy_(tensors[name])
        except KeyError as error:
            store.release()
            raise FormatError("a KV snapshot lacks a tensor", value=str(error)) from None
        except FormatError:
            store.release()
            raise
        return store

    # -- private: state -----------------------------------------------------------------------

    def _reset(self) -> None:
        layers = self.spec.layers
        self.length = 0
        self._end = [0] * layers
        self._count = [0] * sum(map(len, self._lanes))
        self._tail_count, self._staged_count = [0] * layers, [0] * layers
        self._pending = None
        self._has_evicted = self._evicted_now = False
        self._shared_scores = ((-1, -1), torch.empty(0))
        self._before: dict[int, Tensor] = {}  # scores before the last eviction
        self._is_regular = True
        self._probed = 0
        if self._reallocates:
            self._cut(self._first_slots)

    def _state(self) -> dict[str, Any]:
        return {
            "length": self.length,
            "count": list(self._count),
            "tail": list(self._tail_count),
            "has_evicted": self._has_evicted,
            "is_regular": self._is_regular,
            "probed": self._probed,
            "ordered": list(self._ordered),
            "first_slots": list(self._first_slots),
            "slots": self._slots(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self.length = state["length"]
        self._end = [self.length] * self.spec.layers
        if self._allocates:
            self._first_slots = list(state["first_slots"])
            self._cut(state["slots"])
        self._count, self._tail_count = list(state["count"]), list(state["tail"])
        self._has_evicted, self._is_regular = state["has_evicted"], state["is_regular"]
        self._probed, self._ordered = state["probed"], list(state["ordered"])

    def _arguments(self) -> dict[str, Any]:
        return {
            "max_tokens": self.max_tokens,
            "batch": self.batch,
            "dtype": self.dtype,
            "budget_bytes": self.budget_bytes,
            "chunk": self.chunk,
            "ledger": self._ledger,
            "tier": self.tier,
        }

    def _index(self) -> None:
        """Cut the pool into views per layer once, so that a step cuts nothing."""
        held = self._tensors
        self._cut(self._first_slots)
        self._tail = []
        if self._codec is not None:
            tails = held["tail"].unbind(1)
            self._tail = [(tail[:, 0], tail[:, 1]) for tail in tails]
        if "carried" in held:
            held["carried"][..., -1] = -1

    def _cut(self, slots: Sequence[int]) -> None:
        """Make lanes of these many slots."""
        spec, limit = self.spec, self._select.limit() if self._select is not None else None
        heads = 1 if self._by_head else spec.kv_heads
        self._lanes = [[] for _ in range(spec.layers)]
        first = rows_first = 0
        for number, count in enumerate(slots):
            layer, head = divmod(number, spec.kv_heads) if self._by_head else (number, 0)
            group = self._group_of[layer]
            keep = kept_tokens(count, limit) if self._allocates else self._plan.keep
            lane = Lane(number, layer, slice(head, head + heads), count, keep)
            for name, tensor in self._tensors.items():
                if name == "slots":
                    flat = tensor.flatten(1, 4).narrow(1, 2 * first, 2 * heads * count)
                    both = flat.unflatten(1, (2, heads, count))
                    lane.parts["keys"], lane.parts["values"] = both[:, 0], both[:, 1]
                elif name.startswith("codes.") or name in ("slot_positions", "scores"):
                    flat = tensor.flatten(1, 3).narrow(1, first, heads * count)
                    lane.parts[name] = flat.unflatten(1, (heads, count))
                elif name.startswith("rows.") and self._is_stacked:
                    flat = tensor.flatten(1, 2).narrow(1, rows_first, count)
                    lane.parts[name] = flat.unsqueeze(1)
                elif name.startswith(f"rows.{group}.") and layer == self._groups[group][0]:
                    lane.parts[f"rows.{name.split('.', 2)[2]}"] = tensor.unsqueeze(1)
            self._lanes[layer].append(lane)
            first += heads * count
            rows_first += count

    def _slots(self) -> list[int]:
        return [lane.slots for lanes in self._lanes for lane in lanes]

    def _even_slots(self) -> list[int]:
        lanes = self.spec.layers * (self.spec.kv_heads if self._by_head else 1)
        return [self._plan.slots] * lanes

    def _staged(self, layer: int) -> tuple[Tensor, Tensor]:
        place = self._tensors["staged"][:, self._staged_index(layer)]
        return place[:, 0], place[:, 1]

    def _staged_index(self, layer: int) -> int:
        if self._plan.staged_layers == self.spec.layers:
            return layer
        return layer - self._groups[self._group_of[layer]][0]

    def _token_axis(self, name: str) -> int:
        if name.startswith("rows.") and self._is_stacked:
            return 2
        if name.startswith(("rows.", "bases.", "positions")):
            return 1
        return {"slots": 4, "tail": 4, "tail_hidden": 2}.get(name, 3)

    def _used(self, name: str) -> int | None:
        """Return how many tokens of a tensor are in use, None for tensors kept whole."""
        if name.startswith(("fixed.", "shared.", "first")):
            return None
        if name == "positions":
            return 0 if self._is_regular else self.length
        if name.startswith("tail"):
            return max(self._tail_count)
        if self._allocates:  # lanes of other sizes lie across the layers
            return None
        count = max(self._count)
        if name.startswith("bases."):
            assert isinstance(self._codec, EncodeLayers)
            return -(-count // self._codec.closes_every)
        return count

    # -- private: what was prepared -----------------------------------------------------------

    def _checked(self, artefacts: Mapping[str, Artefact]) -> dict[str, Artefact]:
        """Return the artefacts of the chain's methods, each made for this method and model."""
        found = {}
        for method in (self._select, self._codec):
            if method is None:
                continue
            name, made = method.about.name, artefacts.get(method.about.name)
            if made is None:
                if Need.ARTEFACT in method.about.needs:
                    raise MethodError(
                        f"{method} needs what is prepared once for a model, and was given nothing",
                        way_out=f"loci methods prepare '{method}'",
                    )
                continue
            expected = (method.preparation, self.spec.fingerprint)
            if (made.method, made.fingerprint) != expected:
                raise FingerprintError(
                    f"what was prepared for {name} is for something else",
                    value=(made.method, made.fingerprint),
                    allowed=str(expected),
                    way_out=f"loci methods prepare '{method}'",
                )
            found[name] = made
        return found

    def _share(self, method: KVMethod, artefact: Artefact | None) -> None:
        """Fill in what a method keeps once for all rows and tokens."""
        table = method.shared_table(self.spec)
        if not table:
            return
        given = method.shared(self.spec, artefact)
        for name, (shape, _) in table.items():
            tensor = given.get(name)
            if tensor is None or tuple(tensor.shape) != tuple(shape):
                raise FormatError(
                    f"what was prepared for {method} lacks {name}, or has it in another shape",
                    value=None if tensor is None else tuple(tensor.shape),
                    allowed=str(tuple(shape)),
                    way_out=f"loci methods prepare '{method}'",
                )
            self._tensors[f"shared.{method.about.name}.{name}"].copy_(tensor)

    def _shared_of(self, method: Method | None) -> dict[str, Tensor]:
        if method is None:
            return {}
        first = f"shared.{method.about.name}."
        return {n.removeprefix(first): t for n, t in self._tensors.items() if n.startswith(first)}

    # -- private: a step ----------------------------------------------------------------------

    def _begin(self, k: Tensor, positions: Tensor) -> None:
        batch, heads, tokens, size = k.shape
        if (batch, heads, size) != (self.batch, self.spec.kv_heads, self.spec.head_dim):
            raise ParameterError(
                "these keys do not fit the store",
                value=tuple(k.shape),
                allowed=f"[{self.batch}, {self.spec.kv_heads}, T, {self.spec.head_dim}]",
            )
        if tokens > self.chunk:
            raise ParameterError(
                "a step appends at most one chunk",
                value=tokens,
                allowed=f"<= {self.chunk}",
                way_out="split the prompt into chunks",
            )
        start, stop = self.length, self.length + tokens
        if self._trying:
            return
        if stop > self.max_tokens:
            raise ContextError(
                f"{stop} tokens do not fit a KV store made for {self.max_tokens}",
                value=stop,
                allowed=f"<= {self.max_tokens}",
                way_out="open the plan with a larger --context",
            )
        expected_T = torch.arange(start, stop)
        if self._is_regular and bool((positions == expected_T).all()):
            self._step_places = expected_T.to(torch.int32).expand(batch, 1, tokens)
            return
        table_BS = self._tensors["positions"]
        if self._is_regular:
            table_BS[:, :start] = torch.arange(start)
            self._is_regular = False
        # Slots that would stand before position 0 are padding; real positions are kept as given.
        pad_B1 = (stop - 1) - positions[:, -1:]
        is_pad_BS = torch.arange(start) < pad_B1  # a chunk of nothing but padding hides its length
        table_BS[:, :start].masked_fill_(is_pad_BS, -1)
        if self._select is not None and not self._has_evicted:
            for lane in (lane for lanes in self._lanes for lane in lanes):
                count = self._count[lane.number]
                held = lane.parts["slot_positions"][:, :, :count]
                held.masked_fill_(is_pad_BS[:, None, :count], -1)
        table_BS[:, start:stop] = torch.where(expected_T - pad_B1 < 0, -1, positions)
        self._step_places = table_BS[:, None, start:stop]

    def _positions(self, start: int, stop: int) -> Tensor:
        """Return the positions of logical tokens, [B, 1, tokens]."""
        if self._is_regular:
            return torch.arange(start, stop, dtype=torch.int32).expand(self.batch, 1, -1)
        return self._tensors["positions"][:, None, start:stop]

    def _take(self, layer: int, k: Tensor, v: Tensor, tokens: int, hidden: Tensor | None) -> KVView:
        """Store a chunk where there is room for it, and return what the layer now sees."""
        tail, places = self._tail_count[layer], self._step_places
        if self._codec is None and all(
            self._count[lane.number] + tokens <= lane.slots for lane in self._lanes[layer]
        ):
            return self._take_slots(layer, k, v, places)
        is_last = layer == self._groups[self._group_of[layer]][-1]
        if self._codec is not None and tail + tokens <= self._plan.tail:
            area, start, where = self._tail[layer], tail, "tail_hidden"
            self._tail_count[layer] = tail + tokens
            if tail + tokens == self._plan.tail and is_last:
                self._pending = layer
        else:
            if self._staged_count[layer]:
                raise MethodError(
                    f"{self._select} was not asked to finish the last chunk",
                    way_out="call finish_chunk(prefiller) after every chunk",
                )
            area, start, where = self._staged(layer), 0, "staged_hidden"
            self._staged_count[layer] = tokens
            if is_last and (not self._probes or tokens == 1):
                self._pending = layer
        if hidden is not None and self.wants_hidden:
            index = layer if where == "tail_hidden" else self._staged_index(layer)
            self._tensors[where][:, index, start : start + tokens] = hidden
        keys, values = (part[:, :, start : start + tokens] for part in area)
        keys.copy_(k)
        values.copy_(v)
        return self._view(layer, self._fresh(layer, keys, values, places), tail=tail)

    def _take_slots(self, layer: int, k: Tensor, v: Tensor, places: Tensor) -> KVView:
        tokens, lanes = k.shape[2], self._lanes[layer]
        pasts = [self._count[lane.number] for lane in lanes]
        for lane, past in zip(lanes, pasts, strict=True):
            end = past + tokens
            lane.parts["keys"][:, :, past:end] = k[:, lane.heads]
            lane.parts["values"][:, :, past:end] = v[:, lane.heads]
            self._count[lane.number] = end
            if self._select is not None:
                lane.parts["slot_positions"][:, :, past:end] = places
                lane.parts["scores"][:, :, past:end] = math.inf
        if tokens == 1 and self._is_regular:  # a lone query sees everything: one segment, no mask
            counts = [past + 1 for past in pasts]
            return KVView(layer, self.spec.kv_heads, (self._slot_segment(layer, counts),))
        if len(lanes) > 1:
            return self._view(layer, self._fresh(layer, k, v, places), counts=pasts)
        past, end = pasts[0], pasts[0] + tokens
        keys, values = (lanes[0].parts[name][:, :, past:end] for name in ("keys", "values"))
        return self._view(layer, self._fresh(layer, keys, values, places), counts=pasts)

    def _fresh(self, layer: int, keys: Tensor, values: Tensor, places: Tensor) -> DenseSegment:
        return DenseSegment(
            keys, values, keys.shape[2], positions_BKS=places, causal=self._is_regular
        )

    def _places(self, lane: Lane, count: int) -> Tensor | None:
        """Return the positions of a lane's slots; None where slot i stands at position i."""
        if self._select is not None:
            return lane.parts["slot_positions"][:, :, :count]
        return None if self._is_regular else self._tensors["positions"][:, None, :count]

    def _view(
        self,
        layer: int,
        fresh: Segment | None = None,
        *,
        counts: Sequence[int] | None = None,
        tail: int | None = None,
    ) -> KVView:
        """Return slots, exact tail, then the waiting chunk or `fresh`.

        Args:
            fresh: the chunk being appended, which the layer's end does not count yet; outside a
                trial it may be what waits in the staging area.
            counts, tail: tokens in the slots of each lane and in the tail before `fresh`; by
                default all that is there.
        """
        lanes = self._lanes[layer]
        counts = [self._count[lane.number] for lane in lanes] if counts is None else counts
        tail = self._tail_count[layer] if tail is None else tail
        is_step = fresh is not None and not self._trying
        staged = 0 if is_step else self._staged_count[layer]
        end = self._end[layer]
        segments: list[Segment] = []
        if max(counts):
            segments.append(self._slot_segment(layer, counts))
        if tail:
            places = self._positions(end - staged - tail, end - staged)
            segments.append(self._dense(*self._tail[layer], tail, places))
        if staged:
            places = self._positions(end - staged, end)
            segments.append(self._dense(*self._staged(layer), staged, places))
        if fresh is not None:
            segments.append(fresh)
        scores = None
        if self._select is not None:
            scores = self._remembered(layer, counts)
        return KVView(layer, self.spec.kv_heads, tuple(segments), scores)

    def _slot_segment(self, layer: int, counts: Sequence[int]) -> Segment:
        """Return what the slots of a layer hold; by head, where heads hold unequal numbers."""
        lanes = self._lanes[layer]
        order = self._order(layer)
        if len(lanes) == 1:
            return self._lane_segment(lanes[0], counts[0], order)
        parts = [self._lane_segment(lane, n, None) for lane, n in zip(lanes, counts, strict=True)]
        return RaggedSegment(parts, order)

    def _lane_segment(self, lane: Lane, count: int, order: Tensor | None) -> Segment:
        places = self._places(lane, count)
        if self._codec is None:
            return self._dense(lane.parts["keys"], lane.parts["values"], count, places)
        if places is None:
            places = self._positions(0, count)
        if isinstance(self._codec, EncodeLayers):
            return self._layers_segment(self._codec, lane.layer, count, places)
        codes = {
            name.removeprefix("codes."): tensor[:, :, :count]
            for name, tensor in lane.parts.items()
            if name.startswith("codes.")
        }
        return CodesSegment(
            self._codec, codes, count, self.spec.head_dim, places, order, self._is_regular
        )

    def _layers_segment(
        self, codec: EncodeLayers, layer: int, count: int, places: Tensor
    ) -> LayersSegment:
        number = self._group_of[layer]
        assert self._rope is not None
        carried = self._tensors.get("carried")
        return LayersSegment(
            codec,
            self._group(number),
            layer,
            self._rows_of(layer, count),
            self._of_group("bases", number, -(-count // codec.closes_every)),
            count,
            places,
            self._rope,
            None if carried is None else carried[:, :count],
            self._is_regular,
            self._first(layer, count),
        )

    def _first(self, layer: int, count: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the first tokens, where they stay exact."""
        held = self._tensors.get("first")
        if held is None:
            return None
        first = held[:, layer, :, :, : min(count, held.shape[4])]
        return first[:, 0], first[:, 1]

    def _group(self, number: int) -> LayerGroup:
        return LayerGroup(
            spec=self.spec, layers=self._groups[number], shared=self._shared_of(self._codec)
        )

    def _rows_of(self, layer: int, count: int) -> dict[str, Tensor]:
        lane = self._lanes[self._groups[self._group_of[layer]][0]][0]
        return {
            name.removeprefix("rows."): part[:, 0, :count]
            for name, part in lane.parts.items()
            if name.startswith("rows.")
        }

    def _of_group(self, kind: str, number: int, count: int) -> dict[str, Tensor]:
        first = f"{kind}.{number}."
        return {
            name.removeprefix(first): tensor[:, :count]
            for name, tensor in self._tensors.items()
            if name.startswith(first)
        }

    def _dense(
        self, keys: Tensor, values: Tensor, tokens: int, places: Tensor | None
    ) -> DenseSegment:
        segment = DenseSegment(keys, values, tokens, positions_BKS=places)
        segment.clear = self._is_regular
        return segment

    def _order(self, layer: int) -> Tensor | None:
        order = self._tensors.get("fixed.order")
        return None if order is None else order[:, layer]

    # -- private: evict and encode ------------------------------------------------------------

    def _probe(self, prefiller: Any) -> None:
        """Score every token not scored yet by the queries of probes, then evict what is due."""
        if prefiller is None:
            raise MethodError(f"{self._select} probes the model, and needs a prefiller")
        assert self._select is not None
        fresh: list[Tensor | None] = [None] * self.spec.layers
        ids = list(prefiller.ids[self._probed : self.length])
        for start in range(0, len(ids), self.chunk):
            for seen in prefiller.probe(self._select.probe_ids(ids[start : start + self.chunk])):
                scores = self._scored(seen.layer, seen)
                held = fresh[seen.layer]
                fresh[seen.layer] = scores if held is None else self._select.merge(held, scores)
        self._probed = self.length
        for layer, scores_BKS in enumerate(fresh):
            if self._staged_count[layer]:
                self._fold(layer, None, scores_BKS)
            elif scores_BKS is not None:
                self._remember(layer, scores_BKS)
        self._reallocate()

    def _fold(self, layer: int, seen: Seen | None, fresh_BKS: Tensor | None = None) -> None:
        """Move what waits into the slots: encode it, and evict where there are too few slots.

        Args:
            layer: the last one of its group.
        """
        self._pending = None
        if isinstance(self._codec, EncodeLayers):
            self._fold_group(self._codec, layer, seen, fresh_BKS)
            return
        tail, staged = self._tail_count[layer], self._staged_count[layer]
        waiting = tail + staged
        moved = waiting if self._codec is None else due_tokens(self._codec, waiting)
        places_B1T = self._waiting_places(layer, moved)
        chosen = self._chosen(layer, moved, places_B1T, seen, fresh_BKS)
        parts = [self._waiting(layer, i, tail, staged) for i in (0, 1)]
        new = {n: p[:, :, :moved] for n, p in zip(("keys", "values"), parts, strict=True)}
        if self._codec is not None:
            self._leave(layer, parts, moved)
            new = self._encoded(layer, KVBlock(new["keys"], new["values"], places_B1T))
        self._move(layer, new, moved, places_B1T, chosen)
        self._tail_count[layer], self._staged_count[layer] = waiting - moved, 0

    def _fold_group(
        self, codec: EncodeLayers, last: int, seen: Seen | None, fresh_BKS: Tensor | None
    ) -> None:
        number = self._group_of[last]
        layers = self._groups[number]
        tail, staged = self._tail_count[last], self._staged_count[last]
        moved = due_tokens(codec, tail + staged)
        places_B1T = self._waiting_places(last, moved)
        chosen = self._chosen(last, moved, places_B1T, seen, fresh_BKS) if moved else []
        blocks = []
        for layer in layers:
            parts = [self._waiting(layer, i, tail, staged) for i in (0, 1)]
            hidden = self._waiting_hidden(layer, tail, staged)
            if moved:
                self._keep_first(layer, parts)
                blocks.append(self._unturned(parts, hidden, moved, places_B1T))
            self._leave(layer, parts, moved)
            if hidden is not None:
                rest = hidden[:, moved:]
                self._tensors["tail_hidden"][:, layer, : rest.shape[1]] = rest
        new: dict[str, Tensor] = {}
        if moved:
            first = self._count[self._lanes[last][0].number]
            rows, bases = codec.encode(blocks, self._group(number))
            new = {f"rows.{name}": row.unsqueeze(1) for name, row in rows.items()}
            at = first // codec.closes_every
            for name, basis in bases.items():
                held = self._tensors[f"bases.{number}.{name}"]
                held[:, at : at + basis.shape[1]] = basis
            if "carried" in self._tensors:
                self._tensors["carried"][:, first : first + moved, -1] = -1
        for layer in layers:
            if moved:
                self._move(layer, new, moved, places_B1T, chosen)
            self._tail_count[layer], self._staged_count[layer] = tail + staged - moved, 0

    def _keep_first(self, layer: int, parts: Sequence[Tensor]) -> None:
        """Keep the first tokens of all exact, when they are encoded."""
        held = self._tensors.get("first")
        if held is None:
            return
        start, room = self._count[self._lanes[layer][0].number], held.shape[4]
        for index, part in enumerate(parts):
            new = part[:, :, : max(0, room - start)]
            held[:, layer, index, :, start : start + new.shape[2]] = new

    def _waiting_places(self, layer: int, moved: int) -> Tensor:
        """Return the positions of the oldest `moved` tokens that wait, [B, 1, moved]."""
        start = self._end[layer] - self._tail_count[layer] - self._staged_count[layer]
        return self._positions(start, start + moved)

    def _unturned(
        self, parts: Sequence[Tensor], hidden: Tensor | None, moved: int, places_B1T: Tensor
    ) -> KVBlock:
        """Return the oldest tokens that wait in float32, keys without their rotation."""
        assert self._rope is not None
        keys, values = (part[:, :, :moved].float() for part in parts)
        keys = undo(keys, *self._rope.table(places_B1T[:, 0]))
        hidden = None if hidden is None else hidden[:, :moved].float()
        if not self._is_regular:
            is_real_B1T1 = (places_B1T >= 0).unsqueeze(-1)
            keys, values = keys * is_real_B1T1, values * is_real_B1T1
            hidden = None if hidden is None else hidden * is_real_B1T1[:, 0]
        return KVBlock(keys, values, places_B1T, hidden)

    def _waiting_hidden(self, layer: int, tail: int, staged: int) -> Tensor | None:
        if not self.wants_hidden:
            return None
        held, index = self._tensors, self._staged_index(layer)
        pieces = [
            held["tail_hidden"][:, layer, :tail],
            held["staged_hidden"][:, index, :staged],
        ]
        return torch.cat(pieces, 1)

    def _leave(self, layer: int, parts: Sequence[Tensor], moved: int) -> None:
        """Keep what is not moved in the exact tail."""
        for area, part in zip(self._tail[layer], parts, strict=True):
            area[:, :, : part.shape[2] - moved] = part[:, :, moved:]

    def _move(
        self,
        layer: int,
        new: Mapping[str, Tensor],
        moved: int,
        places_B1T: Tensor,
        chosen: Sequence[Tensor | None],
    ) -> None:
        """Put tokens behind those in the slots; where some were chosen, only those stay."""
        heads = self.spec.kv_heads
        for lane, chosen_BKs in zip(self._lanes[layer], chosen, strict=True):
            count = self._count[lane.number]
            for name, slots in lane.parts.items():
                if name == "scores":
                    continue
                part = new.get(name)
                if name == "slot_positions":
                    part = places_B1T.expand(-1, heads, -1)
                assert part is not None
                if not name.startswith("rows."):  # rows have no heads
                    part = part[:, lane.heads]
                if chosen_BKs is None:
                    slots[:, :, count : count + moved] = part
                else:
                    keep_only(slots, count, part, chosen_BKs[:, : slots.shape[1]])
            self._count[lane.number] = count + moved if chosen_BKs is None else chosen_BKs.shape[-1]

    def _waiting(self, layer: int, part: int, tail: int, staged: int) -> Tensor:
        """Return the exact tail and the staged chunk as one tensor of its own."""
        pieces = []
        if tail:
            pieces.append(self._tail[layer][part][:, :, :tail])
        if staged:
            pieces.append(self._staged(layer)[part][:, :, :staged])
        return torch.cat(pieces, 2)

    def _encoded(self, layer: int, block: KVBlock) -> dict[str, Tensor]:
        assert isinstance(self._codec, Encode)
        order = self._tensors.get("fixed.order")
        if order is not None and not self._ordered[layer]:
            found = self._codec.order(block)
            if found is None:
                raise MethodError(f"{self._codec} needs channel orders", way_out="pass orders=")
            order[:, layer] = found
            self._ordered[layer] = True
        codes = self._codec.encode(block, self._order(layer))
        return {f"codes.{name}": new for name, new in codes.items()}

    def _scored(self, layer: int, seen: Seen | None) -> Tensor:
        """Return what the method says of all tokens of a layer, float32 [B, K, S]."""
        assert self._select is not None
        end = self._end[layer]
        group = layer // self._select.scores_layers(), end
        if group == self._shared_scores[0]:  # the first layer of the group was asked
            return self._shared_scores[1]
        if self._prepared:
            if seen is None:
                seen = Seen(layer, None, self._positions(end - 1, end)[:, 0])
            seen = replace(seen, prepared=self._prepared)
        scores = self._select.score(self._view(layer), seen, self._generator)
        if self._select.scores_layers() > 1:
            self._shared_scores = (group, scores)
        return scores

    def _remembered(self, layer: int, counts: Sequence[int] | None = None) -> Tensor:
        """Return the scores of the slots of a layer [B, K, S]; -inf where a head has fewer."""
        lanes = self._lanes[layer]
        counts = [self._count[lane.number] for lane in lanes] if counts is None else counts
        pairs = zip(lanes, counts, strict=True)
        return levelled([lane.parts["scores"][:, :, :count] for lane, count in pairs])

    def _remember(self, layer: int, fresh_BKS: Tensor) -> None:
        """Merge new scores of the tokens in the slots into those remembered."""
        assert self._select is not None
        for lane in self._lanes[layer]:
            held = lane.parts["scores"][:, :, : self._count[lane.number]]
            fresh = fresh_BKS[:, lane.heads, : held.shape[2]]
            held.copy_(self._select.merge(held, fresh))

    def _chosen(
        self,
        layer: int,
        moved: int,
        places_B1T: Tensor,
        seen: Seen | None,
        fresh_BKS: Tensor | None,
    ) -> list[Tensor | None]:
        """Return for each lane which of slots + moved tokens stay, [B, k, keep] in order.

        None where all of them fit. Scores are remembered.
        """
        lanes, select = self._lanes[layer], self._select
        if select is None:
            return [None] * len(lanes)
        counts = [self._count[lane.number] for lane in lanes]
        is_over = [n + moved > lane.slots for n, lane in zip(counts, lanes, strict=True)]
        scores = []
        for lane, count in zip(lanes, counts, strict=True):
            held = lane.parts["scores"][:, :, :count]
            fresh = held.new_full((*held.shape[:2], moved), math.inf)
            scores.append(torch.cat([held, fresh], 2))
        if fresh_BKS is None and not self._probes:
            wanted = select.each_chunk and seen is not None and moved > self._plan.tail + 1
            if wanted or any(
                self._asks(lane, part, moved)
                for lane, part, over in zip(lanes, scores, is_over, strict=True)
                if over
            ):
                if seen is None and self.wants_queries:
                    raise MethodError(
                        f"{select} must be shown the queries of every chunk",
                        way_out="call observe(layer, seen) after each layer's attention",
                    )
                fresh_BKS = self._scored(layer, seen)
        chosen: list[Tensor | None] = []
        most, all_scores = max(counts), []
        for lane, count, part, over in zip(lanes, counts, scores, is_over, strict=True):
            if fresh_BKS is not None:
                mine = fresh_BKS[:, lane.heads]
                mine = torch.cat([mine[:, :, :count], mine[:, :, most : most + moved]], 2)
                part = select.merge(part, mine)
            all_scores.append(part)
            held = lane.parts["scores"]
            if not over:
                held[:, :, : count + moved] = part
                chosen.append(None)
                continue
            places = torch.cat(
                [
                    lane.parts["slot_positions"][:, :, :count],
                    places_B1T.expand(-1, part.shape[1], -1),
                ],
                2,
            )
            part = part.masked_fill(places < 0, -math.inf)  # padding goes first
            best = best_of(part, lane.keep)
            held[:, :, : best.shape[-1]] = part.gather(-1, best)
            chosen.append(best)
        if any(is_over):
            self._has_evicted = self._evicted_now = True
            if self._reallocates:
                self._before[layer] = levelled(all_scores)
        self._check_granularity(layer, chosen)
        return chosen

    def _asks(self, lane: Lane, scores: Tensor, moved: int) -> bool:
        """Return whether remembered scores are not enough to choose by."""
        assert self._select is not None
        known = int(scores.isfinite().sum(-1).min())
        drop = scores.shape[2] - lane.keep
        return self._select.each_step or moved > self._plan.tail + 1 or known < drop

    def _check_granularity(self, layer: int, chosen: Sequence[Tensor | None]) -> None:
        """Raise MethodError if heads differ where the rows of a layer cannot."""
        if isinstance(self._codec, EncodeLayers):
            for best_BKs in chosen:
                if best_BKs is not None and bool((best_BKs != best_BKs[:, :1]).any()):
                    raise MethodError(
                        f"{self._select} chose other tokens for other heads of layer {layer}, "
                        f"which {self._codec} cannot keep apart",
                        way_out="a method that selects by layer",
                    )

    # -- private: numbers of tokens of their own ----------------------------------------------

    def _slots_wanted(self, scores: Sequence[Tensor] | None) -> list[int]:
        """Return the slots of every lane as the method wants them, in the same bytes."""
        even = self._even_slots()
        if not self._allocates:
            return even
        assert self._select is not None
        wanted = self._select.allocate(
            scores, self._plan.slots, self.spec, self._prepared, context=self.max_tokens
        )
        if wanted is None:
            return even if scores is None else self._slots()
        if len(wanted) != len(even):
            raise MethodError(
                f"{self._select} shares slots out among another number of "
                f"{'heads' if self._by_head else 'layers'}",
                value=len(wanted),
                allowed=str(len(even)),
            )
        slots = fitted([float(x) for x in wanted], sum(even), self.max_tokens)
        size = self._select.scores_layers()
        groups = [slots[at : at + size] for at in range(0, len(slots), size)]
        return [min(group) for group in groups for _ in group]  # by one score, so as many

    def _reallocate(self) -> None:
        """Ask how many slots lanes should have now, after a chunk that evicted."""
        if not (self._reallocates and self._evicted_now):
            return
        self._evicted_now = False
        layers, before = range(self.spec.layers), self._before
        self._before = {}
        slots = self._slots_wanted([before.get(i, self._remembered(i)) for i in layers])
        if slots == self._slots():
            return
        limit = self._select.limit() if self._select is not None else None
        for lanes in self._lanes:
            for lane in lanes:
                if self._count[lane.number] > slots[lane.number]:
                    self._shrink(lane, kept_tokens(slots[lane.number], limit))
        self._repack(slots)

    def _shrink(self, lane: Lane, keep: int) -> None:
        """Evict from a lane by remembered scores."""
        count = self._count[lane.number]
        scores = lane.parts["scores"][:, :, :count]
        is_pad = lane.parts["slot_positions"][:, :, :count] < 0
        best = best_of(scores.masked_fill(is_pad, -math.inf), keep)
        for part in lane.parts.values():
            keep_only(part, count, part[:, :, :0], best[:, : part.shape[1]])  # rows have no heads
        self._count[lane.number] = keep

    def _repack(self, slots: Sequence[int]) -> None:
        """Move lanes inside the pool until each has its slots; copies one lane at a time."""
        held = [self._count[lane.number] for lanes in self._lanes for lane in lanes]
        for target, numbers in ((held, range(len(slots))), (slots, range(len(slots))[::-1])):
            # First all close together, first to last; then apart, last to first: nothing that has
            # not moved yet is overwritten.
            old = [lane for lanes in self._lanes for lane in lanes]
            self._cut(target)
            new = [lane for lanes in self._lanes for lane in lanes]
            for number in numbers:
                count = held[number]
                moved = {n: p[:, :, :count].clone() for n, p in old[number].parts.items()}
                for name, part in moved.items():
                    new[number].parts[name][:, :, :count] = part


def _check_finite(layer: int, k: Tensor, v: Tensor, largest: float) -> None:
    for name, tensor in (("keys", k), ("values", v)):
        low, high = (float(x) for x in torch.aminmax(tensor))  # NaN fails both comparisons
        if not (-largest <= low and high <= largest):
            raise ModelError(
                f"the {name} of layer {layer} are not finite, or too large for the cache's dtype",
                value=(low, high),
                allowed=f"-{largest:g} to {largest:g}",
                way_out="check the model's weights; a float16 cache may need float32",
            )


def _hash(ids: Sequence[int]) -> str:
    text = ",".join(map(str, ids))
    return "blake2b:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
