"""The role of offload methods: which blocks of weights stay, which are streamed, and how fast."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any  # JSON

from loci.core.method import Method
from loci.errors import FormatError

PAGE = 4096  # buffers and reads are whole pages: what unbuffered disk reads ask for


def page_bytes(nbytes: int) -> int:
    """Return the size of the aligned buffer that `nbytes` take."""
    return -(-nbytes // PAGE) * PAGE


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where every block of a model is while it runs.

    Attributes:
        pinned: blocks that stay in memory, in the order of execution.
        streamed: blocks read again whenever they are used, in the order of execution.
        left: blocks that no token needs whole; single rows of them are read in place.
        window_blocks: buffers of the ring that streamed blocks pass through.
        ring_bytes: all of its buffers together, each as large as the largest streamed block.
        pinned_bytes: the aligned buffers of the pinned blocks.
        moved_bytes: what is read from disk for one token.
    """

    pinned: tuple[str, ...]
    streamed: tuple[str, ...]
    left: tuple[str, ...] = ()
    window_blocks: int = 0
    ring_bytes: int = 0
    pinned_bytes: int = 0
    moved_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that the weights take."""
        return self.pinned_bytes + self.ring_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the placement as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Placement:
        """Return the placement from `to_json`; an unknown field is an error."""
        values: dict[str, Any] = dict(data)
        for name in ("pinned", "streamed", "left"):
            values[name] = tuple(values.get(name, ()))
        try:
            return cls(**values)
        except TypeError as error:
            raise FormatError(f"this is no placement: {error}") from None


class Offload(Method):
    """Role: place blocks under a budget, and say how fast tokens then come."""

    @abstractmethod
    def least_bytes(self, blocks: Sequence[tuple[str, int]], uses: Sequence[str]) -> int:
        """Return the smallest budget that `place` accepts for these blocks."""

    @abstractmethod
    def place(
        self,
        blocks: Sequence[tuple[str, int]],
        uses: Sequence[str],
        budget_bytes: int,
        links: Mapping[tuple[str, str], float] | None = None,
    ) -> Placement:
        """Return where each block goes; every block is in exactly one place.

        Pinned buffers and the ring together stay within `budget_bytes`, and a larger budget never
        reads more bytes a token.

        Args:
            blocks: (name, bytes) of every block, in the order of the file.
            uses: the blocks one token needs whole, in the order of execution.
            links: bytes per second between tiers, {("disk", "dram"): rate}.

        Raises:
            BudgetError: if not even the smallest placement fits; the message has the gap.
        """

    @abstractmethod
    def pace(
        self,
        placement: Placement,
        uses: Sequence[str],
        compute_s: Mapping[str, float],
        load_s: Mapping[str, float],
    ) -> float:
        """Return the seconds between tokens in the steady state.

        Args:
            compute_s: time to compute with a block; a block that is absent takes none.
            load_s: time to read a streamed block.
        """


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
