"""What a model is asked in place of the rules: to draw facts, and to decide what becomes of them.

Turns, facts and memories are numbered in the prompts: models invent ids. What comes back is checked
against what was shown; what nobody said is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any  # a reply is JSON

from loci.core.item import Add, Candidate, Edit, Item, Retire, Revise, Turn
from loci.text.consolidate import confirm, reconcile
from loci.text.entities import entities
from loci.text.extract import extract
from loci.text.ladder import Ladder, Refused, Rung, Task
from loci.text.quote import AS_DATA, block
from loci.text.slots import SLOTS, slot_of
from loci.text.stem import fold, stems

BEFORE = 10
"""How many turns before the new ones a model is shown."""

SHOWN = 10
"""How many memories a model is shown for one fact."""

AT_ONCE = 8
"""How many turns, or facts, a model is asked about in one call."""

COUNTED = 64
"""Up to how many facts of one reply are counted out to a model; the schema grows with it."""

LONGEST = 4096
"""Most tokens of one reply."""

GROUNDED = 0.6
"""Share of a fact's content words that its turns must contain."""

_FACTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "maxLength": 400},
                    "sources": {"type": "array", "items": {"type": "integer"}},
                    "subject": {"type": "string", "maxLength": 80},
                    "predicate": {"type": "string", "maxLength": 80},
                    "object": {"type": "string", "maxLength": 200},
                    "ends": {"type": "boolean"},
                },
                "required": ["text", "sources"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["facts"],
    "additionalProperties": False,
}
_DRAW = (
    "You keep the memory of an assistant. Draw lasting facts about the people who speak from the "
    "numbered messages. Write each as a short sentence in the third person that stands alone, "
    "name the messages it comes from by their numbers, and use only words the messages support. "
    "Resolve words such as yesterday with the date of the message. Set ends to true when "
    'something is said to be over. Answer with JSON: {"facts": [{"text": "...", "sources": '
    '[1]}]}. When there is nothing to remember, answer {"facts": []}. ' + AS_DATA
)
_DECIDE = (
    "You keep the memory of an assistant. For every numbered fact choose one operation. ADD: "
    "nothing in the memories says it. UPDATE: it tells more than a memory about the same thing, or "
    "a newer state of it. DELETE: it contradicts a memory, or says that it is over. NOOP: a memory "
    "says it already. For UPDATE, DELETE and NOOP give the number of that memory, else null. "
    'Answer with JSON: {"1": {"operation": "ADD", "memory": null}}. ' + AS_DATA
)
OPERATIONS = ("ADD", "UPDATE", "DELETE", "NOOP")


