"""A small typed language of grid programs: functions, programs as trees, running and printing them.

A grid is an array of digits 0 to 9, at most 30 by 30; 0 is the ground. A program is a tree:
`Call(name, args)`, where an argument is a tree, a constant, `Var(n)` of an unfinished program, or
`INPUT`. Every function takes a grid first; all are total on grids, and return None where they have
nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any  # arrays

import numpy as np

Grid = Any  # int8 [rows, columns]
MOST = 30  # rows or columns


@dataclass(frozen=True)
class Var:
    """A hole in a program, by its number."""

    number: int
    type: str


@dataclass(frozen=True)
class Call:
    """A function applied to arguments; the first is the grid it works on."""

    name: str
    args: tuple[Any, ...]  # trees

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class _Input:
    def __str__(self) -> str:
        return "input"


INPUT = _Input()
Tree = Call | Var | _Input | int


def run(tree: Tree, grid: Grid, input: Grid | None = None) -> Grid | None:
    """Return what a program makes of a grid, None if a part of it has nothing to say.

    Args:
        input: what `INPUT` stands for behind the first argument, where the program works on
            something that was made of it; the grid itself if not given.
    """
    if isinstance(tree, _Input):
        return grid
    assert isinstance(tree, Call)
    inner = run(tree.args[0], grid, input)
    if inner is None:
        return None
    whole = grid if input is None else input
    rest = [whole if isinstance(arg, _Input) else arg for arg in tree.args[1:]]
    made = FUNCTIONS[tree.name].run(inner, *rest)
    return made if made is not None and 0 < made.size <= MOST * MOST and fits(made) else None


def fits(grid: Grid) -> bool:
    """Return whether a grid is no larger than allowed."""
    return bool(max(grid.shape) <= MOST)


def size(tree: Tree) -> int:
    """Return the number of calls in a tree."""
    return 1 + sum(map(size, tree.args)) if isinstance(tree, Call) else 0


def steps(tree: Tree) -> list[Call]:
    """Return the calls of a program in the order in which they work on the grid."""
    found: list[Call] = []
    while isinstance(tree, Call):
        found.insert(0, tree)
        tree = tree.args[0]
    return found


def chained(calls: Sequence[Call], start: Tree = INPUT) -> Tree:
    """Return the program in which each call works on what the one before made."""
    tree = start
    for call in calls:
        tree = Call(call.name, (tree, *call.args[1:]))
    return tree


def to_json(tree: Tree) -> Any:
    """Return a tree as JSON."""
    if isinstance(tree, Call):
        return [tree.name, *map(to_json, tree.args)]
    if isinstance(tree, Var):
        return {"var": tree.number, "type": tree.type}
    return "input" if isinstance(tree, _Input) else tree


def from_json(value: Any) -> Tree:
    """Return the tree that `to_json` wrote."""
    if isinstance(value, list):
        return Call(str(value[0]), tuple(from_json(one) for one in value[1:]))
    if isinstance(value, dict):
        return Var(int(value["var"]), str(value["type"]))
    return INPUT if value == "input" else int(value)


# -- the functions ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A function: what it does to a grid, and the types of its arguments after the grid."""

    run: Callable[..., Grid | None]
    types: tuple[str, ...] = ()


def parts(grid: Grid, *, by_color: bool = True) -> list[list[tuple[int, int]]]:
    """Return the connected parts that are not ground (four neighbours), largest first."""
    rows, columns = grid.shape
    cells_of = grid.tolist()  # plain lists: single cells of arrays are slow to read
    seen = [[not color for color in row] for row in cells_of]
    found: list[list[tuple[int, int]]] = []
    for r in range(rows):
        for c in range(columns):
            if seen[r][c]:
                continue
            color, stack, cells = cells_of[r][c], [(r, c)], []
            seen[r][c] = True
            while stack:
                y, x = stack.pop()
                cells.append((y, x))
                for b, a in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                    if 0 <= b < rows and 0 <= a < columns and not seen[b][a]:
                        if by_color and cells_of[b][a] != color:
                            continue
                        seen[b][a] = True
                        stack.append((b, a))
            found.append(cells)
    return sorted(found, key=lambda cells: (-len(cells), min(cells)))


def _only(grid: Grid, cells: Sequence[tuple[int, int]]) -> Grid:
    made = np.zeros_like(grid)
    for y, x in cells:
        made[y, x] = grid[y, x]
    return made


def crop(grid: Grid) -> Grid | None:
    """Return the smallest rectangle that holds all that is not ground."""
    where = np.argwhere(grid)
    if not len(where):
        return None
    (top, left), (bottom, right) = where.min(0), where.max(0)
    return grid[top : bottom + 1, left : right + 1]


def _part(grid: Grid, at: int, *, least: int = 1) -> Grid | None:
    found = parts(grid)
    return _only(grid, found[at]) if len(found) > least - 1 and found else None


