"""Mem0: extract short facts from each message, reconcile them with what is known, search both.

P. Chhikara et al., "Mem0: Building Production-Ready AI Agents with Scalable Long-Term Memory",
2025, arXiv:2504.19413.

For every fact w drawn from new messages, the nearest memories are fetched and one operation is
chosen: ADD, UPDATE, DELETE or NOOP. What is searched for an answer is the fact store.

Differs from the paper: rules draw and reconcile the facts, so no model is needed; DELETE retires
and keeps the old fact with the time at which it ended; raw turns stay searchable beside the facts,
because facts never cover all that was said. A turn t scores

    score(t) = words z(bm25) + meaning z(cosine + context of its neighbours) + facts z(best fact)
             + speaker [who is asked about spoke] + time [said when asked] + entities [same names]

Weights are reasoned: meaning weighs a little more than words because names of speakers, which fool
embeddings, are taken out of the question first; they come back as the speaker signal.
Not for: agents' tool traces, or languages other than English.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Annotated

from loci.core.item import Candidate, Edit, Hit, Item, Source, Turn
from loci.core.method import About, Frees, Kind, Need, Param
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.text.consolidate import related
from loci.text.entities import entities
from loci.text.slots import asked_for
from loci.text.stem import fold, stems, tokens
from loci.text.tasks import BEFORE, SHOWN, draw, made_by, settle
from loci.text.times import resolve

_FAVOURITE = re.compile(r"favou?rite (\w+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Mem0(Recall):
    """Facts by rules, supersede and retire, and a search over facts and turns together."""

    about = About(
        name="mem0",
        kind=Kind.RECALL,
        paper="arXiv:2504.19413",
        idea="extract short facts, reconcile each with its nearest memories, search both",
        needs=(Need.EMBEDDER,),
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="rules in place of the paper's model calls; weights of the search",
    )

    words: Annotated[float, Param(help="weight of shared words", ge=0.0)] = 1.0
    meaning: Annotated[float, Param(help="weight of the embedding's cosine", ge=0.0)] = 1.5
    facts: Annotated[float, Param(help="weight of a fact drawn from the turn", ge=0.0)] = 0.25
    speaker: Annotated[float, Param(help="added when who is asked about spoke", ge=0.0)] = 3.0
    time: Annotated[float, Param(help="added when said at the time asked about", ge=0.0)] = 2.0
    entities: Annotated[float, Param(help="added for each name shared", ge=0.0)] = 0.5
    slot: Annotated[float, Param(help="added to facts of the slot asked for", ge=0.0)] = 2.0
    context: Annotated[float, Param(help="weight of the turn before", ge=0.0, le=1.0)] = 0.5
    pool: Annotated[int, Param(help="candidates of each signal", ge=1)] = 200

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        """Return the edits that the facts of these turns ask for; rules load no model."""
        if not turns:
            return []
        before = view.neighbours_of_turn(turns[0].id, BEFORE, 0)
        facts, rung = draw(ports.ladder, turns, before)

        def neighbours(fact: Candidate) -> list[Item]:
            found = {
                item.id: item
                for predicate in related(fact)
                for item in view.by_slot(fact.subject or "", predicate)
                if item.kind == "fact"
            }
            return list(found.values())

        def nearest(fact: Candidate) -> list[Item]:
            ids = [item.id for item in neighbours(fact)]
            if view.has_dense:
                ids += [id for id, _ in view.search_dense(fact.text, SHOWN, "item")]
            ids += [id for id, _ in view.search_words(stems(fact.text), SHOWN, "item")]
            found = view.items(list(dict.fromkeys(ids)))
            return [item for item in found.values() if item.kind == "fact"]

        return made_by(settle(ports.ladder, facts, neighbours, nearest), rung)

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return facts and turns that fit the query, best first, no turn twice."""
        asked = _Asked(query.text, view)
        dense = view.has_dense and not query.lexical and self.meaning > 0
        turns, signals = self._turns(asked, view, dense)
        items, item_signals = self._items(asked, view, dense, query)
        linked: dict[str, float] = {}
        for id, item in items.items():
            fit = sum(s.get(id, 0.0) for s in item_signals.values())
            for source in item.sources:
                linked[source] = max(linked.get(source, 0.0), fit)
        signals["facts"] = _scaled(linked, turns, self.facts, floor=0.0)
        scores = {id: sum(s.get(id, 0.0) for s in signals.values()) for id in turns}
        of_turn: dict[str, list[str]] = {}
        entries: list[tuple[float, str, str]] = [(scores[id], "turn", id) for id in turns]
        parts: dict[str, dict[str, float]] = {}  # of the scores of items
        for id, item in items.items():
            best = max((s for s in item.sources if s in scores), key=scores.__getitem__, default="")
            own = sum(s.get(id, 0.0) for s in item_signals.values())
            told = scores.get(best, 0.0) + self.facts * max(own, 0.0)
            parts[id] = {name: s[id] for name, s in item_signals.items() if s.get(id)}
            if told >= own:
                parts[id] = {name: s[best] for name, s in signals.items() if s.get(best)}
                parts[id] |= {"fact": self.facts * own} if own > 0 else {}
            entries.append((max(told, own), "item", id))
            for source in item.sources:
                of_turn.setdefault(source, []).append(id)
        hits: list[Hit] = []
        shown: set[str] = set()
        for score, layer, id in sorted(entries, key=lambda e: (-e[0], e[1], e[2])):
            if len(hits) == query.limit:
                break
            if layer == "turn":
                if id in shown or not query.wants("turn"):
                    continue
                turn = turns[id]
                why = {name: s[id] for name, s in signals.items() if s.get(id)}
                hits.append(_turn_hit(turn, score, why))
                shown.add(id)
                continue
            item = items[id]
            if not query.wants(item.kind) or (item.sources and shown.issuperset(item.sources)):
                continue
            hits.append(_item_hit(item, score, parts[id], view, scores))
            shown.update(item.sources)
        return hits

    def _turns(
        self, asked: _Asked, view: StoreView, dense: bool
    ) -> tuple[Mapping[str, Turn], dict[str, dict[str, float]]]:
        """Return candidate turns and {signal: {turn: weighted part of the score}}."""
        word_hits = dict(view.search_words(asked.stems, self.pool, "turn", context=self.context))
        mean_hits = dict(view.search_dense(asked.text, self.pool, "turn")) if dense else {}
        name_hits = dict(view.search_entities(asked.names, self.pool, "turn"))
        time_hits = {id for a, b in asked.spans for id in view.search_time(a, b, self.pool, "turn")}
        turns = view.turns(list({**word_hits, **mean_hits, **name_hits}))
        signals = {
            "words": _scaled(word_hits, turns, self.words),
            "meaning": _scaled(self._around(mean_hits, turns), turns, self.meaning),
            "speaker": {i: self.speaker for i, t in turns.items() if t.name in asked.speakers},
            "entities": {i: self.entities * min(n, 2.0) for i, n in name_hits.items()},
            "time": {i: self.time for i in turns if i in time_hits},
        }
        return turns, signals

    def _items(
        self, asked: _Asked, view: StoreView, dense: bool, query: Query
    ) -> tuple[Mapping[str, Item], dict[str, dict[str, float]]]:
        """Return candidate facts and the parts of their own score."""
        if query.kinds == ("turn",):
            return {}, {}
        word_hits = dict(view.search_words(asked.stems, self.pool, "item"))
        mean_hits = dict(view.search_dense(asked.text, self.pool, "item")) if dense else {}
        slots = asked.slots(view)
        found = {**view.items(list({**word_hits, **mean_hits})), **{i.id: i for i in slots}}
        items = {id: item for id, item in found.items() if item.kind in ("fact", "note")}
        return items, {
            "slot": {item.id: self.slot for item in slots if item.id in items},
            "words": _scaled(word_hits, items, self.words),
            "meaning": _scaled(mean_hits, items, self.meaning),
            "speaker": {i: self.speaker for i, m in items.items() if asked.is_about(m)},
        }

    def _around(self, cosines: Mapping[str, float], turns: Mapping[str, Turn]) -> dict[str, float]:
        """Return cosines with part of those of the turn before and, less, after."""
        at = {(t.session, t.position): cosines[i] for i, t in turns.items() if i in cosines}
        floor = min(cosines.values(), default=0.0)
        share = 0.6 * self.context
        return {
            id: cosine
            + share * at.get((turns[id].session, turns[id].position - 1), floor)
            + share / 2 * at.get((turns[id].session, turns[id].position + 1), floor)
            for id, cosine in cosines.items()
        }


