"""Entities and what is between them: triples drawn from facts by rules, or by a model.

A triple (source, relation, target) is a candidate of kind "relation": both ends are names in their
normal form. Rules take the slot of a fact as it is when its value is a name or a short thing, and
from an event ("went to the Louvre with Grace") every name in it, related by the words before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any  # a reply is JSON

from loci.core.item import Candidate, Turn
from loci.text.entities import PLAIN, entities, names, normalise
from loci.text.extract import ANY, extract
from loci.text.ladder import Refused, Task
from loci.text.quote import AS_DATA, block
from loci.text.slots import SLOTS, slot_of
from loci.text.stem import fold, stems
from loci.text.tasks import ungrounded

KINDS = ("person", "place", "organisation", "animal", "event", "time", "thing")
_OF_SLOT = {
    "lives_in": "place",
    "from": "place",
    "works_at": "organisation",
    "studies_at": "organisation",
    "volunteers_at": "organisation",
    "member_of": "organisation",
    "partner": "person",
    "child": "person",
    "sibling": "person",
    "relative": "person",
    "friend": "person",
    "pet": "animal",
    "appointment": "time",
    "birthday": "time",
}
_KIN = ("partner", "child", "sibling", "relative", "friend", "pet")
_EVENTS = ("did", "doing", "thinks", "routine", "plan")  # their value is a sentence, no thing
_LONGEST = 4  # content words of a value that is a thing
_ARTICLES = frozenset(("the", "a", "an", "my", "his", "her", "their", "our", "its", "this", "that"))
_WORD = re.compile(r"[\w'’-]+")
_RELATE = (
    "You keep a graph of what people said. From the numbered messages draw triples: source, "
    "relation, target. Sources and targets are names of people, places, organisations, animals, "
    "events or things, as short as they can be; a relation is one to three words such as "
    '"lives in" or "sister of". Who says "I" is the one who speaks. Name the messages a triple '
    "comes from by their numbers, and set ends to true when it is said to be over. Answer with "
    'JSON: {"triples": [{"source": "...", "source_kind": "person", "relation": "...", "target": '
    '"...", "target_kind": "place", "messages": [1], "ends": false}]}. ' + AS_DATA
)


def relations_of(facts: Sequence[Candidate]) -> list[Candidate]:
    """Return the triples that facts hold.

    >>> fact = Candidate(text="Ada lives in Graz", sources=("t1",), subject="ada",
    ...     predicate="lives_in", object="Graz", entities=("ada", "graz"), many=False)
    >>> [(r.subject, r.predicate, r.object) for r in relations_of([fact])]
    [('ada', 'lives_in', 'graz')]
    """
    found: dict[tuple[str, str, str, bool], Candidate] = {}
    for fact in facts:
        for made in _of_fact(fact):
            key = (made.subject or "", made.predicate or "", made.object or "", made.ends)
            found.setdefault(key, made)
    return list(found.values())


def kind_of(name: str, relation: str, *, is_target: bool) -> str:
    """Return what an entity is, by where it stands; "thing" where nothing tells."""
    if not is_target:
        return "person"
    return _OF_SLOT.get(relation.partition(":")[0], "thing")


def relating(
    turns: Sequence[Turn], before: Sequence[Turn] = (), *, small: bool = False
) -> Task[list[Candidate]]:
    """Return the task of drawing triples of turns; `before` came first and yields none itself.

    A small model cannot tell when it has said all, so it may say little.
    """
    shown = [
        {
            "number": number,
            "date": f"{turn.time:%Y-%m-%d}",
            "who": turn.name or turn.role,
            "text": turn.content,
        }
        for number, turn in enumerate(turns, 1)
    ]
    earlier = [{"who": turn.name or turn.role, "text": turn.content} for turn in before]
    parts = [*([block("before", earlier)] if earlier else []), block("messages", shown)]
    name = {"type": "string", "minLength": 1, "maxLength": 80}
    triple = {
        "type": "object",
        "properties": {
            "source": name,
            "source_kind": {"enum": list(KINDS)},
            "relation": {"type": "string", "minLength": 1, "maxLength": 40},
            "target": name,
            "target_kind": {"enum": list(KINDS)},
            "messages": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": max(len(turns), 1)},
                "minItems": 1,
                "maxItems": 4,
            },
            "ends": {"type": "boolean"},
        },
        "required": [
            "source",
            "source_kind",
            "relation",
            "target",
            "target_kind",
            "messages",
            "ends",
        ],
        "additionalProperties": False,
    }
    triples = {
        "type": "array",
        "items": triple,
        "maxItems": (2 if small else 6) * max(len(turns), 1),
    }
    return Task(
        name="draw triples",
        messages=(
            {"role": "system", "content": _RELATE},
            {"role": "user", "content": "\n".join(parts)},
        ),
        schema={
            "type": "object",
            "properties": {"triples": triples},
            "required": ["triples"],
            "additionalProperties": False,
        },
        read=lambda data: _triples(data, turns),
        rules=lambda: relations_of(extract(turns, before)),
        max_tokens=128 + 128 * len(turns),
    )


def _of_fact(fact: Candidate) -> list[Candidate]:
    predicate, value = fact.predicate or "", fact.object or ""
    if not fact.subject or not predicate:
        return []
    if value == ANY:  # whatever the slot holds is over
        return [_relation(fact, predicate, value, slot_of(predicate).many)] if fact.ends else []
    if predicate.partition(":")[0] in _KIN:
        role, name = _role(fact, value)
        return [_relation(fact, predicate, name, fact.many, label=role)]
    if predicate.partition(":")[0] not in _EVENTS:
        if len(stems(value)) > _LONGEST:
            return []
        return [_relation(fact, predicate, normalise(value), fact.many)]
    if fact.ends:
        return []
    mine = set(fact.subject.split())
    made = []
    for name in names(f"x {fact.text}"):
        target = normalise(name)
        if target and not set(target.split()) & mine:
            label = _before(fact.text, name)
            if label:
                made.append(_relation(fact, label, target, True))
    return made


def aliases_of(facts: Sequence[Candidate]) -> dict[str, str]:
    """Return {another name: name} that facts about family, friends and pets give away.

    >>> fact = Candidate(text="Ada has a sister named Lena", sources=(), subject="ada",
    ...     predicate="sibling", object="sister lena", entities=("ada", "lena"))
    >>> aliases_of([fact])
    {"ada's sister": 'lena', "ada's sister lena": 'lena', 'sister lena': 'lena'}
    """
    found: dict[str, str] = {}
    for fact in facts:
        if (fact.predicate or "").partition(":")[0] in _KIN and fact.subject and not fact.ends:
            role, name = _role(fact, fact.object or "")
            if role and name != fact.object:
                for other in (f"{fact.subject}'s {role}", f"{fact.subject}'s {role} {name}"):
                    found[other] = name
                found[f"{role} {name}"] = name
    return found


def _role(fact: Candidate, value: str) -> tuple[str, str]:
    """Return ("sister", "lena") of "sister lena"; the whole value where it has no name."""
    held = [name for name in fact.entities if name != fact.subject and "'s " not in name]
    for name in sorted(held, key=len, reverse=True):
        if value.endswith(f" {name}"):
            return value.removesuffix(name).strip(), name
    return "", normalise(value)


def _relation(
    fact: Candidate, predicate: str, target: str, many: bool, *, label: str = ""
) -> Candidate:
    ends = (fact.subject or "", target)
    words = label or predicate.replace("_", " ").replace(":", " ")
    return replace(
        fact,
        kind="relation",
        text=f"{fact.subject} {words} {target}",
        predicate=predicate,
        object=target,
        entities=tuple(dict.fromkeys((*ends, *(n for n in fact.entities if n in target.split())))),
        many=many,
    )


def _before(text: str, name: str) -> str:
    """Return the one or two words that lead to a name, "went to" of "went to the Louvre"."""
    words = _WORD.findall(text.partition(name)[0])
    while words and words[-1].lower() in _ARTICLES:
        words.pop()
    if not words:
        return ""
    last = words[-1]
    if last in PLAIN and len(words) > 1 and words[-2] not in PLAIN and words[-2].islower():
        return f"{words[-2]} {last}"
    return fold(last)


def _triples(
    data: Mapping[str, Any], turns: Sequence[Turn]
) -> tuple[list[Candidate], list[Refused]]:
    good: dict[tuple[str, str, str], Candidate] = {}
    refused: list[Refused] = []
    for entry in data["triples"]:
        made = _triple(entry, turns)
        if isinstance(made, Refused):
            refused.append(made)
        else:
            good.setdefault((made.subject or "", made.predicate or "", made.object or ""), made)
    return list(good.values()), refused


def _triple(entry: Mapping[str, Any], turns: Sequence[Turn]) -> Candidate | Refused:
    text = f"{entry['source']} {entry['relation']} {entry['target']}"
    sources = [turns[number - 1] for number in dict.fromkeys(entry["messages"])]
    speakers = {fold(turn.name or turn.role) for turn in sources}
    source, target = normalise(entry["source"]), normalise(entry["target"])
    relation = "_".join(_WORD.findall(fold(entry["relation"])))
    if not source or not target or not relation or source == target:
        return Refused("a triple without two names and what is between them", text)
    for name in (source, target):
        if name not in speakers and ungrounded(name, sources, share=1.0) is not None:
            return Refused("a name nobody said", text)
    known = relation if relation in SLOTS else None
    return Candidate(
        kind="relation",
        text=f"{source} {relation.replace('_', ' ')} {target}",
        sources=tuple(turn.id for turn in sources),
        subject=source,
        predicate=relation,
        object=target,
        entities=tuple(dict.fromkeys((source, target, *entities(f"x {entry['target']}")))),
        valid_from=sources[-1].time,
        valid_to=sources[-1].time if entry["ends"] else None,
        ends=entry["ends"],
        many=slot_of(known).many if known else True,
    )
