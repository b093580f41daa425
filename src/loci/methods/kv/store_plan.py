"""Every tensor that a KV store of a chain holds, and so its bytes.

The table of `store_plan` is read by prediction and by allocation alike, so predicted bytes are the
bytes held. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, prod

from loci.core.method import Need
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, ParameterError
from loci.methods.kv.base import Encode, EncodeLayers, Select, Shapes
from loci.methods.kv.chain import Chain, Encoder, check_chain, due_tokens, layer_groups
from loci.methods.kv.retrieve import Retrieve
from loci.units import format_bytes

BLOCK_TOKENS = 64  # an exact store's tokens are rounded up to whole blocks
ROOM_TOKENS = 32  # free slots an eviction makes at most, so that decoding evicts rarely
DECODE_TOKENS = 1024  # stored tokens that are decoded at once; `loci.nn.kv.TILE_TOKENS`
SIZES = {"uint8": 1, "int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4}


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
        on_disk: names of tensors that lie in a file instead of the store's tier.
    """

    slots: int
    keep: int
    tail: int
    staged_layers: int
    tensors: Shapes = field(default_factory=dict)

    on_disk: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the store's tier."""
        return table_bytes({n: t for n, t in self.tensors.items() if n not in self.on_disk})

    @property
    def disk_bytes(self) -> int:
        """Bytes of the tensors that lie in files."""
        return table_bytes({n: t for n, t in self.tensors.items() if n in self.on_disk})


def kept_tokens(slots: int, limit: int | None = None) -> int:
    """Return how many tokens an eviction leaves in `slots`."""
    keep = slots - min(ROOM_TOKENS, slots // 9)
    return keep if limit is None else min(keep, limit)


def slots_for(keep: int) -> int:
    """Return the fewest slots of which an eviction leaves so many tokens, at least one.

    >>> slots_for(0), slots_for(8), slots_for(36)
    (1, 8, 40)
    """
    slots = max(1, keep)
    while kept_tokens(slots) < keep:
        slots += 1
    return slots


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
        BudgetError: if not even the tokens that always stay, one of them at least, or without a
            Select not all tokens, fit.
    """
    select, encode, retrieve = check_chain(chain)
    for name, value in (("max_tokens", max_tokens), ("batch", batch), ("chunk", chunk)):
        if value < 1:
            raise ParameterError(f"{name} of a KV store must be >= 1", value=value)
    if dtype_bytes not in (2, 4):
        raise ParameterError("a KV store keeps 2 or 4 bytes", value=dtype_bytes, allowed="2, 4")
    real = "float32" if dtype_bytes == 4 else "float16"

    def plan(slots: int, keep: int) -> StorePlan:
        return _table(spec, select, encode, retrieve, slots, keep, max_tokens, batch, real, chunk)

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
        least = slots_for(min(select.protects(), max_tokens))
        if slots < least:
            raise _too_small(chain, fixed + least * each, budget_bytes, least)
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
    select, encode, retrieve = check_chain(chain)
    real = "float32" if dtype_bytes == 4 else "float16"
    return _table(
        spec, select, encode, retrieve, tokens, tokens, max_tokens, batch, real, chunk
    ).nbytes


def decoded_tokens(chain: Chain, max_tokens: int) -> int:
    """Return how many stored tokens attention decodes from codes at once; 0 without an encoder."""
    encode = check_chain(chain).encode
    if encode is None:
        return 0
    whole = encode.closes_every if encode.keeps_groups else 1
    return min(max_tokens, max(DECODE_TOKENS, whole))


# -- private ----------------------------------------------------------------------------------


def _table(
    spec: ModelSpec,
    select: Select | None,
    encode: Encoder | None,
    retrieve: Retrieve | None,
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
        tail = min(encode.exact_tokens + encode.closes_every, max_tokens)
        for name, (shape, dtype) in encode.code_table(size).items():
            tensors[f"codes.{name}"] = ((batch, layers, heads, slots, *shape), dtype)
        for name, (shape, dtype) in encode.fixed_table(spec).items():
            tensors[f"fixed.{name}"] = ((batch, *shape), dtype)
        if encode.first_tokens:
            first = min(encode.first_tokens, max_tokens)
            tensors["first"] = ((batch, layers, 2, heads, first, size), real)
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
        if (marks := encode.landmarks) is not None:
            chunks = -(-slots // marks.tokens)
            tensors["landmarks"] = ((batch, layers, heads, chunks, size), "float16")
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
    on_disk: set[str] = set()
    if retrieve is not None and slots < max_tokens:  # else nothing is ever dropped
        for name, (shape, dtype) in retrieve.bank_table(spec, max_tokens).items():
            tensors[f"bank.{name}"] = ((batch, layers, heads, *shape), dtype)
        on_disk = {f"bank.{name}" for name in retrieve.on_disk()}
    return StorePlan(
        slots=slots,
        keep=keep,
        tail=tail,
        staged_layers=staged,
        tensors=tensors,
        on_disk=frozenset(on_disk),
    )


def table_bytes(tensors: Shapes) -> int:
    """Return the bytes of all tensors of a table."""
    return sum(prod(shape) * SIZES[dtype] for shape, dtype in tensors.values())


def _too_small(chain: Chain, need: int, budget: int, tokens: int) -> BudgetError:
    name = " | ".join(map(str, chain)) or "an exact KV cache"
    return BudgetError(
        f"{name} needs {format_bytes(need)} for {tokens} tokens; the budget gives "
        f"{format_bytes(budget)} ({format_bytes(need - budget)} short)",
        way_out="a smaller --context, fewer tokens a chunk, fewer bits, or a chain that selects",
    )