class _Asked:
    """A question taken apart: stems and text without the speakers' names, names, times."""

    def __init__(self, text: str, view: StoreView) -> None:
        words = set(tokens(text))
        first = {name: tokens(name)[0] for name in view.speakers() if tokens(name)}
        self.speakers = [name for name, word in first.items() if word in words]
        drop = {word for name in self.speakers for word in tokens(name)}
        self.text = text
        for name in self.speakers:
            self.text = re.sub(rf"\b{re.escape(name)}(?:['’]s)?\b", "", self.text, flags=re.I)
        self.text = " ".join(self.text.split())
        self.stems = stems(" ".join(w for w in tokens(text) if w not in drop)) or stems(text)
        self.names = [n for n in entities(text) if not set(n.split()) & drop]
        if len(self.speakers) != 1:
            self.speakers = []
        self.about = [fold(name) for name in self.speakers]
        self.spans = [(s.start, s.end) for s in resolve(text, view.now()) if s.relation != "for"]

    def slots(self, view: StoreView) -> list[Item]:
        """Return facts of the slots whose cue words the question has."""
        who = self.about or [fold(name) for name in view.speakers()[:2]]
        names = [name for name, _ in asked_for(self.stems)]
        names += [f"favourite:{m[1].lower()}" for m in _FAVOURITE.finditer(self.text)]
        return [item for name in who for slot in names for item in view.by_slot(name, slot)]

    def is_about(self, item: Item) -> bool:
        """Whether the fact is about the one speaker asked about."""
        return item.subject is not None and item.subject.partition("'s ")[0] in self.about


