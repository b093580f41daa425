"""Lessons of an agent's traces: do they help with tickets worded anew, at equal attempts?

Every way sees the same traces, practises on the same tickets, and is examined on the same. It is
asked for advice and tries what it is told, best first, then guesses, up to `ATTEMPTS` for a ticket.
What came of each try is told back, and what helped in practice is a verified trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any  # JSON values

from loci.bench.stats import mean, nested_difference
from loci.core.agent import Job
from loci.core.ports import Embedder
from loci.methods.recall._arc_lessons import (
    Trace,
    founded,
    habits_of,
    ranked,
    rarity_of,
    told,
)
from loci.methods.recall.arcmemo import ArcMemo
from loci.methods.recall.base import Tools
from loci.testing.agents import DictRecords
from loci.testing.tickets import Ticket, Tried, World, guess, make_tickets

ATTEMPTS = 2
FIRST_SEED = 0  # worlds from 100 on were looked at while constants were set
OWN = "lessons"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One kind of memory.

    Attributes:
        verbatim: the actions of the nearest traces as they were, names and all.
        roles: the nearest traces, but their names replaced as all traces together tell: lessons
            without clusters, feedback and pruning.
        feedback: whether outcomes are told.
        believes: whether traces that nobody verified are taken as verified.
        meaning: whether likeness of meaning counts too.
    """

    method: ArcMemo
    verbatim: bool = False
    roles: bool = False
    feedback: bool = True
    believes: bool = False
    meaning: bool = False


def ways(method: ArcMemo, embedder: Embedder | None = None) -> dict[str, Way]:
    """Return {name: way}: the lessons, what they are compared with, and what each part does."""
    lone = replace(method, memory="instances")
    found = {
        "none": Way(method=replace(method, memory="none")),
        "nearest": Way(method=lone),
        "verbatim": Way(method=lone, verbatim=True),
        "nearest_with_roles": Way(method=lone, roles=True),
        OWN: Way(method=method),
        "unselected": Way(method=replace(method, top=0)),
        "no_feedback": Way(method=method, feedback=False),
        "unverified": Way(method=method, believes=True),
    }
    if embedder is not None:
        found["meaning"] = Way(method=method, meaning=True)
    return found


