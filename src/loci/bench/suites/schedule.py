"""Schedulers on many arrivals: time to the first token, between tokens, and throughput.

Requests arrive at random or from a trace (`--data FILE.csv` with the columns TIMESTAMP,
ContextTokens and GeneratedTokens). The engine is simulated: a step takes as long as the roofline of
a machine's preset says of its bytes and its arithmetic, weights read once a step; of a mixture of
experts (`--option model=qwen3-30b-a3b-sized`) those of the experts that a layer's tokens want. The
rival is
batching by whole requests, as served before iteration-level scheduling: a batch is formed when the
one before has ended, and ends when its longest request does.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any  # results and a scheduler's state

from loci.bench.cards import Row
from loci.bench.metrics import percentile
from loci.bench.suite import Context
from loci.core.spec import ModelSpec
from loci.errors import FormatError, ParameterError
from loci.hw.profiles import DeviceProfile, load_profile
from loci.methods import catalogue
from loci.methods.sched.base import Request, Sched, SchedView, StepPlan

ABOUT = "schedulers on random or recorded arrivals, engine simulated by the roofline"
KINDS = ("sched",)
DEFAULT = ("fcfs", "fcfs(chunk=512)", "layered_prefill")
RIVAL = "whole_batches"
REQUESTS, QUICK_REQUESTS, ROWS = 300, 40, 32
MACHINE, KV_BYTES = "a100-40gb", 20 << 30
LOADS = (0.5, 0.9, 1.5)  # of the requests per second that the rival can take at most
PROMPTS = (6.2, 0.9, 3000)  # log-normal, at most
LONG_PROMPTS = (8.95, 0.6, 16_000)  # log-normal, at most: papers to be summed up, mean some 9,000


LENGTHS = {"short": PROMPTS, "long": LONG_PROMPTS}


@dataclass(frozen=True, kw_only=True)
class Experts:
    """What each layer of a mixture has in place of one feed-forward: sizes of `ModelSpec.ffn`."""

    count: int
    top: int

    def wanted(self, tokens: float) -> float:
        """Return how many of them so many tokens want, each taking `top` by chance."""
        return self.count * (1 - (1 - self.top / self.count) ** tokens)


MODEL = ModelSpec(  # the sizes of Llama-2-7B, in half precision
    name="llama-7b-sized",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    vocab=32000,
    max_context=4096,
)
MIXTURE = ModelSpec(  # the sizes of Qwen3-30B-A3B; ffn is that of one expert
    name="qwen3-30b-a3b-sized",
    layers=48,
    hidden=2048,
    heads=32,
    kv_heads=4,
    head_dim=128,
    ffn=768,
    vocab=151_936,
    max_context=40_960,
    tied=False,
)
MODELS = {
    MODEL.name: (MODEL, None),
    MIXTURE.name: (MIXTURE, Experts(count=128, top=8)),
}


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request and when it comes, in seconds."""

    at_s: float
    request: Request


