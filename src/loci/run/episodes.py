"""Long conversations read into several small caches, and questions answered from one of them.

A `Read` method says what to read and which cache a question belongs to; here is what reads, parks
caches, brings one back, appends the question, and forgets question and answer again: what is parked
is only read. New turns go to the cache that answered last. Others do not know them until there are
twice as many segments, or the room is used up; then everything is read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.method import Need
from loci.core.ports import Artefact, Embedder
from loci.core.spec import ModelSpec
from loci.errors import ContextError, NotFoundError, ParameterError
from loci.methods.kv.base import Select
from loci.methods.kv.read import CacheSet, Read, Route
from loci.methods.kv.store_plan import budget_for
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.run import artefacts
from loci.run.kvstore import KVStore
from loci.run.parking import Parking
from loci.run.prefill import Prefiller
from loci.run.runner import Runner
from loci.run.weights import ResidentWeights, WeightSource
from loci.tiers.dram import DramTier

Progress = Callable[[str, int, int], None]
ROOM = 256  # tokens that may come after the history: new turns, a question and its answer

# Shapes: n texts, w width, V vocabulary.


class Texts(Protocol):
    """The part of a tokenizer that is needed here."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...


class CacheReader:
    """Reads histories into caches and parks them; satisfies `loci.methods.kv.read.Reader`.

    Args:
        tokenizer: has `encode`, and `decode` for answers.
        embedder: makes the vectors segments are clustered by and questions are routed by.
        parking: where caches lie that are not at work.
        block: tokens read at once; each layer holds as many above its own, never more.
        room: tokens after the history.
        progress: called with (what, done, total) while a history is read.

    Attributes:
        peak_entries: by name of the cache, the most entries any layer held at once, per head.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightSource,
        ledger: Ledger,
        tokenizer: Texts,
        embedder: Embedder,
        parking: Parking,
        *,
        block: int = 512,
        room: int = ROOM,
        dtype: torch.dtype = torch.float16,
        progress: Progress | None = None,
    ) -> None:
        self.spec, self.block, self.room, self.dtype = spec, block, room, dtype
        self._progress = progress
        self.ledger, self.parking = ledger, parking
        self.tokenizer, self.embedder = tokenizer, embedder
        self.peak_entries: dict[str, int] = {}
        self.peak_bytes = 0
        self._runner = Runner(spec, weights, ledger, chunk=block)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.tokenizer.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self.tokenizer.decode(list(ids)))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return vectors of length 1, float32 [n, w]."""
        found = torch.as_tensor(self.embedder.encode(list(texts))).float()
        return torch.nn.functional.normalize(found, dim=-1)

    def read(
        self,
        name: str,
        select: Select,
        ids: Sequence[int],
        tokens: int,
        artefact: Artefact | None = None,
    ) -> None:
        """Read tokens block by block into an empty cache, and park it; see `Reader`."""
        room = len(ids) + self.room
        probe = len(select.probe_ids(ids[-1:])) if Need.PROBE in select.about.needs else 0
        if room + probe > self.spec.max_context:
            raise ContextError(
                "the history, the room behind it and a probe are longer than the model reads",
                value=room + probe,
                allowed=f"<= {self.spec.max_context} tokens",
                way_out="a smaller room, or leave out the oldest turns",
            )
        budget = budget_for(
            self.spec,
            (select,),
            tokens,
            max_tokens=room,
            dtype_bytes=self.dtype.itemsize,
            chunk=self.block,
        )
        store = KVStore(
            self.spec,
            (select,),
            max_tokens=room,
            dtype=self.dtype,
            budget_bytes=budget,
            chunk=self.block,
            ledger=self.ledger,
            artefacts={} if artefact is None else {select.about.name: artefact},
            generator=torch.Generator().manual_seed(0),
        )
        try:
            reader = Prefiller(self._runner, store)
            self.peak_entries[name] = 0
            self.read_on(reader, ids, name)
            store.finish_prompt(reader)
            self.parking.put(name, store, reader.ids)
        finally:
            store.release()

    def read_on(self, reader: Prefiller, ids: Sequence[int], name: str) -> None:
        """Read tokens into a cache block by block, each followed by what the method does."""
        for start in range(0, len(ids), self.block):
            reader.prefill(ids[start : start + self.block])
            store = reader.store
            most = max(store.held_entries(layer) for layer in range(self.spec.layers))
            self.peak_entries[name] = max(
                self.peak_entries.get(name, 0), -(-most // self.spec.kv_heads)
            )
            self.peak_bytes = max(self.peak_bytes, sum(store.nbytes().values()))
            store.finish_chunk(reader)
            if self._progress is not None:
                self._progress(f"reading {name}", min(start + self.block, len(ids)), len(ids))

    @contextmanager
    def brought(self, name: str, select: Select) -> Iterator[Prefiller]:
        """Lend a copy of a parked cache; what is read into it is gone at the end."""
        store, ids = self.parking.take(name, self.spec, (select,), self.ledger)
        try:
            reader = Prefiller(self._runner, store)
            reader.ids = ids
            yield reader
        finally:
            store.release()

    @contextmanager
    def plain(self, ids: Sequence[int]) -> Iterator[Prefiller]:
        """Lend an exact cache of some tokens."""
        room = len(ids) + self.room
        store = KVStore(
            self.spec, max_tokens=room, chunk=self.block, dtype=self.dtype, ledger=self.ledger
        )
        try:
            reader = Prefiller(self._runner, store)
            if ids:
                reader.prefill(ids)
            yield reader
        finally:
            store.release()

    def release(self) -> None:
        """Give work buffers and parked caches back."""
        self.parking.clear()
        self._runner.release()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer, and where it came from.

    Attributes:
        route: the cache that is nearest to the question.
        from_text: the question was like no cache; segments of the history were read anew.
    """

    text: str
    route: Route
    from_text: bool = False


class Episodes:
    """A conversation that is asked about.

    Args:
        method: reads it and routes questions.
        reader: is released by whoever made it.
        tokens: what each head of a layer keeps of the conversation, on average.
        artefact: what was prepared for the method.
    """

    def __init__(
        self,
        method: Read,
        reader: CacheReader,
        history: Sequence[str],
        tokens: int,
        artefact: Artefact | None = None,
    ) -> None:
        self.method, self.reader, self.tokens = method, reader, tokens
        self.history, self._artefact = list(history), artefact
        self._active: int | None = None
        self._reread()

    def route(self, question: str) -> Route:
        """Return which cache answers."""
        return self.method.route(self.reader.embed([question])[0], self.held)

    @contextmanager
    def asked(self, question: str) -> Iterator[tuple[Prefiller, Route]]:
        """Lend what has read the right cache, or the right texts, for a question to be appended."""
        route = self.route(question)
        if route.is_far:
            with self.reader.plain(self.texts_for(question)) as reader:
                yield reader, route
            return
        self._active = route.cache
        name = self.held.names[route.cache]
        with self.reader.brought(name, self.held.selects[route.cache]) as reader:
            yield reader, route

    def answer(
        self, question: str, *, form: str = "\nQuestion: {}\nAnswer:", max_tokens: int = 32
    ) -> Answered:
        """Return the likeliest answer, up to the end of a line.

        Args:
            form: how a question is written behind the conversation.
        """
        with self.asked(question) as (reader, route):
            logits = reader.read(self.reader.encode(form.format(question)))
            reader.store.finish_chunk(reader)
            ids: list[int] = []
            while len(ids) < max_tokens:
                ids.append(int(logits[0].argmax()))
                text = self.reader.decode(ids)
                if "\n" in text.lstrip("\n") or ids[-1] in self._ends():
                    break
                logits = reader.read(ids[-1:])
        return Answered(
            text=self.reader.decode(ids).strip("\n").partition("\n")[0].strip(),
            route=route,
            from_text=route.is_far,
        )

    def add(self, utterances: Sequence[str]) -> bool:
        """Read new turns into the cache that answered last, else the nearest one.

        Returns:
            Whether everything was read anew, so that all caches know them.
        """
        if not utterances:
            return False
        self.history += utterances
        ids = [token for said in utterances for token in self.reader.encode(f"{said}\n")]
        if self._active is None:
            self._active = self.route("\n".join(utterances)).cache
        name, select = self.held.names[self._active], self.held.selects[self._active]
        is_grown = len(self.method.segments(self.history)) >= 2 * self.held.segments
        with self.reader.brought(name, select) as reader:
            left = reader.store.max_tokens - reader.store.length
            if not is_grown and len(ids) <= left // 2:  # the rest is for questions
                self.reader.read_on(reader, ids, name)
                self.reader.parking.put(name, reader.store, reader.ids)
                return False
        self._reread()
        return True

    def texts_for(self, question: str) -> list[int]:
        """Return the segments most like a question, as many tokens as a cache keeps, in order."""
        segments = self.method.segments(self.history)
        likeness_n = self.reader.embed(segments) @ self.reader.embed([question])[0]
        chosen: dict[int, list[int]] = {}
        left = self.tokens
        for at in likeness_n.argsort(descending=True).tolist():
            ids = self.reader.encode(segments[at] + "\n")
            if len(ids) <= left:
                chosen[at] = ids
                left -= len(ids)
        return [token for at in sorted(chosen) for token in chosen[at]]

    def _reread(self) -> None:
        self.reader.parking.clear()
        self._active = None
        self.held: CacheSet = self.method.read(
            self.reader, self.history, self.tokens, self._artefact
        )
        self.held.check()

    def _ends(self) -> Sequence[int]:
        found: Sequence[int] = getattr(self.reader.tokenizer, "eos_ids", ())
        return found


@contextmanager
def opened(
    pack: Pack,
    history: Sequence[str],
    tokens: int,
    *,
    method: Read,
    embedder: Embedder,
    limits: Mapping[str, int],
    block: int = 256,
    progress: Progress | None = None,
) -> Iterator[Episodes]:
    """Lend a conversation that a model has read into several caches; all bytes go back at the end.

    Args:
        history: utterances, "Ada: I moved to Oslo."
        tokens: see `Episodes`.
        embedder: its `nbytes` count, where it has any.
        limits: {tier: bytes} of weights, embedder, work buffers, the cache at work and those put
            away.

    Raises:
        BudgetError: if they do not fit.
        ContextError: if the model cannot read so many tokens.
        ParameterError: if there is nothing to read, or it would not be cut.
    """
    block = min(block, pack.spec.max_context)
    ledger, name = Ledger(dict(limits)), method.preparation
    artefact: Artefact | None = None
    try:
        path = artefacts.path_of(pack.folder, name, pack.spec.fingerprint)
        artefact = artefacts.load(path, method=name, fingerprint=pack.spec.fingerprint)
    except NotFoundError:
        pass  # a method that cannot do without says so
    weights = ResidentWeights(pack, ledger)
    vectors = ledger.reserve("embedder", "dram", getattr(embedder, "nbytes", 0), "index")
    try:
        reader = CacheReader(
            pack.spec, weights, ledger, Tokenizer(pack.folder), embedder,
            Parking(DramTier(ledger)), block=block, progress=progress,
        )  # fmt: skip
        try:
            whole = sum(len(reader.encode(f"{said}\n")) for said in history)
            if tokens >= whole > 0:
                raise ParameterError(
                    "the text is no longer than one episode's cache",
                    value=f"{whole} tokens of text, {tokens} kept",
                    allowed=f"fewer than {whole}",
                    way_out="read it whole, without episodes",
                )
            yield Episodes(method, reader, history, tokens, artefact)
        finally:
            reader.release()
    finally:
        vectors.release()
        weights.release()
