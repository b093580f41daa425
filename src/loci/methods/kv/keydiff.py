"""KeyDiff: keep the keys that are least like the others.

J. Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
Resource-Constrained Environments", 2025, arXiv:2504.15364.

Keys that stand apart from the rest tend to be those that get attention. So no query needs to be
seen; compare each key with the mean direction of all keys of its head:

    score[t] = -cos( k[t], mean over s of k[s] / |k[s]| )

It costs no attention weights and can run after every block of a prompt and while decoding.

Differs from the paper: nothing is known to; keys are compared as they are stored, rotated. `recent`
is its sliding-window variant.
Not for: texts that repeat what matters; keys that resemble each other count as superfluous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Param, Phase
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen

# Shapes: B batch, K key/value heads, S stored tokens, D head size.


@dataclass(frozen=True, kw_only=True)
class KeyDiff(Select):
    """Distance of a key from the mean direction of its head."""

    about = About(
        name="keydiff",
        kind=Kind.KV,
        paper="arXiv:2504.15364",
        idea="keys unlike all others are the ones that get attention",
        phases=(Phase.PREFILL, Phase.DECODE),
    )
    each_step: ClassVar[bool] = True

    recent: Annotated[
        int, Param(help="last tokens that always stay", unit="tokens", ge=0, source="appendix")
    ] = 0

    def protects(self) -> int:
        """Return the recent tokens."""
        return self.recent

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return minus the cosine to the mean direction of the stored keys; padding counts not."""
        from torch.nn.functional import normalize

        block = view.dense()
        ways_BKSD = normalize(block.keys, dim=-1)
        ways_BKSD.masked_fill_((block.positions < 0).unsqueeze(-1), 0.0)
        middle_BK1D = normalize(ways_BKSD.sum(dim=2, keepdim=True), dim=-1)
        scores_BKS = -(ways_BKSD * middle_BK1D).sum(dim=-1)
        last_B11 = block.positions.amax(dim=(1, 2), keepdim=True)
        return scores_BKS.masked_fill(block.positions > last_B11 - self.recent, math.inf)
