"""The roles of recall: revise what is known from new turns, and find what a question needs.

A recall method reads the store through a `StoreView` and returns values: edits, or hits. It never
writes; the store applies all edits of one `revise` in one transaction, in their order. A method can
retire, never erase.

What the edits mean to the store:

    Add(candidate)                        a new item, valid from the candidate's time
    Retire(id, at)                        the item no longer holds from `at` on; it is kept
    Retire(id, at, superseded_by=c)       the same, and `c` becomes a new item that supersedes it
    Revise(id, candidate)                 the same fact, told again or better: text, slot and times
                                          are the candidate's, sources are joined, the old version
                                          stays in the history. An equal text only joins sources,
                                          and takes the candidate's gloss if it has one.
    Link(source, relation, target)        both exist; one that exists keeps its weight

A candidate's key ("+1") may stand in place of an id in any edit after it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal, Protocol

from loci.core.cost import Cost
from loci.core.item import Edit, Hit, Item, Link, Turn
from loci.core.method import Method
from loci.core.ports import Embedder, Llm
from loci.core.spec import ModelSpec, Workload
from loci.text.ladder import Ladder

Layer = Literal["turn", "item"]


class StoreView(Protocol):
    """What a recall method may read: the turns and items of one scope, and search over them.

    Searches return best first, at most `limit`, and only what the scope, the filters and the
    time of asking allow: with no `as_of` live items only. Ids are the store's own.
    """

    @property
    def has_dense(self) -> bool:
        """Whether `search_dense` can be asked."""
        ...

    def now(self) -> datetime:
        """Return the time of asking."""
        ...

    def search_words(
        self, stems: Sequence[str], limit: int, kind: Layer, *, context: float = 0.0
    ) -> Sequence[tuple[str, float]]:
        """Return (id, BM25) over stems, any of which may match; higher is better.

        `context` is the weight of a word that stands in the turn before, where a word of the turn
        itself counts 1; it matters for turns only.
        """
        ...

    def search_dense(self, text: str, limit: int, kind: Layer) -> Sequence[tuple[str, float]]:
        """Return (id, cosine) of the embeddings nearest to the text's."""
        ...

    def search_entities(
        self, names: Sequence[str], limit: int, kind: Layer
    ) -> Sequence[tuple[str, float]]:
        """Return (id, number of these names it mentions), names as `text.entities` writes them."""
        ...

    def search_time(self, start: datetime, end: datetime, limit: int, kind: Layer) -> Sequence[str]:
        """Return ids of what was said (turns) or held (items) in start <= t < end."""
        ...

    def turn(self, id: str) -> Turn:
        """Return a turn."""
        ...

    def turns(self, ids: Sequence[str]) -> Mapping[str, Turn]:
        """Return many turns in one reading; unknown ids are left out."""
        ...

    def item(self, id: str) -> Item:
        """Return an item, live or retired."""
        ...

    def items(self, ids: Sequence[str]) -> Mapping[str, Item]:
        """Return many items in one reading; unknown ids are left out."""
        ...

    def items_of_turn(self, id: str) -> Sequence[Item]:
        """Return the items made of this turn."""
        ...

    def neighbours_of_turn(self, id: str, before: int, after: int) -> Sequence[Turn]:
        """Return the turns around this one in its session, in order, without itself."""
        ...

    def by_slot(self, subject: str, predicate: str) -> Sequence[Item]:
        """Return live items about the same subject and predicate, oldest first."""
        ...

    def speakers(self) -> Sequence[str]:
        """Return the names of those who spoke."""
        ...

    def links(self, ids: Sequence[str]) -> Sequence[Link]:
        """Return the links from or to any of these items, oldest first.

        Those that end at an item this view does not allow are left out.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RecallPorts:
    """What a recall method may use from outside; None where nobody supplied it.

    Attributes:
        ladder: carries out the operations of a write with the back end that was chosen, and keeps
            account of it. A method asks a model through it, so that all are checked alike.
    """

    llm: Llm | None = None
    embedder: Embedder | None = None
    ladder: Ladder = field(default_factory=Ladder)


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked of a memory.

    Attributes:
        limit: most hits to return.
        kinds: "fact", "note", "relation", "turn"; None is all.
        lexical: leave meaning out, whatever the view could do.
    """

    text: str
    limit: int = 10
    kinds: tuple[str, ...] | None = None
    lexical: bool = False

    def wants(self, kind: str) -> bool:
        """Return whether hits of this kind are asked for."""
        return self.kinds is None or kind in self.kinds


class Recall(Method):
    """Decides what to keep of new turns, and what to show for a question.

    Attributes:
        writes_by_meaning: whether `revise` searches by meaning: then texts that wait are embedded
            before it is called, where there is an embedder.
    """

    writes_by_meaning: ClassVar[bool] = False

    @abstractmethod
    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        """Return the edits that new turns ask for; the view does not show their edits yet.

        The turns are in order and already stored (`view.neighbours_of_turn` knows them). Loads
        no model unless the method needs one and `ports` has it.
        """

    @abstractmethod
    def find(self, query: Query, view: StoreView) -> list[Hit]:
        """Return what answers the query, best first, at most `query.limit`, no turn shown twice.

        Facts carry the turns they rest on as sources; a raw turn is a hit of kind "turn" whose
        only source is itself.
        """

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return no cost: recall holds no bytes of a model's tiers."""
        return Cost()
