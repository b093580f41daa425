"""The entities that the triples of one write speak of: known ones found, new ones made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loci.core.item import Add, Candidate, Edit, Item, Revise
from loci.methods.recall.base import StoreView
from loci.text.extract import ANY
from loci.text.graph import kind_of
from loci.text.tasks import SHOWN


class Nodes:
    """Resolves the names in the triples of one write to entities.

    Args:
        same: cosine from which two names are one entity, where names can be compared by meaning.
        aliases: {another name: name} that this write gives away.
    """

    def __init__(self, view: StoreView, same: float, aliases: Mapping[str, str]) -> None:
        self._view, self._same, self._aliases = view, same, aliases
        self._names: dict[str, str] = {}
        self._new: dict[str, tuple[str, Candidate]] = {}  # {name: kind, the triple that names it}
        self._others: dict[str, list[str]] = {}  # {name of a new entity: its other names}
        self._learnt: list[Edit] = []

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

    def edits(self, relations: Sequence[Edit]) -> list[Edit]:
        """Return the entities that new relations need, and the other names learnt of known ones."""
        made = [
            edit.candidate if isinstance(edit, Add) else getattr(edit, "superseded_by", None)
            for edit in relations
        ]
        named = [end for one in made if one is not None for end in (one.subject, one.object)]
        found: list[Edit] = []
        for name in dict.fromkeys(named):
            if name in self._new:
                kind, triple = self._new[name]
                others = tuple(self._others.get(name, ()))
                entity = _entity(name, kind, triple, others)
                found.append(Add(candidate=entity, reason="first named"))
        return [*found, *self._learnt]

    def _node(self, name: str, kind: str, triple: Candidate) -> str:
        if name == ANY or not name:
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
            self._also(node, name, triple, None)
            return node
        near = self._alike(name)
        if near is not None:
            self._also(near.subject or name, name, triple, near)
            return near.subject or name
        self._new[name] = (kind, triple)
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

    def _also(self, node: str, name: str, triple: Candidate, item: Item | None) -> None:
        """Learn that an entity goes by another name too."""
        if node in self._new:
            self._others.setdefault(node, []).append(name)
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
        self._learnt.append(Revise(id=item.id, candidate=told, reason="another name"))


def _entity(name: str, kind: str, triple: Candidate, others: Sequence[str]) -> Candidate:
    return Candidate(
        text=", ".join((name, *others)),
        kind="entity",
        sources=triple.sources,
        subject=name,
        predicate="is_a",
        object=kind,
        entities=(name, *others),
    )
