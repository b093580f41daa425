"""A conversation as it was read: its sentences, who is whose in it, and its corrections."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from loci.core.item import Source
from loci.text.people import People


@dataclass(frozen=True, kw_only=True)
class Mend:
    """A correction: `old` no longer stands, `new` does. Both are stretches of what was said."""

    old: str
    new: str
    at: int  # the sentence that mends
    of: int  # the sentence `new` stands in
    typed: bool  # whether it says so only if both sides hold the same kind of value


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """One sentence of a conversation, read in its place.

    Attributes:
        text: as it was said.
        plain: the same with pronouns replaced by names, for comparing meanings.
        source, rank: the turn, and the place of the first hit that holds it; 10**6 is none.
        order: number of the sentence in the whole conversation read.
        speaker: folded name of who said it.
        about: folded names of whom it speaks, pronouns followed.
        mentions: (where, whom) in order; "" for people who are not known.
        words: stems that it says itself; `near` are those around it, with their weights.
        beside: folded names of whom the sentences around it speak.
        lead: the question of somebody else that it answers first; "" if it does not.
        anchor: the date last spoken of in this turn, for "the sixteenth".
        context: the sentence it follows, or the question it answers.
        there: the place that "there" or "here" means in it.
        leans: whether it goes on from the sentence before: "In Sintra, a week ago."
    """

    text: str
    plain: str
    source: Source
    rank: int
    order: int
    place: int
    speaker: str
    about: frozenset[str]
    mentions: tuple[tuple[int, str], ...]
    words: frozenset[str]
    near: dict[str, float]
    beside: frozenset[str] = frozenset()
    lead: str = ""
    anchor: datetime | None = None
    context: str = ""
    there: str = ""
    leans: bool = False


@dataclass
class Story:
    """Everything read: sentences in order, who is whose, and corrections."""

    said: list[Said] = field(default_factory=list)
    people: People = field(default_factory=People)
    mends: list[Mend] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    persons: set[str] = field(default_factory=set)
