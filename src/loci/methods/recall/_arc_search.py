"""The solver of ArcMemo: programs from the likely to the unlikely, until the examples come out.

A move is a piece of program with what it costs, the logarithm of how unlikely it is; every further
move costs `FURTHER` more. States are what the examples' inputs have become; the next move is always
the cheapest one of the cheapest state. A node is one function applied to a state, so a routine of
three counts three.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from loci.methods.recall._arc_concepts import Concept, Pairs, filled
from loci.methods.recall._arc_dsl import (
    FUNCTIONS,
    INPUT,
    Grid,
    Tree,
    chained,
    fits,
    instances,
    run,
    size,
    steps,
)

FURTHER = 4.0
"""What a program pays for every move; tuned on worlds of seeds 100 to 104 of `testing.puzzles`."""

Palette = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Move:
    """A piece of program, what it costs, and the concept it is made of."""

    tree: Tree
    cost: float
    concept: str = ""

    @cached_property
    def nodes(self) -> int:
        """How many functions it applies."""
        return size(self.tree)

    @cached_property
    def calls(self) -> tuple[tuple[Callable[..., Grid | None], tuple[Tree, ...]], ...]:
        """Its functions with their constants, in the order in which they work."""
        return tuple((FUNCTIONS[call.name].run, call.args[1:]) for call in steps(self.tree))


@dataclass(frozen=True)
class Found:
    """What a search found: a program, None for none, the concepts in it, and what it took."""

    program: Tree | None
    concepts: tuple[str, ...]
    nodes: int


def palette_of(pairs: Pairs) -> Palette:
    """Return the constants that a problem offers: its colours, and small counts."""
    old = sorted(set().union(*(set(np.unique(a).tolist()) for a, _ in pairs)) - {0})
    new = sorted(set().union(*(set(np.unique(b).tolist()) for _, b in pairs)) - {0})
    return {"old": old, "new": new, "count": (2, 3)}


def moves_of(
    palette: Palette, concepts: Sequence[tuple[Concept, float]] = (), share: float = 0.5
) -> list[Move]:
    """Return moves, the likeliest first: concepts share `share` by weight, functions the rest."""
    simple = list(instances(palette))
    ready = [(concept, weight, filled(concept, palette)) for concept, weight in concepts]
    ready = [entry for entry in ready if entry[2] and entry[1] > 0]
    total = sum(weight for _, weight, _ in ready)
    left = 1.0 - share if ready else 1.0
    moves = [Move(tree, FURTHER - math.log(left / len(simple))) for tree in simple]
    for concept, weight, trees in ready:
        cost = FURTHER - math.log(share * weight / total / len(trees))
        moves += [Move(tree, cost, concept.name) for tree in trees]
    return sorted(moves, key=lambda move: move.cost)


def solve(pairs: Pairs, moves: Sequence[Move], budget: int, first: Sequence[Tree] = ()) -> Found:
    """Return a program that turns every input into its output, within a budget of nodes.

    Args:
        first: whole programs to try before the search.
    """
    inputs, outputs = [a for a, _ in pairs], [b for _, b in pairs]
    nodes = 0
    for program in first:
        nodes += size(program)
        if nodes > budget:
            return Found(None, (), budget)
        if _equal([run(program, grid) for grid in inputs], outputs):
            return Found(program, (), nodes)
    states: list[tuple[list[Grid], Tree, tuple[str, ...]]] = [(inputs, INPUT, ())]
    seen = {_key(inputs)}
    heap: list[tuple[float, int, int, float]] = []
    if moves:
        heap.append((moves[0].cost, 0, 0, 0.0))
    while heap and nodes < budget:
        _, at, number, base = heapq.heappop(heap)
        if number + 1 < len(moves):
            heapq.heappush(heap, (base + moves[number + 1].cost, at, number + 1, base))
        grids, program, used = states[at]
        move = moves[number]
        nodes += move.nodes
        made = _applied(move, grids, inputs)
        if made is None or (key := _key(made)) in seen:
            continue
        seen.add(key)
        longer = chained(steps(move.tree), program)
        with_it = (*used, move.concept) if move.concept else used
        if _equal(made, outputs):
            return Found(longer, tuple(dict.fromkeys(with_it)), nodes)
        states.append((made, longer, with_it))
        cost = base + move.cost
        heapq.heappush(heap, (cost + moves[0].cost, len(states) - 1, 0, cost))
    return Found(None, (), min(nodes, budget))


def _applied(move: Move, grids: Sequence[Grid], inputs: Sequence[Grid]) -> list[Grid] | None:
    """Return what a move makes of every grid, as `run` would."""
    made: list[Grid] = []
    for grid, whole in zip(grids, inputs, strict=True):
        one = grid
        for function, constants in move.calls:
            one = function(one, *(whole if arg is INPUT else arg for arg in constants))
            if one is None or not one.size or not fits(one):
                return None
        made.append(one)
    return made


def _equal(made: Sequence[Grid | None], wanted: Sequence[Grid]) -> bool:
    return all(
        a is not None and a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip(made, wanted, strict=True)
    )


def _key(grids: Sequence[Grid]) -> bytes:
    return b"".join(bytes(grid.shape) + np.ascontiguousarray(grid).tobytes() for grid in grids)
