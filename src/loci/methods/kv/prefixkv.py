"""PrefixKV: every layer keeps the same share of its attention, not the same number of tokens.

A. Wang et al., "PrefixKV: Adaptive Prefix KV Cache Is What Vision Instruction-Following Models Need
for Efficient Generation", 2024, arXiv:2412.03409.

Some layers look at few tokens and some at many. Sort the tokens of a layer by the attention they
get, summed over all queries; the share that the first n of them get rises to one:

    mass_l(n) = sum of the n largest scores / sum of all

A single p decides for all layers: layer l keeps the shortest prefix of this order with
mass_l(n) >= p, and p is found by halving so that the numbers add up to the budget. Layers whose
attention is concentrated need few tokens.

    prefixkv            searches p in the text at hand
    prefixkv-offline    takes curves mass_l from samples (`loci methods prepare prefixkv-offline`),
                        so that nothing is searched at run time, as the paper does

Differs from the paper: a prompt longer than the budget is read in chunks, each of which may move
slots from layer to layer; what was evicted before counts no more. A decoded token makes room by the
scores, where the paper drops the one 25 places before the end; here the last `recent` stay. Query
heads of all KV heads vote together, so a layer keeps the same tokens for all heads.
Not for: prompts whose question comes after compression, like all that goes by attention; long ones,
where early tokens have been seen by more queries (`normalise` divides by their number).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Granularity, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.methods.kv.base import Select, Shapes

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVView, Seen

POINTS = 128  # of a curve that was prepared
_HALVINGS = 40

# Shapes: B batch, L layers, H query heads, K key/value heads, S stored tokens, T queries.


@dataclass(frozen=True, kw_only=True)
class PrefixKV(Select):
    """Attention added up, and one threshold for all layers."""

    about = About(
        name="prefixkv",
        kind=Kind.KV,
        paper="arXiv:2412.03409",
        idea="give every layer the tokens that hold the same share of its attention",
        phases=(Phase.PREFILL,),
        needs=(Need.QUERIES,),
        reconstruction="searching again after each chunk",
    )
    granularity: ClassVar[Granularity] = Granularity.LAYER
    each_chunk: ClassVar[bool] = True
    allocates: ClassVar[Granularity | None] = Granularity.LAYER
    reallocates: ClassVar[bool] = True

    sinks: Annotated[
        int, Param(help="first tokens that always stay", unit="tokens", ge=0, source="code")
    ] = 4
    recent: Annotated[
        int, Param(help="last tokens that always stay", unit="tokens", ge=1, source="code")
    ] = 25
    normalise: Annotated[
        bool, Param(help="divide by the queries that can see a token, which the paper does not")
    ] = False

    def protects(self) -> int:
        """Return sinks and recent tokens."""
        return self.sinks + self.recent

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return what all queries of the chunk give to each token, alike for all heads."""
        assert seen is not None
        return _column_sums(view, seen, self.sinks, self.recent, self.normalise)

    def merge(self, remembered: Tensor, fresh: Tensor) -> Tensor:
        """Return the sum of both; what was protected begins anew."""
        return fresh.where(remembered.isinf(), remembered + fresh)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return the prefixes of one threshold, with what is protected."""
        if scores is None:
            return None
        protected = [int((part[0, 0] == math.inf).sum()) for part in scores]
        masses = [part[0, 0][part[0, 0].isfinite()] for part in scores]
        lengths = prefix_lengths(masses, tokens * spec.layers - sum(protected))
        return [float(n + p) for n, p in zip(lengths, protected, strict=True)]


@dataclass(frozen=True, kw_only=True)
class PrefixKVOffline(Select):
    """The same, with the numbers of tokens found once on samples."""

    about = About(
        name="prefixkv-offline",
        kind=Kind.KV,
        paper="arXiv:2412.03409",
        idea="the shares of prefixkv, found once on samples of text",
        phases=(Phase.PREFILL,),
        needs=(Need.QUERIES, Need.ARTEFACT),
        reconstruction="curves in place of a vector for each ratio",
    )
    granularity: ClassVar[Granularity] = Granularity.LAYER
    each_chunk: ClassVar[bool] = True
    allocates: ClassVar[Granularity | None] = Granularity.LAYER

    sinks: Annotated[
        int, Param(help="first tokens that always stay", unit="tokens", ge=0, source="code")
    ] = 4
    recent: Annotated[
        int, Param(help="last tokens that always stay", unit="tokens", ge=1, source="code")
    ] = 25
    samples: Annotated[int, Param(help="texts the curves are taken from", ge=1, le=16)] = 8

    @property
    def preparation(self) -> str:
        """The samples decide."""
        return f"{self.about.name}(samples={self.samples})"

    def prepare(self, lab: Lab) -> Artefact:
        """Return the curves [L, POINTS]: the share of attention that so many of the tokens hold."""
        import torch

        layers, curves = lab.spec.layers, torch.zeros(lab.spec.layers, POINTS)
        with lab.activations(lab.texts()[: self.samples], ("attention",)) as walk:
            for _, layer, sums_S in walk:
                held = _curve(sums_S[self.sinks :])
                places = torch.linspace(0, len(held) - 1, POINTS).round().long()
                curves[layer] += held[places] / self.samples
        return lab.artefact(self.preparation, {"curves": curves}, {"layers": layers})

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return the curves."""
        return {"curves": ((spec.layers, POINTS), "float32")}

    def protects(self) -> int:
        """Return sinks and recent tokens."""
        return self.sinks + self.recent

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return what all queries of the chunk give to each token, alike for all heads."""
        assert seen is not None
        return _column_sums(view, seen, self.sinks, self.recent, False)

    def merge(self, remembered: Tensor, fresh: Tensor) -> Tensor:
        """Return the sum of both; what was protected begins anew."""
        return fresh.where(remembered.isinf(), remembered + fresh)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return the prefixes that the curves give for this share of the context."""
        import torch

        if scores is not None:
            return None
        curves = prepared["curves"]
        rises = torch.diff(curves, dim=1, prepend=torch.zeros(spec.layers, 1))
        protected = min(self.sinks + self.recent, tokens - 1)
        total = round(spec.layers * POINTS * min(1.0, (tokens - protected) / context))
        lengths = prefix_lengths(list(rises), max(spec.layers, total))
        return [n * context / POINTS + protected for n in lengths]


