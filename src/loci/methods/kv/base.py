"""Roles of KV methods, the chains they may form, and the bytes a store of them takes.

Select says which stored tokens matter. Encode turns the tokens of a head into fewer bits, and
EncodeLayers does so with whole layers, or several of them together. A chain is at most one that
selects, then at most one that encodes: `(SnapKV(), Bfp(bits=4))`. Everything else is done once, by
the store: budgets, the choice itself, freeing storage, exact tails, rotation.

The table of `store_plan` is read by prediction and by allocation alike, so predicted bytes are the
bytes held. Nothing here needs torch until something is computed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, prod
from typing import TYPE_CHECKING, ClassVar

from loci.core.cost import Cost
from loci.core.method import Granularity, Method, Need
from loci.core.spec import ModelSpec, Workload
from loci.errors import BudgetError, MethodError, ParameterError
from loci.units import format_bytes

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVBlock, KVView, Seen

BLOCK_TOKENS = 64  # an exact store's tokens are rounded up to whole blocks
ROOM_TOKENS = 32  # free slots an eviction makes at most, so that decoding evicts rarely
DECODE_TOKENS = 1024  # stored tokens that are decoded at once; `loci.nn.kv.TILE_TOKENS`
SIZES = {"uint8": 1, "int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4}

Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype)

# Shapes: B batch, L layers, K key/value heads, S stored tokens, D head size.


class KVMethod(Method):
    """What all KV methods share: the cost of a store that uses one of them alone."""

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes held and freed; the loss is unknown until it was measured."""
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
            scores. Such a store takes one row, because rows would decide for each other.
    """

    granularity: ClassVar[Granularity] = Granularity.HEAD
    each_step: ClassVar[bool] = False
    each_chunk: ClassVar[bool] = False
    allocates: ClassVar[Granularity | None] = None
    reallocates: ClassVar[bool] = False

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

    def scores_layers(self) -> int:
        """Return how many neighbouring layers go by the scores of the first; all get as much."""
        return 1


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

    @abstractmethod
    def code_table(self, head_dim: int) -> Shapes:
        """Return {name: (shape, dtype)} of the codes of one token of one head."""

    def fixed_table(self, spec: ModelSpec) -> Shapes:
        """Return {name: (shape, dtype)} of what each row stores once, whatever the length."""
        return {}

    def order(self, block: KVBlock) -> Tensor | None:
        """Return the channel order [B, K, D] in which this layer's keys are stored, or None.

        Asked once per layer, with the first tokens that are encoded, of an encoder whose
        `fixed_table` has an "order".
        """
        return None

    @abstractmethod
    def encode(self, block: KVBlock, order: Tensor | None) -> dict[str, Tensor]:
        """Return the codes, each [B, K, T, ...] as `code_table` says."""

    @abstractmethod
    def decode(self, codes: Mapping[str, Tensor], head_dim: int) -> tuple[Tensor, Tensor]:
        """Return keys (in their stored order) and values, float32 [B, K, T, D]."""


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

    def check(self, spec: ModelSpec) -> None:
        """Raise MethodError or ParameterError unless the method can work on this model."""

    @abstractmethod
    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return {name: (shape, dtype)} of one token of these layers."""

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


Chain = tuple[Method, ...]
Encoder = Encode | EncodeLayers


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """Every tensor a store holds.

    Attributes:
        slots: stored tokens per layer, the exact tail of an encoder not counted; on average, where
            layers or heads have numbers of their own.
        keep: tokens an eviction leaves in them.
        tail: tokens of the exact tail.
        staged_layers: layers whose fresh chunk waits outside the slots; 0 where chunks go straight
            into them.
        tensors: {name: (shape, dtype)}.
    """

    slots: int
    keep: int
    tail: int
    staged_layers: int
    tensors: Shapes = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return _table_bytes(self.tensors)


