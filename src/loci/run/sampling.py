"""From logits to the next token: greedy, or drawn with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loci.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ParameterError(
                "temperature is out of range",
                value=self.temperature,
                allowed="0 to 10; 0 takes the most likely token",
            )
        if self.top_k is not None and self.top_k < 1:
            raise ParameterError("top_k must be >= 1", value=self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ParameterError(
                "top_p is out of range", value=self.top_p, allowed="above 0, up to 1"
            )

    def generator(self) -> torch.Generator:
        """Return the random generator of one answer; without a seed it differs each time."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return the chosen token ids [B] from logits [B, V]."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    scaled_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled_BV.shape[-1]:
        least_B1 = scaled_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, float("-inf"))
    chances_BV = torch.softmax(scaled_BV, dim=-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = chances_BV.sort(dim=-1, descending=True)
        # Keep the smallest set whose sum reaches top_p: those before which less was collected.
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= sampling.top_p, 0.0)
        chances_BV = torch.zeros_like(chances_BV).scatter(-1, order_BV, sorted_BV)
    return torch.multinomial(chances_BV, 1, generator=generator)[:, 0]
