"""Blocks in a folder, one file each, under the ledger; they outlive the process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any  # meta is whatever JSON can hold

from loci.core.block import Block
from loci.core.ledger import Lease, Ledger
from loci.errors import ParameterError, StorageError
from loci.tiers.blocks import BlockStore, BlockWriter, read_table
from loci.tiers.pool import ALIGN, round_up
from loci.units import nearest

if TYPE_CHECKING:
    from torch import Tensor

_END = ".block"
_TABLE_BYTES = 512  # of a block's table without names, tensors and meta; really about 300
_TENSOR_BYTES = 64  # of one tensor in it: dtype, offset, punctuation


class DiskTier:
    """Named blocks of tensors on a disk. A file is there whole or not at all.

    Blocks that the folder holds already are taken over and counted. One process at a time uses
    a folder.

    Args:
        folder: made when it is not there.
        ledger: counts the files' bytes; its limit is the tier's capacity.
        direct: read past the page cache where the file system allows it.

    Raises:
        BudgetError: if the blocks already there do not fit.
        StorageError: if the folder cannot be used, or another process uses it.
    """

    def __init__(
        self,
        folder: Path | str,
        ledger: Ledger,
        *,
        tier: str = "disk",
        owner: str = "blocks",
        direct: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._ledger, self._tier, self._owner, self._direct = ledger, tier, owner, direct
        self._leases: dict[str, Lease] = {}
        self._stores: dict[str, BlockStore] = {}
        self._lock = threading.RLock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._guard = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"cannot use {self.folder}: {error.strerror or error}") from error
        try:
            self._take_over()
        except BaseException:
            self.close()
            raise

    def put(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        kind: str = "weights",
        codec: str = "raw",
        meta: Mapping[str, Any] | None = None,
    ) -> Block:
        """Write a block; one of the same name is replaced in one step.

        Old and new are both on the disk for a moment, and both are counted.

        Raises:
            BudgetError: if it does not fit; what was there stays.
            StorageError: if the disk is full; what was there stays.
        """
        size = sum(round_up(t.numel() * t.element_size(), 64) for t in tensors.values())
        words = sum(len(json.dumps(key)) for key in tensors) + 2 * len(json.dumps(name))
        table = _TABLE_BYTES + words + len(json.dumps(dict(meta or {})))
        table += sum(_TENSOR_BYTES + 21 * tensor.dim() for tensor in tensors.values())
        with self._lock:
            # An upper bound, so that setting the true size below cannot fail.
            most = ALIGN + round_up(size) + round_up(table)
            lease = self._ledger.reserve(f"{self._owner}/{name}", self._tier, most, kind)
            path = self._path(name)
            try:
                with BlockWriter(path, {"block": name}) as writer:
                    writer.add(name, tensors, kind=kind, codec=codec, meta=meta)
            except BaseException:
                lease.release()
                raise
            old = self._leases.pop(name, None)
            if old is not None:
                old.release()
                self._stores.pop(name).close()
            self._leases[name] = lease
            self._stores[name] = BlockStore(path, direct=self._direct)
            lease.commit(round_up(path.stat().st_size))
            return self.block(name)

    def get(self, name: str) -> dict[str, Tensor]:
        """Return a block's tensors mapped from its file; nothing is copied."""
        return self._find(name).tensors(name)

    def read(self, name: str, into: Tensor | None = None) -> dict[str, Tensor]:
        """Return a block's tensors, read into `into` (see `BlockStore.read`)."""
        return self._find(name).read(name, into)

    def delete(self, name: str) -> None:
        """Delete a block's file and give its bytes back."""
        with self._lock:
            self._find(name)
            try:
                self._path(name).unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"cannot delete block {name}: {error.strerror}") from error
            self._stores.pop(name).close()
            self._leases.pop(name).release()

    def names(self) -> list[str]:
        """Return the blocks in the order they came; those found at the start by name."""
        return list(self._stores)

    def block(self, name: str) -> Block:
        """Return a block's name, kind, size, codec and checksum."""
        return self._find(name).block(name)

    def meta(self, name: str) -> dict[str, Any]:
        """Return what was said about a block."""
        return self._find(name).meta(name)

    def nbytes(self, name: str) -> int:
        """Return the bytes of a block's tensors, padding excluded."""
        return self._find(name).nbytes(name)

    def stored_bytes(self, name: str) -> int:
        """Return the bytes a block takes in a buffer that it is read into."""
        return self._find(name).stored_bytes(name)

    def verify(self) -> None:
        """Compare every block with its checksum; FormatError names one that differs."""
        for store in list(self._stores.values()):
            store.verify()

    def held(self) -> dict[str, int]:
        """Return {tier: bytes} of everything here."""
        with self._lock:
            return {self._tier: sum(lease.nbytes for lease in self._leases.values())}

    def close(self) -> None:
        """Let go of the folder; the files stay and are no longer counted."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            for lease in self._leases.values():
                lease.release()
            self._stores, self._leases = {}, {}
            if self._guard >= 0:
                os.close(self._guard)
                self._guard = -1

    def check_integrity(self) -> None:
        """Raise AssertionError unless files and leases agree."""
        with self._lock:
            assert set(self._stores) == set(self._leases)
            for name, lease in self._leases.items():
                assert not lease.released
                assert lease.nbytes == round_up(self._path(name).stat().st_size), name
            found = {path.name for path in self.folder.glob(f"*{_END}")}
            assert found == {self._path(name).name for name in self._stores}

    # -- private ------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        # A hash, because a block's name may be longer than a file's and hold any character.
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return self.folder / f"{digest}{_END}"

    def _take_over(self) -> None:
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                f"another process uses the blocks in {self.folder}",
                way_out="end it, or name another folder",
            ) from error
        for leftover in self.folder.glob(".*.partial"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        found = [(read_table(path)[0].get("block"), path) for path in self.folder.glob(f"*{_END}")]
        for name, path in sorted((str(name), path) for name, path in found):
            store = BlockStore(path, direct=self._direct)
            self._stores[name] = store
            self._leases[name] = self._ledger.reserve(
                f"{self._owner}/{name}",
                self._tier,
                round_up(path.stat().st_size),
                store.block(name).kind,
            )

    def _find(self, name: str) -> BlockStore:
        try:
            return self._stores[name]
        except KeyError:
            near = nearest(name, self.names())
            raise ParameterError(
                f"there is no block {name!r} in {self.folder.name}",
                way_out=f"did you mean {near!r}?" if near else (),
            ) from None
