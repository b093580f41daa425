"""New turns seen before they are stored, so that a model is asked while nobody waits for a lock.

A `Preview` is the view a method reads, with turns in it that have no number yet. What the method
makes of them is carried over to the stored turns by `stored_as`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any  # JSON values

from loci.core.item import Add, Candidate, Edit, Gloss, Item, Link, Retire, Revise, Turn

if TYPE_CHECKING:
    from loci.methods.recall.base import Layer, StoreView
    from loci.store.messages import Draft


def drafted(drafts: Sequence[Draft], session: str | None) -> list[Turn]:
    """Return the turns that drafts will become, under ids that no stored turn has."""
    import json

    return [
        Turn(
            id=f"new{number}",
            role=draft.role,
            content=draft.content,
            time=draft.said,
            name=draft.name,
            session=session,
            zone_assumed=draft.zone_assumed,
            metadata=json.loads(draft.metadata) if draft.metadata else {},
            position=number,
        )
        for number, draft in enumerate(drafts)
    ]


def stored_as(edits: Sequence[Edit], ids: Mapping[str, str]) -> list[Edit]:
    """Return edits whose sources go by other ids."""

    def sources(given: Sequence[str]) -> tuple[str, ...]:
        return tuple(ids.get(id, id) for id in given)

    def gloss(given: Gloss | None) -> Gloss | None:
        return None if given is None else replace(given, sources=sources(given.sources))

    def candidate(given: Candidate) -> Candidate:
        return replace(given, sources=sources(given.sources), gloss=gloss(given.gloss))

    moved: list[Edit] = []
    for edit in edits:
        if isinstance(edit, (Add, Revise)):
            moved.append(replace(edit, candidate=candidate(edit.candidate)))
        elif isinstance(edit, Retire):
            made = edit.superseded_by
            made = None if made is None else candidate(made)
            moved.append(replace(edit, superseded_by=made, sources=sources(edit.sources)))
        else:
            moved.append(edit)
    return moved


class Preview:
    """A view with turns that are not stored yet. Satisfies `StoreView`.

    Args:
        view: what is stored.
        turns: new turns, all of one session, which go on where it ended.
        last: the last stored turn of that session, None where there is none.
    """

    def __init__(self, view: StoreView, turns: Sequence[Turn], last: str | None) -> None:
        self._view, self._last = view, last
        self._new = {turn.id: turn for turn in turns}

    @property
    def has_dense(self) -> bool:
        """Whether `search_dense` can be asked."""
        return self._view.has_dense

    def now(self) -> datetime:
        """Return the time of asking."""
        return self._view.now()

    def search_words(
        self, stems: Sequence[str], limit: int, kind: Layer, *, context: float = 0.0
    ) -> Sequence[tuple[str, float]]:
        """Return (id, BM25) of what is stored."""
        return self._view.search_words(stems, limit, kind, context=context)

    def search_dense(self, text: str, limit: int, kind: Layer) -> Sequence[tuple[str, float]]:
        """Return (id, cosine) of what is stored."""
        return self._view.search_dense(text, limit, kind)

    def search_entities(
        self, names: Sequence[str], limit: int, kind: Layer
    ) -> Sequence[tuple[str, float]]:
        """Return (id, number of names) of what is stored."""
        return self._view.search_entities(names, limit, kind)

    def search_time(self, start: datetime, end: datetime, limit: int, kind: Layer) -> Sequence[str]:
        """Return ids of what is stored."""
        return self._view.search_time(start, end, limit, kind)

    def turn(self, id: str) -> Turn:
        """Return a turn, new or stored."""
        return self._new[id] if id in self._new else self._view.turn(id)

    def turns(self, ids: Sequence[str]) -> Mapping[str, Turn]:
        """Return many turns, new or stored."""
        known = self._view.turns([id for id in ids if id not in self._new])
        found: dict[str, Any] = {id: self._new.get(id) or known.get(id) for id in ids}
        return {id: turn for id, turn in found.items() if turn is not None}

    def item(self, id: str) -> Item:
        """Return an item."""
        return self._view.item(id)

    def items(self, ids: Sequence[str]) -> Mapping[str, Item]:
        """Return many items."""
        return self._view.items(ids)

    def items_of_turn(self, id: str) -> Sequence[Item]:
        """Return the items made of a turn; of a new one there are none."""
        return [] if id in self._new else self._view.items_of_turn(id)

    def neighbours_of_turn(self, id: str, before: int, after: int) -> Sequence[Turn]:
        """Return the turns around one in its session, new and stored."""
        if id not in self._new:
            found = list(self._view.neighbours_of_turn(id, before, after))
            if id == self._last and len(found) < before + after:
                found += list(self._new.values())[:after]
            return found
        new = list(self._new.values())
        place = list(self._new).index(id)
        near = [*new[max(0, place - before) : place], *new[place + 1 : place + 1 + after]]
        missing = before - place
        if missing <= 0 or self._last is None:
            return near
        stored = [
            *self._view.neighbours_of_turn(self._last, missing - 1, 0),
            self._view.turn(self._last),
        ]
        return [*stored[-missing:], *near]

    def by_slot(self, subject: str, predicate: str) -> Sequence[Item]:
        """Return live items of a slot."""
        return self._view.by_slot(subject, predicate)

    def speakers(self) -> Sequence[str]:
        """Return the names of those who spoke, in the new turns too."""
        new = [turn.name for turn in self._new.values() if turn.name]
        return list(dict.fromkeys((*self._view.speakers(), *new)))

    def links(self, ids: Sequence[str]) -> Sequence[Link]:
        """Return the links of stored items."""
        return self._view.links(ids)
