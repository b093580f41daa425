"""What all protocols share: the engine, who may ask, what is remembered, and what is embedded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # JSON values, arrays

from loci.core.block import Block
from loci.core.item import Hit
from loci.core.ledger import Lease
from loci.errors import ContextError, ModelError, ParameterError
from loci.models.load import locate
from loci.plan.solve import Plan
from loci.run.batch import Batch
from loci.run.engine import NOTES, NOTES_SHARE
from loci.run.memory import Memory
from loci.run.requests import Ask, Ticket
from loci.run.sampling import Sampling
from loci.server.beginning import Beginning
from loci.server.keys import Caller, Keys
from loci.store.base import Erased
from loci.store.messages import key_text
from loci.text.quote import listed
from loci.tiers.blocks import BlockStore

EMBEDDER = "minilm"
LIMIT_BYTES = 8 << 20  # of a request's body
DRAIN_S = 30.0
READERS = 2  # prompts that are cut into tokens at once; the others wait their turn
Message = dict[str, str]


class ServedEmbedder:
    """The default embedder, under the engine's ledger, loaded when the first text comes."""

    def __init__(self, folder: Path, batch: Batch) -> None:
        self._folder, self._batch = folder, batch
        self._model: Any = None  # a MiniLM, whose import is what is put off
        self._lease: Lease | None = None
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Names what made the vectors."""
        return str(self._loaded().fingerprint)

    @property
    def width(self) -> int:
        """Elements of a vector."""
        return int(self._loaded().width)

    def encode(self, texts: Sequence[str]) -> Any:
        """Return float32 [n, width], rows of length 1."""
        model = self._loaded()
        with self._lock:
            return model.encode(texts)

    def count(self, texts: Sequence[str]) -> int:
        """Return how many tokens the texts take."""
        return int(self._loaded().count(texts))

    def close(self) -> None:
        """Give the weights back."""
        if self._lease is not None:
            self._lease.release()
        self._model, self._lease = None, None

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                from loci.models.embed import MiniLM

                model = MiniLM(self._folder)
                self._lease = self._batch.reserve("embedder", model.nbytes)
                self._model = model
            return self._model


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What one request used of a memory, and where its own words go.

    Attributes:
        hits: what was put before the question.
        messages: the conversation with those notes in it.
        said: what is to be remembered once it was answered; None for nothing.
    """

    user: str
    agent: str | None
    session: str | None
    messages: list[Message]
    hits: tuple[Hit, ...] = ()
    said: str | None = None
    memory: Memory | None = None

    def told(self) -> dict[str, Any]:
        """Return what the client is told."""
        used = [{"id": hit.id, "text": hit.text, "score": hit.score} for hit in self.hits]
        return {"user": self.user, "used": used, "remembered": self.said is not None}


