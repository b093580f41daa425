"""Attention I/O: how many words must move between a fast and a slow memory, and which loop does it.

B. Saha and C. Ye, "The I/O Complexity of Attention, or How Optimal is FlashAttention?", 2024,
arXiv:2402.07443. With M words of fast memory, N queries and keys, heads of D:

    order of    min( N^2 D^2 / M ,  N^2 D / sqrt(M) )    words, and never below 4 N D

The first is FlashAttention's, best for M >= D^2; below that square tiles are better, the second.

The bound gives an order, its constant is not known; `plan` counts the loops we have exactly, ends
of tiles included, and takes the least. Reconstruction: the counts, and their use for any pair of
memories. With queries in tiles of r, keys and values pass ceil(N / r) times.
Differs from the theorem: N and S may differ, and query heads of a group share the keys they read.
As a cost model it prices attention by these words, the rest by the roofline.
Not for: one query a step (every key is read once, whatever the loop), masks, real caches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from loci.core.cost import Cost, Op, OpGraph
from loci.core.method import About, Frees, Kind, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.methods.cost.base import CostModel, Machine, rate_of, start_of
from loci.nn.flash_attention import Mask, Tiles, words_forward
from loci.nn.square_tiles import side_of, words_square

Algorithm = Literal["flash", "square"]


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """One way to do the attention of one KV head.

    Attributes:
        queries, keys: of a tile; for "square" both are its side.
        words: moved; passes: how often keys and values are read.
        bound: the order of what must move at least.
    """

    algorithm: Algorithm
    queries: int
    keys: int
    words: int
    passes: int
    bound: int


def bound(queries: int, keys: int, size: int, memory: int) -> int:
    """Return the order of the words that must move: the theorem's, or reading and writing once.

    >>> bound(1024, 1024, 64, 4096), bound(1024, 1024, 64, 1024)  # M = D^2, and a quarter of it
    (1048576, 2097152)
    """
    pairs = queries * keys * size
    moved = min(pairs * size / memory, pairs / math.sqrt(memory))
    return max(math.ceil(moved), 2 * (queries + keys) * size)


def plan(queries: int, keys: int, size: int, memory: int, groups: int = 1) -> AttentionPlan:
    """Return the loop and the tiles that move the fewest words of one KV head.

    Args:
        queries: of each of the `groups` query heads; memory: words of fast memory.

    Raises:
        ParameterError: if nothing fits.
    """
    rows = groups * queries
    least = bound(rows, keys, size, memory)
    side = side_of(memory)
    best = AttentionPlan(
        algorithm="square",
        queries=side,
        keys=side,
        words=words_square(rows, keys, size, side),
        passes=-(-rows // side),
        bound=least,
    )
    most = (memory - 2 * size) // (groups * (2 * size + 3))  # queries beside a single key
    if most < 1:
        return best  # not one row of each query head fits
    passes = -(-queries // min(most, queries))
    tile = -(-queries // passes)  # as few passes as can be, and no larger tiles than they take
    columns = (memory - groups * tile * (2 * size + 2)) // (2 * size + groups * tile)
    tiles = Tiles(queries=tile, keys=max(1, min(keys, columns)))
    words = words_forward(Mask(), tiles, queries, keys, size, groups)
    flash = replace(
        best, algorithm="flash", queries=tile, keys=tiles.keys, words=words, passes=passes
    )
    return flash if words <= best.words else best


@dataclass(frozen=True, kw_only=True)
class AttentionIo(CostModel):
    """The roofline, with attention's bytes as a fast memory of this size lets them be."""

    about = About(
        name="attention_io",
        kind=Kind.COST,
        paper="arXiv:2402.07443",
        idea="what attention must move depends on the fast memory, and has a bound",
        phases=(Phase.PREFILL, Phase.DECODE),
        frees=Frees.NOTHING,
        lossy=False,
    )

    fast: Annotated[int, Param(help="fast memory", unit="bytes", ge=64)] = 2**20
    size: Annotated[int, Param(help="channels of a head", ge=1)] = 64
    tier: Annotated[str, Param(help="the slow memory", choices=("dram", "gpu"))] = "dram"

    def estimate(self, work: OpGraph, machine: Machine) -> Cost:
        """Return the sum over all operators; `seconds_per_token` is the time of one pass."""
        if self.tier not in machine.tiers:
            raise ParameterError(
                "the machine has no such tier",
                value=self.tier,
                allowed=", ".join(machine.tiers),
            )
        bandwidth = machine.tiers[self.tier].read_bytes_per_s
        seconds = sum(
            op.repeat
            * (
                max(self.nbytes(op) / bandwidth, op.operations / rate_of(machine, op.rate))
                + start_of(machine, op.rate)
            )
            for op in work.ops
        )
        return Cost(operations=work.totals().operations, seconds_per_token=seconds)

    def nbytes(self, op: Op) -> float:
        """Return the bytes an operator moves; attention at least what its order says."""
        if op.name != "attention":
            return op.nbytes
        words = self.fast // 4
        per_pair = min(self.size / words, 1 / math.sqrt(words))  # words an operation, times four
        return max(op.nbytes, op.operations * per_pair)

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """A cost model holds no bytes and takes no time itself."""
        return Cost()
