"""Requests as they came to real services, and clients that send them to any engine.

Traces hold sizes and times, no text. Read are the CSV of Azure (TIMESTAMP, ContextTokens,
GeneratedTokens) and the JSON lines of Mooncake (timestamp in ms, input_length, output_length,
hash_ids of 512-token blocks), plain or gzipped. Lengths are scaled to what a model's context holds;
prompts are made up so that requests which shared a beginning share one here.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any  # results

from loci.bench.metrics import percentile
from loci.errors import FormatError, ParameterError

MOONCAKE_BLOCK = 512  # tokens of a hash
LEAST_PROMPT, LEAST_ANSWER = 4, 2
USERS = 8
HEAVY_SHARE = 0.5  # of the requests come from one user, the rest from the others

Answer = Callable[["Call"], Iterator[int]]
"""Sends a request and yields how many tokens came, each time some did."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request of a trace.

    Attributes:
        at_s: since the first one. prompt, new: tokens.
        blocks: hashes of its beginning, each of so many tokens; () shares nothing.
        ids: the prompt, once it was made up.
    """

    number: int
    at_s: float
    prompt: int
    new: int
    user: str = ""
    blocks: tuple[int, ...] = ()
    block_tokens: int = MOONCAKE_BLOCK
    ids: tuple[int, ...] = ()


@dataclass
class Seen:
    """When the tokens of a request came, in seconds since it was sent."""

    call: Call
    sent_s: float
    came_s: list[float] = field(default_factory=list)
    tokens: int = 0
    failed: str = ""


def find(data: Path, word: str) -> Path | None:
    """Return the trace in a folder whose name has a word in it, or None."""
    if data.is_file():
        return data if word in data.name else None
    places = (data, data / "traces")
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir())]
    kinds = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
    return next((f for f in files if word in f.name and f.name.endswith(kinds)), None)


def read(path: Path, count: int) -> list[Call]:
    """Return the first requests of a trace.

    Raises:
        FormatError: if it is none.
    """
    try:
        with _lines(path) as lines:
            calls = _azure(lines) if ".csv" in path.name else _mooncake(lines)
            found = [call for call, _ in zip(calls, range(count), strict=False)]
    except (KeyError, ValueError, OSError) as problem:
        raise FormatError(
            f"{path} is no trace of requests ({problem})",
            allowed="CSV with TIMESTAMP, ContextTokens, GeneratedTokens, or JSON lines with "
            "timestamp, input_length, output_length",
        ) from None
    if not found:
        raise FormatError(f"{path} has no requests")
    first = found[0].at_s
    return [replace(call, at_s=call.at_s - first) for call in found]


def drawn(count: int, seed: int) -> list[Call]:
    """Return made-up requests as long as those of Azure's conversations, 5.5 a second."""
    dice, now, found = random.Random(seed), 0.0, []
    for number in range(count):
        now += dice.expovariate(5.5)
        prompt = max(1, round(dice.lognormvariate(6.63, 0.99)))
        new = max(1, round(dice.lognormvariate(5.02, 0.86)))
        found.append(Call(number=number, at_s=now, prompt=prompt, new=new))
    return found


def scaled(
    calls: Sequence[Call], *, prompt: int, new: int, text: Sequence[int], seed: int
) -> list[Call]:
    """Return requests with lengths in proportion, the 95th percentile at what is given.

    Longer ones are cut there. Each gets a user, and a prompt cut out of a text in tokens.
    """
    by_prompt = prompt / max(1.0, percentile([float(c.prompt) for c in calls], 0.95))
    by_new = new / max(1.0, percentile([float(c.new) for c in calls], 0.95))
    dice, found = random.Random(seed), []

    def cut(tokens: int, place: random.Random) -> Sequence[int]:
        start = place.randrange(max(1, len(text) - tokens))
        return text[start : start + tokens]

    for call in calls:
        length = min(prompt, max(LEAST_PROMPT, round(by_prompt * call.prompt)))
        block = max(1, round(by_prompt * call.block_tokens))
        ids: list[int] = []
        for hash in call.blocks:
            ids += cut(block, random.Random(f"{seed} {hash}"))
        ids = [*ids[: length - 1], *cut(max(1, length - len(ids)), dice)]
        rest = 1 + dice.randrange(USERS - 1)
        found.append(
            replace(
                call,
                prompt=length,
                new=min(new, max(LEAST_ANSWER, round(by_new * call.new))),
                user=f"user{0 if dice.random() < HEAVY_SHARE else rest}",
                ids=tuple(ids[:length]),
            )
        )
    return found


