"""Holders of memory: all that the planner and a live run know of weights, KV, adapters, indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Undo = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class ShrinkOption:
    """One way to give bytes back, and its price.

    Attributes:
        name: what would be done, such as "kv: bfp(bits=4)".
        tier: where the bytes are freed.
        bytes_freed: how many.
        loss: added KL to the full model, nats per token; None when unknown for this model.
        seconds_per_token: added time per decoded token.
        costs: {tier: bytes} that it takes elsewhere.
    """

    name: str
    tier: str
    bytes_freed: int
    loss: float | None = 0.0
    seconds_per_token: float = 0.0
    costs: Mapping[str, int] | None = None


@runtime_checkable
class Holder(Protocol):
    """Anything that holds memory."""

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of storage really held, each storage once."""
        ...

    def shrink_options(self) -> Sequence[ShrinkOption]:
        """Return the ways to give bytes back from here; none is allowed."""
        ...

    def apply(self, option: ShrinkOption) -> Undo:
        """Carry out an option and return what takes it back."""
        ...
