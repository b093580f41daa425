"""Cost models against the clock: predicted and measured time over lengths, rows and phases.

A step of one token after contexts of many lengths, alone and in batches, and prompts of many
lengths. The machine's rates are measured in the same run, as planning measures them. What counts is
the median error and whether the order of the configurations is right; bytes are arithmetic and must
be exact.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Literal  # results hold whatever JSON can hold

import torch

from loci.bench.cards import Row
from loci.bench.metrics import rank_correlation
from loci.bench.suite import Context
from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.hw import probe, profiles
from loci.methods import catalogue
from loci.methods.cost.base import CostModel, graph_of
from loci.methods.kv.store_plan import predict_store
from loci.models.load import resolve
from loci.models.pack import Pack
from loci.run import pace
from loci.run.kvstore import KVStore
from loci.run.lab import NO_LIMIT
from loci.run.runner import Runner
from loci.run.weights import ResidentWeights

ABOUT = "cost models against the clock, over lengths, rows and phases"
KINDS = ("cost",)
DEFAULT = ("roofline",)
CHUNK, VOCAB_STEP = 512, 7919
KEYS, ROWS = (64, 128, 256, 512, 1024, 2048), (1, 4)
PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 2048)
REPEATS, QUICK = 5, 3  # the least of so many is taken; a quick run has so many configurations
Phase = Literal["decode", "prefill"]


def run(context: Context) -> dict[str, Any]:
    """Measure every configuration, and let every cost model predict it."""
    configurations: list[tuple[Phase, int, int]] = [
        *(("decode", keys, rows) for rows in ROWS for keys in KEYS),
        *(("prefill", tokens, 1) for tokens in PROMPTS),
    ]
    if context.quick:
        configurations = configurations[:: len(configurations) // QUICK]
    facts = probe.probe(context.folder)
    with tempfile.TemporaryDirectory() as fresh:  # rates of the same minute as the times
        rates = probe.measure(Path(fresh, "rates.json"), machine=facts)
        promised = profiles.profile_of(facts, rates)
        profile = pace.measure(promised, Path(fresh)).on(promised)
    pack = resolve(context.model, context.folder)
    try:
        measured = []
        for done, (phase, size, rows) in enumerate(configurations):
            context.progress(f"{phase} {size} x {rows}", done, len(configurations))
            measured.append(_measured(pack, phase, size, rows))
        held = {
            "weights": pack.total_bytes,
            "kv": sum(KVStore(pack.spec, max_tokens=256, dtype=torch.float16).nbytes().values()),
        }
    finally:
        pack.close()
    results = {}
    for name in context.methods or DEFAULT:
        method: Any = catalogue.find(name, "cost")
        predicted = [
            _predicted(method, pack, phase, size, rows, profile)
            for phase, size, rows in configurations
        ]
        results[name] = _summary(configurations, predicted, measured)
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "rates": {"dram_bytes_per_s": profile.tiers["dram"].read_bytes_per_s, **profile.rates},
        "bytes": {
            "weights": {
                "predicted": _weight_bytes(pack.spec),
                "measured": held["weights"],
            },
            "kv_256_tokens": {
                "predicted": predict_store(pack.spec, max_tokens=256, dtype_bytes=2),
                "measured": held["kv"],
            },
        },
        "results": results,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return error and rank correlation of every cost model."""
    return [
        Row(
            method=name,
            kind="cost",
            metrics={
                "median_error": {"this": row["median_error"]},
                "median_error_decode": {"this": row["decode"]["median_error"]},
                "median_error_prefill": {"this": row["prefill"]["median_error"]},
                "rank_correlation": {"this": row["rank_correlation"]},
            },
            ratio={
                f"predicted over measured, {phase}": row[phase]["median_ratio"]
                for phase in ("decode", "prefill")
            },
        )
        for name, row in result["results"].items()
    ]


# -- private ----------------------------------------------------------------------------------


def _measured(pack: Pack, phase: Phase, size: int, rows: int) -> float:
    """Return the least seconds of a step: a token of each row after `size`, or `size` tokens."""
    ledger = Ledger(NO_LIMIT)
    weights = ResidentWeights(pack, ledger)
    chunk = min(CHUNK, size)
    store = KVStore(pack.spec, max_tokens=size + 1, batch=rows, chunk=chunk)
    runner = Runner(pack.spec, weights, ledger, chunk=chunk, batch=rows)
    ids = (torch.arange(rows * size) * VOCAB_STEP % pack.spec.vocab).view(rows, size)
    try:
        best = float("inf")
        for index in range(REPEATS):
            if phase == "prefill" or index == 0:
                store.crop(0)
                began = time.perf_counter()
                for start in range(0, size, chunk):
                    is_last = start + chunk >= size
                    part = ids[:, start : start + chunk]
                    runner.forward(part, store, logits="last" if is_last else None)
                best = min(best, time.perf_counter() - began) if phase == "prefill" else best
            if phase == "decode":
                store.crop(size)
                began = time.perf_counter()
                runner.forward(ids[:, :1], store)
                if index:  # the first one warms up
                    best = min(best, time.perf_counter() - began)
        return best
    finally:
        runner.release()
        store.release()
        weights.release()


def _weight_bytes(spec: ModelSpec) -> int:
    """Return the bytes of all weights as arithmetic; norms are float32."""
    norms = spec.layers * spec.layer_norm_elements() + spec.hidden
    bits = spec.linear_elements() * spec.weight_bits + spec.embed_elements() * spec.embed_bits
    return round(bits / 8) + 4 * norms


def _predicted(
    method: CostModel,
    pack: Pack,
    phase: Phase,
    size: int,
    rows: int,
    profile: profiles.DeviceProfile,
) -> float:
    work = graph_of(
        pack.spec,
        phase,
        tokens=size if phase == "prefill" else 1,
        keys=size if phase == "prefill" else size + 1,
        batch=rows,
        chunk=min(CHUNK, size) if phase == "prefill" else None,
    )
    return method.estimate(work, profile).seconds_per_token


def _summary(
    configurations: list[tuple[Phase, int, int]], predicted: list[float], measured: list[float]
) -> dict[str, Any]:
    def part(phase: str | None) -> dict[str, float]:
        ratios = [
            p / m
            for (of, _, _), p, m in zip(configurations, predicted, measured, strict=True)
            if phase in (None, of)
        ]
        return {
            "median_error": median([abs(r - 1) for r in ratios]) if ratios else 0.0,
            "median_ratio": median(ratios) if ratios else 0.0,
        }

    return {
        **part(None),
        "decode": part("decode"),
        "prefill": part("prefill"),
        "rank_correlation": rank_correlation(predicted, measured),
        "configurations": [
            {"phase": phase, "size": size, "rows": rows, "predicted_s": p, "measured_s": m}
            for (phase, size, rows), p, m in zip(configurations, predicted, measured, strict=True)
        ],
    }