@dataclass(kw_only=True)
class Served:
    """What happened to the requests; times in seconds since each arrived, or between tokens."""

    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    refused: int = 0
    tokens: int = 0
    end_s: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return medians, tails and throughput."""
        return {
            "first_token_p50_s": percentile(self.first_s, 0.5),
            "first_token_p99_s": percentile(self.first_s, 0.99),
            "between_tokens_p50_s": percentile(self.between_s, 0.5),
            "between_tokens_p99_s": percentile(self.between_s, 0.99),
            "between_tokens_max_s": max(self.between_s, default=0.0),
            "whole_p50_s": percentile(self.done_s, 0.5),
            "tokens_per_s": self.tokens / self.end_s if self.end_s else 0.0,
            "refused": self.refused,
        }


class StepTime:
    """How long a step of the engine takes on a machine, by bytes and by arithmetic."""

    def __init__(
        self, spec: ModelSpec, machine: DeviceProfile, experts: Experts | None = None
    ) -> None:
        tier = machine.tiers["gpu" if "gpu" in machine.tiers else "dram"]
        self._bandwidth = tier.read_bytes_per_s
        self._peak = machine.rates["float16"]
        self._layers, self._experts = spec.layers, experts
        expert = 3 * spec.hidden * spec.ffn
        mixed = 0 if experts is None else spec.layers * expert  # counted apart
        self._expert_bytes = 2 * expert
        self._weights = spec.full_bytes() - 2 * mixed
        top = 0 if experts is None else experts.top
        self._linear = 2 * (spec.linear_elements() - mixed + top * mixed)
        self._head = 2 * spec.vocab * spec.hidden
        self._scores = 4 * spec.heads * spec.head_dim * spec.layers
        self._kv = spec.kv_bytes(1)

    def __call__(self, plan: StepPlan, live: Mapping[str, Request]) -> float:
        """Return the seconds of a step."""
        first, last = plan.prefill_layers or (0, self._layers)
        share = (last - first) / self._layers
        operations, nbytes, prompt = 0.0, float(self._weights), 0
        for id, tokens in plan.prefill:
            before = live[id].prefilled
            operations += share * tokens * (self._linear + self._scores * (before + tokens / 2))
            nbytes += share * self._kv * before
            prompt += tokens
        for id in plan.decode:
            seen = live[id].prompt_tokens + live[id].generated
            operations += self._linear + self._head + self._scores * seen
            nbytes += self._kv * seen
        nbytes += self.expert_bytes(last - first if prompt else 0, prompt, len(plan.decode))
        return max(operations / self._peak, nbytes / self._bandwidth)

    def expert_bytes(self, prompt_layers: int, prompt_tokens: int, decoding: int) -> float:
        """Return the bytes of experts a step reads, in layers with the prompt and without."""
        if self._experts is None:
            return 0.0
        wanted = self._experts.wanted
        both = prompt_layers * wanted(prompt_tokens + decoding)
        return self._expert_bytes * (both + (self._layers - prompt_layers) * wanted(decoding))


def serve(
    method: Sched,
    arrivals: list[Arrival],
    step_s: StepTime,
    rows: int = ROWS,
    layers: int = MODEL.layers,
) -> Served:
    """Run all arrivals to their end under a scheduler."""
    served, state, now = Served(), method.start(), 0.0
    waiting = sorted(arrivals, key=lambda a: a.at_s)
    came = {a.request.id: a.at_s for a in arrivals}
    last: dict[str, float] = {}
    live: dict[str, Request] = {}
    while waiting or live:
        if not live:
            now = max(now, waiting[0].at_s)
        while waiting and waiting[0].at_s <= now:
            request = waiting.pop(0).request
            live[request.id] = request
        view = SchedView(
            requests=tuple(live.values()), budget_bytes=KV_BYTES, max_rows=rows, layers=layers
        )
        plan, state = method.choose(view, state)
        for id in plan.refuse:
            served.refused += 1
            del live[id]
        if plan.is_idle:
            if plan.refuse:
                continue
            raise ParameterError("a scheduler stands still while requests wait", value=str(method))
        now += step_s(plan, live)
        is_read = plan.prefill_layers is None or plan.prefill_layers[1] == layers
        for id, tokens in plan.prefill if is_read else ():
            live[id] = replace(live[id], prefilled=live[id].prefilled + tokens)
        for id in plan.decode:
            live[id] = replace(live[id], generated=live[id].generated + 1)
            served.tokens += 1
            if id in last:
                served.between_s.append(now - last[id])
            else:
                served.first_s.append(now - came[id])
            last[id] = now
            if live[id].generated == live[id].new_tokens:
                served.done_s.append(now - came[id])
                del live[id]
    served.end_s = now
    return served


def serve_whole_batches(arrivals: list[Arrival], step_s: StepTime, rows: int = ROWS) -> Served:
    """Run all arrivals in batches of whole requests; nobody joins a batch under way."""
    served, now = Served(), 0.0
    waiting = sorted(arrivals, key=lambda a: a.at_s)
    while waiting:
        now = max(now, waiting[0].at_s)
        batch: list[Arrival] = []
        held = 0
        while waiting and waiting[0].at_s <= now and len(batch) < rows:
            if held + waiting[0].request.kv_bytes > KV_BYTES:
                break
            batch.append(waiting.pop(0))
            held += batch[-1].request.kv_bytes
        if not batch:  # it does not fit even alone
            waiting.pop(0)
            served.refused += 1
            continue
        live = {a.request.id: a.request for a in batch}
        now += step_s(
            StepPlan(prefill=tuple((id, r.prompt_tokens) for id, r in live.items())), live
        )
        ended: dict[str, float] = {}
        longest = max(r.new_tokens for r in live.values())
        for step in range(longest):  # rows that ended are still computed until the batch ends
            began, now = now, now + step_s(StepPlan(decode=tuple(live)), live)
            for arrival in batch:
                request = live[arrival.request.id]
                if request.generated == request.new_tokens:
                    continue
                live[request.id] = replace(request, generated=request.generated + 1)
                served.tokens += 1
                if step == 0:
                    served.first_s.append(now - arrival.at_s)
                else:
                    served.between_s.append(now - began)
                ended[request.id] = now
        # A batch hands its answers back together.
        served.done_s += [now - arrival.at_s for arrival in batch]
    served.end_s = now
    return served


def random_arrivals(
    count: int,
    per_s: float,
    seed: int,
    prompts: tuple[float, float, int] = PROMPTS,
    spec: ModelSpec = MODEL,
) -> list[Arrival]:
    """Return Poisson arrivals with log-normal lengths: prompts of some 500, answers of some 130."""
    draw, now, found = random.Random(seed), 0.0, []
    mean, deviation, most = prompts
    for index in range(count):
        now += draw.expovariate(per_s)
        prompt = min(most, max(8, round(draw.lognormvariate(mean, deviation))))
        new = min(1000, max(2, round(draw.lognormvariate(4.9, 0.8))))
        found.append(_arrival(f"r{index}", now, prompt, new, spec))
    return found


def trace_arrivals(path: Path, count: int) -> list[Arrival]:
    """Return the first arrivals of a trace with TIMESTAMP, ContextTokens, GeneratedTokens."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        rows = list(csv.DictReader(text.splitlines()))[:count]
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
        return [
            _arrival(
                f"r{index}",
                (when - times[0]).total_seconds(),
                max(1, int(row["ContextTokens"])),
                max(1, int(row["GeneratedTokens"])),
            )
            for index, (when, row) in enumerate(zip(times, rows, strict=True))
        ]
    except (KeyError, ValueError, OSError) as problem:
        raise FormatError(
            f"{path} is no trace of requests ({problem})",
            allowed="CSV with TIMESTAMP, ContextTokens, GeneratedTokens",
        ) from None


