"""New tokens of a KV store: where they go, and what their layer then sees."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loci.errors import ContextError, MethodError, ModelError, ParameterError
from loci.nn.kv import KVView
from loci.run.kv_pool import Pool
from loci.run.kv_views import fresh_segment, slot_segments, view

# Shapes: B batch, K key/value heads, T new tokens, S stored tokens, D head size.


def begin(pool: Pool, k: Tensor, positions: Tensor, chunk: int) -> None:
    """Note where the tokens of a step stand; raise unless they fit."""
    batch, heads, tokens, size = k.shape
    if (batch, heads, size) != (pool.batch, pool.spec.kv_heads, pool.spec.head_dim):
        raise ParameterError(
            "these keys do not fit the store",
            value=tuple(k.shape),
            allowed=f"[{pool.batch}, {pool.spec.kv_heads}, T, {pool.spec.head_dim}]",
        )
    if tokens > chunk:
        raise ParameterError(
            "a step appends at most one chunk",
            value=tokens,
            allowed=f"<= {chunk}",
            way_out="split the prompt into chunks",
        )
    start, stop = pool.length, pool.length + tokens
    if pool.is_trial:
        return
    if stop > pool.max_tokens:
        raise ContextError(
            f"{stop} tokens do not fit a KV store made for {pool.max_tokens}",
            value=stop,
            allowed=f"<= {pool.max_tokens}",
            way_out="open the plan with a larger --context",
        )
    expected_T = torch.arange(start, stop)
    if pool.is_regular and bool((positions == expected_T).all()):
        pool.step_places = expected_T.to(torch.int32).expand(batch, 1, tokens)
        return
    table_BS = pool.tensors["positions"]
    if pool.is_regular:
        table_BS[:, :start] = torch.arange(start)
        pool.is_regular = False
    # Slots that would stand before position 0 are padding; real positions are kept as given.
    pad_B1 = (stop - 1) - positions[:, -1:]
    is_pad_BS = torch.arange(start) < pad_B1  # a chunk of nothing but padding hides its length
    table_BS[:, :start].masked_fill_(is_pad_BS, -1)
    if pool.select is not None and not pool.has_evicted:
        for lane in (lane for lanes in pool.lanes for lane in lanes):
            count = pool.count[lane.number]
            held = lane.parts["slot_positions"][:, :, :count]
            held.masked_fill_(is_pad_BS[:, None, :count], -1)
    table_BS[:, start:stop] = torch.where(expected_T - pad_B1 < 0, -1, positions)
    pool.step_places = table_BS[:, None, start:stop]


def take(
    pool: Pool, layer: int, k: Tensor, v: Tensor, hidden: Tensor | None
) -> tuple[KVView, bool]:
    """Store a chunk where there is room for it.

    Returns what the layer now sees, and whether tokens are due to be folded in once it attended.
    """
    tokens, is_due = k.shape[2], False
    tail, places = pool.tail_count[layer], pool.step_places
    if pool.codec is None and all(
        pool.count[lane.number] + tokens <= lane.slots for lane in pool.lanes[layer]
    ):
        return _take_slots(pool, layer, k, v, places), False
    is_last = layer == pool.groups[pool.group_of[layer]][-1]
    if pool.codec is not None and tail + tokens <= pool.plan.tail:
        area, start, where = pool.tail[layer], tail, "tail_hidden"
        pool.tail_count[layer] = tail + tokens
        if tail + tokens == pool.plan.tail and is_last:
            is_due = True
    else:
        if pool.staged_count[layer]:
            raise MethodError(
                f"{pool.select} was not asked to finish the last chunk",
                way_out="call finish_chunk(prefiller) after every chunk",
            )
        area, start, where = pool.staged(layer), 0, "staged_hidden"
        pool.staged_count[layer] = tokens
        if is_last and (not pool.probes or tokens == 1):
            is_due = True
    if hidden is not None and pool.wants_hidden:
        index = layer if where == "tail_hidden" else pool.staged_index(layer)
        pool.tensors[where][:, index, start : start + tokens] = hidden
    keys, values = (part[:, :, start : start + tokens] for part in area)
    keys.copy_(k)
    values.copy_(v)
    return view(pool, layer, fresh_segment(pool, keys, values, places), tail=tail), is_due


def check_finite(layer: int, k: Tensor, v: Tensor, largest: float) -> None:
    """Raise ModelError if a key or value is not finite, or larger than that."""
    for name, tensor in (("keys", k), ("values", v)):
        low, high = (float(x) for x in torch.aminmax(tensor))  # NaN fails both comparisons
        if not (-largest <= low and high <= largest):
            raise ModelError(
                f"the {name} of layer {layer} are not finite, or too large for the cache's dtype",
                value=(low, high),
                allowed=f"-{largest:g} to {largest:g}",
                way_out="check the model's weights; a float16 cache may need float32",
            )


def _take_slots(pool: Pool, layer: int, k: Tensor, v: Tensor, places: Tensor) -> KVView:
    tokens, lanes = k.shape[2], pool.lanes[layer]
    pasts = [pool.count[lane.number] for lane in lanes]
    for lane, past in zip(lanes, pasts, strict=True):
        end = past + tokens
        lane.parts["keys"][:, :, past:end] = k[:, lane.heads]
        lane.parts["values"][:, :, past:end] = v[:, lane.heads]
        pool.count[lane.number] = end
        if pool.select is not None:
            lane.parts["slot_positions"][:, :, past:end] = places
            lane.parts["scores"][:, :, past:end] = math.inf
    if tokens == 1 and pool.is_regular:  # a lone query sees everything: one segment, no mask
        counts = [past + 1 for past in pasts]
        return KVView(layer, pool.spec.kv_heads, tuple(slot_segments(pool, layer, counts)))
    if len(lanes) > 1:
        return view(pool, layer, fresh_segment(pool, k, v, places), counts=pasts)
    past, end = pasts[0], pasts[0] + tokens
    keys, values = (lanes[0].parts[name][:, :, past:end] for name in ("keys", "values"))
    return view(pool, layer, fresh_segment(pool, keys, values, places), counts=pasts)
