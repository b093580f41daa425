"""Tickets of an office of servers: what is wrong, in words, and what helps, drawn from a seed.

A world draws its house rules: for each cause one or two calls of tools, whose parameters stand in
the ticket or are constants of that world. Tickets of one cause come in several wordings, with names
that change and sentences that have nothing to do with it; causes come in pairs that look alike.
Exams use wordings and names that no trace has. Of the traces some are wrong: most of those were not
verified, and a few were, where the trouble went away by itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal  # a table of TOML

TAUGHT = 4  # wordings of a cause that traces use; the others are held out
_UNVERIFIED, _LUCKY = 0.3, 0.12  # shares of traces: not verified; verified, and yet wrong
_RIGHT_UNVERIFIED = 0.2  # of those not verified
_TYPES = ("host", "service", "person", "path")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One situation: its words, its cause, what is meant by its names, and what helps.

    Attributes:
        right: the calls that help; () where no tool does.
    """

    id: str
    text: str
    cause: str
    names: Mapping[str, str]
    right: tuple[str, ...]

    def is_solved(self, steps: Sequence[str]) -> bool:
        """Return whether these calls, in this order and no other, help."""
        return bool(self.right) and tuple(steps) == self.right


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What an agent did about a ticket, and whether somebody checked that it helped."""

    ticket: Ticket
    steps: tuple[str, ...]
    verified: bool

    def to_json(self) -> dict[str, Any]:
        """Return the trace as arcmemo takes it."""
        return {
            "id": self.ticket.id,
            "situation": self.ticket.text,
            "steps": list(self.steps),
            "verified": self.verified,
        }


@dataclass(frozen=True, kw_only=True)
class World:
    """One office: traces to learn from, tickets to practise on, exams, and strangers.

    Attributes:
        strangers: tickets about which no trace says anything, and no tool helps.
    """

    traces: tuple[Tried, ...]
    practice: tuple[Ticket, ...]
    exams: tuple[Ticket, ...]
    strangers: tuple[Ticket, ...]


@dataclass(frozen=True)
class _Call:
    """A call of a tool with its constant."""

    tool: str
    takes: tuple[str, ...]
    constant: tuple[str, str] | None

    def written(self, names: Mapping[str, str]) -> str:
        """Return the call for these names."""
        given = [f"{kind}={names[kind]}" for kind in self.takes]
        given += [f"{self.constant[0]}={self.constant[1]}"] if self.constant else []
        return f"{self.tool}({', '.join(given)})"


def make_tickets(
    seed: int,
    *,
    causes: int = 8,
    traces: int = 64,
    practice: int = 40,
    exams: int = 40,
    strangers: int = 6,
) -> World:
    """Return a world; equal seeds make equal worlds. `causes` is even, and at most 12."""
    dice = Random(f"tickets {seed}")
    pairs = dice.sample(sorted({cause["pair"] for cause in _table()["cause"]}), causes // 2)
    drawn = [cause for cause in _table()["cause"] if cause["pair"] in pairs]
    rules: dict[str, tuple[_Call, ...]] = {}
    for cause in drawn:
        while cause["name"] not in rules:
            rule = _rule(dice, _slots(cause["wordings"]))
            if rule not in rules.values():
                rules[cause["name"]] = rule
    names: dict[str, tuple[list[str], list[str]]] = {}
    for kind in _TYPES:
        every = dice.sample(_table()["names"][kind], len(_table()["names"][kind]))
        names[kind] = every[: len(every) // 2], every[len(every) // 2 :]

    def ticket(id: str, number: int, *, held_out: bool) -> Ticket:
        cause = drawn[number % len(drawn)]
        wordings = cause["wordings"][TAUGHT:] if held_out else cause["wordings"][:TAUGHT]
        values = _values(dice, names, held_out)
        text = _text(dice, dice.choice(wordings), values)
        right = tuple(call.written(values) for call in rules[cause["name"]])
        return Ticket(id=id, text=text, cause=cause["name"], names=values, right=right)

    def stranger(id: str) -> Ticket:
        values = _values(dice, names, True)
        text = _text(dice, dice.choice(_table()["stranger"][0]["wordings"]), values)
        return Ticket(id=id, text=text, cause="none", names=values, right=())

    told: list[Tried] = []
    for number in range(traces):
        one = ticket(f"trace-{seed}-{number}", number, held_out=False)
        told.append(_tried(dice, one, rules))
    dice.shuffle(told)
    practised = [ticket(f"work-{seed}-{n}", n, held_out=False) for n in range(practice)]
    dice.shuffle(practised)
    return World(
        traces=tuple(told),
        practice=tuple(practised),
        exams=tuple(ticket(f"exam-{seed}-{n}", n, held_out=True) for n in range(exams)),
        strangers=tuple(stranger(f"other-{seed}-{n}") for n in range(strangers)),
    )


def guess(ticket: Ticket, dice: Random) -> tuple[str, ...]:
    """Return what an agent without memory tries: tools at random, on what the ticket is about.

    It is told which names are meant, which is more than words give to a memory.
    """
    return tuple(call.written(ticket.names) for call in _rule(dice, frozenset(_TYPES)))


# -- private ----------------------------------------------------------------------------------


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files("loci.testing") / "tickets.toml").read_text("utf-8"))


def _slots(wordings: Sequence[str]) -> frozenset[str]:
    """Return the types of names that every wording has."""
    return frozenset(kind for kind in _TYPES if all(f"{{{kind}}}" in text for text in wordings))


def _rule(dice: Random, slots: frozenset[str]) -> tuple[_Call, ...]:
    """Return one or two calls of different tools that these slots can fill."""
    tools = [tool for tool in _table()["tool"] if slots >= set(tool["takes"])]
    return tuple(_call(dice, tool) for tool in dice.sample(tools, dice.choice((1, 2))))


def _call(dice: Random, tool: Mapping[str, Any]) -> _Call:
    name, *values = tool.get("constant", [""])
    return _Call(
        tool["name"], tuple(tool["takes"]), (name, dice.choice(values)) if values else None
    )


def _values(
    dice: Random, names: Mapping[str, tuple[list[str], list[str]]], held_out: bool
) -> dict[str, str]:
    """Return names for one ticket: of each type one that is meant and one that is not."""
    values: dict[str, str] = {}
    for kind in _TYPES:
        values[kind], values[f"other_{kind}"] = dice.sample(names[kind][held_out], 2)
    values["asker"] = values["other_person"]
    values["ticket"] = f"T-{dice.randrange(1000, 9999)}"
    values["time"] = f"{dice.randrange(24)}:{dice.randrange(60):02d}"
    return values


def _text(dice: Random, wording: str, values: Mapping[str, str]) -> str:
    noise = dice.sample(_table()["noise"]["sentences"], dice.choice((0, 1, 1, 2)))
    first = [noise.pop()] if len(noise) == 2 else []
    text = " ".join([*first, wording, *noise]).format_map(values)
    return text[0].upper() + text[1:]


def _tried(dice: Random, ticket: Ticket, rules: Mapping[str, tuple[_Call, ...]]) -> Tried:
    """Return a trace: right and verified, or one of the kinds that mislead."""
    kind: Literal["right", "unverified", "lucky"] = "right"
    drawn = dice.random()
    if drawn < _UNVERIFIED:
        kind = "unverified"
    elif drawn < _UNVERIFIED + _LUCKY:
        kind = "lucky"
    if kind == "right" or (kind == "unverified" and dice.random() < _RIGHT_UNVERIFIED):
        return Tried(ticket=ticket, steps=ticket.right, verified=kind == "right")
    while True:
        # Half of what goes wrong is the rule of another cause, the rest is any call.
        others = [rule for name, rule in rules.items() if name != ticket.cause]
        rule = dice.choice(others) if dice.random() < 0.5 else _rule(dice, frozenset(_TYPES))
        steps = tuple(call.written(ticket.names) for call in rule)
        if steps != ticket.right:
            return Tried(ticket=ticket, steps=steps, verified=kind == "lucky")
