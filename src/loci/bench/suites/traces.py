"""Recorded requests on the real engine: schedulers, and rivals on the same requests.

`--data DIR` holds excerpts of public traces (a file with `azure` and `conv`, `azure` and `code`, or
`mooncake` in its name); without it, requests are drawn as long as Azure's. Lengths are scaled to
`prompt` and `new` tokens. Streams send one request after the other, or `--option rate=N` a second
in the trace's rhythm. Memory for keys and values can be bounded (`--option kv=48MiB`), so that
schedulers that take turns have something to do.

Rivals: transformers' continuous batching in this process, and llama.cpp's own server
(`--option llama_python=PYTHON`, which has xllamacpp) beside `loci serve`, both over HTTP.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # results

from loci.bench import rival_servers, texts, traffic
from loci.bench.cards import Row
from loci.bench.rival_servers import Absent, Asked
from loci.bench.suite import Context, count_of, refuse_unknown, words_of
from loci.bench.traffic import Answer, Call
from loci.errors import ParameterError
from loci.models.load import resolve, spec_of
from loci.models.tokenizer import Tokenizer
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run.batch import Batch
from loci.run.requests import Ask
from loci.run.stores import PagedStores, SwapRoom
from loci.units import parse_bytes

ABOUT = "recorded requests on the real engine: first tokens, waits, throughput, beside rivals"
KINDS = ("sched",)
DEFAULT = ("fcfs", "fcfs(chunk=128)", "layered_prefill(work=128)", "fastswitch")
TRACES = {"azure_conv": "conv_", "azure_code": "code_", "mooncake": "mooncake"}
STREAMS, REQUESTS, PROMPT, NEW = 32, 64, 192, 48
QUICK = {"streams": 4, "requests": 8, "prompt": 24, "new": 6}
FIRST_S, BETWEEN_S = 5.0, 0.5  # what a request must keep to count as good
TEXT = 60_000  # characters that prompts are cut out of
_OPTIONS = (
    "streams", "requests", "prompt", "new", "rate", "kv", "swap", "traces", "rivals",
    "llama_python", "gguf",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options, read and checked."""

    streams: int
    requests: int
    prompt: int
    new: int
    rate: float | None
    kv_bytes: int | None
    swap_bytes: int
    traces: tuple[str, ...]
    rivals: tuple[str, ...]

    @classmethod
    def of(cls, context: Context) -> Settings:
        options = context.options
        refuse_unknown(options, _OPTIONS)
        usual = {"streams": STREAMS, "requests": REQUESTS, "prompt": PROMPT, "new": NEW}
        counts = {
            name: count_of(options, name, QUICK[name] if context.quick else value)
            for name, value in usual.items()
        }
        rivals_known = tuple(rival_servers.WAYS)
        traces = words_of(options, "traces", ("azure_conv", "mooncake"))
        rivals = words_of(options, "rivals", () if context.quick else rivals_known)
        for what, given, known in (
            ("trace", traces, tuple(TRACES)),
            ("rival", rivals, (*rivals_known, "none")),
        ):
            unknown = [word for word in given if word not in known]
            if unknown:
                raise ParameterError(
                    f"there is no such {what}", value=unknown[0], allowed=", ".join(known)
                )
        rate = options.get("rate")
        if rate is not None and not rate.replace(".", "", 1).isdigit():
            raise ParameterError("rate is requests a second", value=rate, allowed="above 0")
        return cls(
            **counts,
            rate=None if rate is None else float(rate),
            kv_bytes=parse_bytes(options["kv"]) if "kv" in options else None,
            swap_bytes=parse_bytes(options.get("swap", "256MiB")),
            traces=traces,
            rivals=tuple(word for word in rivals if word != "none"),
        )


