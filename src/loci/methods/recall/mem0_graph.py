"""Mem0 with a graph: beside the facts, entities and what is between them, each with its time.

P. Chhikara et al., "Mem0: Building Production-Ready AI Agents with Scalable Long-Term Memory",
2025, arXiv:2504.19413, section 2.2 (Mem0^g).

Messages become triples (source, relation, target). Each end is found among the known entities, or
made: names are one entity if they are equal, if one is known to be the other's ("Ada's sister" is
Lena), or if their embeddings are closer than `same`. A triple that contradicts a known one ends it:
it is retired with the time its successor began, never deleted. A question is answered from two
sides, starting from the entities it names and from the triples most like it as a whole:

    graph(turn) = max over its triples of  words z(bm25) + z(cosine) + entities it shares, by hops
    score(hit)  = score of Mem0 + graph * z(graph(turn))

The graph weighs what a fact weighs in Mem0's search: a triple is a fact told again.

Differs from the paper: rules draw triples and settle conflicts unless a model is asked for; triples
point to turns, which the facts' search ranks, and come back themselves when asked for by kind.
Not for: memories of one speaker and few names, where the graph is a second copy of the facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from loci.core.item import Candidate, Edit, Hit, Item, Turn
from loci.core.method import About, Frees, Kind, Need, Param
from loci.methods.recall._entities import Nodes
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.methods.recall.mem0 import Mem0
from loci.store.rows import source_of
from loci.text.consolidate import related
from loci.text.extract import extract
from loci.text.graph import aliases_of, relating
from loci.text.question import Question, scaled, take_apart
from loci.text.stem import fold, stems
from loci.text.tasks import AT_ONCE, BEFORE, SHOWN, made_by, settle

_FACTS = Mem0()
_WHOSE = re.compile(r"(\w+)['’]s (\w+)")


@dataclass(frozen=True, kw_only=True)
class Mem0Graph(Recall):
    """Facts as Mem0 keeps them, and a graph of entities and relations over the same turns."""

    about = About(
        name="mem0_graph",
        kind=Kind.RECALL,
        paper="arXiv:2504.19413",
        idea="triples between entities beside the facts; a conflict ends the older one",
        needs=(Need.EMBEDDER,),
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="rules in place of the paper's model calls; how both searches are joined",
    )
    writes_by_meaning = True

    same: Annotated[
        float, Param(help="cosine from which two names are one", ge=0.0, le=1.0, source="2.2")
    ] = 0.9
    graph: Annotated[float, Param(help="weight of the graph beside the facts", ge=0.0)] = 0.25
    hops: Annotated[int, Param(help="how far relations are followed", ge=0, le=2)] = 1
    decay: Annotated[float, Param(help="what a further hop is worth", ge=0.0, le=1.0)] = 0.5
    pool: Annotated[int, Param(help="candidates of each signal", ge=1)] = 200

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        """Return the facts' edits, then entities, then relations."""
        edits = _FACTS.revise(turns, view, ports)
        if not turns:
            return edits
        before = view.neighbours_of_turn(turns[0].id, BEFORE, 0)
        found: list[Candidate] = []
        rung = "rules"
        step, small = AT_ONCE.get(ports.ladder.rung, len(turns)), ports.ladder.rung == "slm"
        for start in range(0, len(turns), step):
            earlier = [*before, *turns[:start]][-BEFORE:]
            part = relating(turns[start : start + step], earlier, small=small)
            triples, by = ports.ladder.run(part)
            found += triples
            rung = by if by != "rules" else rung
        others = aliases_of(extract(turns, before)) if rung == "rules" else {}
        nodes = Nodes(view, self.same, others)
        relations = [nodes.settled(triple) for triple in found]
        settled = settle(
            ports.ladder,
            relations,
            lambda r: _of_slot(r, view),
            lambda r: _near(r, view),
            mark="relation-",
        )
        return [*edits, *made_by([*settled, *nodes.edits(settled)], rung)]

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return what the facts' search finds, ranked anew by what the graph knows."""
        if self.graph == 0 and query.kinds != ("relation",):
            return _FACTS.find(query, view)
        asked = take_apart(query.text, view.speakers(), view.now())
        others = _other_names(query.text, view)
        asked = replace(asked, names=tuple(dict.fromkeys((*others, *asked.names))))
        dense = view.has_dense and not query.lexical
        relations, scores = self._relations(asked, view, dense)
        if query.kinds == ("relation",):
            best = sorted(relations.values(), key=lambda r: (-scores[r.id], r.id))[: query.limit]
            return [_hit(r, scores[r.id], view) for r in best]
        wider = replace(query, limit=max(4 * query.limit, 50))
        hits = _FACTS.find(wider, view)
        of_turn: dict[str, float] = {}
        for id, relation in relations.items():
            for source in relation.sources:
                of_turn[source] = max(of_turn.get(source, 0.0), scores[id])
        parts = scaled(of_turn, list({*of_turn, *(_turns_of(hits))}), self.graph, floor=0.0)
        ranked = [_lifted(hit, parts) for hit in hits]
        ranked += self._reached(query, parts, hits, view)
        ranked.sort(key=lambda hit: (-hit.score, hit.id))
        if query.kinds is not None and "relation" in query.kinds:
            ranked = [*ranked, *(_hit(r, scores[id], view) for id, r in relations.items())]
            ranked.sort(key=lambda hit: (-hit.score, hit.id))
        return _once(ranked)[: query.limit]

    def _relations(
        self, asked: Question, view: StoreView, dense: bool
    ) -> tuple[Mapping[str, Item], dict[str, float]]:
        """Return the relations a question leads to, and how well each fits."""
        words = dict(view.search_words(asked.stems, self.pool, "item"))
        meaning = dict(view.search_dense(asked.text, self.pool, "item")) if dense else {}
        shared: dict[str, float] = {}
        front, seen = [*asked.names, *asked.about], set[str]()
        for hop in range(self.hops + 1):
            front = [name for name in dict.fromkeys(front) if name not in seen][:8]
            seen.update(front)
            reached = view.items([id for id, _ in view.search_entities(front, self.pool, "item")])
            for item in reached.values():
                if item.kind == "relation":
                    worth = self.decay**hop * len(set(front) & set(item.entities))
                    shared[item.id] = max(shared.get(item.id, 0.0), worth)
            # A hub such as a speaker leads everywhere; only what the question names is followed.
            front = [
                end
                for item in reached.values()
                if item.kind == "relation" and set(asked.names) & set(item.entities)
                for end in (item.subject, item.object)
                if end and end not in asked.about
            ]
        ids = list(dict.fromkeys((*words, *meaning, *shared)))
        found = {i: item for i, item in view.items(ids).items() if item.kind == "relation"}
        signals = [scaled(values, list(found), 1.0) for values in (words, meaning)]
        scores = {
            id: sum(part.get(id, 0.0) for part in signals) + shared.get(id, 0.0) for id in found
        }
        least = min(scores.values(), default=0.0)
        return found, {id: score - least for id, score in scores.items()}

    def _reached(
        self, query: Query, parts: Mapping[str, float], hits: Sequence[Hit], view: StoreView
    ) -> list[Hit]:
        """Return turns that only the graph leads to."""
        if not query.wants("turn") or not hits:
            return []
        have = set(_turns_of(hits))
        new = sorted((id for id in parts if id not in have), key=lambda id: (-parts[id], id))
        floor = min(hit.score for hit in hits)
        return [
            Hit(
                id=turn.id,
                text=turn.content,
                score=floor + max(parts[turn.id], 0.0),
                kind="turn",
                why={"graph": parts[turn.id]},
                sources=(source_of(turn),),
            )
            for turn in view.turns(new[: query.limit]).values()
        ]


