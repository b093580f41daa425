"""Long contexts that are asked many things, made from a seed; candidates instead of free answers.

A context is tokens, and a list of turns. A turn is the start of a sentence that the context
completes, and candidates: the right answer among others that also stand in the context (where it
has so many). A small
model cannot discuss a text, but it can complete it. Where an answer's evidence stands is known to
the token, because contexts are put together from pieces that were tokenised apart.

Tasks by what they ask of a cache:

    lookup      string retrieval     a table of keys and values
    prefix      string retrieval     lines of three words, found by their first two
    tracking    string retrieval     variables that are set to other variables
    needle      semantic retrieval   facts scattered over prose
    dialogue    semantic retrieval   what people in a long conversation said they like
    many_shot   global               labels whose rule only many examples show
    mixed       two at once          facts in prose and a table, asked in turn
"""

from __future__ import annotations

import random
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol  # a table of settings

from loci.bench import texts
from loci.errors import ParameterError

ABILITIES: Mapping[str, tuple[str, ...]] = {
    "string retrieval": ("lookup", "prefix", "tracking"),
    "semantic retrieval": ("needle", "dialogue"),
    "global information": ("many_shot",),
    "multi-task": ("mixed",),
}
TASKS = tuple(task for tasks in ABILITIES.values() for task in tasks)
TURNS = 5
CANDIDATES = 8
TEST_SEED = 1000  # development contexts have seeds below it
_LABELS = ("red", "blue", "green", "black")


class Encodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question.

    Attributes:
        question: tokens that the answer follows.
        candidates: tokens of each; candidate 0 is right.
        evidence: (first, last + 1) token of the context where the answer stands.
    """

    question: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    evidence: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SharedContext:
    """Tokens that many questions are asked about."""

    task: str
    ids: tuple[int, ...]
    turns: tuple[Turn, ...]

    @property
    def chance(self) -> float:
        """How often a guess is right."""
        return sum(1 / len(turn.candidates) for turn in self.turns) / len(self.turns)

    def longest(self) -> int:
        """Return the tokens all turns add at most, answers included."""
        return sum(len(turn.question) + max(map(len, turn.candidates)) for turn in self.turns)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How long a context is, and how many facts (pairs, needles, examples) it holds."""

    tokens: int
    facts: int


@cache
def settings() -> Mapping[str, Any]:
    """Return words, names and sizes."""
    return tomllib.loads((resources.files("loci.bench") / "contexts.toml").read_text("utf-8"))


def size(task: str, name: str = "default") -> Size:
    """Return a frozen, calibrated size of a task."""
    table = settings()["size"]
    if name not in table:
        raise ParameterError("no such size", value=name, allowed=", ".join(table))
    if task not in TASKS:
        raise ParameterError("no such task", value=task, allowed=", ".join(TASKS))
    found = table[name]
    return Size(tokens=found.get(f"{task}_tokens", found["tokens"]), facts=found[task])


def make(
    task: str,
    tokenizer: Encodes,
    how: Size,
    seed: int,
    *,
    part: str = "test",
    turns: int = TURNS,
) -> SharedContext:
    """Return one context from a seed.

    Args:
        part: "dev" or "test"; they share neither seeds nor prose.

    Raises:
        ParameterError: if the facts do not fit the tokens.
    """
    if task not in TASKS:
        raise ParameterError("no such task", value=task, allowed=", ".join(TASKS))
    if part not in ("dev", "test"):
        raise ParameterError("unknown part", value=part, allowed="dev, test")
    if turns < 1 or how.facts < turns:
        raise ParameterError(
            "every turn asks for a fact of its own", value=turns, allowed=f"1 to {how.facts}"
        )
    draw = random.Random(f"{task} {seed + (TEST_SEED if part == 'test' else 0)}")
    maker = _Maker(tokenizer, draw, how, part)
    return maker.finished(task, _TASKS[task](maker), turns)


# -- private ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Fact:
    """A piece of a context with the question that asks for it.

    Attributes:
        pieces: texts that follow each other in the context, each tokenised by itself.
        others: wrong answers; () takes those of other facts.
    """

    pieces: tuple[str, ...]
    question: str
    answer: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Laid:
    """Facts and where they go.

    Attributes:
        is_table: all facts stand together; else they are spread evenly.
        asked: questions about facts that need no piece of their own (many_shot).
        filler: makes lines between which facts may stand; None takes prose, cut anywhere.
        table: facts that stand together beside spread ones (mixed).
    """

    facts: list[_Fact]
    is_table: bool
    asked: list[_Fact] | None = None
    filler: Callable[[], list[list[int]]] | None = None
    table: list[_Fact] | None = None


