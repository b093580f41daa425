"""Our codes beside transformers' QuantizedCache, on the same tokens.

The cache needs a package that rounds, so it runs in an environment of its own:

    python -m venv /tmp/hfkv
    /tmp/hfkv/bin/pip install torch transformers optimum-quanto hqq
    loci bench run hf_cache --option hf_python=/tmp/hfkv/bin/python

Both sides read the same prompts in one piece and read on, teacher-forced. KL(full || method) is
taken against the full cache of the same side, in nats per token (`forwards` says how far the two
forwards are apart). Their newest tokens stay exact until 128 have come, so none that is scored is
rounded; ours are as each method has it. Bytes are what is held at the end, everything but codes
counted in half precision.

Options: hf_python=PYTHON, pieces=4, bits=2,4, backends=quanto,hqq. --method names ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.hf_side import READ, export, ours, pieces_of, worker
from loci.bench.stats import mean
from loci.bench.suite import Context, count_of, python_of, refuse_unknown, words_of
from loci.bench.suites.reference import PROMPT, kl
from loci.errors import ParameterError
from loci.models.load import resolve
from loci.run.lab import Lab

ABOUT = "our codes beside transformers' QuantizedCache, on the same tokens"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it needs another environment
OURS = (
    "turboquant",
    "turboquant(bits_k=2,bits_v=2)",
    "bfp(bits=4)",
    "kivi(bits=4)",
    "kivi(bits=2)",
)
NEEDED = "optimum-quanto"
_OPTIONS = ("hf_python", "pieces", "bits", "backends")


def run(context: Context) -> dict[str, Any]:
    """Measure both sides on the same pieces."""
    refuse_unknown(context.options, _OPTIONS)
    python = python_of(context.options, "hf_python", f"torch transformers {NEEDED} hqq")
    count = 1 if context.quick else count_of(context.options, "pieces", 4)
    names = context.methods or (OURS[:1] if context.quick else OURS)
    bits = [int(word) for word in words_of(context.options, "bits", ("2", "4"))]
    backends = words_of(context.options, "backends", ("quanto", "hqq"))
    caches = {
        f"QuantizedCache({backend}, {nbits} bits)": {"backend": backend, "nbits": nbits}
        for backend in backends
        for nbits in bits
    }
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=PROMPT + READ, chunk=PROMPT)
    losses: dict[str, list[float]] = {}
    held: dict[str, int] = {}
    refused: dict[str, str] = {}
    gaps: list[float] = []
    try:
        with tempfile.TemporaryDirectory(prefix="loci-hf-cache-") as folder:
            context.progress("writing the model for transformers", 0, 1)
            export(lab, Path(folder))
            with worker(python, Path(folder), NEEDED) as ask:
                for number, ids in enumerate(pieces_of(lab, count)):
                    context.progress("pieces of text", number, count)
                    whole, theirs = ours(lab, ids, None, None)[0], ask(ids)[0]
                    gaps.append(float((whole - theirs).abs().max()))
                    for name in names:
                        found, held[name] = ours(lab, ids, name, None)
                        losses.setdefault(name, []).append(kl(whole, found))
                    for name, how in caches.items():
                        if name in refused:
                            continue
                        try:
                            found, answer = ask(ids, quantized=how)
                        except ParameterError as error:
                            refused[name] = str(error)
                            continue
                        losses.setdefault(name, []).append(kl(theirs, found))
                        held[name] = answer["bytes"]
                versions = ask.versions
    finally:
        lab.close()
        pack.close()
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "prompt_tokens": PROMPT,
        "scored_tokens": READ * count,
        "full_bytes": pack.spec.kv_bytes(PROMPT + READ),
        "versions": versions,
        "forwards": max(gaps),
        "refused": refused,
        "rows": [
            {
                "method": name,
                "is_ours": name in names,
                "kl": mean(values).to_json(),
                "bytes": held[name],
            }
            for name, values in losses.items()
        ],
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table, least loss first: (title, head, rows)."""
    lines = [
        [
            row["method"],
            f"{row['kl']['value']:.4f}",
            f"{row['kl']['low']:.4f} to {row['kl']['high']:.4f}",
            f"{row['bytes'] / 2**20:.2f} MiB",
        ]
        for row in sorted(result["rows"], key=lambda row: row["kl"]["value"])
    ]
    title = f"{result['prompt_tokens']} tokens of prompt"
    return [(title, ["cache", "KL", "95 %", "held"], lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the KL of each of ours beside all of theirs."""
    theirs = {row["method"]: row for row in result["rows"] if not row["is_ours"]}
    return [
        Row(
            method=row["method"],
            kind="kv",
            metrics={
                "kl": {
                    "this": row["kl"]["value"],
                    "rivals": {name: other["kl"]["value"] for name, other in theirs.items()},
                }
            },
            interval={"kl": (row["kl"]["low"], row["kl"]["high"])},
            bytes={
                "full": result["full_bytes"],
                "measured": row["bytes"],
                **{name: other["bytes"] for name, other in theirs.items()},
            },
        )
        for row in result["rows"]
        if row["is_ours"]
    ]
