"""Puzzles as a job gives them: read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from loci.errors import ParameterError
from loci.methods.recall._arc_dsl import MOST, Grid


@dataclass(frozen=True)
class Puzzle:
    """One puzzle: example pairs, test inputs, and a name for all of it."""

    id: str
    pairs: tuple[tuple[Grid, Grid], ...]
    tests: tuple[Grid, ...]
    digest: str


def puzzles(given: object) -> list[Puzzle]:
    """Return the puzzles of a job, checked."""
    if not isinstance(given, list) or not given or not all(isinstance(t, dict) for t in given):
        raise ParameterError("arcmemo.tasks is a list of puzzles", value=str(given)[:80])
    found: dict[str, Puzzle] = {}
    for number, task in enumerate(given):
        text = json.dumps([task.get("train"), task.get("test")], sort_keys=True)
        digest = blake2b(text.encode(), digest_size=8).hexdigest()
        id = task.get("id", digest)
        if not isinstance(id, str) or not id or " " in id or len(id) > 80:
            raise ParameterError("the id of a puzzle is a word", value=id)
        if id in found:
            raise ParameterError("two puzzles have this id", value=id)
        pairs, tests = task.get("train"), task.get("test", [])
        if not isinstance(pairs, list) or not pairs or not isinstance(tests, list):
            raise ParameterError(
                f"puzzle {number} has no examples", value=id, allowed="train: [...]"
            )
        found[id] = Puzzle(
            id=id,
            pairs=tuple((_grid(p, "input", id), _grid(p, "output", id)) for p in pairs),
            tests=tuple(_grid(t, "input", id) for t in tests),
            digest=digest,
        )
    return list(found.values())


def _grid(entry: object, name: str, id: str) -> Grid:
    rows = entry.get(name) if isinstance(entry, dict) else None
    good = (
        isinstance(rows, list)
        and 0 < len(rows) <= MOST
        and all(isinstance(row, list) and 0 < len(row) <= MOST for row in rows)
        and len({len(row) for row in rows}) == 1
        and all(type(cell) is int and 0 <= cell <= 9 for row in rows for cell in row)
    )
    if not good:
        raise ParameterError(
            f"the {name} of an example of {id} is no grid",
            value=str(rows)[:60],
            allowed=f"rows of equal length with digits 0 to 9, at most {MOST} by {MOST}",
        )
    return np.array(rows, np.int8)