def run(context: Context) -> dict[str, Any]:
    """Serve the same arrivals under every scheduler and under the rival, at several loads."""
    count = QUICK_REQUESTS if context.quick else int(context.options.get("requests", REQUESTS))
    named = context.options.get("model", MODEL.name)
    if named not in MODELS:
        raise ParameterError("there are no such sizes", value=named, allowed=", ".join(MODELS))
    spec, experts = MODELS[named]
    lengths = context.options.get("prompts", "short")
    if lengths not in LENGTHS:
        raise ParameterError("there are no such prompts", value=lengths, allowed=", ".join(LENGTHS))
    prompts = LENGTHS[lengths]
    step_s = StepTime(spec, load_profile(context.options.get("machine", MACHINE)), experts)
    ways: dict[str, Callable[[list[Arrival]], Served]] = {
        name: _way(name, step_s, spec) for name in context.methods or DEFAULT
    }
    ways[RIVAL] = lambda arrivals: serve_whole_batches(arrivals, step_s)
    trace = context.data if context.data is not None and context.data.is_file() else None
    if trace is not None:
        worlds = {"trace": trace_arrivals(trace, count)}
    else:
        # All at once: what it can take at most.
        crowd = random_arrivals(count, 1e9, context.seed, prompts, spec)
        most_per_s = count / serve_whole_batches(crowd, step_s).end_s
        worlds = {
            f"{load:g}": random_arrivals(count, load * most_per_s, context.seed, prompts, spec)
            for load in LOADS
        }
    results: dict[str, dict[str, Any]] = {}
    for world, arrivals in worlds.items():
        results[world] = {}
        for done, (name, way) in enumerate(ways.items()):
            context.progress(f"{name} at {world}", done, len(ways))
            results[world][name] = way(arrivals).to_json()
    return {
        "model": spec.name,
        "fingerprint": "sizes alone",
        "prompts": lengths,
        "simulated_machine": context.options.get("machine", MACHINE),
        "requests": count,
        "max_rows": ROWS,
        "seed": context.seed,
        "results": results,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return tails and throughput of every scheduler beside the others, at each load."""
    whats = (
        "first_token_p50_s",
        "first_token_p99_s",
        "between_tokens_p99_s",
        "between_tokens_max_s",
        "tokens_per_s",
    )
    return [
        Row(
            method=name,
            kind="sched",
            part=world,
            seeds=(result["seed"],),
            metrics={
                what: {
                    "this": found[what],
                    "rivals": {n: f[what] for n, f in ways.items() if n != name},
                }
                for what in whats
            },
        )
        for world, ways in result["results"].items()
        for name, found in ways.items()
        if name != RIVAL
    ]


# -- private ----------------------------------------------------------------------------------


def _way(name: str, step_s: StepTime, spec: ModelSpec) -> Callable[[list[Arrival]], Served]:
    method: Any = catalogue.find(name, "sched")
    if method.swaps:
        raise ParameterError(
            "this simulation moves nobody",
            value=name,
            way_out="loci bench run switching, or traces on the engine",
        )
    return lambda arrivals: serve(method, arrivals, step_s, layers=spec.layers)


def _arrival(id: str, at_s: float, prompt: int, new: int, spec: ModelSpec = MODEL) -> Arrival:
    kv_bytes = spec.kv_bytes(prompt + new)
    request = Request(id=id, prompt_tokens=prompt, new_tokens=new, kv_bytes=kv_bytes)
    return Arrival(at_s=at_s, request=request)
