"""What experts of memory operations learn from: drawn conversations with the right replies.

Each conversation (`text.dialogue`) is of one person; a statement asks for a fact, the fact for an
event on what is known by then, and questions at the end for answers. Of what is known, as many are
shown as a small model is shown in use, those of the same kind first, as a search would bring them;
their order is drawn, so that no place teaches anything.

Who is taught, who is tried while choosing how to teach, and who is asked at the end are different
people. The first two speak in the wordings that may be looked at, the last in those held out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal  # a reply is JSON

from loci.core.item import Candidate, Item, Turn
from loci.methods.recall import memlora
from loci.methods.recall.memlora import (
    ANSWER,
    EXTRACT,
    OTHER,
    UPDATE,
    compared,
    extracting,
    questioned,
    told,
)
from loci.text.dialogue import Half, kind_of_value, make_dialogue, sentence_of
from loci.text.stem import fold
from loci.text.tasks import FEW

Part = Literal["taught", "development", "asked"]
PEOPLE: dict[Part, tuple[str, ...]] = {
    "taught": ("Nora", "Tobias", "Mirela", "Anders", "Yusuf", "Clara"),
    "development": ("Ewan", "Paula"),
    "asked": ("Ingrid", "Marek", "Salome", "Bastian"),
}
HALVES: dict[Part, Half] = {"taught": "written", "development": "written", "asked": "held_out"}
SEEDS: dict[Part, int] = {"taught": 0, "development": 200_000, "asked": 400_000}
EVENT_OF = {"add": "ADD", "supersede": "UPDATE", "retire": "DELETE", "noop": "NONE"}
RELATION_OF = {event: relation for relation, event in memlora.EVENT_OF.items()}
REPLIES = 0.1  # share of an assistant's replies, which tell nothing, that are lessons too
FEWER = 0.2  # share of events that are shown fewer memories, or none


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One operation with its right reply.

    Attributes:
        expert: which one it is for.
        shown: what the expert reads, and `reply` what it should write.
        kind: what lessons are balanced by: the operation, or what is asked for.
        turns, memories, fact, question: the same for those who are asked in other words.
        values: what a right reply names; `wrong` what it must not.
        ends: whether the fact says that something is over.
        event, number: of an update: what becomes of which memory, from 1.
        parts: the lessons an update is made of, one for each memory.
    """

    expert: str
    shown: str
    reply: str
    kind: str
    turns: tuple[Turn, ...] = ()
    memories: tuple[Item, ...] = ()
    fact: str = ""
    question: str = ""
    values: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    ends: bool = False
    event: str = ""
    number: int | None = None
    parts: tuple[Lesson, ...] = ()


def lessons(part: Part, people: int, seed: int = 0) -> dict[str, list[Lesson]]:
    """Return {expert: lessons} of so many conversations with the people of one part."""
    found: dict[str, list[Lesson]] = {EXTRACT: [], UPDATE: [], ANSWER: []}
    names = PEOPLE[part]
    for number in range(people):
        drawn_by = SEEDS[part] + 1000 * (seed + 1) + number
        replies = 0.0 if part == "asked" else REPLIES  # of which there are no others to ask about
        _add(found, names[number % len(names)], HALVES[part], drawn_by, replies)
    return found


def drawn(lessons_of: Sequence[Lesson], count: int, seed: int) -> list[Lesson]:
    """Return some lessons in any order, of every kind as many as there are, up to `count`."""
    dice = random.Random(seed)
    kinds: dict[str, list[Lesson]] = {}
    for one in lessons_of:
        kinds.setdefault(one.kind, []).append(one)
    for each in kinds.values():
        dice.shuffle(each)
    found: list[Lesson] = []
    while len(found) < count and any(kinds.values()):
        for each in kinds.values():
            if each and len(found) < count:
                found.append(each.pop())
    dice.shuffle(found)
    return found


def parts(found: Sequence[Lesson]) -> list[Lesson]:
    """Return what an expert is taught: the parts of updates, each once, and all other lessons."""
    flat = {one.shown: one for lesson in found for one in lesson.parts}
    return [*flat.values(), *(lesson for lesson in found if lesson.expert != UPDATE)]


def reply_of(event: str, number: int | None) -> str:
    """Return what is said of an update as a whole."""
    return json.dumps({"event": event, "id": number})


def is_right(lesson: Lesson, reply: str) -> bool:
    """Return whether a reply says what it should: the one fact, the event, or the values."""
    try:
        data = json.loads(reply)
    except ValueError:
        return False
    if not isinstance(data, dict):
        return False
    if lesson.expert == EXTRACT:
        facts = taken(lesson, data)
        right = [one for one in facts if tells(lesson, one)]
        return len(facts) == len(right) == bool(lesson.values)
    if lesson.expert == UPDATE:
        return (data.get("event"), data.get("id")) == (lesson.event, lesson.number)
    return answers(lesson, str(data.get("answer", "")))


def taken(lesson: Lesson, data: Any) -> list[Candidate]:
    """Return the facts of a reply that a memory would take."""
    facts = data.get("facts") if isinstance(data, dict) else None
    if not isinstance(facts, list) or not all(isinstance(text, str) for text in facts):
        return []
    return extracting(lesson.turns).read({"facts": facts})[0]


