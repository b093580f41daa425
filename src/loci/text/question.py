"""A question taken apart: its words without the speakers' names, whom, what and when it is about.

Names of speakers stand in most questions about a conversation and in few of the turns that answer
them; they mislead full text and embeddings alike, so they are taken out and kept aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from loci.text.entities import entities
from loci.text.stem import fold, stems, tokens
from loci.text.times import resolve


@dataclass(frozen=True, kw_only=True)
class Question:
    """The parts of a question.

    Attributes:
        text: without the names of speakers.
        stems: of the words that are left; of all, where none is.
        speakers: the one speaker it names; empty if it names none or several.
        about: the same name in its normal form.
        names: other names, as `text.entities` writes them.
        spans: the times it asks about.
    """

    text: str
    stems: tuple[str, ...]
    speakers: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    spans: tuple[tuple[datetime, datetime], ...] = ()


def take_apart(text: str, speakers: Sequence[str], now: datetime) -> Question:
    """Return the parts of a question asked at `now` among these speakers.

    >>> from datetime import UTC
    >>> parts = take_apart("What did Ada plant in Graz?", ["Ada", "Bob"], datetime(2026, 1, 1,
    ...     tzinfo=UTC))
    >>> parts.text, parts.about, parts.names
    ('What did plant in Graz?', ('ada',), ('graz',))
    """
    words = set(tokens(text))
    named = [name for name in speakers if tokens(name) and tokens(name)[0] in words]
    drop = {word for name in named for word in tokens(name)}
    bare = text
    for name in named:
        bare = re.sub(rf"\b{re.escape(name)}(?:['’]s)?\b", "", bare, flags=re.IGNORECASE)
    left = stems(" ".join(word for word in tokens(text) if word not in drop)) or stems(text)
    alone = tuple(named) if len(named) == 1 else ()
    spans = [(s.start, s.end) for s in resolve(text, now) if s.relation != "for"]
    return Question(
        text=" ".join(bare.split()),
        stems=tuple(left),
        speakers=alone,
        about=tuple(fold(name) for name in alone),
        names=tuple(name for name in entities(text) if not set(name.split()) & drop),
        spans=tuple(spans),
    )


def scaled(
    values: dict[str, float], ids: Sequence[str], weight: float, floor: float | None = None
) -> dict[str, float]:
    """Return weight * z-score over all ids; who lacks the value gets the least, or `floor`."""
    if not values or not ids:
        return {}
    least = min(values.values()) if floor is None else floor
    full = [values.get(id, least) for id in ids]
    middle = sum(full) / len(full)
    spread = (sum((value - middle) ** 2 for value in full) / len(full)) ** 0.5 or 1.0
    return {id: weight * (v - middle) / spread for id, v in zip(ids, full, strict=True)}
