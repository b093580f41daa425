"""Grid puzzles whose hidden programs share routines, drawn from a seed.

A world has a few hidden routines of two functions, each with constants that are its own and some
that change from puzzle to puzzle. Lessons are routines alone, a few times each, and with more;
exams are compositions that no lesson had. Every function of a program changes every grid it gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from random import Random
from typing import Any  # grids as JSON and as arrays

import numpy as np

from loci.methods.recall._arc_dsl import FUNCTIONS, INPUT, Call, Tree, chained, run, size

ROUTINES = 6
ALONE = 3  # lessons of each routine alone, before it comes with more
_PAIRS = 3
_COLORS = (1, 2, 3, 4, 5, 6, 8)
_NOT_HIDDEN = ("then_input_below", "then_input_beside", "over_input", "transpose", "tile", "scale")


@dataclass(frozen=True)
class Puzzle:
    """One puzzle: example pairs, a test pair, and the program that made them."""

    id: str
    train: tuple[tuple[Any, Any], ...]
    test: tuple[Any, Any]
    program: Tree
    parts: tuple[int, ...]

    @property
    def depth(self) -> int:
        """The number of functions in the program."""
        return size(self.program)

    def to_json(self) -> dict[str, Any]:
        """Return the puzzle in the form of ARC."""
        return {
            "id": self.id,
            "train": [{"input": a.tolist(), "output": b.tolist()} for a, b in self.train],
            "test": [{"input": self.test[0].tolist()}],
        }


def make_world(
    seed: int, lessons: int = 40, exams: int = 40, routines: int = ROUTINES
) -> tuple[list[Puzzle], list[Puzzle]]:
    """Return lessons and exams that share hidden routines and no composition of two of them."""
    dice = Random(f"puzzles {seed}")
    names = [name for name in FUNCTIONS if name not in _NOT_HIDDEN]
    shapes: list[tuple[tuple[str, ...], tuple[bool, ...]]] = []
    while len(shapes) < routines:
        shape = tuple(dice.sample(names, 2))
        if shape in (s for s, _ in shapes) or not _works(dice, shape):
            continue
        shapes.append((shape, (dice.random() < 0.5, dice.random() < 0.5)))
    constants = [[_constants(dice, name) for name in shape] for shape, _ in shapes]

    def routine(number: int) -> list[Call]:
        shape, fixed = shapes[number]
        return [
            Call(name, (INPUT, *(own if keep else _constants(dice, name))))
            for name, own, keep in zip(shape, constants[number], fixed, strict=True)
        ]

    def extra() -> list[Call]:
        name = dice.choice(names)
        return [Call(name, (INPUT, *_constants(dice, name)))]

    couples = [(a, b) for a in range(routines) for b in range(routines) if a != b]
    dice.shuffle(couples)
    taught, kept = couples[: len(couples) // 3], couples[len(couples) // 3 :]

    def draw(id: str, parts: Sequence[int], *, more: bool) -> Puzzle | None:
        calls = [call for part in parts for call in routine(part)]
        if more:
            calls = [*extra(), *calls] if dice.random() < 0.5 else [*calls, *extra()]
        return _puzzle(dice, id, chained(calls), parts)

    def series(
        prefix: str, plans: Iterator[tuple[Sequence[int], bool]], count: int
    ) -> list[Puzzle]:
        found: list[Puzzle] = []
        while len(found) < count:
            parts, more = next(plans)
            made = draw(f"{prefix}{seed}-{len(found)}", parts, more=more)
            if made is not None:
                found.append(made)
        return found

    def teaching() -> Iterator[tuple[Sequence[int], bool]]:
        alone = [(part,) for part in range(routines)]
        while True:
            kind = dice.random()
            yield (dice.choice(taught), False) if kind < 0.3 else (dice.choice(alone), True)

    def examining() -> Iterator[tuple[Sequence[int], bool]]:
        while True:
            kind = dice.random()
            if kind < 0.25:
                yield (dice.randrange(routines),), True
            else:
                yield dice.choice(kept), kind > 0.8

    first: list[Puzzle] = []
    for part in range(routines):
        first += series(f"lesson{part}.", repeat(((part,), False)), ALONE)
    dice.shuffle(first)
    rest = series("lesson", teaching(), max(lessons - len(first), 0))
    return [*first, *rest][:lessons], series("exam", examining(), exams)


def _works(dice: Random, shape: Sequence[str]) -> bool:
    """Return whether puzzles can be made of a routine at all."""
    calls = [Call(name, (INPUT, *_constants(dice, name))) for name in shape]
    return any(_puzzle(dice, "x", chained(calls), ()) is not None for _ in range(6))


def _constants(dice: Random, name: str) -> tuple[int, ...]:
    kinds = FUNCTIONS[name].types
    drawn = dice.sample(_COLORS, len(kinds))
    return tuple(
        dice.choice((2, 3)) if k == "count" else c for k, c in zip(kinds, drawn, strict=True)
    )


def _puzzle(dice: Random, id: str, program: Tree, parts: Sequence[int]) -> Puzzle | None:
    """Return a puzzle of a program, None if a function does nothing on some grid."""
    pairs: list[tuple[Any, Any]] = []
    for _ in range(_PAIRS + 1):
        for _ in range(8):
            grid = _grid(dice, program)
            made = _worked(program, grid)
            if made is not None:
                pairs.append((grid, made))
                break
        else:
            return None
    outputs = {b.tobytes() + bytes(b.shape) for _, b in pairs}
    if len(outputs) < 3:
        return None
    return Puzzle(id, tuple(pairs[:-1]), pairs[-1], program, tuple(parts))


def _worked(program: Tree, grid: Any) -> Any | None:
    """Return the output if each function changes what it is given and something is left."""
    from loci.methods.recall._arc_dsl import steps

    now = grid
    for call in steps(program):
        made = run(Call(call.name, (INPUT, *call.args[1:])), now, grid)
        if (
            made is None
            or not made.any()
            or (made.shape == now.shape and np.array_equal(made, now))
        ):
            return None
        now = made
    return now if min(now.shape) > 1 or now.size > 2 else None


def _grid(dice: Random, program: Tree) -> Any:
    """Return a grid of rectangles and dots, in which the program's old colours occur."""
    rows, columns = dice.randint(4, 10), dice.randint(4, 10)
    grid = np.zeros((rows, columns), np.int8)
    wanted = [c for c in _old(program) if c]
    colors = [*wanted, *dice.sample(_COLORS, 2)]
    for n in range(dice.randint(3, 6)):
        color = colors[n] if n < len(wanted) else dice.choice(colors)
        h, w = dice.randint(1, 3), dice.randint(1, 3)
        top, left = dice.randint(0, rows - h), dice.randint(0, columns - w)
        if dice.random() < 0.3 and h > 2 and w > 2:
            grid[top : top + h, left : left + w] = color
            grid[top + 1 : top + h - 1, left + 1 : left + w - 1] = 0
        else:
            grid[top : top + h, left : left + w] = color
    return grid


def _old(program: Tree) -> list[int]:
    from loci.methods.recall._arc_dsl import steps

    found: list[int] = []
    for call in steps(program):
        for kind, arg in zip(FUNCTIONS[call.name].types, call.args[1:], strict=True):
            if kind == "old" and isinstance(arg, int):
                found.append(arg)
    return found
