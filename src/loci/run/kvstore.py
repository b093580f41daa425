"""The KV store: what every layer remembers of the tokens seen, exact or compressed.

All storage is allocated once, under the ledger, by the table that `predict_store` adds up. A block
of the pool is one row of the batch: [rows, layers, 2, kv heads, tokens, head size].

One step brings up to `chunk` tokens: for each layer `append`, attend to the view it returns,
`observe` where the method wants queries; then `advance`. Tokens that do not fit the slots, or that
are to be encoded, wait in a staging area of one layer and are folded in after that layer attended:
append, attend, then evict. So a step needs room for one layer's chunk above the budget's slots, and
that room is part of the budget. A method that probes the model needs every layer's chunk at once
and `finish_chunk` after each.

The logical length counts all tokens seen; evicted slots are used again, never masked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any  # JSON values; a prefiller's extra attributes

import torch
from torch import Tensor

from loci.core.holder import ShrinkOption, Undo
from loci.core.ledger import Lease, Ledger
from loci.core.method import Need
from loci.core.spec import ModelSpec
from loci.errors import (
    ContextError,
    FingerprintError,
    FormatError,
    MethodError,
    ModelError,
    ParameterError,
)
from loci.methods.kv.base import Chain, Encode, check_chain, store_plan
from loci.nn import native
from loci.nn.kv import TILE_TOKENS, DenseSegment, KVBlock, KVView, Seen, Segment

FORMAT, VERSION = "loci-kv", 1
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint8": torch.uint8,
}

# Shapes: B batch, L layers, K key/value heads, T new tokens, S stored tokens, D head size.


class CodesSegment:
    """Tokens kept as codes, decoded a tile at a time."""

    __slots__ = ("_codec", "_codes", "_head_dim", "clear", "order", "positions_BKS", "tokens")

    def __init__(
        self,
        codec: Encode,
        codes: Mapping[str, Tensor],
        tokens: int,
        head_dim: int,
        positions_BKS: Tensor,
        order: Tensor | None,
        clear: bool,
    ) -> None:
        self._codec, self._codes, self._head_dim = codec, codes, head_dim
        self.tokens, self.order, self.clear = tokens, order, clear
        self.positions_BKS: Tensor | None = positions_BKS

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield decoded keys (in stored order), values, and positions."""
        for start in range(0, self.tokens, TILE_TOKENS):
            stop = min(start + TILE_TOKENS, self.tokens)
            part = {name: codes[:, :, start:stop] for name, codes in self._codes.items()}
            places = self.positions_BKS
            yield (
                *self._codec.decode(part, self._head_dim),
                None if places is None else places[:, :, start:stop],
            )


