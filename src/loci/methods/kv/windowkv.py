"""WindowKV: keep whole phrases, chosen once for a group of layers, by the kind of task.

Y. Zuo et al., "WindowKV: Task-Adaptive Group-Wise KV Cache Window Selection for Efficient LLM
Inference", 2025, arXiv:2503.17922.

Scattered tokens are hard to read. Cut the prompt into windows of w neighbours, let its last s
tokens (the suffix, which always stays) look back, and keep or drop windows as a whole:

    a[h, t] = sum over the suffix of softmax(q . k[t] / sqrt(D))
    average:  score = mean of a over heads and the window's tokens          (summing up, s = 16)
    max:      score = mean over heads of the mean of its w / 2 largest      (looking up,  s = 32)

Only the first layer of a group scores; the others keep the same windows. Earlier groups get more,
falling evenly to `last` times the mean. Whether a prompt sums up or looks up is the strategy; a
router tells it from the prompt (`loci.run.route.routed` sets it).

Differs from the paper: the router is a logistic regression over sentence vectors, where the paper
has a fine-tuned BERT; windows begin at multiples of w, so that they stay the same while a prompt
longer than the budget is read in chunks; at the edge of the budget a window may be cut, its later
tokens stay. KV heads are kept as they are, where its code repeats them for every query head.
Not for: prompts whose question comes after compression; the suffix cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Granularity, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen

SUFFIX = {"max": 32, "average": 16}  # as the paper's code

# Shapes: B batch, H query heads, K key/value heads, S stored tokens, N windows, w tokens of one.


@dataclass(frozen=True, kw_only=True)
class WindowKV(Select):
    """Whole windows of neighbours, shared by groups of layers."""

    about = About(
        name="windowkv",
        kind=Kind.KV,
        paper="arXiv:2503.17922",
        idea="keep whole phrases, chosen by the first layer of a group for all of it",
        phases=(Phase.PREFILL,),
        needs=(Need.QUERIES,),
        reconstruction="windows at fixed places",
    )
    granularity: ClassVar[Granularity] = Granularity.LAYER_GROUP
    allocates: ClassVar[Granularity | None] = Granularity.LAYER

    strategy: Annotated[
        str, Param(help="max looks up, average sums up", choices=("max", "average"))
    ] = "max"
    window: Annotated[
        int, Param(help="neighbours that stay or go together", unit="tokens", ge=1, source="code")
    ] = 8
    suffix: Annotated[
        int | None,
        Param(
            help="last tokens that vote and stay; 32 for max, 16 for average", unit="tokens", ge=1
        ),
    ] = None
    shared_layers: Annotated[
        int, Param(help="layers that keep the same windows", unit="layers", ge=1, source="code")
    ] = 5  # divides the 30 layers of the default model; the paper has 8 of 32
    last: Annotated[
        float, Param(help="tokens of the last group as a share of the mean", ge=0.01, le=1)
    ] = 8 / 14  # the paper's 8 layers over beta = 14

    def for_task(self, task: str) -> WindowKV:
        """Return the method with the strategy for a task, "look_up" or "sum_up"."""
        return replace(self, strategy="average" if task == "sum_up" else "max")

    def scores_layers(self) -> int:
        """Return how many neighbouring layers go by the scores of the first of them."""
        return self.shared_layers

    @property
    def voters(self) -> int:
        """The last tokens, which vote and stay."""
        return SUFFIX[self.strategy] if self.suffix is None else self.suffix

    def protects(self) -> int:
        """Return the tokens that vote."""
        return self.voters

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return the score of each token's window, alike for all heads; the suffix stays."""
        from loci.nn.attend import head_votes

        assert seen is not None and seen.queries is not None
        suffix = self.voters
        votes_BHS = head_votes(seen.queries[:, :, -suffix:], view, seen.positions[:, -suffix:])
        places_BS = view.positions()[:, 0]
        is_suffix_BS = places_BS > seen.positions[:, -1:] - suffix
        best = self.strategy == "max"
        scores_BS = window_scores(votes_BHS, places_BS, is_suffix_BS, self.window, best)
        scores_BS = scores_BS.masked_fill(is_suffix_BS, math.inf)
        return scores_BS.unsqueeze(1).expand(-1, view.heads, -1)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return more tokens for earlier groups, once, before the first token."""
        if scores is not None:
            return None
        groups = -(-spec.layers // self.shared_layers)
        found = pyramid(groups, float(tokens), self.last)
        return [found[layer // self.shared_layers] for layer in range(spec.layers)]


def pyramid(groups: int, mean: float, last: float) -> list[float]:
    """Return the tokens of each group, falling evenly from 2 - last to last times the mean."""
    if groups == 1:
        return [mean]
    top, bottom = (2 - last) * mean, last * mean
    return [top - (top - bottom) * at / (groups - 1) for at in range(groups)]


def window_scores(
    votes_BHS: Tensor, places_BS: Tensor, without_BS: Tensor, window: int, best: bool
) -> Tensor:
    """Return for each token the score of the window it stands in, [B, S].

    A window of fewer tokens (the last one, or one that was cut) is measured by those it has.

    Args:
        without_BS: tokens that belong to no window.
        best: the mean of the better half of a window's tokens, of each head; else of all.
    """
    import torch

    batch, heads, _ = votes_BHS.shape
    rows = int(places_BS.max()) // window + 1
    counts_BS = (places_BS >= 0) & ~without_BS
    at_BS = places_BS.clamp(min=0).long()
    table = votes_BHS.new_full((batch, heads, rows * window + 1), -math.inf)
    index_BS = at_BS.masked_fill(~counts_BS, rows * window)  # one place more for all others
    table.scatter_(2, index_BS[:, None].expand(-1, heads, -1), votes_BHS)
    table_BHNw = table[..., :-1].unflatten(2, (rows, window)).sort(-1, descending=True).values
    size_BHN = table_BHNw.isfinite().sum(-1)
    taken_BHN = (size_BHN + 1) // 2 if best else size_BHN
    is_taken = torch.arange(window) < taken_BHN.unsqueeze(-1)
    sums_BHN = table_BHNw.masked_fill(~is_taken, 0.0).sum(-1)
    scores_BN = (sums_BHN / taken_BHN.clamp(min=1)).mean(1)
    return scores_BN.gather(1, at_BS // window)
