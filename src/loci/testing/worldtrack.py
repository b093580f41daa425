"""A small world of chat, tracker, git and files whose records contradict each other.

After MEMTRACK (D. Deshpande et al., 2025, arXiv:2510.01353), which has neither public data nor
code: world, wordings and rules here are a reconstruction. A world is a log of events and questions
about what holds. Every event says what it changes and with which authority, so the truth at any
time is a pure function of the log:

    truth(entity, attribute, t) = value of the last event until t of the highest authority that
                                  says anything: decision > tracker field > merged commit > proposal

A withdrawn value (None) leaves the word to the next authority. Events may be seen later than they
happened; in which order they arrive does not change what is true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any  # JSON values

from loci.errors import FormatError

PLATFORMS = ("chat", "tracker", "git", "fs")
AUTHORITIES = ("proposal", "merge", "tracker", "decision")  # lowest first
FORMAT, VERSION = "loci-worldtrack", 1

Answer = str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an event changes: an attribute of an entity, and the name it calls the entity by."""

    entity: str
    attribute: str
    value: str | None
    called: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """One record of one platform.

    Attributes:
        at, seen: when it happened, and when it could first be read; late arrivals differ.
        ref: where it belongs: a ticket, a pull request, a path or a channel.
        authority: one of AUTHORITIES, "" where it changes nothing.
        alias: (another name, entity) when it tells that they are the same.
        needs: ids of events it refers to; they must exist before it.
    """

    id: str
    at: datetime
    seen: datetime
    platform: str
    actor: str
    kind: str
    ref: str
    text: str
    effects: tuple[Effect, ...] = ()
    authority: str = ""
    reason: str = ""
    alias: tuple[str, str] | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; "{}" in text, entity or called stands for the answer to `follows`.

    Attributes:
        kind: "value", "list", "who", "why", "stale" or "owned" (see `bench.track`).
        called: the name the question uses for the entity.
        at: the time it asks about; None is the time of asking.
        asked: when it is asked: only events seen until then can be known.
        answer: exact; a tuple is a set. "unknown" where nothing was ever said.
        evidence: the fewest events from which the answer follows.
        outdated: values that were true once, or are told by a lower authority.
        conflict: whether the last word on it is not the true one.
        follows: number of the earlier question whose answer it uses.
        depth: how many questions it builds on.
    """

    text: str
    kind: str
    entity: str
    attribute: str
    called: str
    asked: datetime
    answer: Answer
    evidence: tuple[str, ...]
    at: datetime | None = None
    outdated: tuple[str, ...] = ()
    conflict: bool = False
    follows: int | None = None
    depth: int = 0


@dataclass(frozen=True, kw_only=True)
class World:
    """A log of events in order of time, and questions in order of asking."""

    id: str
    events: tuple[Event, ...]
    questions: tuple[Question, ...] = ()
    by_id: Mapping[str, Event] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the log: known platforms, references that exist before, evidence in time."""
        object.__setattr__(self, "by_id", {event.id: event for event in self.events})
        if len(self.by_id) != len(self.events):
            raise FormatError(f"two events of {self.id} have the same id")
        for event in self.events:
            _check(event, self.by_id)
        for number, question in enumerate(self.questions):
            unknown = [id for id in question.evidence if id not in self.by_id]
            late = [id for id in question.evidence if id in self.by_id and self._late(id, question)]
            if unknown or late:
                raise FormatError(
                    f"question {number} of {self.id} rests on what cannot be known when asked",
                    value=", ".join(unknown or late),
                    allowed=f"events seen until {question.asked.isoformat()}",
                )
            if question.follows is not None and not 0 <= question.follows < number:
                raise FormatError(
                    f"question {number} of {self.id} must follow an earlier one",
                    value=question.follows,
                )

    def arrivals(self) -> list[Event]:
        """Return the events in the order in which they can be seen."""
        return sorted(self.events, key=lambda event: (event.seen, event.id))

    def _late(self, id: str, question: Question) -> bool:
        return self.by_id[id].seen > question.asked


def _check(event: Event, known: Mapping[str, Event]) -> None:
    if event.platform not in PLATFORMS:
        raise FormatError(
            f"event {event.id} is of an unknown platform",
            value=event.platform,
            allowed=", ".join(PLATFORMS),
        )
    if event.at.tzinfo is None or event.seen.tzinfo is None:
        raise FormatError(f"event {event.id} has a time without its zone", value=event.at)
    if event.seen < event.at:
        raise FormatError(f"event {event.id} is seen before it happens", value=event.seen)
    if bool(event.effects) != (event.authority in AUTHORITIES):
        raise FormatError(
            f"event {event.id} changes something without authority, or the other way round",
            value=event.authority,
            allowed=", ".join(AUTHORITIES),
        )
    for id in event.needs:
        if id not in known or _order(known[id]) >= _order(event):
            raise FormatError(f"event {event.id} refers to one that is not there yet", value=id)