@dataclass(kw_only=True)
class Service:
    """Everything behind the protocols.

    Attributes:
        model: the name it is served under.
        keys: who may ask; None lets everybody on this machine.
        open_memory: opens the memory of a tenant, with the embedder given; None has no memory.
        user: whose memory, when a request names nobody.
        beginning: what every conversation begins with; None for nothing.
        planner: plans this model anew, with the arguments of `loci.plan`.
        mark: begins the ids of what only this process keeps, where there are several.
    """

    batch: Batch
    model: str
    models_dir: Path
    keys: Keys | None = None
    open_memory: Callable[[str, Any], Memory] | None = None
    user: str = "local"
    beginning: Beginning | None = None
    planner: Callable[..., Plan] | None = None
    limit_bytes: int = LIMIT_BYTES
    mark: str = ""
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        folder = self.models_dir / EMBEDDER
        has_embedder = (folder / "model.safetensors").is_file()
        self.embedder = ServedEmbedder(folder, self.batch) if has_embedder else None
        self._memories: dict[str, Memory] = {}
        self._lock, self._ending = threading.Lock(), threading.Lock()
        self._readers = asyncio.Semaphore(READERS)
        tokenizer = self.batch.tokenizer
        self._longest = max(len(tokenizer.bytes_of(id)) for id in range(tokenizer.vocab))
        self.is_closing = False

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.batch.plan.workload.context

    # -- prompts ------------------------------------------------------------------------------

    async def submit(self, prompt: str | list[Message] | Sequence[int], **given: Any) -> Ticket:
        """Cut a prompt into tokens and submit it; the rest are arguments of `Ask`."""
        async with self._readers:
            return await asyncio.to_thread(self._submit, prompt, given)

    async def count(self, messages: list[Message]) -> int:
        """Return how many tokens a conversation takes."""
        async with self._readers:
            return len(await asyncio.to_thread(self._ids, messages))

    def _submit(self, prompt: Any, given: Mapping[str, Any]) -> Ticket:
        ask = Ask(ids=tuple(self._ids(prompt)), **given)
        if self.beginning is not None:
            self.beginning.lend(ask.scope)
        return self.batch.submit(ask)

    def _ids(self, prompt: Any) -> Sequence[int]:
        tokenizer = self.batch.tokenizer
        is_raw = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        if is_raw and self.beginning is not None:
            raise ParameterError(
                "a raw prompt has no place for the cubes that this server begins with",
                allowed="a conversation of messages",
                way_out="ask /v1/chat/completions, or serve without --cube",
            )
        if isinstance(prompt, str):
            self._check_length([prompt])
            return tokenizer.prompt(prompt)
        if is_raw:
            return list(prompt)
        self._check_length([message["content"] for message in prompt])
        return tokenizer.chat(prompt if self.beginning is None else self.beginning.told(prompt))

    def _check_length(self, texts: Sequence[str]) -> None:
        """Refuse what cannot fit however it is cut, before it is cut."""
        tokens = sum(len(text) for text in texts) // self._longest
        if tokens > self.context:
            raise ContextError(
                f"the prompt has at least {tokens:,} tokens; the context holds {self.context:,}",
                way_out="send less of it",
            )

    # -- memory -------------------------------------------------------------------------------

    def memory(self, tenant: str) -> Memory:
        """Return the memory of a tenant.

        Raises:
            ParameterError: if this server has none.
        """
        if self.open_memory is None:
            raise ParameterError(
                "this server has no memory", way_out="start it with loci serve ... --memory FILE"
            )
        with self._lock:
            if tenant not in self._memories:
                self._memories[tenant] = self.open_memory(tenant, self.embedder)
            return self._memories[tenant]

    async def recall(
        self, caller: Caller, messages: list[Message], asked: Mapping[str, Any], user: str | None
    ) -> Recalled:
        """Put what is remembered before the last question, within a quarter of the context.

        Args:
            asked: the fields of a request's `memory`.
            user: whom the request names elsewhere.
        """
        return await asyncio.to_thread(self._recall, caller, messages, asked, user)

    def forget(
        self, caller: Caller, id: str, *, user: str | None = None, dry_run: bool = False
    ) -> Erased:
        """Erase something remembered, and the keys and values that may have been read from it."""
        memory, who = self.memory(caller.tenant), self.whose(caller, user)
        found = memory.forget(id, user=who, dry_run=dry_run)
        if found.done:
            self.batch.forget_kept()
        return found

    async def remember(self, recalled: Recalled, answer: str) -> None:
        """Remember a question and its answer, without the notes."""
        if recalled.said is not None:
            await asyncio.to_thread(self._remember, recalled, answer)

    def whose(self, caller: Caller, user: str | None) -> str:
        """Return the user a request may name.

        Raises:
            ParameterError: if the key is another user's.
        """
        if caller.user is not None and user not in (None, caller.user):
            raise ParameterError(
                "this key is for one user", value=user, allowed=caller.user, way_out="name nobody"
            )
        return caller.user or user or self.user

    def _recall(
        self, caller: Caller, messages: list[Message], asked: Mapping[str, Any], user: str | None
    ) -> Recalled:
        memory = self.memory(caller.tenant)
        named = self.whose(caller, asked.get("user") or user)
        for what in ("user", "agent", "session"):  # refused now, not when the answer was given
            if asked.get(what) is not None:
                key_text(asked[what], what)
        key_text(named, "user")
        found = Recalled(
            user=named, agent=asked.get("agent"), session=asked.get("session"), messages=messages
        )
        at = next(
            (i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None
        )
        if at is None:
            return found
        question = messages[at]["content"]
        hits: list[Hit] = []
        if asked.get("recall", True) and question.strip():
            room = self.context // NOTES_SHARE
            best = memory.search(
                question,
                user=named,
                agent=found.agent,
                session=found.session,
                limit=asked.get("limit", 8),
            )
            for hit in best:
                room -= self.batch.tokenizer.count(f"- {hit.text}\n")
                if room < 0:
                    break
                hits.append(hit)
        if hits:
            notes = NOTES.format(notes=listed("notes", [hit.text for hit in hits]))
            messages = [dict(message) for message in messages]
            messages[at]["content"] = notes + question
        says = asked.get("remember", True) and bool(question.strip())
        return replace(
            found,
            messages=messages,
            hits=tuple(hits),
            said=question if says else None,
            memory=memory,
        )

    def _remember(self, recalled: Recalled, answer: str) -> None:
        said = [("user", recalled.said or ""), ("assistant", answer)]
        assert recalled.memory is not None
        recalled.memory.add(
            [{"role": role, "content": words} for role, words in said if words.strip()],
            user=recalled.user,
            agent=recalled.agent,
            session=recalled.session,
        )

    # -- plans --------------------------------------------------------------------------------

    def replan(self, **asked: Any) -> Plan:
        """Return what would be done with this model in another budget; nothing changes.

        Raises:
            BudgetError: if it does not fit.
        """
        if self.planner is None:
            raise ParameterError("this server cannot plan", way_out="loci plan MODEL ...")
        return self.planner(**asked)

    def blocks(self) -> list[tuple[str, Block]]:
        """Return the blocks of the weights and the tier each lives on.

        Weights in levels have no blocks of the pack in memory; they are one of their own.
        """
        plan = self.batch.plan
        if plan.weights == "stacked":
            held = self.batch.ledger.by_kind("dram").get("weights", 0)
            return [("dram", Block(name="weights", kind="weights", nbytes=held, codec=plan.stack))]
        pinned = None if plan.placement is None else set(plan.placement.pinned)
        store = BlockStore(locate(plan.model, self.models_dir).pack, direct=False, mapped=False)
        with closing(store):
            found = [store.block(name) for name in store.names()]
        return [
            ("dram" if pinned is None or block.name in pinned else "disk", block) for block in found
        ]

    # -- vectors ------------------------------------------------------------------------------

    async def embed(self, texts: list[str]) -> tuple[Any, int]:
        """Return a vector a text and how many tokens they had.

        Raises:
            ModelError: if no embedder was pulled.
        """
        if self.embedder is None:
            raise ModelError(
                f"there is no embedder in {self.models_dir}", way_out=f"loci pull {EMBEDDER}"
            )
        model = self.embedder
        return await asyncio.to_thread(lambda: (model.encode(texts), model.count(texts)))

    # -- the end ------------------------------------------------------------------------------

    def close(self, drain_s: float = 0.0) -> None:
        """Let what runs end, and give everything back; closing twice does nothing."""
        self.is_closing = True
        with self._ending:
            self.batch.close(drain_s)
            for memory in self._memories.values():
                memory.close()
            self._memories.clear()
            if self.embedder is not None:
                self.embedder.close()


def sampling_of(
    temperature: float | None, top_p: float | None, seed: int | None, top_k: int | None = None
) -> Sampling:
    """Return how tokens are chosen; the protocols' own default draws with temperature 1."""
    return Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