def _gravity(grid: Grid, turns: int) -> Grid:
    columns = np.rot90(grid, turns).T.tolist()
    made = [sorted(column, key=bool) for column in columns]  # ground first; a sort keeps order
    return np.rot90(np.array(made, grid.dtype).T, -turns)


def _fill_holes(grid: Grid, color: int) -> Grid:
    """Give ground that the border cannot reach a colour."""
    rows, columns = grid.shape
    inside = (grid == 0).tolist()  # ground that was not reached yet
    stack = [(r, c) for r in range(rows) for c in (0, columns - 1)]
    stack += [(r, c) for c in range(columns) for r in (0, rows - 1)]
    while stack:
        y, x = stack.pop()
        if 0 <= y < rows and 0 <= x < columns and inside[y][x]:
            inside[y][x] = False
            stack += ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
    made = grid.copy()
    made[np.array(inside)] = color
    return made


def _outline(grid: Grid, color: int) -> Grid:
    """Give ground beside anything a colour."""
    full = np.pad(grid > 0, 1)
    near = full[:-2, 1:-1] | full[2:, 1:-1] | full[1:-1, :-2] | full[1:-1, 2:]
    made = grid.copy()
    made[near & (grid == 0)] = color
    return made


def _recolor(grid: Grid, old: int, new: int) -> Grid:
    made = grid.copy()
    made[grid == old] = new
    return made


def _keep(grid: Grid, color: int) -> Grid:
    return np.where(grid == color, grid, 0).astype(grid.dtype)


def _paint(grid: Grid, color: int) -> Grid:
    return np.where(grid > 0, color, 0).astype(grid.dtype)


def _border(grid: Grid, color: int) -> Grid:
    made = grid.copy()
    made[0, :] = made[-1, :] = color
    made[:, 0] = made[:, -1] = color
    return made


def _halves(grid: Grid, axis: int) -> tuple[Grid, Grid] | None:
    """Return both halves; a line between them is left out where the length is odd."""
    length = grid.shape[axis]
    half = length // 2
    if half == 0:
        return None
    first = grid[:half] if axis == 0 else grid[:, :half]
    second = grid[length - half :] if axis == 0 else grid[:, length - half :]
    return first, second


def _half(grid: Grid, axis: int, which: int) -> Grid | None:
    found = _halves(grid, axis)
    return None if found is None else found[which]


def _logic(grid: Grid, color: int, axis: int, what: str) -> Grid | None:
    found = _halves(grid, axis)
    if found is None:
        return None
    a, b = found[0] > 0, found[1] > 0
    mask = {"and": a & b, "or": a | b, "xor": a ^ b, "nor": ~(a | b)}[what]
    return np.where(mask, color, 0).astype(grid.dtype)


def _symmetric(grid: Grid, axis: int) -> Grid:
    """Fill ground with what lies mirrored."""
    return np.where(grid > 0, grid, np.flip(grid, axis))


def _unique_lines(grid: Grid) -> Grid:
    """Drop rows and columns that equal the one before."""
    rows = [0, *(r for r in range(1, grid.shape[0]) if (grid[r] != grid[r - 1]).any())]
    made = grid[rows]
    columns = [0, *(c for c in range(1, made.shape[1]) if (made[:, c] != made[:, c - 1]).any())]
    return made[:, columns]


def _connect(grid: Grid) -> Grid:
    """Draw lines between cells of one colour in a row or column with ground between them."""
    made = grid.copy()
    for source, target in ((grid, made), (grid.T, made.T)):
        for line in range(source.shape[0]):
            at = np.flatnonzero(source[line])
            for a, b in pairwise(at):
                if source[line, a] == source[line, b]:
                    target[line, a:b] = source[line, a]
    return made


def _denoise(grid: Grid) -> Grid:
    made = grid.copy()
    for cells in parts(grid, by_color=False):
        if len(cells) == 1:
            made[cells[0]] = 0
    return made


def _common(grid: Grid, least: bool) -> Grid | None:
    """Return the cells of the most (or least) frequent colour that is not ground."""
    colors, counts = np.unique(grid[grid > 0], return_counts=True)
    if len(colors) < 2:
        return None
    best = colors[counts.argmin() if least else counts.argmax()]
    return _keep(grid, int(best))


def _beside(grid: Grid, other: Grid, axis: int) -> Grid | None:
    if grid.shape[1 - axis] != other.shape[1 - axis]:
        return None
    return np.concatenate([grid, other], axis)


def _over(grid: Grid, other: Grid) -> Grid | None:
    return np.where(grid > 0, grid, other) if grid.shape == other.shape else None


def _invert(grid: Grid) -> Grid | None:
    """Swap ground and the only colour."""
    colors = np.unique(grid[grid > 0])
    return np.where(grid > 0, 0, colors[0]).astype(grid.dtype) if len(colors) == 1 else None


