"""A server under more load than it admits, for long: what it holds, what it loses, what it says.

Clients, twice as many as the server lets in, ask without a pause: streams, whole answers with a
memory, messages to be remembered, searches, answers that are left half way, and requests that make
no sense. Told are the statuses, the slope of the server's resident memory once it has warmed up,
with and without what its ledger accounts for, what the ledger still holds for requests when all is
quiet, and whether every message whose storing was acknowledged can be found again.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any  # results, JSON values

import httpx
import psutil

from loci.bench.suite import Context, count_of, refuse_unknown
from loci.errors import LociError
from loci.models.load import spec_of

ABOUT = "a server under twice the load it admits, for ten minutes: memory, errors, what is kept"
KINDS: tuple[str, ...] = ()
SECONDS, QUICK_SECONDS = 600, 20
WARM = 0.2  # of the time, which the slope leaves out: two minutes of ten
ROWS, WAITING = 8, 8
DRAM, CONTEXT = "512MiB", 512
KEEP_S = 5.0
QUIET_S = 90.0  # for the last requests to end
SEARCHED = 100  # of what was remembered, by its own word; all of it by its id
WORDS = (
    *("budget", "tier", "block", "ledger", "holder", "method", "card", "plan", "run", "event"),
    *("lineage", "place", "memory"),
)
SLOPE = 2**20  # bytes a minute
OPTIONS = ("seconds", "rows", "waiting", "dram", "context", "port")


@dataclass
class Seen:
    """What all clients saw together."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)  # id: the word that is its own
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int | str, text: str = "") -> None:
        with self.lock:
            self.kinds[kind] += 1
            self.statuses[str(status)] += 1
            if str(status).startswith("5") or not str(status).isdigit():
                self.broken.append(f"{kind}: {status} {text[:200]}")


def run(context: Context) -> dict[str, Any]:
    """Serve, load, drain, and look."""
    refuse_unknown(context.options, OPTIONS)
    seconds = count_of(context.options, "seconds", QUICK_SECONDS if context.quick else SECONDS)
    rows = count_of(context.options, "rows", ROWS)
    waiting = count_of(context.options, "waiting", WAITING)
    spec = spec_of(context.model, context.folder)[0]
    clients = 2 * (rows + waiting)
    with TemporaryDirectory(prefix="loci-soak-") as home:
        with served(context, Path(home), rows, waiting) as (process, url):
            before = _told(url, "ledger")
            seen, resident = Seen(), Resident(process.pid, url)
            _load(url, context, seconds, clients, seen, resident)
            drain_s = _drained(url)
            after, load = _told(url, "ledger"), _told(url, "load")
            lost = _lost(url, seen)
        stopped = process.returncode
    held = {
        when: ledger["tiers"]["dram"]["by_kind"]
        for when, ledger in (("before", before), ("after", after))
    }
    slope, beyond = resident.slope(WARM), resident.slope(WARM, beyond_ledger=True)
    found: dict[str, Any] = {
        "model": context.model,
        "fingerprint": spec.fingerprint,
        "seed": context.seed,
        "seconds": seconds,
        "clients": clients,
        "admitted": rows + waiting,
        "requests": dict(seen.kinds),
        "statuses": dict(seen.statuses),
        "broken": seen.broken[:20],
        "answers": {
            "ended": load["ended"],
            "refused": load["refused"],
            "made": load["made_tokens"],
        },
        "resident": {
            "first_bytes": resident.values[0][1] if resident.values else None,
            "last_bytes": resident.values[-1][1] if resident.values else None,
            "slope_bytes_per_min": slope,
            "slope_beyond_ledger_bytes_per_min": beyond,
        },
        "held": held,
        "drain_s": drain_s,
        "remembered": {"acknowledged": len(seen.stored), "lost": lost},
        "exit_code": stopped,
    }
    found["targets"] = {
        "no_5xx": not seen.broken,
        "slope_at_most_1_mib_per_min": slope is not None and slope <= SLOPE,
        "beyond_ledger_at_most_1_mib_per_min": beyond is not None and beyond <= SLOPE,
        "ledger_empty": held["after"].get("kv", 0) == 0,
        "all_retrievable": not lost and bool(seen.stored),
        "ended_well": stopped == 0,
    }
    return found


