"""The roles of quantisation methods: a float32 weight in, a packed weight out, bytes said before.

`Quant` packs one weight at a time. `Nested` packs a weight as levels, of which any first few are a
coarser weight: what a live run loads and lets go of, one level of one weight at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from loci.core.cost import Cost
from loci.core.method import Method
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.methods.quant._allocate import Choice
from loci.methods.quant._mixing import Piled, Stats, allocate, offers, piled, within
from loci.methods.quant._packed import PackedModel
from loci.methods.quant._pile import ORDERS, Pile, sorted_levels
from loci.nn.form import Form
from loci.nn.taps import ActStats

__all__ = [
    "Choice",
    "Nested",
    "Pile",
    "Piled",
    "Quant",
    "Sensitive",
    "allocate",
    "offers",
    "piled",
    "sorted_levels",
    "within",
]

_TABLES = ("embed", "head")


class Quant(Method):
    """Role: pack weights one at a time, in bytes that are known in advance."""

    @abstractmethod
    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        """Return the packed form of a weight [out, in], which is not changed.

        Args:
            stats: of the layer's inputs; needed where `about.needs` says CALIBRATION.
            generator: the only source of chance; the same seed packs the same bytes.

        Raises:
            ParameterError: if the weight is no finite matrix, its shape does not fit the method, or
                statistics are missing or of another layer.
        """

    @abstractmethod
    def packed_bytes(self, out: int, inner: int) -> int:
        """Return exactly the bytes that `pack_one` stores for a weight [out, inner].

        Raises:
            ParameterError: if the shape does not fit the method, in the same words as `pack_one`.
        """

    def table(self) -> Quant:
        """Return what packs embedding and head ("embed", "head", "embed.3"): by default itself."""
        return self

    def variants(self) -> Sequence[Quant]:
        """Return settings to mix within one model; by default every width of `bits` it has."""
        declared = self.declared().get("bits")
        if declared is None:
            return (self,)
        low, high = declared[1].ge or 1, declared[1].le or 8
        found = []
        for bits in range(int(low), int(high) + 1):
            try:
                found.append(replace(self, bits=bits))  # type: ignore[call-arg]
            except ParameterError:  # a method need not have every width
                continue
        return tuple(found)

    def stand_in(self) -> Quant:
        """Return a quick method of the same bytes, by which `allocate` judges this one."""
        return self

    def pack(
        self,
        weights: Iterable[tuple[str, Tensor]],
        *,
        stats: Stats | None = None,
        budget_bytes: int | None = None,
        generator: Generator | None = None,
    ) -> PackedModel:
        """Return a model whose matrices are packed; vectors (norms, biases) stay in float32.

        Without a budget weights are taken one after the other, so that an iterator that loads them
        holds one; with one they are looked at together first.

        Args:
            stats: of each layer's inputs by name, where the method needs them.
            budget_bytes: for all matrices together; None takes the method's own settings for each.

        Raises:
            BudgetError: if the smallest settings together are too large.
        """
        chosen: Mapping[str, Quant] = {}
        if budget_bytes is not None:
            weights = list(weights)
            matrices = [(n, w) for n, w in weights if w.ndim != 1 and not is_table(n)]
            tables = [w.shape for n, w in weights if w.ndim != 1 and is_table(n)]
            spent = sum(self.table().packed_bytes(out, inner) for out, inner in tables)
            chosen = allocate(self, offers(self, matrices, stats=stats), budget_bytes - spent)
        packed: dict[str, Form | Tensor] = {}
        for name, weight in weights:
            if name in packed:
                raise ParameterError("two weights have one name", value=name)
            if weight.ndim == 1:
                packed[name] = weight.to(torch.float32, copy=True)
                continue
            method = self.table() if is_table(name) else chosen.get(name, self)
            known = (stats or {}).get(name)
            packed[name] = method.pack_one(weight, stats=known, generator=generator)
        return PackedModel(weights=packed)

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of a whole model of these sizes packed by `pack`.

        The loss is unknown until it was measured for the model.
        """
        layer = sum(self.packed_bytes(*shape) for shape in spec.layer_linears().values())
        table = self.table().packed_bytes(spec.vocab, spec.hidden) * (1 if spec.tied else 2)
        vectors = 4 * (spec.layers * spec.layer_norm_elements() + spec.hidden)
        held = spec.layers * layer + table + vectors
        return Cost(
            held={"dram": held},
            freed={"dram": spec.full_bytes() - held},
            operations=2.0 * (spec.linear_elements() + spec.vocab * spec.hidden) * load.batch,
            loss=None,
        )


class Nested(Quant):
    """Role: pack a weight as levels, of which any first few are a coarser weight."""

    @property
    @abstractmethod
    def least_levels(self) -> int:
        """Return how many levels a weight has at least."""

    @abstractmethod
    def levels(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> list[dict[str, Tensor]]:
        """Return the tensors of each level, the most important first; see `pack_one`."""

    @abstractmethod
    def level_bytes(self, out: int, inner: int) -> tuple[int, ...]:
        """Return exactly the bytes of each level of a weight [out, inner]."""

    @abstractmethod
    def first(self, levels: Sequence[Mapping[str, Tensor]], shape: tuple[int, int]) -> Form:
        """Return the weight of the first `least_levels` levels."""

    @abstractmethod
    def grow(self, form: Form, level: Mapping[str, Tensor]) -> Form:
        """Return the weight with its next level; `form` may share memory with it."""

    @abstractmethod
    def shrink(self, form: Form) -> Form:
        """Return the weight without its last level, holding none of that level's bytes."""

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        """Return the weight of all levels."""
        levels = self.levels(weight, stats=stats, generator=generator)
        form = self.first(levels[: self.least_levels], (weight.shape[0], weight.shape[1]))
        for level in levels[self.least_levels :]:
            form = self.grow(form, level)
        return form

    def packed_bytes(self, out: int, inner: int) -> int:
        """Return the bytes of all levels."""
        return sum(self.level_bytes(out, inner))

    @property
    def order(self) -> str:
        """Return how levels of all weights are sorted: one of `pile.ORDERS`."""
        return ORDERS[0]

    def pack(
        self,
        weights: Iterable[tuple[str, Tensor]],
        *,
        stats: Stats | None = None,
        budget_bytes: int | None = None,
        generator: Generator | None = None,
    ) -> PackedModel:
        """Return a model of all levels, or of those that fit the budget; see `Quant.pack`."""
        if budget_bytes is None:
            return super().pack(weights, stats=stats, generator=generator)
        vectors: dict[str, Tensor] = {}

        def matrices() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                if weight.ndim == 1:
                    vectors[name] = weight.to(torch.float32, copy=True)
                else:
                    yield name, weight

        taken = piled(self, matrices(), stats=stats, generator=generator)
        forms = within(self, taken, budget_bytes, generator)
        return PackedModel(weights={**forms, **vectors})


class Sensitive(Quant):
    """Role: pack some layers otherwise than the rest, by what each one alone was seen to lose."""

    @property
    def asks(self) -> bool:
        """Return whether these settings need to know."""
        return True

    @abstractmethod
    def probe(self, weight: Form | Tensor) -> Form:
        """Return a layer as it is but for the change whose effect is to be measured."""

    @abstractmethod
    def assign(self, losses: Mapping[str, float]) -> dict[str, Quant]:
        """Return the method of every layer.

        Args:
            losses: KL in nats per token that `probe` of each layer alone costs.
        """


def is_table(name: str) -> bool:
    """Return whether a weight of this name is of the embedding or the head."""
    return name.partition(".")[0] in _TABLES
