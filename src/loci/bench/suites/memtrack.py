"""MEMTRACK: does a memory help to follow chat, tickets and commits that contradict each other?

D. Deshpande et al., "MEMTRACK: Evaluating Long-Term Memory and State Tracking in Multi-Platform
Dynamic Agent Environments", 2025, arXiv:2510.01353. The paper's data, code and formulas are not
public: worlds (`testing.worlds`), agents and figures (`bench.track`) are a reconstruction without
containers, models or judges. In the paper, adding a memory service changed nothing.

Three tables over the same worlds. `harness` shows that the worlds measure what they should: an
oracle is always right and reads nothing twice; who believes the last word fails on conflicts.
`auto` fills each memory with every event as it is seen, and asks only the memory: this is about
storing and finding. `agent` starts each memory empty; the agent asks it first, then the platforms,
and remembers what they show: this is about what a memory saves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast  # figures are JSON values

from loci.bench import rivals, track
from loci.bench.cards import Row
from loci.bench.metrics import percentile
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context
from loci.bench.track import Agent, Subject, score, work
from loci.core.item import Turn
from loci.core.ports import Embedder
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.recall.base import Query, Recall
from loci.testing import worldtrack
from loci.testing.recall import DictView
from loci.testing.worlds import make_world
from loci.testing.worldtrack import Event, Question, World

KINDS = ("bench",)
OURS, WHOLE = "mem0", "full log"  # the memory by default, and nothing left out
ABOUT = "follow chat, tracker and git that contradict each other; synthetic, no judge"
WORLDS, QUICK_WORLDS = 12, 2
EVENTS, QUICK_EVENTS = 120, 60
_SHARES = ("conflicts", "distractors", "late", "inversions", "titles")
_OPTIONS = ("worlds", "events", "questions", "depth", "limit", "export", *_SHARES)


class Remembered:
    """A recall method as a subject: every event is a turn, and a hit counts for its first turn."""

    def __init__(self, method: Recall, embedder: Embedder | None) -> None:
        self.method = method
        self.view = DictView(embedder=embedder)
        self._count: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Remember an event as a message in the place where it was written."""
        session = f"{event.platform}:{event.ref}"
        place = self._count.get(session, 0)
        self._count[session] = place + 1
        self.view.remember([turn_of(event, session, place)], self.method)

    def search(self, question: Question, limit: int) -> list[str]:
        """Return the events behind the hits of the method."""
        hits = self.method.find(Query(text=question.text, limit=limit), self.view)
        return list(dict.fromkeys(hit.sources[0].id for hit in hits if hit.sources))


class Ranked:
    """A plain ranker as a subject: all events so far, ranked anew when something was added."""

    def __init__(self, name: str, embedder: Embedder | None) -> None:
        self.name, self.embedder = name, embedder
        self.turns: list[Turn] = []
        self._ranker: rivals.Ranker | None = None

    def add(self, event: Event) -> None:
        """Keep the event."""
        self.turns.append(turn_of(event, f"{event.platform}:{event.ref}", len(self.turns), by=True))
        self._ranker = None

    def search(self, question: Question, limit: int) -> list[str]:
        """Return the best ranked events."""
        if not self.turns:
            return []
        if self._ranker is None:
            self._ranker = rivals.rankers(self.turns, self.embedder, (self.name,))[self.name]
        return [self.turns[at].id for at in rivals.order(self._ranker(question.text))[:limit]]


class Latest:
    """A table of the last event to arrive about each attribute: what arrives later overwrites."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str], str] = {}
        self.called: dict[str, str] = {}

    def add(self, event: Event) -> None:
        """Write the event over what was known of the attributes it changes."""
        if event.alias is not None:
            self.called[event.alias[0]] = event.id
            self.called[event.alias[1]] = event.id
        for effect in event.effects:
            self.table[effect.entity, effect.attribute] = event.id

    def search(self, question: Question, limit: int) -> list[str]:
        """Return what stands in the table for the attribute asked about, and of the names of it."""
        if question.kind in ("list", "owned"):
            asked = ("service", "status") if question.kind == "list" else ("owner",)
            found = [id for (_, attribute), id in self.table.items() if attribute in asked]
        else:
            found = [id for key, id in self.table.items() if key == _key(question)]
            found += [id for name, id in self.called.items() if name == question.called]
        return list(dict.fromkeys(found))


class FullLog:
    """Every event so far, in the prompt: nothing is missed, and everything is read each time."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def add(self, event: Event) -> None:
        """Append the event."""
        self.ids.append(event.id)

    def search(self, question: Question, limit: int) -> list[str]:
        """Return all of it."""
        return list(self.ids)


