"""FlashAttention: exact attention in tiles, forward and backward, with memory linear in length.

T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022,
arXiv:2205.14135. Equations from knowledge of the paper, checked against plain attention.

For a tile of queries, keys pass by in tiles. With a running maximum m, sum l and output O,

    m' = max(m, max s)    p = exp(s - m')    l' = l e^(m - m') + sum p    O' = O e^(m - m') + p V

and at the end O / l, with the log-sum-exp m + log l. The way back keeps only output and log-sum-exp
and computes the weights again, tile by tile. A block mask leaves whole tiles out.

Differs from the paper's first loop: queries are outside and keys inside, so an output is written
once. Query heads that share a KV head are rows of one tile, so their keys are read once. Scores are
visible from the bottom right: query t of T stands at position S - T + t.

`flash_attention` takes the native kernel on a CPU and Triton on a GPU where they can, else the
tiles in torch, which count what they move (`FastMemory`) as `words_forward` and `words_backward`
say they do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any  # what torch hands to the two ways of a product

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn import native
from loci.nn.fast_memory import FastMemory

# Shapes: B batch, H query heads, K key/value heads, G query heads of one KV head, T queries,
# S keys, D head size, R = G * r rows of a tile.

BACKENDS = ("tiled", "native", "triton")


@dataclass(frozen=True, eq=False, kw_only=True)
class Mask:
    """What each query sees; without anything, every key.

    Attributes:
        causal: keys up to its own position.
        window: of those the last so many; needs `causal`.
        sinks: and the first so many, whatever the window says.
        blocks: bool [query tiles, key tiles]; tiles that are False are never read.
    """

    causal: bool = False
    window: int | None = None
    sinks: int = 0
    blocks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.window is not None and (not self.causal or self.window < 1):
            raise ParameterError(
                "a window looks back from a position", value=self.window, allowed=">= 1, causal"
            )
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise ParameterError("sinks widen a window", value=self.sinks)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Sizes of a tile: queries of each head, and keys."""

    queries: int = 64
    keys: int = 128

    def __post_init__(self) -> None:
        if self.queries < 1 or self.keys < 1:
            raise ParameterError("a tile has rows", value=(self.queries, self.keys))

    def words(self, size: int, groups: int = 1) -> int:
        """Return the fast memory a forward needs, in words."""
        rows = groups * self.queries
        return rows * (2 * size + 2) + self.keys * 2 * size + rows * self.keys


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    mask: Mask | None = None,
    tiles: Tiles | None = None,
    backend: str | None = None,
    memory: FastMemory | None = None,
) -> tuple[Tensor, Tensor]:
    """Return o [B, H, T, D] in the dtype of q and the log-sum-exp [B, H, T] in float32.

    A query that sees nothing gets output 0 and log-sum-exp -inf. Gradients flow to q, k and v.

    Args:
        q: [B, H, T, D]; k, v: [B, K, S, D], H a multiple of K.
        scale: what products are multiplied with; None takes D ** -0.5.
        backend: one of `BACKENDS`; None takes the fastest that can.
        memory: counts what the tiles move; asks for "tiled".

    Raises:
        ParameterError: if shapes do not fit, or the back end cannot do this mask or these tensors.
    """
    mask, tiles = mask or Mask(), tiles or Tiles()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(q, k, v, mask, tiles)
    backend = _backend(q, k, v, mask, backend if memory is None else "tiled")
    o, lse = _Flash.apply(q, k, v, scale, mask, tiles, backend, memory)  # type: ignore[no-untyped-call]
    return o, lse


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Mask | None = None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the same with every score in memory, in the dtype of q; the oracle."""
    mask, tiles = mask or Mask(), tiles or Tiles()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    visible = _visible(mask, tiles, range(T), range(S), T, S, q.device)
    scores = q.reshape(B, K, H // K, T, D) @ k.unsqueeze(2).transpose(-1, -2) * scale
    scores = scores.masked_fill(~visible, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1)).exp()
    o = weights @ v.unsqueeze(2)
    return o.reshape(B, H, T, D), lse.reshape(B, H, T)


# -- what moves -------------------------------------------------------------------------------


def visited(mask: Mask, tiles: Tiles, queries: int, keys: int) -> Iterator[tuple[int, int, int]]:
    """Yield (query tile, key tile, keys in it) of every pair of tiles that is worked on."""
    for i in range(-(-queries // tiles.queries)):
        first = keys - queries + i * tiles.queries  # where the tile's first query stands
        last = keys - queries + min(queries, (i + 1) * tiles.queries) - 1
        for j in range(-(-keys // tiles.keys)):
            begin, end = j * tiles.keys, min(keys, (j + 1) * tiles.keys)
            if mask.causal and begin > last:
                continue
            if mask.window is not None and end <= first - mask.window + 1 and begin >= mask.sinks:
                continue
            if mask.blocks is not None and not bool(mask.blocks[i, j]):
                continue
            yield i, j, end - begin


def words_forward(
    mask: Mask, tiles: Tiles, queries: int, keys: int, size: int, groups: int = 1
) -> int:
    """Return the words a forward moves per batch row and KV head.

    Without a mask: 2 G T D + G T + ceil(T / r) 2 S D, with r queries in a tile.
    """
    if not mask.causal and mask.blocks is None:
        read = -(-queries // tiles.queries) * 2 * keys * size
    else:
        read = sum(2 * size * many for _, _, many in visited(mask, tiles, queries, keys))
    return groups * queries * (2 * size + 1) + read


def words_backward(
    mask: Mask, tiles: Tiles, queries: int, keys: int, size: int, groups: int = 1
) -> int:
    """Return the words a backward moves per batch row and KV head.

    Output and its gradient are read for D = rowsum(dO O). Then a tile of keys reads its keys and
    values once, and for every tile of queries: q, dO, log-sum-exp, D, and dq, which is read and
    written.
    """
    rows = groups * queries
    pairs = 0
    for i, _, _ in visited(mask, tiles, queries, keys):
        many = min(tiles.queries, queries - i * tiles.queries)
        pairs += groups * many * (4 * size + 2)
    return rows * (2 * size + 1) + 4 * keys * size + pairs


# -- tiles in torch ---------------------------------------------------------------------------


def _forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Mask, tiles: Tiles, memory: FastMemory
) -> tuple[Tensor, Tensor]:
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    q_BKGTD = q.reshape(B, K, H // K, T, D)
    o = torch.empty_like(q_BKGTD)
    lse = q.new_empty(q_BKGTD.shape[:-1], dtype=torch.float32)
    pairs = list(visited(mask, tiles, T, S))
    for b in range(B):
        for h in range(K):
            for i in range(-(-T // tiles.queries)):
                rows = slice(i * tiles.queries, min(T, (i + 1) * tiles.queries))
                q_GrD = memory.load(q_BKGTD[b, h, :, rows])
                out_GrD = memory.make(q_GrD.shape, 0.0, q_GrD)
                top_Gr = memory.make(q_GrD.shape[:-1], -math.inf, q_GrD)
                sum_Gr = memory.make(q_GrD.shape[:-1], 0.0, q_GrD)
                for _, j, many in (pair for pair in pairs if pair[0] == i):
                    columns = slice(j * tiles.keys, j * tiles.keys + many)
                    k_sD, v_sD = memory.load(k[b, h, columns]), memory.load(v[b, h, columns])
                    s_Grs = memory.keep(q_GrD @ k_sD.t() * scale)
                    visible = _visible(
                        mask, tiles, range(rows.start, rows.stop),
                        range(columns.start, columns.stop), T, S, q.device,
                    )  # fmt: skip
                    s_Grs.masked_fill_(~visible, -math.inf)
                    new_Gr = torch.maximum(top_Gr, s_Grs.amax(-1))
                    base_Gr = torch.where(new_Gr == -math.inf, 0.0, new_Gr)
                    factor_Gr = (top_Gr - base_Gr).exp()
                    s_Grs.sub_(base_Gr.unsqueeze(-1)).exp_()
                    sum_Gr.mul_(factor_Gr).add_(s_Grs.sum(-1))
                    out_GrD.mul_(factor_Gr.unsqueeze(-1)).add_(s_Grs @ v_sD)
                    top_Gr.copy_(new_Gr)
                    memory.free(k_sD, v_sD, s_Grs)
                tiny = torch.finfo(sum_Gr.dtype).tiny
                out_GrD.div_(sum_Gr.clamp(min=tiny).unsqueeze(-1))
                memory.store(out_GrD, o[b, h, :, rows])
                memory.store(top_Gr + sum_Gr.log(), lse[b, h, :, rows])
                memory.free(q_GrD, out_GrD, top_Gr, sum_Gr)
    return o.reshape(B, H, T, D), lse.reshape(B, H, T)


def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    scale: float, mask: Mask, tiles: Tiles, memory: FastMemory,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    shape = (B, K, H // K, T)
    wide = torch.promote_types(q.dtype, torch.float32)
    q_, do_, o_ = (x.reshape(*shape, D) for x in (q, do, o))
    lse_ = lse.reshape(shape)
    dq = torch.zeros(*shape, D, dtype=wide, device=q.device)
    dk, dv = torch.empty_like(k, dtype=wide), torch.empty_like(v, dtype=wide)
    delta = torch.empty(shape, dtype=wide, device=q.device)
    pairs = list(visited(mask, tiles, T, S))
    for b in range(B):
        for h in range(K):
            for start in range(0, T, tiles.queries):
                rows = slice(start, min(T, start + tiles.queries))
                do_GrD, o_GrD = memory.load(do_[b, h, :, rows]), memory.load(o_[b, h, :, rows])
                memory.store((do_GrD * o_GrD).sum(-1), delta[b, h, :, rows])
                memory.free(do_GrD, o_GrD)
            for j in range(-(-S // tiles.keys)):
                columns = slice(j * tiles.keys, min(S, (j + 1) * tiles.keys))
                k_sD, v_sD = memory.load(k[b, h, columns]), memory.load(v[b, h, columns])
                dk_sD = memory.make(k_sD.shape, 0.0, k_sD)
                dv_sD = memory.make(v_sD.shape, 0.0, v_sD)
                for i in (pair[0] for pair in pairs if pair[1] == j):
                    rows = slice(i * tiles.queries, min(T, (i + 1) * tiles.queries))
                    parts = (q_, do_, lse_, delta, dq)
                    held = [memory.load(part[b, h, :, rows]) for part in parts]
                    q_GrD, do_GrD, lse_Gr, delta_Gr, dq_GrD = held
                    visible = _visible(
                        mask, tiles, range(rows.start, rows.stop),
                        range(columns.start, columns.stop), T, S, q.device,
                    )  # fmt: skip
                    base_Gr = torch.where(lse_Gr == -math.inf, math.inf, lse_Gr)
                    p_Grs = memory.keep((q_GrD @ k_sD.t() * scale - base_Gr.unsqueeze(-1)).exp())
                    p_Grs.masked_fill_(~visible, 0.0)
                    dv_sD.add_(torch.einsum("grs,grd->sd", p_Grs, do_GrD))
                    p_Grs.mul_(do_GrD @ v_sD.t() - delta_Gr.unsqueeze(-1)).mul_(scale)
                    dk_sD.add_(torch.einsum("grs,grd->sd", p_Grs, q_GrD))
                    memory.store(dq_GrD + p_Grs @ k_sD, dq[b, h, :, rows])
                    memory.free(p_Grs, *held)
                memory.store(dk_sD, dk[b, h, columns])
                memory.store(dv_sD, dv[b, h, columns])
                memory.free(k_sD, v_sD, dk_sD, dv_sD)
    return dq.reshape(q.shape).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


class _Flash(torch.autograd.Function):
    """Forward by any back end; backward by tiles, from output and log-sum-exp alone."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Mask, tiles: Tiles,
        backend: str, memory: FastMemory | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if backend == "native":
            o, lse = _native(q, k, v, scale, mask)
        elif backend == "triton":
            from loci.nn import flash_triton

            o, lse = flash_triton.forward(q, k, v, scale, mask.causal, mask.window)
        else:
            o, lse = _forward(q, k, v, scale, mask, tiles, memory or FastMemory())
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.rest = scale, mask, tiles, memory
        ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        scale, mask, tiles, memory = ctx.rest
        q, k, v, o, lse = ctx.saved_tensors
        held = memory or FastMemory()
        dq, dk, dv = _backward(grads[0], q, k, v, o, lse, scale, mask, tiles, held)
        return dq, dk, dv, None, None, None, None, None


