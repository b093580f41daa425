"""Attention over the segments of a KV view: one exact softmax, merged by log-sum-exp.

With o_i and lse_i of disjoint sets of keys, the attention over all of them is
sum_i softmax(lse)_i o_i, and its own log-sum-exp is logsumexp(lse). So exact tails, codes that are
decoded tile by tile, and anything retrieved merge into one softmax without a score matrix of all
keys. Query heads of one group are rows against the same keys: grouped-query attention never
repeats keys in memory.

Visibility goes by positions: a key is seen by queries at its own position or later, within the
sliding window where there is one; a negative position is padding and sees and shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn import native
from loci.nn.kv import DenseSegment, FetchedSegment, KVView, RaggedSegment, Seen, Segment

TILE_SCORES = 2**20  # float32 scores computed at once on the masked path: 4 MiB

# Shapes: B batch, H query heads, K key/value heads, G query heads per KV head, T queries,
# S stored tokens, R = G * T rows of one KV head, D head size.


def attend(
    q: Tensor,
    view: KVView,
    *,
    positions: Tensor,
    pad: Tensor | None = None,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
    kernels: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return what the queries read from all segments of a view, and the log-sum-exp.

    Args:
        q: rotated queries [B, H, T, D].
        positions: [B, T] of the queries; negative marks padding.
        pad: [B] left-padding counts of rows whose segments carry no padding marks of their own:
            slot s of the whole view then stands at position s - pad.
        scale: what products are multiplied with, usually D ** -0.5.
        window: a key is seen only by queries less than `window` positions after it.
        out: [B, H, T, D] float32 to write into.
        kernels: False leaves the native kernels alone.

    Returns:
        o [B, H, T, D] float32, zero where nothing is visible, and lse [B, H, T] float32, -inf
        there.
    """
    batch, heads, count, size = q.shape
    if heads % view.heads:
        raise ParameterError(
            f"query heads must be a multiple of KV heads; got {heads} and {view.heads}"
        )
    groups = heads // view.heads
    queries = q if q.dtype == torch.float32 else q.float()
    grouped_BKGTD = queries.reshape(batch, view.heads, groups, count, size)
    if window is not None and int(positions.max()) < window:
        window = None  # nothing can be that old yet
    masked = window is not None or pad is not None
    o, lse = _merged(grouped_BKGTD, view, positions, pad, scale, window, masked, kernels)
    o_BHTD = o.reshape(batch, heads, count, size)
    lse_BHT = lse.reshape(batch, heads, count)
    if out is not None:
        out.copy_(o_BHTD)
        o_BHTD = out
    return o_BHTD, lse_BHT


