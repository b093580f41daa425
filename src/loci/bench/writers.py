"""Processes that write to a memory until they are killed, started quickly one after the other.

One process imports what writers need and then only forks, so that a round costs milliseconds:

    write NAME TURN     fork a writer; answers "pid NAME PID"
    wait                wait until all writers are dead; answers "dead"

Writers tell of every acknowledged message on the same output: "add NAME ID TEXT". No model is
loaded, and nothing else runs in the process that forks.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from loci.run.memory import Memory

_PATIENCE_S = 60.0


def serve(place: str) -> None:
    """Carry out what standard input says until it ends."""
    if "://" in place:
        import psycopg  # noqa: F401 - here once, and not in every writer
    Memory(place).recall  # noqa: B018 - imports the method
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "write":
            name, turn = rest
            child = os.fork()
            if child == 0:
                write(place, name, int(turn))
            _say(f"pid {name} {child}")
        elif command == "wait":
            with suppress(ChildProcessError):
                while True:
                    os.wait()
            _say("dead")


def write(place: str, name: str, turn: int) -> None:
    """Add messages until killed, and tell of each one that was acknowledged."""
    with Memory(place, busy_s=_PATIENCE_S) as memory:
        for number in range(100_000):
            text = f"I live in Town{turn}x{number}. I'm allergic to food{turn}x{number}."
            added = memory.add(
                [{"name": name.title(), "content": text}], user=name, session=f"round {turn}"
            )
            _say(f"add {name} {added.turns[0].id} {text}")
            time.sleep(0.002)  # the lock of a file is not fair: let the other have its turn


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write of a short line is never torn


if __name__ == "__main__":
    serve(sys.argv[1])
