"""Roles of KV methods.

Select says which stored tokens matter. Encode turns the tokens of a head into fewer bits, and
EncodeLayers does so with whole layers, or several of them together. Everything else is done once,
by the store: budgets, the choice itself, freeing storage, exact tails, rotation. What may follow
what is in `chain.py`, the bytes that a store of a chain takes in `store_plan.py`. Nothing here
needs torch until something is computed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from loci.core.cost import Cost
from loci.core.method import Granularity, Method
from loci.core.spec import ModelSpec, Workload
from loci.errors import MethodError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVBlock, KVView, Seen

Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype)

# Shapes: B batch, L layers, K key/value heads, S stored tokens, T tokens, D head size, w = K D.


class KVMethod(Method):
    """What all KV methods share: the cost of a store that uses one of them alone."""

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes held and freed; the loss is unknown until it was measured."""
        from loci.methods.kv.store_plan import predict_store  # it reads the roles

        held = predict_store(
            spec,
            (self,),
            max_tokens=load.context,
            batch=load.batch,
            budget_bytes=budget_bytes,
            chunk=min(512, load.context),
        )
        exact = predict_store(spec, (), max_tokens=load.context, batch=load.batch)
        return Cost(held={"dram": held}, freed={"dram": exact - held}, loss=None)

    @property
    def preparation(self) -> str:
        """The method, as far as what it prepares depends on its parameters."""
        return str(self)

    def prepare(self, lab: Lab) -> Artefact:
        """Return what the method needs to know of a model, found out once; see `Need.ARTEFACT`.

        The artefact is made out to `preparation`.
        """
        raise MethodError(f"{self.about.name} needs nothing prepared")

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return {name: (shape, dtype)} of what a store keeps once, for all rows and tokens."""
        return {}

    def shared(self, spec: ModelSpec, artefact: Artefact | None) -> Mapping[str, Tensor]:
        """Return the tensors of `shared_table`; by default those of what was prepared."""
        return {} if artefact is None else artefact.tensors


class Select(KVMethod):
    """Scores stored tokens; the store keeps the best and frees the rest.

    Attributes:
        granularity: HEAD when heads of a layer may keep different tokens, else GLOBAL.
        each_step: `score` is also asked when a decoded token finds the store full. Otherwise
            remembered scores decide then, and decoded tokens leave oldest first.
        each_chunk: `score` is also asked after chunks of a prompt that fit, and merged.
        allocates: LAYER when `allocate` gives every layer a number of tokens of its own, HEAD when
            it gives every head one, None when all get the same.
        reallocates: `allocate` is asked again after every chunk of a prompt that evicted, with
            scores; a method that probes is asked before anything is evicted, so what it says of all
            tokens is what happens. Such a store takes one row, because rows would decide for each
            other.
        probes_alike: what `probe_ids` returns is the same after every chunk, so one is enough.
    """

    granularity: ClassVar[Granularity] = Granularity.HEAD
    each_step: ClassVar[bool] = False
    each_chunk: ClassVar[bool] = False
    allocates: ClassVar[Granularity | None] = None
    reallocates: ClassVar[bool] = False
    probes_alike: ClassVar[bool] = False

    @abstractmethod
    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return how much each stored token matters, float32 [B, K, S]; higher stays longer.

        +inf protects; among equals the newer stay. Nothing that is passed in is changed.

        Args:
            view: all tokens of one layer, oldest first, those of the last chunk included.
            seen: the queries of that chunk, or of a probe, for methods that need them.
        """

    def merge(self, remembered: Tensor, fresh: Tensor) -> Tensor:
        """Return the scores to keep, from those remembered (+inf: never scored) and fresh ones."""
        return fresh

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        """Return how many tokens each layer [L] should have, or each head [L * K], by its number.

        Only proportions count: the store scales them to the bytes it has, gives everybody at
        least one token and nobody more than the context. None leaves things as they are.

        Args:
            scores: by layer, of its tokens before the last eviction [1, K, S]; -inf where a head
                has fewer than others. None when the store is made, before anything is known of
                the text.
            tokens: what each has when all have the same.
            prepared: the method's shared tensors.
            context: tokens of a row, kept or not, at most.
        """
        return None

    def probe_ids(self, ids: Sequence[int]) -> list[int]:
        """Return what to run through the model to score these tokens of the context."""
        return list(ids)

    def limit(self) -> int | None:
        """Return the most tokens the method ever keeps, or None when only the budget decides."""
        return None

    def protects(self) -> int:
        """Return how many tokens stay whatever their scores: a budget must have room for them."""
        return 0

    def scores_layers(self) -> int:
        """Return how many neighbouring layers go by the scores of the first; all get as much."""
        return 1


