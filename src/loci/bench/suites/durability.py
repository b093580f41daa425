"""Whether what a memory acknowledged survives kill -9, with two processes writing at once.

Each round starts two writers on one memory, lets them acknowledge a few messages, kills both in
the middle of whatever they do, opens the memory again, and looks for every message that was ever
acknowledged. Messages that were not acknowledged may be there, but whole: with their facts, words
and history. `rounds=N` and `url=postgresql://...` are options; a file in a temporary folder is the
default. Writers load no model.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench.suite import Context
from loci.errors import StoreError
from loci.run.memory import Memory

ABOUT = "kill -9 under two writers: what was acknowledged, and whether the memory is whole"

WRITERS = ("ada", "bob")


def run(context: Context) -> dict[str, Any]:
    """Kill 200 times, or 10 with `quick`."""
    rounds = int(context.options.get("rounds", 10 if context.quick else 200))
    with tempfile.TemporaryDirectory() as folder:
        place = context.options.get("url", str(Path(folder) / "memory.db"))
        done = kill_rounds(
            place,
            rounds,
            seed=context.seed,
            progress=lambda n: context.progress("kills", n, rounds),
        )
    return {
        "rounds": rounds,
        "writers": len(WRITERS),
        "acknowledged": done.acknowledged,
        "stored": done.stored,
        "lost": len(done.lost),
        "problems": done.problems,
        "target": {"lost": "0", "problems": "none"},
    }


@dataclass
class Survived:
    """What was found after all kills.

    Attributes:
        acknowledged: messages whose `add` returned in a writer.
        stored: messages that are there: those, and some whose writer was killed before it knew.
        lost: ids of acknowledged messages that are not there, or not as they were.
        problems: what `check_integrity` found.
    """

    acknowledged: int = 0
    stored: int = 0
    lost: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def kill_rounds(
    place: str, rounds: int, *, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> Survived:
    """Kill two writers of a memory again and again; the memory is made if it is new."""
    Memory(place).close()
    chosen, survived = random.Random(seed), Survived()
    known: dict[str, str] = {}
    with _Writers(place) as writers:
        for turn in range(rounds):
            said = writers.round(turn, chosen)
            known |= said
            with Memory(place) as memory:
                _look(memory, said, survived)
            progress(turn + 1)
    with Memory(place) as memory:
        survived.lost.clear()
        _look(memory, known, survived)
        survived.acknowledged = len(known)
        survived.stored = sum(memory.counts(user=name)["turns"] for name in WRITERS)
    survived.problems = list(dict.fromkeys(survived.problems))
    return survived


class _Writers:
    """The process that forks writers, and what they say."""

    def __init__(self, place: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loci.bench.writers", place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._into, self._out = self._process.stdin, self._process.stdout

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self._into.close()
        self._process.wait()
        self._out.close()

    def round(self, turn: int, chosen: random.Random) -> dict[str, str]:
        """Let both acknowledge something, kill them, and return {id: text} of what they had."""
        for name in WRITERS:
            self._into.write(f"write {name} {turn}\n")
        said: dict[str, str] = {}
        pids: list[int] = []
        missing = {name: chosen.randint(1, 4) for name in WRITERS}
        while len(pids) < len(WRITERS) or max(missing.values()) > 0:
            what, name, *rest = self._line().split(" ", 3)
            if what == "pid":
                pids.append(int(rest[0]))
            else:
                said[rest[0]] = rest[1]
                missing[name] -= 1
        time.sleep(chosen.random() * 0.02)  # so that they die at any point of an add
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._into.write("wait\n")
        while (line := self._line()) != "dead":
            _, _, id, text = line.split(" ", 3)
            said[id] = text
        return said

    def _line(self) -> str:
        line = self._out.readline()
        if not line:
            raise StoreError("the writers ended by themselves")
        return line.rstrip("\n")


def _look(memory: Memory, said: dict[str, str], survived: Survived) -> None:
    turns = {
        id: turn
        for name in WRITERS
        for id, turn in memory.store.view(memory._scope(name), memory.clock.now())
        .turns(list(said))
        .items()
    }
    survived.lost += [
        id for id, text in said.items() if id not in turns or turns[id].content != text
    ]
    survived.problems += memory.store.check_integrity()
    for name in WRITERS:
        counts = memory.counts(user=name)
        facts = counts["items"] + counts["retired"]
        if facts != 2 * counts["turns"]:
            survived.problems.append(f"{counts['turns']} messages of two facts each, {facts} facts")