def _native(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    o, lse = torch.empty_like(q), q.new_empty(B, H, T)
    scratch = torch.empty(native.attend_floats(D, H // K) * native.threads())
    start = S - T if mask.causal else None
    native.attend_prompt(q, k, v, scale, o, lse, scratch, start=start, window=mask.window)
    return o, lse


def _has_triton(q: Tensor) -> bool:
    """Return whether Triton is installed and takes such queries; it is not loaded for others."""
    if find_spec("triton") is None:
        return False
    from loci.nn import flash_triton

    return flash_triton.can(q)


def _visible(
    mask: Mask, tiles: Tiles, rows: range, columns: range, queries: int, keys: int,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """Return which of `columns` each of `rows` sees, bool [r, s]."""
    place_s = torch.arange(columns.start, columns.stop, device=device)
    now_r1 = torch.arange(rows.start, rows.stop, device=device)[:, None] + keys - queries
    seen_rs = torch.ones(len(rows), len(columns), dtype=torch.bool, device=device)
    if mask.causal:
        seen_rs &= place_s <= now_r1
    if mask.window is not None:
        seen_rs &= (now_r1 - place_s < mask.window) | (place_s < mask.sinks)
    if mask.blocks is not None:
        tile_r = torch.arange(rows.start, rows.stop, device=device) // tiles.queries
        tile_s = place_s // tiles.keys
        seen_rs &= mask.blocks.to(device)[tile_r][:, tile_s]
    return seen_rs


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Mask, tiles: Tiles) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3]:
        raise ParameterError(
            "queries, keys and values do not fit together",
            value=(tuple(q.shape), tuple(k.shape), tuple(v.shape)),
            allowed="[B, H, T, D], [B, K, S, D] and again [B, K, S, D]",
        )
    if q.shape[1] % k.shape[1]:
        raise ParameterError(
            f"query heads must be a multiple of KV heads; got {q.shape[1]} and {k.shape[1]}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ParameterError(
            "queries, keys and values need one floating dtype",
            value=(str(q.dtype), str(k.dtype), str(v.dtype)),
        )
    grid = (-(-q.shape[2] // tiles.queries), -(-k.shape[2] // tiles.keys))
    if mask.blocks is not None and tuple(mask.blocks.shape) != grid:
        raise ParameterError(
            "the block mask has another number of tiles",
            value=tuple(mask.blocks.shape),
            allowed=str(grid),
        )


def _backend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, asked: str | None) -> str:
    """Return the back end to take; one that was asked for and cannot is refused."""
    if asked is not None and asked not in BACKENDS:
        raise ParameterError("unknown back end", value=asked, allowed=", ".join(BACKENDS))
    is_plain = mask.blocks is None and mask.sinks == 0 and q.shape[2] > 0 and k.shape[2] > 0
    is_last = all(x.stride(-1) == 1 for x in (q, k, v))
    can = ["tiled"]
    if is_plain and is_last:
        within = not mask.causal or q.shape[2] <= k.shape[2]  # the kernel knows no place before 0
        if native.available() and q.device.type == "cpu" and q.dtype == torch.float32 and within:
            can.append("native")
        if (q.device.type == "cuda" or asked == "triton") and _has_triton(q):
            can.append("triton")
    if asked is not None and asked not in can:
        raise ParameterError(
            f"the back end {asked!r} cannot do this",
            value=(str(q.dtype), q.device.type, mask),
            allowed=", ".join(can),
            way_out="leave the back end out, and the fastest that can is taken",
        )
    if asked is not None:
        return asked
    on_gpu = q.device.type == "cuda" and "triton" in can
    return "triton" if on_gpu else "native" if "native" in can else "tiled"