class CodeForm(NamedTuple):
    """Codes as kernels read them; see `loci.nn.native.Spans.add_coded`.

    Attributes:
        bits: of a code.
        block: channels that share an exponent, or a grid of values.
        group: tokens that share a grid of keys; 0 for block floating point.
    """

    bits: int
    block: int
    group: int = 0


class LevelForm(NamedTuple):
    """Turned codes as kernels read them; see `loci.nn.native.Spans.add_levels`.

    Attributes:
        bits_k, bits_v: of a code of keys and of values.
        signs: of the channels, before they are turned [D].
        levels_k, levels_v: what each code stands for, before it is scaled.
    """

    bits_k: int
    bits_v: int
    signs: tuple[float, ...]
    levels_k: tuple[float, ...]
    levels_v: tuple[float, ...]


class Encode(KVMethod):
    """Turns tokens into codes, token by token, once and for all.

    Attributes:
        granularity: the finest eviction of tokens the codes tolerate below themselves.
        keeps_groups: tokens that were encoded together can only be decoded together, so nothing
            may select among them.
    """

    granularity: ClassVar[Granularity] = Granularity.HEAD
    keeps_groups: ClassVar[bool] = False

    @property
    @abstractmethod
    def closes_every(self) -> int:
        """Tokens that wait in the exact tail and are encoded together."""

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that always stay exact."""
        return 0

    @property
    def first_tokens(self) -> int:
        """Tokens at the beginning that stay exact beside their codes, as long as they are kept."""
        return 0

    @abstractmethod
    def code_table(self, head_dim: int) -> Shapes:
        """Return {name: (shape, dtype)} of the codes of one token of one head."""

    def decode_operations(self, spec: ModelSpec) -> float:
        """Return the operations that make one number of what is stored."""
        return 2.0

    def code_form(self, head_dim: int) -> CodeForm | LevelForm | None:
        """Return how kernels may read the codes; None where only `decode` can."""
        return None

    def fixed_table(self, spec: ModelSpec) -> Shapes:
        """Return {name: (shape, dtype)} of what each row stores once, whatever the length."""
        return {}

    def learn(self, block: KVBlock) -> dict[str, Tensor] | None:
        """Return a layer's part [B, K, ...] of each tensor of `fixed_table`; None: it was given.

        Asked once per layer, with the first tokens that are encoded, where there is a table. An
        "order" [B, K, D] is the channel order in which keys are stored.
        """
        return {}

    @abstractmethod
    def encode(self, block: KVBlock, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the codes, each [B, K, T, ...] as `code_table` says.

        Args:
            fixed: the layer's part of what `fixed_table` names.
        """

    @abstractmethod
    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys (in their stored order) and values, float32 [B, k, T, D], of some heads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerGroup:
    """Layers whose tokens are encoded together.

    Attributes:
        spec: of the model.
        layers: their indices.
        shared: the method's shared tensors.
    """

    spec: ModelSpec
    layers: range
    shared: Mapping[str, Tensor] = field(default_factory=dict)


class LatentForm(NamedTuple):
    """Rows of layers as kernels read them; see `loci.nn.native.Side`.

    Rows "keys" and "values" stand for numbers in the directions of their layer, which are shared
    as "keys" and "keys_mean" in float16. Coded rows have "keys_gain", and shared "keys_size" and
    "keys_bits".

    Attributes:
        steps: of codes, by bits 0 to 8; () where rows are the numbers, in float16.
    """

    steps: tuple[float, ...] = ()


