"""Conversations of weeks, from a seed: sessions on changing topics, and facts that are asked later.

A session is about one topic: small talk with its words, and what somebody's favourite thing is.
A question is the start of the sentence that said so, which a small model can complete; wrong
answers are what was said of other things. Lines are tokenised apart, so where a fact stands is
known to the token.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any  # a table of settings

from loci.bench.contexts import CANDIDATES, Encodes, SharedContext, Turn, settings
from loci.errors import ParameterError

TEST_SEED = 1000  # development conversations have seeds below it
FACTS = 1  # of a session
LINES = 8  # utterances of a session, facts included


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about one utterance.

    Attributes:
        text: the start of a sentence that the answer follows.
        candidates: texts; the first is right.
        topic: that the fact belongs to.
        at: number of the utterance that says it.
    """

    text: str
    candidates: tuple[str, ...]
    topic: str
    at: int


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Utterances in order, the topic of each, and questions."""

    history: tuple[str, ...]
    topics: tuple[str, ...]
    questions: tuple[Question, ...]

    def ids(self, tokenizer: Encodes) -> list[int]:
        """Return the tokens of the history, every utterance by itself."""
        return [token for said in self.history for token in tokenizer.encode(f"{said}\n")]

    def context(self, tokenizer: Encodes, questions: Sequence[Question]) -> SharedContext:
        """Return the history with some of its questions as turns."""
        starts, at = [], 0
        for said in self.history:
            starts.append(at)
            at += len(tokenizer.encode(f"{said}\n"))
        starts.append(at)
        return SharedContext(
            task="dialogue",
            ids=tuple(self.ids(tokenizer)),
            turns=tuple(
                Turn(
                    question=tuple(tokenizer.encode(asked.text)),
                    candidates=tuple(tuple(tokenizer.encode(c)) for c in asked.candidates),
                    evidence=(starts[asked.at], starts[asked.at + 1]),
                )
                for asked in questions
            ),
        )


@cache
def topics() -> Mapping[str, Any]:
    """Return things and lines by topic, and the speakers."""
    text = (resources.files("loci.bench") / "conversations.toml").read_text("utf-8")
    return tomllib.loads(text)


def make(seed: int, *, part: str, count: int, sessions: int) -> Conversation:
    """Return a conversation of two people.

    Args:
        part: "dev" or "test"; they share no seeds.
        count: topics.
        sessions: of each topic, in turn.

    Raises:
        ParameterError: if there are not so many topics, or things to have favourites of.
    """
    known = topics()["topic"]
    most = min(len(about["things"]) for about in known.values())
    if not 1 <= count <= len(known) or not 1 <= sessions * FACTS <= 2 * most:
        raise ParameterError(
            "a conversation cannot have so many topics or sessions",
            value=(count, sessions),
            allowed=f"1 to {len(known)} topics, 1 to {2 * most // FACTS} sessions of each",
        )
    draw = random.Random(f"conversation {seed + (TEST_SEED if part == 'test' else 0)}")
    people = draw.sample(topics()["speakers"], 2)
    chosen = draw.sample(sorted(known), count)
    taken = {thing for about in known.values() for thing in about["things"]}
    pool = [word for word in settings()["words"].split() if word not in taken]
    values = draw.sample(pool, count * sessions * FACTS)
    facts = {
        topic: draw.sample(
            [(p, t) for p in people for t in known[topic]["things"]], sessions * FACTS
        )
        for topic in chosen
    }
    history: list[str] = []
    of: list[str] = []
    said: list[tuple[str, str, str, int]] = []  # topic, start, value, utterance
    for session in range(sessions):
        for topic in draw.sample(chosen, count):
            lines = draw.sample(known[topic]["lines"], LINES - FACTS)
            told = facts[topic][session * FACTS : (session + 1) * FACTS]
            places = sorted(draw.sample(range(LINES), FACTS))
            for place in range(LINES):
                if place in places:
                    who, thing = told[places.index(place)]
                    start, value = f"{who}: My favourite {thing} is the", values.pop()
                    said.append((topic, start, value, len(history)))
                    history.append(f"{start} {value}.")
                else:
                    history.append(f"{draw.choice(people)}: {lines.pop()}")
                of.append(topic)
    answers = [value for _, _, value, _ in said]
    questions = []
    for topic, start, value, at in said:
        others = draw.sample([other for other in answers if other != value],
                             min(CANDIDATES - 1, len(answers) - 1))  # fmt: skip
        candidates = tuple(f" {word}" for word in (value, *others))
        questions.append(Question(text=start, candidates=candidates, topic=topic, at=at))
    return Conversation(history=tuple(history), topics=tuple(of), questions=tuple(questions))
