"""What was read, kept across a restart: prefixes of ended requests in a file of blocks.

Keys and values are written as they are, so what is read back is what was there, bit for bit. The
file is for the very model, adapter, layout and kind of number it was made with, and for its owner
alone: it holds what people said. It is taken away once it was read, for whoever forgets something
must not find it again in an older file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from loci.errors import BudgetError, FingerprintError, FormatError, StorageError
from loci.run import prefixes
from loci.run.prefixes import Chain, Kept
from loci.run.stores import Stores
from loci.tiers.blocks import BlockStore, BlockWriter

FORMAT, VERSION = "loci-warm", 1


@dataclass(frozen=True, kw_only=True)
class Warm:
    """What was written or read: prefixes, their tokens, and bytes of keys and values."""

    prefixes: int = 0
    tokens: int = 0
    nbytes: int = 0


def save(stores: Stores, file: Path) -> Warm:
    """Write what ended requests left, used longest ago first; an older file is replaced.

    Raises:
        StorageError: if it cannot be written; an older file is as it was then.
    """
    now, wall = time.monotonic(), time.time()
    done = Warm()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error
    kept = [one for one in list(stores.kept) if one.chain.hashes and stores.is_here(one)]
    with BlockWriter(file, _facts(stores), mode=0o600) as writer:
        for number, one in enumerate(kept):
            tensors = {"ids": torch.tensor(one.ids, dtype=torch.int32)}
            for layer in range(stores.spec.layers):
                keys, values = prefixes.exact(one.store, layer)
                tensors[f"keys.{layer}"] = keys.contiguous()
                tensors[f"values.{layer}"] = values.contiguous()
            meta = {
                "hashes": [found.hex() for found in one.chain.hashes],
                "used_at_s": wall - (now - one.used_s),
            }
            writer.add(f"prefix.{number}", tensors, kind="kv", meta=meta)
            done = _more(done, len(one.ids), sum(tensor.nbytes for tensor in tensors.values()))
    return done


def load(stores: Stores, file: Path) -> Warm:
    """Take back what was written, the newest first, as far as it fits and is not too old.

    Raises:
        FormatError: if the file is damaged or of another version.
        FingerprintError: if it was made with another model or other numbers.
    """
    now, wall = time.monotonic(), time.time()
    done = Warm()
    back: list[Kept] = []
    try:
        with BlockStore(file, direct=False, mapped=False) as there:
            _check(stores, there)
            there.verify()
            for name in reversed(there.names()):
                used_s = now - max(0.0, wall - float(there.meta(name)["used_at_s"]))
                if now - used_s >= stores.keep_s:
                    break  # and so are all before it
                try:
                    back.append(_taken(stores, there, name, used_s))
                except BudgetError:
                    break
                done = _more(done, len(back[-1].ids), there.nbytes(name))
    except BaseException:
        for one in back:
            one.store.release()
        raise
    stores.kept[:0] = reversed(back)
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot take {file} away: {error.strerror or error}") from error
    return done


# -- private ----------------------------------------------------------------------------------


def _taken(stores: Stores, there: BlockStore, name: str, used_s: float) -> Kept:
    """Return one prefix in a store of its own."""
    tensors = there.read(name)
    ids = tensors["ids"].tolist()
    store = stores.fresh(len(ids))
    prefixes.fill(
        store, len(ids), lambda layer: (tensors[f"keys.{layer}"], tensors[f"values.{layer}"])
    )
    hashes = [bytes.fromhex(found) for found in there.meta(name)["hashes"]]
    return Kept(ids=ids, chain=Chain.of(hashes), store=store, used_s=used_s)


def _facts(stores: Stores) -> dict[str, str | int | None]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": "loci",
        "fingerprint": stores.spec.fingerprint,
        "layout": stores.spec.layout_hash(),
        "dtype": stores.plan.kv_dtype,
        "adapter": stores.reader or None,
        "block": prefixes.BLOCK,
    }


def _check(stores: Stores, there: BlockStore) -> None:
    facts = _facts(stores)
    for name in ("format", "version"):
        if there.header.get(name) != facts[name]:
            raise FormatError(
                f"{there.path} holds no prefixes of this version",
                value=there.header.get(name),
                allowed=str(facts[name]),
            )
    for name in ("fingerprint", "layout", "dtype", "adapter", "block"):
        if there.header.get(name) != facts[name]:
            raise FingerprintError(
                f"the prefixes in {there.path} were made with another {name}",
                value=there.header.get(name),
                allowed=str(facts[name]),
                way_out="they are read again when somebody asks",
            )


def _more(done: Warm, tokens: int, nbytes: int) -> Warm:
    return Warm(
        prefixes=done.prefixes + 1, tokens=done.tokens + tokens, nbytes=done.nbytes + nbytes
    )
