"""Reconcile a new fact with what is known: add it, let it supersede, end something, or do nothing.

The cascade, first rule that fires:

    an ending            -> RETIRE the facts it speaks of; ADD it when it tells a past of its own
    the same value       -> NOOP: the fact is confirmed and gains a source
    the same, and more   -> UPDATE: "a dog" becomes "a dog named Rex"
    the opposite         -> SUPERSEDE: likes and dislikes, a diet and what it forbids
    a single-valued slot -> SUPERSEDE: the old ends where the new begins
    else                 -> ADD

Numbers, names and dates must be equal before two values count as the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from loci.core.item import Add, Candidate, Edit, Item, Retire, Revise
from loci.text.extract import ANY
from loci.text.phrases import PARTNERS
from loci.text.slots import sentence_of, slot_of
from loci.text.stem import fold, stems, tokens

_OPPOSITE = {
    "likes": ("dislikes", "fears"),
    "dislikes": ("likes",),
    "avoids": ("likes", "drinks"),
    "drinks": ("avoids",),
}
# Slots that answer the same question: a new value of one ends the others' too.
_FAMILY = {"drives": ("drives",), "partner": ("partner",)}
# "I am still with Orbex": whichever of these holds that name is meant.
_WITH = ("with", "works_at", "partner", "lives_in")
_NAMED = re.compile(r"\b[A-Z][\w'-]*")


class Operation(StrEnum):
    """What became of a candidate."""

    ADD = "add"
    UPDATE = "update"
    SUPERSEDE = "supersede"
    RETIRE = "retire"
    NOOP = "noop"


def decide(candidate: Candidate, neighbours: Sequence[Item], made_by: str = "rules") -> list[Edit]:
    """Return the edits a candidate asks for, given live items that may speak of the same.

    `neighbours` are items of the slots named by `related`, or found by similar words; items about
    other subjects are left alone.
    """
    mine = [i for i in neighbours if _holds(i) and i.subject == candidate.subject]
    same_slot = [i for i in mine if i.predicate and _same_slot(candidate, i)]
    if candidate.ends:
        return _end(candidate, same_slot, made_by)
    if candidate.predicate == "with":
        same_slot = [i for i in mine if i.predicate and i.predicate.partition(":")[0] in _WITH]
    when = candidate.valid_from
    for item in same_slot:
        if same_value(candidate.object, item.object) or candidate.text == item.text:
            return [confirm(candidate, item, made_by)]
    for item in [i for i in neighbours if _holds(i) and i.text.lower() == candidate.text.lower()]:
        return [confirm(candidate, item, made_by)]
    if candidate.many:
        for item in same_slot:
            if _contains(candidate.object, item.object):
                return [
                    Revise(
                        id=item.id,
                        candidate=candidate,
                        made_by=made_by,
                        reason="the same, and more",
                    )
                ]
            if _contains(item.object, candidate.object):
                return [confirm(candidate, item, made_by)]
    opposite = [
        item
        for item in mine
        if item.predicate in _OPPOSITE.get(candidate.predicate or "", ())
        and (
            _contains(item.object, candidate.object)
            or _contains(candidate.object, item.object)
            or same_value(item.object, candidate.object)
        )
    ]
    if opposite:
        return _supersede(candidate, opposite, when, made_by, "the opposite is said now")
    if not candidate.many and same_slot:
        newest = max((i.valid_from for i in same_slot if i.valid_from), default=None)
        if when is not None and newest is not None and when < newest and _dated(candidate):
            # It tells of an earlier time: keep it as history, beside what holds now.
            return [Add(candidate=candidate, made_by=made_by, reason="held before the known value")]
        return _supersede(candidate, same_slot, when, made_by, "the slot holds one value")
    return [Add(candidate=candidate, made_by=made_by, reason="nothing known like it")]


def related(candidate: Candidate) -> list[str]:
    """Return the predicates whose items `decide` must see."""
    predicate = candidate.predicate or ""
    partners = ["partner", "partner:status", *(f"partner:{word}" for word in sorted(PARTNERS))]
    if predicate.partition(":")[0] == "partner":
        return partners
    if predicate == "with":
        return ["with", "works_at", "lives_in", *partners]
    return [predicate, *_OPPOSITE.get(predicate, ())]


def operation(candidate: Candidate, edits: Sequence[Edit]) -> Operation:
    """Return the one word for what `decide` did."""
    if any(isinstance(e, Retire) and e.superseded_by is not None for e in edits):
        return Operation.SUPERSEDE
    if any(isinstance(e, Retire) for e in edits):
        return Operation.RETIRE
    for edit in edits:
        if isinstance(edit, Add):
            return Operation.ADD
        if isinstance(edit, Revise):
            return Operation.NOOP if edit.reason == "said again" else Operation.UPDATE
    return Operation.NOOP


def reconcile(
    candidates: Sequence[Candidate],
    neighbours: Callable[[Candidate], Sequence[Item]],
    made_by: str = "rules",
) -> list[Edit]:
    """Return the edits of many candidates in order, each seeing what those before it did.

    An item that is added and ended within one call is added with its end.
    """
    edits: list[Edit] = []
    fresh: dict[str, Item] = {}  # by a provisional id, the position of its Add in `edits`
    changed: dict[str, Item] = {}
    over: dict[str, bool] = {}  # whether an ending, by its words, ended anything
    endings: dict[str, Candidate] = {}
    for candidate in candidates:
        known = [changed.get(item.id, item) for item in neighbours(candidate)]
        known += [i for i in fresh.values() if i.subject == candidate.subject]
        decided = decide(candidate, known, made_by)
        if candidate.ends:
            over[candidate.text] = over.get(candidate.text, False) or bool(decided)
            endings.setdefault(candidate.text, candidate)
        for edit in decided:
            if isinstance(edit, Add):
                _draft(edit.candidate, edits, fresh, edit)
            elif isinstance(edit, Retire):
                if edit.id in fresh:
                    item = fresh[edit.id]
                    fresh[edit.id] = replace(item, valid_to=edit.at, retired_at=edit.at)
                    place = int(edit.id.removeprefix(_PENDING))
                    added = edits[place]
                    if isinstance(added, Add):
                        ended = replace(added.candidate, valid_to=edit.at)
                        edits[place] = replace(added, candidate=ended)
                    elif isinstance(added, Retire) and added.superseded_by is not None:
                        ended = replace(added.superseded_by, valid_to=edit.at)
                        edits[place] = replace(added, superseded_by=ended)
                    if edit.superseded_by is not None:
                        made = edit.superseded_by
                        _draft(
                            made,
                            edits,
                            fresh,
                            Add(candidate=made, made_by=made_by, reason=edit.reason),
                        )
                    continue
                old = next(i for i in known if i.id == edit.id)
                changed[edit.id] = replace(old, retired_at=edit.at or candidate.valid_from)
                if edit.superseded_by is not None:
                    _draft(edit.superseded_by, edits, fresh, edit)
                else:
                    edits.append(edit)
            elif isinstance(edit, Revise) and edit.id in fresh:
                place = int(edit.id.removeprefix(_PENDING))
                added, told = edits[place], edit.candidate
                item = fresh[edit.id]
                told = replace(told, sources=tuple(dict.fromkeys((*item.sources, *told.sources))))
                fresh[edit.id] = replace(
                    item, text=told.text, object=told.object, sources=told.sources
                )
                if isinstance(added, Add):
                    edits[place] = replace(added, candidate=told)
                elif isinstance(added, Retire):
                    edits[place] = replace(added, superseded_by=told)
            else:
                edits.append(edit)
    for text, found in over.items():
        if not found and (event := _event(endings[text])) is not None:
            edits.append(Add(candidate=event, made_by=made_by, reason="ends nothing known"))
    return edits


_STATE = re.compile(r"\b(?:no longer|does not|is not|is done with|used to|was|were|any ?more)\b")


def _event(ended: Candidate) -> Candidate | None:
    """Return what was done to end something of which nothing was known, as an event."""
    usual = sentence_of(
        ended.subject or "", ended.predicate or "did", ended.object or "", past=True
    )
    if fold(usual) == fold(ended.text):
        return None
    words = ended.text[len(ended.subject or "") :].split()
    if len(words) < 3 or _STATE.search(ended.text) or ended.valid_to is not None:
        return None
    did = " ".join(words)
    return replace(ended, predicate="did", object=fold(did), ends=False, many=True)


_PENDING = "pending-"


def _draft(made: Candidate, edits: list[Edit], fresh: dict[str, Item], edit: Edit) -> None:
    id = f"{_PENDING}{len(edits)}"
    edits.append(edit)
    fresh[id] = Item(
        id=id,
        text=made.text,
        subject=made.subject,
        predicate=made.predicate,
        object=made.object,
        entities=made.entities,
        sources=made.sources,
        valid_from=made.valid_from,
        valid_to=made.valid_to,
    )


def _holds(item: Item) -> bool:
    """Live, and not a past that was told as such."""
    return item.is_live and item.valid_to is None


def same_value(left: str | None, right: str | None) -> bool:
    """Return whether two values mean the same by their stems; numbers and names included.

    >>> same_value("the red bikes", "a red bike"), same_value("2 dogs", "3 dogs")
    (True, False)
    """
    if left is None or right is None:
        return False
    a, b = _content(left), _content(right)
    return left == right or (bool(a) and a == b)


def _content(value: str) -> frozenset[str]:
    return frozenset(stems(value)) or frozenset(tokens(value))


def _contains(big: str | None, small: str | None) -> bool:
    """Whether `big` says all that `small` says, and more."""
    if not big or not small:
        return False
    a, b = _content(big), _content(small)
    return bool(b) and b < a


def _same_slot(candidate: Candidate, item: Item) -> bool:
    left, right = candidate.predicate or "", item.predicate or ""
    if left == right:
        return True
    head = left.partition(":")[0]
    return head in _FAMILY and right.partition(":")[0] in _FAMILY[head]


def _dated(candidate: Candidate) -> bool:
    """Whether an earlier time was named, rather than being the time of telling."""
    return re.search(r"\b(?:in|since|back in) (?:19|20)\d\d\b", candidate.text) is not None


def confirm(candidate: Candidate, item: Item, made_by: str = "rules") -> Revise:
    """Return the edit that only joins the candidate's sources to an item that says it already."""
    told = Candidate(
        text=item.text,
        sources=candidate.sources,
        subject=item.subject,
        predicate=item.predicate,
        object=item.object,
        entities=item.entities,
        valid_from=item.valid_from,
        valid_to=item.valid_to,
        many=candidate.many,
    )
    return Revise(id=item.id, candidate=told, made_by=made_by, reason="said again")


