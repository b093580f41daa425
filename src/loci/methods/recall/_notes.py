"""The notes of one write: made, linked to their nearest, and the margins that change with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING, Any  # an embedder's rows

from loci.core.item import Add, Candidate, Edit, Gloss, Item, Link, Revise, Turn, with_gloss
from loci.core.ports import Embedder
from loci.methods.recall.base import RecallPorts, StoreView
from loci.text.entities import entities
from loci.text.ladder import Rung
from loci.text.notes import Connection, Near, connecting, glossing, grown, keywords, likeness
from loci.text.stem import fold, stem, stems

if TYPE_CHECKING:
    from loci.methods.recall.a_mem import AMem

RELATION = "related"
_RARE = 8  # notes that share a name may be so many for it to tie two together
_BATCH = 60  # notes of the same write that a new one is compared with


@dataclass
class _Fresh:
    """A note of this write."""

    place: int  # of its Add in the edits
    turn: Turn
    gloss: Gloss
    stems: list[str]
    vector: Any = None


@dataclass(frozen=True)
class _Like:
    """A note that may be near: how alike, and what it is compared by."""

    alike: float
    id: str
    text: str
    gloss: Gloss
    names: frozenset[str]


class Writing:
    """One call of `revise`: notes made so far, and the edits."""

    def __init__(self, method: AMem, view: StoreView, ports: RecallPorts) -> None:
        self._method, self._view, self._ladder = method, view, ports.ladder
        self._embedder: Embedder | None = ports.embedder if view.has_dense else None
        self._fresh: dict[str, _Fresh] = {}
        self._said: dict[tuple[str, ...], str] = {}  # {who and what, as stems: key}
        self._ties: dict[str, list[tuple[float, str]]] = {}  # of notes linked in this write
        self._margins: dict[str, Gloss] = {}  # that this write gave to known notes
        self._count: dict[str, int] = {}
        self.edits: list[Edit] = []

    def note(self, turn: Turn, before: Sequence[Turn]) -> None:
        """Make a note of a turn, link it, let the linked ones change."""
        same = self._same(turn)
        if same is not None:
            told = Candidate(text=same.text, sources=(turn.id,))
            self.edits.append(Revise(id=same.id, candidate=told, reason="said again"))
            return
        own, rung = self._ladder.run(glossing(turn, before))
        key, method = f"+{len(self._fresh)}", self._method
        names = tuple(dict.fromkeys((fold(turn.name or ""), *entities(turn.content))))
        fresh = _Fresh(place=0, turn=turn, gloss=own, stems=stems(turn.content))
        text = with_gloss(turn.content, own)
        if self._embedder is not None:
            fresh.vector = self._embedder.encode([text])[0]
        near = self._near(fresh, text, names) if method.links else []
        done = Connection()
        if near:
            done, by = self._ladder.run(
                connecting(
                    turn.content, own, near, lambda: self._connected(turn.content, own, near)
                )
            )
            rung = by if by != "rules" else rung
            own = fresh.gloss = replace(own, tags=done.tags)
        fresh.place = len(self.edits)
        self.edits.append(
            Add(
                candidate=Candidate(
                    text=turn.content,
                    kind="note",
                    sources=(turn.id,),
                    subject=_who(turn),
                    entities=tuple(name for name in names if name),
                    valid_from=turn.time,
                    gloss=own,
                    key=key,
                ),
                made_by=rung,
                reason="a new note",
            )
        )
        self._fresh[key] = fresh
        self._said[(_who(turn), *fresh.stems)] = key
        for other in done.links:
            link = Link(source=key, relation=RELATION, target=other.id, weight=other.weight)
            self.edits.append(replace(link, made_by=rung, reason="among its nearest"))
            for a, b in ((key, other.id), (other.id, key)):
                self._ties.setdefault(a, []).append((other.weight, b))
        for id, margin in done.margins.items():
            self._change(id, margin, rung)

    def _same(self, turn: Turn) -> Item | None:
        """Return the note that says the same, word for word, by the same person."""
        wanted, who = stems(turn.content), _who(turn)
        told = [stem for word in keywords(turn.content) for stem in stems(word)] or wanted[:4]
        for id, _ in self._view.search_words(told, 5, "item"):
            item = self._view.item(id)
            if item.kind == "note" and item.subject == who and stems(item.text) == wanted:
                return item
        key = self._said.get((who, *wanted))
        return None if key is None else Item(id=key, text=self._fresh[key].turn.content)

    def _near(self, new: _Fresh, text: str, names: Sequence[str]) -> list[Near]:
        """Return the nearest notes, best first."""
        method = self._method
        likes = sorted(self._likes(new, text), key=lambda like: (-like.alike, like.id))
        likes = likes[: 2 * method.links]
        held = [{stem(w) for w in (*like.gloss.keywords, *keywords(like.text))} for like in likes]
        roots = [stem(word) for word in new.gloss.keywords]
        # A word that few of the nearest have tells more than one that all of them have.
        rarity = {root: 1 / log2(2 + sum(root in words for words in held)) for root in roots}
        total = sum(rarity.values()) or 1.0
        speakers = {fold(name) for name in self._view.speakers()}
        mine = {name for name in names if name and name not in speakers}
        ties = self._links([like.id for like in likes])
        near = []
        for like, words in zip(likes, held, strict=True):
            shared = sum(rarity[root] for root in roots if root in words) / total
            rare = any(self._mentions(name) <= _RARE for name in mine & like.names)
            weight = 0.6 * max(like.alike, 0.0) + 0.25 * shared + 0.15 * rare
            others = sorted((w for w, _ in ties.get(like.id, ())), reverse=True)
            mutual = len(others) < method.links or weight > others[method.links - 1]
            full = len(others) >= method.degree and weight <= others[method.degree - 1]
            near.append(
                Near(
                    id=like.id,
                    text=like.text,
                    gloss=like.gloss,
                    weight=min(weight, 1.0),
                    fits=like.alike >= method.alike
                    and weight >= method.near
                    and (rare or mutual)
                    and not full,
                )
            )
        return sorted(near, key=lambda note: (-note.weight, note.id))[: method.links]

    def _likes(self, new: _Fresh, text: str) -> list[_Like]:
        """Return known notes like the new one, and those of this write."""
        view, most = self._view, 4 * self._method.links
        if self._embedder is not None:
            found = dict(view.search_dense(text, most, "item"))
        else:
            told = [root for word in new.gloss.keywords for root in stems(word)]
            found = dict(view.search_words(told or new.stems[:12], most, "item"))
        likes = []
        for id, item in view.items(list(found)).items():
            if item.kind != "note":
                continue
            if self._embedder is not None:
                alike = found[id]
            else:
                alike = likeness(new.stems, stems(item.text))
            gloss = self._margins.get(id) or item.gloss or Gloss()
            likes.append(_Like(alike, id, item.text, gloss, frozenset(item.entities)))
        for key, fresh in list(self._fresh.items())[-_BATCH:]:
            if self._embedder is not None:
                alike = float(new.vector @ fresh.vector)
            else:
                alike = likeness(new.stems, fresh.stems)
            held = frozenset(entities(fresh.turn.content))
            likes.append(_Like(alike, key, fresh.turn.content, fresh.gloss, held))
        return likes

    def _connected(self, text: str, own: Gloss, near: Sequence[Near]) -> Connection:
        """Return what the rules make of the nearest: links of those that fit, margins that grow."""
        linked = tuple(note for note in near if note.fits)
        margins = {}
        for note in linked[: self._method.evolve]:
            tied = self._tied(note.id, own, text, note.weight)
            margin = grown(note.gloss, note.text, tied)
            if (margin.keywords, margin.tags) != (note.gloss.keywords, note.gloss.tags):
                margins[note.id] = margin
        return Connection(links=linked, tags=own.tags, margins=margins)

    def _tied(
        self, id: str, own: Gloss, text: str, weight: float
    ) -> list[tuple[float, Gloss, str]]:
        """Return (weight, margin, text) of what a note is linked to, the new note first."""
        tied = [(weight, own, text)]
        links = self._links([id]).get(id, [])
        known = self._view.items([other for _, other in links if other not in self._fresh])
        for strength, other in links:
            if other in self._fresh:
                fresh = self._fresh[other]
                tied.append((strength, fresh.gloss, fresh.turn.content))
            elif other in known:
                note = known[other]
                tied.append((strength, note.gloss or Gloss(), note.text))
        return tied

    def _links(self, ids: Sequence[str]) -> dict[str, list[tuple[float, str]]]:
        """Return {id: (weight, the other end)} of stored links and those of this write."""
        ties = {id: list(self._ties.get(id, ())) for id in ids}
        for link in self._view.links([id for id in ids if id not in self._fresh]):
            if link.relation == RELATION:
                for a, b in ((link.source, link.target), (link.target, link.source)):
                    if a in ties:
                        ties[a].append((link.weight, b))
        return ties

    def _change(self, id: str, margin: Gloss, rung: Rung) -> None:
        """Write a margin anew: of a note of this write in its Add, else as an edit."""
        fresh = self._fresh.get(id)
        if fresh is not None:
            fresh.gloss = margin
            edit = self.edits[fresh.place]
            assert isinstance(edit, Add)
            self.edits[fresh.place] = replace(edit, candidate=replace(edit.candidate, gloss=margin))
            return
        self._margins[id] = margin
        told = Candidate(text=self._view.item(id).text, sources=(), gloss=margin)
        self.edits.append(Revise(id=id, candidate=told, made_by=rung, reason="a note joined it"))

    def _mentions(self, name: str) -> int:
        if name not in self._count:
            self._count[name] = len(self._view.search_entities([name], _RARE + 1, "item"))
        return self._count[name]


def _who(turn: Turn) -> str:
    return fold(turn.name or turn.role)
