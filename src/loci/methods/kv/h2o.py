"""H2O: keep the tokens that have gathered most attention so far, and the latest.

Z. Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
Models", 2023, arXiv:2306.14048.

A few tokens, the heavy hitters, receive most of the attention, and they are the same ones step
after step. So add up what every query gives to every token, and keep the largest sums beside a
window of recent tokens:

    score[t] = sum over queries q of softmax(q . k[t] / sqrt(D))

Differs from the paper: query heads that share a KV head add up together; while decoding, the query
that finds the store full votes, not every one; what a token got while it was recent does not count
later. The paper gives half the budget to recent tokens, `recent` says how many.
Not for: long prompts at small budgets; early tokens have been seen by more queries, so the sums
favour the beginning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Need, Param, Phase
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen

# Shapes: B batch, K key/value heads, S stored tokens, T queries.


@dataclass(frozen=True, kw_only=True)
class H2O(Select):
    """Attention added up over all queries."""

    about = About(
        name="h2o",
        kind=Kind.KV,
        paper="arXiv:2306.14048",
        idea="a few tokens get most of the attention all the time; keep them and the latest",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.QUERIES,),
    )
    each_step: ClassVar[bool] = True
    each_chunk: ClassVar[bool] = True

    recent: Annotated[
        int, Param(help="last tokens that always stay", unit="tokens", ge=0, source="section 4.2")
    ] = 64

    def protects(self) -> int:
        """Return the recent tokens."""
        return self.recent

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return what the queries of this chunk give to each token; the recent are protected."""
        from loci.nn.attend import attention_mass

        assert seen is not None and seen.queries is not None
        queries_BHTD = seen.queries
        votes_BKS = attention_mass(
            queries_BHTD, view, positions=seen.positions, scale=queries_BHTD.shape[-1] ** -0.5
        )
        first_B11 = seen.positions[:, -1:, None] - self.recent + 1
        votes_BKS = votes_BKS * queries_BHTD.shape[2]
        return votes_BKS.masked_fill(view.positions() >= first_B11, math.inf)

    def merge(self, remembered: Tensor, fresh: Tensor) -> Tensor:
        """Return the sum of both, so that votes add up from chunk to chunk."""
        return fresh.where(remembered.isinf(), remembered + fresh)