class Landmarks(NamedTuple):
    """How a token that is decoded chooses what it reads; see `EncodeLayers.landmarks`.

    Attributes:
        tokens: that stand together and share the mean of their keys, the landmark.
        chunks: of so many tokens, that a key/value head reads, beside those of the first tokens.
    """

    tokens: int
    chunks: int


class EncodeLayers(KVMethod):
    """Turns tokens of whole layers, or of several layers together, into rows and bases.

    Tokens wait in an exact tail. When `closes_every` of them stand before the `exact_tokens` that
    stay exact, they are encoded, once and for all, after the last layer of their group attended.
    Every token becomes a row of the group; every `closes_every` tokens share a basis. Keys come and
    go without their rotation: the store turns them back and forth by position, in float32.

    Attributes:
        granularity: the finest eviction of tokens the rows tolerate below themselves.
        keeps_groups: tokens that were encoded together can only be decoded together, so nothing
            may select among them.
    """

    granularity: ClassVar[Granularity] = Granularity.LAYER
    keeps_groups: ClassVar[bool] = True

    @property
    @abstractmethod
    def closes_every(self) -> int:
        """Tokens that are encoded together and share a basis."""

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that always stay exact."""
        return 0

    @property
    def first_tokens(self) -> int:
        """Tokens at the beginning that stay exact beside their rows, while nothing selects."""
        return 0

    @property
    def group_layers(self) -> int | None:
        """Neighbouring layers that are encoded together; None is all of them."""
        return 1

    @property
    def landmarks(self) -> Landmarks | None:
        """Return how a token that is decoded chooses what it reads; None where it reads all.

        Steps of several tokens read all.
        """
        return None

    def check(self, spec: ModelSpec) -> None:
        """Raise MethodError or ParameterError unless the method can work on this model."""

    @abstractmethod
    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return {name: (shape, dtype)} of one token of these layers."""

    def latent_form(self) -> LatentForm | None:
        """Return how kernels may read the rows; None where only `decode` can."""
        return None

    def decode_operations(self, spec: ModelSpec) -> float:
        """Return the operations that make one number of what is stored: a row of a matrix."""
        return 2.0 * spec.kv_heads * spec.head_dim

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return {name: (shape, dtype)} of what the tokens that are encoded together share."""
        return {}

    def carried(self, spec: ModelSpec) -> int:
        """Return how many numbers of each token are handed on from layer to layer in decoding."""
        return 0

    @abstractmethod
    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return rows, each [B, T, ...], and bases, each [B, N, ...].

        Args:
            blocks: of each layer of the group, T = N * `closes_every` tokens in float32, keys not
                rotated. Padding is zero.
        """

    @abstractmethod
    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys that are not rotated, and values, of one layer, float32 [B, K, T, D].

        Args:
            rows: [B, T, ...]; whole groups of tokens where the method keeps groups.
            bases: [B, N, ...].
            carried_BTc: what the layer before left of these tokens, zero before the first; is
                changed in place. None where nothing is carried.
        """

    def decode_heads(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        heads: slice,
        group: LayerGroup,
    ) -> tuple[Tensor, Tensor]:
        """Return keys that are not rotated, and values, of some heads, float32 [k, T, D].

        Asked of methods with landmarks.

        Args:
            rows: [k, T, ...], for each head of any tokens that share a basis.
            bases: [...], which they share.
        """
        raise MethodError(
            f"{self.about.name} has no landmarks", way_out=f"{self.about.name}.decode"
        )


def as_rows(x_BKTD: Tensor) -> Tensor:
    """Return tokens of all heads as rows, [B, T, w]."""
    return x_BKTD.transpose(1, 2).flatten(2)


def as_heads(rows_BTw: Tensor, spec: ModelSpec) -> Tensor:
    """Return rows as tokens of each head, [B, K, T, D]."""
    return rows_BTw.unflatten(2, (spec.kv_heads, spec.head_dim)).transpose(1, 2)
