"""KV stores as tensors and JSON facts, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any  # JSON values

from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import FingerprintError, FormatError, MethodError
from loci.methods.kv.chain import Chain
from loci.run.kv_pool import Pool

FORMAT, VERSION = "loci-kv", 2
_TRANSIENT = ("staged", "carried")  # empty, or counted anew, between two steps


def tensors_of(pool: Pool) -> dict[str, Tensor]:
    """Return copies of a pool's tensors, as far as they are in use.

    Raises:
        MethodError: if a chunk still waits to be folded in.
    """
    if any(pool.staged_count):
        raise MethodError("a chunk is unfinished", way_out="call finish_prompt first")
    return {
        name: tensor.narrow(pool.token_axis(name), 0, used).clone()
        if (used := pool.used(name)) is not None
        else tensor.clone()
        for name, tensor in pool.tensors.items()
        if not name.startswith(_TRANSIENT)
    }


def facts_of(spec: ModelSpec, chain: Chain, ids: Sequence[int] | None) -> dict[str, Any]:
    """Return what says which model, chain and tokens a snapshot belongs to."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": "loci",
        "fingerprint": spec.fingerprint,
        "layout": spec.layout_hash(),
        "chain": " | ".join(map(str, chain)),
        "tokens": None if ids is None else _hash(ids),
    }


def check_facts(
    meta: Mapping[str, Any], spec: ModelSpec, chain: Chain, ids: Sequence[int] | None
) -> None:
    """Raise FormatError or FingerprintError unless a snapshot is of this model, chain and tokens.

    Args:
        ids: None asks for no tokens in particular.
    """
    if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
        raise FormatError(
            "this is no KV snapshot of a version Loci knows",
            value=(meta.get("format"), meta.get("version")),
            allowed=f"{FORMAT} {VERSION}",
        )
    expected = facts_of(spec, chain, ids)
    for name in ("fingerprint", "layout", "chain", *(() if ids is None else ("tokens",))):
        if meta.get(name) != expected[name]:
            raise FingerprintError(
                f"this KV snapshot was made for another {name}",
                value=meta.get(name),
                allowed=expected[name] or "none",
                way_out="read the tokens again",
            )


def put_back(pool: Pool, tensors: Mapping[str, Tensor]) -> None:
    """Copy a snapshot's tensors into a pool that has the snapshot's state already.

    Raises:
        FormatError: if a tensor is missing, or has another shape.
    """
    for name, tensor in pool.tensors.items():
        if name.startswith(_TRANSIENT):
            continue
        if name not in tensors:
            raise FormatError("a KV snapshot lacks a tensor", value=repr(name))
        used = pool.used(name)
        part = tensor if used is None else tensor.narrow(pool.token_axis(name), 0, used)
        if part.shape != tensors[name].shape or part.dtype != tensors[name].dtype:
            raise FormatError(
                f"{name} of a KV snapshot has another shape",
                value=tuple(tensors[name].shape),
                allowed=str(tuple(part.shape)),
            )
        part.copy_(tensors[name])


def _hash(ids: Sequence[int]) -> str:
    text = ",".join(map(str, ids))
    return "blake2b:" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