def run(context: Context) -> dict[str, Any]:
    """Send every trace to every scheduler and every rival."""
    how = Settings.of(context)
    methods = context.methods or DEFAULT
    spec = spec_of(context.model, context.folder)[0]
    results: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for trace, calls in _calls(context, how).items():
        ways = results[trace] = {}
        first: dict[int, list[int]] | None = None
        for done, name in enumerate((*methods, *how.rivals)):
            context.progress(f"{name}, {trace}", done, len(methods) + len(how.rivals))
            lent: Any = (
                _scheduler(context, how, name)
                if name in methods
                else rival_servers.WAYS[name](_asked(context, how))
            )
            try:
                with lent as (answer, told):
                    seen = traffic.send(calls, answer, streams=how.streams, per_s=how.rate)
                    ways[name] = {
                        **traffic.summary(seen, first_s=FIRST_S, between_s=BETWEEN_S),
                        **told(),
                    }
                    if isinstance(told, _Told):
                        first = first or told.said
                        ways[name]["says_the_same"] = told.said == first
            except Absent as why:
                absent[name] = str(why)
            gc.collect()
        for way in ways.values():
            way["ratio"] = {
                f"{what}.{name}": way[what] / other[what]
                for name, other in ways.items()
                if other is not way
                for what in ("tokens_per_s", "first_token_p99_s", "between_tokens_p99_s")
                if other[what]
            }
    return {
        "model": context.model,
        "fingerprint": spec.fingerprint,
        "seed": context.seed,
        "methods": list(methods),
        **{k: v for k, v in vars(how).items() if v is not None},
        "absent": absent,
        "results": results,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what each scheduler did beside the others and the rivals."""
    return [
        Row(
            method=name,
            kind="sched",
            part=trace,
            seeds=(result["seed"],),
            metrics={
                what: {
                    "this": ways[name][what],
                    "rivals": {n: w[what] for n, w in ways.items() if n != name and what in w},
                }
                for what, value in ways[name].items()
                if type(value) in (int, float)
            },
            ratio=ways[name]["ratio"],
        )
        for trace, ways in result["results"].items()
        for name in result["methods"]
    ]


# -- requests ---------------------------------------------------------------------------------


def _calls(context: Context, how: Settings) -> dict[str, list[Call]]:
    data = context.data
    found: dict[str, list[Call]] = {}
    if data is None:
        found["drawn"] = traffic.drawn(how.requests, context.seed)
    else:
        for trace in how.traces:
            path = traffic.find(data, TRACES[trace])
            if path is not None:
                found[trace] = traffic.read(path, how.requests)
        if not found:
            raise ParameterError(
                "there is no trace",
                value=str(data),
                allowed="files named after azure (conv, code) or mooncake, .csv or .jsonl, .gz",
            )
    tokenizer = Tokenizer(resolve(context.model, context.folder).folder)
    text = tokenizer.encode(texts.prose()[:TEXT])
    return {
        name: traffic.scaled(calls, prompt=how.prompt, new=how.new, text=text, seed=context.seed)
        for name, calls in found.items()
    }


def _asked(context: Context, how: Settings) -> Asked:
    named = context.options.get("gguf")
    return Asked(
        model=context.model,
        folder=context.folder,
        streams=how.streams,
        context=how.prompt + how.new,
        python=context.options.get("llama_python"),
        gguf=None if named is None else Path(named),
    )


def _plan(context: Context, how: Settings, **more: Any) -> Plan:
    return make_plan(
        context.model,
        dram="6GiB",
        context=how.prompt + how.new,
        new_tokens=how.new,
        kv="",
        kv_bytes=how.kv_bytes,
        folder=context.folder,
        cache=context.folder / ".cache",
        **more,
    )


# -- ours -------------------------------------------------------------------------------------


class _Told:
    """What an engine of ours tells when all is over, and what it said."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.said: dict[int, list[int]] = {}

    def __call__(self) -> dict[str, Any]:
        stores = self._batch.stores
        found: dict[str, Any] = {
            "peak_bytes": self._batch.ledger.peak("dram"),
            "reused_tokens": self._batch.load().reused_tokens,
        }
        if isinstance(stores, PagedStores):
            stats = stores.memory.swap.stats()
            found |= {"moved_out_bytes": stats.out_bytes, "moved_in_bytes": stats.in_bytes}
            found |= {"swap_stall_s": stats.waited_s, "times_put_out": stats.outs}
        return found


@contextmanager
def _scheduler(context: Context, how: Settings, name: str) -> Iterator[tuple[Answer, _Told]]:
    plan = _plan(context, how)
    with Batch(
        plan,
        folder=context.folder,
        scheduler=name,
        rows=how.streams,
        waiting=how.streams,
        swap=SwapRoom(memory_bytes=how.swap_bytes),
    ) as batch:
        told = _Told(batch)

        def answer(call: Call) -> Iterator[int]:
            ask = Ask(ids=call.ids, max_tokens=call.new, goes_on=True, user=call.user)
            said = told.said.setdefault(call.number, [])
            for piece in batch.submit(ask):
                said += piece.ids
                yield len(piece.ids)

        yield answer, told
