"""Which KV methods may follow which.

A chain is at most one method that selects, then at most one that encodes, then at most one that
retrieves what was dropped: `(SnapKV(), Bfp(bits=4))`, `(WindowKV(), LongMem())`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from loci.core.method import Granularity, Method
from loci.core.spec import ModelSpec
from loci.errors import MethodError
from loci.methods.kv.base import Encode, EncodeLayers, Select
from loci.methods.kv.retrieve import Retrieve

Chain = tuple[Method, ...]
Encoder = Encode | EncodeLayers


class Links(NamedTuple):
    """The methods of a chain by what they do."""

    select: Select | None
    encode: Encoder | None
    retrieve: Retrieve | None


def check_chain(chain: Iterable[Method]) -> Links:
    """Return the chain's methods that select, encode and retrieve.

    Raises:
        MethodError: if the order is wrong, a role appears twice, or the codes do not tolerate the
            selection's granularity.
    """
    select: Select | None = None
    encode: Encoder | None = None
    retrieve: Retrieve | None = None
    for method in chain:
        if retrieve is not None:
            raise _illegal(chain, f"{retrieve.about.name} retrieves, and comes last")
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
        elif isinstance(method, Retrieve):
            retrieve = method
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
    if retrieve and select is None:
        raise _illegal(
            chain, f"{retrieve.about.name} keeps what others drop, and nothing before it drops any"
        )
    if retrieve and isinstance(encode, EncodeLayers):
        raise _illegal(
            chain,
            f"{retrieve.about.name} keeps tokens by head, and {encode.about.name} has rows of "
            "whole layers",
        )
    if select and isinstance(encode, EncodeLayers) and encode.group_layers != 1:
        raise _illegal(
            chain,
            f"{select.about.name} selects layer by layer, and {encode.about.name} keeps rows of "
            "several layers together",
        )
    return Links(select, encode, retrieve)


def layer_groups(spec: ModelSpec, encode: Encoder | None) -> list[range]:
    """Return the layers that are encoded together; the last group may be shorter."""
    size = 1
    if isinstance(encode, EncodeLayers):
        size = spec.layers if encode.group_layers is None else encode.group_layers
    return [range(at, min(at + size, spec.layers)) for at in range(0, spec.layers, size)]


def due_tokens(encode: Encoder, waiting: int) -> int:
    """Return how many of the tokens that wait are to be encoded now."""
    return max(0, waiting - encode.exact_tokens) // encode.closes_every * encode.closes_every


def _illegal(chain: Iterable[Method], why: str) -> MethodError:
    rows = []
    for method in chain:
        role = "evicts by" if isinstance(method, Select) else "tolerates"
        grain = getattr(method, "granularity", None)
        rows.append(f"{method.about.name:<16}{role if grain else _role(method):<12}{grain or ''}")
    scale = " > ".join(grain.value for grain in Granularity)
    return MethodError(
        f"this chain cannot work: {why}",
        value=" | ".join(map(str, chain)),
        allowed="at most one that selects, then one that encodes, then one that retrieves",
        way_out=[*rows, f"granularity, coarsest first: {scale}"],
    )


def _role(method: Method) -> str:
    return "retrieves" if isinstance(method, Retrieve) else "is no KV method"