def _scaled(
    values: Mapping[str, float],
    ids: Mapping[str, object],
    weight: float,
    floor: float | None = None,
) -> dict[str, float]:
    """Return weight * z-score over all candidates; who lacks the signal gets its least value."""
    if not values or not ids:
        return {}
    least = min(values.values()) if floor is None else floor
    full = [values.get(id, least) for id in ids]
    middle, spread = fmean(full), pstdev(full) or 1.0
    return {id: weight * (v - middle) / spread for id, v in zip(ids, full, strict=True)}


def _source(turn: Turn) -> Source:
    return Source(
        id=turn.id,
        content=turn.content,
        time=turn.time,
        name=turn.name,
        role=turn.role,
        session=turn.session,
        metadata=turn.metadata,
    )


def _turn_hit(turn: Turn, score: float, why: Mapping[str, float]) -> Hit:
    return Hit(
        id=turn.id, text=turn.content, score=score, kind="turn", why=why, sources=(_source(turn),)
    )


def _item_hit(
    item: Item, score: float, why: Mapping[str, float], view: StoreView, scores: Mapping[str, float]
) -> Hit:
    told = view.turns(item.sources)
    best = sorted(told, key=lambda id: -scores.get(id, 0.0))
    return Hit(
        id=item.id,
        text=item.text,
        score=score,
        kind=item.kind,
        why=why,
        sources=tuple(_source(told[id]) for id in best),
        valid_from=item.valid_from,
        valid_to=item.valid_to,
        recorded_at=item.recorded_at,
    )
