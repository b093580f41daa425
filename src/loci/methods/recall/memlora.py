"""MemLoRA: a memory kept by a small model with one adapter for each operation.

"MemLoRA: Distilling Expert Adapters for On-Device Memory Systems", 2025, arXiv:2512.04763.

Mem0's operations, each with an expert adapter on one frozen small model: extract facts from the
last message, update what is known by each, answer from what is remembered. What a long prompt
explains stands in the adapter, so prompts shrink to almost nothing. An expert is trained on the
cleaned texts of a teacher, next-token loss on them alone; the adapter is switched with the stage.

Differs from the paper: the teacher is the gold of conversations that are drawn by rule, where the
paper has a model of 27B or more; facts and ids are shown one fact at a time; replies are held to
JSON, and what they say is checked as every model's is (`text.tasks`): ids that were not shown
cannot be said, nor facts that nobody told. Ranks, targets and rates are our reconstruction.
With the back end "rules" it does what Mem0 does.
Not for: a model without these adapters; `loci bench run memlora` makes and measures them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any  # a reply is JSON

from loci.core.item import Candidate, Edit, Hit, Item, Turn
from loci.core.method import About, Frees, Kind, Need
from loci.methods.recall._near import nearest_in, neighbours_in
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.methods.recall.mem0 import Mem0
from loci.text.ladder import Refused, Task
from loci.text.tasks import BEFORE, Neighbours, deciding, draw, drawing, fact_of, made_by, settle

EXTRACT, UPDATE, ANSWER = "extract", "update", "answer"
EXPERTS = (EXTRACT, UPDATE, ANSWER)
EVENTS = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE", "NONE": "NOOP"}
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
        needs=(Need.EMBEDDER,),
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
        edits = settle(ports.ladder, facts, neighbours_in(view), nearest_in(view), asking=updating)
        return made_by(edits, rung)

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return what Mem0 finds."""
        return self.inner.find(query, view)


def extracting(turns: Sequence[Turn], before: Sequence[Turn] = ()) -> Task[list[Candidate]]:
    """Return the task of drawing facts of one message, asked of its expert."""

    def read(data: Any) -> tuple[list[Candidate], list[Refused]]:
        made = [fact_of({"text": text, "sources": [1]}, turns) for text in data["facts"]]
        good = {one.text: one for one in made if isinstance(one, Candidate)}
        return list(good.values()), [one for one in made if isinstance(one, Refused)]

    whole = drawing(turns, before, small=True)
    return replace(whole, messages=_to(EXTRACT, told(turns)), schema=FACTS, read=read)


def updating(
    facts: Sequence[Candidate], memories: Sequence[Item], neighbours: Neighbours
) -> Task[list[Edit]]:
    """Return the task of one fact's event, asked of its expert."""
    (fact,) = facts
    whole = deciding(facts, memories, neighbours)

    def read(data: Any) -> tuple[list[Edit], Sequence[Refused]]:
        chosen = {"operation": EVENTS[data["event"]], "memory": data["id"]}
        return whole.read({"1": chosen})

    return replace(
        whole,
        messages=_to(UPDATE, compared([item.text for item in memories], fact.text)),
        schema=event_of(len(memories)),
        read=read,
    )


def told(turns: Sequence[Turn]) -> str:
    """Return what the expert of extraction is shown."""
    return "Facts of:\n" + "\n".join(f"{turn.name or turn.role}: {turn.content}" for turn in turns)


def compared(memories: Sequence[str], fact: str) -> str:
    """Return what the expert of updates is shown; only these numbers can be named."""
    shown = [f"{number}. {text}" for number, text in enumerate(memories, 1)]
    return "\n".join(["Known:", *(shown or ["nothing"]), f"New: {fact}"])


def questioned(memories: Sequence[str], question: str) -> str:
    """Return what the expert of answers is shown."""
    return "\n".join(["Known:", *(f"- {text}" for text in memories), f"Question: {question}"])


def event_of(memories: int) -> dict[str, Any]:
    """Return the form of an event, with the numbers of memories that there are."""
    number: dict[str, Any] = {"type": "null"}
    if memories:
        among = {"type": "integer", "minimum": 1, "maximum": memories}
        number = {"anyOf": [{"type": "null"}, among]}
    return {
        "type": "object",
        "properties": {"event": {"enum": list(EVENTS)}, "id": number},
        "required": ["event", "id"],
        "additionalProperties": False,
    }


def _to(expert: str, text: str) -> tuple[dict[str, str], ...]:
    """Return a message that names the expert it is for; other models pass over the name."""
    return ({"role": "user", "content": text, "expert": expert},)
