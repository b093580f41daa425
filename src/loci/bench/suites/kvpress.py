"""Our KV methods beside kvpress, NVIDIA's library of the same kind, on the same tokens.

kvpress needs an older transformers than ours, so it runs in an environment of its own:

    python -m venv /tmp/kvpress
    /tmp/kvpress/bin/pip install torch kvpress
    loci bench run kvpress --option kvpress_python=/tmp/kvpress/bin/python

Both read the same prompts in one piece, drop tokens, and read on: the last token of the prompt and
the rest, teacher-forced. KL(full || method) is taken against the full cache of the same side, in
nats per token, so that the two forwards need not agree to the last bit (`forwards` says how far
they do). Shares are of the prompt's cache in half precision. A press keeps so many tokens and adds
the rest to them. Ours may hold at any time, its accounts included, what the press holds at the end.

Options: kvpress_python=PYTHON, shares=0.5,0.25, pieces=4, presses=SnapKVPress,KeyDiffPress.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.hf_side import READ, export, ours, pieces_of, worker
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context, count_of, python_of, refuse_unknown, shares_of, words_of
from loci.bench.suites.reference import PROMPT, kl
from loci.errors import ParameterError
from loci.models.load import resolve
from loci.run.lab import Lab

ABOUT = "our KV methods beside kvpress at equal bytes, on the same tokens"
KINDS = ("kv",)
METHODS: tuple[str, ...] = ()  # runs by its own name alone: it needs another environment
OURS = ("random", "streaming_llm", "snapkv", "keydiff", "compresskv")
PRESSES = (
    "RandomPress",
    "StreamingLLMPress",
    "SnapKVPress",
    "KeyDiffPress",
    "KnormPress",
    "TOVAPress",
    "ExpectedAttentionPress",
)
_OPTIONS = ("kvpress_python", "shares", "pieces", "presses")


def run(context: Context) -> dict[str, Any]:
    """Measure both libraries on the same pieces."""
    refuse_unknown(context.options, _OPTIONS)
    python = python_of(context.options, "kvpress_python", "torch kvpress")
    count = 1 if context.quick else count_of(context.options, "pieces", 4)
    shares = sorted(shares_of(context.options, (0.5, 0.25)), reverse=True)
    names = context.methods or (OURS[:2] if context.quick else OURS)
    presses = words_of(context.options, "presses", PRESSES[:2] if context.quick else PRESSES)
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=PROMPT + READ, chunk=PROMPT)
    full_bytes = pack.spec.kv_bytes(PROMPT)
    each = full_bytes // PROMPT
    losses: dict[tuple[str, float], list[float]] = {}
    held: dict[tuple[str, float], int] = {}
    refused: dict[str, str] = {}
    gaps: list[float] = []
    try:
        with tempfile.TemporaryDirectory(prefix="loci-kvpress-") as folder:
            context.progress("writing the model for kvpress", 0, 1)
            export(lab, Path(folder))
            with worker(python, Path(folder), "kvpress") as ask:
                pieces = pieces_of(lab, count)
                for number, ids in enumerate(pieces):
                    context.progress("pieces of text", number, count)
                    whole = ours(lab, ids, None, None)[0]
                    theirs = ask(ids)[0]
                    gaps.append(float((whole - theirs).abs().max()))
                    for share in shares:
                        for name in names:
                            found, nbytes = ours(
                                lab, ids, name, each * (int(PROMPT * share) + READ)
                            )
                            losses.setdefault((name, share), []).append(kl(whole, found))
                            held[name, share] = nbytes
                        for press in presses:
                            if press in refused:
                                continue
                            try:
                                found, answer = ask(ids, press=press, ratio=1 - share)
                            except ParameterError as error:
                                refused[press] = str(error)
                                continue
                            losses.setdefault((press, share), []).append(kl(theirs, found))
                            held[press, share] = each * (round(mean(answer["held"]).value) + READ)
                versions = ask.versions
    finally:
        lab.close()
        pack.close()
    rows = [
        {
            "method": name,
            "share": share,
            "is_ours": name in names,
            "kl": mean(values).to_json(),
            "bytes": held[name, share],
        }
        for (name, share), values in losses.items()
    ]
    return {
        "model": context.model,
        "fingerprint": pack.spec.fingerprint,
        "text": texts.digest(texts.prose()),
        "prompt_tokens": PROMPT,
        "scored_tokens": READ * count,
        "full_bytes": full_bytes,
        "versions": versions,
        "forwards": max(gaps),
        "refused": refused,
        "rows": rows,
        "less": _less(losses, names, presses, shares),
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a table for each share, least loss first."""
    found = []
    for share in dict.fromkeys(row["share"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["share"] == share]
        rows.sort(key=lambda row: row["kl"]["value"])
        lines = [
            [
                row["method"],
                f"{row['kl']['value']:.4f}",
                f"{row['kl']['low']:.4f} to {row['kl']['high']:.4f}",
                f"{row['bytes'] / 2**20:.2f} MiB",
            ]
            for row in rows
        ]
        found.append((f"{share:.0%} of the prompt", ["method", "KL", "95 %", "held"], lines))
    return found


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the KL of each of ours beside all presses at its share."""
    rows = []
    for row in result["rows"]:
        if not row["is_ours"] or "|" in row["method"]:
            continue
        beside = {
            f"kvpress {other['method']}": other["kl"]["value"]
            for other in result["rows"]
            if other["share"] == row["share"] and not other["is_ours"]
        }
        rows.append(
            Row(
                method=row["method"],
                kind="kv",
                part=f"{row['share']:g}",
                metrics={"kl": {"this": row["kl"]["value"], "rivals": beside}},
                interval={"kl": (row["kl"]["low"], row["kl"]["high"])},
                bytes={"full": result["full_bytes"], "measured": row["bytes"]},
            )
        )
    return rows


# -- private ----------------------------------------------------------------------------------


def _less(
    losses: Mapping[tuple[str, float], Sequence[float]],
    ours: Sequence[str],
    presses: Sequence[str],
    shares: Sequence[float],
) -> dict[str, Any]:
    """Return, for each share, the KL of our best less that of the best press, by piece."""
    found = {}
    for share in shares:
        mine = {n: losses[n, share] for n in ours if (n, share) in losses}
        theirs = {n: losses[n, share] for n in presses if (n, share) in losses}
        if mine and theirs:
            one = min(mine, key=lambda n: mean(mine[n]).value)
            other = min(theirs, key=lambda n: mean(theirs[n]).value)
            gap = paired_difference(mine[one], theirs[other])
            found[f"{share:g}"] = {"ours": one, "theirs": other, "kl": gap.to_json()}
    return found
