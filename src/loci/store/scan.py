"""Counting texts in the bytes of a file, few or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_CHUNK = 2**22
_FEW = 32  # up to so many patterns, bytes.find is the fastest there is


def count(path: Path, patterns: Sequence[bytes]) -> int:
    """Return how often any of the patterns stands in a file, overlaps included."""
    patterns = [pattern for pattern in dict.fromkeys(patterns) if pattern]
    if not patterns:
        return 0
    overlap = max(map(len, patterns)) - 1
    look = _one_by_one if len(patterns) <= _FEW else _Together(patterns)
    found, tail = 0, b""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found += look(tail + chunk, patterns, len(tail))
            tail = (tail + chunk)[-overlap:] if overlap else b""
    return found


def _one_by_one(data: bytes, patterns: Sequence[bytes], seen: int) -> int:
    """Count the patterns that do not end in the first `seen` bytes: those were counted before."""
    found = 0
    for pattern in patterns:
        at = data.find(pattern, max(0, seen - len(pattern) + 1))
        while at >= 0:
            found += 1
            at = data.find(pattern, at + 1)
    return found


class _Together:
    """Looks at every place once: a table of three bytes leaves few places to compare."""

    def __init__(self, patterns: Sequence[bytes]) -> None:
        import numpy as np

        self.by_start: dict[bytes, list[bytes]] = {}
        self.tiny = [pattern for pattern in patterns if len(pattern) < 3]
        self.table = np.zeros(2**24, np.bool_)
        for pattern in patterns:
            if len(pattern) >= 3:
                self.by_start.setdefault(pattern[:3], []).append(pattern)
                self.table[int.from_bytes(pattern[:3], "big")] = True

    def __call__(self, data: bytes, patterns: Sequence[bytes], seen: int) -> int:
        import numpy as np

        found = _one_by_one(data, self.tiny, seen)
        if len(data) < 3:
            return found
        raw = np.frombuffer(data, np.uint8).astype(np.uint32)
        starts = raw[:-2] << 16 | raw[1:-1] << 8 | raw[2:]
        for at in np.flatnonzero(self.table[starts]).tolist():
            for pattern in self.by_start[data[at : at + 3]]:
                if at + len(pattern) > seen and data.startswith(pattern, at):
                    found += 1
        return found
