"""One context read into many KV stores at once, and the questions each of them is then asked.

Every KV method reads a prompt like this: append, attend to everything read so far, then evict. So
as long as a prompt is one chunk, what the layers compute does not depend on the method, and one
forward can fill the stores of all methods: each is given the same keys, values and queries that a
forward of its own would have given it. Methods that must be read in several chunks, or that probe
the model, are read alone.

The last token of a prompt is held back until the method has done its work. The answer would
otherwise come from a forward that still saw everything.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loci.bench.contexts import SharedContext, Turn
from loci.core.method import Method, Need
from loci.errors import BudgetError, MethodError
from loci.methods import catalogue
from loci.methods.kv.chain import check_chain
from loci.methods.kv.store_plan import decoded_tokens, predict_store
from loci.nn.kv import KVView, Seen
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.run.prefill import Prefiller
from loci.run.runner import Runner

FULL = "full"
OWN = "own"  # the share of a chain that drops no token: its size is its own
HELD_BACK = 1  # tokens of a prompt that are read after the method did its work
SMALL_CHUNK = 64  # of methods that cannot read a prompt whole
HALF_BYTES = 2  # what is kept as it is, is kept in half precision: no ratio flatters itself
STEP = 16  # tokens of a continuation that are read at once

# Shapes: B batch, K key/value heads, H query heads, T tokens, D head size, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A chain under a budget.

    Attributes:
        name: the chain as it is written; "full" is the cache as it is, in half precision.
        budget_bytes: None for what has a size of its own.
        chunk: tokens the prompt is read by; None reads it whole.
        share: the budget as a share of the full cache, where it was given as one.
    """

    name: str
    budget_bytes: int | None = None
    chunk: int | None = None
    share: float | None = None

    @property
    def key(self) -> str:
        """Return "full", "snapkv @ 0.25", or "bfp @ own" where bits alone decide."""
        if self.name == FULL:
            return FULL
        return f"{self.name} @ {OWN if self.share is None else format(self.share, 'g')}"

    def chain(self) -> tuple[Method, ...]:
        """Return its methods."""
        return () if self.name == FULL else catalogue.parse_chain(self.name, "kv")

    def reads_alone(self) -> bool:
        """Return whether the stores of others cannot share its forward."""
        select = check_chain(self.chain()).select
        return self.chunk is not None or (select is not None and Need.PROBE in select.about.needs)


class Fan:
    """Stores that are shown the same chunk; stands where a `Runner` expects one store.

    Attention runs over the first one, which must be exact.
    """

    wants_queries = True

    def __init__(self, stores: Sequence[KVStore]) -> None:
        first = stores[0]
        if first.chain:
            raise MethodError("the store that is attended to must be exact", value=first.chain)
        self._stores = stores
        self.wants_hidden = any(store.wants_hidden for store in stores)
        self.length, self.max_tokens, self.largest = 0, first.max_tokens, first.largest

    def pasts(self, with_spans: bool = False) -> None:
        """Let no kernel write the stores: there are several."""

    def append(
        self, layer: int, k: Tensor, v: Tensor, positions: Tensor, hidden: Tensor | None = None
    ) -> KVView:
        """Append to every store and return what the first one sees."""
        views = [
            store.append(layer, k, v, positions, hidden if store.wants_hidden else None)
            for store in self._stores
        ]
        return views[0]

    def observe(self, layer: int, seen: Seen) -> None:
        """Show the queries to every store that wants them."""
        for store in self._stores:
            if store.wants_queries:
                store.observe(layer, seen)

    def advance(self, tokens: int) -> None:
        """Count the chunk in every store."""
        for store in self._stores:
            store.advance(tokens)
        self.length += tokens


