"""A small fast memory in front of a large slow one, in which every word that moves is counted.

Algorithms that work in tiles are written against it once: with a limit they prove what they need,
without one they cost a few additions. A word is one element, whatever its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loci.errors import ParameterError


class FastMemory:
    """Counts words between slow and fast memory.

    Args:
        words: how many it holds; None holds everything and still counts.

    Attributes:
        loaded, stored: words moved in and out so far.
        held, peak: words in it now, and at most.
    """

    def __init__(self, words: int | None = None) -> None:
        self.words = words
        self.loaded = self.stored = self.held = self.peak = 0

    @property
    def moved(self) -> int:
        """Words moved in either direction."""
        return self.loaded + self.stored

    def load(self, part: Tensor) -> Tensor:
        """Bring a part of a slow tensor in, in float32 or wider; it stays until `free`."""
        self.loaded += part.numel()
        self._hold(part.numel())
        return part.to(torch.promote_types(part.dtype, torch.float32))

    def make(self, shape: Sequence[int], value: float, like: Tensor) -> Tensor:
        """Return room for intermediate values, which never were in slow memory."""
        made = torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)
        self._hold(made.numel())
        return made

    def keep(self, made: Tensor) -> Tensor:
        """Count room for values that were just computed."""
        self._hold(made.numel())
        return made

    def store(self, part: Tensor, to: Tensor) -> None:
        """Write values out to a part of a slow tensor; they stay until `free`."""
        self.stored += part.numel()
        to.copy_(part)

    def free(self, *parts: Tensor) -> None:
        """Let go of what was loaded or made."""
        self.held -= sum(part.numel() for part in parts)

    def _hold(self, words: int) -> None:
        self.held += words
        self.peak = max(self.peak, self.held)
        if self.words is not None and self.held > self.words:
            raise ParameterError(
                "the tiles do not fit the fast memory",
                value=self.held,
                allowed=f"<= {self.words} words",
                way_out="smaller tiles",
            )
