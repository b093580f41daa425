"""The block: the unit that is placed and moved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Block:
    """Named bytes with what is needed to refuse the wrong ones.

    Attributes:
        name: unique inside its store, such as "layer.3.mlp".
        kind: "weights", "kv", "adapter", "index".
        nbytes: bytes really stored, padding excluded.
        codec: how the bytes are to be read: "raw", "groupwise4", "bfp".
        fingerprint: of the model and layout the bytes belong to.
        checksum: "blake2b:<hex>" of the bytes; None while they are still written.
    """

    name: str
    kind: str
    nbytes: int
    codec: str = "raw"
    fingerprint: str = ""
    checksum: str | None = None
