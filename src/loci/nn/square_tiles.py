"""Exact attention for a fast memory smaller than a head's square: tiles of scores as matrices are.

B. Saha and C. Ye, "The I/O Complexity of Attention, or How Optimal is FlashAttention?", 2024,
arXiv:2402.07443. With M words of fast memory and M < D^2, rows of queries as long as a head leave
no room for many of them. Writing the scores is then not the worst: attention costs as much as two
products of matrices, each in square tiles, N^2 D / sqrt(M) words in all.

First the scores, tile by tile, added up over pieces of the head; the running maximum and sum of a
row of tiles stay. Then the output: scores are read again, become weights, and meet the values.
Reconstruction: the abstract gives the order, the loops are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn.fast_memory import FastMemory

# Shapes: N queries, S keys, D head size, t side of a tile.


def side_of(words: int) -> int:
    """Return the side of the largest tiles: three of them and two statistics a row must fit.

    Raises:
        ParameterError: if not even tiles of one element do.
    """
    side = max(0, math.isqrt(max(0, words) // 3))
    while 3 * side * side + 2 * side > words:
        side -= 1
    if side < 1:
        raise ParameterError("no tile fits so little memory", value=words, allowed=">= 5 words")
    return side


def words_square(queries: int, keys: int, size: int, side: int) -> int:
    """Return the words that `square_attention` moves."""
    across, down, pieces = (-(-count // side) for count in (keys, queries, size))
    scores = queries * size * across + keys * size * down + queries * keys
    output = pieces * queries * keys + keys * size * down + queries * size
    return scores + output + 2 * queries * (1 + pieces)  # statistics: written once, read again


def square_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, memory: FastMemory
) -> Tensor:
    """Return what one head's queries [N, D] read from keys and values [S, D]; every key is seen.

    Args:
        memory: with a limit, which decides the side of the tiles.
    """
    if memory.words is None:
        raise ParameterError("tiles are cut for a memory of known size", value=None)
    (N, D), S = q.shape, k.shape[0]
    t = side_of(memory.words)
    scores_NS = torch.empty(N, S, dtype=torch.promote_types(q.dtype, torch.float32))
    top_N, sum_N, out_ND = scores_NS.new_empty(N), scores_NS.new_empty(N), torch.empty_like(q)

    def cut(count: int) -> list[slice]:
        return [slice(start, min(count, start + t)) for start in range(0, count, t)]

    for rows in cut(N):
        top = memory.make((rows.stop - rows.start,), -math.inf, scores_NS)
        total = memory.make(top.shape, 0.0, scores_NS)
        for columns in cut(S):
            shape = (top.shape[0], columns.stop - columns.start)
            tile = memory.make(shape, 0.0, scores_NS)
            for piece in cut(D):
                left, right = memory.load(q[rows, piece]), memory.load(k[columns, piece])
                tile.addmm_(left, right.t(), alpha=scale)
                memory.free(left, right)
            memory.store(tile, scores_NS[rows, columns])
            new = torch.maximum(top, tile.amax(1))
            total.mul_((top - new).exp()).add_(tile.sub_(new[:, None]).exp_().sum(1))
            top.copy_(new)
            memory.free(tile)
        memory.store(top, top_N[rows])
        memory.store(total, sum_N[rows])
        memory.free(top, total)
    for rows in cut(N):
        for piece in cut(D):
            top, total = memory.load(top_N[rows]), memory.load(sum_N[rows])
            shape = (top.shape[0], piece.stop - piece.start)
            out = memory.make(shape, 0.0, scores_NS)
            for columns in cut(S):
                tile, values = memory.load(scores_NS[rows, columns]), memory.load(v[columns, piece])
                out.addmm_((tile - top[:, None]).exp(), values)
                memory.free(tile, values)
            memory.store(out.div_(total[:, None]), out_ND[rows, piece])
            memory.free(top, total, out)
    return out_ND
