"""Signals of a turn that need no index: who says it, how much it tells, what stands around it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from loci.core.item import Item, Turn
from loci.methods.recall.base import StoreView
from loci.text.question import Question
from loci.text.slots import asked_for
from loci.text.stem import fold

_FAVOURITE = re.compile(r"favou?rite (\w+)", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_SHARE = 0.2  # of the cosines of both neighbours
_AROUND = 4  # turns before and after that lie around one
_ENOUGH = 6  # words that tell as much as any number
_LOOK = 400  # characters read to count them
_WHO = 8  # speakers whose slots are looked up where a question names nobody


def of_slot(asked: Question, view: StoreView) -> list[Item]:
    """Return facts of the slots whose cue words the question has."""
    names = [name for name, _ in asked_for(asked.stems)]
    names += [f"favourite:{m[1].lower()}" for m in _FAVOURITE.finditer(asked.text)]
    if not names:
        return []
    who = asked.about or [*(fold(name) for name in view.speakers()[:_WHO]), "the user"]
    return [item for name in who for slot in names for item in view.by_slot(name, slot)]


def is_by(turn: Turn, asked: Question) -> bool:
    """Return whether those asked about said this; "I" is whoever speaks to the memory."""
    return turn.name in asked.speakers if asked.speakers else asked.me and turn.role == "user"


def is_about(item: Item, asked: Question) -> bool:
    """Return whether a fact is about those asked about, or about what is theirs."""
    return item.subject is not None and item.subject.partition("'s ")[0] in asked.about


def with_neighbours(cosines: Mapping[str, float], turns: Mapping[str, Turn]) -> dict[str, float]:
    """Return cosines with a part of those of the turns before and after."""
    at = {(t.session, t.position): cosines[i] for i, t in turns.items() if i in cosines}
    floor = min(cosines.values(), default=0.0)
    whole = {}
    for id, cosine in cosines.items():
        session, place = turns[id].session, turns[id].position
        both = at.get((session, place - 1), floor) + at.get((session, place + 1), floor)
        whole[id] = cosine + _SHARE * both
    return whole


def around(scores: Mapping[str, float], turns: Mapping[str, Turn]) -> dict[str, float]:
    """Return for each turn what its neighbours score, up to four before and four after it."""
    at = {(t.session, t.position): scores[i] for i, t in turns.items() if i in scores}
    steps = [step for step in range(-_AROUND, _AROUND + 1) if step]
    return {
        i: sum(at.get((t.session, t.position + step), 0.0) for step in steps)
        for i, t in turns.items()
    }


def tells(text: str) -> float:
    """Return how much a turn tells: its words outside questions, from 0 to 1 for six or more.

    Of a sentence that ends in a question mark only the last clause asks.

    >>> tells("Really? What did you do?"), tells("I'm allergic to nuts, what can I eat?")
    (0.0, 0.6666666666666666)
    >>> tells("I moved to Leeds."), tells("Ok!")
    (0.6666666666666666, 0.16666666666666666)
    """
    words = 0
    for match in _SENTENCE.finditer(text[:_LOOK]):
        told = match[0]
        if told.endswith("?"):
            told = told.rpartition(",")[0]
        words += len(told.split())
        if words >= _ENOUGH:
            return 1.0
    return words / _ENOUGH
