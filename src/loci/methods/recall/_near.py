"""Which items a fact is compared with: those of its slot, and those most like it."""

from __future__ import annotations

from collections.abc import Callable

from loci.core.item import Candidate, Item
from loci.methods.recall.base import StoreView
from loci.text.consolidate import related
from loci.text.stem import stems
from loci.text.tasks import SHOWN


def neighbours_in(view: StoreView) -> Callable[[Candidate], list[Item]]:
    """Return what gives the live items that rules compare a fact with."""

    def neighbours(fact: Candidate) -> list[Item]:
        found = {
            item.id: item
            for predicate in related(fact)
            for item in view.by_slot(fact.subject or "", predicate)
            if item.kind == "fact"
        }
        return list(found.values())

    return neighbours


def nearest_in(view: StoreView) -> Callable[[Candidate], list[Item]]:
    """Return what gives the live items that a model is shown for a fact, best first."""
    neighbours, alike = neighbours_in(view), alike_in(view)

    def nearest(fact: Candidate) -> list[Item]:
        found = {item.id: item for item in (*neighbours(fact), *alike(fact))}
        return [item for item in found.values() if item.kind == "fact"]

    return nearest


def alike_in(view: StoreView) -> Callable[[Candidate], list[Item]]:
    """Return what gives the live items whose text is most like a fact's, best first."""

    def alike(fact: Candidate) -> list[Item]:
        ids = []
        if view.has_dense:
            ids += [id for id, _ in view.search_dense(fact.text, SHOWN, "item")]
        ids += [id for id, _ in view.search_words(stems(fact.text), SHOWN, "item")]
        found = view.items(list(dict.fromkeys(ids)))
        return [item for item in found.values() if item.kind == "fact"]

    return alike