def drawing(turns: Sequence[Turn], before: Sequence[Turn] = ()) -> Task[list[Candidate]]:
    """Return the task of drawing facts of `turns`; `before` came first and yields none itself."""
    messages: list[dict[str, Any]] = [
        {"number": number, **_turn(turn)} for number, turn in enumerate(turns, 1)
    ]
    parts = [block("messages", messages)]
    if before:
        parts.insert(0, block("before", map(_turn, before[-BEFORE:])))
    most = sum(4 + len(turn.content.split()) // 8 for turn in turns)
    schema = _with_numbers(_FACTS, len(turns), most)
    return Task(
        name="draw facts",
        messages=_asked(_DRAW, parts),
        schema=schema,
        read=lambda data: _facts(data, turns),
        rules=lambda: extract(turns, before),
        max_tokens=min(64 + 64 * most, LONGEST),
    )


def draw(
    ladder: Ladder, turns: Sequence[Turn], before: Sequence[Turn] = ()
) -> tuple[list[Candidate], Rung]:
    """Return facts of turns and who drew them; a model is shown few turns at a time."""
    if ladder.rung == "rules":
        return ladder.run(drawing(turns, before))
    facts: list[Candidate] = []
    rungs: list[Rung] = []
    for start in range(0, len(turns), AT_ONCE):
        earlier = [*before, *turns[:start]][-BEFORE:]
        found, rung = ladder.run(drawing(turns[start : start + AT_ONCE], earlier))
        facts += found
        rungs.append(rung)
    return facts, ladder.rung if ladder.rung in rungs else "rules"


def deciding(
    facts: Sequence[Candidate],
    memories: Sequence[Item],
    neighbours: Callable[[Candidate], Sequence[Item]],
) -> Task[list[Edit]]:
    """Return the task of choosing an operation for each fact, given the memories most like them.

    Args:
        memories: live items, numbered for a model in this order.
        neighbours: what the rules look at for one fact.
    """
    shown = [{"number": n, "text": item.text, **_since(item)} for n, item in enumerate(memories, 1)]
    told = [{"number": n, "text": fact.text, **_since(fact)} for n, fact in enumerate(facts, 1)]
    number: dict[str, Any] = {"type": "null"}
    if memories:
        among = {"type": "integer", "minimum": 1, "maximum": len(memories)}
        number = {"anyOf": [{"type": "null"}, among]}
    decision = {
        "type": "object",
        "properties": {"operation": {"enum": list(OPERATIONS)}, "memory": number},
        "required": ["operation", "memory"],
        "additionalProperties": False,
    }
    names = [str(n) for n in range(1, len(facts) + 1)]
    return Task(
        name="decide",
        messages=_asked(_DECIDE, [block("memories", shown), block("facts", told)]),
        schema={
            "type": "object",
            "properties": dict.fromkeys(names, decision),
            "required": names,
            "additionalProperties": False,
        },
        read=lambda data: _decisions(data, facts, memories),
        rules=lambda: reconcile(facts, neighbours),
        max_tokens=32 + 24 * len(facts),
    )


def settle(
    ladder: Ladder,
    facts: Sequence[Candidate],
    neighbours: Callable[[Candidate], Sequence[Item]],
    nearest: Callable[[Candidate], Sequence[Item]],
    mark: str = "",
) -> list[Edit]:
    """Return the edits that facts ask for, decided by the ladder's back end.

    A model is asked about few facts at a time, so that prompts keep their size; it is shown what
    earlier ones of the same call added. Edits name such an item by its key.

    Args:
        neighbours: live items the rules compare a fact with.
        nearest: live items a model is shown for a fact, best first.
        mark: stands in the keys of what is added, where several lists of edits become one.
    """
    if not facts:
        return []
    if ladder.rung == "rules":
        return ladder.run(deciding(facts, (), neighbours))[0]
    edits: list[Edit] = []
    fresh: dict[str, Item] = {}
    gone: set[str] = set()
    for start in range(0, len(facts), AT_ONCE):
        part = facts[start : start + AT_ONCE]
        shown = {item.id: item for fact in part for item in nearest(fact)[:SHOWN]}
        subjects = {fact.subject for fact in part}
        shown |= {id: item for id, item in fresh.items() if item.subject in subjects}
        memories = [item for id, item in shown.items() if id not in gone]

        def known(fact: Candidate) -> list[Item]:
            found = [*neighbours(fact), *fresh.values()]
            return [item for item in found if item.id not in gone]

        for edit in ladder.run(deciding(part, memories, known))[0]:
            keyed = _keyed(edit, f"+{mark}{len(edits)}")
            if isinstance(keyed, Retire):
                gone.add(keyed.id)
                fresh.pop(keyed.id, None)
            made = _made(keyed)
            if made is not None and made.valid_to is None:
                fresh[made.key] = _draft(made)
            edits.append(keyed)
    return edits


def made_by(edits: Sequence[Edit], rung: str) -> list[Edit]:
    """Return edits as made by this rung."""
    return [replace(edit, made_by=rung) for edit in edits]


def _keyed(edit: Edit, key: str) -> Edit:
    if isinstance(edit, Add):
        return replace(edit, candidate=replace(edit.candidate, key=key))
    if isinstance(edit, Retire) and edit.superseded_by is not None:
        return replace(edit, superseded_by=replace(edit.superseded_by, key=key))
    return edit


def _made(edit: Edit) -> Candidate | None:
    if isinstance(edit, Add):
        return edit.candidate
    return edit.superseded_by if isinstance(edit, Retire) else None


def _draft(made: Candidate) -> Item:
    """Return the item that a candidate will become, under its key."""
    return Item(
        id=made.key,
        text=made.text,
        subject=made.subject,
        predicate=made.predicate,
        object=made.object,
        entities=made.entities,
        sources=made.sources,
        valid_from=made.valid_from,
        valid_to=made.valid_to,
    )


def _asked(instruction: str, parts: Sequence[str]) -> tuple[dict[str, str], ...]:
    return (
        {"role": "system", "content": instruction},
        {"role": "user", "content": "\n".join(parts)},
    )


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "date": f"{turn.time:%Y-%m-%d}",
        "who": turn.name or turn.role,
        "text": turn.content,
    }


def _since(item: Item | Candidate) -> dict[str, str]:
    return {} if item.valid_from is None else {"since": f"{item.valid_from:%Y-%m-%d}"}


def _with_numbers(schema: dict[str, Any], count: int, most: int) -> dict[str, Any]:
    """Return the schema of facts with the numbers of messages that there are, and its limits."""
    fact = schema["properties"]["facts"]["items"]
    sources = {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": count},
        "minItems": 1,
        "maxItems": min(count, 8),
    }
    fact = {**fact, "properties": {**fact["properties"], "sources": sources}}
    facts: dict[str, Any] = {"type": "array", "items": fact}
    if most <= COUNTED:
        facts["maxItems"] = most
    return {**schema, "properties": {"facts": facts}}