@dataclass(eq=False)
class Session:
    """A store that has read a prompt, and what reads on.

    Attributes:
        contender: whose store it is.
        reader: reads into it.
    """

    contender: Contender
    reader: Prefiller

    @classmethod
    def over(cls, runner: Runner, store: KVStore, contender: Contender) -> Session:
        """Return a session over a store, empty or with what it holds."""
        return cls(contender, Prefiller(runner, store))

    @property
    def store(self) -> KVStore:
        """The store."""
        return self.reader.store

    def fork(self) -> Session:
        """Return an independent session that starts where this one is."""
        fork = Session.over(self.reader.runner, self.store.fork(), self.contender)
        fork.reader.ids = list(self.reader.ids)
        return fork

    def append(self, ids: Sequence[int]) -> Tensor:
        """Read on; return log-probabilities [V] of what follows."""
        logits = self.reader.read(ids)
        found = torch.log_softmax(logits[0], dim=-1)
        self.store.finish_chunk(self.reader)
        return found

    def log_probs(self, ids: Sequence[int]) -> Tensor:
        """Return log-probabilities [T, V] after each token, keeping none of them."""
        with self.store.trial():
            logits = self.reader.runner.forward(torch.tensor([list(ids)]), self.store, logits="all")
        assert logits is not None
        return torch.log_softmax(logits[0], dim=-1)

    def release(self) -> None:
        """Give the store back."""
        self.store.release()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a turn went: right among the candidates, loss of the right one, evidence still held."""

    is_right: bool
    loss: float
    survival: float = math.nan


@dataclass(eq=False)
class Reading:
    """Opens stores of one lab for one length of prompt and reads it into all of them.

    Args:
        max_tokens: what a store must be able to hold, turns included.
        chunk: the most tokens a forward takes; at least the prompt.
    """

    lab: Lab
    max_tokens: int
    chunk: int
    seed: int = 0
    _runners: dict[tuple[int, int], Runner] = field(default_factory=dict)

    def predicted(self, contender: Contender) -> int:
        """Return the bytes a contender's store is predicted to hold."""
        return predict_store(
            self.lab.spec,
            contender.chain(),
            max_tokens=self.max_tokens,
            dtype_bytes=HALF_BYTES,
            budget_bytes=contender.budget_bytes,
            chunk=contender.chunk or self.chunk,
        )

    def open(self, contender: Contender) -> KVStore:
        """Return an empty store for a contender, in half precision.

        Raises:
            BudgetError: if its budget is too small for one token.
        """
        chunk, chain = contender.chunk or self.chunk, contender.chain()
        return KVStore(
            self.lab.spec,
            chain,
            max_tokens=self.max_tokens,
            dtype=torch.float16,
            budget_bytes=contender.budget_bytes,
            chunk=chunk,
            ledger=self.lab.ledger,
            generator=torch.Generator().manual_seed(self.seed),
            artefacts={
                method.about.name: self.lab.prepared(method)
                for method in chain
                if Need.ARTEFACT in method.about.needs
            },
            folder=Path(tempfile.gettempdir()),
        )

    @contextmanager
    def sessions(
        self, ids: Sequence[int], contenders: Sequence[Contender]
    ) -> Iterator[dict[Contender, Session]]:
        """Lend a session for every contender, the prompt read but for its last token.

        A contender whose budget holds not one token is left out.
        """
        prompt = list(ids[:-HELD_BACK])
        with ExitStack() as stack:
            found: dict[Contender, Session] = {}
            together: list[Session] = []
            for contender in contenders:
                try:
                    store = self.open(contender)
                except BudgetError:
                    continue
                stack.callback(store.release)
                session = Session.over(self.runner(contender, store), store, contender)
                found[contender] = session
                if not contender.reads_alone():
                    together.append(session)
            if together:
                base = self.open(Contender(name=FULL))
                stack.callback(base.release)
                runner = self.runner(Contender(name=FULL), base)
                fan = Fan([base, *(session.store for session in together)])
                runner.forward(torch.tensor([prompt]), fan, logits=None)  # type: ignore[arg-type]
            for session in found.values():
                if session.contender.reads_alone():
                    session.reader.prefill(prompt)
                else:
                    session.reader.ids = list(prompt)
                session.store.finish_prompt(session.reader)
            yield found

    def close(self) -> None:
        """Give the work buffers back."""
        for runner in self._runners.values():
            runner.release()
        self._runners.clear()

    def runner(self, contender: Contender, store: KVStore) -> Runner:
        """Return a runner with work buffers of a size; stores that need the same share it."""
        key = (store.chunk, decoded_tokens(contender.chain(), store.max_tokens))
        if key not in self._runners:
            self._runners[key] = Runner(
                self.lab.spec,
                self.lab.weights_source,
                self.lab.ledger,
                chunk=key[0],
                decoded_tokens=key[1],
            )
        return self._runners[key]


