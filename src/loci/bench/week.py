"""A week of questions about known texts, and schedules that may keep what was read of them.

Questions are drawn with popularity by rank (Zipf), and every day some ranks change places. A
schedule is asked after every question; what it wants is carried out by a world, which is either the
real model and real files, or an account of measured seconds. Everybody gets the same questions,
bytes and world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol  # figures

from loci.core.arrange import Change, Demote, Promote, Standing
from loci.core.cube import CubeHeader, MemoryKind, State

BEGIN = datetime(2026, 5, 4, tzinfo=UTC)
DAYS = 7
SLOPE = 1.1  # of the popularity over ranks
DRIFT = 0.3  # share of the ranks that change places each day
Tick = Callable[[Sequence[Standing], int, datetime], Sequence[Change]]


@dataclass(frozen=True)
class Asked:
    """One question: when, about which text."""

    at: datetime
    topic: int


class World(Protocol):
    """Where a replay happens; every call returns the seconds it took."""

    def first_token(self, topic: int, promoted: bool) -> float:
        """Answer a question up to its first token, with keys and values or by reading the text."""
        ...

    def promote(self, topic: int, just_read: bool) -> float:
        """Make keys and values, of what was just read or by reading it again."""
        ...

    def demote(self, topic: int) -> float:
        """Drop them."""
        ...

    def standing(self, topic: int, header: CubeHeader, just_read: bool) -> Standing:
        """Return a text as a schedule sees it."""
        ...

    def nbytes(self) -> int:
        """Return the bytes of keys and values that are kept."""
        ...


def draw(topics: int, questions: int, seed: int) -> list[Asked]:
    """Return a week of questions in order of time."""
    chance = random.Random(seed)
    ranked = list(range(topics))
    chance.shuffle(ranked)
    weights = [(rank + 1) ** -SLOPE for rank in range(topics)]
    found = []
    for day in range(DAYS):
        moving = chance.sample(range(topics), max(2, int(DRIFT * topics)))
        moved = [ranked[place] for place in moving]
        chance.shuffle(moved)
        for place, topic in zip(moving, moved, strict=True):
            ranked[place] = topic
        count = questions * (day + 1) // DAYS - questions * day // DAYS
        hours = sorted(chance.uniform(8.0, 22.0) for _ in range(count))
        found += [
            Asked(BEGIN + timedelta(days=day, hours=hour), chance.choices(ranked, weights)[0])
            for hour in hours
        ]
    return found


def never(standings: Sequence[Standing], budget_bytes: int, now: datetime) -> list[Change]:
    """Read every text again."""
    return []


def least_recent(standings: Sequence[Standing], budget_bytes: int, now: datetime) -> list[Change]:
    """Keep what was read last, in place of what was not read for longest (LRU)."""
    ordered = sorted(standings, key=lambda one: one.header.usage.last_read or "", reverse=True)
    kept, room, changes = set(), budget_bytes, list[Change]()
    for number, one in enumerate(ordered):
        if (one.is_promoted or number == 0) and one.nbytes <= room:
            kept.add(one.header.id)
            room -= one.nbytes
    changes += [
        Demote(id=o.header.id) for o in ordered if o.is_promoted and o.header.id not in kept
    ]
    first = ordered[0]
    if not first.is_promoted and first.header.id in kept:
        changes.append(Promote(id=first.header.id))
    return changes


def replay(
    world: World, questions: Sequence[Asked], topics: int, tick: Tick, budget_bytes: int
) -> dict[str, Any]:
    """Return what a schedule makes of a week: seconds, hits, and the most bytes it held."""
    return together({"one": (world, tick)}, questions, topics, budget_bytes)["one"]


def together(
    ways: Mapping[str, tuple[World, Tick]],
    questions: Sequence[Asked],
    topics: int,
    budget_bytes: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Return what each of several schedules makes of a week.

    They take turns, question by question, so that whatever else the machine does meanwhile slows
    all of them alike.
    """
    weeks = {
        name: _steps(world, questions, topics, tick, budget_bytes)
        for name, (world, tick) in ways.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for number in range(len(questions) + 1):
        progress(number)
        order = list(weeks) if number % 2 == 0 else list(reversed(weeks))
        for name in order:
            done = next(weeks[name])
            if done is not None:
                found[name] = done
    return {name: found[name] for name in ways}


def _steps(
    world: World, questions: Sequence[Asked], topics: int, tick: Tick, budget_bytes: int
) -> Iterator[dict[str, Any] | None]:
    """Yield None after each question, and what came of all of them in the end."""
    headers = [
        CubeHeader(id=f"cube-{topic}", kind=MemoryKind.PLAINTEXT, state=State.ACTIVE)
        for topic in range(topics)
    ]
    first: list[float] = []
    hits = promotions = peak = 0
    upkeep_s = 0.0
    for asked in questions:
        header = headers[asked.topic]
        is_hit = header.kind is MemoryKind.ACTIVATION
        hits += is_hit
        first.append(world.first_token(asked.topic, is_hit))
        headers[asked.topic] = header.used(asked.at)
        standings = [
            world.standing(topic, header, topic == asked.topic and not is_hit)
            for topic, header in enumerate(headers)
        ]
        for change in tick(standings, budget_bytes, asked.at):
            topic = int(change.id.removeprefix("cube-"))
            if isinstance(change, Demote):
                upkeep_s += world.demote(topic)
                headers[topic] = replace(headers[topic], kind=MemoryKind.PLAINTEXT)
            elif isinstance(change, Promote):
                upkeep_s += world.promote(topic, topic == asked.topic and not is_hit)
                headers[topic] = replace(headers[topic], kind=MemoryKind.ACTIVATION)
                promotions += 1
        peak = max(peak, world.nbytes())
        yield None
    yield {
        "total_s": sum(first) + upkeep_s,
        "first_token_s": sum(first) / len(first),
        "upkeep_s": upkeep_s,
        "hit_rate": hits / len(questions),
        "promotions": promotions,
        "bytes": peak,
    }


@dataclass
class Account:
    """A world of measured seconds: a token read, a byte loaded, a byte written.

    Attributes:
        tokens: of each text; question_s: seconds to read the question itself.
    """

    tokens: Sequence[int]
    token_bytes: int
    read_s: float
    load_s: float
    write_s: float
    question_s: float
    held: set[int] = field(default_factory=set)

    def first_token(self, topic: int, promoted: bool) -> float:
        """Count a question."""
        if promoted:
            return self.question_s + self.load_s * self._size(topic)
        return self.question_s + self.read_s * self.tokens[topic]

    def promote(self, topic: int, just_read: bool) -> float:
        """Count a promotion."""
        self.held.add(topic)
        again = 0.0 if just_read else self.read_s * self.tokens[topic]
        return again + self.write_s * self._size(topic)

    def demote(self, topic: int) -> float:
        """Count a demotion: what is dropped is overwritten."""
        self.held.discard(topic)
        return self.write_s * self._size(topic)

    def standing(self, topic: int, header: CubeHeader, just_read: bool) -> Standing:
        """Return a text as a schedule sees it."""
        size, read_s = self._size(topic), self.read_s * self.tokens[topic]
        return Standing(
            header=header,
            nbytes=size,
            read_s=read_s,
            load_s=self.load_s * size,
            promote_s=2 * self.write_s * size + (0.0 if just_read else read_s),
        )

    def nbytes(self) -> int:
        """Return the bytes held."""
        return sum(map(self._size, self.held))

    def _size(self, topic: int) -> int:
        return self.token_bytes * self.tokens[topic]
