"""The entities that the triples of one write speak of: known ones found, new ones made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loci.core.item import Add, Candidate, Edit, Item, Revise
from loci.methods.recall.base import StoreView
from loci.text.graph import kind_of
from loci.text.tasks import SHOWN


class Nodes:
    """The entities of one write: known ones found, new ones made, other names learnt."""

    def __init__(self, view: StoreView, same: float, aliases: Mapping[str, str]) -> None:
        self._view, self._same, self._aliases = view, same, aliases
        self._names: dict[str, str] = {}
        self._made: dict[str, int] = {}  # {name: place in edits}
        self.edits: list[Edit] = []

    def settled(self, triple: Candidate) -> Candidate:
        """Return a triple whose ends go by the names of their entities."""
        ends = []
        for name, is_target in ((triple.subject or "", False), (triple.object or "", True)):
            kind = kind_of(name, triple.predicate or "", is_target=is_target)
            ends.append(self._node(name, kind, triple))
        source, target = ends
        if (source, target) == (triple.subject, triple.object):
            return triple
        entities = tuple(dict.fromkeys((source, target, *triple.entities)))
        text = triple.text.replace(triple.subject or "", source, 1)
        return replace(triple, subject=source, object=target, text=text, entities=entities)

    def _node(self, name: str, kind: str, triple: Candidate) -> str:
        if name == "*" or not name:
            return name
        if name not in self._names:
            self._names[name] = self._resolved(name, kind, triple)
        return self._names[name]

    def _resolved(self, name: str, kind: str, triple: Candidate) -> str:
        known = self._known(name)
        if known is not None:
            return known.subject or name
        own = self._aliases.get(name)
        if own is not None and own != name:
            node = self._node(own, kind, triple)
            self._also(node, name, triple)
            return node
        near = self._alike(name)
        if near is not None:
            self._also(near.subject or name, name, triple, near)
            return near.subject or name
        if not triple.ends:
            self._made[name] = len(self.edits)
            self.edits.append(Add(candidate=_entity(name, kind, triple), reason="first named"))
        return name

    def _known(self, name: str) -> Item | None:
        found = self._view.items([id for id, _ in self._view.search_entities([name], 20, "item")])
        nodes = [item for item in found.values() if item.kind == "entity"]
        exact = [item for item in nodes if item.subject == name]
        return next(iter(exact or nodes), None)

    def _alike(self, name: str) -> Item | None:
        if not self._view.has_dense:
            return None
        digits = {word for word in name.split() if word.isdigit()}
        near = dict(self._view.search_dense(name, 4 * SHOWN, "item"))
        for id, item in self._view.items(list(near)).items():
            same = digits == {word for word in item.text.split() if word.isdigit()}
            if item.kind == "entity" and near[id] >= self._same and same:
                return item
        return None

    def _also(self, node: str, name: str, triple: Candidate, item: Item | None = None) -> None:
        """Learn that an entity goes by another name too."""
        place = self._made.get(node)
        if place is not None:
            edit = self.edits[place]
            assert isinstance(edit, Add)
            names = (*edit.candidate.entities, name)
            self.edits[place] = replace(edit, candidate=replace(edit.candidate, entities=names))
            return
        item = item or self._known(node)
        if item is None or name in item.entities:
            return
        told = Candidate(
            text=f"{item.text}, {name}",
            kind="entity",
            sources=triple.sources,
            subject=item.subject,
            predicate=item.predicate,
            object=item.object,
            entities=(*item.entities, name),
        )
        self.edits.append(Revise(id=item.id, candidate=told, reason="another name"))


def _entity(name: str, kind: str, triple: Candidate) -> Candidate:
    return Candidate(
        text=name,
        kind="entity",
        sources=triple.sources,
        subject=name,
        predicate="is_a",
        object=kind,
        entities=(name,),
    )
