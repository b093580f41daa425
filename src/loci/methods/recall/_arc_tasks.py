"""Puzzles, traces and situations as a job gives them: read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any  # JSON values

import numpy as np

from loci.errors import ParameterError
from loci.methods.recall._arc_dsl import MOST, Grid
from loci.methods.recall._arc_lessons import Trace

TAKES: Mapping[str, str] = {
    "traces": 'what was done: [{"id"?, "situation": text, "steps": [texts], "verified": whether '
    "it was checked that it helped}]; lessons are made of verified ones alone",
    "situations": 'to be advised on: [{"id"?, "text"}]',
    "outcomes": 'of advice: [{"situation": its id, "success": true or false, "lesson"?: which of '
    "those told was followed; the first if not given}]",
    "limit": "most lessons told for a situation; 5 if not given",
    "tokens": "most tokens of the advice for a situation; 300 if not given",
    "meaning": "whether likeness of meaning counts too, by the embedder; false if not given",
}
LIMIT, TOKENS = 5, 300  # 5: the paper's top-k
_LETTERS, _STEPS = 2000, 20  # of a situation and of an action; of a trace


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


# -- words ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A job in words, checked."""

    outcomes: tuple[Mapping[str, Any], ...]
    traces: tuple[Trace, ...]
    situations: tuple[tuple[str, str], ...]
    limit: int
    tokens: int
    meaning: bool


def read_words(inputs: Mapping[str, Any]) -> Asked:
    """Return what a job in words asks for, checked."""
    if not inputs.keys() & {"traces", "situations", "outcomes"}:
        raise ParameterError("a job in words has traces, situations or outcomes", value=[*inputs])
    traces = [_trace(one) for one in _list(inputs, "traces")]
    situations = [_situation(one) for one in _list(inputs, "situations")]
    outcomes = [_outcome(one) for one in _list(inputs, "outcomes")]
    for ids, what in (
        ([one.id for one in traces], "traces"),
        ([id for id, _ in situations], "situations"),
    ):
        if len(ids) != len(set(ids)):
            raise ParameterError(f"two {what} have one id", value=", ".join(ids)[:80])
    meaning = inputs.get("meaning", False)
    if not isinstance(meaning, bool):
        raise ParameterError("arcmemo.meaning is true or false", value=meaning)
    return Asked(
        tuple(outcomes),
        tuple(traces),
        tuple(situations),
        _count(inputs, "limit", LIMIT),
        _count(inputs, "tokens", TOKENS),
        meaning,
    )


def _list(inputs: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    given = inputs.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ParameterError(
            f"arcmemo.{name} is a list", value=str(given)[:80], allowed=TAKES[name]
        )
    return given


def _count(inputs: Mapping[str, Any], name: str, usual: int) -> int:
    given = inputs.get(name, usual)
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ParameterError(f"arcmemo.{name} is a whole number of at least 1", value=given)
    return given


def _fields(one: Mapping[str, Any], what: str, known: Sequence[str]) -> None:
    strange = [name for name in one if name not in known]
    if strange:
        raise ParameterError(f"no such field of {what}", value=strange[0], allowed=", ".join(known))


def _trace(one: Mapping[str, Any]) -> Trace:
    _fields(one, "a trace", ("id", "situation", "steps", "verified"))
    situation = _text(one.get("situation"), "the situation of a trace")
    steps = one.get("steps")
    if not isinstance(steps, list) or not 0 < len(steps) <= _STEPS:
        raise ParameterError(f"a trace has 1 to {_STEPS} steps", value=str(steps)[:80])
    lines = tuple(" ".join(_text(step, "a step of a trace").split()) for step in steps)
    verified = one.get("verified")
    if not isinstance(verified, bool):
        raise ParameterError(
            "a trace says whether it was verified", value=verified, allowed="true or false"
        )
    digest = _digest([situation, lines, verified])
    return Trace(_id(one, digest), situation, lines, verified, digest)


def _situation(one: Mapping[str, Any]) -> tuple[str, str]:
    _fields(one, "a situation", ("id", "text"))
    text = _text(one.get("text"), "the text of a situation")
    return _id(one, _digest(text)), text


def _outcome(one: Mapping[str, Any]) -> Mapping[str, Any]:
    _fields(one, "an outcome", ("situation", "success", "lesson"))
    if not isinstance(one.get("success"), bool):
        raise ParameterError(
            "an outcome says whether advice helped", value=one.get("success"), allowed="true, false"
        )
    for name in ("situation", "lesson"):
        if not isinstance(one.get(name, ""), str):
            raise ParameterError(f"the {name} of an outcome is a name", value=one[name])
    if "situation" not in one:
        raise ParameterError("an outcome names its situation", allowed=TAKES["outcomes"])
    return one


def _text(given: object, what: str) -> str:
    if not isinstance(given, str) or not given.strip() or len(given) > _LETTERS:
        raise ParameterError(
            f"{what} is a text", value=str(given)[:80], allowed=f"1 to {_LETTERS} letters"
        )
    return given.strip()


def _id(one: Mapping[str, Any], usual: str) -> str:
    id = one.get("id", usual)
    if not isinstance(id, str) or not id or len(id.split()) != 1 or len(id) > 80:
        raise ParameterError("an id is a word", value=str(id)[:80], allowed="1 to 80 letters")
    return id


def _digest(value: object) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