def run(context: Context) -> dict[str, Any]:
    """Return the figures of agents, rivals and recall methods over the same worlds."""
    for name in context.options:
        if name not in _OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(_OPTIONS))
    worlds = _worlds(context)
    embedder = _embedder(context)
    limit = _number(context, "limit", track.LIMIT)
    subjects = _subjects(context, embedder)
    total = 4 + 2 * len(subjects)
    done = 0

    def table(entries: dict[str, tuple[Agent, Callable[[], Subject] | None]], auto: bool) -> Any:
        nonlocal done
        made = {}
        for name, (agent, make) in entries.items():
            context.progress(name, done, total)
            made[name] = _measured(worlds, agent, make, auto, limit)
            done += 1
        return made

    harness = table(
        {
            "oracle": (track.oracle, None),
            "last word": (track.recency, None),
            "no memory": (track.platforms, None),
        },
        auto=False,
    )
    auto = table({name: (track.remembering, make) for name, make in subjects.items()}, auto=True)
    if "minilm" in subjects:
        auto |= table({"most similar": (track.nearest_first, subjects["minilm"])}, auto=True)
    agent = table({name: (track.memory_first, make) for name, make in subjects.items()}, auto=False)
    for figures in agent.values():
        figures["over no memory"] = paired_difference(
            figures["by_world"], harness["no memory"]["by_world"], context.seed
        ).to_json()
    return {
        "worlds": len(worlds),
        "events": sum(len(world.events) for world in worlds),
        "questions": sum(len(world.questions) for world in worlds),
        "disputed": sum(q.conflict for world in worlds for q in world.questions),
        "limit": limit,
        "dense": embedder is not None,
        "harness": harness,
        "auto": auto,
        "agent": agent,
        "absent": dict(rivals.absent(embedder)),
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the three figures of the paper for agents without a memory and with each of ours."""
    rows = []
    for part in ("auto", "agent"):
        table = result[part]
        if OURS not in table:
            continue
        others = {n: f for n, f in table.items() if n not in (OURS, WHOLE)}
        others["no memory"] = result["harness"]["no memory"]
        rows.append(
            Row(
                method="memtrack",
                kind="bench",
                part=part,
                metrics={
                    what: {
                        "full": table[WHOLE][what],
                        "this": table[OURS][what],
                        "rivals": {name: figures[what] for name, figures in others.items()},
                    }
                    for what in ("correctness", "efficiency", "redundancy")
                },
            )
        )
    return rows


def turn_of(event: Event, session: str, place: int, *, by: bool = False) -> Turn:
    """Return an event as a message of whoever caused it, named in the text too if `by`."""
    return Turn(
        id=event.id,
        role="user",
        name=event.actor,
        content=f"{event.actor}: {event.text}" if by else event.text,
        time=event.at,
        session=session,
        position=place,
        metadata={"ref": event.id, "platform": event.platform, "kind": event.kind},
    )


def _measured(
    worlds: Sequence[World],
    agent: Agent,
    make: Callable[[], Subject] | None,
    auto: bool,
    limit: int,
) -> dict[str, Any]:
    rows: list[dict[str, float]] = []
    seconds: list[float] = []
    for world in worlds:
        subject = None if make is None else _Timed(make(), limit, seconds)
        rows.append(score(work(world, agent, subject, auto=auto)))
    names = list(dict.fromkeys(name for row in rows for name in row))
    figures: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        figures[name] = sum(values) / len(values)
    right = [row["correctness"] for row in rows]
    interval = mean(right)
    figures["interval"] = [interval.low, interval.high]
    figures["by_world"] = right
    if seconds:
        figures["search_p50_s"] = percentile(seconds, 0.5)
    return figures


class _Timed:
    """A subject whose searches are timed and of one size."""

    def __init__(self, inner: Subject, limit: int, seconds: list[float]) -> None:
        self.inner, self.limit, self.seconds = inner, limit, seconds

    def add(self, event: Event) -> None:
        self.inner.add(event)

    def search(self, question: Question, limit: int) -> Sequence[str]:
        began = time.perf_counter()
        found = self.inner.search(question, self.limit)
        self.seconds.append(time.perf_counter() - began)
        return found


def _subjects(context: Context, embedder: Embedder | None) -> dict[str, Callable[[], Subject]]:
    made: dict[str, Callable[[], Subject]] = {"full log": FullLog, "latest": Latest}
    for name in ("bm25", "minilm", "fusion", "strong"):
        if name not in rivals.absent(embedder):
            made[name] = lambda name=name: Ranked(name, embedder)  # type: ignore[misc]
    for text in context.methods or _methods():
        (method,) = catalogue.parse_chain(text, "recall")
        made[text] = lambda method=method: Remembered(cast(Recall, method), embedder)  # type: ignore[misc]
    return made


def _methods() -> list[str]:
    """Return the names of all methods that remember turns and find them again."""
    names = catalogue.names("recall")
    return [name for name in names if issubclass(catalogue.method_class(name, "recall"), Recall)]


def _worlds(context: Context) -> list[World]:
    if context.data is not None and context.data.suffix == ".jsonl":
        return worldtrack.read(context.data)
    count = _number(context, "worlds", QUICK_WORLDS if context.quick else WORLDS)
    if count < 1:
        raise ParameterError("worlds must be at least 1", value=count)
    shares = {name: _share(context, name) for name in _SHARES if name in context.options}
    worlds = [
        make_world(
            context.seed + number,
            events=_number(context, "events", QUICK_EVENTS if context.quick else EVENTS),
            questions=_number(context, "questions", 14),
            depth=_number(context, "depth", 4),
            **shares,
        )
        for number in range(count)
    ]
    if "export" in context.options:
        from pathlib import Path

        worldtrack.write(worlds, Path(context.options["export"]))
    return worlds


def _number(context: Context, name: str, default: int) -> int:
    text = context.options.get(name, str(default))
    if not text.isdigit():
        raise ParameterError(f"{name} must be a whole number", value=text)
    return int(text)


def _share(context: Context, name: str) -> float:
    text = context.options[name]
    try:
        return float(text)
    except ValueError:
        raise ParameterError(f"{name} must be a number from 0 to 1", value=text) from None


def _embedder(context: Context) -> Embedder | None:
    from loci.bench.embedding import embedder

    return embedder(context.folder)


def _key(question: Question) -> tuple[str, str]:
    return question.entity, question.attribute
