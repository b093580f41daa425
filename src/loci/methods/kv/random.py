"""Random eviction: the rival every selection has to beat.

No paper. Each token draws one number when it is first looked at, and the largest draws stay, so
that what is kept of a long text is a fair sample of it. The last tokens always stay, as they do
for the methods it is compared with.

Not for: use; it is a yardstick.
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


@dataclass(frozen=True, kw_only=True)
class Random(Select):
    """A seeded draw per token and head."""

    about = About(
        name="random",
        kind=Kind.KV,
        paper="none: a yardstick",
        idea="keep tokens by lot; what does not beat this is not worth its time",
        phases=(Phase.PREFILL,),
        needs=(Need.GENERATOR,),
    )

    window: Annotated[
        int, Param(help="last tokens that always stay", unit="tokens", ge=0, source="as SnapKV")
    ] = 32

    def protects(self) -> int:
        """Return the window."""
        return self.window

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return one draw per token and head; the last tokens are protected."""
        import torch

        places_BKS = view.positions()
        draws_BKS = torch.rand(places_BKS.shape, generator=generator)
        last_B11 = places_BKS.amax(dim=(1, 2), keepdim=True)
        return draws_BKS.masked_fill(places_BKS > last_B11 - self.window, math.inf)

    def merge(self, remembered: Tensor, fresh: Tensor) -> Tensor:
        """Return the first draw of every token."""
        return fresh.where(remembered.isinf(), remembered)
