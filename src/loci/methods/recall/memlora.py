"""MemLoRA: a memory kept by a small model with one adapter for each operation.

"MemLoRA: Distilling Expert Adapters for On-Device Memory Systems", 2025, arXiv:2512.04763.

Mem0's operations, each with an expert adapter on one frozen small model: extract facts from the
last message, update what is known by each, answer from what is remembered. What a long prompt
explains stands in the adapter, so prompts shrink to almost nothing. An expert is trained on the
cleaned texts of a teacher, next-token loss on them alone; the adapter is switched with the stage.

Differs from the paper: the teacher is the gold of conversations that are drawn by rule, where the
paper has a model of 27B or more; a new fact is compared with one memory at a time, best first,
until one is no other matter, since of several a small model did not learn to tell which. Replies
are held to JSON, and what they say is checked as every model's is (`text.tasks`): facts that nobody
told cannot be said. Ranks, targets and rates are our reconstruction.
With the back end "rules" it does what Mem0 does.
Not for: a model without these adapters; `loci methods prepare memlora` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any  # a reply is JSON

from loci.core.item import Candidate, Edit, Hit, Item, Turn
from loci.core.method import About, Frees, Kind, Need
from loci.methods.recall._near import alike_in, neighbours_in
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.methods.recall.mem0 import Mem0
from loci.text.consolidate import reconcile
from loci.text.ladder import Ladder, Refused, Task
from loci.text.stem import stems
from loci.text.tasks import (
    BEFORE,
    OVER,
    Neighbours,
    deciding,
    draw,
    drawing,
    fact_of,
    made_by,
    settle,
)

MEMLORA = "memlora"
EXTRACT, UPDATE, ANSWER = "extract", "update", "answer"
EXPERTS = (EXTRACT, UPDATE, ANSWER)
EVENTS = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE", "NONE": "NOOP"}
CHANGED, ENDED, OTHER = "changed", "ended", "other"  # what a fact says of a memory
EVENT_OF = {CHANGED: "UPDATE", ENDED: "DELETE"}
MOST = 3  # facts of one message
FACTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "facts": {"type": "array", "items": {"type": "string", "maxLength": 120}, "maxItems": MOST}
    },
    "required": ["facts"],
    "additionalProperties": False,
}
ANSWERED: Mapping[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 120}},
    "required": ["answer"],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class MemLora(Recall):
    """Mem0 with the short prompts of experts, where a local model keeps the memory."""

    about = About(
        name="memlora",
        kind=Kind.RECALL,
        paper="arXiv:2512.04763",
        idea="one adapter for each operation of a memory, so a small model needs no long prompt",
        needs=(Need.EMBEDDER, Need.ARTEFACT),
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="training data, ranks, targets and rates",
    )

    @property
    def inner(self) -> Mem0:
        """What does the rest."""
        return Mem0()

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        """Return the edits that the facts of these turns ask for."""
        if ports.ladder.rung != "slm" or not turns:
            return self.inner.revise(turns, view, ports)
        before = view.neighbours_of_turn(turns[0].id, BEFORE, 0)
        facts, rung = draw(ports.ladder, turns, before, asking=extracting)
        edits = settle(ports.ladder, facts, neighbours_in(view), alike_in(view), choosing=choosing)
        return made_by(edits, rung)

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return what Mem0 finds."""
        return self.inner.find(query, view)


def extracting(turns: Sequence[Turn], before: Sequence[Turn] = ()) -> Task[list[Candidate]]:
    """Return the task of drawing facts of one message, asked of its expert."""

    def read(data: Any) -> tuple[list[Candidate], list[Refused]]:
        made = [
            fact_of({"text": text, "sources": [1], "ends": OVER in f" {text} "}, turns)
            for text in data["facts"]
        ]
        good = {one.text: one for one in made if isinstance(one, Candidate)}
        return list(good.values()), [one for one in made if isinstance(one, Refused)]

    whole = drawing(turns, before, small=True)
    return replace(whole, messages=_to(EXTRACT, told(turns)), schema=FACTS, read=read)


def choosing(
    ladder: Ladder, facts: Sequence[Candidate], memories: Sequence[Item], neighbours: Neighbours
) -> list[Edit]:
    """Return the edits of a fact, which the expert compares with one memory after the other."""
    (fact,) = facts
    theirs = [item for item in memories if not item.subject or item.subject == fact.subject]
    number = known(fact.text, [item.text for item in theirs])
    event = "NONE"
    if number is None:
        relations: list[str] = []
        for memory in theirs:
            relation, rung = ladder.run(comparing(fact, memory))
            if rung == "rules":
                return reconcile(facts, neighbours)
            relations.append(relation)
            if relation != OTHER:
                break
        event, number = event_of(relations)
    chosen = {"operation": EVENTS[event], "memory": number}
    edits, refused = deciding(facts, theirs, neighbours).read({"1": chosen})
    if refused:
        ladder.refuse(refused)
    return edits


def comparing(fact: Candidate, memory: Item) -> Task[str]:
    """Return the task of saying what a fact is to a memory, asked of the expert of updates."""
    return Task(
        name="compare",
        messages=_to(UPDATE, compared(memory.text, fact.text)),
        schema=related(ends=fact.ends),
        read=lambda data: (data["is"], ()),
        rules=lambda: "",  # rules look at all memories at once
        max_tokens=16,
    )


def event_of(relations: Sequence[str]) -> tuple[str, int | None]:
    """Return the event that relations to memories ask for, and the number of the memory, from 1.

    >>> event_of(["other", "changed"]), event_of(["other"])
    (('UPDATE', 2), ('ADD', None))
    """
    for number, relation in enumerate(relations, 1):
        if relation != OTHER:
            return EVENT_OF[relation], number
    return "ADD", None


def known(fact: str, memories: Sequence[str]) -> int | None:
    """Return the number of the memory that says the same in the same words; no model is asked.

    >>> known("Ada plays chess", ["Ada lives in Graz", "Ada plays chess."])
    2
    """
    words = stems(fact)
    return next((n for n, text in enumerate(memories, 1) if stems(text) == words), None)


def related(*, ends: bool) -> dict[str, Any]:
    """Return the form of what a fact says of a memory: only what has ended can end one."""
    return {
        "type": "object",
        "properties": {"is": {"enum": [ENDED if ends else CHANGED, OTHER]}},
        "required": ["is"],
        "additionalProperties": False,
    }


def told(turns: Sequence[Turn]) -> str:
    """Return what the expert of extraction is shown."""
    return "Facts of:\n" + "\n".join(f"{turn.name or turn.role}: {turn.content}" for turn in turns)


def compared(memory: str, fact: str) -> str:
    """Return what the expert of updates is shown."""
    return f"Known: {memory}\nNew: {fact}"


def questioned(memories: Sequence[str], question: str) -> str:
    """Return what the expert of answers is shown."""
    return "\n".join(["Known:", *(f"- {text}" for text in memories), f"Question: {question}"])


def _to(expert: str, text: str) -> tuple[dict[str, str], ...]:
    """Return a message that names the expert it is for; other models pass over the name."""
    return ({"role": "user", "content": text, "expert": expert},)
