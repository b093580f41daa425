"""Embedding beside the work: a thread that makes vectors of what waits for them.

What waits is a table of the store, so nothing is lost with the thread: after a kill, whoever opens
the memory next goes on where it ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_S = 1.0  # between two looks at whether something new waits: one small query
_AGAIN_S = 30.0  # after an error: an endpoint may come back, a disk may be emptied


class Beside:
    """Runs `work` whenever something waits, until it is closed.

    Args:
        work: embeds some texts and returns how many still wait.

    Attributes:
        problem: the last error, until work goes on; `Memory.wait` raises it.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work
        self._stop = threading.Event()
        self.problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the texts in hand; closing twice is fine."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                while not self._stop.is_set() and self._work():
                    pass
                self.problem = None
            except Exception as problem:  # a stranger's embedder may raise anything
                self.problem = problem
            self._stop.wait(_LOOK_S if self.problem is None else _AGAIN_S)
