"""Lessons in words: what verified traces of an agent share, as a situation and a suggestion.

A lesson is a cluster of traces whose actions have one template (anti-unification) and whose
situations are alike. Its situation is the medoid, its cues are the words its situations share,
names left out. A trace joins the lesson most alike whose template still can be filled: every hole
holds a word of that trace's own situation, so a constant that differs keeps lessons apart. What a
lesson is worth is what came of following it:

    utility(l)   = (wins + 1) / (tries + 2);   pruned below 0.3 after 5 tries
    relevance(l) = cosine(cues of l by rarity, words of the situation)
                   * (1/2 + utility(l)) * traces / (traces + 1)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any  # JSON values

from loci.core.ports import Embedder
from loci.methods.recall._arc_template import (
    Habits,
    Template,
    anti_unify,
    filled,
    is_name,
    loosened,
    place_of,
    role_of,
    words,
)
from loci.text.stem import STOP_WORDS

FEW_TRIES, LEAST_UTILITY = 5, 0.3  # the brief's rule of pruning
MOST_HOLES, MOST_MEMBERS = 8, 48
_ALIKE = 0.12  # cosine from which a trace may join; set on made-up worlds 100 to 104
_NEW = 0.5  # rarity of a word that no lesson has
_FITS = 0.16  # cosine from which a lesson is worth telling; set on the same worlds


@dataclass(frozen=True)
class Trace:
    """What an agent did in a situation, and whether it was verified that it helped."""

    id: str
    situation: str
    steps: tuple[str, ...]
    verified: bool
    digest: str

    @property
    def action(self) -> str:
        """The steps as one text, a line each."""
        return "\n".join(self.steps)


@dataclass(frozen=True)
class Member:
    """A trace in a lesson: its situation, and what the holes are there."""

    trace: str
    situation: str
    values: Mapping[int, str]

    @property
    def cues(self) -> frozenset[str]:
        """What its situation tells, without what fills the holes."""
        return cues(self.situation, tuple(self.values.values()))


@dataclass(frozen=True)
class Lesson:
    """A situation, and what helped in it.

    Attributes:
        name: from the first trace; it stays when the lesson grows.
        members: examples among the traces it rests on, the latest; `template` makes all of them.
        used_in: ids of the traces it rests on.
        tries, wins: how often it was followed, and helped then.
        wording: of the situation, by a model; "" where none was asked.
    """

    name: str
    template: Template
    members: tuple[Member, ...]
    used_in: tuple[str, ...]
    tries: int = 0
    wins: int = 0
    wording: str = ""

    @property
    def utility(self) -> float:
        """Share of tries that helped, with one win and two tries before any."""
        return (self.wins + 1) / (self.tries + 2)

    @property
    def is_pruned(self) -> bool:
        """Whether it failed too often to be told; it is kept, and its traces stay in it."""
        return self.tries >= FEW_TRIES and self.utility < LEAST_UTILITY

    @cached_property
    def cues(self) -> Counter[str]:
        """{stem: in how many of its situations}, without what fills its holes."""
        return Counter(cue for one in self.members for cue in one.cues)

    @cached_property
    def situation(self) -> str:
        """The medoid: the situation that shares most with the others, for its length."""
        share = [
            sum(self.cues[cue] for cue in one.cues) / math.sqrt(len(one.cues) or 1)
            for one in self.members
        ]
        return self.members[max(range(len(share)), key=lambda n: (share[n], -n))].situation

    def loosened(self) -> tuple[Template, list[tuple[str, dict[int, str]]]]:
        """Return its template as it is told, and the examples of that."""
        examples = [(one.situation, one.values) for one in self.members]
        return loosened(self.template, examples)

    def described(self) -> str:
        """Return the lesson in a line, for people and models."""
        steps = str(self.template).replace("\n", "; then ")
        worth = f"{self.wins} of {self.tries} tries helped" if self.tries else "not tried yet"
        state = ", pruned" if self.is_pruned else ""
        about = self.wording or " ".join(self.situation.split())
        return f"{self.name}: {about} -> {steps} [{len(self.used_in)} traces, {worth}{state}]"

    def to_json(self) -> dict[str, Any]:
        """Return the lesson as JSON."""
        return {
            "template": list(self.template.parts),
            "members": [
                [one.trace, one.situation, {str(k): v for k, v in one.values.items()}]
                for one in self.members
            ],
            "used_in": list(self.used_in),
            "tries": self.tries,
            "wins": self.wins,
            "wording": self.wording,
        }

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Lesson:
        """Return the lesson that `to_json` wrote."""
        members = (
            Member(trace, situation, {int(k): v for k, v in values.items()})
            for trace, situation, values in value["members"]
        )
        return cls(
            name,
            Template(tuple(value["template"])),
            tuple(members),
            tuple(value["used_in"]),
            int(value["tries"]),
            int(value["wins"]),
            str(value["wording"]),
        )


@dataclass(frozen=True)
class Advice:
    """A lesson told in a new situation: its suggestion with the holes filled, and why."""

    lesson: str
    suggestion: str
    situation: str
    score: float
    why: str
    values: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "lesson": self.lesson,
            "suggestion": self.suggestion,
            "situation": self.situation,
            "score": round(self.score, 4),
            "why": self.why,
        }


def founded(trace: Trace) -> Lesson:
    """Return the lesson of a single trace."""
    name = "l" + blake2b(f"{trace.id} {trace.digest}".encode(), digest_size=4).hexdigest()
    member = Member(trace.id, trace.situation, {})
    return Lesson(name, Template.of(trace.action), (member,), (trace.id,))


def joined(lesson: Lesson, trace: Trace) -> Lesson | None:
    """Return the lesson with one more trace; None if they have no template that can be filled."""
    shared = anti_unify(lesson.template, trace.action)
    template = shared.template
    if len(template.holes) > MOST_HOLES or any(isinstance(head, int) for head in template.heads):
        return None
    if template.heads != Template.of(trace.action).heads:
        return None
    members = [replace(one, values=shared.carried(one.values)) for one in lesson.members]
    members.append(Member(trace.id, trace.situation, dict(shared.values)))
    for one in members:
        if any(place_of(value, one.situation) is None for value in one.values.values()):
            return None
    return replace(
        lesson,
        template=template,
        members=tuple(members[-MOST_MEMBERS:]),
        used_in=(*lesson.used_in, trace.id),
        wording="",
    )


def merged(into: Lesson, other: Lesson) -> Lesson | None:
    """Return both lessons as one, uses added; None if they have no template that can be filled."""
    whole: Lesson | None = into
    for one in other.members:
        if whole is None:
            return None
        steps = tuple(other.template.fill(one.values).split("\n"))
        whole = joined(whole, Trace(one.trace, one.situation, steps, True, one.trace))
    if whole is None:
        return None
    return replace(
        whole,
        used_in=(*into.used_in, *other.used_in),
        tries=into.tries + other.tries,
        wins=into.wins + other.wins,
    )


def learnt(lessons: Sequence[Lesson], trace: Trace) -> tuple[Lesson, list[Lesson]]:
    """Return the lesson that a verified trace belongs to now, and those that went into it.

    Pruned lessons take no more traces: what failed for one says nothing of others.
    """
    live = [lesson for lesson in lessons if not lesson.is_pruned]
    rarity = rarity_of(live)
    now, gone = founded(trace), []
    for lesson in _likest(live, trace.situation, rarity):
        whole = joined(lesson, trace)
        if whole is not None:
            now = whole
            break
    known = [lesson for lesson in live if lesson.name != now.name]
    for lesson in [*_likest(known, now.situation, rarity), *_same(known, now)]:
        both = merged(lesson, now) if len(lesson.used_in) >= len(now.used_in) else None
        if both is not None:
            gone = [one for one in live if one.name == now.name]
            return both, gone
    return now, gone


def _same(lessons: Iterable[Lesson], now: Lesson) -> list[Lesson]:
    """Return the lessons that suggest just the same, however they are worded.

    Two traces of each must have said so: a single one may be a chance.
    """
    if len(now.used_in) < 2:
        return []
    suggests = str(now.template)
    return [one for one in lessons if len(one.used_in) > 1 and str(one.template) == suggests]


def _likest(lessons: Iterable[Lesson], situation: str, rarity: Mapping[str, float]) -> list[Lesson]:
    """Return the lessons like enough to be one with a situation, the most alike first."""
    seen = cues(situation)
    scored = [(_cosine(lesson.cues, seen, rarity), lesson) for lesson in lessons]
    near = [pair for pair in scored if pair[0] >= _ALIKE]
    return [lesson for _, lesson in sorted(near, key=lambda pair: (-pair[0], pair[1].name))]


# -- reading ----------------------------------------------------------------------------------


def ranked(
    lessons: Iterable[Lesson],
    situation: str,
    rarity: Mapping[str, float],
    embedder: Embedder | None = None,
) -> list[tuple[float, Lesson]]:
    """Return the lessons that fit a situation with their relevance, the fittest first.

    With an embedder, the likeness of words and that of meaning to the medoid count the same.
    """
    live = [lesson for lesson in lessons if not lesson.is_pruned]
    seen = cues(situation)
    like = [_cosine(lesson.cues, seen, rarity) for lesson in live]
    if embedder is not None and live:
        rows = embedder.encode([situation, *(lesson.situation for lesson in live)])
        like = [(a + float(rows[0] @ row)) / 2 for a, row in zip(like, rows[1:], strict=True)]
    scored = [
        (alike * (0.5 + lesson.utility) * _support(lesson), lesson)
        for alike, lesson in zip(like, live, strict=True)
        if alike >= _FITS
    ]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1].name))


def _support(lesson: Lesson) -> float:
    """Return how far the traces of a lesson are from a chance: 1/2 for one, towards 1."""
    return len(lesson.used_in) / (len(lesson.used_in) + 1)


def habits_of(lessons: Iterable[Lesson]) -> dict[str, Habits]:
    """Return how the values of each role stand in the situations of all lessons."""
    found: dict[str, Habits] = {}
    for lesson in lessons:
        template, examples = lesson.loosened()
        for hole in template.holes:
            mine = found.setdefault(role_of(template, hole), Habits())
            for situation, values in examples:
                mine.add(situation, values[hole])
    return found


def told(
    lesson: Lesson,
    situation: str,
    rarity: Mapping[str, float],
    habits: Mapping[str, Habits],
    score: float = 0.0,
) -> Advice | None:
    """Return a lesson's suggestion for a situation; None where a hole cannot be filled."""
    template, examples = lesson.loosened()
    found = filled(template, examples, situation, habits, rarity)
    if found is None:
        return None
    seen = cues(situation, tuple(found.values()))
    shared = sorted(seen & set(lesson.cues), key=lambda cue: (-rarity.get(cue, 1.0), cue))
    holes = ", ".join(f"?{hole + 1} is {value}" for hole, value in found.items())
    why = f"shares {', '.join(shared[:5]) or 'no word'}; rests on {len(lesson.used_in)} traces"
    why += f"; {lesson.wins} of {lesson.tries} tries helped" if lesson.tries else "; not tried yet"
    return Advice(
        lesson.name,
        template.fill(found),
        lesson.wording or lesson.situation,
        score,
        why + (f"; {holes}" if holes else ""),
        found,
    )


