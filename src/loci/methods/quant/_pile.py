"""Levels of all weights sorted into one pile, any first part of which is a model."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from loci.errors import ParameterError

ORDERS = ("gain", "depth", "random")


@dataclass(frozen=True)
class Pile:
    """One weight as levels.

    Attributes:
        least_bytes: of its smallest form, which is always there.
        level_bytes: of each further level.
        losses: with none, one, two .. of them; one number more than there are levels.
    """

    least_bytes: int
    level_bytes: tuple[int, ...]
    losses: tuple[float, ...]

    def gain(self, level: int) -> float:
        """Return the loss that the next level saves per byte."""
        return (self.losses[level] - self.losses[level + 1]) / self.level_bytes[level]


def sorted_levels(
    piles: Mapping[str, Pile], order: str, generator: Generator | None = None
) -> list[tuple[str, int]]:
    """Return (weight, bytes) of every level above the smallest forms, the most useful first.

    Args:
        order: "gain" takes what saves most loss per byte next; "depth" does so within a depth, so
            that no weight is more than one level ahead of another; "random" is for comparison.
        generator: draws the random order.
    """
    if order not in ORDERS:
        raise ParameterError("unknown order", value=order, allowed=", ".join(ORDERS))
    at = dict.fromkeys(piles, 0)
    if order == "random":
        seed = 0 if generator is None else generator.initial_seed()
        names = [name for name, pile in piles.items() for _ in pile.level_bytes]
        random.Random(seed).shuffle(names)
    elif order == "depth":
        deepest = max((len(pile.level_bytes) for pile in piles.values()), default=0)
        names = []
        for depth in range(deepest):
            there = [name for name, pile in piles.items() if depth < len(pile.level_bytes)]
            names += sorted(there, key=lambda name: -piles[name].gain(depth))
    else:
        names = []
        heap = [(-pile.gain(0), name) for name, pile in piles.items() if pile.level_bytes]
        heapq.heapify(heap)
        while heap:
            _, name = heapq.heappop(heap)
            names.append(name)
            at[name] += 1
            if at[name] < len(piles[name].level_bytes):
                heapq.heappush(heap, (-piles[name].gain(at[name]), name))
    found, at = [], dict.fromkeys(piles, 0)
    for name in names:
        found.append((name, piles[name].level_bytes[at[name]]))
        at[name] += 1
    return found
