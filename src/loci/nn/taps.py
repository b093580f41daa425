"""Statistics of what flows into linear layers, for methods that must know which weights matter.

A tap is shown the inputs of one layer and keeps sums; a text counts as one sample, because some
methods average over texts. Slopes are the mean squared derivative of the text's log-likelihood by
each output, the model's own words taken as the text: the diagonal of the Fisher information. With
them a change D of the weight moves the model, to second order and in nats per token, by

    KL  ~  1/2 sum_nk slope[n] * mean_square[k] * D[n, k]^2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from loci.errors import FormatError, ParameterError

# Shapes: M tokens, K inputs, N outputs.


@dataclass(frozen=True, eq=False)
class ActStats:
    """What one linear layer was shown.

    Attributes:
        tokens, samples: how many tokens, in how many texts.
        squares_K: sum of x^2.
        absolutes_K: sum of |x|.
        norms_K: sum over texts of the root of a text's sum of x^2.
        largest_K: largest |x|.
        moment_KK: sum of x x^T; None where nobody asked for it.
        slopes_N: mean squared derivative by each output; None where nobody asked for it.
    """

    tokens: int
    samples: int
    squares_K: Tensor
    absolutes_K: Tensor
    norms_K: Tensor
    largest_K: Tensor
    moment_KK: Tensor | None = None
    slopes_N: Tensor | None = None

    def mean_square(self) -> Tensor:
        """Return the mean of x^2 over tokens, [K]."""
        return self.squares_K / self.tokens

    def mean_absolute(self) -> Tensor:
        """Return the mean of |x| over tokens, [K]."""
        return self.absolutes_K / self.tokens

    def mean_norm(self) -> Tensor:
        """Return the mean over texts of the norm of x, [K]."""
        return self.norms_K / self.samples

    def loss(self, change_NK: Tensor) -> float:
        """Return the KL that a change of the weight costs, in nats per token: an estimate.

        Without slopes every output counts alike, and only ratios mean anything.
        """
        per_row_N = (change_NK.square() * self.mean_square()).sum(-1)
        return 0.5 * float(per_row_N.sum() if self.slopes_N is None else per_row_N @ self.slopes_N)

    def with_slopes(self, slopes_N: Tensor | None) -> ActStats:
        """Return the same statistics with other slopes."""
        return replace(self, slopes_N=slopes_N)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, and the counts as "counts"."""
        found = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith(("_K", "_N"))
        }
        counts = torch.tensor([self.tokens, self.samples])
        return {"counts": counts} | {k: v for k, v in found.items() if v is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ActStats:
        """Return the statistics from `tensors()`; the moment is not among them."""
        try:
            values = dict(tensors)
            tokens, samples = values.pop("counts").tolist()
            return cls(tokens=tokens, samples=samples, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"these are no activation statistics: {error}") from error


def stats_of(
    x_MK: Tensor, samples: int = 1, *, moment: bool = False, slopes_N: Tensor | None = None
) -> ActStats:
    """Return the statistics of inputs [tokens, in], texts of equal length one after the other.

    Raises:
        ParameterError: if there is nothing, or a number is not finite.
    """
    tokens, inner = x_MK.shape
    if tokens < 1 or tokens % samples:
        raise ParameterError(
            "statistics need texts of equal length",
            value=(tokens, samples),
            allowed="a positive multiple of the number of texts",
        )
    squares_SK = x_MK.view(samples, -1, inner).square().sum(1)
    if not torch.isfinite(squares_SK).all():
        raise ParameterError(
            "the model computes numbers that are not finite on this text",
            value=float(x_MK.abs().max()),
            way_out="check the weights: loci show MODEL",
        )
    return ActStats(
        tokens=tokens,
        samples=samples,
        squares_K=squares_SK.sum(0),
        absolutes_K=x_MK.abs().sum(0),
        norms_K=squares_SK.sqrt().sum(0),
        largest_K=x_MK.abs().amax(0),
        moment_KK=x_MK.t() @ x_MK if moment else None,
        slopes_N=slopes_N,
    )


def merged(left: ActStats, right: ActStats) -> ActStats:
    """Return the statistics of both; slopes are weighted by tokens."""

    def total(name: str) -> Tensor | None:
        a, b = getattr(left, name), getattr(right, name)
        return None if a is None or b is None else a + b

    tokens = left.tokens + right.tokens
    slopes = None
    if left.slopes_N is not None and right.slopes_N is not None:
        slopes = (left.slopes_N * left.tokens + right.slopes_N * right.tokens) / tokens
    return ActStats(
        tokens=tokens,
        samples=left.samples + right.samples,
        squares_K=left.squares_K + right.squares_K,
        absolutes_K=left.absolutes_K + right.absolutes_K,
        norms_K=left.norms_K + right.norms_K,
        largest_K=torch.maximum(left.largest_K, right.largest_K),
        moment_KK=total("moment_KK"),
        slopes_N=slopes,
    )
