"""What attention moves: real loops counted against their formulas, the other loop, and the bound.

The loops run on random heads of the model's size, through a memory that counts every word and
refuses what does not fit. Slopes and the crossover come from the formulas at a length no machine
would run; the runs show that formulas and loops are the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any  # results hold whatever JSON can hold

import numpy as np
import torch

from loci.bench.cards import Row
from loci.bench.suite import Context
from loci.methods.cost.attention_io import AttentionPlan, plan
from loci.models.load import resolve
from loci.nn.fast_memory import FastMemory
from loci.nn.flash_attention import Mask, Tiles, flash_attention, reference, words_forward
from loci.nn.square_tiles import side_of, square_attention, words_square

ABOUT = "words that attention moves between two memories: counted, predicted, and the bound"
LENGTH, FAR = 192, 2**20
POWERS = range(-6, 5)  # memories of D^2 times so many powers of two
QUICK = 3


def run(context: Context) -> dict[str, Any]:
    """Run the planned loop at every size of memory, and fit slopes far out."""
    pack = resolve(context.model, context.folder)
    size, fingerprint = pack.spec.head_dim, pack.spec.fingerprint
    pack.close()
    powers = list(POWERS)[:QUICK] if context.quick else list(POWERS)
    rows = []
    for done, power in enumerate(powers):
        memory = max(5, int(size**2 * 2.0**power))
        context.progress(f"{memory} words", done, len(powers))
        rows.append(_counted(size, memory, context.seed))
    u = (4 * math.sqrt(3) + 8) / 8  # 4 u^2 = 4 sqrt(3) u + 1 with u = D / sqrt(M)
    return {
        "model": context.model,
        "fingerprint": fingerprint,
        "head_size": size,
        "length": LENGTH,
        "rows": rows,
        "slope": {
            "flash": _slope([plan(FAR, FAR, size, size**2 * 2**p).words for p in range(1, 7)]),
            "square": _slope(
                [words_square(FAR, FAR, size, side) - FAR**2 for side in (2, 4, 8, 16)], 4
            ),
        },
        "crossover": {"predicted": size**2 / u**2, "found": _crossover(size)},
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what was counted at the smallest and the largest memory, and the slopes."""
    rows = result["rows"]
    metrics: dict[str, dict[str, Any]] = {
        f"words with {row['memory']} of memory": {
            "this": row["counted"],
            "rivals": {name: n for name, n in row["loops"].items() if n is not None},
        }
        for row in (rows[0], rows[-1])
    }
    metrics |= {f"slope of {name}": {"this": value} for name, value in result["slope"].items()}
    wrong = max(abs(row["counted"] - row["predicted"]) for row in rows)
    metrics["words counted but not predicted"] = {"this": wrong}
    metrics["largest error of the output"] = {"this": max(row["error"] for row in rows)}
    ratio = {"crossover, found over predicted": _over(result["crossover"])}
    return [Row(method="attention_io", kind="cost", metrics=metrics, ratio=ratio)]


def _over(crossover: Mapping[str, float]) -> float:
    return crossover["found"] / crossover["predicted"]


def _counted(size: int, memory: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 1, LENGTH, size, generator=generator)
    chosen, counter = plan(LENGTH, LENGTH, size, memory), FastMemory(memory)
    found = _run(chosen, q, k, v, counter)
    expected, _ = reference(q.double(), k.double(), v.double())
    side = side_of(memory)
    return {
        "memory": memory,
        "algorithm": chosen.algorithm,
        "passes": chosen.passes,
        "counted": counter.moved,
        "predicted": chosen.words,
        "loops": {
            "bound, order of": chosen.bound,
            "square": words_square(LENGTH, LENGTH, size, side),
            "flash": _flash_words(size, memory),
        },
        "error": float((found - expected).abs().max()),
    }


def _run(
    chosen: AttentionPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counter: FastMemory
) -> torch.Tensor:
    if chosen.algorithm == "square":
        scale = q.shape[-1] ** -0.5
        return square_attention(q[0, 0], k[0, 0], v[0, 0], scale=scale, memory=counter)
    tiles = Tiles(queries=chosen.queries, keys=chosen.keys)
    return flash_attention(q, k, v, tiles=tiles, memory=counter)[0]


def _flash_words(size: int, memory: int) -> int | None:
    """Return what FlashAttention would move; None where not one query fits."""
    most = (memory - 2 * size) // (2 * size + 3)
    if most < 1:
        return None
    return words_forward(Mask(), Tiles(queries=min(most, LENGTH), keys=1), LENGTH, LENGTH, size)


def _slope(words: list[int], step: int = 2) -> float:
    memories = np.log([float(step) ** n for n in range(len(words))])
    return float(np.polyfit(memories, np.log(words), 1)[0])


def _crossover(size: int) -> float:
    """Return the least memory from which on FlashAttention is the choice."""
    low, high = 5, size**2
    while low + 1 < high:
        middle = (low + high) // 2
        if plan(FAR, FAR, size, middle).algorithm == "flash":
            high = middle
        else:
            low = middle
    return float(high)