def one_session(item: SharedContext, session: Session, last: Sequence[int]) -> list[Answer]:
    """Ask all turns one after another in one session, the right answers put in between.

    Args:
        last: the tokens of the first question that were held back.
    """
    answers, before = [], list(last)
    for index, turn in enumerate(item.turns):
        after_V = session.append(before if index == 0 else [*before, *turn.question])
        answers.append(judged(session, turn, after_V))
        before = list(turn.candidates[0])
    return answers


def each_alone(item: SharedContext, session: Session, last: Sequence[int]) -> list[Answer]:
    """Ask every turn of a fork of its own, so that none sees another."""
    session.append(last)
    answers = []
    for turn in item.turns:
        fork = session.fork()
        try:
            answers.append(judged(fork, turn, fork.append(turn.question)))
        finally:
            fork.release()
    return answers


def contenders(
    names: Sequence[str], shares: Sequence[float], full_bytes: int, chunk: int | None = None
) -> list[Contender]:
    """Return the full cache, and every chain at every share of its bytes.

    A chain that drops no token stands there once: its bits decide its size. A method that probes
    the model is read in small chunks, for it stages those of all layers.
    """
    found = [Contender(name=FULL)]
    for name in names:
        select = check_chain(catalogue.parse_chain(name, "kv")).select
        by = SMALL_CHUNK if chunk is None and Contender(name=name).reads_alone() else chunk
        if select is None:
            found.append(Contender(name=name, chunk=by))
            continue
        found += [
            Contender(name=name, budget_bytes=int(full_bytes * share), chunk=by, share=share)
            for share in shares
        ]
    return found


def payload_hash(store: KVStore) -> str:
    """Return a hash of everything a store holds."""
    tensors, _ = store.snapshot()
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def survival(store: KVStore, span: tuple[int, int]) -> float:
    """Return the share of a span's tokens that layers and heads still hold."""
    shares = []
    for layer in range(store.spec.layers):
        places_BKS = store.view(layer).positions()
        inside = ((places_BKS >= span[0]) & (places_BKS < span[1])).sum(-1).float()
        shares.append(float(inside.mean()) / (span[1] - span[0]))
    return sum(shares) / len(shares)


def continuation(session: Session, last: Sequence[int], rest: Sequence[int]) -> Tensor:
    """Return log-probabilities [len(rest), V] of tokens read on teacher-forced, in short steps."""
    rows = [session.append(last)[None].clone()]
    for start in range(0, len(rest) - 1, STEP):
        part = list(rest[start : min(start + STEP, len(rest) - 1)])
        logits = session.reader.runner.forward(torch.tensor([part]), session.store, logits="all")
        assert logits is not None
        session.store.finish_chunk(session.reader)
        rows.append(torch.log_softmax(logits[0], dim=-1))
    return torch.cat(rows)


Ask = Callable[[SharedContext, Session, Sequence[int]], list[Answer]]
MODES: Mapping[str, Ask] = {"multi_turn": one_session, "multi_request": each_alone}


def prompt_of(item: SharedContext, mode: str) -> list[int]:
    """Return what is read before the method must have done its work.

    In one session that is the context with the first question, as a person would send it; for
    requests it is the context alone.
    """
    return [*item.ids, *item.turns[0].question] if mode == "multi_turn" else list(item.ids)


def judged(session: Session, turn: Turn, after_V: Tensor) -> Answer:
    """Return how a turn went, from what a model expects after its question [V]."""
    scores = [_likelihood(session, after_V, candidate) for candidate in turn.candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    return Answer(
        is_right=best == 0,
        loss=-scores[0],
        survival=survival(session.store, turn.evidence),
    )


# -- private ----------------------------------------------------------------------------------


def _likelihood(session: Session, after_V: Tensor, candidate: Sequence[int]) -> float:
    """Return the mean log-likelihood per token."""
    total = float(after_V[candidate[0]])
    if len(candidate) > 1:
        chances_TV = session.log_probs(candidate[:-1])
        rest_T1 = torch.tensor(candidate[1:])[:, None]
        total += float(chances_TV.gather(1, rest_T1).sum())
    return total / len(candidate)
