"""Reads in the background: order, promotion, cancelling, errors, counts."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.errors import ParameterError
from loci.tiers.blocks import BlockStore, BlockWriter
from loci.tiers.io import IOEngine, Priority, Request
from loci.tiers.pool import aligned_empty


class Gate:
    """Work that says when it began and ends when it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        assert self.go.wait(10)
        return "gate"


@pytest.fixture
def blocked() -> Iterator[tuple[IOEngine, Gate]]:
    gate = Gate()
    with IOEngine(threads=1, depth=4) as engine:
        engine.submit(gate)
        assert gate.began.wait(10)
        yield engine, gate
        gate.go.set()
        engine.check_integrity()


def test_demands_overtake_prefetches_and_each_keeps_its_order(
    blocked: tuple[IOEngine, Gate],
) -> None:
    engine, gate = blocked
    order: list[str] = []
    work = {name: (lambda name=name: order.append(name)) for name in ("p1", "p2", "d1", "d2")}
    asked = [
        engine.submit(work["p1"], priority=Priority.PREFETCH),
        engine.submit(work["p2"], priority=Priority.PREFETCH),
        engine.submit(work["d1"]),
        engine.submit(work["d2"]),
    ]
    gate.go.set()
    wait([request._future for request in asked], timeout=10)
    assert order == ["d1", "d2", "p1", "p2"]


def test_waiting_for_a_prefetch_makes_it_a_demand(blocked: tuple[IOEngine, Gate]) -> None:
    engine, gate = blocked
    order: list[int] = []
    first = engine.submit(lambda: order.append(1), priority=Priority.PREFETCH)
    second = engine.submit(lambda: order.append(2), priority=Priority.PREFETCH)
    second.promote()
    second.promote()
    gate.go.set()
    first.result(10)
    second.result(10)
    assert order == [2, 1]
    assert engine.stats().prefetch == 2


def test_cancelled_work_does_not_run(blocked: tuple[IOEngine, Gate]) -> None:
    engine, gate = blocked
    ran: list[int] = []
    for priority in Priority:
        request = engine.submit(lambda: ran.append(1), priority=priority)
        assert request.cancel() and request.cancel() and request.done()
        with pytest.raises(CancelledError):
            request.result()
    gate.go.set()
    last = engine.submit(lambda: 7)
    assert last.result(10) == 7 and not last.cancel()
    assert not ran and engine.stats().cancelled == 2


def test_work_that_began_cannot_be_cancelled() -> None:
    gate = Gate()
    with IOEngine(threads=1) as engine:
        request = engine.submit(gate)
        assert gate.began.wait(10)
        assert not request.cancel()
        with pytest.raises(TimeoutError):
            request.result(0.001)
        gate.go.set()
        assert request.result(10) == "gate"


def test_prefetches_wait_for_room_and_demands_do_not(blocked: tuple[IOEngine, Gate]) -> None:
    engine, gate = blocked
    kept = [engine.submit(lambda: 1, priority=Priority.PREFETCH) for _ in range(4)]
    more: list[Request[int]] = []
    asker = threading.Thread(
        target=lambda: more.append(engine.submit(lambda: 2, priority=Priority.PREFETCH))
    )
    asker.start()
    asker.join(0.05)
    assert asker.is_alive()
    engine.submit(lambda: 3)
    engine.check_integrity()
    kept[2].cancel()
    asker.join(10)
    assert not asker.is_alive()
    gate.go.set()
    assert more[0].result(10) == 2


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_reaches_who_waits_and_the_thread_goes_on(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with IOEngine(threads=1) as engine:
        with pytest.raises(type(error)):
            engine.submit(fail, 100).result(10)
        assert engine.submit(lambda: 5, 3).result(10) == 5
        stats = engine.stats()
        assert (stats.failed, stats.completed, stats.nbytes) == (1, 1, 3)


def test_close_cancels_what_waits_and_ends_the_threads() -> None:
    gate, before = Gate(), threading.active_count()
    engine = IOEngine(threads=1)
    running, waiting = engine.submit(gate), engine.submit(lambda: 1)
    assert gate.began.wait(10)
    threading.Timer(0.02, gate.go.set).start()
    engine.close()
    assert running.result() == "gate"
    with pytest.raises(CancelledError):
        waiting.result()
    for priority in Priority:
        with pytest.raises(ParameterError, match="closed"):
            engine.submit(lambda: 1, priority=priority)
    engine.close()
    engine.check_integrity()
    gc.collect()
    assert threading.active_count() <= before + 1  # the timer may still end


def test_idle_threads_keep_no_buffer_alive() -> None:
    class Thing:
        pass

    with IOEngine(threads=1) as engine:
        request = engine.submit(Thing)
        kept = weakref.ref(request.result(10))
        del request
        engine.submit(lambda: None).result(10)
        gc.collect()
        assert kept() is None


def test_blocks_are_read_ahead_into_two_buffers(tmp_path: Path) -> None:
    with BlockWriter(tmp_path / "x", {}) as writer:
        for index in range(6):
            writer.add(str(index), {"w": torch.full((3000,), float(index))})
    with BlockStore(tmp_path / "x") as store, IOEngine(threads=2, depth=2) as engine:
        size = store.stored_bytes("0")
        ring = [aligned_empty(size), aligned_empty(size)]
        coming = engine.read(store, "0", ring[0], priority=Priority.PREFETCH)
        for index in range(6):
            tensors = coming.result(10)
            if index < 5:
                buffer = ring[(index + 1) % 2]
                coming = engine.read(store, str(index + 1), buffer, priority=Priority.PREFETCH)
            assert float(tensors["w"].mean()) == index
        stats = engine.stats()
        assert stats.completed == stats.prefetch == 6 and stats.demand == 0
        assert stats.nbytes == 6 * store.nbytes("0")
        assert stats.busy_s > 0
        engine.check_integrity()


def test_impossible_sizes_are_refused() -> None:
    for threads, depth in ((0, 1), (1, 0)):
        with pytest.raises(ParameterError):
            IOEngine(threads, depth)


@settings(max_examples=25, deadline=None)
@given(
    asked=st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(0, 9)), max_size=20),
    threads=st.integers(1, 3),
    cancelled=st.sets(st.integers(0, 19)),
)
def test_every_request_ends_and_the_counts_add_up(
    asked: list[tuple[Priority, int]], threads: int, cancelled: set[int]
) -> None:
    with IOEngine(threads, depth=3) as engine:
        requests = [
            engine.submit(lambda nbytes=nbytes: nbytes, nbytes, priority)  # type: ignore[misc]
            for priority, nbytes in asked
        ]
        gone = {i for i in cancelled if i < len(requests) and requests[i].cancel()}
        for index, (request, (_, nbytes)) in enumerate(zip(requests, asked, strict=True)):
            if index not in gone:
                assert request.result(10) == nbytes
        stats = engine.stats()
        assert stats.requests == len(asked) and stats.cancelled == len(gone)
        assert stats.completed == len(asked) - len(gone)
        assert stats.nbytes == sum(n for i, (_, n) in enumerate(asked) if i not in gone)
        engine.check_integrity()
