"""What experts of memory operations learn from: drawn conversations with the right replies.

Each conversation (`testing.dialogue`) is of one person; a statement asks for a fact, the fact for
an event on what is known by then, and questions at the end for answers. What is known is shuffled,
so that no place teaches anything, and events name only what is shown.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loci.core.item import Item, Turn
from loci.methods.recall.memlora import ANSWER, EXTRACT, UPDATE, compared, questioned, told
from loci.testing.dialogue import Half, make_dialogue, sentence_of

PEOPLE = {
    "written": ("Nora", "Tobias", "Mirela", "Anders", "Yusuf", "Clara", "Ewan", "Paula"),
    "held_out": ("Ingrid", "Marek", "Salome", "Bastian"),
}
SHOWN = 4  # memories that are shown for one fact
EVENT_OF = {"add": "ADD", "supersede": "UPDATE", "retire": "DELETE", "noop": "NONE"}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One operation with its right reply.

    Attributes:
        shown: what the expert reads, and `reply` what it should write.
        turns, memories, fact: the same for those who are asked in other words.
        values: what a right reply names; `wrong` what it must not.
    """

    expert: str
    shown: str
    reply: str
    turns: tuple[Turn, ...] = ()
    memories: tuple[Item, ...] = ()
    fact: str = ""
    question: str = ""
    values: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    event: str = ""
    number: int | None = field(default=None)


def lessons(half: Half, people: int, seed: int = 0) -> dict[str, list[Lesson]]:
    """Return {expert: lessons} of some people's conversations, in the wordings of one half."""
    found: dict[str, list[Lesson]] = {EXTRACT: [], UPDATE: [], ANSWER: []}
    names = PEOPLE["held_out" if half == "held_out" else "written"]
    for number in range(people):
        _add(found, names[number % len(names)], half, 1000 * (seed + 1) + number)
    return found


def _add(found: dict[str, list[Lesson]], speaker: str, half: Half, seed: int) -> None:
    dice = random.Random(seed)
    dialogue = make_dialogue(seed, half=half, speaker=speaker)
    expected = {one.turn: one for one in dialogue.expected}
    known: dict[str, str] = {}  # value -> sentence
    for session in dialogue.sessions:
        for turn in session:
            wanted = expected.get(turn.id)
            if wanted is None:
                continue
            is_end = wanted.operation == "retire"
            facts = [] if not wanted.value else [sentence_of(wanted.value, speaker, ended=is_end)]
            found[EXTRACT].append(
                Lesson(
                    expert=EXTRACT,
                    shown=told([turn]),
                    reply=json.dumps({"facts": facts}),
                    turns=(turn,),
                    values=(wanted.value,) if facts else (),
                )
            )
            if facts:
                found[UPDATE].append(
                    _event(dice, known, wanted.operation, wanted.old or wanted.value, facts[0])
                )
                if wanted.old:
                    known.pop(wanted.old, None)
                if is_end:
                    known.pop(wanted.value, None)
                else:
                    known[wanted.value] = facts[0]
    for asked in dialogue.questions:
        shown = list(known.values())
        if not all(any(value in text for text in shown) for value in asked.answers):
            continue  # of what was before, the live facts do not tell
        about = [text for text in shown if any(value in text for value in asked.answers)]
        others = [text for text in shown if text not in about]
        notes = [*about, *dice.sample(others, min(SHOWN, len(others)))]
        dice.shuffle(notes)
        found[ANSWER].append(
            Lesson(
                expert=ANSWER,
                shown=questioned(notes, asked.text),
                reply=json.dumps({"answer": ", ".join(asked.answers)}),
                memories=tuple(Item(id=f"i{n}", text=text) for n, text in enumerate(notes)),
                question=asked.text,
                values=asked.answers,
                wrong=asked.wrong,
            )
        )


def _event(
    dice: random.Random, known: dict[str, str], operation: str, about: str, fact: str
) -> Lesson:
    """Return a fact, what is known beside it in any order, and what should become of it."""
    meant = known.get(about) if operation != "add" else None
    others = [text for text in known.values() if text != meant]
    shown = dice.sample(others, min(SHOWN - 1, len(others)))
    if meant is not None:
        shown.append(meant)
    dice.shuffle(shown)
    event = EVENT_OF[operation]
    if operation != "add" and meant is None:
        event = "ADD"
    number = shown.index(meant) + 1 if meant is not None else None
    return Lesson(
        expert=UPDATE,
        shown=compared(shown, fact),
        reply=json.dumps({"event": event, "id": number}),
        memories=tuple(Item(id=f"i{n}", text=text) for n, text in enumerate(shown)),
        fact=fact,
        event=event,
        number=number,
    )


def drawn(
    lessons_of: Sequence[Lesson], count: int, seed: int, kind: Callable[[Lesson], str]
) -> list[Lesson]:
    """Return some lessons, of every kind as many as there are, until there are enough."""
    dice = random.Random(seed)
    kinds: dict[str, list[Lesson]] = {}
    for one in lessons_of:
        kinds.setdefault(kind(one), []).append(one)
    for each in kinds.values():
        dice.shuffle(each)
    found: list[Lesson] = []
    while len(found) < count and any(kinds.values()):
        for each in kinds.values():
            if each and len(found) < count:
                found.append(each.pop())
    return found


def kind_of(lesson: Lesson) -> str:
    """Return what lessons are balanced by: whether there is a fact, and which event."""
    return lesson.event or ("fact" if lesson.values else "nothing")
