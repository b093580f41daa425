"""Whether what a memory acknowledged survives kill -9, with two processes writing at once.

Each round starts two writers on one memory, lets them acknowledge a few messages, kills both in
the middle of whatever they do, opens the memory again, and looks for every message that was ever
acknowledged. Messages that were not acknowledged may be there, but whole: with their facts, words
and history. `rounds=N` and `url=postgresql://...` are options; a file in a temporary folder is the
default. Writers load no model.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any  # results hold whatever JSON can hold

from loci.bench.suite import Context
from loci.errors import StoreError
from loci.run.memory import Memory

ABOUT = "kill -9 under two writers: what was acknowledged, and whether the memory is whole"

WRITERS = ("ada", "bob")
_PATIENCE_S = 60.0


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loci.bench.suites.durability"])
    known: dict[str, str] = {}
    for turn in range(rounds):
        writers = []
        for name in WRITERS:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=write, args=(place, name, turn, theirs), daemon=True)
            process.start()
            theirs.close()
            writers.append((name, process, ours))
        said: dict[str, str] = {}
        for name, _, pipe in writers:
            for _ in range(chosen.randint(1, 4)):
                if not pipe.poll(_PATIENCE_S):
                    raise StoreError("a writer acknowledged nothing for a minute", value=name)
                said |= [pipe.recv()]
        time.sleep(chosen.random() * 0.02)  # so that they die at any point of an add
        for _, process, _ in writers:
            process.kill()
        for _, process, pipe in writers:
            process.join()
            said |= _rest(pipe)
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


def write(place: str, name: str, turn: int, acknowledged: Connection) -> None:
    """Add messages until killed, and tell of each one that was acknowledged."""
    with Memory(place, busy_s=_PATIENCE_S) as memory:
        for number in range(100_000):
            text = f"I live in Town{turn}x{number}. I'm allergic to food{turn}x{number}."
            added = memory.add(
                [{"name": name.title(), "content": text}], user=name, session=f"round {turn}"
            )
            acknowledged.send((added.turns[0].id, text))
            time.sleep(0.002)  # the lock of a file is not fair: let the other have its turn


def _rest(pipe: Connection) -> dict[str, str]:
    """Return what a dead writer had still said."""
    found: dict[str, str] = {}
    while True:
        try:
            id, text = pipe.recv()
        except (EOFError, OSError):
            pipe.close()
            return found
        found[id] = text


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
