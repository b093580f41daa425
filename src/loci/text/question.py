"""A question taken apart: its words without the speakers' names, whom, what and when it is about.

Names of speakers stand in most questions about a conversation and in few of the turns that answer
them; they mislead full text and embeddings alike, so they are taken out and kept aside.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from loci.text.entities import PLAIN, entities
from loci.text.stem import fold, stems, tokens
from loci.text.times import resolve

_ME = re.compile(  # "me" asks for an answer, "I" alone tells: "tell me about Ada", "I see"
    r"\b(?:my|mine|user|(?:am|was|do|did|have|had|can|could|will|would|should|must|may) i)\b",
    re.IGNORECASE,
)
_WHEN = re.compile(
    r"\W*(?:(?:since )?when|how long ago"
    r"|(?:on |in )?(?:what|which) (?:date|day|month|year|time))\b",
    re.IGNORECASE,
)
_ROUNDING = 1e-6  # of a value; embeddings are float32
_CAPITAL = re.compile(r"\b[A-Z]\w*")
_NAMES_TIME = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|ago|since|(?:last|next|this|past|every) (?:\w+ )?"
    r"(?:night|day|morning|afternoon|evening|week|weekend|month|year|spring|summer|autumn|fall"
    r"|winter)|(?:mon|tues|wednes|thurs|fri|satur|sun)days?|january|february|march|april|june|july"
    r"|august|september|october|november|december|(?:19|20)\d\d|\d{1,2}(?:st|nd|rd|th))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """The parts of a question.

    Attributes:
        text: without the names of speakers.
        stems: of the words that are left; of all, where none is.
        speakers: those it names; empty if it names none, or everybody of several who spoke.
        about: the same names in their normal form.
        me: whether it is about who asks ("What am I allergic to?"), or about "the user".
        when: whether it asks for a time.
        names: other names, as `text.entities` writes them.
        spans: the times it asks about.
    """

    text: str
    stems: tuple[str, ...]
    speakers: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    me: bool = False
    when: bool = False
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
    named = [name for name in speakers if _is_named(name, text, words)]
    drop = {word for name in named for word in tokens(name)}
    drop |= set() if named else {"user"}  # whoever that is, it is no word of what was said
    bare = text
    for name in named:
        bare = re.sub(rf"\b{re.escape(name)}(?:['’]s)?\b", "", bare, flags=re.IGNORECASE)
    left = stems(" ".join(word for word in tokens(text) if word not in drop)) or stems(text)
    told_apart = named if len(named) < len(speakers) or len(named) == 1 else []
    spans = [(s.start, s.end) for s in resolve(text, now) if s.relation != "for"]
    return Question(
        text=" ".join(bare.split()),
        stems=tuple(left),
        speakers=tuple(told_apart),
        about=tuple(fold(name) for name in told_apart),
        me=not named and _ME.search(text) is not None,
        when=_WHEN.match(text) is not None,
        names=tuple(name for name in entities(text) if not set(name.split()) & drop),
        spans=tuple(spans),
    )


def names_time(text: str) -> bool:
    """Return whether a text seems to name a time; quicker than `text.times`, and less sure.

    >>> names_time("We went there last summer."), names_time("What a summer dress!")
    (True, False)
    """
    return _NAMES_TIME.search(text) is not None


def _is_named(name: str, text: str, words: Collection[str]) -> bool:
    """Return whether a question names this speaker, by the first of their names at least.

    A name that is a common word as well ("Will", "May", "Hope") must be written with a capital,
    unless the whole question has none.
    """
    first = next(iter(tokens(name)), "")
    if first not in words:
        return False
    if first not in PLAIN or text == text.lower():
        return True
    return any(fold(match[0]) == first for match in _CAPITAL.finditer(text))


def scaled(
    values: Mapping[str, float],
    ids: Sequence[str],
    weight: float,
    floor: float | None = None,
    among: int = 0,
) -> dict[str, float]:
    """Return weight * z-score over all ids; who lacks the value gets the least, or `floor`.

    Args:
        among: score as if there were at least so many, all further ones with the least: among few
            candidates no z-score is high, whatever they say, and fixed bonuses would decide.
    """
    if not values or not ids:
        return {}
    least = min(values.values()) if floor is None else floor
    full = [values.get(id, least) for id in ids]
    more = max(among - len(full), 0)
    count = len(full) + more
    middle = (sum(full) + more * least) / count
    square = sum((value - middle) ** 2 for value in full) + more * (least - middle) ** 2
    spread = (square / count) ** 0.5
    if spread <= _ROUNDING * max(
        map(abs, full)
    ):  # equal but for rounding: nothing tells them apart
        return dict.fromkeys(ids, 0.0)
    return {id: weight * (v - middle) / spread for id, v in zip(ids, full, strict=True)}
