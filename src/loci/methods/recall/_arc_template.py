"""Templates: what the suggestions of several traces share, with holes, and how holes are filled.

`anti_unify` aligns a template with one more text: tokens of both stay, and where they differ stands
a hole, the same hole for the same pair. A hole is filled from a new situation with the word that
stands there as values stood in theirs, by the odds of its shape and its two neighbours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from loci.text.stem import STOP_WORDS, fold, stem

# A quoted name, a word with what belongs to it (web-3, /srv/in.csv, 8:30), blanks, or one sign.
_TOKEN = re.compile(r'"[^"\n]*"|/?\w+(?:[-.:/@]+\w+)*|\s+|.', re.DOTALL)
OPEN = "^a"  # the shape of a word with a capital where a sentence begins
# Of scores, all set on made-up worlds 100 to 104:
_DOUBT, _KINDS = 0.5, 20  # smoothing of counts; how many kinds of a mark are thought of
_POOLED = 0.5  # what other lessons' holes of a role count for, against the lesson's own
_SEEN, _NEVER = 1.5, 3.0  # for a word that was a value; against one that was there and never
_LEAST = -2.0  # below it too much speaks against a word


@dataclass(frozen=True)
class Template:
    """Tokens in their order; a number is a hole. Equal numbers are filled alike."""

    parts: tuple[str | int, ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Return the template of one text, which has no holes."""
        return cls(tuple(tokens_of(text)))

    @property
    def holes(self) -> tuple[int, ...]:
        """The holes in the order in which they first stand."""
        return tuple(dict.fromkeys(part for part in self.parts if isinstance(part, int)))

    @property
    def heads(self) -> tuple[str | int, ...]:
        """What each line begins with: the tool it calls."""
        starts = [0, *(n + 1 for n, part in enumerate(self.parts) if part == "\n")]
        return tuple(self.parts[n] for n in starts if n < len(self.parts))

    def fill(self, values: Mapping[int, str]) -> str:
        """Return the text that values make."""
        return "".join(values[p] if isinstance(p, int) else p for p in self.parts)

    def __str__(self) -> str:
        """Return the template for people: holes are ?1, ?2, ..."""
        return "".join(f"?{p + 1}" if isinstance(p, int) else p for p in self.parts)


@dataclass(frozen=True)
class Shared:
    """What a template and a text share.

    Attributes:
        before: {hole: the parts of the old template that stood there}.
        values: {hole: what stands there in the text}.
    """

    template: Template
    before: Mapping[int, Template]
    values: Mapping[int, str]

    def carried(self, values: Mapping[int, str]) -> dict[int, str]:
        """Return the values that make the same text as `values` made of the old template."""
        return {hole: part.fill(values) for hole, part in self.before.items()}


def tokens_of(text: str) -> list[str]:
    """Return the tokens of a text; joined they are the text.

    >>> tokens_of("restart(host=web-3)")
    ['restart', '(', 'host', '=', 'web-3', ')']
    """
    return _TOKEN.findall(text)


def anti_unify(template: Template, text: str) -> Shared:
    """Return a template of which the text and all that the old template makes are instances."""
    theirs = tokens_of(text)
    matcher = SequenceMatcher(None, template.parts, theirs, autojunk=False)
    parts: list[str | int] = []
    numbers: dict[tuple[tuple[str | int, ...], str], int] = {}
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal":
            parts += template.parts[a:b]
        else:
            pair = template.parts[a:b], "".join(theirs[c:d])
            parts.append(numbers.setdefault(pair, len(numbers)))
    return Shared(
        Template(tuple(parts)),
        {hole: Template(old) for (old, _), hole in numbers.items()},
        {hole: new for (_, new), hole in numbers.items()},
    )


