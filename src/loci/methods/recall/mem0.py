"""Mem0: extract short facts from each message, reconcile them with what is known, search both.

P. Chhikara et al., "Mem0: Building Production-Ready AI Agents with Scalable Long-Term Memory",
2025, arXiv:2504.19413.

For every fact w drawn from new messages, the nearest memories are fetched and one operation is
chosen: ADD, UPDATE, DELETE or NOOP. What is searched for an answer is the fact store.

Differs from the paper: rules draw and reconcile the facts, so no model is needed; DELETE retires
and keeps the old fact with the time at which it ended; raw turns stay searchable beside the facts,
because facts never cover all that was said. A turn t scores

    score(t) = words z(bm25 + context of the turn before) + meaning z(cosine + part of neighbours')
             + around z(bm25 of four turns before and after) + facts z(best fact drawn from t)
             + speaker [who is asked about spoke] + time [said when asked, or "when" asked and a
             time named] + entities [same names] + tells [share of six words that ask nothing]

Names of speakers fool embeddings, so they are taken out of the question first; they come back as
the speaker signal. Weights were fitted on chats that Loci draws itself (`testing.chats`), never on
a benchmark's data: the values are those of one whole round of a search over ten chats. That fit
came before two changes of the scaling (z-scores among at least 200, the slot added whole) and did
not run to its end; `loci bench run fit_recall` makes it anew. `slot` is reasoned; `context` stays
at 0.5, where the chats show no difference and a turn still outranks the one after it.
Not for: agents' tool traces, or languages other than English.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from loci.core.item import Edit, Hit, Item, Source, Turn
from loci.core.method import About, Frees, Kind, Need, Param
from loci.methods.recall import _signals
from loci.methods.recall._near import nearest_in, neighbours_in
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.text.question import Question, names_time, scaled, take_apart
from loci.text.tasks import BEFORE, draw, made_by, settle

_FITTED = "fitted on chats drawn by Loci"
_USUAL = 200  # candidates, at least, among which a z-score is taken
_scaled = partial(scaled, among=_USUAL)


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
    meaning: Annotated[
        float, Param(help="weight of the embedding's cosine", ge=0.0, source=_FITTED)
    ] = 1.125
    facts: Annotated[
        float, Param(help="weight of a fact drawn from the turn", ge=0.0, source=_FITTED)
    ] = 0.094
    speaker: Annotated[
        float, Param(help="added when who is asked about spoke", ge=0.0, source=_FITTED)
    ] = 6.0
    time: Annotated[
        float, Param(help="added when said at the time asked about", ge=0.0, source=_FITTED)
    ] = 4.0
    entities: Annotated[float, Param(help="added for each name shared", ge=0.0)] = 0.0
    slot: Annotated[float, Param(help="added to facts of the slot asked for", ge=0.0)] = 2.0
    context: Annotated[float, Param(help="weight of the turn before", ge=0.0, le=1.0)] = 0.5
    around: Annotated[
        float, Param(help="weight of words of turns around it", ge=0.0, source=_FITTED)
    ] = 0.5
    tells: Annotated[
        float, Param(help="added to turns that tell more than they ask", ge=0.0, source=_FITTED)
    ] = 4.0
    pool: Annotated[int, Param(help="candidates of each signal", ge=1)] = 200

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        """Return the edits that the facts of these turns ask for; rules load no model."""
        if not turns:
            return []
        before = view.neighbours_of_turn(turns[0].id, BEFORE, 0)
        facts, rung = draw(ports.ladder, turns, before)
        edits = settle(ports.ladder, facts, neighbours_in(view), nearest_in(view))
        return made_by(edits, rung)

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return facts and turns that fit the query, best first, no turn twice."""
        asked = take_apart(query.text, view.speakers(), view.now())
        dense = view.has_dense and not query.lexical and self.meaning > 0
        items, item_signals, fitting = self._items(asked, view, dense, query)
        behind = [source for item in items.values() for source in item.sources]
        turns, signals = self._turns(asked, view, dense, behind)
        linked: dict[str, float] = {}
        for id, item in items.items():
            fit = sum(s.get(id, 0.0) for s in item_signals.values())
            for source in item.sources:
                linked[source] = max(linked.get(source, 0.0), fit)
        signals["facts"] = _scaled(linked, list(turns), self.facts, floor=0.0)
        scores = {id: sum(s.get(id, 0.0) for s in signals.values()) for id in turns}
        # Equal scores: what was said last comes first, whatever ids look like.
        said = {id: (turn.time.timestamp(), turn.position) for id, turn in turns.items()}
        entries = [(scores[id], said[id], "turn", id) for id in turns]
        parts: dict[str, dict[str, float]] = {}  # of the scores of items
        for id, item in items.items():
            best = max((s for s in item.sources if s in scores), key=scores.__getitem__, default="")
            own = sum(s.get(id, 0.0) for s in item_signals.values())
            told = scores.get(best, 0.0) + self.facts * max(own, 0.0)
            parts[id] = {name: s[id] for name, s in item_signals.items() if s.get(id)}
            if told >= own:
                parts[id] = {name: s[best] for name, s in signals.items() if s.get(best)}
                parts[id] |= {"fact": self.facts * own} if own > 0 else {}
            asked_for = self.slot if id in fitting else 0.0
            parts[id] |= {"slot": asked_for} if asked_for else {}
            entries.append((max(told, own) + asked_for, said.get(best, (0.0, 0)), "item", id))
        hits: list[Hit] = []
        shown: set[str] = set()
        entries.sort(key=lambda e: (e[2], e[3]))
        entries.sort(key=lambda e: (round(e[0], 9), e[1]), reverse=True)
        for score, _, layer, id in entries:
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
        self, asked: Question, view: StoreView, dense: bool, behind: Sequence[str]
    ) -> tuple[Mapping[str, Turn], dict[str, dict[str, float]]]:
        """Return candidate turns and {signal: {turn: weighted part of the score}}.

        Turns behind candidate facts are candidates too, so that every fact is ranked with its turn.
        """
        word_hits = dict(view.search_words(asked.stems, self.pool, "turn", context=self.context))
        mean_hits = dict(view.search_dense(asked.text, self.pool, "turn")) if dense else {}
        name_hits = dict(view.search_entities(asked.names, self.pool, "turn"))
        time_hits = {id for a, b in asked.spans for id in view.search_time(a, b, self.pool, "turn")}
        turns = view.turns(list(dict.fromkeys((*word_hits, *mean_hits, *name_hits, *behind))))
        ids = list(turns)
        if asked.when:
            time_hits |= {id for id, turn in turns.items() if names_time(turn.content)}
        signals = {
            "words": _scaled(word_hits, ids, self.words, floor=0.0),
            "meaning": _scaled(_signals.with_neighbours(mean_hits, turns), ids, self.meaning),
            "around": _scaled(_signals.around(word_hits, turns), ids, self.around, floor=0.0),
            "speaker": {i: self.speaker for i, t in turns.items() if _signals.is_by(t, asked)},
            "entities": {i: self.entities * min(n, 2.0) for i, n in name_hits.items()},
            "time": {i: self.time for i in ids if i in time_hits},
            "tells": {i: self.tells * _signals.tells(t.content) for i, t in turns.items()},
        }
        return turns, signals

    def _items(
        self, asked: Question, view: StoreView, dense: bool, query: Query
    ) -> tuple[Mapping[str, Item], dict[str, dict[str, float]], set[str]]:
        """Return candidate facts, parts of their own score, and which fit the slot asked for."""
        if query.kinds == ("turn",):
            return {}, {}, set()
        word_hits = dict(view.search_words(asked.stems, self.pool, "item"))
        mean_hits = dict(view.search_dense(asked.text, self.pool, "item")) if dense else {}
        slots = _signals.of_slot(asked, view)
        found = {**view.items(list({**word_hits, **mean_hits})), **{i.id: i for i in slots}}
        items = {id: item for id, item in found.items() if item.kind in ("fact", "note")}
        signals = {
            "words": _scaled(word_hits, list(items), self.words, floor=0.0),
            "meaning": _scaled(mean_hits, list(items), self.meaning),
            "speaker": {i: self.speaker for i, m in items.items() if _signals.is_about(m, asked)},
        }
        return items, signals, {item.id for item in slots if item.id in items}


def _source(turn: Turn) -> Source:
    return Source(
        id=turn.id,
        content=turn.content,
        time=turn.time,
        name=turn.name,
        role=turn.role,
        session=turn.session,
        metadata=turn.metadata,
        position=turn.position,
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
