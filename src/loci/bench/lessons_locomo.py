"""LoCoMo as lessons for experts of memory operations: facts of turns, and answers from facts.

A. Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", 2024,
arXiv:2402.17753. Its `observation` lists facts of each session with the turns they rest on: those
of a turn are what should be drawn from it; where none cites a turn there is nothing to draw.
Questions are asked with the facts of their conversation that BM25 ranks first, as a memory would
hand over; the gold answer is what should be said, "not mentioned" where the question is a trap.
Nothing says what should become of a fact that is known already, so updates have no lessons.

Whole conversations are apart, as in MemLoRA (arXiv:2512.04763): in the order of the file the first
is for choosing and is not used here, the second and third are asked, all others are learned from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # the file is JSON

from loci.bench.rivals import Bm25, order
from loci.bench.suites.locomo import CATEGORIES, Conversation, file_of, load, refs_of
from loci.core.item import Item
from loci.errors import FormatError, ParameterError
from loci.methods.recall.memlora import ANSWER, EXTRACT, MOST, questioned, told
from loci.run.expert_lessons import Lesson
from loci.text.stem import stems

CHOOSING, ASKED = 1, 2  # conversations for choosing, and those asked, at the head of the file
NOTES = 6  # facts that are shown with a question
ABSTAINED = "not mentioned"
LONGEST = 120  # letters of a fact or an answer: what the form of a reply allows
TRAP = "adversarial"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A lesson with what its reply is judged by: the gold text, and a question's category."""

    lesson: Lesson
    gold: str
    category: int = 0


def cases(data: Path) -> tuple[dict[str, list[Case]], dict[str, list[Case]]]:
    """Return what is learned and what is asked, each {expert: cases}.

    Raises:
        FormatError: if this is no LoCoMo, or has no observations.
        ParameterError: if there are too few conversations to keep some apart.
    """
    path = file_of(data)
    conversations = load(path)
    if len(conversations) <= CHOOSING + ASKED:
        raise ParameterError(
            "these are too few conversations to learn from some and ask of others",
            value=len(conversations),
            allowed=f"at least {CHOOSING + ASKED + 1}",
            way_out="give the whole of LoCoMo with --data",
        )
    facts = _observations(path)
    learn, ask = conversations[CHOOSING + ASKED :], conversations[CHOOSING : CHOOSING + ASKED]
    return _of(learn, facts), _of(ask, facts)


# -- private ----------------------------------------------------------------------------------


def _of(
    conversations: Sequence[Conversation], facts: dict[str, list[tuple[str, tuple[str, ...]]]]
) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {EXTRACT: [], ANSWER: []}
    for one in conversations:
        found[EXTRACT] += _drawing(one, facts[one.id])
        found[ANSWER] += _asking(one, [text for text, _ in facts[one.id]])
    return found


def _observations(path: Path) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Return {conversation: facts with the turns they cite}."""
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    try:
        for sample in json.loads(path.read_text(encoding="utf-8")):
            listed: list[Any] = [
                fact
                for session in sample["observation"].values()
                for each in session.values()
                for fact in each
            ]
            found[sample["sample_id"]] = [
                (str(text), refs_of(cited if isinstance(cited, list) else [cited]))
                for text, cited in listed
            ]
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise FormatError(
            f"{path.name} has no observations to learn from ({problem})",
            allowed='samples with "observation": {session: {speaker: [[fact, turn], ...]}}',
        ) from None
    return found


def _drawing(talk: Conversation, facts: Sequence[tuple[str, tuple[str, ...]]]) -> list[Case]:
    by_turn: dict[str, list[str]] = defaultdict(list)
    for text, cited in facts:
        for ref in cited:
            by_turn[ref].append(text)
    found = []
    for turn in (turn for session in talk.sessions for turn in session):
        right = [text[:LONGEST] for text in by_turn[str(turn.metadata["ref"])][:MOST]]
        lesson = Lesson(
            expert=EXTRACT,
            shown=told([turn]),
            reply=json.dumps({"facts": right}, ensure_ascii=False),
            kind="fact" if right else "none",
            turns=(turn,),
        )
        found.append(Case(lesson=lesson, gold=" ".join(right)))
    return found


def _asking(talk: Conversation, facts: Sequence[str]) -> list[Case]:
    ranks = Bm25([stems(text) for text in facts])
    found = []
    for asked in talk.questions:
        is_trap = asked.category not in CATEGORIES
        gold = ABSTAINED if is_trap else asked.answer
        notes = [facts[at] for at in order(ranks.scores(stems(asked.text)))[:NOTES]]
        lesson = Lesson(
            expert=ANSWER,
            shown=questioned(notes, asked.text),
            reply=json.dumps({"answer": gold[:LONGEST]}, ensure_ascii=False),
            kind=asked.kind,
            memories=tuple(Item(id=f"i{at}", text=text) for at, text in enumerate(notes)),
            question=asked.text,
            values=(gold,),
        )
        found.append(Case(lesson=lesson, gold=gold, category=asked.category))
    return found
