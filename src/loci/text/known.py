"""Facts behind hits: their turns are read again with the extraction rules, oldest first.

Reconciling in the order of time tells what holds now, and what held until when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loci.core.item import Add, Candidate, Item, Retire, Revise, Source, Turn
from loci.text.consolidate import decide, related
from loci.text.extract import extract


@dataclass(frozen=True)
class Fact:
    """A fact, where it was said, the place of the hit, and when it ended if it did."""

    item: Item
    source: Source
    rank: int
    ended_at: datetime | None = None

    @property
    def live(self) -> bool:
        """Whether it holds as far as these turns tell."""
        return self.item.retired_at is None and self.item.valid_to is None

    @property
    def head(self) -> str:
        """The predicate without its parameter."""
        return (self.item.predicate or "").partition(":")[0]


def facts_of(told: Sequence[tuple[Source, int]]) -> list[Fact]:
    """Return the facts of (turn, rank) pairs that stand in the order of their times."""
    turns = [
        Turn(id=s.id, role=s.role, content=s.content, time=s.time, name=s.name, session=s.session)
        for s, _ in told
    ]
    facts: dict[str, Fact] = {}
    for place, turn in enumerate(turns):
        earlier = [t for t in turns[max(0, place - 8) : place] if t.session == turn.session][-4:]
        source, rank = told[place]
        for number, candidate in enumerate(extract([turn], earlier)):
            predicates = related(candidate)
            near = [
                f.item
                for f in facts.values()
                if f.item.subject == candidate.subject and f.item.predicate in predicates
            ]
            edits = decide(candidate, near)
            if candidate.ends and not edits:  # what it ends was not found; it tells so itself
                item = replace(_item(f"{turn.id}/{number}/-", candidate), retired_at=turn.time)
                facts[item.id] = Fact(item, source, rank, turn.time)
            for edit in edits:
                made: Candidate | None = None
                if isinstance(edit, Add):
                    made = edit.candidate
                elif isinstance(edit, Retire):
                    old = facts[edit.id]
                    ended = edit.at or turn.time
                    facts[edit.id] = replace(
                        old,
                        item=replace(old.item, retired_at=ended, valid_to=ended),
                        ended_at=ended,
                    )
                    made = edit.superseded_by
                elif isinstance(edit, Revise):
                    old = facts[edit.id]
                    if edit.reason != "said again":
                        item = replace(
                            old.item, text=edit.candidate.text, object=edit.candidate.object
                        )
                        facts[edit.id] = replace(old, item=item, source=source)
                    facts[edit.id] = replace(facts[edit.id], rank=min(rank, old.rank))
                if made is not None:
                    id = f"{turn.id}/{number}/{len(facts)}"
                    facts[id] = Fact(_item(id, made), source, rank)
    return list(facts.values())


def _item(id: str, made: Candidate) -> Item:
    return Item(
        id=id,
        text=made.text,
        subject=made.subject,
        predicate=made.predicate,
        object=made.object,
        sources=made.sources,
        valid_from=made.valid_from,
        valid_to=made.valid_to,
    )
