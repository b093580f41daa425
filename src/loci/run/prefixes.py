"""Keys and values that were read before, found again by the hashes of whole blocks of tokens.

The hash of a block covers all blocks before it, so one equal hash means an equal beginning; the
chain starts with whose it is, so nobody can learn what others asked. What is found is copied into
the new request's own store, which costs a thousandth of reading it again.

After W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", SOSP 2023 (sharing by blocks); there blocks are shared, here they are copied, as
every store lies in one piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loci.nn.kv import DenseSegment
from loci.run.kvstore import KVStore

BLOCK = 16  # tokens that share a hash


class Chain:
    """The hashes of the whole blocks of a text that grows."""

    def __init__(self, scope: str) -> None:
        self._last = hashlib.blake2b(scope.encode(), digest_size=16).digest()
        self.hashes: list[bytes] = []

    @classmethod
    def of(cls, hashes: Sequence[bytes]) -> Chain:
        """Return a chain as it was, from at least one hash; it can be extended."""
        chain = cls("")
        chain.hashes, chain._last = list(hashes), hashes[-1]
        return chain

    def extend(self, ids: Sequence[int]) -> None:
        """Hash the whole blocks of `ids`, a text that begins with what was hashed before."""
        for start in range(BLOCK * len(self.hashes), len(ids) - BLOCK + 1, BLOCK):
            raw = b"".join(id.to_bytes(4, "little") for id in ids[start : start + BLOCK])
            self._last = hashlib.blake2b(self._last + raw, digest_size=16).digest()
            self.hashes.append(self._last)

    def shared(self, other: Chain) -> int:
        """Return how many tokens both begin with, in whole blocks."""
        low, high = 0, min(len(self.hashes), len(other.hashes))
        while low < high:  # blocks before an equal one are equal
            middle = (low + high + 1) // 2
            if self.hashes[middle - 1] == other.hashes[middle - 1]:
                low = middle
            else:
                high = middle - 1
        return BLOCK * low


@dataclass(eq=False, kw_only=True)
class Kept:
    """What a request left behind: its tokens, and their keys and values."""

    ids: list[int]
    chain: Chain
    store: KVStore
    used_s: float = field(default=0.0)

    @property
    def nbytes(self) -> int:
        """Bytes of the store."""
        return sum(self.store.nbytes().values())


def best(chain: Chain, among: Iterable[tuple[Chain, KVStore]]) -> tuple[int, KVStore | None]:
    """Return the most tokens that a store has in common with a prompt, and the store."""
    found: tuple[int, KVStore | None] = (0, None)
    for other, store in among:
        tokens = min(chain.shared(other), store.length)
        if tokens > found[0]:
            found = tokens, store
    return found


def copy(source: KVStore, target: KVStore, tokens: int) -> None:
    """Fill an empty store with the first tokens of another; both keep them exactly."""
    fill(target, tokens, lambda layer: exact(source, layer))


def exact(store: KVStore, layer: int) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a layer, [B, K, T, D], of a store that has no chain."""
    (segment,) = store.view(layer).segments
    assert isinstance(segment, DenseSegment), "only exact stores are copied"
    return segment.keys(), segment.values()


def fill(target: KVStore, tokens: int, of: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    """Append the first tokens of every layer's keys and values to a store, as they are."""
    for start in range(0, tokens, target.chunk):
        stop = min(tokens, start + target.chunk)
        positions_1T = torch.arange(start, stop)[None]
        for layer in range(target.spec.layers):
            keys, values = of(layer)
            target.append(layer, keys[:, :, start:stop], values[:, :, start:stop], positions_1T)
        target.advance(stop - start)