def check_chain(chain: Iterable[Method]) -> tuple[Select | None, Encoder | None]:
    """Return the chain's methods that select and encode.

    Raises:
        MethodError: if the order is wrong, a role appears twice, or the codes do not tolerate the
            selection's granularity.
    """
    select: Select | None = None
    encode: Encoder | None = None
    for method in chain:
        if isinstance(method, Select):
            if encode is not None:
                raise _illegal(chain, f"{method.about.name} selects after {encode.about.name}")
            if select is not None:
                raise _illegal(chain, f"{select.about.name} and {method.about.name} both select")
            select = method
        elif isinstance(method, Encode | EncodeLayers):
            if encode is not None:
                raise _illegal(chain, f"{encode.about.name} and {method.about.name} both encode")
            encode = method
        else:
            raise _illegal(chain, f"{method.about.name} is no method for a KV cache")
    if select and encode and encode.keeps_groups:
        raise _illegal(
            chain,
            f"{select.about.name} drops single tokens, {encode.about.name} decodes whole groups",
        )
    if select and encode and select.granularity.fineness > encode.granularity.fineness:
        raise _illegal(
            chain,
            f"{select.about.name} evicts by {select.granularity}, and {encode.about.name} "
            f"tolerates nothing finer than {encode.granularity}",
        )
    if select and isinstance(encode, EncodeLayers) and encode.group_layers != 1:
        raise _illegal(
            chain,
            f"{select.about.name} selects layer by layer, and {encode.about.name} keeps rows of "
            "several layers together",
        )
    return select, encode


def layer_groups(spec: ModelSpec, encode: Encoder | None) -> list[range]:
    """Return the layers that are encoded together; the last group may be shorter."""
    size = 1
    if isinstance(encode, EncodeLayers):
        size = spec.layers if encode.group_layers is None else encode.group_layers
    return [range(at, min(at + size, spec.layers)) for at in range(0, spec.layers, size)]


def due_tokens(encode: Encoder, waiting: int) -> int:
    """Return how many of the tokens that wait are to be encoded now."""
    exact = encode.exact_tokens if isinstance(encode, EncodeLayers) else 0
    return max(0, waiting - exact) // encode.closes_every * encode.closes_every


