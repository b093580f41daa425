"""A bank of dropped tokens: does it find the needle, and what is it worth at equal bytes?

    recall     a needle's answer stands in a chunk of c tokens: is this among the 16 chunks that the
               end of the question fetches? For each layer, over its query heads, untrained
    kl, needle, ...
               tasks of `loci bench run kv`, at equal bytes of memory: a method that selects alone,
               and with a bank behind it. A bank on disk leaves its index in memory, and its bytes
               on disk are shown beside

Options: selects=snapkv,streaming_llm (methods before the bank), tokens=2048 (of recall), items=3,
widths=1,4,16 (tokens of a chunk), and of the tasks: tasks=kl,needle, size=short|default|long,
shares=0.25, contexts=4, chunks=64 (tokens a prompt is read by; else whole). --method names banks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any  # results hold whatever JSON can hold

import torch

from loci.bench import contexts
from loci.bench.cards import Row
from loci.bench.contest import Bench, Records, Settings, share_right
from loci.bench.contexts import Size
from loci.bench.reading import FULL, Contender, prompt_of
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context, count_of, words_of
from loci.methods.kv.longmem import LongMem
from loci.models.load import resolve
from loci.nn.bank import ChunkBank
from loci.run.kv_pool import DTYPES
from loci.run.lab import Lab

ABOUT = "a bank of dropped tokens: recall of a needle's chunk, and what it is worth at equal bytes"
KINDS = ("kv",)
METHODS = ("longmem", "longmem-near")
DEFAULT = (
    "longmem(tier=disk,chunk=16)",
    "longmem(tier=disk)",
    "longmem(bits=4,chunk=16)",
    "longmem-near(tier=disk,chunk=16)",
)
SELECTS = ("snapkv", "streaming_llm")
WIDTHS = ("1", "4", "16")
FACTS = 12  # needles of a context
_OWN = ("selects", "tokens", "items", "widths")

# Shapes: B batch, L layers, K key/value heads, G query heads per KV head, T tokens, D head size.


def run(context: Context) -> dict[str, Any]:
    """Measure recall, then every bank behind every selecting method beside that method alone."""
    own = {name: value for name, value in context.options.items() if name in _OWN}
    rest = {name: value for name, value in context.options.items() if name not in _OWN}
    rest = {"tasks": "kl" if context.quick else "kl,needle", "chunks": "whole", **rest}
    rest.setdefault("shares", "0.25")
    rest.setdefault("contexts", "1" if context.quick else "4")
    inner = replace(context, options=rest)
    how = Settings.of(inner)
    tokens = count_of(own, "tokens", 256 if context.quick else 2048)
    items = count_of(own, "items", 1 if context.quick else 3)
    widths = [int(word) for word in words_of(own, "widths", WIDTHS)]
    banks = context.methods or DEFAULT[: 1 if context.quick else None]
    pack = resolve(context.model, context.folder)
    lab = Lab(pack, context=max(tokens + 64, how.tokens))
    try:
        recalls = {str(width): recall(lab, width, tokens, items, context) for width in widths}
        bench = Bench(lab, how, inner)
        result = {
            "model": context.model,
            "fingerprint": pack.spec.fingerprint,
            "tokens": tokens,
            "recall": recalls,
            "task_tokens": how.tokens,
            "rows": _rows(bench, how, banks, words_of(own, "selects", SELECTS)),
        }
    finally:
        lab.close()
        pack.close()
    return result


def recall(lab: Lab, chunk: int, tokens: int, items: int, context: Context) -> dict[str, Any]:
    """Return the share of questions whose answer's chunk is among those that are fetched.

    Asked are the query heads at the question's last token; `layer` is the mean over the heads of
    the best layer, `head` is the best head of all.
    """
    spec, hits, asked = lab.spec, torch.zeros(lab.spec.layers, lab.spec.heads), 0
    method = LongMem(chunk=chunk, capacity=-(-tokens // chunk) * chunk)
    for number in range(items):
        context.progress(f"recall, chunks of {chunk}", number, items)
        facts = min(FACTS, max(1, tokens // 64))
        item = contexts.make(
            "needle",
            lab.tokenizer,
            Size(tokens=tokens, facts=facts),
            context.seed + number,
            turns=min(contexts.TURNS, facts),
        )
        ids = prompt_of(item, "multi_request")
        store = lab.store(max_tokens=len(ids) + item.longest())
        try:
            with lab.reading(store) as reader:
                reader.prefill(ids)
                banks = [_filled(method, lab, store.view(layer).dense()) for layer in
                         range(spec.layers)]  # fmt: skip
                for turn in item.turns:
                    answer = turn.evidence[1] - 2  # before the full stop
                    for seen in reader.probe(list(turn.question)):
                        assert seen.queries is not None
                        q_BKGTD = seen.queries[:, :, -1:].unflatten(1, (spec.kv_heads, -1))
                        found = banks[seen.layer].find(0, q_BKGTD, seen.positions[:, -1:])
                        hits[seen.layer] += (found == answer).any(-1).flatten().float()
                    asked += 1
        finally:
            store.release()
    shares_LH = hits / asked
    by_layer = shares_LH.mean(1)
    return {
        "questions": asked,
        "layer": float(by_layer.max()),
        "best_layer": int(by_layer.argmax()),
        "head": float(shares_LH.max()),
        "mean": float(shares_LH.mean()),
        "chance": min(1.0, method.chunks * chunk / tokens),
    }


def sheet(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return tables to print: (title, head, rows)."""
    head = ["tokens a chunk", "best layer", "best head", "all heads", "chance"]
    lines = [
        [chunk, *(f"{found[name]:.2f}" for name in ("layer", "head", "mean", "chance"))]
        for chunk, found in result["recall"].items()
    ]
    tables = [(f"answers among 16 chunks fetched, {result['tokens']} tokens", head, lines)]
    tasks = list(result["rows"][0]["tasks"]) if result["rows"] else []
    head = ["chain", "of full bytes", *tasks, "memory", "on disk"]
    lines = [
        [
            row["chain"],
            f"{row['share']:.0%}",
            *(f"{row['tasks'][task]['value']:.3f}" for task in tasks),
            f"{row['kv_bytes'] / 2**20:.2f} MiB",
            f"{row['disk_bytes'] / 2**20:.2f} MiB",
        ]
        for row in result["rows"]
    ]
    return [*tables, (f"equal bytes of memory, {result['task_tokens']} tokens", head, lines)]


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return every bank behind every method, beside that method alone."""
    alone = {(row["select"], row["share"]): row for row in result["rows"] if row["bank"] is None}
    rows = []
    for row in result["rows"]:
        if row["bank"] is None:
            continue
        rival = alone[row["select"], row["share"]]
        metrics = {
            task: {
                "this": figures["value"],
                "full": row["full"][task],
                "rivals": {row["select"]: rival["tasks"][task]["value"]},
            }
            for task, figures in row["tasks"].items()
        }
        interval = {
            f"{task} less {row['select']}": (gap["low"], gap["high"])
            for task, gap in row["less"].items()
        }
        rows.append(
            Row(
                method=row["bank"],
                kind="kv",
                part=f"{row['select']}/{row['share']:g}",
                metrics=metrics,
                interval=interval,
                bytes={
                    "full": row["full_bytes"],
                    "predicted": row["predicted_bytes"],
                    "measured": row["kv_bytes"],
                    "disk": row["disk_bytes"],
                },
            )
        )
    for chunk, found in result["recall"].items():
        rows.append(
            Row(
                method=f"longmem(chunk={chunk})",
                kind="kv",
                part=f"recall/{result['tokens']}",
                metrics={
                    "recall_best_layer": {
                        "this": found["layer"],
                        "rivals": {"chance": found["chance"]},
                    },
                    "recall_best_head": {
                        "this": found["head"],
                        "rivals": {"chance": found["chance"]},
                    },
                },
            )
        )
    return rows


# -- private ----------------------------------------------------------------------------------


def _filled(method: LongMem, lab: Lab, block: Any) -> ChunkBank:
    """Return a bank of one layer that holds all tokens of a block."""
    spec = replace(lab.spec, layers=1)
    tensors = {
        name: torch.zeros((1, 1, spec.kv_heads, *shape), dtype=DTYPES[kind])
        for name, (shape, kind) in method.bank_table(spec, block.keys.shape[2]).items()
    }
    bank = method.open(spec, tensors)
    bank.add(0, slice(0, spec.kv_heads), block)
    return bank


def _rows(
    bench: Bench, how: Settings, banks: Sequence[str], selects: Sequence[str]
) -> list[dict[str, Any]]:
    full_bytes = bench.lab.spec.kv_bytes(how.tokens)
    cells = {
        (select, bank, share): Contender(
            name=select if bank is None else f"{select} | {bank}",
            share=share,
            budget_bytes=int(full_bytes * share),
            chunk=how.chunks[0],
        )
        for share in how.shares
        for select in selects
        for bank in (None, *banks)
    }
    records = bench.measured("test", list(cells.values()))
    full = _values(records[Contender(name=FULL)])
    rows = []
    for (select, bank, share), cell in cells.items():
        if cell not in records:
            continue  # not one token fits
        mine = _values(records[cell])
        rival = _values(records[cells[select, None, share]])
        held = [record for items in records[cell].values() for record in items]
        rows.append(
            {
                "chain": cell.name,
                "select": select,
                "bank": bank,
                "share": share,
                "tasks": {task: mean(values).to_json() for task, values in mine.items()},
                "full": {task: mean(values).value for task, values in full.items()},
                "less": {
                    task: paired_difference(values, rival[task]).to_json()
                    for task, values in mine.items()
                },
                "full_bytes": full_bytes,
                **{
                    name: max(record[name] for record in held)
                    for name in ("kv_bytes", "predicted_bytes", "disk_bytes")
                },
            }
        )
    return rows


def _values(records: Records) -> dict[str, list[float]]:
    """Return one figure per item: KL, or the share of right answers."""
    return {
        task: [item["kl"] if task == "kl" else share_right(item) for item in items]
        for task, items in records.items()
    }
