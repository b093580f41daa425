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
from loci.text.prompts import DECIDE, DECIDED, DRAW, DRAWN, DRAWN_PLAIN
from loci.text.quote import block
from loci.text.slots import SLOTS, slot_of
from loci.text.stem import fold, stems

BEFORE = 10
"""How many turns before the new ones a model is shown."""

SHOWN = 10
"""How many memories a model is shown for one fact."""

AT_ONCE: dict[str, int] = {"slm": 1, "endpoint": 8}
"""How many turns, or facts, a model is asked about in one call: a small one loses the thread."""

FEW = 3
"""How many memories a small model is shown for one fact."""

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
OVER = " no longer "
"""How a sentence says that something has ended."""

Neighbours = Callable[[Candidate], Sequence[Item]]
Drawing = Callable[[Sequence[Turn], Sequence[Turn]], Task[list[Candidate]]]
Choosing = Callable[[Ladder, Sequence[Candidate], Sequence[Item], Neighbours], list[Edit]]
OPERATIONS = ("ADD", "UPDATE", "DELETE", "NOOP")


def drawing(
    turns: Sequence[Turn], before: Sequence[Turn] = (), *, small: bool = False
) -> Task[list[Candidate]]:
    """Return the task of drawing facts of `turns`; `before` came first and yields none itself.

    A small model cannot tell when it has said all, nor fill a slot: it may write few facts, and
    only their sentences.
    """
    messages: list[dict[str, Any]] = [
        {"number": number, **_turn(turn)} for number, turn in enumerate(turns, 1)
    ]
    parts = [block("messages", messages)]
    if before:
        parts.insert(0, block("before", map(_turn, before[-BEFORE:])))
    words = [len(turn.content.split()) for turn in turns]
    most = sum(1 + n // 12 for n in words) if small else sum(4 + n // 8 for n in words)
    schema = _with_numbers(_FACTS, len(turns), most, plain=small)
    return Task(
        name="draw facts",
        messages=_asked(DRAW, parts, DRAWN_PLAIN if small else DRAWN),
        schema=schema,
        read=lambda data: _facts(data, turns),
        rules=lambda: extract(turns, before),
        max_tokens=min(64 + 64 * most, LONGEST),
    )


def draw(
    ladder: Ladder,
    turns: Sequence[Turn],
    before: Sequence[Turn] = (),
    *,
    asking: Drawing | None = None,
) -> tuple[list[Candidate], Rung]:
    """Return facts of turns and who drew them; a model is shown few turns at a time.

    Args:
        asking: how a model is asked, if not by `drawing`.
    """
    if ladder.rung == "rules":
        return ladder.run(drawing(turns, before))
    facts: list[Candidate] = []
    rungs: list[Rung] = []
    step, small = AT_ONCE[ladder.rung], ladder.rung == "slm"
    for start in range(0, len(turns), step):
        earlier = [*before, *turns[:start]][-FEW if small else -BEFORE :]
        part = turns[start : start + step]
        task = drawing(part, earlier, small=small) if asking is None else asking(part, earlier)
        found, rung = ladder.run(task)
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
        messages=_asked(DECIDE, [block("memories", shown), block("facts", told)], DECIDED),
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
    *,
    choosing: Choosing | None = None,
) -> list[Edit]:
    """Return the edits that facts ask for, decided by the ladder's back end.

    A model is asked about few facts at a time, so that prompts keep their size; it is shown what
    earlier ones of the same call added. Edits name such an item by its key.

    Args:
        neighbours: live items the rules compare a fact with.
        nearest: live items a model is shown for a fact, best first.
        mark: stands in the keys of what is added, where several lists of edits become one.
        choosing: how edits come of a model, if not by asking it once by `deciding`.
    """
    if not facts:
        return []
    if ladder.rung == "rules":
        return ladder.run(deciding(facts, (), neighbours))[0]
    edits: list[Edit] = []
    fresh: dict[str, Item] = {}
    gone: set[str] = set()
    step, most = AT_ONCE[ladder.rung], FEW if ladder.rung == "slm" else SHOWN
    for start in range(0, len(facts), step):
        part = facts[start : start + step]
        shown = {item.id: item for fact in part for item in nearest(fact)[:most]}
        subjects = {fact.subject for fact in part}
        shown |= {id: item for id, item in fresh.items() if item.subject in subjects}
        memories = [item for id, item in shown.items() if id not in gone]

        def known(fact: Candidate) -> list[Item]:
            found = [*neighbours(fact), *fresh.values()]
            return [item for item in found if item.id not in gone]

        for edit in (choosing or _chosen)(ladder, part, memories, known):
            keyed = _keyed(edit, f"+{mark}{len(edits)}")
            if isinstance(keyed, Retire):
                gone.add(keyed.id)
                fresh.pop(keyed.id, None)
            made = _made(keyed)
            if made is not None and made.valid_to is None:
                fresh[made.key] = _draft(made)
            edits.append(keyed)
    return edits


def _chosen(
    ladder: Ladder, facts: Sequence[Candidate], memories: Sequence[Item], neighbours: Neighbours
) -> list[Edit]:
    return ladder.run(deciding(facts, memories, neighbours))[0]


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


def _asked(
    instruction: str, parts: Sequence[str], example: tuple[str, str] | None = None
) -> tuple[dict[str, str], ...]:
    shown = () if example is None else zip(("user", "assistant"), example, strict=True)
    return (
        {"role": "system", "content": instruction},
        *({"role": role, "content": content} for role, content in shown),
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


def _with_numbers(schema: dict[str, Any], count: int, most: int, *, plain: bool) -> dict[str, Any]:
    """Return the schema of facts with the numbers of messages that there are, and its limits."""
    fact = schema["properties"]["facts"]["items"]
    sources = {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": count},
        "minItems": 1,
        "maxItems": min(count, 8),
    }
    fact = {**fact, "properties": {**fact["properties"], "sources": sources}}
    if plain:
        fact["properties"] = {key: fact["properties"][key] for key in fact["required"]}
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
    ends = entry.get("ends", False)
    # That something is over people say in words of their own: "gave up", "outgrown".
    problem = ungrounded(text.replace(OVER, " ") if ends else text, sources)
    if problem is not None:
        return Refused(problem, text)
    ids = tuple(turn.id for turn in sources)
    predicate = str(entry.get("predicate") or "").lower()
    if predicate.partition(":")[0] not in SLOTS:
        read = _slot_of(text, sources[-1])
        if read is not None:
            return replace(read, text=text, sources=ids)
        predicate = "did"
    who = fold(str(entry.get("subject") or sources[0].name or "the user"))
    return Candidate(
        text=text,
        sources=ids,
        subject=who,
        predicate=predicate,
        object=fold(str(entry.get("object") or text)),
        entities=tuple(dict.fromkeys((who, *entities(f"x {text}")))),
        valid_from=sources[-1].time,
        valid_to=sources[-1].time if ends else None,
        ends=ends,
        many=slot_of(predicate).many,
    )


def _slot_of(text: str, source: Turn) -> Candidate | None:
    """Return what the rules read in a model's sentence, if that is one fact."""
    read = extract([replace(source, content=text)])
    return read[0] if len(read) == 1 else None


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
