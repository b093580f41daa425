"""Small things the tests of the store share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loci.core.item import Add, Candidate, Edit, Hit, Retire, Turn
from loci.core.method import About, Kind
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.store.rows import source_of
from loci.text.stem import stems

_LIVES = re.compile(r"I (?:live|moved) (?:in|to) (\w+)")
_ALLERGIC = re.compile(r"I'm allergic to (\w+)")


@dataclass(frozen=True, kw_only=True)
class Plain(Recall):
    """Two patterns of facts, and a search that adds up the words' scores."""

    about = About(name="plain", kind=Kind.RECALL, paper="none", idea="for tests")

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        edits: list[Edit] = []
        for turn in turns:
            who = (turn.name or "user").lower()
            for match in _LIVES.finditer(turn.content):
                fact = self.fact(turn, who, "lives in", match[1])
                known = view.by_slot(who, "lives in")
                if known:
                    edits.append(Retire(id=known[-1].id, at=turn.time, superseded_by=fact))
                else:
                    edits.append(Add(candidate=fact))
            for match in _ALLERGIC.finditer(turn.content):
                edits.append(Add(candidate=self.fact(turn, who, "is allergic to", match[1])))
        return edits

    def fact(self, turn: Turn, who: str, predicate: str, thing: str) -> Candidate:
        return Candidate(
            text=f"{who.title()} {predicate} {thing}",
            sources=(turn.id,),
            subject=who,
            predicate=predicate,
            object=thing.lower(),
            entities=(who, thing.lower()),
            valid_from=turn.time,
        )

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        score: dict[str, float] = {}
        for kind in ("item", "turn"):
            found = [*view.search_words(stems(query.text), 100, kind)]
            if view.has_dense and not query.lexical:
                found += view.search_dense(query.text, 100, kind)
            for id, part in found:
                score[id] = score.get(id, 0.0) + part + (10.0 if kind == "item" else 0.0)
        hits: list[Hit] = []
        items, turns = view.items(list(score)), view.turns(list(score))
        for id in sorted(score, key=lambda id: -score[id]):
            if id in items and query.wants(items[id].kind):
                item = items[id]
                hits.append(Hit(id=id, text=item.text, score=score[id], kind=item.kind))
            elif id in turns and query.wants("turn"):
                turn, source = turns[id], (source_of(turns[id]),)
                hit = Hit(id=id, text=turn.content, score=score[id], kind="turn", sources=source)
                hits.append(hit)
        return hits[: query.limit]


class Hashing:
    """An embedder of words: texts that share words point the same way."""

    def __init__(self, width: int = 32, fingerprint: str = "hashing") -> None:
        self.width, self.fingerprint, self.calls = width, fingerprint, 0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        made = np.zeros((len(texts), self.width), np.float32)
        for row, text in enumerate(texts):
            for stem in stems(text):
                digest = hashlib.blake2b(stem.encode(), digest_size=8).digest()
                made[row, int.from_bytes(digest, "little") % self.width] += 1.0
        return made + 1e-6
