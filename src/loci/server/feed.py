"""What happened and how much was held, kept for those who look: the page and its pictures."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass

from loci.core.event import Event
from loci.run.batch import Batch

KEEP = 600  # events
SAMPLES = 120
EVERY_S = 1.0  # between two samples


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An event, its number from 1, and when it came (seconds of the epoch)."""

    number: int
    at_s: float
    event: Event


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How things stood at a time: bytes of main memory, tokens a second since the last sample."""

    at_s: float
    used: int
    tokens_per_s: float
    running: int
    waiting: int


class Feed:
    """Listens to the engine's events for as long as the server is there."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._seen: deque[Seen] = deque(maxlen=KEEP)
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._made = 0
        self.last = 0  # number of the newest event
        self.stop = batch.events.listen(self._take)

    def since(self, number: int, prefix: str = "") -> list[Seen]:
        """Return the events after one, oldest first, as far as they are kept."""
        with self._lock:
            there = list(self._seen)
        return [
            seen for seen in there if seen.number > number and seen.event.name.startswith(prefix)
        ]

    def samples(self) -> list[Sample]:
        """Return how things stood of late, oldest first; takes a new sample when it is time."""
        now = time.time()
        with self._lock:
            last = self._samples[-1] if self._samples else None
            if last is None or now - last.at_s >= EVERY_S:
                load = self._batch.load()
                passed = now - last.at_s if last is not None else 0.0
                made = load.made_tokens - self._made
                self._made = load.made_tokens
                sample = Sample(
                    at_s=now,
                    used=self._batch.ledger.used("dram"),
                    # After a pause nobody knows when they were made.
                    tokens_per_s=made / passed if 0 < passed < 4 * EVERY_S else 0.0,
                    running=load.running,
                    waiting=load.waiting,
                )
                self._samples.append(sample)
            return list(self._samples)

    def _take(self, event: Event) -> None:
        with self._lock:
            self.last = next(self._numbers)
            self._seen.append(Seen(number=self.last, at_s=time.time(), event=event))
