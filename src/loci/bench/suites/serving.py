"""Schedulers on the real engine: what a long prompt costs those who are being answered.

Some rows decode; a long prompt arrives. Told are the longest and the 99th percentile of the waits
between their tokens meanwhile, and when the prompt's first token comes, with nobody else there too.
The weights are in memory, or streamed from disk, where every pass reads them again. All contenders
take turns in one run, and every answer is compared with what the request says alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any  # results

from loci.bench import texts
from loci.bench.cards import Row
from loci.bench.metrics import percentile
from loci.bench.stats import ratio
from loci.bench.suite import Context
from loci.errors import ParameterError
from loci.models.load import spec_of
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run.batch import Batch
from loci.run.requests import Ask, End, Piece, Ticket

ABOUT = (
    "a long prompt beside those that are answered, on the real engine: waits, first token, bytes"
)
KINDS = ("sched",)
DEFAULT = ("fcfs", "fcfs(chunk=128)", "layered_prefill(work=128)")
PARTS = ("resident", "streamed")
PROMPT, DECODING, ROUNDS = 1024, 4, 5
QUICK_PROMPT, QUICK_DECODING, QUICK_ROUNDS = 96, 2, 1
SHORT = 12  # tokens of the prompts of those that decode
BEFORE = 4  # tokens each of them has got when the long prompt arrives
LONG_S = 600.0


@dataclass
class Timed:
    """Rounds of one contender."""

    alone_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    longest_s: list[float] = field(default_factory=list)
    moved_alone: list[int] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    same: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return medians over rounds, and waits over all of them."""
        return {
            "prompt_alone_s": percentile(self.alone_s, 0.5),
            "first_token_s": percentile(self.first_s, 0.5),
            "between_tokens_p50_s": percentile(self.waits_s, 0.5),
            "between_tokens_p99_s": percentile(self.waits_s, 0.99),
            "between_tokens_max_s": percentile(self.longest_s, 0.5),
            "moved_alone_bytes": percentile([float(n) for n in self.moved_alone], 0.5),
            "moved_bytes": percentile([float(n) for n in self.moved], 0.5),
            "says_the_same": self.same,
        }


