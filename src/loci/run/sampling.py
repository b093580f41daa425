"""From logits to the next token: greedy, or drawn with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn import native


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
    """Return the chosen token ids [B] from logits [B, V].

    A row takes one number from the generator, and the first token at which the chances, added up in
    the order of the vocabulary, pass it.
    """
    is_native = native.available() and native.is_plain(logits_BV)
    if sampling.temperature == 0:
        if is_native:
            return torch.tensor([native.argmax(row_V) for row_V in logits_BV])
        return logits_BV.argmax(dim=-1)
    uniform_B = torch.rand(logits_BV.shape[0], generator=generator, dtype=torch.float64)
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    if is_native:
        rows = zip(logits_BV, uniform_B.tolist(), strict=True)
        return torch.tensor([native.sample(row, temperature, top_k, top_p, u) for row, u in rows])
    return choose_reference(logits_BV, sampling, uniform_B)


def choose_reference(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> Tensor:
    """Return what `choose` returns where something is drawn, by plain torch."""
    least_B1 = torch.full((logits_BV.shape[0], 1), float("-inf"))
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
    top_B1 = logits_BV.amax(dim=-1, keepdim=True)
    chances_BV = ((logits_BV - top_B1).double() / sampling.temperature).exp()
    chances_BV = chances_BV.masked_fill(logits_BV < least_B1, 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_BV, order_BV = chances_BV.sort(dim=-1, descending=True, stable=True)
        # Keep the smallest set whose sum reaches top_p: those before which less was collected.
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        enough_B1 = sampling.top_p * sorted_BV.sum(-1, keepdim=True)
        drop_BV = before_BV >= enough_B1
        drop_BV[:, 0] = False  # also where top_p times the sum rounds to nothing
        sorted_BV = sorted_BV.masked_fill(drop_BV, 0.0)
        chances_BV = torch.zeros_like(chances_BV).scatter(-1, order_BV, sorted_BV)
    reached_BV = chances_BV.cumsum(dim=-1)
    passed_BV = reached_BV > uniform_B[:, None] * reached_BV[:, -1:]
    return passed_BV.to(torch.uint8).argmax(dim=-1)
