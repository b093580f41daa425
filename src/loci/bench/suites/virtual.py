"""Virtually contiguous KV memory beside reserving for the longest and beside a table of blocks.

Told are the bytes that a trace of requests of very different lengths commits for each byte it
needs; how long one layer attends over a contiguous view and over blocks gathered by a table; what a
beginning that eight requests share takes; how many pages an id maps that is used again; how long
the mapping takes that a decoding loop has to wait for; and how long the running engine takes for an
answer over a long context, and what it holds for several that begin alike, with keys and values in
mapped blocks and in a piece for each request.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any  # results

import torch
from torch.nn.functional import scaled_dot_product_attention

from loci.bench.cards import Row
from loci.bench.stats import alternate, ratio
from loci.bench.suite import Context, count_of, refuse_unknown
from loci.core.spec import ModelSpec
from loci.nn import native
from loci.plan import plan as make_plan
from loci.run.batch import Batch
from loci.run.requests import Ask
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not
from loci.tiers.virtual import PAGE_BYTES, VirtualKVAllocator

ABOUT = "KV memory page by page under contiguous tensors: bytes, attention, sharing, mapping"
KINDS = ("tiers",)
METHODS = ("vattention",)
REQUESTS, ROWS, MAX_LEN, TOKENS, PREFIX, SHARERS, ROUNDS = 200, 32, 2048, 4096, 2048, 8, 9
QUICK = {"requests": 30, "tokens": 256, "prefix": 256, "rounds": 2}
NEW = 32  # tokens of an answer of the engine
BLOCK = 16  # tokens of a block of the table
LONGEST_PROMPT, STEP = 1500, 8

SIZES = ModelSpec(  # those of SmolLM2-135M
    name="smollm2-sized",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    max_context=8192,
)
SMALL = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128}


def run(context: Context) -> dict[str, Any]:
    """Measure all of it."""
    refuse_unknown(context.options, ("requests", "tokens", "prefix", "rounds"))
    usual = {"requests": REQUESTS, "tokens": TOKENS, "prefix": PREFIX, "rounds": ROUNDS}
    how = {
        name: count_of(context.options, name, QUICK[name] if context.quick else value)
        for name, value in usual.items()
    }
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "bytes": lambda: _bytes(how["requests"], context.seed),
        "attention": lambda: _attention(how["tokens"], how["rounds"], context.seed),
        "prefix": lambda: _prefix(how["prefix"]),
        "reuse": _reuse,
        "mapping": lambda: _mapping(how["tokens"]),
    }
    if why_not() is None and native.available():
        sizes = SMALL if context.quick else {}
        steps["engine"] = lambda: _engine(how["prefix"], how["rounds"], context.seed, **sizes)
    found = {}
    for number, (name, step) in enumerate(steps.items()):
        context.progress(name, number, len(steps))
        found[name] = step()
    return {
        "model": SIZES.name,
        "fingerprint": "sizes alone",
        "seed": context.seed,
        "pages": "mapped" if why_not() is None else f"copied: {why_not()}",
        **how,
        "results": found,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return one row: this way beside its rivals."""
    found = result["results"]
    held, attention, prefix = found["bytes"], found["attention"], found["prefix"]
    engine = found.get("engine")
    own = {} if engine is None else _engine_metrics(engine)
    return [
        Row(
            method="vattention",
            kind="tiers",
            seeds=(result["seed"],),
            metrics={
                "committed_by_needed": {
                    "this": held["megacache"],
                    "rivals": {k: v for k, v in held.items() if k != "megacache"},
                },
                "attend_s": {
                    "this": attention["contiguous_s"],
                    "rivals": {"gathered": attention["gathered_s"]},
                },
                "prefix_copies": {
                    "this": prefix["committed_by_one"],
                    "rivals": {"copied": float(SHARERS + 1)},
                },
                "pages_of_reused_id": {"this": found["reuse"]["new_pages"], "rivals": {}},
                "mapping_us_a_token": {"this": found["mapping"]["us_a_token"], "rivals": {}},
                **own,
            },
            interval={"attend_ratio": tuple(attention["interval"])}
            | ({} if engine is None else {"engine_ratio": tuple(engine["interval"])}),
            ratio={"attend.gathered": attention["ratio"]}
            | ({} if engine is None else {"engine.pieces": engine["ratio"]}),
        )
    ]