def kept_tokens(slots: int, limit: int | None = None) -> int:
    """Return how many tokens an eviction leaves in `slots`."""
    keep = slots - min(ROOM_TOKENS, slots // 9)
    return keep if limit is None else min(keep, limit)


def fitted(wanted: Sequence[float], total: int, most: int) -> list[int]:
    """Return whole numbers in proportion to `wanted` that add up to `total`.

    Each is at least 1 and at most `most`; what one cannot take goes to the others in proportion.

    Raises:
        ParameterError: if a number is negative or not finite, or the total below their count.
    """
    count = len(wanted)
    if total < count or any(not 0 <= w < float("inf") for w in wanted):
        raise ParameterError("these shares cannot be fitted", value=(list(wanted), total))
    if total >= count * most:
        return [most] * count
    found: list[float] = [1.0] * count
    free = set(range(count))
    left = float(total - count)
    weights = list(wanted) if sum(wanted) > 0 else [1.0] * count
    while free:
        weight = sum(weights[i] for i in free)
        if weight <= 0:  # those with a share are full; the others get the rest alike
            weights = [1.0] * count
            continue
        full = {i for i in free if found[i] + left * weights[i] / weight > most}
        if not full:
            for i in free:
                found[i] += left * weights[i] / weight
            break
        for i in full:
            left -= most - found[i]
            found[i] = float(most)
        free -= full
    whole = [min(most, floor(x + 1e-9)) for x in found]
    order = sorted(range(count), key=lambda i: (whole[i] - found[i], i))
    for i in (*order, *order):
        if sum(whole) < total and whole[i] < most:
            whole[i] += 1
    return whole


def store_plan(
    spec: ModelSpec,
    chain: Chain = (),
    *,
    max_tokens: int,
    batch: int = 1,
    dtype_bytes: int = 4,
    budget_bytes: int | None = None,
    chunk: int = 512,
) -> StorePlan:
    """Return every tensor that a store for these arguments holds.

    Args:
        max_tokens: logical tokens per row, whether kept or not.
        dtype_bytes: 4 for float32, 2 for float16, of tokens that are not encoded.
        budget_bytes: the most bytes the store may hold; a Select then keeps what fits.
        chunk: tokens one step appends at most.

    Raises:
        BudgetError: if not even one token, or without a Select not all of them, fit.
    """
    select, encode = check_chain(chain)
    for name, value in (("max_tokens", max_tokens), ("batch", batch), ("chunk", chunk)):
        if value < 1:
            raise ParameterError(f"{name} of a KV store must be >= 1", value=value)
    if dtype_bytes not in (2, 4):
        raise ParameterError("a KV store keeps 2 or 4 bytes", value=dtype_bytes, allowed="2, 4")
    real = "float32" if dtype_bytes == 4 else "float16"

    def plan(slots: int, keep: int) -> StorePlan:
        return _table(spec, select, encode, slots, keep, max_tokens, batch, real, chunk)

    if isinstance(encode, EncodeLayers):
        encode.check(spec)
    slots = max_tokens
    if select is None:
        if isinstance(encode, EncodeLayers):
            slots = due_tokens(encode, max_tokens)
        if encode is None:
            slots = -(-max_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        whole = plan(slots, slots)
        if budget_bytes is not None and whole.nbytes > budget_bytes:
            raise _too_small(chain, whole.nbytes, budget_bytes, max_tokens)
        return whole
    limit = select.limit()
    if limit is not None:
        slots = min(slots, limit + min(ROOM_TOKENS, -(-limit // 8)))
    if budget_bytes is not None and plan(slots, slots).nbytes > budget_bytes:
        fixed = plan(0, 0).nbytes
        each = plan(1, 1).nbytes - fixed
        slots = min(slots, (budget_bytes - fixed) // each)
        if slots < 1:
            raise _too_small(chain, fixed + each, budget_bytes, 1)
    return plan(slots, kept_tokens(slots, limit))


def predict_store(
    spec: ModelSpec,
    chain: Chain = (),
    *,
    max_tokens: int,
    batch: int = 1,
    dtype_bytes: int = 4,
    budget_bytes: int | None = None,
    chunk: int = 512,
) -> int:
    """Return exactly the bytes that `loci.run.kvstore.KVStore` holds for the same arguments."""
    return store_plan(
        spec,
        chain,
        max_tokens=max_tokens,
        batch=batch,
        dtype_bytes=dtype_bytes,
        budget_bytes=budget_bytes,
        chunk=chunk,
    ).nbytes


def budget_for(
    spec: ModelSpec,
    chain: Chain,
    tokens: int,
    *,
    max_tokens: int,
    batch: int = 1,
    dtype_bytes: int = 4,
    chunk: int = 512,
) -> int:
    """Return the smallest budget in bytes with which the store has slots for `tokens`."""
    select, encode = check_chain(chain)
    real = "float32" if dtype_bytes == 4 else "float16"
    return _table(spec, select, encode, tokens, tokens, max_tokens, batch, real, chunk).nbytes


def decoded_tokens(chain: Chain, max_tokens: int) -> int:
    """Return how many stored tokens attention decodes from codes at once; 0 without an encoder."""
    _, encode = check_chain(chain)
    if encode is None:
        return 0
    whole = encode.closes_every if encode.keeps_groups else 1
    return min(max_tokens, max(DECODE_TOKENS, whole))


# -- private ----------------------------------------------------------------------------------


def _table(
    spec: ModelSpec,
    select: Select | None,
    encode: Encoder | None,
    slots: int,
    keep: int,
    max_tokens: int,
    batch: int,
    real: str,
    chunk: int,
) -> StorePlan:
    layers, heads, size = spec.layers, spec.kv_heads, spec.head_dim
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    places = slots if select is None and encode is None else max_tokens
    tensors["positions"] = ((batch, places), "int32")
    tail, group = 0, 1
    hidden = encode is not None and Need.HIDDEN in encode.about.needs
    if encode is None:
        tensors["slots"] = ((batch, layers, 2, heads, slots, size), real)
    elif isinstance(encode, Encode):
        tail = encode.closes_every
        for name, (shape, dtype) in encode.code_table(size).items():
            tensors[f"codes.{name}"] = ((batch, layers, heads, slots, *shape), dtype)
        for name, (shape, dtype) in encode.fixed_table(spec).items():
            tensors[f"fixed.{name}"] = ((batch, *shape), dtype)
    else:
        groups = layer_groups(spec, encode)
        tail, group = min(encode.exact_tokens + encode.closes_every, max_tokens), len(groups[0])
        for name, (shape, dtype) in encode.row_table(spec, groups[0]).items() if group == 1 else ():
            tensors[f"rows.{name}"] = ((batch, layers, slots, *shape), dtype)
        for number, of_group in enumerate(groups):
            for name, (shape, dtype) in encode.row_table(spec, of_group).items():
                if group > 1:
                    tensors[f"rows.{number}.{name}"] = ((batch, slots, *shape), dtype)
            bases = -(-slots // encode.closes_every)
            for name, (shape, dtype) in encode.basis_table(spec, of_group).items():
                tensors[f"bases.{number}.{name}"] = ((batch, bases, *shape), dtype)
        if encode.first_tokens and select is None:
            first = min(encode.first_tokens, slots)
            tensors["first"] = ((batch, layers, 2, heads, first, size), real)
        if carried := encode.carried(spec):
            # One number more says which layer it was left by.
            tensors["carried"] = ((batch, slots, carried + 1), "float32")
    if encode is not None:
        tensors["tail"] = ((batch, layers, 2, heads, tail, size), real)
    if hidden:
        tensors["tail_hidden"] = ((batch, layers, tail, spec.hidden), real)
    for method in (select, encode):
        if method is None:
            continue
        for name, entry in method.shared_table(spec).items():
            tensors[f"shared.{method.about.name}.{name}"] = entry
    staged = 0
    if select is not None:
        tensors["slot_positions"] = ((batch, layers, heads, slots), "int32")
        tensors["scores"] = ((batch, layers, heads, slots), "float32")
    if encode is not None or (select is not None and slots < max_tokens):
        staged = layers if select is not None and Need.PROBE in select.about.needs else group
        step = min(chunk, max_tokens)
        tensors["staged"] = ((batch, staged, 2, heads, step, size), real)
        if hidden:
            tensors["staged_hidden"] = ((batch, staged, step, spec.hidden), real)
    return StorePlan(slots=slots, keep=keep, tail=tail, staged_layers=staged, tensors=tensors)


def _table_bytes(tensors: Shapes) -> int:
    return sum(prod(shape) * SIZES[dtype] for shape, dtype in tensors.values())


def _illegal(chain: Iterable[Method], why: str) -> MethodError:
    rows = []
    for method in chain:
        role = {True: "evicts by", False: "tolerates"}[isinstance(method, Select)]
        grain = getattr(method, "granularity", None)
        rows.append(
            f"{method.about.name:<16}{role if grain else 'is no KV method':<12}{grain or ''}"
        )
    scale = " > ".join(grain.value for grain in Granularity)
    return MethodError(
        f"this chain cannot work: {why}",
        value=" | ".join(map(str, chain)),
        allowed="at most one that selects, then at most one that encodes",
        way_out=[*rows, f"granularity, coarsest first: {scale}"],
    )


def _too_small(chain: Chain, need: int, budget: int, tokens: int) -> BudgetError:
    name = " | ".join(map(str, chain)) or "an exact KV cache"
    return BudgetError(
        f"{name} needs {format_bytes(need)} for {tokens} tokens; the budget gives "
        f"{format_bytes(budget)} ({format_bytes(need - budget)} short)",
        way_out="a smaller --context, fewer tokens a chunk, fewer bits, or a chain that selects",
    )