def merge(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the attention over the union of two disjoint sets of keys.

    Each side is (o [..., D], lse [...]); a side that saw nothing has lse -inf and weighs nothing.
    """
    (o_left, lse_left), (o_right, lse_right) = left, right
    lse = torch.logaddexp(lse_left, lse_right)
    base = torch.where(lse == -math.inf, 0.0, lse)  # -inf minus -inf would be NaN
    o = o_left * (lse_left - base).exp_().unsqueeze(-1)
    o.addcmul_(o_right, (lse_right - base).exp_().unsqueeze(-1))
    return o, lse


def attention_mass(
    q: Tensor, view: KVView, *, positions: Tensor, scale: float, reduce: str = "mean"
) -> Tensor:
    """Return how much each stored token is attended to, float32 [B, K, S].

    The softmax runs over all tokens of the view that a query may see. Query heads of one group
    and all queries are reduced together.

    Args:
        q: rotated queries [B, H, T, D].
        positions: [B, T]; queries that are padding count as attending to nothing.
        reduce: "mean" or "max", over queries and the heads of a group.
    """
    batch, heads, count, size = q.shape
    grouped_BKGTD = q.float().reshape(batch, view.heads, -1, count, size)
    stored = sum(segment.tokens for segment in view.segments)
    fetches = any(isinstance(segment, FetchedSegment) for segment in view.segments)
    if not fetches and 0 < batch * heads * count * stored <= TILE_SCORES:
        return _mass_at_once(grouped_BKGTD, view, positions, scale, reduce)
    # By positions throughout: these may be the last queries of a chunk that the view ends with.
    _, lse_BKGT = _merged(grouped_BKGTD, view, positions, None, scale, None, True)
    base_BKGT = torch.where(lse_BKGT == -math.inf, 0.0, lse_BKGT)
    masses, first = [], 0
    for segment in view.segments:
        ordered = _in_order(grouped_BKGTD, segment)
        for keys_BKsD, _, places in segment.tiles():
            stored = keys_BKsD.shape[2]
            if places is None:
                places = torch.arange(first, first + stored, device=q.device).view(1, 1, -1)
            first += stored
            mass_BKs = q.new_zeros(batch, view.heads, stored, dtype=torch.float32)
            step = max(1, TILE_SCORES // (batch * heads * stored))
            for start in range(0, count, step):
                tile = ordered[:, :, :, start : start + step]
                scores = tile @ keys_BKsD.unsqueeze(2).transpose(-1, -2) * scale
                now = positions[:, None, start : start + step, None]
                hidden = (places[:, :, None] < 0) | (places[:, :, None] > now)
                scores = (scores - base_BKGT[:, :, :, start : start + step, None]).exp_()
                scores.masked_fill_(hidden.unsqueeze(2), 0.0)
                if reduce == "max":
                    mass_BKs = torch.maximum(mass_BKs, scores.amax(dim=(2, 3)))
                else:
                    mass_BKs += scores.sum(dim=(2, 3)) / (grouped_BKGTD.shape[2] * count)
            masses.append(mass_BKs)
    return torch.cat(masses, 2)


def _mass_at_once(
    q_BKGTD: Tensor, view: KVView, positions_BT: Tensor, scale: float, reduce: str
) -> Tensor:
    """Return `attention_mass` with all scores in memory."""
    now_B1T1, first = positions_BT[:, None, :, None], 0
    scores, hidden = [], []
    for segment in view.segments:
        rows_BKRD = _in_order(q_BKGTD, segment).flatten(2, 3)
        for keys_BKsD, places in _keys_of(segment):
            stop = first + keys_BKsD.shape[2]
            if places is None:
                places = torch.arange(first, stop, device=q_BKGTD.device).view(1, 1, -1)
            first = stop
            places_BK1s = places[:, :, None]
            scores.append(rows_BKRD @ keys_BKsD.transpose(-1, -2))
            hidden.append(
                ((places_BK1s < 0) | (places_BK1s > now_B1T1)).expand(
                    len(q_BKGTD), view.heads, -1, -1
                )
            )
    scores_BKGTS = torch.cat(scores, -1).unflatten(2, q_BKGTD.shape[2:4]).mul_(scale)
    scores_BKGTS.masked_fill_(torch.cat(hidden, -1).unsqueeze(2), -math.inf)
    mass_BKGTS = scores_BKGTS.softmax(-1).nan_to_num_(0.0)  # who sees nothing gives nothing
    return mass_BKGTS.amax((2, 3)) if reduce == "max" else mass_BKGTS.mean((2, 3))


def _keys_of(segment: Segment) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield keys in float32, and positions; values are left where they are."""
    if isinstance(segment, DenseSegment):
        yield segment.keys().float(), segment.positions_BKS
        return
    yield from ((keys, places) for keys, _, places in segment.tiles())


def attention_sums(view: KVView, seen: Seen) -> Tensor:
    """Return what each token of row 0 gets from all queries, the mean over heads, [S]."""
    assert seen.queries is not None
    queries_BHTD, count = seen.queries, seen.queries.shape[2]
    scale = queries_BHTD.shape[-1] ** -0.5
    mass_BKS = attention_mass(queries_BHTD, view, positions=seen.positions, scale=scale)
    return mass_BKS[0].mean(0) * count


def head_votes(q: Tensor, view: KVView, positions: Tensor) -> Tensor:
    """Return what the queries of each head give to each stored token, summed, [B, H, S].

    Args:
        q: rotated queries [B, H, T, D].
        positions: [B, T].
    """
    grouped_BKGTD = q.unflatten(1, (view.heads, -1))
    found = [  # one head of each group at a time
        attention_mass(part, view, positions=positions, scale=q.shape[-1] ** -0.5)
        for part in grouped_BKGTD.unbind(2)
    ]
    return torch.stack(found, 2).flatten(1, 2) * q.shape[2]


def end_weights(q_HtD: Tensor, keys_KTD: Tensor, scale: float) -> Tensor:
    """Return what the last t of T tokens give to each of them, [H, t, T], every weight in memory.

    For looking at a model, not for running one.
    """
    (heads, last, _), (kv_heads, tokens, _) = q_HtD.shape, keys_KTD.shape
    places_T = torch.arange(tokens)
    rows_KRD = q_HtD.float().unflatten(0, (kv_heads, -1)).flatten(1, 2)
    scores = (rows_KRD @ keys_KTD.float().mT).view(heads, last, tokens) * scale
    return scores.masked_fill(places_T > places_T[-last:, None], -math.inf).softmax(-1)


def attend_reference(
    q: Tensor,
    keys_BKSD: Tensor,
    values_BKSD: Tensor,
    visible: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return attention the plain way, with every score in memory; the oracle of the tests.

    Args:
        q: [B, H, T, D].
        visible: bool, broadcastable to [B, K, T, S].
    """
    batch, heads, count, size = q.shape
    kv_heads = keys_BKSD.shape[1]
    q_BKGTD = q.float().reshape(batch, kv_heads, heads // kv_heads, count, size)
    scores = q_BKGTD @ keys_BKSD.float().unsqueeze(2).transpose(-1, -2) * scale
    scores = scores.masked_fill(~visible.unsqueeze(2), -math.inf)
    lse = scores.logsumexp(dim=-1)
    weights = (scores - torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1)).exp()
    o = weights @ values_BKSD.float().unsqueeze(2)
    return o.reshape(batch, heads, count, size), lse.reshape(batch, heads, count)


# -- private ----------------------------------------------------------------------------------


def _merged(
    q_BKGTD: Tensor,
    view: KVView,
    positions_BT: Tensor,
    pad_B: Tensor | None,
    scale: float,
    window: int | None,
    masked: bool,
    kernels: bool = True,
) -> tuple[Tensor, Tensor]:
    """Attend to every segment and merge; `masked` goes by positions even where none is needed."""
    total: tuple[Tensor, Tensor] | None = None
    first = 0
    for segment in view.segments:
        if segment.tokens:
            ordered = _in_order(q_BKGTD, segment)
            on_gpu = None
            if kernels and pad_B is None and _has_triton(q_BKGTD):
                on_gpu = _by_triton(ordered, segment, positions_BT, scale, window, masked)
            if on_gpu is not None:
                parts = iter([on_gpu])
            elif isinstance(segment, FetchedSegment):
                parts = iter([segment.attend(q_BKGTD, positions_BT, scale, window)])
            elif isinstance(segment, RaggedSegment):
                parts = _by_head(ordered, segment, positions_BT, scale, window, masked, kernels)
            elif not masked and (segment.clear or _is_causal(segment)):
                parts = _open(ordered, segment, scale, kernels)
            else:
                parts = _by_mask(ordered, segment, positions_BT, pad_B, scale, window, first)
            for part in parts:
                total = part if total is None else merge(total, part)
        first += segment.tokens
    if total is None:
        return torch.zeros_like(q_BKGTD), q_BKGTD.new_full(q_BKGTD.shape[:-1], -math.inf)
    return total


def _by_head(
    q_BKGTD: Tensor,
    segment: RaggedSegment,
    positions_BT: Tensor,
    scale: float,
    window: int | None,
    masked: bool,
    kernels: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Attend head by head, because every head has a number of tokens of its own."""
    found = [
        _merged(
            q_BKGTD[:, head : head + 1],
            KVView(0, 1, (part,)),
            positions_BT,
            None,
            scale,
            window,
            masked,
            kernels,
        )
        for head, part in enumerate(segment.parts)
    ]
    yield torch.cat([o for o, _ in found], 1), torch.cat([lse for _, lse in found], 1)


def _by_triton(
    q_BKGTD: Tensor,
    segment: Segment,
    positions_BT: Tensor,
    scale: float,
    window: int | None,
    masked: bool,
) -> tuple[Tensor, Tensor] | None:
    """Attend on a GPU to codes, or to heads of unequal length; None where no kernel does."""
    from loci.nn import kv_triton

    rows_BKRD = q_BKGTD.flatten(2, 3)
    if isinstance(segment, RaggedSegment):
        dense = [part for part in segment.parts if isinstance(part, DenseSegment)]
        places = [part.positions_BKS[:, 0] for part in dense if part.positions_BKS is not None]
        if not len(segment.parts) == len(dense) == len(places):
            return None
        found = kv_triton.attend_ragged(
            rows_BKRD,
            [part.keys()[:, 0] for part in dense],
            [part.values()[:, 0] for part in dense],
            places,
            scale,
            now_BT=positions_BT,
            window=window,
        )
    else:
        coded = getattr(segment, "coded", None)
        if coded is None:
            return None
        exact, places = segment.apart()  # type: ignore[attr-defined]  # what has codes has it
        is_open = segment.clear and not masked and exact is None
        found = kv_triton.attend_codes(
            rows_BKRD,
            coded,
            scale,
            places=None if is_open else places,
            now_BT=None if is_open else positions_BT,
            window=window,
        )
        if exact is not None:
            o_BKRD, lse_BKR = found
            total = o_BKRD.view_as(q_BKGTD), lse_BKR.view(q_BKGTD.shape[:-1])
            for part in _by_mask(q_BKGTD, exact, positions_BT, None, scale, window, 0):
                total = merge(total, part)
            return total
    o_BKRD, lse_BKR = found
    return o_BKRD.view_as(q_BKGTD), lse_BKR.view(q_BKGTD.shape[:-1])


def _has_triton(q: Tensor) -> bool:
    """Return whether Triton's kernels are to be used: on a GPU, where it is installed."""
    if q.device.type != "cuda" or not _TRITON:
        return False
    from loci.nn import kv_triton

    return kv_triton.can(q)


def _is_causal(segment: Segment) -> bool:
    return isinstance(segment, DenseSegment) and segment.causal


def _in_order(q_BKGTD: Tensor, segment: Segment) -> Tensor:
    if segment.order is None:
        return q_BKGTD
    index = segment.order.long()[:, :, None, None].expand_as(q_BKGTD)
    return q_BKGTD.gather(-1, index)


def _open(
    q_BKGTD: Tensor, segment: Segment, scale: float, kernels: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Attend without any mask tensor: to all tokens, or causally to the block's own."""
    groups, count = q_BKGTD.shape[2:4]
    causal = _is_causal(segment) and count > 1
    if kernels and _NATIVE and q_BKGTD.device.type == "cpu" and q_BKGTD.dtype == torch.float32:
        for keys_BKsD, values_BKsD in _as_kept(segment):
            if count == 1:
                yield _decode(q_BKGTD, keys_BKsD, values_BKsD, scale)
            else:
                yield _prompt(q_BKGTD, keys_BKsD, values_BKsD, scale, causal)
        return
    for keys_BKsD, values_BKsD, _ in segment.tiles():
        if causal:
            parts = [
                _flash(q_BKGTD[:, :, g], keys_BKsD, values_BKsD, scale, is_causal=True)
                for g in range(groups)
            ]
            yield torch.stack([o for o, _ in parts], 2), torch.stack([x for _, x in parts], 2)
        else:
            rows_BKRD = q_BKGTD.flatten(2, 3)
            o_BKRD, lse_BKR = _flash(rows_BKRD, keys_BKsD, values_BKsD, scale)
            yield o_BKRD.view_as(q_BKGTD), lse_BKR.view(q_BKGTD.shape[:-1])


def _as_kept(segment: Segment) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield keys and values the kernels can read: in the dtype they are kept in, or decoded."""
    if isinstance(segment, DenseSegment):
        keys, values = segment.keys(), segment.values()
        kind = {keys.dtype, values.dtype}
        if kind <= {torch.float32, torch.float16} and len(kind) == 1 and keys.stride(-1) == 1:
            yield keys, values
            return
    for keys_BKsD, values_BKsD, _ in segment.tiles():
        yield keys_BKsD, values_BKsD


def _decode(
    q_BKGTD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend one query per row natively."""
    batch, kv_heads, groups, _, size = q_BKGTD.shape
    q_BHD = q_BKGTD.reshape(batch, kv_heads * groups, size).contiguous()
    o_BHD, lse_BH = torch.empty_like(q_BHD), q_BHD.new_empty(q_BHD.shape[:-1])
    for row in range(batch):  # the kernel takes one row; rows are few
        native.attend_decode(
            q_BHD[row], keys_BKSD[row], values_BKSD[row], scale, o_BHD[row], lse_BH[row]
        )
    return o_BHD.view_as(q_BKGTD), lse_BH.view(q_BKGTD.shape[:-1])


def _prompt(
    q_BKGTD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attend many queries per row natively; causally, they belong to the last of the keys."""
    batch, kv_heads, groups, count, size = q_BKGTD.shape
    q_BHTD = q_BKGTD.reshape(batch, kv_heads * groups, count, size)
    o_BHTD, lse_BHT = torch.empty_like(q_BHTD), q_BHTD.new_empty(q_BHTD.shape[:-1])
    scratch = torch.empty(native.attend_floats(size, groups) * native.threads())
    start = keys_BKSD.shape[2] - count if causal else None
    native.attend_prompt(
        q_BHTD, keys_BKSD, values_BKSD, scale, o_BHTD, lse_BHT, scratch, start=start
    )
    return o_BHTD.view_as(q_BKGTD), lse_BHT.view(q_BKGTD.shape[:-1])


def _by_mask(
    q_BKGTD: Tensor,
    segment: Segment,
    positions_BT: Tensor,
    pad_B: Tensor | None,
    scale: float,
    window: int | None,
    first: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Attend by positions, in tiles of queries so that few scores exist at once."""
    batch, kv_heads, groups, count, _ = q_BKGTD.shape
    for keys_BKsD, values_BKsD, places in segment.tiles():
        stored = keys_BKsD.shape[2]
        if places is None:
            places = torch.arange(first, first + stored, device=q_BKGTD.device).view(1, 1, -1)
            if pad_B is not None:
                places = places - pad_B.view(-1, 1, 1)
        first += stored
        o = torch.empty_like(q_BKGTD)
        lse = q_BKGTD.new_empty(q_BKGTD.shape[:-1])
        step = max(1, TILE_SCORES // (batch * kv_heads * groups * stored))
        for start in range(0, count, step):
            now = positions_BT[:, None, start : start + step, None]
            visible = (places[:, :, None] >= 0) & (places[:, :, None] <= now)
            if window is not None:
                visible &= now - places[:, :, None] < window
            tile = q_BKGTD[:, :, :, start : start + step]
            o[:, :, :, start : start + step], lse[:, :, :, start : start + step] = _plain(
                tile, keys_BKsD, values_BKsD, scale, visible.unsqueeze(2)
            )
        yield o, lse


def _flash(
    q_BKRD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, scale: float, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attend rows to keys of the same head; torch's fused kernel on a CPU, tiles elsewhere."""
    if _FUSED is not None and q_BKRD.device.type == "cpu":  # the one that returns lse too
        o_BKRD, lse_BKR = _FUSED(q_BKRD, keys_BKSD, values_BKSD, 0.0, is_causal, scale=scale)
        return o_BKRD, lse_BKR
    rows, stored = q_BKRD.shape[2], keys_BKSD.shape[2]
    o, lse = torch.empty_like(q_BKRD), q_BKRD.new_empty(q_BKRD.shape[:-1])
    step = max(1, TILE_SCORES // (q_BKRD.shape[0] * q_BKRD.shape[1] * stored))
    slots = torch.arange(stored, device=q_BKRD.device)
    for start in range(0, rows, step):
        tile = q_BKRD[:, :, None, start : start + step]
        visible = None
        if is_causal:
            visible = slots <= slots[start : start + tile.shape[3], None]
        part_o, part_lse = _plain(tile, keys_BKSD, values_BKSD, scale, visible)
        o[:, :, start : start + step], lse[:, :, start : start + step] = (
            part_o[:, :, 0],
            part_lse[:, :, 0],
        )
    return o, lse


def _plain(
    q_BKGTD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, scale: float, visible: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows_BKRD = q_BKGTD.flatten(2, 3)
    scores = torch.matmul(rows_BKRD, keys_BKSD.transpose(-1, -2)).mul_(scale)
    scores = scores.view(*q_BKGTD.shape[:-1], -1)
    if visible is not None:
        scores.masked_fill_(~visible, -math.inf)
    top = scores.amax(dim=-1)
    base = torch.where(top == -math.inf, 0.0, top)
    scores.sub_(base.unsqueeze(-1)).exp_()
    sums = scores.sum(dim=-1)
    o_BKRD = torch.matmul(scores.flatten(2, 3), values_BKSD)
    o = o_BKRD.view_as(q_BKGTD) / sums.clamp(min=torch.finfo(sums.dtype).tiny).unsqueeze(-1)
    return o, base + sums.log()


def _fused_kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


_FUSED = _fused_kernel()
_NATIVE = native.available()
_TRITON = find_spec("triton") is not None