def _engine_metrics(engine: Mapping[str, Any]) -> dict[str, Any]:
    return {
        what: {"this": engine["blocks"][what], "rivals": {"pieces": engine["pieces"][what]}}
        for what in ("answer_s", "held_by_many_bytes")
    }


# -- private ----------------------------------------------------------------------------------


def _lengths(count: int, seed: int) -> list[tuple[int, int]]:
    """Return (prompt, whole) tokens of requests with a heavy tail."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        prompt = min(LONGEST_PROMPT, 16 + int(draw.lognormvariate(4.9, 1.2)))
        found.append((prompt, min(MAX_LEN, prompt + 8 + int(draw.lognormvariate(4.3, 0.9)))))
    return found


def _bytes(requests: int, seed: int) -> dict[str, float]:
    """Return committed bytes by needed ones, means over a trace that keeps ROWS requests busy."""
    ways: dict[str, dict[str, Any]] = {
        "megacache": {"page_bytes": PAGE_BYTES},
        "megacache_2MiB": {"page_bytes": 2 << 20},
        "per_layer": {"layout": "per_layer", "page_bytes": PAGE_BYTES},
        "per_layer_2MiB": {"layout": "per_layer", "page_bytes": 2 << 20},
    }
    found = {name: _trace(_lengths(requests, seed), **way) for name, way in ways.items()}
    whole = needed = blocks = 0
    for prompt, end in _lengths(requests, seed):  # the same sums, request by request
        for length in range(prompt, end + 1, STEP):
            whole, needed = whole + MAX_LEN, needed + length
            blocks += -(-length // BLOCK) * BLOCK
    return {**found, "reserve_longest": whole / needed, "table_of_blocks": blocks / needed}


def _trace(lengths: list[tuple[int, int]], **given: Any) -> float:
    kv = VirtualKVAllocator(SIZES, max_len=MAX_LEN, max_batch=ROWS, pool_bytes=16 << 30, **given)
    waiting = list(reversed(lengths))
    live: dict[int, tuple[int, int]] = {}
    committed = needed = 0
    try:
        while waiting or live:
            while waiting and len(live) < ROWS:
                now, end = waiting.pop()
                live[kv.alloc(now)] = now, end
            stats = kv.stats()
            committed, needed = committed + stats.committed_bytes, needed + stats.needed_bytes
            for rid, (now, end) in list(live.items()):
                if now == end:
                    kv.free(rid)
                    del live[rid]
                else:
                    live[rid] = min(end, now + STEP), end
            kv.step({rid: now for rid, (now, _) in live.items()})
            if not waiting:
                kv.trim()  # nobody comes who could use what was left behind
        kv.check_integrity()
    finally:
        kv.close()
    return committed / needed


def _attention(tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """Time one query over a layer: the contiguous view, and blocks in an order of chance."""
    kv = VirtualKVAllocator(
        SIZES, max_len=tokens, max_batch=1, pool_bytes=4 << 30, dtype=torch.float32
    )
    draw = torch.Generator().manual_seed(seed)
    H, K, D = SIZES.heads, SIZES.kv_heads, SIZES.head_dim
    query = torch.randn(1, H, 1, D, generator=draw)
    count = -(-tokens // BLOCK)
    pool = torch.zeros(SIZES.layers, 2, count, BLOCK, K, D)
    table = torch.randperm(count, generator=draw)
    rid = kv.alloc(tokens)
    for layer in range(SIZES.layers):
        for part, view in enumerate(kv.view(rid, layer)):
            view.copy_(torch.randn(tokens, K, D, generator=draw))
            padded = torch.zeros(count * BLOCK, K, D)
            padded[:tokens] = view
            pool[layer, part, table] = padded.view(count, BLOCK, K, D)
    out: dict[str, torch.Tensor] = {}

    def contiguous() -> None:
        for layer in range(SIZES.layers):
            keys, values = (part.transpose(0, 1)[None] for part in kv.view(rid, layer))
            out["here"] = scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    def gathered() -> None:
        for layer in range(SIZES.layers):
            keys, values = (
                part[table].view(-1, K, D)[:tokens].transpose(0, 1)[None] for part in pool[layer]
            )
            out["there"] = scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    def seconds(way: Callable[[], None]) -> Callable[[], float]:
        def time_it() -> float:
            began = time.perf_counter()
            way()
            return (time.perf_counter() - began) / SIZES.layers

        return time_it

    try:
        times = alternate({"here": seconds(contiguous), "there": seconds(gathered)}, rounds)
    finally:
        kv.close()
    assert torch.allclose(out["here"], out["there"], atol=1e-5), "the two ways differ"
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    found = ratio(times["there"], times["here"])
    return {
        "tokens": tokens,
        "contiguous_s": middle["here"],
        "gathered_s": middle["there"],
        "ratio": found.value,
        "interval": (found.low, found.high),
    }


def _prefix(tokens: int) -> dict[str, float]:
    """Return what a shared beginning commits, by what it commits for one."""
    kv = VirtualKVAllocator(SIZES, max_len=tokens + 64, max_batch=SHARERS + 1, pool_bytes=2 << 30)
    try:
        first = kv.alloc(tokens)
        one = kv.stats().committed_bytes
        for _ in range(SHARERS):
            kv.alias_prefix(first, kv.alloc(0), tokens)
        stats = kv.stats()
        return {
            "one_bytes": one,
            "all_bytes": stats.committed_bytes,
            "committed_by_one": stats.committed_bytes / one,
        }
    finally:
        kv.close()


def _reuse() -> dict[str, float]:
    """Return the pages that are mapped for a request which takes an inactive id."""
    kv = VirtualKVAllocator(SIZES, max_len=1024, max_batch=4, pool_bytes=256 << 20)
    try:
        rid = kv.alloc(800)
        kv.free(rid)
        before = kv.stats().mapped_pages
        kv.alloc(700)
        return {"first_pages": before, "new_pages": kv.stats().mapped_pages - before}
    finally:
        kv.close()


def _mapping(tokens: int) -> dict[str, float]:
    """Return what a decoding loop waits for mapping, with pages mapped ahead and without."""
    found = {}
    for name in ("us_a_token_ahead", "us_a_token"):
        kv = VirtualKVAllocator(SIZES, max_len=tokens, max_batch=1, pool_bytes=1 << 30)
        try:
            rid = kv.alloc(1)
            step = kv.step if name == "us_a_token" else kv.step_async
            for length in range(2, tokens + 1):
                step({rid: length})
            found[name] = 1e6 * kv.stats().map_s / (tokens - 1)
        finally:
            kv.close()
    return found


def _engine(tokens: int, rounds: int, seed: int, **sizes: int) -> dict[str, Any]:
    """Time an answer over a context that was read before; count what several hold that share it."""
    wanted = {name: getattr(SIZES, name) for name in (*SMALL, "vocab", "max_context")} | sizes
    draw = random.Random(seed)
    ids = tuple(draw.randrange(256) for _ in range(tokens))
    found: dict[str, Any] = {"tokens": tokens, "sharers": SHARERS}
    with TemporaryDirectory() as home:
        tiny_pack(Path(home) / "m", **wanted).close()
        plan = make_plan(
            "m",
            dram="3GiB",
            context=tokens + 2 * NEW,
            new_tokens=NEW,
            kv="",
            folder=Path(home),
            cache=Path(home) / "cache",
        )
        engines = {
            name: Batch(plan, folder=Path(home), rows=SHARERS, paged=name == "blocks")
            for name in ("blocks", "pieces")
        }

        def answer(batch: Batch) -> Callable[[], float]:
            def time_it() -> float:
                ticket = batch.submit(Ask(ids=ids, max_tokens=NEW, goes_on=True))
                end = ticket.wait()
                assert end.error is None and end.first_token_s is not None
                return end.whole_s - end.first_token_s

            return time_it

        try:
            times = alternate({name: answer(batch) for name, batch in engines.items()}, rounds)
            for name, batch in engines.items():
                middle = sorted(times[name])[len(times[name]) // 2]
                found[name] = {"answer_s": middle, "held_by_many_bytes": _held(batch, ids)}
        finally:
            for batch in engines.values():
                batch.close()
    by = ratio(times["blocks"], times["pieces"])
    return {**found, "ratio": by.value, "interval": (by.low, by.high)}


def _held(batch: Batch, ids: tuple[int, ...]) -> int:
    """Return the bytes of keys and values while several answer that begin alike."""
    tickets = [
        batch.submit(Ask(ids=(*ids, number), max_tokens=NEW, goes_on=True))
        for number in range(SHARERS)
    ]
    for ticket in tickets:
        for _ in ticket:
            break
    held = batch.between_steps(lambda: batch.ledger.by_kind("dram")["kv"])
    for ticket in tickets:
        ticket.wait()
    return held
