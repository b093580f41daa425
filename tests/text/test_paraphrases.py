"""Over a thousand ways of saying a few things, written from English, used while rules were made.

Each way is told to a memory that knows what it must, and the operation that follows is compared
with the right one. The floors keep what was reached; they say nothing of other ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loci.bench.suites.operations import operation_on
from loci.core.item import Turn
from loci.methods.recall.mem0 import Mem0
from loci.testing.recall import DictView
from loci.text.dialogue import Expected
from loci.text.extract import extract

FOLDER = Path(__file__).parent / "data"
NOW = datetime(2025, 3, 4, 18, 0, tzinfo=UTC)
# Shares of right operations, of all and of each relation.
FLOORS = {"paraphrases": (0.98, 0.95), "more_paraphrases": (0.94, 0.80)}
KNOWN = (
    "I live in Utrecht.",
    "I work at Orbex.",
    "I work as a baker.",
    "My partner is Jonas.",
    "I love black olives.",
    "I play chess.",
    "I have a rabbit named Fig.",
    "I drive a grey Kia.",
    "I speak Finnish.",
    "I'm allergic to sesame.",
    "My favourite colour is olive.",
)
SLOTS = (
    *("lives_in", "works_at", "job", "partner", "likes", "hobby"),
    *("pet", "drives", "speaks", "allergic_to", "favourite"),
)
KINDS = {"is": "add", "over": "retire", "still": "noop"}


@dataclass(frozen=True)
class Way:
    """One way of saying something: what, in words, and what a memory heard before."""

    relation: str
    kind: str
    said: str
    value: str
    old: str
    before: str
    operation: str


def ways(path: Path) -> Iterator[Way]:
    """Return all ways of a file, each with a value of its own."""
    relation, many, values, before = "", False, [""], ""
    for number, line in enumerate(path.read_text().splitlines()):
        if line.startswith("== "):
            head, _, before = line.removeprefix("== ").partition(" < ")
            name, _, given = head.partition(" : ")
            relation, many = name.split()[0], name.endswith("many")
            values = [value.strip() for value in given.split(";")]
        elif line and not line.startswith("#"):
            kind, _, said = line.partition(": ")
            value = values[number % len(values)]
            old = values[(number + 1) % len(values)]
            said = said.format(v=value)
            known = {"is": "", "now": old, "over": value, "still": value}[kind]
            yield Way(
                relation,
                kind,
                said[:1].upper() + said[1:],
                value,
                old if kind == "now" and not many else "",
                before.format(v=known) if known else "",
                KINDS.get(kind, "add" if many else "supersede"),
            )


def turn(number: int, said: str) -> Turn:
    return Turn(
        id=f"t{number}",
        role="user",
        name="Nora",
        content=said,
        time=NOW + timedelta(days=number),
        session=f"s{number}",
    )


def done(way: Way) -> str:
    """Return the operation that a memory carries out when it is told."""
    view, method = DictView(), Mem0()
    if way.before:
        view.remember([turn(0, way.before)], method)
    edits = view.remember([turn(9, way.said)], method)
    wanted = Expected(turn="t9", operation=way.operation, value=way.value, old=way.old)
    return operation_on(wanted, edits, view)


def shares(path: Path) -> dict[str, float]:
    """Return the share of right operations of each relation, and of "all"."""
    right: dict[str, list[bool]] = {}
    for way in ways(path):
        good = done(way) == way.operation
        right.setdefault(way.relation, []).append(good)
        right.setdefault("all", []).append(good)
    return {name: sum(found) / len(found) for name, found in right.items()}


@pytest.mark.parametrize("name", list(FLOORS))
def test_most_ways_of_saying_it_are_understood(name: str) -> None:
    found = shares(FOLDER / f"{name}.txt")
    least, least_each = FLOORS[name]
    assert found["all"] >= least and min(found.values()) >= least_each, found


def of_nora(view: DictView) -> set[str]:
    """Return what the memory holds of the speaker in the slots above."""
    return {
        item.text
        for item in view.all_items()
        if item.is_live
        and item.subject == "nora"
        and (item.predicate or "").partition(":")[0] in SLOTS
    }


def test_what_tells_nothing_of_the_speaker_changes_nothing() -> None:
    view, method = DictView(), Mem0()
    view.remember([turn(number, said) for number, said in enumerate(KNOWN)], method)
    known = of_nora(view)
    assert len(known) == len(KNOWN)
    for number, said in enumerate((FOLDER / "nothing_told.txt").read_text().splitlines(), 20):
        view.remember([turn(number, said)], method)
        assert of_nora(view) == known, said


def test_other_facts_are_read_from_one_message() -> None:
    for line in (FOLDER / "other_facts.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        said, _, wanted = line.partition(" = ")
        found = {(c.subject, c.predicate, c.object, c.ends) for c in extract([turn(0, said)])}
        if wanted.startswith("nothing "):
            slot = wanted.removeprefix("nothing ")
            assert not any((who, what) == ("nora", slot) for who, what, _, _ in found), said
            continue
        who, slot, value = wanted.split(" ", 2)
        fact = (who, slot, value.removesuffix(" over"), value.endswith(" over"))
        assert fact in found, (said, found)
