"""Answers from memories without a model: the words of a turn that answer, cut to what was asked.

The turns behind the hits, and those around them, are read as a conversation: who is meant, who is
whose, what was corrected later. Every stretch of the kind asked for - a day, an amount, a place, a
name, a clause - stands in a sentence that fits the question more or less; facts drawn by the
extraction rules stand beside them where their slot is asked for. A question about now prefers what
was said later, one about before what is no longer so; a value that was corrected gives way to the
one that replaced it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loci.core.item import Hit, Source, Turn
from loci.core.ports import Embedder
from loci.text import spans
from loci.text.ask import Person, Question, ask
from loci.text.choose import Chooser, clauses_of
from loci.text.known import Fact, facts_of
from loci.text.options import Option, Options, trimmed
from loci.text.people import same_kin
from loci.text.phrases import words
from loci.text.said import Said, Story
from loci.text.slots import slot_of
from loci.text.stem import fold
from loci.text.story import read
from loci.text.weigh import Scale, meanings_of
from loci.text.yesno import verdict

Find = Callable[[str], tuple[Sequence[Hit], Iterable[Turn]]]
"""A search: the hits for a text, best first, and the turns around them."""

READ = 40
"""Hits a reader should be given; it shows only those its answer rests on."""

AROUND = (2, 1)
"""Turns before and after each hit that are read with it."""

_KEPT = 20_000  # vectors of sentences that a reader keeps
_SINGLE_KIN = words(
    "boss landlord landlady partner husband wife boyfriend girlfriend fiance spouse "
    "mother father roommate teacher coach"
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the memories say.

    Attributes:
        text: the shortest answer; "" when the memories do not say.
        why: the sentence or fact it rests on, with who said it and when.
        hits: ids of the hits it rests on; `memories` are the hits themselves.
        confidence: 0 to 1; below 0.5 the answer may only be close.
        told: the sentence or fact alone.
    """

    text: str
    why: str
    hits: tuple[str, ...]
    confidence: float
    told: str = ""
    memories: tuple[Hit, ...] = ()


