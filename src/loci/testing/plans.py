"""Scripts of people who plan and change their minds, with the state that each script leads to.

Everything is drawn from a seed: which fields a plan has, what is said, in which words. The state is
kept by a simulator that knows the operations and never reads a sentence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal  # values of nodes

Words = Literal["canonical", "written", "held_out"]
"""Which wordings: the documented ones; of the others, those rules may know, and those held out."""

KINDS = ("set", "change", "rollback_to", "rollback", "remove", "remove_but", "restore", "depend")
CHECKS = ("check", "check_before")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One turn: what was said, what it means, and for questions the right answer."""

    text: str
    kind: str
    slot: str
    value: str | None = None
    other: str | None = None
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Script:
    """A plan's fields, what was said, and the state at the end.

    Attributes:
        state: {slot: (value, status, whether it is stale)}.
    """

    domain: str
    slots: tuple[str, ...]
    turns: tuple[Said, ...]
    state: Mapping[str, tuple[str | None, str, bool]]
    seed: int


@dataclass
class _Field:
    values: list[str] = field(default_factory=list)  # the line that going back walks along
    past: list[str] = field(default_factory=list)  # every value it ever had
    status: str = "pending"
    is_stale: bool = False
    needs: set[str] = field(default_factory=set)


class Simulator:
    """What holds after operations, without reading any words."""

    def __init__(self, slots: Sequence[str]) -> None:
        self.fields = {slot: _Field() for slot in slots}

    def apply(self, said: Said) -> None:
        """Carry out one turn."""
        one = self.fields[said.slot]
        if said.kind in ("set", "change"):
            assert said.value is not None
            if not one.values or one.values[-1] != said.value:
                one.values.append(said.value)
            self._settled(said.slot, said.value)
        elif said.kind == "rollback_to":
            assert said.value is not None
            while one.values[-1] != said.value:
                one.values.pop()
            self._settled(said.slot, said.value)
        elif said.kind == "rollback":
            one.values.pop()
            self._settled(said.slot, one.values[-1])
        elif said.kind == "remove":
            self._status(said.slot, "removed")
        elif said.kind == "remove_but":
            for slot, other in self.fields.items():
                if slot != said.slot and other.status == "done":
                    self._status(slot, "removed")
        elif said.kind == "restore":
            self._status(said.slot, "done")
        elif said.kind == "depend":
            assert said.other is not None
            one.needs.add(said.other)

    def _settled(self, slot: str, value: str) -> None:
        self.fields[slot].is_stale = False
        self.fields[slot].past.append(value)
        self._status(slot, "done")

    def _status(self, slot: str, status: str) -> None:
        self.fields[slot].status = status
        for other in self.above(slot):
            if self.fields[other].status == "done":
                self.fields[other].is_stale = True

    def above(self, slot: str) -> set[str]:
        """Return the slots that depend on one, directly and through others."""
        found: set[str] = set()
        wave = {slot}
        while wave:
            wave = {s for s, f in self.fields.items() if f.needs & wave} - found - {slot}
            found |= wave
        return found

    def state(self) -> dict[str, tuple[str | None, str, bool]]:
        """Return {slot: (value, status, whether it is stale)}."""
        return {
            slot: (f.values[-1] if f.values else None, f.status, f.is_stale)
            for slot, f in self.fields.items()
        }


def make_script(seed: int, *, words: Words = "canonical", turns: int | None = None) -> Script:
    """Return a script of 8 to 30 turns (or of as many as asked)."""
    dice = Random(f"plan {seed}")
    domain = dice.choice(sorted(_data()["domains"]))
    fields: Mapping[str, list[str]] = _data()["domains"][domain]
    slots = tuple(dice.sample(sorted(fields), dice.randint(5, min(7, len(fields)))))
    world = Simulator(slots)
    count = dice.randint(8, 30) if turns is None else turns
    said: list[Said] = []
    while len(said) < count:
        turn = _next(dice, world, fields, words, is_first=len(said) < 4)
        if turn is not None:
            world.apply(turn)
            said.append(turn)
    return Script(domain=domain, slots=slots, turns=tuple(said), state=world.state(), seed=seed)


def wordings(kind: str, words: Words) -> list[str]:
    """Return the wordings of a kind of turn."""
    entry = _data()[kind]
    if words == "canonical":
        return list(entry["canonical"])
    more = sorted(entry["more"])
    Random(f"halves of {kind}").shuffle(more)
    half = len(more) // 2
    return more[:half] if words == "written" else more[half:]


def _next(
    dice: Random, world: Simulator, fields: Mapping[str, list[str]], words: Words, *, is_first: bool
) -> Said | None:
    """Return a turn that makes sense now, None if the one drawn does not."""
    weights = (6, 4, 2, 2, 2, 0.3, 2, 1.5, 2, 1)
    kind = "set" if is_first else dice.choices((*KINDS, *CHECKS), weights)[0]
    slot = dice.choice(list(world.fields))
    one = world.fields[slot]
    value = other = answer = None
    if kind in ("set", "change"):
        if one.status == "removed" or (kind == "set") != (one.status == "pending"):
            return None
        value = dice.choice(fields[slot])
        if one.values and value == one.values[-1]:
            return None
    elif kind == "rollback_to":
        if one.status != "done" or len(one.values) < 2:
            return None
        value = dice.choice(one.values[:-1])
    elif kind == "rollback":
        if one.status != "done" or len(one.values) < 2:
            return None
    elif kind in ("remove", "remove_but"):
        if one.status != "done":
            return None
    elif kind == "restore":
        if one.status != "removed" or not one.values:
            return None
    elif kind == "depend":
        other = dice.choice(list(world.fields))
        if other == slot or other in one.needs or slot in _needs(world, other):
            return None
    elif kind == "check":
        if one.status != "done":
            return None
        answer = one.values[-1]
    else:
        before = [v for v in one.past if v != one.values[-1]] if one.values else []
        if one.status != "done" or not before:
            return None
        answer = before[-1]
    text = dice.choice(wordings(kind, words)).format(s=slot, v=value, o=other)
    text = text[0].upper() + text[1:]
    return Said(text=text, kind=kind, slot=slot, value=value, other=other, answer=answer)


def _needs(world: Simulator, slot: str) -> set[str]:
    found: set[str] = set()
    wave = {slot}
    while wave:
        wave = {need for s in wave for need in world.fields[s].needs} - found
        found |= wave
    return found


@cache
def _data() -> dict[str, Any]:
    text = (files("loci.testing") / "plans.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
