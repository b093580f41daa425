"""Perplexity on text that every machine has: Python's own help topics.

Sequences of 512 tokens, every token after the first scored, none of them used for calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any  # results hold whatever JSON can hold

import torch

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.stats import mean
from loci.bench.suite import Context
from loci.bench.suites.reference import packed_by
from loci.models.load import resolve
from loci.run.lab import Lab

ABOUT = "perplexity of the model, and of quantised forms of it, on Python's help topics"
KINDS = ("quant",)
LENGTH, PIECES, QUICK_PIECES = 512, 8, 1
CHARACTERS = 4000


def run(context: Context) -> dict[str, Any]:
    """Return the perplexity of the model as packed and of each quantisation method named."""
    count = QUICK_PIECES if context.quick else int(context.options.get("pieces", PIECES))
    part = context.options.get("part", "test")
    results: dict[str, Any] = {}
    names = ("full", *context.methods)
    fingerprint, full_bytes = "", 0
    for index, name in enumerate(names):
        pack = resolve(context.model, context.folder)
        fingerprint, full_bytes = pack.spec.fingerprint, pack.spec.full_bytes()
        forms = None if name == "full" else packed_by(pack, name, context.progress)
        repack = None if forms is None else lambda at, _, found=forms: found[at]
        lab = Lab(pack, context=LENGTH, repack=repack)
        try:
            losses = []
            for text in texts.slices(texts.prose(), count, CHARACTERS, part):
                losses.append(nll(lab, lab.tokenizer.encode(text)[:LENGTH]))
            loss = mean(losses)
            results[name] = {
                "perplexity": math.exp(loss.value),
                "low": math.exp(loss.low),
                "high": math.exp(loss.high),
                "weight_bytes": lab.ledger.by_kind("dram")["weights"],
            }
        finally:
            lab.close()
            pack.close()
        context.progress(name, index + 1, len(names))
    return {
        "model": context.model,
        "fingerprint": fingerprint,
        "text": texts.digest(texts.prose()),
        "part": part,
        "full_bytes": full_bytes,
        "scored_tokens": count * (LENGTH - 1),
        "results": results,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the perplexity of every quantised form beside the model as packed and the others."""
    found = dict(result["results"])
    full = found.pop("full")
    return [
        Row(
            method=name,
            kind="quant",
            metrics={
                "perplexity": {
                    "full": full["perplexity"],
                    "this": row["perplexity"],
                    "rivals": {n: r["perplexity"] for n, r in found.items() if n != name},
                }
            },
            interval={"perplexity": (row["low"], row["high"])},
            bytes={"full": result["full_bytes"], "measured": row["weight_bytes"]},
        )
        for name, row in found.items()
    ]


def nll(lab: Lab, ids: list[int]) -> float:
    """Return the mean negative log-likelihood of ids[1:], nats per token."""
    store = lab.store(max_tokens=len(ids))
    try:
        with lab.reading(store) as prefiller:
            total = 0.0
            for start in range(0, len(ids) - 1, 128):
                part = ids[start : min(start + 128, len(ids) - 1)]
                logits = prefiller.runner.forward(torch.tensor([part]), store, logits="all")
                assert logits is not None
                chances = torch.log_softmax(logits[0], dim=-1)
                target = torch.tensor(ids[start + 1 : start + 1 + len(part)])[:, None]
                total -= float(chances.gather(1, target).sum())
    finally:
        store.release()
    return total / (len(ids) - 1)
