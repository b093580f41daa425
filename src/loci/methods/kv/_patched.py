"""Patched prompts: what says which entries of a cache stay, for methods that read a history."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from loci.core.method import About, Granularity, Kind, Need, Phase
from loci.core.spec import ModelSpec
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen

# Shapes: B batch, K key/value heads, S stored tokens.


@dataclass(frozen=True, kw_only=True)
class PatchedPrompt(Select):
    """Scores entries by a prompt that is the same after every block."""

    about = About(
        name="_patched_prompt",
        kind=Kind.KV,
        paper="arXiv:2509.17396",
        idea="what an episode looks at stays",
        phases=(Phase.PREFILL,),
        needs=(Need.PROBE,),
    )

    probes_alike: ClassVar[bool] = True

    ids: tuple[int, ...]
    sinks: int = 4

    def __str__(self) -> str:
        """Return a name that is the same for equal prompts and settings alone."""
        mark = hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()
        return f"{self.about.name}({mark})"

    def protects(self) -> int:
        """Return the sinks, and the newest token."""
        return self.sinks + 1

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return the most that a query of the prompt gives to each entry."""
        from loci.nn.attend import attention_mass

        assert seen is not None and seen.queries is not None
        found_BKS = attention_mass(
            seen.queries,
            view,
            positions=seen.positions,
            scale=seen.queries.shape[-1] ** -0.5,
            reduce="max",
        )
        places_BKS = view.positions()
        is_sink_BKS = (places_BKS >= 0) & (places_BKS < self.sinks)
        return found_BKS.masked_fill(is_sink_BKS, math.inf)

    def probe_ids(self, ids: Sequence[int]) -> list[int]:
        """Return the prompt, whatever was read."""
        return list(self.ids)


@dataclass(frozen=True, kw_only=True)
class PatchedPromptByHead(PatchedPrompt):
    """The same, where entries of all heads of a layer compete."""

    granularity: ClassVar[Granularity] = Granularity.HEAD
    allocates: ClassVar[Granularity | None] = Granularity.HEAD
    reallocates: ClassVar[bool] = True

    shares: tuple[float, ...] = ()  # of layers, 1 on average; () gives all the same

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return how many of a layer's best entries each of its heads has."""
        import torch

        heads = spec.kv_heads
        shares = self.shares or (1.0,) * spec.layers
        if scores is None:
            return [tokens * share for share in shares for _ in range(heads)]
        found: list[float] = []
        for share, scores_1KS in zip(shares, scores, strict=True):
            flat = scores_1KS[0].flatten()
            best = flat.topk(min(len(flat), max(heads, round(tokens * share * heads)))).indices
            counts_K = torch.bincount(best // scores_1KS.shape[2], minlength=heads)
            found += [float(n) for n in counts_K.clamp(min=1)]
        return found


@dataclass(frozen=True, kw_only=True)
class PatchedPromptByLayer(PatchedPrompt):
    """The same, where layers have numbers of entries of their own, and their heads the same."""

    allocates: ClassVar[Granularity | None] = Granularity.LAYER

    shares: tuple[float, ...] = ()  # of layers, 1 on average

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return the layers' shares, once."""
        return [tokens * share for share in self.shares] if scores is None else None
