"""Full text over turns and items: what every database's index of words must do alike.

Texts come as stems in one string. A row scores BM25 as SQLite's FTS5 computes it (k1 1.2, b 0.75,
over all rows of the store; its length counts the words that mark whose it is), so that the same
data ranks the same in every database.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal  # values of SQL parameters

Layer = Literal["turn", "item"]
Condition = tuple[str, Sequence[Any]]
"""SQL over a turn `t` or an item `i`, and its values."""


@dataclass(frozen=True)
class Whose:
    """Whose rows: of one owner; of any agent or session where those are None."""

    owner: int
    agent: str | None = None
    session: str | None = None

    @property
    def marks(self) -> int:
        """How many words mark a row as theirs; they count in its length."""
        return 1 + (self.agent is not None) + (self.session is not None)


class FullText(ABC):
    """The words of turns and items. Everything but `match` runs inside `Database.write()`."""

    @abstractmethod
    def add(self, kind: Layer, whose: Whose, entries: Sequence[tuple[int, str]]) -> None:
        """Index rows: (number, stems)."""

    @abstractmethod
    def replace(self, kind: Layer, seq: int, words: str) -> bool:
        """Index a row anew; returns whether its words changed."""

    @abstractmethod
    def remove(self, kind: Layer, seq: int) -> None:
        """Take a row out."""

    @abstractmethod
    def match(
        self,
        kind: Layer,
        phrases: Sequence[str],
        limit: int,
        whose: Whose,
        condition: Condition | None,
    ) -> list[tuple[int, float]]:
        """Return (number, BM25) of rows with any of the phrases, best first, then lowest number.

        A phrase is words that stand next to each other. `condition` goes beyond `whose`.
        """
