"""The forward of FlashAttention in Triton; import it only where Triton is installed.

One program takes a tile of queries of one head and lets the keys of its KV head pass by. Sizes come
from a table, not from autotuning, so the same source runs under Triton's interpreter on a CPU,
where the tests compare it with plain attention. Nobody has run it on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILES = {16: (64, 64), 32: (64, 64), 64: (128, 64), 128: (64, 64), 256: (32, 32)}  # by head size

# Shapes: B batch, H query heads, K key/value heads, T queries, S keys, D head size.


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]  # Triton reads it, Python does not
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    qb, qh, qt, kb, kh, ks, vb, vh, vs, ob, oh, ot,
    heads, groups, queries, keys, scale, window,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    tile, row = tl.program_id(0), tl.program_id(1)
    batch, head = row // heads, row % heads
    kv_head = head // groups
    t = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    place = t + keys - queries
    inside_d = d < SIZE
    q = tl.load(
        q_ptr + batch * qb + head * qh + t[:, None] * qt + d[None, :],
        mask=(t[:, None] < queries) & inside_d[None, :],
        other=0.0,
    )
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PADDED], tl.float32)
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, tl.maximum(0, tile * ROWS + ROWS + keys - queries))
    begin = 0
    if WINDOWED:
        begin = tl.maximum(0, tile * ROWS + keys - queries - window + 1) // COLUMNS * COLUMNS
    for first in range(begin, end, COLUMNS):
        s = first + tl.arange(0, COLUMNS)
        inside_s = s < keys
        k = tl.load(
            k_ptr + batch * kb + kv_head * kh + s[None, :] * ks + d[:, None],
            mask=inside_s[None, :] & inside_d[:, None],
            other=0.0,
        )
        # Scores times log2(e), because exp2 is what the hardware has.
        scores = tl.dot(q, k, input_precision="ieee") * (scale * 1.4426950408889634)
        seen = inside_s[None, :] & (t[:, None] < queries)
        if CAUSAL:
            seen = seen & (s[None, :] <= place[:, None])
        if WINDOWED:
            seen = seen & (place[:, None] - s[None, :] < window)
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        factor = tl.exp2(top - base)
        p = tl.exp2(scores - base[:, None])
        v = tl.load(
            v_ptr + batch * vb + kv_head * vh + s[:, None] * vs + d[None, :],
            mask=inside_s[:, None] & inside_d[None, :],
            other=0.0,
        )
        total = total * factor + tl.sum(p, 1)
        out = out * factor[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    out = out / tl.where(total == 0.0, 1.0, total)[:, None]
    lse = tl.where(total == 0.0, float("-inf"), top / 1.4426950408889634 + tl.log(total))
    tl.store(
        o_ptr + batch * ob + head * oh + t[:, None] * ot + d[None, :],
        out.to(o_ptr.dtype.element_ty),
        mask=(t[:, None] < queries) & inside_d[None, :],
    )
    tl.store(lse_ptr + (batch * heads + head) * queries + t, lse, mask=t < queries)


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors."""
    return not isinstance(_kernel, triton.runtime.JITFunction)


def forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    """Return o like q and the log-sum-exp [B, H, T] in float32; last dimensions contiguous."""
    (batch, heads, queries, size), (kv_heads, keys) = q.shape, k.shape[1:3]
    padded = max(16, triton.next_power_of_2(size))
    rows, columns = _TILES[padded]
    o = torch.empty_like(q)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    grid = (triton.cdiv(queries, rows), batch * heads)
    _kernel[grid](
        q, k, v, o, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
        heads, heads // kv_heads, queries, keys, scale, window or 0,
        SIZE=size, PADDED=padded, ROWS=rows, COLUMNS=columns,
        CAUSAL=causal, WINDOWED=window is not None,
    )  # fmt: skip
    return o, lse


def can(q: Tensor) -> bool:
    """Return whether the kernel takes such queries where they are."""
    fits = triton.next_power_of_2(q.shape[-1]) <= max(_TILES)
    return fits and (q.device.type == "cuda" or is_interpreted())