def _order(event: Event) -> tuple[datetime, str]:
    """Return the place in time: equal instants, whatever their zones, go by id."""
    return event.at, event.id


def deciding(
    events: Iterable[Event], entity: str, attribute: str, until: datetime | None = None
) -> tuple[Event, str] | None:
    """Return (event, value) that settles an attribute at a time; None where nobody said anything.

    The order of `events` does not matter.
    """
    last: dict[str, tuple[tuple[datetime, str], Event, str | None]] = {}
    for event in events:
        if until is not None and event.at > until:
            continue
        for effect in event.effects:
            if (effect.entity, effect.attribute) != (entity, attribute):
                continue
            place = _order(event)
            if event.authority not in last or last[event.authority][0] < place:
                last[event.authority] = (place, event, effect.value)
    for authority in reversed(AUTHORITIES):
        if authority in last and (value := last[authority][2]) is not None:
            return last[authority][1], value
    return None


def truth(
    events: Iterable[Event], entity: str, attribute: str, until: datetime | None = None
) -> str | None:
    """Return the value that holds at a time, or None."""
    settled = deciding(events, entity, attribute, until)
    return None if settled is None else settled[1]


# -- files -----------------------------------------------------------------------------------------


def write(worlds: Sequence[World], path: Path) -> None:
    """Write worlds as JSON lines: a head, then each world's events and questions."""
    lines: list[dict[str, Any]] = [{"format": FORMAT, "version": VERSION}]
    for world in worlds:
        lines.append({"world": world.id})
        lines += [{"event": asdict(event)} for event in world.events]
        lines += [{"question": asdict(question)} for question in world.questions]
    text = "".join(json.dumps(line, default=datetime.isoformat) + "\n" for line in lines)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def read(path: Path) -> list[World]:
    """Return the worlds of a file that `write` made.

    Raises:
        FormatError: if the file is of another kind or version, is cut short, or a world in it
            contradicts itself; the message names the line.
    """
    worlds: list[tuple[str, list[Event], list[Question]]] = []
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                entry = json.loads(line)
                if number == 1:
                    if (entry.get("format"), entry.get("version")) != (FORMAT, VERSION):
                        raise ValueError(f"not {FORMAT} of version {VERSION}")
                elif "world" in entry:
                    worlds.append((str(entry["world"]), [], []))
                elif "event" in entry:
                    worlds[-1][1].append(_event(entry["event"]))
                else:
                    worlds[-1][2].append(_question(entry["question"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
        raise FormatError(
            f"cannot read {path.name}, line {number} ({problem})",
            allowed=f"{FORMAT}, version {VERSION}, as JSON lines",
        ) from None
    return [
        World(id=name, events=tuple(events), questions=tuple(questions))
        for name, events, questions in worlds
    ]


def _event(entry: Mapping[str, Any]) -> Event:
    given = dict(_known(entry, Event))
    alias = given.get("alias")
    return Event(
        **{
            **given,
            "at": datetime.fromisoformat(given["at"]),
            "seen": datetime.fromisoformat(given["seen"]),
            "effects": tuple(Effect(**effect) for effect in given["effects"]),
            "alias": None if alias is None else (alias[0], alias[1]),
            "needs": tuple(given.get("needs", ())),
        }
    )


def _question(entry: Mapping[str, Any]) -> Question:
    given = dict(_known(entry, Question))
    at, answer = given.get("at"), given["answer"]
    return Question(
        **{
            **given,
            "asked": datetime.fromisoformat(given["asked"]),
            "at": None if at is None else datetime.fromisoformat(at),
            "answer": tuple(answer) if isinstance(answer, list) else answer,
            "evidence": tuple(given["evidence"]),
            "outdated": tuple(given.get("outdated", ())),
        }
    )


def _known(
    entry: Mapping[str, Any], kind: type[Event] | type[Question]
) -> Iterator[tuple[str, Any]]:
    names = {each.name for each in fields(kind)}
    for name, value in entry.items():
        if name not in names:
            raise ValueError(f"unknown key {name!r}")
        yield name, value