class KVStore:
    """Keys and values of one batch of rows that advance together.

    Args:
        chain: methods of `loci.methods.kv`, at most one Select then one Encode; () is exact.
        max_tokens: logical tokens per row, kept or not.
        dtype: float32 or float16, of tokens that are not encoded.
        budget_bytes: the most bytes the store may hold; None holds everything.
        chunk: tokens one step appends at most.
        ledger: pays before anything is allocated; None pays nowhere.
        generator: for methods that draw.
        orders: [L, K, D] channel orders for an encoder that is told them.

    Raises:
        BudgetError: if the budget or the ledger is too small.
        MethodError: if the chain cannot work.
    """

    length: int  # logical tokens of each row
    largest: float  # what a key or value may be, in the dtype they are kept in
    _end: list[int]  # logical tokens each layer was given
    _count: list[int]  # tokens in the slots of each layer
    _tail_count: list[int]  # tokens in the exact tail
    _staged_count: list[int]  # tokens in the staging area
    _pending: int | None  # the layer whose tokens wait to be folded in
    _has_evicted: bool
    _is_regular: bool  # every row's token i stands at position i
    _probed: int  # logical tokens that a probe has scored
    _keys: list[tuple[Tensor, Tensor]]
    _tail: list[tuple[Tensor, Tensor]]
    _codes: list[dict[str, Tensor]]

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
        if Need.GENERATOR in needs and generator is None:
            raise MethodError(
                f"{self._select} draws, and needs a seeded generator",
                way_out="KVStore(..., generator=torch.Generator().manual_seed(0))",
            )
        if self._probes and self._evicts and batch > 1:
            raise MethodError(f"{self._select} probes one row at a time", value=batch, allowed="1")
        self._lease: Lease | None = None
        if ledger is not None:
            self._lease = ledger.reserve("kv", tier, self._plan.nbytes, "kv")
        self._tensors = {
            name: torch.empty(shape, dtype=_DTYPES[kind])
            for name, (shape, kind) in self._plan.tensors.items()
        }
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

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> KVView:
        """Add a chunk to one layer and return everything it may attend to.

        Args:
            k: rotated keys [B, K, T, D].
            v: values [B, K, T, D].
            positions: [B, T]; rows padded on the left are recognised by their last position.

        Raises:
            ContextError: if the row would be longer than `max_tokens`.
            ModelError: if a chunk holds a key or value that is not finite.
        """
        tokens = k.shape[2]
        if layer == 0:
            self._begin(k, positions)
        if tokens > 1:
            _check_finite(layer, k, v, self.largest)
        if self._pending is not None and not self._trying:
            self._fold(self._pending, None)
        if self._trying:
            return self._view(layer, self._fresh(layer, k, v, positions[:, None]))
        view = self._take(layer, k, v, tokens)
        self._end[layer] += tokens
        return view

    def observe(self, layer: int, seen: Seen) -> None:
        """Show the store the queries of a chunk, right after that layer attended."""
        if not self._trying and self._pending == layer:
            self._fold(layer, seen)

    def advance(self, tokens: int) -> None:
        """Count a chunk as read, after all layers appended it; evict and encode what is due."""
        if self._trying:
            return
        if self._pending is not None:
            self._fold(self._pending, None)
        self.length += tokens

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
        self._count = [self.length] * self.spec.layers
        self._end = [self.length] * self.spec.layers

    # -- what it holds ------------------------------------------------------------------------

    def held_tokens(self, layer: int) -> int:
        """Return how many tokens a layer still holds, per head."""
        return self._count[layer] + self._tail_count[layer] + self._staged_count[layer]

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
            MethodError: if tokens were evicted, so that what remains is no prefix.
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
        for layer in range(self.spec.layers):
            self._count[layer] = min(self._count[layer], tokens)
            self._tail_count[layer] = tokens - self._count[layer]
        self._end = [tokens] * self.spec.layers
        self.length = tokens
        self._probed = min(self._probed, tokens)

    def reorder(self, rows: Tensor) -> None:
        """Replace row i of the batch by row `rows[i]`, as beam search does."""
        for tensor in self._tensors.values():
            # Layer by layer, so that little is copied at once.
            for part in tensor.unbind(1) if tensor.dim() > 2 else (tensor,):
                part.copy_(part.index_select(0, rows))

    def fork(self) -> KVStore:
        """Return an independent copy, under the same ledger."""
        twin = KVStore(self.spec, self.chain, generator=self._generator, **self._arguments())
        for name, tensor in self._tensors.items():
            twin._tensors[name].copy_(tensor)
        twin._set_state(self._state())
        return twin

    def release(self) -> None:
        """Give all storage back; a second release does nothing."""
        self._tensors = {}
        self._keys, self._tail, self._codes = [], [], []
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
            if name != "staged"
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
        )
        store._set_state(meta["state"])
        try:
            for name, tensor in store._tensors.items():
                if name == "staged":
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
        self._count, self._tail_count = [0] * layers, [0] * layers
        self._staged_count = [0] * layers
        self._pending = None
        self._has_evicted = False
        self._is_regular = True
        self._probed = 0

    def _state(self) -> dict[str, Any]:
        return {
            "length": self.length,
            "count": list(self._count),
            "tail": list(self._tail_count),
            "has_evicted": self._has_evicted,
            "is_regular": self._is_regular,
            "probed": self._probed,
            "ordered": list(self._ordered),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self.length = state["length"]
        self._end = [self.length] * self.spec.layers
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
        layers, held = range(self.spec.layers), self._tensors
        self._keys = []
        self._tail = []
        self._codes = []
        if self._codec is None:
            self._keys = [(held["slots"][:, i, 0], held["slots"][:, i, 1]) for i in layers]
            return
        self._tail = [(held["tail"][:, i, 0], held["tail"][:, i, 1]) for i in layers]
        codes = {n.removeprefix("codes."): t for n, t in held.items() if n.startswith("codes.")}
        self._codes = [{name: tensor[:, i] for name, tensor in codes.items()} for i in layers]

    def _staged(self, layer: int) -> tuple[Tensor, Tensor]:
        place = self._tensors["staged"][:, layer if self._plan.staged_layers > 1 else 0]
        return place[:, 0], place[:, 1]

    def _token_axis(self, name: str) -> int:
        return {"positions": 1, "slots": 4, "tail": 4}.get(name, 3)

    def _used(self, name: str) -> int | None:
        """Return how many tokens of a tensor are in use, None for tensors without tokens."""
        if name.startswith("fixed."):
            return None
        if name == "positions":
            return 0 if self._is_regular else self.length
        return max(self._tail_count) if name == "tail" else max(self._count)

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
            count = self._count[0]
            held = self._tensors["slot_positions"][..., :count]
            held.masked_fill_(is_pad_BS[:, None, None, :count], -1)
        table_BS[:, start:stop] = torch.where(expected_T - pad_B1 < 0, -1, positions)
        self._step_places = table_BS[:, None, start:stop]

    def _positions(self, start: int, stop: int) -> Tensor:
        """Return the positions of logical tokens, [B, 1, tokens]."""
        if self._is_regular:
            return torch.arange(start, stop, dtype=torch.int32).expand(self.batch, 1, -1)
        return self._tensors["positions"][:, None, start:stop]

    def _take(self, layer: int, k: Tensor, v: Tensor, tokens: int) -> KVView:
        """Store a chunk where there is room for it, and return what the layer now sees."""
        past, tail = self._count[layer], self._tail_count[layer]
        places = self._step_places
        if self._codec is None and past + tokens <= self._plan.slots:
            return self._take_slots(layer, k, v, places)
        if self._codec is not None and tail + tokens <= self._plan.tail:
            area, start = self._tail[layer], tail
            self._tail_count[layer] = tail + tokens
            if tail + tokens == self._plan.tail:
                self._pending = layer
        else:
            if self._staged_count[layer]:
                raise MethodError(
                    f"{self._select} was not asked to finish the last chunk",
                    way_out="call finish_chunk(prefiller) after every chunk",
                )
            area, start = self._staged(layer), 0
            self._staged_count[layer] = tokens
            if not self._probes or tokens == 1:
                self._pending = layer
        keys, values = (part[:, :, start : start + tokens] for part in area)
        keys.copy_(k)
        values.copy_(v)
        return self._view(layer, self._fresh(layer, keys, values, places), tail=tail)

    def _take_slots(self, layer: int, k: Tensor, v: Tensor, places: Tensor) -> KVView:
        keys, values = self._keys[layer]
        past = self._count[layer]
        tokens = k.shape[2]
        end = past + tokens
        keys[:, :, past:end] = k
        values[:, :, past:end] = v
        self._count[layer] = end
        if self._select is not None:
            self._tensors["slot_positions"][:, layer, :, past:end] = places
            self._tensors["scores"][:, layer, :, past:end] = math.inf
        if tokens == 1 and self._is_regular:  # a lone query sees everything: one segment, no mask
            return self._one_view(layer, end)
        fresh = self._fresh(layer, keys[:, :, past:end], values[:, :, past:end], places)
        return self._view(layer, fresh, count=past)

    def _one_view(self, layer: int, count: int) -> KVView:
        segment = self._dense(*self._keys[layer], count, self._places(layer, count))
        return KVView(layer, self.spec.kv_heads, (segment,))

    def _fresh(self, layer: int, keys: Tensor, values: Tensor, places: Tensor) -> DenseSegment:
        return DenseSegment(
            keys, values, keys.shape[2], positions_BKS=places, causal=self._is_regular
        )

    def _places(self, layer: int, count: int) -> Tensor | None:
        """Return the positions of a layer's slots; None where slot i stands at position i."""
        if self._select is not None:
            return self._tensors["slot_positions"][:, layer, :, :count]
        return None if self._is_regular else self._tensors["positions"][:, None, :count]

    def _view(
        self,
        layer: int,
        fresh: Segment | None = None,
        *,
        count: int | None = None,
        tail: int | None = None,
    ) -> KVView:
        """Return slots, exact tail, then the waiting chunk or `fresh`.

        Args:
            fresh: the chunk being appended, which the layer's end does not count yet; outside a
                trial it may be what waits in the staging area.
            count, tail: tokens in slots and tail before `fresh`; by default all that is there.
        """
        count = self._count[layer] if count is None else count
        tail = self._tail_count[layer] if tail is None else tail
        is_step = fresh is not None and not self._trying
        staged = 0 if is_step else self._staged_count[layer]
        end = self._end[layer]
        segments: list[Segment] = []
        if count and self._codec is not None:
            places = self._places(layer, count)
            segments.append(
                CodesSegment(
                    self._codec,
                    {name: codes[:, :, :count] for name, codes in self._codes[layer].items()},
                    count,
                    self.spec.head_dim,
                    self._positions(0, count) if places is None else places,
                    self._order(layer),
                    self._is_regular,
                )
            )
        elif count:
            segments.append(self._dense(*self._keys[layer], count, self._places(layer, count)))
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
            scores = self._tensors["scores"][:, layer, :, :count]
        return KVView(layer, self.spec.kv_heads, tuple(segments), scores)

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
                scores = self._select.score(self._view(seen.layer), seen, self._generator)
                held = fresh[seen.layer]
                fresh[seen.layer] = scores if held is None else self._select.merge(held, scores)
        self._probed = self.length
        for layer, scores_BKS in enumerate(fresh):
            if self._staged_count[layer]:
                self._fold(layer, None, scores_BKS)
            elif scores_BKS is not None:
                held_BKS = self._tensors["scores"][:, layer, :, : self._count[layer]]
                held_BKS.copy_(self._select.merge(held_BKS, scores_BKS[:, :, : self._count[layer]]))

    def _fold(self, layer: int, seen: Seen | None, fresh_BKS: Tensor | None = None) -> None:
        """Move what waits into the slots: encode it, and evict where there are too few slots."""
        self._pending = None
        count, tail, staged = (
            self._count[layer],
            self._tail_count[layer],
            self._staged_count[layer],
        )
        rest = (tail + staged) % self._plan.tail if self._codec is not None else 0
        moved = tail + staged - rest
        end = self._end[layer]
        places_B1T = self._positions(end - tail - staged, end - rest)
        chosen_BKs = None
        if count + moved > self._plan.slots:
            chosen_BKs = self._choose(layer, count, moved, places_B1T, seen, fresh_BKS)
        parts = [self._waiting(layer, i, tail, staged) for i in (0, 1)]
        keys, values = (part[:, :, :moved] for part in parts)
        if self._codec is not None:
            for area, part in zip(self._tail[layer], parts, strict=True):
                area[:, :, :rest] = part[:, :, moved:]
            pairs = self._encoded(layer, KVBlock(keys, values, places_B1T))
        else:
            pairs = list(zip(self._keys[layer], (keys, values), strict=True))
        if self._select is not None:
            heads = self.spec.kv_heads
            held = self._tensors["slot_positions"][:, layer]
            pairs.append((held, places_B1T.expand(-1, heads, -1)))
            if chosen_BKs is None:
                fresh = held.new_full((self.batch, heads, moved), math.inf, dtype=torch.float32)
                pairs.append((self._tensors["scores"][:, layer], fresh))
        for slots, new in pairs:
            if chosen_BKs is None:
                slots[:, :, count : count + moved] = new
            else:
                _keep(slots, count, new, chosen_BKs)
        self._count[layer] = count + moved if chosen_BKs is None else chosen_BKs.shape[-1]
        self._tail_count[layer], self._staged_count[layer] = rest, 0

    def _waiting(self, layer: int, part: int, tail: int, staged: int) -> Tensor:
        """Return the exact tail and the staged chunk as one tensor of its own."""
        pieces = []
        if tail:
            pieces.append(self._tail[layer][part][:, :, :tail])
        if staged:
            pieces.append(self._staged(layer)[part][:, :, :staged])
        return torch.cat(pieces, 2)

    def _encoded(self, layer: int, block: KVBlock) -> list[tuple[Tensor, Tensor]]:
        assert self._codec is not None
        order = self._tensors.get("fixed.order")
        if order is not None and not self._ordered[layer]:
            found = self._codec.order(block)
            if found is None:
                raise MethodError(f"{self._codec} needs channel orders", way_out="pass orders=")
            order[:, layer] = found
            self._ordered[layer] = True
        codes = self._codec.encode(block, self._order(layer))
        return [(self._codes[layer][name], new) for name, new in codes.items()]

    def _choose(
        self,
        layer: int,
        count: int,
        moved: int,
        places_B1T: Tensor,
        seen: Seen | None,
        fresh_BKS: Tensor | None,
    ) -> Tensor:
        """Return which of slots + moved tokens stay, [B, K, keep] in order; remember scores."""
        select = self._select
        assert select is not None
        batch, heads = self.batch, self.spec.kv_heads
        held = self._tensors["scores"][:, layer]
        infinite = held.new_full((batch, heads, moved), math.inf)
        scores = torch.cat([held[:, :, :count], infinite], 2)
        drop = count + moved - self._plan.keep
        if fresh_BKS is None and not self._probes:
            known = int(scores.isfinite().sum(-1).min())
            if select.each_step or moved > self._plan.tail + 1 or known < drop:
                if seen is None and self.wants_queries:
                    raise MethodError(
                        f"{select} must be shown the queries of every chunk",
                        way_out="call observe(layer, seen) after each layer's attention",
                    )
                fresh_BKS = select.score(self._view(layer), seen, self._generator)
        if fresh_BKS is not None:
            scores = select.merge(scores, fresh_BKS[:, :, : count + moved])
        places = torch.cat(
            [
                self._tensors["slot_positions"][:, layer, :, :count],
                places_B1T.expand(-1, heads, -1),
            ],
            2,
        )
        scores = scores.masked_fill(places < 0, -math.inf)  # padding goes first
        newest_first = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        chosen = (count + moved - 1) - newest_first[..., : self._plan.keep]
        chosen = chosen.sort(dim=-1).values
        held[:, :, : chosen.shape[-1]] = scores.gather(-1, chosen)
        self._has_evicted = True
        return chosen


def _keep(slots: Tensor, count: int, new: Tensor, chosen_BKs: Tensor) -> None:
    """Overwrite slots by the chosen ones of slots[:count] + new."""
    both = torch.cat([slots[:, :, :count], new.to(slots.dtype)], 2)
    index = chosen_BKs.reshape(*chosen_BKs.shape, *([1] * (both.dim() - 3)))
    index = index.expand(*chosen_BKs.shape, *both.shape[3:])
    slots[:, :, : chosen_BKs.shape[-1]] = both.gather(2, index)


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