class Reader:
    """Answers questions over hits; keeps vectors of sentences between questions.

    Args:
        embedder: compares meanings of sentences; without one, words and rules decide.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self.embedder = embedder
        self._vectors: dict[str, list[float]] = {}

    def answer(
        self, question: str, hits: Sequence[Hit], now: datetime, around: Iterable[Turn] = ()
    ) -> Answer:
        """Return the best answer that the hits, and the turns around them, hold."""
        told, of_hit = _turns(hits, around)
        if not told:
            return Answer(text="", why="no memory fits", hits=(), confidence=0.0)
        story = read(told)
        asked = ask(question, story.people, _speakers(told), now)
        if len(self._vectors) > _KEPT:
            self._vectors.clear()
        meanings = meanings_of(question, story, self.embedder, self._vectors)
        scale = Scale(asked, story, meanings)
        return _Answering(asked, story, scale, facts_of(told), of_hit).best()

    def ask(self, question: str, find: Find, now: datetime) -> Answer:
        """Return the best answer that a search finds, in two steps where the question needs two.

        "What does Ada's sister do?" is found under her name: first who the sister is, then what
        is said of her.
        """
        hits, around = find(question)
        found = {hit.id: hit for hit in hits}
        beside = {turn.id: turn for turn in around}

        def add(text: str) -> None:
            more, turns = find(text)
            for hit in more:
                found.setdefault(hit.id, hit)
            beside.update((turn.id, turn) for turn in turns)

        told, _ = _turns(list(found.values()), beside.values())
        story = read(told)
        asked = ask(question, story.people, _speakers(told), now)
        if asked.slots and (cues := slot_of(asked.slots[0]).cues):
            add(" ".join([*(shown for shown in _shown_names(asked, story)), *cues]))
        relatives = [person for person in asked.people if person.kin]
        for person in relatives:
            add(f"{story.people.shown.get(person.owner, person.owner)}'s {person.kin}")
        if relatives:
            told, _ = _turns(list(found.values()), beside.values())
            story = read(told)
            for person in relatives:
                for relation in story.people.named(person.owner, person.kin)[:2]:
                    if "'s " not in relation.name:
                        add(_with_name(question, person, relation.shown))
        said = self.answer(question, list(found.values()), now, beside.values())
        return replace(said, memories=tuple(found[id] for id in said.hits if id in found))


def _shown_names(asked: Question, story: Story) -> list[str]:
    """Return the names of those asked about as they are written."""
    return [story.people.shown[n] for n in sorted(asked.main) if n in story.people.shown]


def _with_name(question: str, person: Person, name: str) -> str:
    """Return a question with a name in the place of "Ada's sister"."""
    owner = "|".join(re.escape(n) for n in sorted(person.names | {person.owner}))
    words = rf"(?:\b(?:{owner}|my|our|his|her)(?:['’]s)?\s+(?:[\w-]+\s+){{0,2}}?)?\b[\w-]*"
    nouns = "|".join(re.escape(w) for w in same_kin(person.kin))
    changed = re.sub(rf"{words}\b(?:{nouns})\b", name, question, count=1, flags=re.I)
    return changed if changed != question else f"{name} {question}"


def answer(
    question: str,
    hits: Sequence[Hit],
    now: datetime,
    *,
    around: Iterable[Turn] = (),
    embedder: Embedder | None = None,
) -> Answer:
    """Return the best answer that the hits hold.

    >>> from datetime import UTC
    >>> when = datetime(2026, 5, 1, tzinfo=UTC)
    >>> said = Source(id="t1", content="I'm allergic to nuts.", time=when, name="Ada")
    >>> hit = Hit(id="f1", text="Ada is allergic to nuts", score=1.0, sources=(said,))
    >>> answer("What is Ada allergic to?", [hit], when).text
    'nuts'
    """
    return Reader(embedder).answer(question, hits, now, around)


def _turns(
    hits: Sequence[Hit], around: Iterable[Turn]
) -> tuple[list[tuple[Source, int]], dict[str, str]]:
    """Return (turn, rank) in the order of saying, and the hit each turn came with."""
    ranked: dict[str, tuple[Source, int]] = {}
    of_hit: dict[str, str] = {}
    for rank, hit in enumerate(hits):
        sources = hit.sources
        if not sources and hit.recorded_at is not None:  # a note: it speaks for itself
            sources = (Source(id=hit.id, content=hit.text, time=hit.recorded_at, role="user"),)
        for source in sources:
            ranked.setdefault(source.id, (source, rank))
            of_hit.setdefault(source.id, hit.id)
    for turn in around:
        if turn.id not in ranked:
            source = Source(
                id=turn.id,
                content=turn.content,
                time=turn.time,
                name=turn.name,
                role=turn.role,
                session=turn.session,
                metadata=turn.metadata,
                position=turn.position,
            )
            ranked[turn.id] = (source, 10**6)
    first: dict[str | None, datetime] = {}
    for source, _ in ranked.values():
        first[source.session] = min(first.get(source.session, source.time), source.time)
    ordered = sorted(
        ranked.values(),
        key=lambda pair: (
            first[pair[0].session],
            str(pair[0].session),
            pair[0].position,
            pair[0].time,
        ),
    )
    return ordered, of_hit


def _speakers(told: Sequence[tuple[Source, int]]) -> list[str]:
    """Return the folded names of those who spoke, people before assistants, most turns first."""
    count: dict[str, int] = {}
    for source, _ in told:
        name = fold(source.name or source.role)
        count[name] = count.get(name, 0) + (1 if source.role == "assistant" else 1000)
    users = [n for n in count if count[n] >= 1000]
    return sorted(users or count, key=lambda n: -count[n])


class _Answering:
    """Everything at hand for one question."""

    def __init__(
        self,
        asked: Question,
        story: Story,
        scale: Scale,
        facts: Sequence[Fact],
        of_hit: dict[str, str],
    ) -> None:
        self.asked, self.story, self.scale = asked, story, scale
        self.facts, self.of_hit = facts, of_hit
        self.found = Options(asked, story, scale, facts)

    def best(self) -> Answer:
        """Return the best answer."""
        direct = self._relation()
        if direct is not None:
            return direct
        if self.asked.kind == "yesno":
            return self._yes_no()
        options = self.found.all()
        if not options:
            return Answer(text="", why="no memory fits", hits=(), confidence=0.0)
        chooser = Chooser(self.found, options)
        chosen = chooser.best()
        group = self._with_equals(chosen, options)
        if self.asked.several and len(group) == 1:
            group = chooser.several(chosen)
        return self._told(chosen, group)

    def _with_equals(self, chosen: Option, options: Sequence[Option]) -> list[Option]:
        """Return the facts that stand beside a chosen one in a slot of many values."""
        fact = chosen.fact
        if fact is None or not slot_of(fact.item.predicate or "").many or fact.head == "did":
            return [chosen]
        if self.asked.kind not in (
            "what",
            "kind",
            "who",
            "count",
            "language",
            "instrument",
            "name",
        ):
            return [chosen]
        beside = [
            o
            for o in options
            if o.fact is not None
            and o.fact.item.subject == fact.item.subject
            and o.fact.item.predicate == fact.item.predicate
            and o.live == chosen.live
            and o.score >= chosen.score - 0.5
        ]
        kept: dict[Hashable, Option] = {}
        for option in [chosen, *beside]:
            kept.setdefault(option.key, option)
        return list(kept.values())

    def _told(self, chosen: Option, group: Sequence[Option]) -> Answer:
        text = ", ".join(dict.fromkeys(o.text for o in group))
        if self.asked.kind == "diet" and chosen.fact is None:
            text = self._diet(chosen)
        said = chosen.said
        why = said.text if chosen.fact is None else chosen.fact.item.text
        who = said.source.name or said.source.role
        ids = tuple(
            dict.fromkeys(
                self.of_hit[o.said.source.id] for o in group if o.said.source.id in self.of_hit
            )
        )
        confidence = max(0.0, min(1.0, (chosen.score - 0.4) / 2.0))
        return Answer(
            text=text.strip(),
            why=f"{why} ({who}, {said.source.time.day} {said.source.time:%B %Y})",
            hits=ids or self._nearest_hit(said),
            confidence=confidence,
            told=why,
        )

    def _diet(self, chosen: Option) -> str:
        """Return all that the turn says of eating: what is in, and what is out."""
        clauses_ = [
            trimmed(clause)
            for said in self.story.said
            if said.source.id == chosen.said.source.id
            for clause in clauses_of(said.text)
            if spans.listed("diet", clause)
        ]
        return "; ".join(clauses_[:3]) or chosen.text

    def _nearest_hit(self, said: Said) -> tuple[str, ...]:
        """Return the hit whose turn stands nearest, for a sentence that came along beside one."""
        best = [
            (abs(o.source.position - said.source.position), o.source.id)
            for o in self.story.said
            if o.source.id in self.of_hit and o.source.session == said.source.session
        ]
        return (self.of_hit[min(best)[1]],) if best else tuple(list(self.of_hit.values())[:1])

    # -- people --------------------------------------------------------------------------------

    def _relation(self) -> Answer | None:
        """Answer from who is whose: "What is his niece called?", "How is Pia related to Nele?"."""
        asked, people = self.asked, self.story.people
        if asked.kind == "relation" or (
            asked.kind == "who"
            and not asked.words
            and len(asked.people) == 1
            and not asked.people[0].kin
        ):
            return self._how_related()
        if asked.kind not in ("name", "who") or not asked.people:
            return None
        person = asked.people[-1]
        if not person.kin or (asked.kind == "who" and asked.words):
            return None
        found = [r for r in people.named(person.owner, person.kin) if "'s " not in r.name]
        if asked.mode == "now":
            over = {r.name for r in found if r.over}
            found = [r for r in found if r.name not in over]
        if not found:
            return None
        shown = list(dict.fromkeys(r.shown for r in found))
        if person.kin in _SINGLE_KIN or re.search(r"\b(?:now|new|current)\b", asked.low):
            shown = [shown[-1] if asked.mode in ("past", "first") else shown[0]]
        elif asked.words:
            shown = [max(shown, key=lambda name: self._said_of(fold(name)))]
        turn = next(r.turn for r in found if r.shown == shown[0])
        said = next(
            (s for s in self.story.said if s.source.id == turn and fold(shown[0]) in fold(s.text)),
            next(s for s in self.story.said if s.source.id == turn),
        )
        made = Option(", ".join(shown), shown[0], said, signs={"fact": 2.4})
        return self._told(made, [made])

    def _said_of(self, name: str) -> float:
        """Return how well the best sentence about somebody fits the question."""
        return max(
            (
                fit
                for fit, s in zip(self.found.fits, self.story.said, strict=True)
                if name in s.about
            ),
            default=0.0,
        )

    def _how_related(self) -> Answer | None:
        asked, people = self.asked, self.story.people
        named = [max(p.names, key=len) for p in asked.people if not p.kin]
        if not named:
            return None
        low = asked.low
        speakers = [s for s in self.story.speakers if s not in named]
        owners = named[1:] or [s for s in self._users() if s not in named] or speakers
        first = named[0]
        behind = re.search(r"\b(?:to|with) (\w+)$", low)
        if len(named) > 1 and behind and behind[1] in first.split():
            first, owners = named[1], [named[0]]
        for owner in owners:
            kin = people.between(owner, first)
            if not kin:
                continue
            word, via = kin[0]
            shown = f"{people.shown.get(owner, owner.title())}'s {word}"
            text = f"{shown} ({via})" if via else shown
            turn = next(r.turn for r in people.relations if r.name == first)
            said = next(s for s in self.story.said if s.source.id == turn)
            best = [s for s in self.story.said if s.source.id == turn and first in s.about]
            made = Option(text, text, (best or [said])[0], signs={"fact": 2.2})
            return self._told(made, [made])
        return None

    def _users(self) -> list[str]:
        return [
            s
            for s in self.story.speakers
            if any(o.speaker == s and o.source.role != "assistant" for o in self.story.said)
        ]

    # -- yes or no -----------------------------------------------------------------------------

    def _yes_no(self) -> Answer:
        options = []
        for index, said in enumerate(self.story.said):
            if said.source.role == "assistant" or said.text.rstrip().endswith("?"):
                continue
            signs = self.found.signs[index] | {"later": self.scale.later(said)}
            options.append(Option(said.text, said.order, said, signs=signs))
        if not options:
            return Answer(text="", why="no memory fits", hits=(), confidence=0.0)
        best = max(options, key=lambda o: o.score)
        told, fact = verdict(self.asked, self.facts, best.said)
        if fact is not None:
            said = next(s for s in self.story.said if s.source.id == fact.source.id)
            best = replace(best, said=said, fact=fact)
        made = replace(best, text=told)
        return self._told(made, [made])