@contextmanager
def served(
    context: Context, home: Path, rows: int, waiting: int
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve in a process of its own, which ends with the block; lend it and where it listens."""
    command = [sys.executable, "-m", "loci", "serve", context.model, "--no-page"]
    command += ["--port", context.options.get("port", "0"), "--memory", str(home / "soak.db")]
    command += ["--dram", context.options.get("dram", DRAM), "--keep", str(KEEP_S)]
    command += ["--context", context.options.get("context", str(CONTEXT))]
    command += ["--rows", str(rows), "--waiting", str(waiting), "--drain", "10"]
    environment = {**os.environ, "LOCI_MODELS": str(context.folder)}
    said = home / "serve.log"
    with said.open("w") as log, subprocess.Popen(command, stderr=log, env=environment) as process:
        try:
            yield process, _where(process, said)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


class Resident:
    """The resident memory of a server, as time passes, and what its ledger accounts for.

    Keys and values come and go with the load; what grows beside them is lost.
    """

    def __init__(self, pid: int, url: str) -> None:
        self._process, self._url = psutil.Process(pid), url
        self._began = time.monotonic()
        self.values: list[tuple[float, int, int]] = []  # seconds, resident, in the ledger

    def look(self) -> None:
        """Take a sample."""
        held = int(_told(self._url, "ledger")["tiers"]["dram"]["used"])
        now = time.monotonic() - self._began
        self.values.append((now, int(self._process.memory_info().rss), held))

    def slope(self, left_out: float, *, beyond_ledger: bool = False) -> float | None:
        """Return bytes a minute, by least squares, without the first part of the time."""
        last = self.values[-1][0] if self.values else 0.0
        points = [
            (at / 60, nbytes - held * beyond_ledger)
            for at, nbytes, held in self.values
            if at >= left_out * last
        ]
        if len(points) < 3:
            return None
        mean_at = sum(at for at, _ in points) / len(points)
        mean = sum(nbytes for _, nbytes in points) / len(points)
        spread = sum((at - mean_at) ** 2 for at, _ in points)
        return sum((at - mean_at) * (nbytes - mean) for at, nbytes in points) / spread


# -- private ----------------------------------------------------------------------------------


def _where(process: subprocess.Popen[Any], log: Path) -> str:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        text = log.read_text()
        if found := re.search(r"on (http://\S+)", text):
            return found[1]
        if process.poll() is not None:
            raise LociError(f"the server did not start: {text.strip()[-500:]}")
        time.sleep(0.1)
    raise LociError("the server did not start in five minutes")


def _told(url: str, what: str) -> Any:
    return httpx.get(f"{url}/api/v1/{what}", timeout=30).raise_for_status().json()


def _load(
    url: str, context: Context, seconds: int, clients: int, seen: Seen, resident: Resident
) -> None:
    began = time.monotonic()
    end = began + seconds
    threads = [
        threading.Thread(target=_client, args=(url, context.model, number, context.seed, end, seen))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        resident.look()
        context.progress("seconds of load", int(time.monotonic() - began), seconds)
        time.sleep(1.0)
    for thread in threads:
        thread.join(QUIET_S)
    resident.look()


def _client(url: str, model: str, number: int, seed: int, end: float, seen: Seen) -> None:
    """Ask until the time is over."""
    draw = random.Random(1000 * seed + number)
    with httpx.Client(base_url=url, timeout=QUIET_S) as http:
        count = 0
        while time.monotonic() < end:
            count += 1
            kind = draw.choices(
                ("stream", "whole", "remember", "search", "leave", "nonsense"), (5, 2, 2, 2, 1, 1)
            )[0]
            try:
                wait_s = _one(http, model, kind, f"{number}x{count}", draw, seen)
            except httpx.HTTPError as error:
                seen.note(kind, type(error).__name__, str(error))
                wait_s = 1.0
            # Who was told to come back does, though sooner than it was told: that is the load.
            time.sleep(min(wait_s, 0.5, max(0.0, end - time.monotonic())))


def _one(
    http: httpx.Client, model: str, kind: str, name: str, draw: random.Random, seen: Seen
) -> float:
    """Ask once; return how long the server wants to be left alone."""
    text = " ".join(draw.choices(WORDS, k=draw.randrange(3, 40)))
    chat: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": draw.randrange(1, 48),
    }
    user = f"user{draw.randrange(8)}"
    if kind in ("stream", "leave"):
        with http.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as answer:
            lines = answer.iter_lines()
            if kind == "leave":
                next(lines, None)
            else:
                said = list(lines)
                if answer.status_code == 200 and "data: [DONE]" not in said:
                    seen.note(kind, "cut short", "".join(said[-2:]))
        seen.note(kind, answer.status_code)
    elif kind == "whole":
        answer = http.post(
            "/v1/chat/completions", json=chat | {"memory": {"user": user, "remember": False}}
        )
        seen.note(kind, answer.status_code, answer.text)
    elif kind == "remember":
        word = f"w{name}"
        body = {"messages": [{"content": f"{text} {word}"}], "user": user, "infer": False}
        answer = http.post("/api/v1/memories", json=body)
        seen.note(kind, answer.status_code, answer.text)
        if answer.status_code == 200:
            with seen.lock:
                seen.stored[answer.json()["turns"][0]["id"]] = f"{user} {word}"
    elif kind == "search":
        answer = http.get("/api/v1/memories/search", params={"query": text[:60], "user": user})
        seen.note(kind, answer.status_code, answer.text)
    else:
        answer = http.post("/v1/chat/completions", content=draw.randbytes(200))
        seen.note(kind, answer.status_code, answer.text)
    return float(answer.headers.get("retry-after", 0))


def _drained(url: str) -> float:
    """Wait until nothing runs and nothing is kept; return how long that took."""
    began = time.monotonic()
    while time.monotonic() < began + QUIET_S:
        load = _told(url, "load")
        if not (load["running"] or load["waiting"] or load["kept_bytes"]):
            break
        time.sleep(0.2)
    return time.monotonic() - began


def _lost(url: str, seen: Seen) -> list[str]:
    """Return the ids of what was acknowledged and cannot be had, by its id or by its word."""
    lost = []
    with httpx.Client(base_url=url, timeout=QUIET_S) as http:
        for id, whose in seen.stored.items():
            user, word = whose.split()
            found = http.get(f"/api/v1/memories/{id}", params={"user": user})
            if found.status_code != 200 or word not in found.json()["content"]:
                lost.append(id)
        for id, whose in _some(list(seen.stored.items())):
            user, word = whose.split()
            asked = {"query": word, "user": user}
            hits = http.get("/api/v1/memories/search", params=asked).json().get("hits", [])
            if id not in [source["id"] for hit in hits for source in hit["sources"]]:
                lost.append(id)
    return lost


def _some(stored: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    return stored[:: max(1, len(stored) // SEARCHED)]