def rendered(advice: Sequence[Advice]) -> str:
    """Return advice as the part of a prompt that shows it."""
    lines: list[str] = []
    for number, one in enumerate(advice, 1):
        lines.append(f"{number}. In a situation like: {' '.join(one.situation.split())}")
        lines.append(f"   what helped: {one.suggestion.replace(chr(10), '; then ')}")
    return "\n".join(lines)


# -- cues -------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def cues(situation: str, values: tuple[str, ...] = ()) -> frozenset[str]:
    """Return the stems of a situation that tell what is the matter: no names, no stop words."""
    held = {word.plain for value in values for word in words(value)}
    return frozenset(
        word.stem
        for word in words(situation)
        if not is_name(word) and word.plain not in STOP_WORDS and word.plain not in held
    )


def rarity_of(lessons: Sequence[Lesson]) -> dict[str, float]:
    """Return {stem: near 0 where every lesson has it, towards 1 the fewer have it}."""
    counts = Counter(cue for lesson in lessons for cue in lesson.cues)
    most = math.log(len(lessons) + 3)  # 3: what a single lesson says is half rare
    return {cue: 1.0 - math.log(n + 1) / most for cue, n in counts.items()}


def _cosine(mine: Mapping[str, float], seen: Iterable[str], rarity: Mapping[str, float]) -> float:
    """Return the cosine of counted cues and those of one situation, both weighted by rarity."""
    weights = {cue: 0.1 + rarity.get(cue, _NEW) for cue in {*mine, *seen}}
    own = math.sqrt(sum((n * weights[cue]) ** 2 for cue, n in mine.items()))
    theirs = math.sqrt(sum(weights[cue] ** 2 for cue in seen))
    shared = sum(mine[cue] * weights[cue] ** 2 for cue in seen if cue in mine)
    return shared / (own * theirs) if own and theirs else 0.0
