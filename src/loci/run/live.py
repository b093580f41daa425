"""One unfinished request, as the engine's thread sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loci.core.ledger import Lease
from loci.methods.sched.base import Request, Where
from loci.run.kvstore import KVStore
from loci.run.prefill import Prefiller
from loci.run.prefixes import Chain
from loci.run.requests import Ask, Ticket
from loci.run.words import Words

if TYPE_CHECKING:
    from loci.models.grammar import Guide


@dataclass(eq=False, kw_only=True)
class Live:
    """What is known of a request and what it holds.

    Attributes:
        ids: the prompt, then what came.
        prompt: tokens of it. room: new tokens at most.
        kv_bytes: of its longest possible end.
        read: tokens that are read before its next one: the prompt, and what came before its keys
            and values were dropped.
        prefilled: how many of those were. reused: of the prompt, what was there already.
        pending: tokens the model has not seen.
        states: between layers of a prompt. through: layers those went through.
        is_secret: something was forgotten meanwhile that may be in it, so it serves nobody else.
    """

    ticket: Ticket
    ids: list[int]
    prompt: int
    room: int
    kv_bytes: int
    chain: Chain
    words: Words
    generator: torch.Generator
    guide: Guide | None = None
    came_s: float = 0.0
    began_s: float | None = None
    first_s: float | None = None
    store: KVStore | None = None
    prefiller: Prefiller | None = None
    read: int = 0
    prefilled: int = 0
    reused: int = 0
    generated: int = 0
    pending: list[int] = field(default_factory=list)
    states: tuple[Lease, Tensor] | None = None
    through: int = 0
    is_secret: bool = False

    def __post_init__(self) -> None:
        self.read = self.read or self.prompt

    @property
    def ask(self) -> Ask:
        """What was asked."""
        return self.ticket.ask

    @property
    def tokens(self) -> int:
        """Tokens of its longest possible end."""
        return self.prompt + self.room

    def drop_states(self) -> None:
        """Give back what was between two layers."""
        if self.states is not None:
            self.states[0].release()
            self.states = None

    def forget(self) -> None:
        """Give up keys and values, which will be read again."""
        assert self.states is None, "nobody is put out between two layers"
        if self.store is not None:
            self.store.release()
        self.store, self.prefiller = None, None
        self.read, self.prefilled, self.pending = len(self.ids), 0, []

    def seen(self, where: Where) -> Request:
        """Return it as schedulers see it; the token that waits to be read counts as made."""
        return Request(
            id=self.ticket.id,
            prompt_tokens=self.read,
            new_tokens=self.room,
            kv_bytes=self.kv_bytes,
            prefilled=self.prefilled,
            generated=self.generated,
            priority=self.ask.priority,
            user=self.ask.user or self.ask.scope,
            where=where,
            stored=0 if self.store is None else self.store.length,
        )
