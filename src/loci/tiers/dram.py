"""Blocks in main memory, under the ledger."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any  # meta is whatever JSON can hold

from loci.core.block import Block
from loci.core.ledger import Lease, Ledger
from loci.errors import ParameterError
from loci.tiers.pool import aligned_empty, round_up
from loci.units import nearest

if TYPE_CHECKING:
    from torch import Tensor

TENSOR_ALIGN = 64  # bytes


@dataclass(frozen=True)
class _Held:
    block: Block
    buffer: Tensor
    tensors: dict[str, Tensor]
    meta: Mapping[str, Any]
    lease: Lease


class DramTier:
    """Named blocks of tensors in page-aligned memory, one buffer a block.

    Args:
        ledger: counts the buffers; its limit is the tier's capacity.
        tier: the tier's name in the ledger.
        owner: whose leases they are.
    """

    def __init__(self, ledger: Ledger, *, tier: str = "dram", owner: str = "blocks") -> None:
        self._ledger, self._tier, self._owner = ledger, tier, owner
        self._held: dict[str, _Held] = {}
        self._lock = threading.RLock()

    def put(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        kind: str = "weights",
        codec: str = "raw",
        meta: Mapping[str, Any] | None = None,
    ) -> Block:
        """Copy a block in; one of the same name is replaced once the new one is there.

        Raises:
            BudgetError: if it does not fit; what was there stays.
        """
        import torch

        places, end = {}, 0
        for key, tensor in tensors.items():
            places[key] = end
            end = round_up(end + tensor.numel() * tensor.element_size(), TENSOR_ALIGN)
        with self._lock:
            lease = self._ledger.reserve(f"{self._owner}/{name}", self._tier, round_up(end), kind)
            buffer, views = aligned_empty(round_up(end)), {}
            for key, tensor in tensors.items():
                size = tensor.numel() * tensor.element_size()
                flat = buffer[places[key] : places[key] + size].view(tensor.dtype)
                views[key] = flat.view(tensor.shape)
                with torch.no_grad():
                    views[key].copy_(tensor)
            nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            block = Block(name=name, kind=kind, nbytes=nbytes, codec=codec)
            old = self._held.pop(name, None)
            self._held[name] = _Held(block, buffer, views, dict(meta or {}), lease)
            if old is not None:
                old.lease.release()
        return block

    def get(self, name: str) -> dict[str, Tensor]:
        """Return a block's tensors as they lie in memory; they are for reading."""
        return dict(self._find(name).tensors)

    def read(self, name: str, into: Tensor | None = None) -> dict[str, Tensor]:
        """Return a block's tensors, copied into `into` (uint8 [>= stored_bytes]) where given."""
        held = self._find(name)
        if into is None:
            return dict(held.tensors)
        if into.numel() < held.buffer.numel():
            raise ParameterError(
                f"the buffer for {name} is too small",
                value=into.numel(),
                allowed=f"at least {held.buffer.numel()} bytes",
            )
        into[: held.buffer.numel()].copy_(held.buffer)
        start = held.buffer.data_ptr()
        return {
            key: into[view.data_ptr() - start :][: view.numel() * view.element_size()]
            .view(view.dtype)
            .view(view.shape)
            if view.numel()
            else view
            for key, view in held.tensors.items()
        }

    def delete(self, name: str) -> None:
        """Forget a block and give its bytes back."""
        with self._lock:
            self._find(name)
            self._held.pop(name).lease.release()

    def names(self) -> list[str]:
        """Return the blocks in the order they came."""
        return list(self._held)

    def block(self, name: str) -> Block:
        """Return a block's name, kind, size and codec."""
        return self._find(name).block

    def meta(self, name: str) -> dict[str, Any]:
        """Return what was said about a block."""
        return dict(self._find(name).meta)

    def nbytes(self, name: str) -> int:
        """Return the bytes of a block's tensors, padding excluded."""
        return self._find(name).block.nbytes

    def stored_bytes(self, name: str) -> int:
        """Return the bytes a block takes, whole pages."""
        return int(self._find(name).buffer.numel())

    def held(self) -> dict[str, int]:
        """Return {tier: bytes} of everything here."""
        with self._lock:
            return {self._tier: sum(held.buffer.numel() for held in self._held.values())}

    def close(self) -> None:
        """Forget every block."""
        for name in self.names():
            self.delete(name)

    def check_integrity(self) -> None:
        """Raise AssertionError unless buffers and leases agree."""
        with self._lock:
            for held in self._held.values():
                assert not held.lease.released and held.lease.nbytes == held.buffer.numel()
            assert sum(self.held().values()) <= self._ledger.used(self._tier)

    def _find(self, name: str) -> _Held:
        try:
            return self._held[name]
        except KeyError:
            near = nearest(name, self.names())
            raise ParameterError(
                f"there is no block {name!r} in {self._tier}",
                way_out=f"did you mean {near!r}?" if near else (),
            ) from None