def measure(
    method: ArcMemo,
    seeds: Sequence[int],
    *,
    quick: bool,
    embedder: Embedder | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Return the share of exams solved by each way, at once and within the attempts."""
    right: dict[str, list[list[float]]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    strangers: dict[str, list[float]] = defaultdict(list)
    pruned, known, spoiled = [], [], []
    for done, seed in enumerate(seeds):
        sizes = {"traces": 24, "practice": 8, "exams": 8} if quick else {}
        world = make_tickets(seed, causes=4 if quick else 8, **sizes)
        for name, way in ways(method, embedder).items():
            progress(f"tickets, {name}", done, len(seeds))
            agent = _Agent(way, world, seed, embedder)
            solved = agent.examined()
            right[name].append([float(tries is not None) for tries in solved])
            first[name] += [float(tries == 1) for tries in solved]
            strangers[name] += [float(not agent.advice(one)) for one in world.strangers]
            if name == OWN:
                lessons = [r.value for r in agent.tools.records.all("lesson/").values()]
                described = [r.text for r in agent.tools.records.all("lesson/").values()]
                known.append(float(len(lessons)))
                pruned.append(float(sum("pruned" in text for text in described)))
                bad = {t.ticket.id for t in world.traces if not t.verified}
                spoiled.append(float(sum(bool(bad & set(v["used_in"])) for v in lessons)))
    flat = {name: [one for group in groups for one in group] for name, groups in right.items()}
    return {
        "method": str(method),
        "seeds": list(seeds),
        "attempts": ATTEMPTS,
        "exams": len(flat[OWN]),
        "success": {name: mean(values).to_json() for name, values in flat.items()},
        "first_try": {name: mean(values).to_json() for name, values in first.items()},
        "silent_on_strangers": {name: mean(v).value for name, v in strangers.items()},
        "over": {
            name: nested_difference(right[OWN], right[name]).to_json()
            for name in right
            if name != OWN
        },
        "lessons": mean(known).value,
        "pruned": mean(pruned).value,
        "lessons_of_unverified_traces": int(sum(spoiled)),
    }


def metrics(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what goes into the card."""
    others = [name for name in found["success"] if name != OWN]
    shares = {
        name: {
            "this": found[name][OWN]["value"],
            "rivals": {other: found[name][other]["value"] for other in others},
        }
        for name in ("success", "first_try")
    }
    silent = found["silent_on_strangers"]
    return {
        **shares,
        "silent_on_strangers": {
            "this": silent[OWN],
            "rivals": {other: silent[other] for other in others},
        },
        "lessons_of_unverified_traces": {"this": found["lessons_of_unverified_traces"]},
        "lessons": {"this": found["lessons"]},
        "pruned": {"this": found["pruned"]},
    }


# -- private ----------------------------------------------------------------------------------


class _Agent:
    """Works on tickets with one kind of memory."""

    def __init__(self, way: Way, world: World, seed: int, embedder: Embedder | None) -> None:
        self.way, self.world = way, world
        self.dice = Random(f"attempts {seed}")
        self.tools = Tools(records=DictRecords(), embedder=embedder)
        traces = [one.to_json() for one in world.traces]
        if way.believes:
            traces = [{**one, "verified": True} for one in traces]
        self._act(traces=traces)

    def examined(self) -> list[int | None]:
        """Practise, and return the try at which each exam was solved."""
        for ticket in self.world.practice:
            self.work(ticket, learn=True)
        return [self.work(ticket, learn=False) for ticket in self.world.exams]

    def work(self, ticket: Ticket, *, learn: bool) -> int | None:
        """Return at which try a ticket was solved, None if at none of those allowed."""
        advice = self.advice(ticket)[:ATTEMPTS]
        outcomes = []
        solved: int | None = None
        for number in range(1, ATTEMPTS + 1):
            guessed = "", guess(ticket, self.dice)
            lesson, steps = advice[number - 1] if number <= len(advice) else guessed
            good = ticket.is_solved(steps)
            if lesson:
                outcomes.append({"situation": ticket.id, "lesson": lesson, "success": good})
            if good:
                solved = number
                if learn:
                    done = Tried(ticket=ticket, steps=steps, verified=True).to_json()
                    self._act(traces=[done], outcomes=outcomes if self._tells else [])
                return solved
        if learn and outcomes and self._tells:
            self._act(outcomes=outcomes)
        return solved

    def advice(self, ticket: Ticket) -> list[tuple[str, tuple[str, ...]]]:
        """Return (lesson, steps) told for a ticket, best first."""
        if self.way.roles:
            return self._by_roles(ticket)
        done = self._act(situations=[{"id": ticket.id, "text": ticket.text}])
        lessons = done["advice"][ticket.id]["lessons"]
        return [(one["lesson"], tuple(self._suggested(one))) for one in lessons]

    def _by_roles(self, ticket: Ticket) -> list[tuple[str, tuple[str, ...]]]:
        values = [r.value for r in self.tools.records.all("trace/").values() if r.value["verified"]]
        lessons = [
            founded(Trace(v["digest"], v["situation"], tuple(v["steps"]), True, v["digest"]))
            for v in values
        ]
        rarity, habits = rarity_of(lessons), habits_of(lessons)
        found: dict[str, str] = {}
        for _, lesson in ranked(lessons, ticket.text, rarity):
            advice = told(lesson, ticket.text, rarity, habits)
            if advice is not None:
                found.setdefault(advice.suggestion, advice.lesson)
        return [(name, tuple(text.split("\n"))) for text, name in found.items()]

    def _suggested(self, one: Mapping[str, Any]) -> list[str]:
        if not self.way.verbatim:
            return str(one["suggestion"]).split("\n")
        traces = self.tools.records.all("trace/").values()
        situation = one["situation"]
        return next(list(r.value["steps"]) for r in traces if r.value["situation"] == situation)

    @property
    def _tells(self) -> bool:
        return self.way.feedback and self.way.method.memory == "concepts"

    def _act(self, **inputs: Any) -> Mapping[str, Any]:
        if self.way.meaning:
            inputs["meaning"] = True
        return self.way.method.act(Job(inputs=inputs, max_steps=10**6), self.tools).output
