"""Attention over compressed keys and values in Triton; import it only where Triton is installed.

Three kernels: one reads codes and decodes them on the way (`attend_codes`), one reads heads that
hold unequal numbers of tokens (`attend_ragged`), and one merges what was read of parts of the
tokens by their log-sum-exp (`merge_parts`). Long lists of tokens are cut into parts that run beside
each other, because in decoding there is one query and everything else would stand idle.

Sizes come from a table, not from autotuning, so the same source runs under Triton's interpreter on
a CPU, where the tests compare it with plain attention. Nobody has run it on a GPU yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from loci.nn.coded import Coded, Turned

ROWS, COLUMNS = 16, 32  # queries and tokens of one tile
PART_TOKENS = 1024  # tokens of one part
_LOG2E = 1.4426950408889634

# Shapes: B batch, K key/value heads, R = G * T rows of queries of one head, T queries, S stored
# tokens, D head size, P parts.


@triton.jit
def _row(q_ptr, at, tile, rows, SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    r = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    inside = (r[:, None] < rows) & (d[None, :] < SIZE)
    return tl.load(q_ptr + (at * rows + r[:, None]) * SIZE + d[None, :], mask=inside, other=0.0)


@triton.jit
def _visible(  # type: ignore[no-untyped-def]
    seen, place_s, now_r, window, WINDOWED: tl.constexpr
):  # fmt: skip
    seen = seen & (place_s[None, :] >= 0) & (place_s[None, :] <= now_r[:, None])
    if WINDOWED:
        seen = seen & (now_r[:, None] - place_s[None, :] < window)
    return seen


@triton.jit
def _step(q, k, v, seen, scale, top, total, out):  # type: ignore[no-untyped-def]
    """One tile of the online softmax, in powers of two, which is what the hardware has."""
    scores = tl.dot(q, k, input_precision="ieee") * (scale * 1.4426950408889634)
    scores = tl.where(seen, scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp2(top - base)
    p = tl.exp2(scores - base[:, None])
    total = total * factor + tl.sum(p, 1)
    out = out * factor[:, None] + tl.dot(p, v, input_precision="ieee")
    return new, total, out


@triton.jit
def _put(  # type: ignore[no-untyped-def]
    o_ptr, lse_ptr, at, tile, rows, top, total, out,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    inside = (r[:, None] < rows) & (d[None, :] < SIZE)
    out = out / tl.where(total == 0.0, 1.0, total)[:, None]
    lse = tl.where(total == 0.0, float("-inf"), top / 1.4426950408889634 + tl.log(total))
    tl.store(o_ptr + (at * rows + r[:, None]) * SIZE + d[None, :], out, mask=inside)
    tl.store(lse_ptr + at * rows + r, lse, mask=r < rows)


@triton.jit
def _numbers(ptr, stride, s, d, inside, nbytes, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of channels d of tokens s: `BITS` bits each, one after another in a token's bytes."""
    bit = d * BITS
    byte = bit // 8
    at = ptr + s * stride + byte
    low = tl.load(at, mask=inside, other=0).to(tl.int32)
    high = tl.load(at + 1, mask=inside & (byte + 1 < nbytes), other=0).to(tl.int32)
    return ((low | (high << 8)) >> (bit % 8)) & ((1 << BITS) - 1)


