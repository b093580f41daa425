"""What recall methods are tested with: a store view in memory that is simple enough to trust.

`DictView` holds turns and items in dictionaries and searches them in full. It is the oracle for
real stores: same results, no SQL. Edits are applied as `methods.recall.base` describes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from loci.core.item import Add, Candidate, Edit, Item, Link, Retire, Revise, Turn
from loci.core.ports import Array, Embedder
from loci.methods.recall.base import Layer, Query, Recall, RecallPorts
from loci.store.rows import item_words
from loci.text.ladder import Ladder
from loci.text.stem import stems

_K1, _B = 1.2, 0.75  # BM25 as SQLite's FTS5 computes it
_KEY = 2  # words of a row that say whose it is and of which session; they count as length
_PART = re.compile(r"[^\W_]+")  # "don't" is two words to full text


class _Words:
    """An inverted index of one layer, scored as the stores score it."""

    def __init__(self) -> None:
        self.postings: dict[str, dict[str, int]] = defaultdict(dict)
        self.lengths: dict[str, int] = {}
        self.words: dict[str, Counter[str]] = {}

    def add(self, id: str, words: Sequence[str]) -> None:
        self.words[id] = Counter(words)
        for word, count in self.words[id].items():
            self.postings[word][id] = count
        self.lengths[id] = _KEY + sum(len(_PART.findall(word)) for word in words)

    def remove(self, id: str) -> None:
        del self.lengths[id]
        for word in self.words.pop(id):
            del self.postings[word][id]

    def search(self, words: Sequence[str], allowed: Callable[[str], bool]) -> dict[str, float]:
        if not self.lengths:
            return {}
        mean = sum(self.lengths.values()) / len(self.lengths) or 1.0
        scores: dict[str, float] = defaultdict(float)
        for word in dict.fromkeys(words):
            docs = self.postings.get(word, {})
            idf = math.log((len(self.lengths) - len(docs) + 0.5) / (len(docs) + 0.5))
            idf = max(idf, 1e-6)
            for id, count in docs.items():
                if allowed(id):
                    norm = _K1 * (1 - _B + _B * self.lengths[id] / mean)
                    scores[id] += idf * count * (_K1 + 1) / (count + norm)
        return scores


class DictView:
    """Turns and items of one scope in memory; a `StoreView` that can also be written.

    Args:
        embedder: gives meaning; without one `has_dense` is False.
        now: the time of asking; by default the time of the newest turn.
    """

    def __init__(self, embedder: Embedder | None = None, now: datetime | None = None) -> None:
        self.embedder = embedder
        self._now = now
        self._turns: dict[str, Turn] = {}
        self._items: dict[str, Item] = {}
        self._order: dict[str, list[str]] = defaultdict(list)
        self._where: dict[str, tuple[str, int]] = {}
        self._words: dict[str, _Words] = {"turn": _Words(), "item": _Words()}
        self._names: dict[str, frozenset[str]] = {}
        self._came: dict[str, int] = {}  # in which order ids were stored
        self._text: dict[str, str] = {}  # of turns, as stems with a space on either side
        self._vectors: dict[str, tuple[list[str], list[Array]]] = {
            "turn": ([], []),
            "item": ([], []),
        }
        self._stacked: dict[str, Array] = {}
        self._waiting: dict[str, list[tuple[str, str]]] = {"turn": [], "item": []}
        self._asked: dict[str, Array] = {}
        self._ids = itertools.count(1)
        self._links: dict[tuple[str, str, str], Link] = {}
        self.superseded: dict[str, str] = {}

    # -- writing -------------------------------------------------------------------------------

    def add_turns(self, turns: Iterable[Turn]) -> None:
        """Store turns as they were said."""
        for turn in turns:
            session = self._order[turn.session or ""]
            self._turns[turn.id] = turn
            self._came.setdefault(turn.id, len(self._came))
            self._where[turn.id] = (turn.session or "", len(session))
            session.append(turn.id)
            self._words["turn"].add(turn.id, stems(turn.content))
            self._text[turn.id] = f" {' '.join(stems(turn.content))} "
            self._waiting["turn"].append((turn.id, turn.content))

    def remember(
        self, turns: Sequence[Turn], method: Recall, ladder: Ladder | None = None
    ) -> list[Edit]:
        """Store turns, let the method revise, apply its edits and return them."""
        self.add_turns(turns)
        ports = RecallPorts(embedder=self.embedder, ladder=ladder or Ladder())
        edits = method.revise(turns, self, ports)
        self.apply(edits)
        return edits

    def apply(self, edits: Iterable[Edit]) -> None:
        """Carry out edits in order."""
        made: dict[str, str] = {}  # {key of a candidate: id}
        for edit in edits:
            if isinstance(edit, Add):
                made[edit.candidate.key] = self._new(edit.candidate, edit.made_by)
            elif isinstance(edit, Retire):
                old = self._items[made.get(edit.id, edit.id)]
                self._put(replace(old, retired_at=self.now(), valid_to=edit.at or self.now()))
                if edit.superseded_by is not None:
                    new_id = self._new(edit.superseded_by, edit.made_by)
                    self.superseded[old.id] = made[edit.superseded_by.key] = new_id
            elif isinstance(edit, Revise):
                old, new = self._items[made.get(edit.id, edit.id)], edit.candidate
                changed = new.text != old.text
                sources = tuple(dict.fromkeys((*old.sources, *new.sources)))
                self._put(
                    replace(
                        old,
                        text=new.text,
                        object=new.object or old.object,
                        entities=tuple(dict.fromkeys((*old.entities, *new.entities))),
                        sources=sources,
                        valid_from=old.valid_from if not changed else new.valid_from,
                        valid_to=new.valid_to,
                        gloss=new.gloss if changed else new.gloss or old.gloss,
                        version=old.version + (changed or new.gloss not in (None, old.gloss)),
                    )
                )
            else:
                assert isinstance(edit, Link)
                source, target = (made.get(id, id) for id in (edit.source, edit.target))
                assert source in self._items and target in self._items and source != target
                link = replace(edit, source=source, target=target)
                self._links.setdefault((source, edit.relation, target), link)

    def _new(self, candidate: Candidate, made_by: str) -> str:
        id = f"item-{next(self._ids)}"
        c = candidate
        self._put(
            Item(
                id=id,
                text=c.text,
                kind=c.kind,
                subject=c.subject,
                predicate=c.predicate,
                object=c.object,
                entities=c.entities,
                sources=c.sources,
                valid_from=c.valid_from,
                valid_to=c.valid_to,
                recorded_at=self.now(),
                made_by=made_by,
                gloss=c.gloss,
            )
        )
        return id

    def _put(self, item: Item) -> None:
        if item.id in self._items:
            self._words["item"].remove(item.id)
        self._items[item.id] = item
        self._came.setdefault(item.id, len(self._came))
        self._words["item"].add(item.id, item_words(item).split())
        self._names[item.id] = frozenset(item.entities)
        self._waiting["item"].append((item.id, item.indexed))

    # -- reading -------------------------------------------------------------------------------

    @property
    def has_dense(self) -> bool:
        """Whether an embedder was given."""
        return self.embedder is not None

    def now(self) -> datetime:
        """Return the time of asking."""
        if self._now is not None:
            return self._now
        return max((t.time for t in self._turns.values()), default=datetime(2026, 1, 1, tzinfo=UTC))

    def _best(self, scores: Mapping[str, float], limit: int) -> list[tuple[str, float]]:
        """Return the highest, the earlier stored first where two are equal."""
        found = sorted(scores.items(), key=lambda pair: (-pair[1], self._came[pair[0]]))
        return found[:limit]

    def _allowed(self, id: str) -> bool:
        return id in self._turns or self._items[id].is_live

    def search_words(
        self, stems: Sequence[str], limit: int, kind: Layer, *, context: float = 0.0
    ) -> list[tuple[str, float]]:
        """Return (id, BM25), best first."""
        found = self._words[kind].search(stems, self._allowed)
        if kind == "turn" and context > 0:
            own = dict(self._best(found, 2 * limit))
            found = dict(own)
            for id, score in own.items():
                session, place = self._where[id]
                for after in self._order[session][place + 1 : place + 2]:
                    found[after] = found.get(after, 0.0) + context * score
        return self._best(found, limit)

    def search_dense(self, text: str, limit: int, kind: Layer) -> list[tuple[str, float]]:
        """Return (id, cosine), best first."""
        assert self.embedder is not None
        ids, rows = self._vectors[kind]
        waiting = self._waiting[kind]
        if waiting:
            known = dict(zip(ids, rows, strict=True))
            new = self.embedder.encode([text for _, text in waiting])
            known.update(zip((id for id, _ in waiting), new, strict=True))
            ids, rows = list(known), list(known.values())
            self._vectors[kind] = (ids, rows)
            self._stacked[kind] = np.stack(rows)
            waiting.clear()
        if not ids:
            return []
        if text not in self._asked:
            self._asked[text] = self.embedder.encode([text])[0]
        cosines = self._stacked[kind] @ self._asked[text]
        best = np.argsort(-cosines, kind="stable")
        found = ((ids[i], float(cosines[i])) for i in best)
        return list(itertools.islice((f for f in found if self._allowed(f[0])), limit))

    def search_entities(
        self, names: Sequence[str], limit: int, kind: Layer
    ) -> list[tuple[str, float]]:
        """Return (id, number of shared names), best first; a turn is read for each as a phrase."""
        wanted = dict.fromkeys(names)
        if kind == "turn":
            phrases = [f" {' '.join(words)} " for words in map(stems, wanted) if words]
            shared = {id: sum(p in text for p in phrases) for id, text in self._text.items()}
        else:
            shared = {id: len(wanted.keys() & held) for id, held in self._names.items()}
        found = {id: float(n) for id, n in shared.items() if n and self._allowed(id)}
        return self._best(found, limit)

    def search_time(self, start: datetime, end: datetime, limit: int, kind: Layer) -> list[str]:
        """Return ids of what was said or held in the span."""
        if kind == "turn":
            found = [t.id for t in self._turns.values() if start <= t.time < end]
        else:
            found = [
                i.id
                for i in self._items.values()
                if i.is_live
                and i.valid_from is not None
                and i.valid_from < end
                and (i.valid_to is None or i.valid_to > start)
            ]
        return found[:limit]

    def turn(self, id: str) -> Turn:
        """Return a turn."""
        return self._turns[id]

    def turns(self, ids: Sequence[str]) -> Mapping[str, Turn]:
        """Return many turns."""
        return {id: self._turns[id] for id in ids if id in self._turns}

    def item(self, id: str) -> Item:
        """Return an item."""
        return self._items[id]

    def items(self, ids: Sequence[str]) -> Mapping[str, Item]:
        """Return many items."""
        return {id: self._items[id] for id in ids if id in self._items}

    def all_items(self) -> list[Item]:
        """Return every item, retired ones too."""
        return list(self._items.values())

    def items_of_turn(self, id: str) -> list[Item]:
        """Return the items made of this turn."""
        return [item for item in self._items.values() if id in item.sources]

    def neighbours_of_turn(self, id: str, before: int, after: int) -> list[Turn]:
        """Return the turns around this one in its session."""
        session, place = self._where[id]
        order = self._order[session]
        ids = order[max(0, place - before) : place] + order[place + 1 : place + 1 + after]
        return [self._turns[i] for i in ids]

    def by_slot(self, subject: str, predicate: str) -> list[Item]:
        """Return live items of one slot, oldest first."""
        return [
            item
            for item in self._items.values()
            if item.is_live and (item.subject, item.predicate) == (subject, predicate)
        ]

    def speakers(self) -> list[str]:
        """Return the names of those who spoke."""
        return list(dict.fromkeys(t.name for t in self._turns.values() if t.name))

    def links(self, ids: Sequence[str]) -> list[Link]:
        """Return the links between live items that touch any of these."""
        wanted = set(ids)
        return [
            link
            for link in self._links.values()
            if wanted & {link.source, link.target}
            and self._items[link.source].is_live
            and self._items[link.target].is_live
        ]


# -- conformance: every recall method must pass these ----------------------------------------------


def told(*lines: str, name: str = "Ada", role: str = "user", session: str = "s1") -> list[Turn]:
    """Return turns of one person, a minute apart."""
    begin = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
    return [
        Turn(
            id=f"{session}-{i}",
            role=role,
            name=name,
            content=line,
            time=begin + timedelta(minutes=i),
            session=session,
            position=i,
        )
        for i, line in enumerate(lines)
    ]


_TALK = (
    "I'm allergic to walnuts.",
    "I live in Graz.",
    "The weather is lovely today.",
    "I adopted a dog named Bruno last Saturday.",
)


def reads_without_writing(method: Recall) -> None:
    """`revise` and `find` are pure: the same twice, and nothing in the view changes."""
    view = DictView()
    turns = told(*_TALK)
    view.add_turns(turns)
    first = method.revise(turns, view, RecallPorts())
    assert first == method.revise(turns, view, RecallPorts())
    assert view.all_items() == []
    view.apply(first)
    before = view.all_items()
    query = Query(text="Where does Ada live?")
    assert method.find(query, view) == method.find(query, view)
    assert view.all_items() == before


def nothing_from_nothing(method: Recall) -> None:
    """No turns, no edits; an empty memory, no hits."""
    view = DictView()
    assert method.revise([], view, RecallPorts()) == []
    assert method.find(Query(text="anything?"), view) == []
    assert method.find(Query(text=""), view) == []


def respects_limits(method: Recall) -> None:
    """At most `limit` hits, best first, sources that exist, and no turn behind two hits."""
    view = DictView()
    view.remember(told(*_TALK), method)
    for limit in (1, 2, 10):
        hits = method.find(Query(text="What is Ada allergic to?", limit=limit), view)
        assert 0 < len(hits) <= limit
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        leading = [h.sources[0].id for h in hits if h.sources]
        assert len(leading) == len(set(leading))
        assert all(view.turn(s.id).content == s.content for h in hits for s in h.sources)
    assert "walnuts" in hits[0].text


def respects_kinds(method: Recall) -> None:
    """Only what was asked for comes back."""
    view = DictView()
    view.remember(told(*_TALK), method)
    hits = method.find(Query(text="Where does Ada live?", kinds=("turn",)), view)
    assert hits and {h.kind for h in hits} == {"turn"}


def edits_can_be_applied(method: Recall) -> None:
    """Edits name items that exist, and candidates name turns that exist."""
    view = DictView()
    for number, lines in enumerate((_TALK, ("I moved to Leeds.",), ("I live in Leeds.",))):
        turns = told(*lines, session=f"s{number}")
        for edit in view.remember(turns, method):
            if isinstance(edit, (Retire, Revise)):
                view.item(edit.id)
            made = getattr(edit, "candidate", None) or getattr(edit, "superseded_by", None)
            assert made is None or set(made.sources) <= {
                *(t.id for t in turns),
                *(s for i in view.all_items() for s in i.sources),
            }


def survives_odd_text(method: Recall) -> None:
    """Empty, huge, foreign and broken messages raise nothing."""
    view = DictView()
    odd = (
        "",
        "   ",
        "?!...",
        "I " * 2000,
        "私は東京に住んでいます。",
        "my\x00name's is \ud83d",
        "’’'",
    )
    view.remember(told(*odd), method)
    method.find(Query(text="’ ? 東京 "), view)


CONFORMANCE = (
    reads_without_writing,
    nothing_from_nothing,
    respects_limits,
    respects_kinds,
    edits_can_be_applied,
    survives_odd_text,
)
