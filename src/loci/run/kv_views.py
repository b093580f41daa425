"""What a layer of a KV store holds, as the view that attention reads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from loci.methods.kv.base import Encode, EncodeLayers
from loci.nn.kv import DenseSegment, FetchedSegment, KVView, RaggedSegment, Segment
from loci.run.kv_lanes import Lane
from loci.run.kv_pool import Pool
from loci.run.kv_segments import ChosenChunks, CodesSegment, LayersSegment

# Shapes: B batch, K key/value heads, S stored tokens, D head size.


def view(
    pool: Pool,
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
    lanes = pool.lanes[layer]
    counts = [pool.count[lane.number] for lane in lanes] if counts is None else counts
    tail = pool.tail_count[layer] if tail is None else tail
    is_step = fresh is not None and not pool.is_trial
    staged = 0 if is_step else pool.staged_count[layer]
    end = pool.end[layer]
    segments: list[Segment] = []
    if max(counts):
        chosen = chosen_segment(pool, layer, counts[0], fresh)
        segments += [chosen] if chosen else slot_segments(pool, layer, counts)
    if tail:
        places = pool.positions(end - staged - tail, end - staged)
        segments.append(_dense(pool, *pool.tail[layer], tail, places))
    if staged:
        places = pool.positions(end - staged, end)
        segments.append(_dense(pool, *pool.staged(layer), staged, places))
    if fresh is not None:
        segments.append(fresh)
    scores = None
    if pool.select is not None:
        scores = pool.remembered(layer, counts)
    return KVView(layer, pool.spec.kv_heads, tuple(segments), scores)


def with_bank(pool: Pool, shown: KVView) -> KVView:
    """Return a view that also fetches what was dropped."""
    held = 0 if pool.bank is None else pool.bank.held(shown.layer)
    if pool.bank is None or not held:
        return shown
    bank = FetchedSegment(pool.bank, shown.layer, held)
    return KVView(shown.layer, shown.heads, (*shown.segments, bank), shown.scores_BKS)


def fresh_segment(pool: Pool, keys: Tensor, values: Tensor, places: Tensor) -> DenseSegment:
    """Return the chunk that is being appended, as a segment."""
    return DenseSegment(keys, values, keys.shape[2], positions_BKS=places, causal=pool.is_regular)


def slot_segments(pool: Pool, layer: int, counts: Sequence[int]) -> list[Segment]:
    """Return what the slots of a layer hold; by head, where heads hold unequal numbers.

    First tokens that are exact stand by themselves where it is known which slots they have.
    """
    lanes, first = pool.lanes[layer], pool.first(layer)
    if len(lanes) > 1:
        parts = [_lane_segment(pool, lane, n) for lane, n in zip(lanes, counts, strict=True)]
        for part in parts:
            part.order = None  # it is that of all heads together
        return [RaggedSegment(parts, pool.order(layer))]
    if first is None or not isinstance(pool.codec, Encode) or pool.select or not pool.is_regular:
        return [_lane_segment(pool, lanes[0], counts[0])]
    apart = min(first.count, counts[0])
    exact = _dense(pool, first.keys, first.values, apart, pool.positions(0, apart))
    rest = counts[0] - apart
    return [exact, *([_lane_segment(pool, lanes[0], rest, apart)] if rest else [])]


def chosen_segment(
    pool: Pool, layer: int, count: int, fresh: Segment | None
) -> FetchedSegment | None:
    """Return what one new token chooses from; None where all is read."""
    codec = pool.codec
    if fresh is None or fresh.tokens > 1 or not isinstance(codec, EncodeLayers):
        return None
    if codec.landmarks is None:
        return None
    (lane,) = pool.lanes[layer]
    whole = _lane_segment(pool, lane, count)
    assert isinstance(whole, LayersSegment)
    held = pool.tensors["landmarks"][:, layer, :, : count // codec.landmarks.tokens]
    chunks = ChosenChunks(whole, held, codec.landmarks.chunks)
    return None if chunks.are_all else FetchedSegment(chunks, layer, count)


def _lane_segment(pool: Pool, lane: Lane, count: int, skipped: int = 0) -> Segment:
    """Return what a lane holds; of codes, without the first ones where some are skipped."""
    places = _places(pool, lane, count)
    if pool.codec is None:
        return _dense(pool, lane.parts["keys"], lane.parts["values"], count, places)
    if places is None:
        places = pool.positions(skipped, skipped + count)
    if isinstance(pool.codec, EncodeLayers):
        return _layers_segment(pool, pool.codec, lane.layer, count, places)
    codes = {
        name.removeprefix("codes."): tensor[:, :, skipped : skipped + count]
        for name, tensor in lane.parts.items()
        if name.startswith("codes.")
    }
    return CodesSegment(
        pool.codec,
        codes,
        pool.fixed(lane.layer, lane.heads),
        count,
        pool.spec.head_dim,
        places,
        pool.is_regular,
        None if skipped else pool.first(lane.layer, lane.heads),
    )


def _places(pool: Pool, lane: Lane, count: int) -> Tensor | None:
    """Return the positions of a lane's slots; None where slot i stands at position i."""
    if pool.select is not None:
        return lane.parts["slot_positions"][:, :, :count]
    return None if pool.is_regular else pool.tensors["positions"][:, None, :count]


def _layers_segment(
    pool: Pool, codec: EncodeLayers, layer: int, count: int, places: Tensor
) -> LayersSegment:
    number = pool.group_of[layer]
    assert pool.rope is not None
    carried = pool.tensors.get("carried")
    return LayersSegment(
        codec,
        pool.group(number),
        layer,
        _rows_of(pool, layer, count),
        pool.of_group("bases", number, -(-count // codec.closes_every)),
        count,
        places,
        pool.rope,
        None if carried is None else carried[:, :count],
        pool.is_regular,
        pool.first(layer),
    )


def _rows_of(pool: Pool, layer: int, count: int) -> dict[str, Tensor]:
    lane = pool.lanes[pool.groups[pool.group_of[layer]][0]][0]
    return {
        name.removeprefix("rows."): part[:, 0, :count]
        for name, part in lane.parts.items()
        if name.startswith("rows.")
    }


def _dense(
    pool: Pool, keys: Tensor, values: Tensor, tokens: int, places: Tensor | None
) -> DenseSegment:
    segment = DenseSegment(keys, values, tokens, positions_BKS=places)
    segment.clear = pool.is_regular
    return segment