def run(context: Context) -> dict[str, Any]:
    """Measure every part that was asked for."""
    asked = context.options.get("parts", ",".join(PARTS)).split(",")
    unknown = [part for part in asked if part not in PARTS]
    if unknown:
        raise ParameterError("there is no such part", value=unknown[0], allowed=", ".join(PARTS))
    methods = context.methods or DEFAULT
    found: dict[str, Any] = {}
    for part in asked:
        found[part] = _part(context, part, methods)
    spec = spec_of(context.model, context.folder)[0]
    return {
        "model": context.model,
        "fingerprint": spec.fingerprint,
        "seed": context.seed,
        "methods": list(methods),
        "results": found,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what each scheduler did beside the others of its part; a ratio is theirs over its."""
    rows = []
    for part, ways in result["results"].items():
        for name, found in ways.items():
            whats = [what for what, value in found.items() if type(value) in (int, float)]
            rows.append(
                Row(
                    method=name,
                    kind="sched",
                    part=part,
                    seeds=(result["seed"],),
                    metrics={
                        what: {
                            "this": found[what],
                            "rivals": {n: f[what] for n, f in ways.items() if n != name},
                        }
                        for what in whats
                    },
                    ratio=found.get("ratio", {}),
                )
            )
    return rows


# -- private ----------------------------------------------------------------------------------


def _part(context: Context, part: str, methods: Sequence[str]) -> dict[str, Any]:
    rounds = int(context.options.get("rounds", ROUNDS))
    prompt, decoding = int(context.options.get("prompt", PROMPT)), DECODING
    if context.quick:
        prompt, decoding, rounds = QUICK_PROMPT, QUICK_DECODING, QUICK_ROUNDS
    plan = _plan(context, part, prompt)
    engines = {name: _engine(context, plan, name, decoding) for name in methods}
    try:
        ids = engines[methods[0]].tokenizer.encode(texts.prose()[: 12 * prompt])[:prompt]
        if len(ids) < prompt:
            raise ParameterError("the text is too short", value=len(ids), allowed=f">= {prompt}")
        draw = random.Random(context.seed)
        vocab = plan.spec.vocab
        short = [tuple(draw.randrange(vocab) for _ in range(SHORT)) for _ in range(decoding)]
        timed = {name: Timed() for name in methods}
        expected = _alone(engines[methods[0]], short, ids)
        for number in range(rounds + 1):  # the first one warms up
            for name, engine in engines.items():
                context.progress(f"{name}, weights {part}", number, rounds + 1)
                kept = timed[name] if number else Timed()
                _round(engine, short, ids, expected, kept)
    finally:
        for engine in engines.values():
            engine.close()
    out = {name: found.to_json() for name, found in timed.items()}
    for name, mine in timed.items():
        out[name]["ratio"] = {
            f"{what}.{other}": ratio(theirs, ours).value
            for other in methods
            if other != name
            for what, theirs, ours in (
                ("prompt_alone", timed[other].alone_s, mine.alone_s),
                ("first_token", timed[other].first_s, mine.first_s),
                ("longest_wait", timed[other].longest_s, mine.longest_s),
            )
        }
    return out


def _plan(context: Context, part: str, prompt: int) -> Plan:
    spec, blocks, _ = spec_of(context.model, context.folder)
    asked: dict[str, Any] = {"kv": ""}
    if part == "streamed":
        largest = max(stored for _, _, stored in blocks)
        asked |= {"disk": 2 * sum(stored for _, _, stored in blocks), "weights": 4 * largest}
    return make_plan(
        context.model,
        dram="8GiB",
        context=min(spec.max_context, 2 * prompt),
        new_tokens=prompt,
        folder=context.folder,
        cache=context.folder / ".cache",
        **asked,
    )


def _engine(context: Context, plan: Plan, name: str, decoding: int) -> Batch:
    return Batch(plan, folder=context.folder, scheduler=name, rows=decoding + 1, keep_s=0.0)


def _alone(engine: Batch, short: Sequence[tuple[int, ...]], ids: Sequence[int]) -> list[list[int]]:
    """Return the first tokens of every request when nobody else is there."""
    asks = [Ask(ids=one, max_tokens=BEFORE, goes_on=True) for one in short]
    asks.append(Ask(ids=tuple(ids), max_tokens=1, goes_on=True))
    return [_ids(engine.submit(ask)) for ask in asks]


def _ids(ticket: Ticket) -> list[int]:
    return [id for piece in ticket for id in piece.ids]


def _round(
    engine: Batch,
    short: Sequence[tuple[int, ...]],
    ids: Sequence[int],
    expected: list[list[int]],
    timed: Timed,
) -> None:
    """Read the prompt with nobody there, then beside those that decode."""
    long = Ask(ids=tuple(ids), max_tokens=1, goes_on=True)
    before = _moved(engine)
    alone = engine.submit(long).wait(LONG_S)
    timed.moved_alone.append(_moved(engine) - before)
    came: dict[str, list[float]] = {}
    tickets = [engine.submit(Ask(ids=one, max_tokens=len(ids), goes_on=True)) for one in short]
    for ticket in tickets:
        ticket.listen(_clock(came.setdefault(ticket.id, [])))
    while any(len(times) < BEFORE for times in came.values()):
        time.sleep(0.001)
    moved, asked = _moved(engine), time.monotonic()
    ticket = engine.submit(long)
    end = ticket.wait(LONG_S)
    done = time.monotonic()
    timed.moved.append(_moved(engine) - moved)
    for other in tickets:
        other.cancel()
        other.wait(LONG_S)
    assert alone.first_token_s is not None and end.first_token_s is not None
    timed.alone_s.append(alone.first_token_s)
    timed.first_s.append(end.first_token_s)
    waits = [b - a for times in came.values() for a, b in pairwise(times) if b > asked and a < done]
    timed.waits_s += waits
    timed.longest_s.append(max(waits))
    said = [_ids(one)[:BEFORE] for one in tickets] + [_ids(ticket)]
    timed.same = timed.same and said == expected


def _clock(times: list[float]) -> Callable[[Piece | End], None]:
    def take(item: Piece | End) -> None:
        if isinstance(item, Piece) and item.ids:
            times.append(time.monotonic())

    return take


def _moved(engine: Batch) -> int:
    return engine.runner.weights.moved().get(("disk", "dram"), 0)