def prefix_lengths(masses: Sequence[Tensor], total: int) -> list[int]:
    """Return how many of the largest of each layer reach one threshold, in total `total`.

    Args:
        masses: of each layer, at least 0, in any order.
    """
    import torch

    curves = [_curve(mass) for mass in masses]
    if total >= sum(map(len, curves)):
        return [len(curve) for curve in curves]

    def lengths(p: float) -> list[int]:
        return [min(int(torch.searchsorted(c, p)) + 1, len(c)) if len(c) else 0 for c in curves]

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(lengths(middle)) > total else (middle, high)
    found = lengths(low)

    # Between two plateaus something is left over: it goes to those who hold the smallest share.
    def held(layer: int) -> float:
        return float(curves[layer][found[layer] - 1]) if found[layer] else 0.0

    queue = [(held(i), i) for i, curve in enumerate(curves) if found[i] < len(curve)]
    heapq.heapify(queue)
    for _ in range(max(0, total - sum(found))):
        _, layer = heapq.heappop(queue)
        found[layer] += 1
        if found[layer] < len(curves[layer]):
            heapq.heappush(queue, (held(layer), layer))
    return found


def _curve(mass_S: Tensor) -> Tensor:
    """Return the share of the mass that the n largest have, for every n, float64."""
    mass_S = mass_S.double().clamp(min=1e-30)
    return mass_S.sort(descending=True).values.cumsum(0) / mass_S.sum()


def _column_sums(view: KVView, seen: Seen, sinks: int, recent: int, normalise: bool) -> Tensor:
    """Return [B, K, S] the attention each token gets from all queries, the mean over all heads.

    The first tokens and the last ones are protected.
    """
    from loci.nn.attend import attention_mass

    assert seen.queries is not None
    queries_BHTD, now_BT = seen.queries, seen.positions
    sums_BKS = attention_mass(
        queries_BHTD, view, positions=now_BT, scale=queries_BHTD.shape[-1] ** -0.5
    )
    sums_BKS = sums_BKS.mean(1, keepdim=True) * now_BT.shape[1]
    places_BKS = view.positions()
    if normalise:
        sees_B1S = (now_BT[:, None, :, None] >= places_BKS[:, :1, None, :]).sum(2)
        sums_BKS = sums_BKS / sees_B1S.clamp(min=1)
    is_first = (places_BKS >= 0) & (places_BKS < sinks)
    is_last = places_BKS > now_BT[:, -1:, None] - recent
    return sums_BKS.expand(-1, view.heads, -1).masked_fill(is_first | is_last, math.inf)