def _other_names(text: str, view: StoreView) -> list[str]:
    """Return the names of entities that a question calls otherwise, as in "Ada's sister"."""
    asked = [fold(f"{owner}'s {role}") for owner, role in _WHOSE.findall(text)]
    found = view.items([id for name in asked for id, _ in view.search_entities([name], 20, "item")])
    nodes = [item for item in found.values() if item.kind == "entity"]
    return [item.subject for item in nodes if item.subject]


def _of_slot(relation: Candidate, view: StoreView) -> list[Item]:
    """Return the live relations that the rules compare one with."""
    found = {
        item.id: item
        for predicate in related(relation)
        for item in view.by_slot(relation.subject or "", predicate)
        if item.kind == "relation"
    }
    return list(found.values())


def _near(relation: Candidate, view: StoreView) -> list[Item]:
    """Return the live relations a model is shown: of the same slot, of the same ends, alike."""
    ends = [name for name in (relation.subject, relation.object) if name]
    ids = [item.id for item in _of_slot(relation, view)]
    ids += [id for id, shared in view.search_entities(ends, 4 * SHOWN, "item") if shared > 1]
    ids += [id for id, _ in view.search_words(stems(relation.text), SHOWN, "item")]
    found = view.items(list(dict.fromkeys(ids)))
    return [item for item in found.values() if item.kind == "relation"]


def _turns_of(hits: Sequence[Hit]) -> list[str]:
    return [source.id for hit in hits for source in hit.sources]


def _lifted(hit: Hit, parts: Mapping[str, float]) -> Hit:
    part = max((parts[s.id] for s in hit.sources if s.id in parts), default=0.0)
    return replace(hit, score=hit.score + part, why={**hit.why, "graph": part}) if part else hit


def _once(hits: Sequence[Hit]) -> list[Hit]:
    """Return hits without those all of whose turns stand behind hits before them."""
    shown: set[str] = set()
    kept = []
    for hit in hits:
        turns = {source.id for source in hit.sources}
        if not turns or not turns <= shown:
            kept.append(hit)
            shown |= turns
    return kept


def _hit(relation: Item, score: float, view: StoreView) -> Hit:
    return Hit(
        id=relation.id,
        text=relation.text,
        score=score,
        kind="relation",
        why={"graph": score},
        sources=tuple(source_of(turn) for turn in view.turns(relation.sources).values()),
        valid_from=relation.valid_from,
        valid_to=relation.valid_to,
        recorded_at=relation.recorded_at,
    )
