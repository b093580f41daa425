"""Schedulers on a mixture of experts: which experts' weights a long prompt makes the engine read.

A prompt of 1,024 tokens arrives while nobody, two or eight others decode. The model is made on the
spot, 16 layers of 32 experts of which a token takes 4; every expert that any row of a pass wants is
read once in that pass, and its bytes are counted. Chunks of 64 tokens and groups of one layer bring
a step the same work. No time is measured, so the figures are the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any  # results

from loci.bench.cards import Row
from loci.bench.experts import Mixture, Sizes, serve
from loci.bench.suite import Context
from loci.methods import catalogue
from loci.methods.sched.base import Request

ABOUT = "bytes of experts that schedulers make a mixture read, the same work a step"
KINDS = ("sched",)
SIZES = Sizes()
PROMPT, CHUNK = 1024, 64  # so that chunks are as many as layers
QUICK = 8  # times fewer tokens in a quick run
DECODING = (0, 2, 8)
DEFAULT = (f"fcfs(chunk={CHUNK})", f"layered_prefill(work={CHUNK})")
QUICK_DEFAULT = tuple(name.replace(f"={CHUNK}", f"={CHUNK // QUICK}") for name in DEFAULT)


def run(context: Context) -> dict[str, Any]:
    """Count what every scheduler reads, and compare what is said."""
    tokens = PROMPT // QUICK if context.quick else PROMPT
    chunk = CHUNK // QUICK if context.quick else CHUNK
    names = context.methods or (QUICK_DEFAULT if context.quick else DEFAULT)
    draw = random.Random(context.seed)
    prompt = [draw.randrange(SIZES.vocab) for _ in range(tokens)]
    others = [[draw.randrange(SIZES.vocab) for _ in range(8)] for _ in range(max(DECODING))]
    steps = 2 + tokens // chunk  # what is counted ends with the prompt
    one_each = SIZES.layers * SIZES.experts * SIZES.expert_bytes
    found: dict[str, dict[str, Any]] = {name: {"says_the_same": True} for name in names}
    for decoding in DECODING:
        said = []
        for done, name in enumerate(names):
            context.progress(f"{name}, {decoding} decode", done, len(names))
            method: Any = catalogue.find(name, "sched")
            arrivals = [(0, _request(f"d{i}", 8, steps), others[i]) for i in range(decoding)]
            arrivals.append((2, _request("long", tokens, 1), prompt))
            served = serve(method, arrivals, Mixture(SIZES, context.seed))
            said.append(served.tokens)
            found[name]["says_the_same"] &= served.tokens == said[0]
            gaps = [
                b - a for id, at in served.steps.items() if id != "long" for a, b in pairwise(at)
            ]
            found[name] |= {
                f"expert_bytes_{decoding}": served.read_bytes,
                f"steps_between_tokens_{decoding}": max(gaps, default=0),
            }
            if decoding == 0:
                found[name]["times_each_expert"] = served.prompt_bytes / one_each
    return {
        "model": "mixture-16x32",
        "fingerprint": "sizes and seed alone",
        "prompt_tokens": tokens,
        "seed": context.seed,
        "results": found,
    }


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return what each scheduler reads beside the others."""
    ways = result["results"]
    return [
        Row(
            method=name,
            kind="sched",
            seeds=(result["seed"],),
            metrics={
                what: {"this": value, "rivals": {n: f[what] for n, f in ways.items() if n != name}}
                for what, value in found.items()
                if type(value) in (int, float)
            },
        )
        for name, found in ways.items()
    ]


def _request(id: str, prompt: int, new: int) -> Request:
    return Request(id=id, prompt_tokens=prompt, new_tokens=new, kv_bytes=1)