class _Maker:
    """What the tasks share: words, filler, and putting a context together."""

    def __init__(self, tokenizer: Encodes, draw: random.Random, how: Size, part: str) -> None:
        self.encode, self.draw, self.how, self.part = tokenizer.encode, draw, how, part

    def words(self, count: int, without: Sequence[str] = ()) -> list[str]:
        """Return different words, one token each where the tokenizer has enough of those."""
        pool = [word for word in settings()["words"].split() if word not in without]
        short = [word for word in pool if len(self.encode(f" {word}")) == 1]
        pool = short if len(short) >= count else pool
        if len(pool) < count:
            raise ParameterError("there are not enough words", value=count, allowed=f"{len(pool)}")
        return self.draw.sample(pool, count)

    def prose(self) -> list[list[int]]:
        """Return more tokens of prose than any context needs, each by itself."""
        text = texts.prose()
        half = len(text) // 2
        text = text[:half] if self.part == "dev" else text[half:]
        wanted = self.how.tokens * 8
        start = text.find(". ", self.draw.randrange(max(1, len(text) - wanted))) + 2
        return [[token] for token in self.encode(text[start : start + wanted])]

    def finished(self, task: str, laid: _Laid, turns: int) -> SharedContext:
        """Put facts and filler together, and draw the turns."""
        spread = [] if laid.is_table else laid.facts
        table = laid.facts if laid.is_table else (laid.table or [])
        blocks = [[fact] for fact in spread]
        if table:
            blocks.insert(self.draw.randrange(len(blocks) + 1), table)
        pieces = {id(fact): [self.encode(text) for text in fact.pieces] for fact in spread + table}
        needed = sum(len(ids) for parts in pieces.values() for ids in parts)
        hay, breaks = _cut((laid.filler or self.prose)(), self.how.tokens - needed)
        if needed > self.how.tokens or len(hay) < self.how.tokens - needed:
            raise ParameterError(
                f"{self.how.facts} facts of {task} do not fit the context, or the filler is too "
                "short",
                value=self.how.tokens,
                allowed=f">= {needed} tokens",
            )
        ids: list[int] = []
        spans: dict[int, tuple[int, int]] = {}
        last = 0
        for index, block in enumerate(blocks):
            begin, end = (len(hay) * (index + i) // len(blocks) for i in (0, 1))
            middle = begin + self.draw.randrange(max(1, end - begin))
            middle = max(last, breaks[bisect_right(breaks, middle) - 1])
            ids += hay[last:middle]
            last = middle
            for fact in block:
                start = len(ids)
                ids += [token for piece in pieces[id(fact)] for token in piece]
                spans[id(fact)] = (start, len(ids))
        ids += hay[last:]
        if len(ids) != self.how.tokens:
            raise ParameterError("a context came out with the wrong length", value=len(ids))
        everything = (0, len(ids))
        if laid.asked is not None:
            asked = laid.asked
            everything = (min(a for a, _ in spans.values()), max(b for _, b in spans.values()))
        elif spread and table:  # in turn
            pairs = zip(
                self.draw.sample(spread, turns), self.draw.sample(table, turns), strict=True
            )
            asked = [fact for pair in pairs for fact in pair]
        else:
            asked = self.draw.sample(laid.facts, turns)
        answers = sorted({fact.answer for fact in spread + table})
        return SharedContext(
            task=task,
            ids=tuple(ids),
            turns=tuple(
                Turn(
                    question=tuple(self.encode(fact.question)),
                    candidates=self._candidates(fact, answers),
                    evidence=spans.get(id(fact), everything),
                )
                for fact in asked[:turns]
            ),
        )

    def _candidates(self, fact: _Fact, answers: list[str]) -> tuple[tuple[int, ...], ...]:
        others = list(fact.others)
        if not others:
            pool = [answer for answer in answers if answer != fact.answer]
            others = self.draw.sample(pool, min(CANDIDATES - 1, len(pool)))
            few = CANDIDATES - 1 - len(others)
            if few:  # a lone needle has no other values beside it
                others += [f" {word}" for word in self.words(few, [a.strip() for a in answers])]
        return tuple(tuple(self.encode(text)) for text in (fact.answer, *others))


def _cut(units: list[list[int]], tokens: int) -> tuple[list[int], list[int]]:
    """Return the first `tokens` tokens of the units, and where units begin."""
    ids: list[int] = []
    breaks = [0]
    for unit in units:
        ids += unit
        if len(ids) >= tokens:
            break
        breaks.append(len(ids))
    return ids[: max(0, tokens)], breaks


def _lookup(maker: _Maker) -> _Laid:
    words = maker.words(2 * maker.how.facts)
    return _Laid(facts=_pairs(words, maker.how.facts), is_table=True)


def _pairs(words: list[str], count: int) -> list[_Fact]:
    return [
        _Fact(pieces=(f"\n{key}: {value}",), question=f"\n{key}:", answer=f" {value}")
        for key, value in zip(words[:count], words[count : 2 * count], strict=True)
    ]


def _prefix(maker: _Maker) -> _Laid:
    count = maker.how.facts
    firsts = maker.words(max(2, count // 4))
    words = maker.words(2 * count, without=firsts)
    return _Laid(
        facts=[
            _Fact(
                pieces=(f"\n{(first := maker.draw.choice(firsts))} {second} {third}.",),
                question=f"\n{first} {second}",
                answer=f" {third}",
            )
            for second, third in zip(words[:count], words[count:], strict=True)
        ],
        is_table=True,
    )


def _tracking(maker: _Maker) -> _Laid:
    count = maker.how.facts
    words = maker.words(3 * count)
    return _Laid(
        facts=[
            _Fact(
                pieces=(f"\n{first} = {value}", f"\n{second} = {first}"),
                question=f"\n\n{second} =",
                answer=f" {value}",
            )
            for first, second, value in zip(
                words[:count], words[count : 2 * count], words[2 * count :], strict=True
            )
        ],
        is_table=True,
    )


def _needle(maker: _Maker) -> _Laid:
    words = maker.words(2 * maker.how.facts)
    return _Laid(facts=_needles(words, maker.how.facts), is_table=False)


def _needles(words: list[str], count: int) -> list[_Fact]:
    return [
        _Fact(
            pieces=(f" The secret word for {key} is {value}.",),
            question=f"\n\nThe secret word for {key} is",
            answer=f" {value}",
        )
        for key, value in zip(words[:count], words[count : 2 * count], strict=True)
    ]


def _dialogue(maker: _Maker) -> _Laid:
    draw, count = maker.draw, maker.how.facts
    names = draw.sample(settings()["names"].split(), 4)
    things = [thing for topic in settings()["favourites"].values() for thing in topic]
    pairs = draw.sample([(name, thing) for name in names for thing in things], count)
    values = maker.words(count, without=things)
    facts = [
        _Fact(
            pieces=(f"\n{name}: My favourite {thing} is the {value}.",),
            question=f"\n{name}: My favourite {thing} is the",
            answer=f" {value}",
        )
        for (name, thing), value in zip(pairs, values, strict=True)
    ]
    rest = maker.words(40, without=values)

    def talk() -> list[list[int]]:
        lines: list[list[int]] = []
        while sum(map(len, lines)) < maker.how.tokens:
            line = draw.choice(settings()["chat"]["lines"]).format(v=draw.choice(rest))
            lines.append(maker.encode(f"\n{draw.choice(names)}: {line}"))
        return lines

    return _Laid(facts=facts, is_table=False, filler=talk)


def _many_shot(maker: _Maker) -> _Laid:
    draw, classes = maker.draw, settings()["classes"]
    labels = dict(zip(classes, draw.sample(_LABELS, len(classes)), strict=True))
    halves = {}
    for kind, words in classes.items():
        mixed = draw.sample(words, len(words))
        halves[kind] = (mixed[: len(mixed) * 2 // 3], mixed[len(mixed) * 2 // 3 :])

    def fact(kind: str, half: int) -> _Fact:
        named = ", ".join(draw.sample(halves[kind][half], 3))
        return _Fact(
            pieces=(f"\n{named}: {labels[kind]}",),
            question=f"\n{named}:",
            answer=f" {labels[kind]}",
            others=tuple(f" {other}" for other in labels.values() if other != labels[kind]),
        )

    kinds = [kind for _ in range(maker.how.facts) for kind in classes][: maker.how.facts]
    draw.shuffle(kinds)
    asked = [kind for _ in range(maker.how.facts) for kind in draw.sample([*classes], len(classes))]
    return _Laid(
        facts=[fact(kind, 0) for kind in kinds],
        is_table=True,
        asked=[fact(kind, 1) for kind in asked[: maker.how.facts]],
    )


def _mixed(maker: _Maker) -> _Laid:
    count = maker.how.facts
    words = maker.words(4 * count)
    return _Laid(
        facts=_needles(words[: 2 * count], count),
        is_table=False,
        table=_pairs(words[2 * count :], count),
    )


_TASKS: Mapping[str, Callable[[_Maker], _Laid]] = {
    "lookup": _lookup,
    "prefix": _prefix,
    "tracking": _tracking,
    "needle": _needle,
    "dialogue": _dialogue,
    "many_shot": _many_shot,
    "mixed": _mixed,
}