def _shift(grid: Grid, axis: int, by: int) -> Grid:
    made = np.roll(grid, by, axis)
    if axis == 0:
        made[0 if by > 0 else -1] = 0
    else:
        made[:, 0 if by > 0 else -1] = 0
    return made


def _spread(grid: Grid, axis: int) -> Grid:
    """Draw every cell out over its whole row (axis 1) or column (axis 0), over ground."""
    made = grid.copy()
    lines = grid if axis == 1 else grid.T
    target = made if axis == 1 else made.T
    for at in range(lines.shape[0]):
        colors = lines[at][lines[at] > 0]
        if len(colors):
            target[at] = np.where(target[at] > 0, target[at], colors[0])
    return made


FUNCTIONS: Mapping[str, Function] = {
    "flip_rows": Function(np.flipud),
    "flip_columns": Function(np.fliplr),
    "transpose": Function(np.transpose),
    "turn_left": Function(lambda grid: grid.T[::-1]),
    "turn_right": Function(lambda grid: grid[::-1].T),
    "turn_twice": Function(lambda grid: grid[::-1, ::-1]),
    "crop": Function(crop),
    "largest_part": Function(partial(_part, at=0)),
    "smallest_part": Function(partial(_part, at=-1, least=2)),
    "without_largest": Function(
        lambda grid: None if len(p := parts(grid)) < 2 else grid - _only(grid, p[0])
    ),
    "denoise": Function(_denoise),
    "most_common": Function(partial(_common, least=False)),
    "least_common": Function(partial(_common, least=True)),
    "unique_lines": Function(_unique_lines),
    "connect": Function(_connect),
    "invert": Function(_invert),
    "fall_down": Function(partial(_gravity, turns=0)),
    "fall_left": Function(partial(_gravity, turns=1)),
    "fall_up": Function(partial(_gravity, turns=2)),
    "fall_right": Function(partial(_gravity, turns=3)),
    "mirror_rows": Function(partial(_symmetric, axis=0)),
    "mirror_columns": Function(partial(_symmetric, axis=1)),
    "spread_rows": Function(partial(_spread, axis=1)),
    "spread_columns": Function(partial(_spread, axis=0)),
    "top": Function(partial(_half, axis=0, which=0)),
    "bottom": Function(partial(_half, axis=0, which=1)),
    "left": Function(partial(_half, axis=1, which=0)),
    "right": Function(partial(_half, axis=1, which=1)),
    "shift_down": Function(partial(_shift, axis=0, by=1)),
    "shift_up": Function(partial(_shift, axis=0, by=-1)),
    "shift_right": Function(partial(_shift, axis=1, by=1)),
    "shift_left": Function(partial(_shift, axis=1, by=-1)),
    "scale": Function(lambda grid, n: grid.repeat(n, 0).repeat(n, 1), ("count",)),
    "tile": Function(lambda grid, n: np.tile(grid, (n, n)), ("count",)),
    "recolor": Function(_recolor, ("old", "new")),
    "keep": Function(_keep, ("old",)),
    "without": Function(lambda grid, color: _recolor(grid, color, 0), ("old",)),
    "paint": Function(_paint, ("new",)),
    "fill_holes": Function(_fill_holes, ("new",)),
    "outline": Function(_outline, ("new",)),
    "border": Function(_border, ("new",)),
    "both_rows": Function(partial(_logic, axis=0, what="and"), ("new",)),
    "either_rows": Function(partial(_logic, axis=0, what="or"), ("new",)),
    "one_of_rows": Function(partial(_logic, axis=0, what="xor"), ("new",)),
    "neither_rows": Function(partial(_logic, axis=0, what="nor"), ("new",)),
    "both_columns": Function(partial(_logic, axis=1, what="and"), ("new",)),
    "either_columns": Function(partial(_logic, axis=1, what="or"), ("new",)),
    "one_of_columns": Function(partial(_logic, axis=1, what="xor"), ("new",)),
    "neither_columns": Function(partial(_logic, axis=1, what="nor"), ("new",)),
    "then_input_below": Function(partial(_beside, axis=0), ("input",)),
    "then_input_beside": Function(partial(_beside, axis=1), ("input",)),
    "over_input": Function(_over, ("input",)),
}


def choices(type_: str, palette: Mapping[str, Sequence[int]]) -> Sequence[Tree]:
    """Return the constants that may stand for a type in one problem."""
    return (INPUT,) if type_ == "input" else tuple(palette[type_])


def instances(palette: Mapping[str, Sequence[int]], hole: Tree = INPUT) -> Iterator[Call]:
    """Yield every call of one function with the constants of a problem."""
    for name, function in FUNCTIONS.items():
        filled: list[tuple[Tree, ...]] = [()]
        for type_ in function.types:
            filled = [(*args, one) for args in filled for one in choices(type_, palette)]
        for args in filled:
            if name != "recolor" or args[0] != args[1]:
                yield Call(name, (hole, *args))
