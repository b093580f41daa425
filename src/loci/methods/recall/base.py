"""The roles of recall: revise and find; act, with all state outside the prompt; govern changes.

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

A method that acts does a job with tools. It holds nothing itself: what it knows stands in records,
written before the next step begins, each step with its reason. So a killed agent goes on where it
was when `act` is called again, and a step can be undone.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from typing import Any, ClassVar, Literal, Protocol  # inputs are JSON values

from loci.core.agent import Job, Outcome, Record
from loci.core.arrange import Change, Standing
from loci.core.cost import Cost
from loci.core.governance import Arm, Policy, Ruling, Sample
from loci.core.item import Edit, Hit, Item, Link, Turn
from loci.core.method import Method
from loci.core.ports import Device, Embedder, Llm, Records, Sandbox
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.text.ladder import Ladder
from loci.units import nearest

_KEY = re.compile(r"[!-\ud7ff\ue000-\U0010ffff]{1,300}")

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


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a method that acts may use from outside; None where nobody supplied it.

    Attributes:
        records: its state.
        sandbox: runs code; without one no code is run.
        ladder: carries out small operations with the back end that was chosen, as in `RecallPorts`.
    """

    records: Records
    llm: Llm | None = None
    embedder: Embedder | None = None
    sandbox: Sandbox | None = None
    device: Device | None = None
    ladder: Ladder = field(default_factory=Ladder)


class Act(Method):
    """Does jobs step by step and learns from them.

    Attributes:
        takes: {name of an input: what it is}, for people and for programs that ask over MCP.
        example: a job that is read and done.
    """

    takes: ClassVar[Mapping[str, str]] = {}
    example: ClassVar[Job] = Job()

    @abstractmethod
    def act(self, job: Job, tools: Tools) -> Outcome:
        """Do a job, or go on with it where the records say it was left.

        Whatever the world answers is bounded: a job ends within `job.max_steps` steps, and says
        why. Every step is in the records before the next one begins.

        Raises:
            ParameterError: if the job is none this method can read.
            MethodError: if it needs a tool that nobody supplied.
        """

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return no cost: an agent's state is text in the store."""
        return Cost()


class Govern(Method):
    """Decides whether a change to what is remembered may go on; it measures and changes nothing.

    A method that governs is asked twice: before a change is tried on anybody, with outcomes of
    probes, and again and again while some requests see it, with what became of them.
    """

    @abstractmethod
    def admit(self, policy: Policy, samples: Sequence[Sample]) -> Ruling:
        """Return whether every threshold is met, by outcomes of probes on both versions.

        Too few outcomes are "insufficient", never "pass".

        Raises:
            ParameterError: if a threshold's metric was not measured.
        """

    @abstractmethod
    def watch(self, policy: Policy, new: Sequence[float], old: Sequence[float]) -> Ruling:
        """Return "fail" where the new version is worse, "pass" when a step has seen enough.

        Asked once after every observation of one metric on the new version, with all of the step;
        `old` are all so far. "insufficient" means to go on. Chance alone leads to "fail" with at
        most the policy's alpha over all steps and metrics, however often it is asked.
        """

    def arm(self, change: str, key: str, share: float) -> Arm:
        """Return which version a request sees; a larger share only ever adds requests to it."""
        digest = blake2b(f"{change}\n{key}".encode(), digest_size=8).digest()
        return "new" if int.from_bytes(digest) < share * 2**64 else "old"

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return no cost: a policy and some counts hold no bytes of a model's tiers."""
        return Cost()


class Arrange(Method):
    """Decides which form every cube has and how long it lives; run carries it out."""

    @abstractmethod
    def tick(
        self, standings: Sequence[Standing], budget_bytes: int, now: datetime
    ) -> Sequence[Change]:
        """Return what should be done now, in order.

        Afterwards what is promoted fits `budget_bytes`, and a second tick at the same time wants
        nothing more. What is pinned or frozen keeps its form. Nothing is changed here.

        Raises:
            BudgetError: if what is pinned and frozen does not fit.
        """

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return no cost: keys and values are the store's, and loaded into a run's own cache."""
        return Cost()


MAX_RECORD_BYTES = 512 * 1024
"""Of one record's value as JSON: the store keeps it before and after every change."""


def kept_record(record: Record) -> Record:
    """Return a record as it can be kept: a plain key, a line of text, JSON of bounded size.

    Raises:
        ParameterError: if it is not of that form.
    """
    if not isinstance(record.key, str) or not _KEY.fullmatch(record.key):
        raise ParameterError(
            "the key of a record has no spaces", value=record.key, allowed="1 to 300 characters"
        )
    try:
        written = json.dumps(dict(record.value), ensure_ascii=False, allow_nan=False)
        size = len(written.encode())
    except (TypeError, ValueError, RecursionError) as problem:
        raise ParameterError(f"record {record.key} is no JSON: {problem}") from None
    if size > MAX_RECORD_BYTES:
        raise ParameterError(
            f"record {record.key} has {size:,} bytes",
            allowed=f"at most {MAX_RECORD_BYTES:,}",
            way_out="keep large things in files, and their names in records",
        )
    text = " ".join(record.text.split())[:300] or record.key
    return replace(record, text=text, value=json.loads(written))


def inputs_of(method: Act, job: Job, needed: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return the inputs of a job, all of them known to the method and the needed ones there.

    Raises:
        ParameterError: if one is unknown (the nearest is suggested) or missing.
    """
    for name in job.inputs:
        if name not in method.takes:
            near = nearest(name, list(method.takes))
            raise ParameterError(
                f"{method.about.name} takes no input of this name",
                value=name,
                allowed=", ".join(method.takes) or "none",
                way_out=f"did you mean {near!r}?" if near else (),
            )
    for name in needed:
        if name not in job.inputs:
            raise ParameterError(
                f"{method.about.name} needs the input {name!r}", allowed=method.takes[name]
            )
    return job.inputs