def _supersede(
    candidate: Candidate,
    old: Sequence[Item],
    when: datetime | None,
    made_by: str,
    reason: str,
) -> list[Edit]:
    edits: list[Edit] = [
        Retire(id=item.id, at=when, sources=candidate.sources, made_by=made_by, reason=reason)
        for item in old[:-1]
    ]
    edits.append(
        Retire(id=old[-1].id, at=when, superseded_by=candidate, made_by=made_by, reason=reason)
    )
    return edits


def _end(candidate: Candidate, slot: Sequence[Item], made_by: str) -> list[Edit]:
    value = candidate.object or ANY
    at = candidate.valid_to or candidate.valid_from
    if (
        value == ANY
        or candidate.predicate == "partner"
        or not slot_of(candidate.predicate or "").many
    ):
        hit = [
            item
            for item in slot
            if value in (ANY, "cancelled")
            or same_value(value, item.object)
            or _contains(item.object, value)
            or _contains(value, item.object)
        ]
        if candidate.predicate == "partner" and not hit:
            hit = [i for i in slot if not _NAMED.search(i.object or "")] if value == ANY else []
    else:
        hit = [
            item
            for item in slot
            if same_value(value, item.object)
            or _contains(item.object, value)
            or _contains(value, item.object)
        ]
    edits: list[Edit] = [
        Retire(
            id=item.id,
            at=at,
            sources=candidate.sources,
            made_by=made_by,
            reason="said to be over",
        )
        for item in hit
    ]
    told = candidate.text.partition(" ")[2]
    if not hit and value != ANY and candidate.valid_to is not None and " used to " not in told:
        edits.append(Add(candidate=candidate, made_by=made_by, reason="a past of its own"))
    return edits
