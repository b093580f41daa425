"""One token among a thousand: what a small model still finds in a cache kept small.

The model is trained on the spot to do this alone (`bench/finder.py`), and with the full cache it
nearly always can. A context of its full length is read, the method does its work, and every key
that stands in it is asked for alone; right is where the value is the likeliest of all values. Where
a bank on disk keeps what is dropped, its bytes there stand beside those in memory.

Options: tokens=1024, shares=0.25,0.1 (of the full cache in 16 bits), contexts=10, chunk=64 (tokens
the context is read by; whole reads it at once). --method may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # results hold whatever JSON can hold

import torch

from loci.bench import finder
from loci.bench.cards import Row
from loci.bench.finder import ANSWER, ASKED, PAIRS, VALUES
from loci.bench.reading import FULL, HELD_BACK, Contender, Reading, contenders
from loci.bench.stages import sizes_of
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context, count_of, refuse_unknown, shares_of
from loci.run.lab import Lab

ABOUT = "one token among a thousand, found again by a model trained on the spot for that alone"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it takes everybody
DEFAULT = (
    "random",
    "streaming_llm",
    "snapkv",
    "h2o",
    "keydiff",
    "kivi(bits=2,waiting=1)",
    "turboquant(bits_k=2,bits_v=2,window=0,tail=8)",
    "keydiff | turboquant(window=0,tail=8)",
    "streaming_llm | longmem(chunk=32,chunks=4,tier=disk)",
    "keydiff | longmem(chunk=64,chunks=8,tier=disk)",
)
_OPTIONS = ("tokens", "shares", "contexts", "chunk")


def run(context: Context) -> dict[str, Any]:
    """Train the model where it is not there, and ask everybody."""
    options, quick = context.options, context.quick
    refuse_unknown(options, _OPTIONS)
    tokens = count_of(options, "tokens", 128 if quick else finder.LENGTH)
    items = count_of(options, "contexts", 1 if quick else 10)
    chunk = (
        None if options.get("chunk") == "whole" else count_of(options, "chunk", 16 if quick else 64)
    )
    shares = shares_of(options, (0.5,) if quick else (0.25, 0.1))
    pack = finder.finder(context.folder, quick=quick, progress=context.progress)
    lab = Lab(pack, context=tokens + 2)
    found: dict[Contender, list[float]] = {}
    held: dict[Contender, dict[str, int]] = {}
    try:
        full_bytes = lab.spec.kv_bytes(tokens)
        cells = contenders(context.methods or DEFAULT, shares, full_bytes, chunk)
        for number in range(items):
            context.progress("finding", number, items)
            draw = torch.Generator().manual_seed(context.seed + 1000 + number)
            drawn = finder.contexts(1, tokens, PAIRS, draw)
            ids = drawn.ids_BT[0].tolist()
            opened = Reading(lab, max_tokens=tokens + 2, chunk=tokens, seed=number)
            try:
                with opened.sessions(ids, cells) as sessions:
                    for cell, session in sessions.items():
                        session.append(ids[-HELD_BACK:])
                        right = 0
                        for key, value in zip(
                            drawn.keys_BP[0].tolist(), drawn.values_BP[0].tolist(), strict=True
                        ):
                            fork = session.fork()
                            after_V = fork.append([ASKED + key])
                            right += int(after_V[ANSWER : ANSWER + VALUES].argmax()) == value
                            fork.release()
                        found.setdefault(cell, []).append(right / PAIRS)
                        held[cell] = sizes_of(opened, session)
            finally:
                opened.close()
    finally:
        lab.close()
        pack.close()
    full = found[Contender(name=FULL)]
    return {
        "model": "finder",
        "fingerprint": pack.spec.fingerprint,
        "tokens": tokens,
        "full_bytes": full_bytes,
        "questions": items * PAIRS,
        "rows": [
            {
                "key": cell.key,
                "method": cell.name,
                "share": cell.share,
                "found": mean(values).to_json(),
                "less_full": paired_difference(values, full).to_json(),
                **held[cell],
            }
            for cell, values in found.items()
        ],
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table to print: (title, head, rows)."""
    lines = [
        [
            row["key"],
            f"{row['found']['value']:.3f} ({row['found']['low']:.2f}-{row['found']['high']:.2f})",
            f"{row['kv_bytes'] / 2**10:.0f} KiB",
            f"{row['kv_bytes'] / result['full_bytes']:.1%}",
            f"{row['disk_bytes'] / 2**10:.0f} KiB",
        ]
        for row in result["rows"]
    ]
    title = f"{result['questions']} questions, {result['tokens']} tokens"
    return [(title, ["cache", "found", "memory", "of full", "on disk"], lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return every single method, and every bank by the chain it was in, beside the others."""
    rows = []
    values = {row["key"]: row["found"]["value"] for row in result["rows"]}
    full = values.pop(FULL)
    for row in result["rows"]:
        chain = row["method"].split(" | ")
        if row["method"] == FULL or len(chain) > 2:
            continue
        before = f"{chain[0]}/" if len(chain) > 1 else ""
        share = "own" if row["share"] is None else f"{row['share']:g}"
        rivals = {key: value for key, value in values.items() if key != row["key"]}
        rows.append(
            Row(
                method=chain[-1],
                kind="kv",
                part=f"{before}{share}",
                metrics={"found": {"this": row["found"]["value"], "full": full, "rivals": rivals}},
                interval={"found": (row["found"]["low"], row["found"]["high"])},
                bytes={
                    "full": result["full_bytes"],
                    "measured": row["kv_bytes"],
                    "disk": row["disk_bytes"],
                },
            )
        )
    return rows
