"""KV stores put away between uses: as they are or in four bits, in memory or on a disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol  # facts are JSON values

import torch
from torch import Tensor

from loci.core.block import Block
from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.kv.chain import Chain
from loci.nn.grid import pack_rows, rounded, unpack_rows
from loci.run.kvstore import KVStore

WHOLE = 16  # bits: kept as it is
GROUP = 32  # channels that share a grid, at most; fewer where a head has fewer

# Shapes: D head size, n numbers of a row, g groups.


class Tier(Protocol):
    """Where blocks lie: `DramTier`, `DiskTier`."""

    def put(self, name: str, tensors: Any, *, kind: str, meta: Any) -> Block:
        """Keep tensors under a name; one of the same name is replaced."""
        ...

    def get(self, name: str) -> dict[str, Tensor]:
        """Return a block's tensors."""
        ...

    def meta(self, name: str) -> dict[str, Any]:
        """Return what was said about a block."""
        ...

    def delete(self, name: str) -> None:
        """Give a block's bytes back."""
        ...

    def nbytes(self, name: str) -> int:
        """Return the bytes of a block's tensors."""
        ...


class Parking:
    """Stores that are not at work.

    Args:
        tier: where they lie; its ledger pays.
        bits: of keys and values that the store keeps as they are; 16 leaves them alone.
    """

    def __init__(self, tier: Tier, bits: int = WHOLE) -> None:
        if bits not in (4, 8, WHOLE):
            raise ParameterError("a parked cache has no such bits", value=bits, allowed="4, 8, 16")
        self._tier, self._bits = tier, bits
        self.names: list[str] = []

    def put(self, name: str, store: KVStore, ids: Sequence[int]) -> None:
        """Put a store away; it is not changed, and whoever calls releases it.

        Raises:
            BudgetError: if the tier has no room for it; what was there stays.
            MethodError: if a chunk of it is unfinished.
        """
        tensors, facts = store.snapshot(ids=ids)
        if self._bits != WHOLE and "slots" in tensors:
            tensors |= self._coded(tensors.pop("slots"))
        tensors["ids"] = torch.tensor(list(ids), dtype=torch.int32)
        self._tier.put(name, tensors, kind="kv", meta=facts)
        if name not in self.names:
            self.names.append(name)

    def take(
        self, name: str, spec: ModelSpec, chain: Chain, ledger: Ledger | None = None
    ) -> tuple[KVStore, list[int]]:
        """Return a copy of a store, and the tokens it was read from; what is parked stays.

        Raises:
            FingerprintError: if it was read by another model or chain.
        """
        tensors, facts = dict(self._tier.get(name)), self._tier.meta(name)
        ids = tensors.pop("ids").tolist()
        if "slots.codes" in tensors:
            tensors["slots"] = self._decoded(tensors, facts["dtype"])
        store = KVStore.restore(
            spec, chain, tensors, facts, ids=ids, ledger=ledger, generator=torch.Generator()
        )
        return store, ids

    def nbytes(self) -> int:
        """Return the bytes of everything parked."""
        return sum(self._tier.nbytes(name) for name in self.names)

    def clear(self) -> None:
        """Give every byte back."""
        for name in self.names:
            self._tier.delete(name)
        self.names = []

    # -- private ------------------------------------------------------------------------------

    def _coded(self, slots: Tensor) -> dict[str, Tensor]:
        group = min(GROUP, slots.shape[-1] & -slots.shape[-1])
        # Slots that nobody uses hold anything; they must not spoil a grid.
        rows = slots.float().nan_to_num(0.0, 0.0, 0.0).clamp(-6e4, 6e4).unflatten(-1, (-1, group))
        codes, grid = rounded(rows, self._bits, dim=-1)
        return {
            "slots.codes": pack_rows(codes.flatten(-2), self._bits),
            "slots.grid": grid.flatten(-2).to(torch.float16),
        }

    def _decoded(self, tensors: dict[str, Tensor], dtype: str) -> Tensor:
        codes, grid = tensors.pop("slots.codes"), tensors.pop("slots.grid").float()
        pairs = grid.unflatten(-1, (-1, 2))
        size = codes.shape[-1] * 8 // self._bits
        rows = unpack_rows(codes, self._bits, size).unflatten(-1, (pairs.shape[-2], -1))
        slots = (rows * pairs[..., 1:] + pairs[..., :1]).flatten(-2)
        return slots.to(torch.float16 if dtype == "float16" else torch.float32)
