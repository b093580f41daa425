"""How well a possible answer fits a question: named signs, and the weight of each.

A sign is a number that says one thing: how many of the question's words a sentence has, how near
its meaning is, whether it is about the person asked about, whether it was said later. The score is
the weighted sum. Weights were set by hand and then fitted on conversations written for this reader
(`tests/text/dialogues`); leaving each of them out in turn tells how well they carry over.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from loci.core.ports import Embedder
from loci.text.ask import Question
from loci.text.lemmas import akin, keys
from loci.text.phrases import JOBS
from loci.text.said import Said, Story

WEIGHTS: dict[str, float] = {
    # the sentence
    "own": 1.0,  # words of the question that it says
    "near": 1.0,  # words that are said around it
    "meaning": 0.9,  # cosine of the embeddings
    "people": 0.6,  # about those who are asked about; negative when about others
    "rank": 0.1,  # found first by the search
    "assistant": -0.4,
    "question": -0.35,
    "avoids": 0.35,  # tells of not doing, where that is asked
    # the stretch, or the clause that stands for one
    "fit": 0.6,  # how surely it is of the kind asked for
    "thin": -0.35,  # of the kind, but with no word of the question near it
    "untyped": -1.2,  # a clause, where an amount or a day is asked for
    "untyped_soft": -0.8,  # a clause, where a clause may do
    "untyped_who": -1.0,
    "clause": 0.25,  # words of the question in the same clause
    "other": -0.35,  # somebody else is the subject of the clause
    "other_home": -0.4,  # the same, where it is asked where one lives or works
    "unreal": -0.4,  # wished, planned, or only thought of
    "unreal_home": -0.8,
    "cue": 0.35,  # how English says that one lives or works somewhere
    "cue_near": 0.18,
    "denied": -0.7,
    "denial": -0.4,
    "trade": -0.4,  # a price of selling where one of buying is asked for, or the reverse
    "reason": 0.4,
    "object": 0.3,  # says what the verb that is asked for was done to
    "empty": -0.5,  # has nothing that the question does not say itself
    "undated": -0.25,  # only the day on which it was said
    "undated_beside": -0.6,  # and a date stands beside it
    "fact": 0.75,  # a fact of the slot that is asked for
    "slot": -0.15,  # for every slot that is asked for before it
    # time
    "later": 0.25,
    "later_event": 0.1,  # what happened once
    "later_home": 1.0,
    "later_ahead": 1.0,  # when something will be
    "later_habit": 0.7,  # days, hours, ages
    "later_first": -1.5,
    "later_past": 0.4,
    "changed": 0.2,  # "now", "instead"
    "changed_value": 0.32,  # the same, beside a day, a place, an amount
    "dead": -0.9,  # a fact that has ended
    "dead_past": 0.5,
    "current": -1.0,  # holds now, where it is asked what was before
    "after_current": -0.6,
    "past_words": 0.15,
    "replaced": 0.4,  # corrected later, where it is asked what was before
}

_AVOIDS = re.compile(
    (
        r"\b(?:not|never|cannot|no|without|allerg\w+|intoleran\w+|avoid\w*|stay away"
        r"|keep away|hates?"
        r"|dislikes?|stopped|quit|gave up)\b|n['’]t\b"
    ),
    re.IGNORECASE,
)
_UNREAL = re.compile(
    (
        r"\b(?:would|could|might|maybe|perhaps|wish|if|want(?:s|ed)? to|wants?"
        r"|thinking (?:of|about)|thought"
        r" about|talk of|hoping|hope|offer on|looking at|looked at|consider\w*|applied"
        r"|apply|poster"
        r"|idea|i'd like|i'd be|dream\w*|plan(?:s|ned|ning)? to|interview)\b"
    ),
    re.IGNORECASE,
)
_SETTLED = re.compile(
    (
        r"\b(?:in the end|instead|actually|after all|finally|turns out|correction"
        r"|brought forward"
        r"|(?:been |got |was |is )?(?:moved|pushed back|postponed|rescheduled|put back"
        r"|put off))\b"
    ),
    re.IGNORECASE,
)
_CHANGED = re.compile(
    (
        r"\b(?:now|instead|actually|any ?more|finally|in the end|moved|changed?"
        r"|switched|turns out|pushed"
        r"|down to|up to|put up|raised|reduced|these days|from now on|after all"
        r"|no longer|correction|since then|again|at last)\b"
    ),
    re.IGNORECASE,
)
# How English says where one lives or works without those words.
_CUES = {
    "lives_in": re.compile(
        (
            r"\b(?:liv(?:e|es|ed|ing)|moved?|moving|settl\w+|based in|home|house|flat"
            r"|cottage|apartment"
            r"|bungalow|studio|terrace|(?:a|two|three|four) rooms?|a place"
            r"|writing (?:to you )?from"
            r"|(?:hello|hi|greetings|postcard) from|rent(?:ed|ing)?|been here|been in"
            r"|lease"
            r"|relocat\w+)\b"
        ),
        re.IGNORECASE,
    ),
    "from": re.compile(
        (
            r"(?:\b(?:comes?|came|is|am|are|was|were|originally)|['’](?:s|m|re)) from\b"
            r"|\bborn in\b"
            r"|\bgrew up in\b|\bhome ?town\b"
        ),
        re.IGNORECASE,
    ),
    "works_at": re.compile(
        (
            r"\b(?:works?|worked|working|job|start(?:s|ed|ing)? (?:at|as|with|for)|joined"
            r"|hired|employed"
            r"|weeks? at|days? at|post at|position at|apprentice at|boss at|notice at"
            rf"|(?:{'|'.join(sorted(JOBS, key=len, reverse=True))}|teaching) (?:at|for|in"
            r"|with))\b"
        ),
        re.IGNORECASE,
    ),
}
PAST_WORDS = re.compile(
    (
        r"\b(?:used to|was|were|had|did|old|former|previous|ago|before|back then|until"
        r"|sold|left|quit"
        r"|last day|handed in)\b"
    ),
    re.IGNORECASE,
)
_WISHED = re.compile(
    (
        r"\b(?:want(?:ed|s)? to|hoped to|hoping to|planned to|meant to|would|might"
        r"|thinking of"
        r"|thought of|if)\b"
    ),
    re.IGNORECASE,
)
_QUOTES = frozenset(keys("quote want ask estimate offer"))
_QUOTED = re.compile(
    r"\b(?:says|said|quoted?|estimates?d?|reckons?|wants|wanted|would (?:cost|be)|asking"
    r"|probably not|too (?:much|dear|expensive))\b",
    re.I,
)
_WISHES = frozenset(keys("want plan hope wish think consider apply"))


class Scale:
    """Reads the signs of the sentences of one story for one question."""

    def __init__(self, asked: Question, story: Story, meanings: Sequence[float] | None) -> None:
        self.asked, self.story, self.meanings = asked, story, meanings
        seen = Counter(word for said in story.said for word in said.words)
        count = len(story.said) + 1
        self.rare = {word: math.log(1 + count / (1 + seen[word])) for word in asked.words}
        self.whole = sum(self.rare.values()) or 1.0
        times = sorted({said.source.time for said in story.said})
        self._when: dict[datetime, int] = {time: place for place, time in enumerate(times)}
        self._last = max(len(times) - 1, 1)
        self.cue_of = _CUES.get(asked.slots[0]) if asked.slots and asked.kind == "where" else None

    def signs(self, index: int) -> dict[str, float]:
        """Return the signs of sentence number `index`."""
        said, asked = self.story.said[index], self.asked
        own = near = 0.0
        for word, rare in self.rare.items():
            here = self._own(word, said.words)
            own += rare * here
            near += rare * max(0.0, self._near(word, said) - here)
        own, near = own / self.whole, near / self.whole
        if self.cue_of is not None and own < 0.85 and self.cue_of.search(said.text):
            own, near = 0.85, max(0.0, own + near - 0.85)
        meaning = self.meanings[index] if self.meanings is not None else 0.45 * (own + near)
        return {
            "own": own,
            "near": near,
            "meaning": meaning,
            "people": self._people(index),
            "rank": 1.0 / (1.0 + said.rank / 5.0),
            "assistant": float(said.source.role == "assistant"),
            "question": float(said.text.rstrip().endswith("?")),
            "avoids": float(asked.negative and _AVOIDS.search(said.text) is not None),
        }

    def _own(self, word: str, words: frozenset[str]) -> float:
        if word in words:
            return 1.0
        # Two events of one idea have two dates: an engagement is no wedding.
        share = 0.4 if self.asked.kind == "when" else 0.7
        return max((share * akin(word, other) for other in words), default=0.0)

    def _near(self, word: str, said: Said) -> float:
        weight = said.near.get(word, 0.0)
        if weight:
            return weight
        return max(
            (0.6 * w * alike for other, w in said.near.items() if (alike := akin(word, other))),
            default=0.0,
        )

    def _people(self, index: int) -> float:
        """Return 1 when the sentence is about all who are asked about, less when some are near."""
        asked, said = self.asked, self.story.said[index]
        if not asked.people:
            return 0.5
        parts = []
        for person in asked.people:
            if person.names & said.about:
                hit = 1.0
            elif said.speaker in person.names:
                led = any(at < 18 and w not in ("", said.speaker) for at, w in said.mentions)
                hit = 0.4 if led else 0.75
            elif person.names & said.beside:
                hit = 0.8 if said.leans else 0.6
            elif person.kin and (person.kin in said.words or person.owner in said.about):
                hit = 0.5 if all("'s " in name for name in person.names) else 0.2
            elif not said.about - set(self.story.speakers):
                hit = 0.1 if self.story.people.someone(person.names) else 0.35
            else:
                hit = 0.0
            parts.append((hit, person.weight))
        share = sum(h * w for h, w in parts) / sum(w for _, w in parts)
        # Of somebody who is not a speaker, what is said elsewhere says nothing.
        apart = asked.apart and not asked.main & set(self.story.speakers)
        return 1.7 * share - 0.7 if apart and self.story.people.someone(asked.main) else share

    def clause(self, text: str) -> float:
        """Return the share of the question's words that one clause says itself."""
        words = frozenset(keys(text))
        if not self.rare:
            return 0.0
        return sum(r * self._own(w, words) for w, r in self.rare.items()) / self.whole

    def subject(self, said: Said, start: int, end: int) -> float:
        """Return how surely a clause's subject is another than the one asked about, 0 to 1."""
        main = self.asked.main
        lead = next((w for at, w in said.mentions if start <= at < min(end, start + 18)), None)
        if lead is None or not main or lead in main or main & {lead.split()[0] if lead else ""}:
            return 0.0
        beside = {n for p in self.asked.people if p.weight > 0.5 for n in p.names}
        return 0.4 if lead in beside else 1.0 if lead else 0.6

    def unreal(self, clause: str) -> bool:
        """Whether a clause tells of what is not yet so, or never, and reality is asked for."""
        if self.asked.kind == "money" and self.asked.mode == "event":
            return not self.asked.words & _QUOTES and _QUOTED.search(clause) is not None
        if self.asked.mode == "event" and self.asked.kind in ("when", "where", "who"):
            return not self.asked.words & _WISHES and _WISHED.search(clause) is not None
        state = self.cue_of is not None and self.asked.mode == "past"
        if not (self.asked.mode == "now" or state) or self.asked.words & _WISHES:
            return False
        return _UNREAL.search(clause) is not None

    def cue(self, said: Said, clause: str, index: int) -> tuple[float, float]:
        """Return whether a clause, or what stands beside it, sounds like the slot asked for."""
        pattern = self.cue_of
        if pattern is None:
            return 0.0, 0.0
        if pattern.search(clause):
            return 1.0, 0.0
        beside = [
            self.story.said[i].text
            for i in (index - 1, index + 1)
            if 0 <= i < len(self.story.said) and self.story.said[i].source.id == said.source.id
        ]
        return 0.0, float(any(map(pattern.search, [said.text, *beside])))

    def later(self, said: Said) -> float:
        """Return 0 for what was said first to 1 for what was said last."""
        within = said.order / max(len(self.story.said), 1)
        return 0.9 * self._when[said.source.time] / self._last + 0.1 * within

    @staticmethod
    def changed(text: str) -> float:
        """Return how strongly a clause says that something is now otherwise, 0 to 1.4."""
        if _SETTLED.search(text):
            return 1.4
        return 1.0 if _CHANGED.search(text) else 0.0


def weighed(signs: Mapping[str, float]) -> float:
    """Return the weighted sum of signs."""
    return sum(WEIGHTS[name] * value for name, value in signs.items() if value)


def meanings_of(
    question: str, story: Story, embedder: Embedder | None, known: dict[str, list[float]]
) -> list[float] | None:
    """Return the cosine of the question with every sentence, alone or with what leads to it."""
    if embedder is None:
        return None
    texts = [question]
    for said in story.said:
        texts.append(said.plain)
        texts.append(f"{said.context} {said.plain}" if said.context else said.plain)
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    if missing:
        for text, vector in zip(missing, embedder.encode(missing), strict=True):
            known[text] = vector
    asked = known[question]
    alone = [float(asked @ known[text]) for text in texts[1:]]  # type: ignore[operator]
    return [max(alone[i], 0.92 * alone[i + 1]) for i in range(0, len(alone), 2)]
