"""Memories made anew for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from memories import Plain

from loci.core.clock import ManualClock
from loci.run.memory import Memory


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))


@pytest.fixture
def memory(place: Callable[[str], str], clock: ManualClock) -> Iterator[Memory]:
    """Return a memory in each kind of database."""
    with Memory(place("ada.db"), recall=Plain(), clock=clock) as opened:
        yield opened


@pytest.fixture
def sqlite_memory(tmp_path: Path, clock: ManualClock) -> Iterator[Memory]:
    """Return a memory in a file, for what files alone have."""
    with Memory(tmp_path / "ada.db", recall=Plain(), clock=clock) as opened:
        yield opened


@pytest.fixture
def postgres_memory(postgres_place: Callable[[str], str], clock: ManualClock) -> Iterator[Memory]:
    """Return a memory on a server, for what servers alone have."""
    with Memory(postgres_place("ada.db"), recall=Plain(), clock=clock) as opened:
        yield opened
