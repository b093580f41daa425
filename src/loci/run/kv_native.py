"""What kernels need to decode a token straight from a store, compressed or not.

A kernel appends keys and values itself and reads what is stored where it lies: exact tokens by
layer or by head, and codes of the forms it knows. It does so until something has to be evicted or
encoded; that step goes through the store, and the next ones through the kernel again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from loci.core.method import Need
from loci.methods.kv.base import CodeForm, Encode, EncodeLayers, LatentForm, LevelForm
from loci.nn import native
from loci.nn.kv import FirstTokens
from loci.nn.native import Side
from loci.run.kv_pool import Pool

OTHER_SPANS = 2  # of a head, beside its first tokens: codes, and the tail

# Shapes: K key/value heads, k heads of a lane, S stored tokens, D head size.


class NativeSteps:
    """Hands a pool's places to kernels, and counts what they put there."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._form = _form_of(pool)
        self._latent = _latent_of(pool)
        select = pool.select
        self._asks_queries = select is not None and Need.QUERIES in select.about.needs
        self._levels = native.Levels(*self._form) if isinstance(self._form, LevelForm) else None
        self._steps_9 = torch.tensor(self._latent.steps if self._latent is not None else ())
        self._used: dict[tuple[str, int], int] = {}  # directions of a layer that have bits
        self._spans: list[native.Spans] = []  # by row of the batch
        self._next: Tensor | None = None  # the slot every lane's heads use next, of one row
        self._seen: tuple[object, ...] = ()  # what the spans were made for

    def pasts(self, with_spans: bool) -> list[native.Past] | None:
        """Return where the next keys and values of each row go; None where a kernel may not.

        Args:
            with_spans: the kernel takes one token a row, and stretches.
        """
        pool = self._pool
        if pool.is_trial or not pool.is_regular:
            return None
        if pool.select is None and pool.codec is None:
            return self._plain()
        if not with_spans or not self._has_room():
            return None
        if self._seen != self._state():
            rows = [self._row_spans(row) for row in range(pool.batch)]
            self._spans = [spans for spans in rows if spans is not None]
            self._next = self._next_slots()
            self._seen = self._state()
        if len(self._spans) < pool.batch:
            return None
        return [native.Past(0, 0, 0, 0, 0, 0, 0, pool.length, spans) for spans in self._spans]

    @property
    def is_full(self) -> bool:
        """Whether the tail must be encoded before there is room for a token."""
        pool = self._pool
        return pool.codec is not None and max(pool.tail_count) >= pool.plan.tail

    def took(self, tokens: int) -> None:
        """Count tokens whose keys and values were written to where `pasts` said."""
        pool = self._pool
        pool.length += tokens
        pool.end = [pool.length] * pool.spec.layers
        if pool.select is None and pool.codec is None:
            # Layers that no kernel reads have counted their tokens themselves.
            pool.count = [pool.length] * pool.spec.layers
            return
        if pool.codec is not None:
            pool.tail_count = [count + tokens for count in pool.tail_count]
        else:
            pool.count = [count + tokens for count in pool.count]
        for spans in self._spans:
            spans.grow()
        if self._next is not None:
            pool.tensors["slot_positions"].flatten(1).index_fill_(1, self._next, pool.length - 1)
            pool.tensors["scores"].flatten(1).index_fill_(1, self._next, math.inf)
            self._next += 1
        self._seen = self._state()

    def _plain(self) -> list[native.Past]:
        pool = self._pool
        slots = pool.tensors["slots"]
        size, count = slots.element_size(), pool.length
        row, layer, part, head, token, _ = slots.stride()
        base, half = slots.data_ptr(), int(pool.dtype == torch.float16)
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
            for index in range(pool.batch)
        ]

    def _has_room(self) -> bool:
        """Return whether one more token evicts nothing, and where tokens go, encodes nothing."""
        pool = self._pool
        if pool.spec.window is not None or any(pool.staged_count):
            return False
        if pool.codec is not None:
            is_read = self._form is not None or self._latent is not None
            # What fills the tail is encoded after the step. Who goes then is decided by scores, for
            # which some methods must have seen the queries of the step.
            room = pool.plan.tail - max(pool.tail_count)
            return is_read and room > self._asks_queries
        lanes = (lane for lanes in pool.lanes for lane in lanes)
        return all(pool.count[lane.number] < lane.slots for lane in lanes)

    def _state(self) -> tuple[object, ...]:
        """Return what spans depend on: whoever else changes the pool changes this."""
        pool = self._pool
        return pool.length, tuple(pool.count), tuple(pool.tail_count), pool.cuts

    def _row_spans(self, row: int) -> native.Spans | None:
        """Return where a row's tokens lie; None where first tokens have too many gaps."""
        pool, spec = self._pool, self._pool.spec
        spans = native.Spans(spec.layers, spec.kv_heads)
        for layer, lanes in enumerate(pool.lanes):
            if self._latent is not None:
                self._add_latent(spans, row, layer)
                continue
            fixed, first = pool.fixed(layer), pool.first(layer)
            for lane in lanes:
                count = pool.count[lane.number]
                for index, head in enumerate(range(*lane.heads.indices(spec.kv_heads))):
                    parts = {name: part[row, index] for name, part in lane.parts.items()}
                    if pool.codec is None:
                        spans.add_exact(layer, head, parts["keys"], parts["values"], count)
                        continue
                    runs = self._exact_first(parts, first, count)
                    if runs is None:
                        return None
                    exact = 0
                    for run in runs:
                        assert first is not None
                        keys, values = (x[row, head, run.start :] for x in first.both)
                        spans.add_exact(layer, head, keys, values, len(run))
                        exact += len(run)
                    if count > exact:
                        codes = {
                            name.removeprefix("codes."): part[exact:]
                            for name, part in parts.items()
                            if name.startswith("codes.")
                        }
                        own = {name: held[row, head] for name, held in fixed.items()}
                        self._add_codes(spans, layer, head, codes, own, count - exact)
                    keys, values = (part[row, head] for part in pool.tail[layer])
                    spans.add_exact(layer, head, keys, values, pool.tail_count[layer])
        return spans

    def _exact_first(
        self, parts: Mapping[str, Tensor], first: FirstTokens | None, count: int
    ) -> list[range] | None:
        """Return which first tokens a head's first slots hold, in runs; None of too many."""
        if first is None:
            return []
        places = range(min(count, first.count))
        if self._pool.select is None:
            return [places] if places else []
        runs: list[range] = []
        for place in parts["slot_positions"][: len(places)].tolist():
            if place >= first.count:
                break
            if runs and place == runs[-1].stop:
                runs[-1] = range(runs[-1].start, place + 1)
            else:
                runs.append(range(place, place + 1))
        return runs if len(runs) <= native.MAX_SPANS - OTHER_SPANS else None

    def _add_codes(
        self,
        spans: native.Spans,
        layer: int,
        head: int,
        codes: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        count: int,
    ) -> None:
        if isinstance(self._form, LevelForm):
            assert self._levels is not None
            spans.add_levels(layer, head, codes, fixed, self._levels, count=count)
            return
        assert self._form is not None
        spans.add_coded(
            layer,
            head,
            codes,
            bits=self._form.bits,
            block=self._form.block,
            group=self._form.group,
            order_D=fixed.get("order"),
            count=count,
        )

    def _add_latent(self, spans: native.Spans, row: int, layer: int) -> None:
        """Add the first tokens, those in directions, and the exact tail of a layer."""
        pool = self._pool
        (lane,) = pool.lanes[layer]
        count, skipped, heads = pool.count[lane.number], 0, range(pool.spec.kv_heads)
        first = pool.first(layer)
        if first is not None and count:
            skipped = min(count, first.count)
            keys, values = (part[row] for part in first.both)
            for head in heads:
                spans.add_exact(layer, head, keys[head], values[head], skipped)
        if count > skipped:
            assert pool.rope is not None
            sides = [self._side(name, row, layer, skipped) for name in ("keys", "values")]
            spans.add_latent(
                layer,
                *sides,
                steps_9=self._steps_9,
                frequencies=pool.rope.frequencies,
                position=skipped,
                count=count - skipped,
            )
        for head in heads:
            keys, values = (part[row, head] for part in pool.tail[layer])
            spans.add_exact(layer, head, keys, values, pool.tail_count[layer])

    def _side(self, name: str, row: int, layer: int, skipped: int) -> Side:
        pool = self._pool
        assert pool.codec is not None
        shared = f"shared.{pool.codec.about.name}.{name}"
        (lane,) = pool.lanes[layer]
        held = pool.tensors
        rows = lane.parts[f"rows.{name}"][row, 0, skipped:]
        ways, mean = held[shared][layer], held[f"{shared}_mean"][layer]
        if not self._steps_9.numel():
            return Side(rows, ways, mean, len(ways))
        bits = held[f"{shared}_bits"][layer]
        if (name, layer) not in self._used:
            self._used[name, layer] = int((bits > 0).sum())
        gains = lane.parts[f"rows.{name}_gain"][row, 0, skipped:, 0]
        size = held[f"{shared}_size"][layer]
        return Side(rows, ways, mean, self._used[name, layer], gains, size, bits)

    def _next_slots(self) -> Tensor | None:
        """Return the next slot of each head of each lane, in a row's flat slots; None without."""
        pool = self._pool
        if pool.select is None or pool.codec is not None:
            return None
        found, first = [], 0
        for lane in (lane for lanes in pool.lanes for lane in lanes):
            for _ in range(*lane.heads.indices(pool.spec.kv_heads)):
                found.append(first + pool.count[lane.number])
                first += lane.slots
        return torch.tensor(found)


def _form_of(pool: Pool) -> CodeForm | LevelForm | None:
    codec = pool.codec
    if not isinstance(codec, Encode) or not native.available():
        return None
    form = codec.code_form(pool.spec.head_dim)
    if isinstance(form, LevelForm):
        return form if native.turns(pool.spec.head_dim) else None
    return form if form is not None and native.handles(form.bits) else None


def _latent_of(pool: Pool) -> LatentForm | None:
    codec, spec = pool.codec, pool.spec
    if not isinstance(codec, EncodeLayers) or not native.available():
        return None
    if pool.select is not None or not pool.is_stacked or spec.kv_heads * spec.head_dim % 16:
        return None
    return codec.latent_form()
