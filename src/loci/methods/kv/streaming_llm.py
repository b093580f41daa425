"""StreamingLLM: the first tokens and the last ones.

G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
arXiv:2309.17453.

Softmax must put its weight somewhere, and models learn to put what is left over on the very first
tokens, whatever they say. Keep these sinks together with a window of recent tokens:

    kept = { t : t < sinks  or  t > now - window }

Differs from the paper: keys keep the rotation of their own position, where the paper renumbers
them inside the cache; so texts longer than the model's context are not made possible.
Not for: anything asked about the middle of the context; it is gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Granularity, Kind, Param, Phase
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Select):
    """Attention sinks and a sliding window."""

    about = About(
        name="streaming_llm",
        kind=Kind.KV,
        paper="arXiv:2309.17453",
        idea="the first tokens carry the attention that has nowhere to go; keep them and the last",
        phases=(Phase.PREFILL, Phase.DECODE),
    )
    granularity: ClassVar[Granularity] = Granularity.GLOBAL
    each_step: ClassVar[bool] = True

    sinks: Annotated[
        int, Param(help="first tokens that always stay", unit="tokens", ge=0, source="section 3.2")
    ] = 4
    window: Annotated[
        int, Param(help="last tokens that stay", unit="tokens", ge=1, source="section 4.1")
    ] = 1020

    def protects(self) -> int:
        """Return the sinks, and the newest token."""
        return self.sinks + 1

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return the position itself, +inf for the sinks."""
        places_BKS = view.positions()
        is_sink_BKS = (places_BKS >= 0) & (places_BKS < self.sinks)
        return places_BKS.float().masked_fill(is_sink_BKS, math.inf)

    def limit(self) -> int:
        """Return sinks and window together."""
        return self.sinks + self.window