def tells(lesson: Lesson, fact: Candidate) -> bool:
    """Return whether a fact names the value, and says whether it has ended."""
    is_named = bool(lesson.values) and fold(lesson.values[0]) in fold(fact.text)
    return is_named and fact.ends == lesson.ends


def answers(lesson: Lesson, text: str) -> bool:
    """Return whether an answer names all values and none that no longer holds."""
    text = fold(text)
    named = all(fold(value) in text for value in lesson.values)
    return named and not any(fold(value) in text for value in lesson.wrong)


# -- private ----------------------------------------------------------------------------------


def _add(
    found: dict[str, list[Lesson]], speaker: str, half: Half, seed: int, replies: float
) -> None:
    dice = random.Random(seed)
    dialogue = make_dialogue(seed, half=half, speaker=speaker)
    expected = {one.turn: one for one in dialogue.expected}
    known: dict[str, str] = {}  # value -> sentence
    for session in dialogue.sessions:
        for turn in session:
            wanted = expected.get(turn.id)
            if wanted is None:
                if dice.random() < replies:
                    found[EXTRACT].append(_nothing(turn))
                continue
            ends = wanted.operation == "retire"
            fact = sentence_of(wanted.value, speaker, ended=ends) if wanted.value else ""
            found[EXTRACT].append(
                Lesson(
                    expert=EXTRACT,
                    shown=told([turn]),
                    reply=json.dumps({"facts": [fact] if fact else []}),
                    kind=wanted.operation if fact else _small_talk(turn),
                    turns=(turn,),
                    values=(wanted.value,) if fact else (),
                    ends=ends,
                )
            )
            if not fact:
                continue
            found[UPDATE].append(
                _event(
                    dice, known, wanted.operation, wanted.value, wanted.old or wanted.value, fact
                )
            )
            known.pop(wanted.old, None)
            if ends:
                known.pop(wanted.value, None)
            else:
                known[wanted.value] = fact
    for asked in dialogue.questions:
        shown = list(known.values())
        if not all(any(value in text for text in shown) for value in asked.answers):
            continue  # of what was before, the live facts do not tell
        about = [text for text in shown if any(value in text for value in asked.answers)]
        others = [text for text in shown if text not in about]
        notes = [*about, *dice.sample(others, min(FEW + 1, len(others)))]
        dice.shuffle(notes)
        found[ANSWER].append(
            Lesson(
                expert=ANSWER,
                shown=questioned(notes, asked.text),
                reply=json.dumps({"answer": ", ".join(asked.answers)}),
                kind="one" if len(asked.answers) == 1 else "several",
                memories=_items(notes),
                question=asked.text,
                values=asked.answers,
                wrong=asked.wrong,
            )
        )


def _nothing(turn: Turn) -> Lesson:
    """Return a turn that tells no fact."""
    return Lesson(
        expert=EXTRACT,
        shown=told([turn]),
        reply=json.dumps({"facts": []}),
        kind="a reply",
        turns=(turn,),
    )


def _small_talk(turn: Turn) -> str:
    return "a question" if turn.content.endswith("?") else "a remark"


def _event(
    dice: random.Random,
    known: dict[str, str],
    operation: str,
    value: str,
    about: str,
    fact: str,
) -> Lesson:
    """Return a fact, what is known beside it in any order, and what should become of it."""
    meant = known.get(about) if operation != "add" else None
    rest = {v: text for v, text in known.items() if text != meant}
    near = [text for v, text in rest.items() if kind_of_value(v) == kind_of_value(value)]
    far = [text for text in rest.values() if text not in near]
    for each in (near, far):
        dice.shuffle(each)
    shown = [*near, *far][: FEW - (meant is not None)]
    if dice.random() < FEWER:
        shown = shown[: dice.randint(0, len(shown))]
    if meant is not None:
        shown.append(meant)
    dice.shuffle(shown)
    event = EVENT_OF[operation] if meant is not None else "ADD"
    ends = operation == "retire"

    def part(memory: str) -> Lesson:
        """Return one comparison; how near the memory is counts where it is another matter."""
        relation = RELATION_OF[event] if memory == meant else OTHER
        return Lesson(
            expert=UPDATE,
            shown=compared(memory, fact),
            reply=json.dumps({"is": relation}),
            kind=", ".join(
                [
                    "over" if ends else "so",
                    relation,
                    *(["near" if memory in near else "far"] if relation == OTHER else []),
                ]
            ),
            memories=_items([memory]),
            fact=fact,
            ends=ends,
        )

    return Lesson(
        expert=UPDATE,
        shown="\n".join([*shown, fact]),
        reply=reply_of(event, None if meant is None else shown.index(meant) + 1),
        kind=event,
        memories=_items(shown),
        fact=fact,
        event=event,
        number=None if meant is None else shown.index(meant) + 1,
        ends=ends,
        parts=() if event == "NONE" else tuple(map(part, shown)),  # said again: nothing is asked
    )


def _items(texts: Sequence[str]) -> tuple[Item, ...]:
    return tuple(Item(id=f"i{number}", text=text) for number, text in enumerate(texts))
