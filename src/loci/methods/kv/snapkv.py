"""SnapKV: keep the keys that the end of the prompt looks at.

Y. Li et al., "SnapKV: LLM Knows What You Are Looking for Before Generation", 2024,
arXiv:2404.14469.

The last queries of a prompt attend to much the same keys as the answer will. So let the last W
queries vote, spread each vote over a few neighbours so that a chosen word keeps its context, and
keep the winners together with the window itself:

    score[t] = smooth( mean over the last W queries q of softmax(q . k[t] / sqrt(D)) )

Differs from the paper: query heads that share a KV head vote together, so one copy is kept a
group. A prompt longer than the budget is read in chunks, and the end of each chunk votes; the
paper reads the whole prompt first, which needs the memory that is to be saved.
Not for: prompts whose question is asked only after compression; the window cannot see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from loci.core.method import About, Kind, Need, Param, Phase
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen

# Shapes: B batch, H query heads, K key/value heads, S stored tokens, W window, D head size.


@dataclass(frozen=True, kw_only=True)
class SnapKV(Select):
    """Attention votes of the prompt's last `window` queries."""

    about = About(
        name="snapkv",
        kind=Kind.KV,
        paper="arXiv:2404.14469",
        idea="the end of a prompt already looks where the answer will",
        phases=(Phase.PREFILL,),
        needs=(Need.QUERIES,),
    )

    window: Annotated[
        int, Param(help="last queries that vote", unit="tokens", ge=1, source="section 4")
    ] = 32
    kernel: Annotated[
        int, Param(help="width of the smoothing", unit="tokens", ge=1, odd=True, source="section 4")
    ] = 5

    def protects(self) -> int:
        """Return the window."""
        return self.window

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return smoothed votes; the window itself is protected."""
        from torch.nn.functional import avg_pool1d

        from loci.nn.attend import attention_mass

        assert seen is not None and seen.queries is not None
        queries_BHWD = seen.queries[:, :, -self.window :]
        votes_BKS = attention_mass(
            queries_BHWD,
            view,
            positions=seen.positions[:, -self.window :],
            scale=queries_BHWD.shape[-1] ** -0.5,
        )
        votes_BKS = avg_pool1d(
            votes_BKS, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False
        )
        first_B11 = seen.positions[:, -1:, None] - self.window + 1
        return votes_BKS.masked_fill(view.positions() >= first_B11, math.inf)
