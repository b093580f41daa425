"""A-MEM: notes that connect themselves, and whose margins change as others join them.

W. Xu et al., "A-MEM: Agentic Memory for LLM Agents", 2025, arXiv:2502.12110.

Every message becomes a note with keywords, tags and a sentence of context, found by all of them. A
new note is linked to the nearest `links` notes that belong with it, and their margins take in what
they have in common. A question finds notes, and through links what lies beside them:

    near(n, m)  = 0.6 cosine + 0.25 shared keywords by rarity + 0.15 a shared rare name
    score(m)    = max( own(m), link * near(n, m) * own(n) + (1 - link) * own(m) )  over links n - m

where own(m) adds up z-scores of words, meaning, names, speaker and time.

Differs from the paper: rules write margins and choose links unless a model is asked for; a link
needs a shared rare name, or that both notes are among each other's nearest; the text of a note
never changes, a margin that grew keeps its history and can be undone; links lead both ways.
Not for: memories that must name one present value, such as an address; nothing is superseded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated  # an embedder's rows

from loci.core.item import Edit, Hit, Item, Turn
from loci.core.method import About, Frees, Kind, Need, Param
from loci.methods.recall._notes import RELATION, Writing
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.store.rows import source_of
from loci.text.question import Question, scaled, take_apart
from loci.text.stem import stems

_SPOKEN = ("user", "assistant")


@dataclass(frozen=True, kw_only=True)
class AMem(Recall):
    """Notes with margins, linked to their nearest; search that follows the links."""

    about = About(
        name="a_mem",
        kind=Kind.RECALL,
        paper="arXiv:2502.12110",
        idea="notes with keywords, tags and context link to their nearest and evolve together",
        needs=(Need.EMBEDDER,),
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="rules in place of the paper's model calls; thresholds; how links score",
    )
    writes_by_meaning = True

    links: Annotated[int, Param(help="nearest notes a new one may link to", ge=0, source="3.2")] = 5
    alike: Annotated[float, Param(help="least cosine of a link", ge=0.0, le=1.0)] = 0.35
    near: Annotated[float, Param(help="least weight of a link", ge=0.0, le=1.0)] = 0.45
    degree: Annotated[int, Param(help="most links of a note", ge=1)] = 10
    evolve: Annotated[int, Param(help="linked notes whose margin may change", ge=0)] = 2
    link: Annotated[float, Param(help="how much a hit lifts its links", ge=0.0, le=1.0)] = 0.7
    speaker: Annotated[float, Param(help="added when who is asked about spoke", ge=0.0)] = 3.0
    pool: Annotated[int, Param(help="candidates of each signal", ge=1)] = 200

    # -- writing -----------------------------------------------------------------------------------

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        """Return a note for every message, its links, and the margins that change with it."""
        spoken = [turn for turn in turns if turn.role in _SPOKEN and stems(turn.content)]
        if not spoken:
            return []
        write = Writing(self, view, ports)
        before = list(view.neighbours_of_turn(turns[0].id, 3, 0))
        for turn in turns:
            if turn in spoken:
                write.note(turn, before[-3:])
            before.append(turn)
        return write.edits

    # -- reading -----------------------------------------------------------------------------------

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return notes and turns that fit the query or hang together with those that do."""
        asked = take_apart(query.text, view.speakers(), view.now())
        dense = view.has_dense and not query.lexical
        units, signals = self._own(asked, view, dense)
        own = {id: sum(part.get(id, 0.0) for part in signals.values()) for id in units}
        least = min(own.values(), default=0.0)
        score = {id: 1.0 + value - least for id, value in own.items()}  # 0: only links lead there
        total = {**score, **self._linked(score, units, view, query.limit)}
        hits: list[Hit] = []
        shown: set[str] = set()
        for id in sorted(units, key=lambda id: (-total.get(id, 0.0), id)):
            why = {name: part[id] for name, part in signals.items() if part.get(id)}
            lift = total.get(id, 0.0) - score.get(id, 0.0)
            hit = units[id].hit(query, total.get(id, 0.0), {**why, **_named("links", lift)})
            if hit is None or (hit.sources and shown.issuperset(s.id for s in hit.sources)):
                continue
            hits.append(hit)
            shown.update(source.id for source in hit.sources)
            if len(hits) == query.limit:
                break
        return hits

    def _own(
        self, asked: Question, view: StoreView, dense: bool
    ) -> tuple[dict[str, _Unit], dict[str, dict[str, float]]]:
        """Return what may be shown by id (a turn with its note, or a note alone), and signals."""
        found = {
            "words": [*view.search_words(asked.stems, self.pool, "item")],
            "names": [*view.search_entities(asked.names, self.pool, "item")],
        }
        raw = [*view.search_words(asked.stems, self.pool, "turn", context=0.5)]
        meant: list[tuple[str, float]] = []
        if dense:
            found["meaning"] = [*view.search_dense(asked.text, self.pool, "item")]
            meant = [*view.search_dense(asked.text, self.pool, "turn")]
        items = view.items(list({id for pairs in found.values() for id, _ in pairs}))
        notes = {id: item for id, item in items.items() if item.kind == "note"}
        home = {id: note.sources[0] if note.sources else id for id, note in notes.items()}
        values: dict[str, dict[str, float]] = {"words": {}, "turn": {}, "meaning": {}, "names": {}}
        for name, pairs in found.items():
            for id, value in pairs:
                if id in home:
                    at = values[name]
                    at[home[id]] = max(at.get(home[id], value), value)
        values["turn"] = dict(raw)
        for id, value in meant:  # the text alone and the text with its margin: the better counts
            values["meaning"][id] = max(values["meaning"].get(id, value), value)
        turns = view.turns([id for part in values.values() for id in part])
        units = {id: _Unit(turn=turn) for id, turn in turns.items()}
        for id, note in notes.items():
            unit = units.setdefault(home[id], _Unit())
            unit.note = unit.note or note
        when = {id for a, b in asked.spans for id in view.search_time(a, b, self.pool, "turn")}
        ids = list(units)
        return units, {
            "words": scaled(values["words"], ids, 0.7),
            "turn": scaled(values["turn"], ids, 0.7),
            "meaning": scaled(values["meaning"], ids, 1.5),
            "names": {id: 0.5 * min(n, 2.0) for id, n in values["names"].items() if id in units},
            "speaker": {id: self.speaker for id, u in units.items() if u.name in asked.speakers},
            "time": {id: 2.0 for id in ids if id in when},
        }

    def _linked(
        self, score: Mapping[str, float], units: dict[str, _Unit], view: StoreView, limit: int
    ) -> dict[str, float]:
        """Return the scores that the links of the best lift, and add what only links lead to."""
        if self.link == 0:
            return {}
        best = sorted(score, key=lambda id: (-score[id], id))[: 2 * limit]
        known = {unit.note.id: id for id, unit in units.items() if unit.note is not None}
        missing = [id for id in best if units[id].note is None]
        for id in missing:
            for item in view.items_of_turn(id):
                if item.kind == "note":
                    units[id].note = item
                    known[item.id] = id
        starts = {note.id: id for id in best if (note := units[id].note) is not None}
        ties: dict[str, list[tuple[float, str]]] = {}
        for link in view.links(list(starts)):
            if link.relation == RELATION:
                ties.setdefault(link.source, []).append((link.weight, link.target))
                ties.setdefault(link.target, []).append((link.weight, link.source))
        lifted: dict[str, float] = {}
        new = [m for n in starts for _, m in ties.get(n, ()) if m not in known]
        for id, item in view.items(new).items():
            at = item.sources[0] if item.sources else id
            units.setdefault(at, _Unit()).note = item
            known[id] = at
        for tied, start in starts.items():
            strongest = sorted(ties.get(tied, ()), reverse=True)[: self.degree]
            for weight, other in strongest:
                at = known[other]
                now = score.get(at, 0.0)
                lift = self.link * weight * score[start] + (1 - self.link) * now
                lifted[at] = max(lifted.get(at, now), lift)
        turns = view.turns([id for id, unit in units.items() if unit.turn is None])
        for id, turn in turns.items():
            units[id].turn = turn
        return lifted


class _Unit:
    """What is shown as one: a turn, its note, or both."""

    def __init__(self, turn: Turn | None = None, note: Item | None = None) -> None:
        self.turn, self.note = turn, note

    @property
    def name(self) -> str | None:
        """Who spoke."""
        return None if self.turn is None else self.turn.name

    def hit(self, query: Query, score: float, why: Mapping[str, float]) -> Hit | None:
        """Return it as a hit of a kind that is asked for, the note first."""
        sources = () if self.turn is None else (source_of(self.turn),)
        if self.note is not None and query.wants("note"):
            note = self.note
            return Hit(
                id=note.id,
                text=note.text,
                score=score,
                kind="note",
                why=why,
                sources=sources,
                valid_from=note.valid_from,
                recorded_at=note.recorded_at,
            )
        if self.turn is not None and query.wants("turn"):
            return Hit(
                id=self.turn.id,
                text=self.turn.content,
                score=score,
                kind="turn",
                why=why,
                sources=sources,
            )
        return None


def _named(name: str, value: float) -> dict[str, float]:
    return {name: value} if value > 0 else {}
