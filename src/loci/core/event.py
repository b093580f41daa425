"""What happened: frozen records in one stream that metrics, log, page and tests all read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any  # event data is whatever JSON can hold

Listener = Callable[["Event"], None]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `name` is dotted, "kv.evict"; `data` holds JSON values only."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    at_s: float | None = None


class Events:
    """A stream of events: the last `keep` of them, and whoever listens."""

    def __init__(self, keep: int = 1000) -> None:
        self._recent: deque[Event] = deque(maxlen=keep)
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Record an event and hand it to every listener, in the order they came."""
        with self._lock:
            self._recent.append(event)
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(event)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each later event; the returned function stops that."""
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def recent(self, prefix: str = "") -> list[Event]:
        """Return the recorded events whose name starts with `prefix`, oldest first."""
        with self._lock:
            return [event for event in self._recent if event.name.startswith(prefix)]
