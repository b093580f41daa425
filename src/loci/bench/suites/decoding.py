"""A decoded token at a long context, and reading that context: methods beside exact caches.

The context is real text, read in chunks as `loci run` reads it, by everybody with a forward of its
own; then tokens are decoded from copies of what each kept. All take turns. The exact caches keep
32 bits a number, as a run without `--kv` does, and 16. Decoding takes as many tokens as wait before
codes are made of them, so that this is in the time.

    decode      seconds of a token; how many times faster than either exact cache
    prefill     seconds to read the context, over the exact cache in 16 bits

Options: tokens=8192, shares=0.25 (of the 16-bit bytes, for methods that select), rounds=5 (of
decoding), reads=2 (of prefill; 0 leaves it out), chunk=512. --method may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any  # results hold whatever JSON can hold

import torch

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.reading import FULL, Contender, Reading, Session, contenders
from loci.bench.stages import decoded, sizes_of
from loci.bench.stats import alternate, ratio
from loci.bench.suite import Context, count_of, refuse_unknown, shares_of
from loci.models.load import resolve
from loci.run.kvstore import KVStore
from loci.run.lab import Lab

ABOUT = "seconds of a decoded token and of a prompt at a long context, beside exact caches"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it takes everybody, and long
DEFAULT = (
    "streaming_llm",
    "snapkv",
    "keydiff",
    "windowkv",
    "turboquant",
    "turboquant(bits_k=3,bits_v=3)",
    "bfp(bits=8)",
    "bfp(bits=4)",
    "kivi(bits=4)",
    "comet_kv",
    "kvtc",
    "ggml_kv",
)
TOKENS, CHUNK, DECODED = 8192, 512, 32
CHARACTERS = 7  # of text for a token, at most
SINGLE = "full in 32 bits"
_OPTIONS = ("tokens", "shares", "rounds", "reads", "chunk")


def run(context: Context) -> dict[str, Any]:
    """Read the context into everybody's store, and let them take turns at decoding."""
    options, quick = context.options, context.quick
    refuse_unknown(options, _OPTIONS)
    tokens = count_of(options, "tokens", 256 if quick else TOKENS)
    rounds = count_of(options, "rounds", 1 if quick else 5)
    reads = 0 if options.get("reads") == "0" else count_of(options, "reads", 1 if quick else 2)
    chunk = count_of(options, "chunk", 64 if quick else CHUNK)
    shares = shares_of(options, (0.25,))
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=tokens + DECODED)
    try:
        ids = lab.tokenizer.encode(texts.slices(texts.prose(), 1, tokens * CHARACTERS, "test")[0])
        ids = list(ids[:tokens])
        full_bytes = lab.spec.kv_bytes(tokens)
        cells = contenders(context.methods or DEFAULT[: 1 if quick else None], shares, full_bytes)
        with ExitStack() as stack:
            opened = Reading(lab, max_tokens=tokens + DECODED, chunk=chunk)
            stack.callback(opened.close)
            sessions: dict[str, Session] = {}
            for number, cell in enumerate((None, *cells)):
                context.progress("reading", number, len(cells) + 1)
                session = _open(opened, lab, cell)
                stack.callback(session.release)
                _read(session, ids)
                sessions[SINGLE if cell is None else cell.key] = session
            held = {name: sizes_of(opened, session) for name, session in sessions.items()}
            context.progress("decoding", 0, 1)
            times = alternate(
                {name: decoded(s, ids[-1], DECODED) for name, s in sessions.items()}, rounds
            )
            by_cell = {SINGLE: None, **{cell.key: cell for cell in cells}}
            prompts = {}
            if reads:
                context.progress("prefill", 0, 1)
                prompts = alternate(
                    {n: _fresh(opened, lab, cell, ids) for n, cell in by_cell.items()}, reads
                )
    finally:
        lab.close()
        pack.close()
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "tokens": tokens,
        "full_bytes": full_bytes,
        "rows": [
            {
                "key": name,
                "method": None if (cell := by_cell[name]) is None else cell.name,
                "share": None if cell is None else cell.share,
                "seconds": sorted(times[name])[len(times[name]) // 2],
                "faster": {
                    exact: ratio(times[exact], times[name]).to_json() for exact in (SINGLE, FULL)
                },
                "prefill": ratio(prompts[name], prompts[FULL]).to_json() if prompts else None,
                **held[name],
            }
            for name in by_cell
        ],
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table to print: (title, head, rows)."""
    head = ["cache", "bytes", "a token", "over 32 bits", "over 16 bits", "prefill"]
    lines = [
        [
            row["key"],
            f"{row['kv_bytes'] / 2**20:.1f} MiB",
            f"{1000 * row['seconds']:.2f} ms",
            *(f"{row['faster'][exact]['value']:.2f} x" for exact in (SINGLE, FULL)),
            f"{row['prefill']['value']:.2f} x" if row["prefill"] else "-",
        ]
        for row in result["rows"]
    ]
    return [(f"{result['tokens']} tokens", head, lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return every single method with what it is over the exact caches."""
    rows = []
    for row in result["rows"]:
        if row["method"] in (None, FULL) or "|" in row["method"]:
            continue
        share = "" if row["share"] is None else f"/{row['share']:g}"
        figures = {"decode over 32 bits": row["faster"][SINGLE]}
        figures["decode over 16 bits"] = row["faster"][FULL]
        if row["prefill"]:
            figures["prefill over exact"] = row["prefill"]
        rows.append(
            Row(
                method=row["method"],
                kind="kv",
                part=f"{result['tokens']} tokens{share}",
                metrics={},
                ratio={name: found["value"] for name, found in figures.items()},
                interval={name: (found["low"], found["high"]) for name, found in figures.items()},
                bytes={"full": result["full_bytes"], "measured": row["kv_bytes"]},
            )
        )
    return rows


# -- private ----------------------------------------------------------------------------------


def _open(opened: Reading, lab: Lab, cell: Contender | None) -> Session:
    """Return an empty session; None is the exact cache in 32 bits."""
    if cell is not None:
        store = opened.open(cell)
        return Session.over(opened.runner(cell, store), store, cell)
    full = Contender(name=FULL)
    store = KVStore(
        lab.spec,
        (),
        max_tokens=opened.max_tokens,
        dtype=torch.float32,
        chunk=opened.chunk,
        ledger=lab.ledger,
    )
    return Session.over(opened.runner(full, store), store, full)


def _read(session: Session, ids: list[int]) -> float:
    began = time.perf_counter()
    session.reader.prefill(ids[:-1])
    session.store.finish_prompt(session.reader)
    return time.perf_counter() - began


def _fresh(
    opened: Reading, lab: Lab, cell: Contender | None, ids: list[int]
) -> Callable[[], float]:
    """Return what reads the context into a new store; it returns its own seconds."""

    def once() -> float:
        session = _open(opened, lab, cell)
        try:
            return _read(session, ids)
        finally:
            session.release()

    return once
