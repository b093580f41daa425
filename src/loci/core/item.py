"""What is remembered as text: turns, items, edits and hits, shared by text, store and methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any  # metadata is whatever JSON can hold


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whose memory: part of every key. None for agent or session means "any" when reading."""

    tenant: str = "local"
    user: str = "local"
    agent: str | None = None
    session: str | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message as it was said, kept raw beside what was made of it.

    Attributes:
        role: "user", "assistant", "system" or "tool".
        name: who spoke, when known.
        time: when it was said, with its zone; `zone_assumed` tells that the zone was not given.
        metadata: the caller's own, JSON values; comes back with every hit.
        position: number of the message inside its session, from 0.
    """

    id: str
    role: str
    content: str
    time: datetime
    name: str | None = None
    session: str | None = None
    zone_assumed: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class Gloss:
    """What a method wrote in the margin of a note; the note is found by these words too.

    Attributes:
        context: one sentence that tells what the note is about.
        sources: ids of the turns the gloss was drawn from; when one is forgotten, so is the gloss.
    """

    keywords: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    context: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """One remembered fact or note, with two times: when it held, and when we knew.

    Attributes:
        kind: "fact" (made of turns), "note" (a text kept whole), or of a graph "relation" (subject,
            predicate and object are two names and what is between them) and "entity" (a name, and
            in `entities` what else it is called); of an agent "state" (the agent is the subject,
            the key of the record the predicate, its value the metadata).
        subject, predicate, object: the slot a rule filled, lower case; None for free text.
        sources: ids of the turns it came from.
        valid_from, valid_to: when it held in the world; None is open.
        recorded_at, retired_at: when the store learned it and when it stopped believing it.
        made_by: "rules", "slm", "endpoint" or "person"; of state, the agent.
    """

    id: str
    text: str
    kind: str = "fact"
    subject: str | None = None
    predicate: str | None = None
    object: str | None = None
    entities: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    recorded_at: datetime | None = None
    retired_at: datetime | None = None
    made_by: str = "rules"
    version: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)
    gloss: Gloss | None = None

    @property
    def is_live(self) -> bool:
        """Whether the store still believes it."""
        return self.retired_at is None

    @property
    def indexed(self) -> str:
        """The text by which it is found: its own and that of its gloss."""
        return with_gloss(self.text, self.gloss)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A fact drawn from turns, before it is compared with what is already known.

    `ends` marks a statement that something no longer holds ("I no longer eat meat"). `key` begins
    with "+" and names the item to be, for a `Link` that stands behind it in the same edits.
    """

    text: str
    sources: tuple[str, ...]
    subject: str | None = None
    predicate: str | None = None
    object: str | None = None
    entities: tuple[str, ...] = ()
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    ends: bool = False
    many: bool = True  # whether the slot holds several values at once (likes) or one (lives in)
    kind: str = "fact"
    gloss: Gloss | None = None
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Add:
    """Remember something new."""

    candidate: Candidate
    made_by: str = "rules"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Revise:
    """Replace the text of an item; the old version stays in its history."""

    id: str
    candidate: Candidate
    made_by: str = "rules"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Retire:
    """Stop believing an item from `at` on; it is kept, and can be brought back.

    `sources` are the turns that say so, where nothing supersedes it.
    """

    id: str
    at: datetime | None = None
    superseded_by: Candidate | None = None
    sources: tuple[str, ...] = ()
    made_by: str = "rules"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Relate two items, each by its id or by the key of a candidate before it."""

    source: str
    relation: str
    target: str
    weight: float = 1.0
    made_by: str = "rules"
    reason: str = ""


Edit = Add | Revise | Retire | Link


@dataclass(frozen=True, kw_only=True)
class Source:
    """A turn a hit rests on, with the caller's metadata of that message."""

    id: str
    content: str
    time: datetime
    name: str | None = None
    role: str = "user"
    session: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer of a search: what, how well it fits, why, and the turns it came from.

    `why` maps the name of each signal ("words", "meaning", "entities", "time") to its part of the
    score.
    """

    id: str
    text: str
    score: float
    kind: str = "fact"
    why: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    recorded_at: datetime | None = None


def with_gloss(text: str, gloss: Gloss | None) -> str:
    """Return a text followed by the words of its gloss.

    >>> with_gloss("I moved.", Gloss(keywords=("graz",), tags=("home",)))
    'I moved. graz, home'
    """
    if gloss is None:
        return text
    words = ", ".join((*gloss.keywords, *gloss.tags))
    return " ".join(part for part in (text, gloss.context, words) if part)