def send(
    calls: Sequence[Call], answer: Answer, *, streams: int, per_s: float | None = None
) -> list[Seen]:
    """Send requests and note when their tokens come.

    Args:
        streams: that wait for an answer at the same time; each sends the next request when it has
            one.
        per_s: requests are sent no sooner than the trace says, its times stretched to so many a
            second in the mean; None sends as soon as a stream is free.
    """
    stretch = 0.0
    if per_s is not None and calls[-1].at_s > 0:
        stretch = len(calls) / per_s / calls[-1].at_s
    waiting, lock = list(reversed(calls)), threading.Lock()
    seen: list[Seen] = []
    began = time.perf_counter()

    def stream() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                call = waiting.pop()
            time.sleep(max(0.0, began + stretch * call.at_s - time.perf_counter()))
            sent = time.perf_counter()
            one = Seen(call, sent - began)
            with lock:
                seen.append(one)
            try:
                for tokens in answer(call):
                    one.tokens += tokens
                    if tokens > 0:
                        one.came_s.append(time.perf_counter() - sent)
            except Exception as error:  # whatever a rival does is its result
                one.failed = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=stream, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(seen, key=lambda one: one.call.number)


def summary(seen: Sequence[Seen], *, first_s: float, between_s: float) -> dict[str, Any]:
    """Return tails, throughput, goodput and fairness.

    Args:
        first_s, between_s: what a request must keep to count as good: its first token, and the
            mean time between its tokens.
    """
    good = [one for one in seen if one.came_s and not one.failed]
    if not good:
        why = next((one.failed for one in seen if one.failed), "no token came")
        raise ParameterError(f"no request was answered ({why})")
    whole_s = max(one.sent_s + one.came_s[-1] for one in good)
    waits = [b - a for one in good for a, b in pairwise(one.came_s)]
    in_time = 0
    for one in good:
        steps = max(1, one.tokens - 1)
        mean = (one.came_s[-1] - one.came_s[0]) / steps
        in_time += one.came_s[0] <= first_s and mean <= between_s
    tokens = sum(one.tokens for one in good)
    return {
        "first_token_p50_s": percentile([one.came_s[0] for one in good], 0.5),
        "first_token_p99_s": percentile([one.came_s[0] for one in good], 0.99),
        "between_tokens_p50_s": percentile(waits, 0.5) if waits else 0.0,
        "between_tokens_p99_s": percentile(waits, 0.99) if waits else 0.0,
        "tokens_per_s": tokens / whole_s,
        "goodput_per_s": in_time / whole_s,
        "fairness": _fairness(good),
        "whole_s": whole_s,
        "new_tokens": tokens,
        "failed": len(seen) - len(good),
    }


# -- private ----------------------------------------------------------------------------------


def _lines(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _azure(lines: Any) -> Iterator[Call]:
    for number, row in enumerate(csv.DictReader(lines)):
        yield Call(
            number=number,
            at_s=datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
            prompt=max(1, int(row["ContextTokens"])),
            new=max(1, int(row["GeneratedTokens"])),
        )


def _mooncake(lines: Any) -> Iterator[Call]:
    for number, line in enumerate(lines):
        row = json.loads(line)
        yield Call(
            number=number,
            at_s=row["timestamp"] / 1000,
            prompt=max(1, int(row["input_length"])),
            new=max(1, int(row["output_length"])),
            blocks=tuple(row.get("hash_ids", ())),
        )


def _fairness(seen: Sequence[Seen]) -> float:
    """Return Jain's index of users' mean seconds to a first token; 1 is the same for all."""
    by_user: dict[str, list[float]] = {}
    for one in seen:
        by_user.setdefault(one.call.user, []).append(one.came_s[0])
    means = [sum(times) / len(times) for times in by_user.values()]
    return sum(means) ** 2 / (len(means) * sum(mean * mean for mean in means))