# -- words of a situation ---------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """A word of a situation: as it stands there, folded, its stem, shape, and whether it begins.

    Attributes:
        begins: whether it is the first of a sentence.
    """

    raw: str
    plain: str
    stem: str
    shape: str
    begins: bool


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[Word, ...]:
    """Return the words of a situation in their order."""
    found: list[Word] = []
    begins = True
    for token in tokens_of(text):
        if re.search(r"\w", token):
            plain = fold(token)
            found.append(Word(token, plain, stem(plain), shape_of(token, begins), begins))
            begins = False
        elif token in ".!?:" or "\n" in token:
            begins = True
    return tuple(found)


def shape_of(token: str, begins: bool = False) -> str:
    """Return which sorts of letters and signs a word has, and in which order.

    >>> shape_of("web-3"), shape_of("Maya"), shape_of("/srv/in.csv")
    ('a-0', 'Aa', '/a')

    Where a sentence begins a capital tells nothing: such a word has the shape `OPEN`, or that of a
    word inside.
    """
    if token.startswith(("/", '"')):
        return token[0] + "a"
    if begins and token[:1].isupper():
        if token[1:].isalpha() and token[1:].islower():
            return OPEN
        token = token[0].lower() + token[1:]
    kinds = [
        "0" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in token
    ]
    return "".join(k for n, k in enumerate(kinds) if n == 0 or k != kinds[n - 1])


def place_of(value: str, situation: str) -> int | None:
    """Return which word of a situation a value is, None if it is none of them."""
    plain = fold(value)
    return next((n for n, word in enumerate(words(situation)) if word.plain == plain), None)


def is_name(word: Word) -> bool:
    """Return whether a word looks like a name or a number, whatever the sentence says."""
    return word.shape not in ("a", OPEN)


# -- filling ----------------------------------------------------------------------------------


class Habits:
    """How the values of a role stand in situations, and how all other words do.

    A role is the word before a hole in its line: what `service=` was given in one lesson tells of
    what it may be given in another.
    """

    def __init__(self) -> None:
        self.values: Counter[tuple[object, ...]] = Counter()
        self.others: Counter[tuple[object, ...]] = Counter()
        self.count = [0, 0]
        self.seen: set[str] = set()
        self.shapes: set[str] = set()

    def add(self, situation: str, value: str, weight: int = 1) -> None:
        """Count one example: the value there, and the words of its shape that are others."""
        plain = fold(value)
        self.seen.add(plain)
        shape = shape_of(value)
        self.shapes.add(shape)
        like = (shape, OPEN) if shape in ("a", "Aa") else (shape,)
        for mine, marks in _marks(situation):
            if mine in STOP_WORDS or marks[0][1] not in like:
                continue
            if mine == plain:
                self.values.update(dict.fromkeys(marks, weight))
                self.count[0] += weight
            else:
                self.others.update(dict.fromkeys(marks, weight))
                self.count[1] += weight

    def odds(self, marks: Sequence[tuple[object, ...]]) -> float:
        """Return the log of how much more likely a value is to have these marks than a word.

        A mark that neither had tells nothing. No value had the shape: then it is none.
        """
        shape = marks[0][1]
        if not (self.shapes & {"a", "Aa"} if shape == OPEN else shape in self.shapes):
            return -math.inf
        found = 0.0
        for mark in marks:
            if mark not in self.values and mark not in self.others:
                continue
            mine = (self.values[mark] + _DOUBT) / (self.count[0] + _KINDS * _DOUBT)
            theirs = (self.others[mark] + _DOUBT) / (self.count[1] + _KINDS * _DOUBT)
            found += math.log(mine / theirs)
        return found


@lru_cache(maxsize=4096)
def _marks(situation: str) -> tuple[tuple[str, tuple[tuple[object, ...], ...]], ...]:
    """Return (word, what can be seen of it and its neighbours) for all words of a situation."""
    there = words(situation)
    found = []
    for n, word in enumerate(there):
        left = "" if n == 0 or word.begins else there[n - 1].stem
        right = "" if n + 1 == len(there) or there[n + 1].begins else there[n + 1].stem
        marks = (("shape", word.shape), (-1, left), (1, right), ("end", word.plain[-2:]))
        found.append((word.plain, marks))
    return tuple(found)


def role_of(template: Template, hole: int) -> str:
    """Return the word that stands before a hole in its line, "" if there is none."""
    at = template.parts.index(hole)
    for part in reversed(template.parts[:at]):
        if part == "\n":
            return ""
        if isinstance(part, str) and re.search(r"\w", part):
            return fold(part)
    return ""


def loosened(
    template: Template, examples: Sequence[tuple[str, Mapping[int, str]]]
) -> tuple[Template, list[tuple[str, dict[int, str]]]]:
    """Return a template with more holes: what stood in the situation of every example.

    Of plain words only the values of arguments are taken (`service=billing`), and names anywhere:
    two traces may have had the same name by chance, and a single one has nothing to differ from.
    """
    fresh = max(template.holes, default=-1) + 1
    numbers: dict[str, int] = {}
    parts: list[str | int] = []
    for n, part in enumerate(template.parts):
        if isinstance(part, str) and part not in numbers and re.search(r"\w", part):
            places = [place_of(part, situation) for situation, _ in examples]
            if all(place is not None for place in places) and (
                (n > 0 and template.parts[n - 1] in ("=", ":")) or shape_of(part) != "a"
            ):
                numbers[part] = fresh + len(numbers)
        parts.append(numbers.get(part, part) if isinstance(part, str) else part)
    more = {hole: value for value, hole in numbers.items()}
    return Template(tuple(parts)), [(text, {**values, **more}) for text, values in examples]


def filled(
    template: Template,
    examples: Sequence[tuple[str, Mapping[int, str]]],
    situation: str,
    habits: Mapping[str, Habits],
    known: Container[str],
) -> dict[int, str] | None:
    """Return what the holes are in a new situation; None if one of them cannot be filled.

    Args:
        examples: (situation, values) of the traces the template was made from.
        habits: of each role.
        known: stems of the situations seen so far.
    """
    there, marks = words(situation), _marks(situation)
    scores: dict[int, list[float]] = {}
    for hole in template.holes:
        own = Habits()
        for text, given in examples:
            own.add(text, given[hole])
        pooled = habits.get(role_of(template, hole), own)
        scores[hole] = [
            -math.inf
            if word.plain in STOP_WORDS
            else _POOLED * pooled.odds(mine)
            + (1 - _POOLED) * own.odds(mine)
            + _news(word, own, pooled, known)
            for word, (_, mine) in zip(there, marks, strict=True)
        ]
    values: dict[int, str] = {}
    taken: set[str] = set()
    # The surest hole takes its word first; holes that differed in an example do not share one.
    for hole in sorted(scores, key=lambda one: (-max(scores[one], default=0.0), one)):
        free = [n for n in range(len(there)) if there[n].plain not in taken]
        best = max(free, key=lambda n: (scores[hole][n], -n), default=None)
        if best is None or scores[hole][best] < _LEAST:
            return None
        taken.add(there[best].plain)
        raw = there[best].raw
        lower = all(given[hole].islower() for _, given in examples)
        values[hole] = raw.lower() if lower else raw
    return values


def _news(word: Word, own: Habits, pooled: Habits, known: Container[str]) -> float:
    """Return what it says of a word that it was a value, or was there and was none."""
    if word.plain in own.seen or word.plain in pooled.seen:
        return _SEEN
    return -_NEVER if word.stem in known else 0.0