@triton.jit
def _floating(number, ptr, stride, s, d, inside, BITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    stored = tl.load(ptr + s * stride + d // BLOCK, mask=inside, other=0).to(tl.int32)
    step = (tl.maximum(stored - (BITS - 2), 0) << 23).to(tl.float32, bitcast=True)
    return (number - (1 << (BITS - 1))).to(tl.float32) * step


@triton.jit
def _level(number, levels_ptr, ptr, stride, s, inside):  # type: ignore[no-untyped-def]
    level = tl.load(levels_ptr + number, mask=inside, other=0.0)
    return level * tl.load(ptr + s * stride, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _codes_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, kg_ptr, vg_ptr, kl_ptr, vl_ptr, places_ptr, now_ptr, o_ptr, lse_ptr,
    kb, kh, ks, vb, vh, vs, kgb, kgh, kgs, vgb, vgh, vgs, pb, ph, ps,
    heads, rows, queries, tokens, kbytes, vbytes, share, scale, window, span,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KBITS: tl.constexpr, VBITS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    PLACED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    tile, pair, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = pair // heads, pair % heads
    k_ptr += batch * kb + head * kh
    v_ptr += batch * vb + head * vh
    kg_ptr += batch * kgb + head * kgh
    vg_ptr += batch * vgb + head * vgh
    q = _row(q_ptr, pair, tile, rows, SIZE, PADDED, ROWS)
    r = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    now = r * 0
    if PLACED:
        now = tl.load(now_ptr + batch * queries + r % queries, mask=r < rows, other=-1)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    end = tl.minimum(tokens, part * span + span)
    for first in range(part * span, end, COLUMNS):
        s = first + tl.arange(0, COLUMNS)
        inside = (d[:, None] < SIZE) & (s[None, :] < end)
        number = _numbers(k_ptr, ks, s[None, :], d[:, None], inside, kbytes, KBITS)
        if GROUP < 0:
            k = _level(number, kl_ptr, kg_ptr, kgs, s[None, :], inside)
        elif GROUP == 0:
            k = _floating(number, kg_ptr, kgs, s[None, :], d[:, None], inside, KBITS, BLOCK)
        else:
            begin = s[None, :] // GROUP * GROUP
            other = SIZE + d[:, None]
            at = kg_ptr + (begin + d[:, None] // share) * kgs + d[:, None] % share
            low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            at = kg_ptr + (begin + other // share) * kgs + other % share
            step = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            k = number.to(tl.float32) * step + low
        turned = (s[:, None] < end) & (d[None, :] < SIZE)
        number = _numbers(v_ptr, vs, s[:, None], d[None, :], turned, vbytes, VBITS)
        if GROUP < 0:
            v = _level(number, vl_ptr, vg_ptr, vgs, s[:, None], turned)
        elif GROUP == 0:
            v = _floating(number, vg_ptr, vgs, s[:, None], d[None, :], turned, VBITS, BLOCK)
        else:
            at = vg_ptr + s[:, None] * vgs + d[None, :] // BLOCK * 2
            low = tl.load(at, mask=turned, other=0.0).to(tl.float32)
            step = tl.load(at + 1, mask=turned, other=0.0).to(tl.float32)
            v = number.to(tl.float32) * step + low
        seen = (s[None, :] < end) & (r[:, None] < rows)
        if PLACED:
            at = places_ptr + batch * pb + head * ph + s * ps
            place = tl.load(at, mask=s < end, other=-1)
            seen = _visible(seen, place, now, window, WINDOWED)
        top, total, out = _step(q, k, v, seen, scale, top, total, out)
    at = part * tl.num_programs(1) + pair
    _put(o_ptr, lse_ptr, at, tile, rows, top, total, out, SIZE, PADDED, ROWS)


@triton.jit
def _ragged_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, places_ptr, now_ptr, o_ptr, lse_ptr,
    starts_ptr, hops_ptr, counts_ptr, ks, vs, ps,
    heads, rows, queries, scale, window, span,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    tile, pair, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = pair // heads, pair % heads
    k_ptr += tl.load(starts_ptr + head) + batch * tl.load(hops_ptr + head)
    v_ptr += tl.load(starts_ptr + heads + head) + batch * tl.load(hops_ptr + heads + head)
    at = 2 * heads + head
    places_ptr += tl.load(starts_ptr + at) + batch * tl.load(hops_ptr + at)
    tokens = tl.load(counts_ptr + head)
    q = _row(q_ptr, pair, tile, rows, SIZE, PADDED, ROWS)
    r = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    now = tl.load(now_ptr + batch * queries + r % queries, mask=r < rows, other=-1)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    end = tl.minimum(tokens, part * span + span)
    for first in range(part * span, end, COLUMNS):
        s = first + tl.arange(0, COLUMNS)
        inside = (d[:, None] < SIZE) & (s[None, :] < end)
        k = tl.load(k_ptr + s[None, :] * ks + d[:, None], mask=inside, other=0.0)
        turned = (s[:, None] < end) & (d[None, :] < SIZE)
        v = tl.load(v_ptr + s[:, None] * vs + d[None, :], mask=turned, other=0.0)
        place = tl.load(places_ptr + s * ps, mask=s < end, other=-1)
        seen = (s[None, :] < end) & (r[:, None] < rows)
        seen = _visible(seen, place, now, window, WINDOWED)
        k, v = k.to(tl.float32), v.to(tl.float32)
        top, total, out = _step(q, k, v, seen, scale, top, total, out)
    at = part * tl.num_programs(1) + pair
    _put(o_ptr, lse_ptr, at, tile, rows, top, total, out, SIZE, PADDED, ROWS)


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    parts_ptr, lses_ptr, o_ptr, lse_ptr, parts, rows,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    inside = (r[:, None] < rows) & (d[None, :] < SIZE)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    for part in range(parts):
        lse = tl.load(lses_ptr + part * rows + r, mask=r < rows, other=float("-inf"))
        o = tl.load(
            parts_ptr + (part * rows + r[:, None]) * SIZE + d[None, :], mask=inside, other=0.0
        )
        new = tl.maximum(top, lse)
        base = tl.where(new == float("-inf"), 0.0, new)
        factor, weight = tl.exp(top - base), tl.exp(lse - base)
        total = total * factor + weight
        out = out * factor[:, None] + o * weight[:, None]
        top = new
    out = out / tl.where(total == 0.0, 1.0, total)[:, None]
    lse = tl.where(total == 0.0, float("-inf"), top + tl.log(total))
    tl.store(o_ptr + r[:, None] * SIZE + d[None, :], out, mask=inside)
    tl.store(lse_ptr + r, lse, mask=r < rows)


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors."""
    return not isinstance(_merge_kernel, triton.runtime.JITFunction)


def can(q: Tensor) -> bool:
    """Return whether the kernels take such queries where they are."""
    return q.shape[-1] <= 256 and (q.device.type == "cuda" or is_interpreted())


def attend_codes(
    q_BKRD: Tensor,
    coded: Coded | Turned,
    scale: float,
    *,
    places: Tensor | None = None,
    now_BT: Tensor | None = None,
    window: int | None = None,
    part_tokens: int = PART_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Return what queries read from codes: o [B, K, R, D] and log-sum-exp [B, K, R], float32.

    Args:
        q_BKRD: queries, rotated, in the channel order of the keys; row r belongs to query r % T.
        places: positions [B, 1 or K, S]; None where everybody sees every token.
        now_BT: positions of the queries.
        window: a token is seen only by queries less than `window` positions after it.
        part_tokens: tokens that run beside others.
    """
    batch, heads, rows, size = q_BKRD.shape
    codes, asked_BKRD = coded.codes, q_BKRD.float()
    if isinstance(coded, Turned):
        names, bits, form = ("key_scale", "value_scale"), (coded.bits_k, coded.bits_v), (1, -1)
        asked_BKRD = coded.turn(asked_BKRD)
        levels = [torch.tensor(x, device=q_BKRD.device) for x in (coded.levels_k, coded.levels_v)]
    else:
        is_grid = bool(coded.group)
        names = ("key_grid", "value_grid") if is_grid else ("key_exponents", "value_exponents")
        bits, form = (coded.bits, coded.bits), (coded.block, coded.group)
        levels = [asked_BKRD, asked_BKRD]  # nobody reads them
    tensors = [codes[name] for name in ("keys", "values", *names)]
    place_strides: tuple[int, ...] = (0, 0, 0)
    if places is not None:
        assert now_BT is not None
        places = places.expand(batch, heads, -1)
        place_strides = places.stride()
    o, lse, grid, span = _room(q_BKRD, coded.tokens, part_tokens)
    nothing = lse  # a pointer nobody reads
    _codes_kernel[grid](
        asked_BKRD.contiguous(), *tensors, *levels,
        nothing if places is None else places, nothing if now_BT is None else now_BT.contiguous(),
        o, lse,
        *(stride for tensor in tensors for stride in tensor.stride()[:3]), *place_strides,
        heads, rows, 1 if now_BT is None else now_BT.shape[1], coded.tokens,
        codes["keys"].shape[-1], codes["values"].shape[-1],
        codes["key_grid"].shape[-1] if "key_grid" in codes else 1,
        scale, window or 0, span,
        SIZE=size, PADDED=_padded(size), ROWS=ROWS, COLUMNS=COLUMNS,
        KBITS=bits[0], VBITS=bits[1], BLOCK=form[0], GROUP=form[1],
        PLACED=places is not None, WINDOWED=window is not None,
    )  # fmt: skip
    o_BKRD, lse_BKR = merge_parts(o, lse)
    if not isinstance(coded, Turned):
        return o_BKRD, lse_BKR
    # The mean of the keys adds the same to every score of a query, that of the values to what it
    # reads.
    key_mean, value_mean = (coded.fixed[f"{n}_mean"].float().unsqueeze(2) for n in ("key", "value"))
    more_BKR = (q_BKRD.float() * key_mean).sum(-1) * scale
    is_read = lse_BKR > -math.inf
    return (coded.back(o_BKRD) + value_mean) * is_read.unsqueeze(-1), lse_BKR + more_BKR


def attend_ragged(
    q_BKRD: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    places: Sequence[Tensor],
    scale: float,
    *,
    now_BT: Tensor,
    window: int | None = None,
    part_tokens: int = PART_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Return what queries read from heads that hold unequal numbers of tokens; see `attend_codes`.

    Args:
        keys, values: of each head [B, n, D], where they lie; float32 or float16, all of one dtype.
        places: of each head, positions [B, n].
    """
    heads, rows, size = q_BKRD.shape[1:]
    counts = [part.shape[1] for part in keys]
    firsts, starts, hops = [], [], []
    for parts in (keys, values, places):
        # Heads lie in one pool, or anywhere: where each begins is counted from the first.
        first = parts[0]
        assert all(part.stride(1) == first.stride(1) for part in parts)
        firsts.append(first)
        starts += [(p.data_ptr() - first.data_ptr()) // first.element_size() for p in parts]
        hops += [part.stride(0) for part in parts]
    o, lse, grid, span = _room(q_BKRD, max(counts), part_tokens)
    _ragged_kernel[grid](
        q_BKRD.float().contiguous(), *firsts, now_BT.contiguous(), o, lse,
        *(torch.tensor(x, dtype=torch.int64, device=q_BKRD.device) for x in (starts, hops, counts)),
        *(first.stride(1) for first in firsts),
        heads, rows, now_BT.shape[1], scale, window or 0, span,
        SIZE=size, PADDED=_padded(size), ROWS=ROWS, COLUMNS=COLUMNS, WINDOWED=window is not None,
    )  # fmt: skip
    return merge_parts(o, lse)


def merge_parts(parts: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention over disjoint sets of tokens as one: o [..., D] and log-sum-exp [...].

    Args:
        parts: float32 [P, ..., D], what was read from each set.
        lses: float32 [P, ...], -inf where nothing was visible.
    """
    if len(parts) == 1:
        return parts[0], lses[0]
    parts, lses = parts.contiguous(), lses.contiguous()
    o, lse = torch.empty_like(parts[0]), torch.empty_like(lses[0])
    rows, size = lse.numel(), parts.shape[-1]
    _merge_kernel[(triton.cdiv(rows, ROWS),)](
        parts, lses, o, lse, len(parts), rows, SIZE=size, PADDED=_padded(size), ROWS=ROWS
    )
    return o, lse


def _room(
    q_BKRD: Tensor, tokens: int, part_tokens: int
) -> tuple[Tensor, Tensor, tuple[int, int, int], int]:
    """Return where parts go, the grid of programs, and the tokens of a part."""
    batch, heads, rows, _ = q_BKRD.shape
    parts = max(1, triton.cdiv(tokens, part_tokens))
    o = q_BKRD.new_empty(parts, *q_BKRD.shape, dtype=torch.float32)
    lse = q_BKRD.new_empty(parts, batch, heads, rows, dtype=torch.float32)
    return o, lse, (triton.cdiv(rows, ROWS), batch * heads, parts), part_tokens


def _padded(size: int) -> int:
    return max(16, int(triton.next_power_of_2(size)))
