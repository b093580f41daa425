"""What a KV cache costs in time and room, measured beside the exact cache, and its way to disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

import torch
from safetensors.torch import load_file, save_file

from loci.bench.contexts import SharedContext
from loci.bench.reading import FULL, MODES, Reading, Session, payload_hash
from loci.bench.stats import alternate, ratio
from loci.run.kvstore import KVStore

DECODED = 16  # tokens that are decoded to time one


def timed(
    reading: Reading, sessions: Mapping[str, Session], ids: Sequence[int], rounds: int
) -> dict[str, dict[str, Any]]:
    """Return {key: {"generation", "retrieval"}}: seconds, and ratios to the full cache.

    Generation is reading the context with a forward of its own, retrieval is a decoded token.
    Everybody takes turns; one of the sessions must be that of the full cache.
    """
    generation = alternate({k: _prefill(reading, s, ids) for k, s in sessions.items()}, rounds)
    retrieval = alternate({k: decoded(s, ids[-1]) for k, s in sessions.items()}, rounds)
    return {
        key: {"generation": _beside(generation, key), "retrieval": _beside(retrieval, key)}
        for key in sessions
    }


def sizes_of(reading: Reading, session: Session) -> dict[str, int]:
    """Return the bytes a store holds, what was predicted, and both with the work buffers."""
    by_tier = session.store.nbytes()
    held = by_tier.pop(session.store.tier)
    return {
        "kv_bytes": held,
        "disk_bytes": by_tier.get("disk", 0),
        "predicted_bytes": reading.predicted(session.contender),
        "peak_bytes": held + session.reader.runner.nbytes(),
    }


def to_disk_and_back(session: Session, item: SharedContext) -> dict[str, Any]:
    """Ask from forks, then write the cache to disk, take it back, and compare to the bit."""
    store, last = session.store, item.ids[-1:]
    before = payload_hash(store)
    fork = session.fork()
    try:
        MODES["multi_request"](item, fork, last)
    finally:
        fork.release()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kv.safetensors"
        began = time.perf_counter()
        tensors, meta = store.snapshot(ids=session.reader.ids)
        save_file(tensors, path)
        saved = time.perf_counter()
        back = KVStore.restore(
            store.spec,
            store.chain,
            load_file(path),
            meta,
            ids=session.reader.ids,
            generator=torch.Generator(),
            folder=Path(folder),
        )
        loaded = time.perf_counter()
        nbytes = path.stat().st_size
    twin = Session.over(session.reader.runner, back, session.contender)
    twin.reader.ids = list(session.reader.ids)
    fork = session.fork()
    try:
        is_exact = torch.equal(fork.append(last), twin.append(last))
    finally:
        fork.release()
        back.release()
    return {
        "save_s": saved - began,
        "load_s": loaded - saved,
        "file_bytes": nbytes,
        "is_exact": is_exact,
        "is_untouched_by_forks": payload_hash(store) == before,
    }


# -- private ----------------------------------------------------------------------------------


def _beside(times: Mapping[str, Sequence[float]], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": sorted(times[key])[len(times[key]) // 2]}
    if key != FULL:
        found["ratio"] = ratio(times[key], times[FULL]).to_json()
    return found


def _prefill(reading: Reading, session: Session, ids: Sequence[int]) -> Callable[[], float]:
    """Return what reads the context into a fresh store; it returns its own seconds."""

    def once() -> float:
        store = reading.open(session.contender)
        try:
            fresh = Session.over(session.reader.runner, store, session.contender)
            began = time.perf_counter()
            fresh.reader.prefill(ids[:-1])
            store.finish_prompt(fresh.reader)
            return time.perf_counter() - began
        finally:
            store.release()

    return once


def decoded(session: Session, token: int, tokens: int = DECODED) -> Callable[[], float]:
    """Return what decodes some tokens from a copy of the cache; it returns seconds per token."""

    def once() -> float:
        fork = session.fork()
        try:
            began = time.perf_counter()
            for _ in range(tokens):
                fork.append([token])
            return (time.perf_counter() - began) / tokens
        finally:
            fork.release()

    return once