def _facts(data: Any, turns: Sequence[Turn]) -> tuple[list[Candidate], list[Refused]]:
    good: dict[tuple[str | None, frozenset[str]], Candidate] = {}
    refused: list[Refused] = []
    for entry in data["facts"]:
        made = fact_of(entry, turns)
        if isinstance(made, Refused):
            refused.append(made)
            continue
        key = (made.subject, frozenset(stems(made.text)))
        if key in good:  # told twice in one reply
            sources = tuple(dict.fromkeys((*good[key].sources, *made.sources)))
            made = replace(good[key], sources=sources)
        good[key] = made
    return list(good.values()), refused


def fact_of(entry: dict[str, Any], turns: Sequence[Turn]) -> Candidate | Refused:
    """Return the fact a model told, or why it is not taken.

    Its sources must exist and its content words must stand in them; numbers and names must all
    stand there.
    """
    text = " ".join(entry["text"].split())
    numbers = dict.fromkeys(entry["sources"])
    if len(stems(text)) < 2:
        return Refused("no sentence", text)
    if not numbers or not all(1 <= number <= len(turns) for number in numbers):
        return Refused("a source that does not exist", text)
    sources = [turns[number - 1] for number in numbers]
    problem = ungrounded(text, sources)
    if problem is not None:
        return Refused(problem, text)
    predicate = str(entry.get("predicate") or "").lower() or None
    known = predicate is not None and predicate.partition(":")[0] in SLOTS
    who = fold(str(entry.get("subject") or sources[0].name or "the user"))
    ends = entry.get("ends", False)
    return Candidate(
        text=text,
        sources=tuple(turn.id for turn in sources),
        subject=who,
        predicate=predicate if known else "did",
        object=fold(str(entry.get("object") or text)),
        entities=tuple(dict.fromkeys((who, *entities(f"x {text}")))),
        valid_from=sources[-1].time,
        valid_to=sources[-1].time if ends else None,
        ends=ends,
        many=slot_of(predicate if known and predicate else "did").many,
    )


def ungrounded(text: str, sources: Sequence[Turn], share: float = GROUNDED) -> str | None:
    """Return why a text says what its turns did not, None if it does not."""
    said = " ".join(f"{t.name or ''} {t.content} {t.time:%d %B %Y}" for t in sources)
    have, words = set(stems(said)), stems(text)
    missing = [word for word in words if word not in have]
    digits = {word.lstrip("0") for word in have}
    if any(word.isdigit() and word.lstrip("0") not in digits for word in missing):
        return "a number nobody said"
    if any(not set(stems(name)) <= have for name in entities(f"x {text}")):
        return "a name nobody said"
    if words and 1 - len(missing) / len(words) < share:
        return "not grounded in its messages"
    return None


def _decisions(
    data: Any, facts: Sequence[Candidate], memories: Sequence[Item]
) -> tuple[list[Edit], list[Refused]]:
    """Return edits that destroy nothing; what a decision may not do becomes an addition."""
    edits: list[Edit] = []
    refused: list[Refused] = []
    touched: set[str] = set()
    for number, fact in enumerate(facts, 1):
        chosen = data[str(number)]
        operation, which = chosen["operation"], chosen["memory"]
        memory = None if which is None else memories[which - 1]
        problem = _objection(operation, fact, memory, touched)
        if problem is not None:
            refused.append(Refused(f"{operation}: {problem}", fact.text))
        if problem is not None or operation == "ADD":
            edits.append(Add(candidate=fact, reason="nothing known like it"))
            continue
        if memory is None:  # NOOP of something not worth keeping
            continue
        touched.add(memory.id)
        edits.append(_edit(operation, fact, memory))
    return edits, refused


def _edit(operation: str, fact: Candidate, memory: Item) -> Edit:
    if operation == "NOOP":
        return confirm(fact, memory)
    if operation == "DELETE" and fact.ends:
        at = fact.valid_to or fact.valid_from
        return Retire(id=memory.id, at=at, sources=fact.sources, reason="said to be over")
    if operation == "UPDATE" and set(stems(memory.text)) <= set(stems(fact.text)):
        return Revise(id=memory.id, candidate=fact, reason="the same, and more")
    why = "contradicted" if operation == "DELETE" else "a newer state"
    return Retire(id=memory.id, at=fact.valid_from, superseded_by=fact, reason=why)


def _objection(
    operation: str, fact: Candidate, memory: Item | None, touched: set[str]
) -> str | None:
    """Return why an operation may not be carried out on a memory, None if it may."""
    if operation == "ADD" or (memory is None and operation == "NOOP"):
        return None
    if memory is None:
        return "no memory was named"
    if memory.id in touched:
        return "another fact changed that memory"
    if memory.subject and fact.subject and memory.subject != fact.subject:
        return "the memory is about somebody else"
    if operation == "NOOP":
        have = set(stems(" ".join((memory.text, *memory.entities))))
        numbers = {word for word in stems(fact.text) if word.isdigit()}
        names = {word for name in entities(f"x {fact.text}") for word in stems(name)}
        if not numbers | names <= have:
            return "the memory lacks a name or number of the fact"
    return None
