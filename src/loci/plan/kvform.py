"""Forms of the KV cache: how many bytes each takes, and what it costs in quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from loci.core.card import Card
from loci.core.method import Method
from loci.core.spec import ModelSpec, Workload
from loci.errors import LociError
from loci.methods import catalogue

KVDtype = Literal["float32", "float16"]
Cards = Callable[[str, str], Card | None]

DTYPE_BYTES = {"float32": 4, "float16": 2}
SUITE, METRIC = "reference", "kl"  # where cards keep the KL to the full model
_BLOCK, _LEAST_BLOCK = 32, 8  # channels that share an exponent: as published, and the fewest
ALIKE = 0.001  # nats a token; losses that differ by less, measured on a few texts, are as good
_TURNED = (
    ("turboquant", "4"),
    ("turboquant(bits_v=3)", "4 and 3"),
    ("turboquant(bits_k=3, bits_v=3)", "3"),
)
_PROBES = 24  # halvings when a KV budget is searched; far below a token for any cache


@dataclass(frozen=True, kw_only=True)
class KVForm:
    """One way to keep the KV cache.

    Attributes:
        chain: text of the chain of methods, "" keeps every token as it is.
        dtype: of the tokens that are kept as they are.
        words: for people who do not know the methods.
        share: of the full bytes that a chain which drops tokens gets at least, because it was
            measured there; 0 where nobody said.
        suite: of the last method's card, where the whole chain was measured; "" for the suite
            `reference`, link by link.
        tokens: of the texts it was measured on there.
    """

    chain: str = ""
    dtype: KVDtype = "float32"
    words: str = "a shortened form"
    share: float = 0.0
    suite: str = ""
    tokens: int = 0

    def methods(self) -> tuple[Method, ...]:
        """Return the methods of the chain."""
        return _methods(self.chain)

    @property
    def name(self) -> str:
        """The chain, or the number format where there is none."""
        return self.chain or self.dtype


EXACT = KVForm(dtype="float32", words="32 bits a number")


@cache
def ladder(head_dim: int) -> tuple[KVForm, ...]:
    """Return the forms to choose from for heads of this size, more bits first.

    Exponents are shared by blocks, which must divide the head, and heads are turned in such blocks;
    where no block does, the codes are left out.
    """
    block = min(_BLOCK, head_dim & -head_dim)
    size = "" if block == _BLOCK else f", block={block}"
    codes = [
        KVForm(chain=f"bfp(bits={bits}{size})", words=f"{bits} bits a number") for bits in (8, 6, 5)
    ]
    for chain, bits in _TURNED:
        codes.append(KVForm(chain=chain, words=f"{bits} bits a number, turned"))
    half = KVForm(dtype="float16", words="16 bits a number")
    return (EXACT, half, *(codes if block >= _LEAST_BLOCK else ()))


def by_loss(forms: tuple[KVForm, ...], spec: ModelSpec, cards: Cards) -> tuple[KVForm, ...]:
    """Order forms by measured KL; where one of them is unknown, more bits come first."""
    losses = [loss_of(form, spec, cards)[0] for form in forms]
    if any(loss is None for loss in losses):
        return forms
    order = sorted(range(len(forms)), key=lambda i: (losses[i] or 0.0, i))
    return tuple(forms[i] for i in order)


def loss_of(form: KVForm, spec: ModelSpec, cards: Cards) -> tuple[float | None, str]:
    """Return the KL of a form on this model, or None, and a note where it is not measured.

    The loss of a chain is the sum of its links, which is an estimate.
    """
    if form == EXACT:
        return 0.0, ""
    links: list[tuple[str, Mapping[str, object]]]
    if form.chain:
        links = [(method.about.name, method.parameters()) for method in form.methods()]
    else:
        links = [("exact", {"dtype": form.dtype})]
    total = 0.0
    links = links[-1:] if form.suite else links
    for name, parameters in links:
        kl, note = measured(cards("kv", name), parameters, spec, form.suite or SUITE)
        if kl is None:
            return None, note
        total += kl
    if form.suite:
        return total, f"what keeping it so costs was measured on {form.tokens:,} tokens"
    return total, "the sum over the parts of the chain, an estimate" if len(links) > 1 else ""


def kv_bytes(
    form: KVForm, spec: ModelSpec, load: Workload, chunk: int, room: float
) -> tuple[int, int | None, int]:
    """Return the KV bytes in `room`, the budget the store gets, and the least it could do with.

    Only methods that choose tokens take a budget; all other forms have one size.
    """

    def held(budget: int | None) -> int | None:
        try:
            return _predicted(spec, form, load.context, load.batch, chunk, budget)
        except LociError:  # the methods cannot work with so few bytes
            return None

    whole = _predicted(spec, form, load.context, load.batch, chunk, None)
    if not _chooses(form):
        return whole, None, whole
    # Below the share it was measured at nobody knows what a form loses.
    refused, smallest = int(form.share * spec.kv_bytes(load.context) * load.batch) - 1, whole
    for _ in range(_PROBES):
        middle = (refused + smallest) // 2
        if smallest - refused > 1:
            refused, smallest = (middle, smallest) if held(middle) is None else (refused, middle)
    least = held(smallest) or whole
    if whole <= room:
        return whole, whole, least
    best, kv, too_much = smallest, least, whole
    for _ in range(_PROBES):
        middle = (best + too_much) // 2
        need = held(middle)
        if need is not None and need <= room:
            best, kv = middle, need
        else:
            too_much = middle
    return kv, best, least


def kv_on_disk(
    form: KVForm, spec: ModelSpec, load: Workload, chunk: int, budget: int | None
) -> int:
    """Return the KV bytes that lie in a file, of a store with this budget."""
    if not form.chain:
        return 0
    from loci.methods.kv.store_plan import store_plan

    return store_plan(
        spec,
        form.methods(),
        max_tokens=load.context,
        batch=load.batch,
        dtype_bytes=DTYPE_BYTES[form.dtype],
        budget_bytes=budget,
        chunk=chunk,
    ).disk_bytes


@cache
def decoded(form: KVForm, context: int) -> int:
    """Return the tokens that attention decodes at once; 0 where nothing is encoded."""
    if not form.chain:
        return 0
    from loci.methods.kv.store_plan import decoded_tokens

    return decoded_tokens(form.methods(), context)


@cache
def decode_operations(form: KVForm, spec: ModelSpec) -> float:
    """Return what it takes to make a number of what is stored; 0 where nothing is encoded."""
    if not form.chain:
        return 0.0
    from loci.methods.kv.chain import check_chain

    encode = check_chain(form.methods()).encode
    return 0.0 if encode is None else encode.decode_operations(spec)


@cache
def read_tokens(form: KVForm, tokens: int) -> int:
    """Return how many of so many tokens a decoded one reads, landmarks counted by their bytes."""
    from loci.methods.kv.base import EncodeLayers

    encode = next((m for m in form.methods() if isinstance(m, EncodeLayers)), None)
    if encode is None or (marks := encode.landmarks) is None:
        return tokens
    always = -(-encode.first_tokens // marks.tokens)
    chosen = (always + marks.chunks) * marks.tokens
    exact = encode.exact_tokens + encode.closes_every // 2  # half a segment waits, on average
    landmarks = tokens // (2 * marks.tokens)  # each is a key without a value
    return min(tokens, chosen + exact + landmarks)


def is_bounded(method: Method) -> bool:
    """Return whether a method keeps some tokens and drops others."""
    from loci.methods.kv.base import Select

    return isinstance(method, Select)


def measured(
    card: Card | None, parameters: Mapping[str, object], spec: ModelSpec, suite: str = SUITE
) -> tuple[float | None, str]:
    """Return the KL a card has for these parameters on this model, or None and what to say."""
    unknown = "quality unknown for this model"
    rows = [] if card is None else [m for m in card.measurements if METRIC in m.metrics]
    rows = [m for m in rows if {**parameters, **m.parameters} == dict(parameters)]
    for row in rows:
        if spec.fingerprint and row.fingerprint == spec.fingerprint and row.suite == suite:
            return float(row.metrics[METRIC]["this"]), ""
    if rows:
        kl = rows[0].metrics[METRIC]["this"]
        return None, f"{unknown}; on {rows[0].model}: {kl:.4f} nats per token"
    return None, unknown


# -- private ----------------------------------------------------------------------------------


@cache
def _methods(chain: str) -> tuple[Method, ...]:
    return catalogue.parse_chain(chain, "kv")


@cache
def _predicted(
    spec: ModelSpec, form: KVForm, context: int, batch: int, chunk: int, budget: int | None
) -> int:
    from loci.methods.kv.store_plan import predict_store  # brings torch

    return predict_store(
        spec,
        form.methods(),
        max_tokens=context,
        batch=batch,
        dtype_bytes=DTYPE_BYTES[form.dtype],
        budget_bytes=budget,
        chunk=chunk,
    )


@cache
def _chooses(form: KVForm) -> bool:
    """Return whether a chain has a method that keeps some tokens and drops others."""
    if not form.chain:
        return False
    return any(map(is_bounded, form.methods()))
