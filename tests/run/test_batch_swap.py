"""Requests that take turns: put out, brought back or read again, they say what they say alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from loci.core.event import Events
from loci.errors import MethodError, OverloadError
from loci.nn import native
from loci.plan import plan as make_plan
from loci.plan.solve import Plan
from loci.run.batch import Batch
from loci.run.kv_paged import PagedMemory
from loci.run.requests import Ask, Ticket
from loci.run.sampling import Sampling
from loci.run.stores import PagedStores, SwapRoom
from loci.testing.batch import paused, slowed
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not

SIZES = {"layers": 6, "hidden": 128, "ffn": 256, "heads": 8, "kv_heads": 4, "head_dim": 16}
LONG_S = 60.0
CACHED = 7 * 16 * 3072  # seven blocks of sixteen tokens: about a third of what is asked for
FAIR = "fastswitch(every=3, chunk=32)"

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(not native.available(), reason="no native kernels"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_pack(home / "small", **SIZES).close()
    return home


def plan_of(folder: Path, **asked: object) -> Plan:
    asked = {"dram": "16MiB", "context": 256, "new_tokens": 16, "kv": ""} | asked
    return make_plan("small", folder=folder, cache=folder / ".cache", **asked)  # type: ignore[arg-type]


def prompt(number: int, tokens: int) -> tuple[int, ...]:
    return tuple((7 * number + 13 * i + i * i) % 256 for i in range(tokens))


def asks(count: int = 8) -> list[Ask]:
    return [
        Ask(
            ids=prompt(i, 3 + 17 * i % 60),
            max_tokens=18 + 5 * i % 23,
            goes_on=True,
            user=f"u{i % 3}",
            sampling=Sampling(temperature=float(i % 2), seed=i),
        )
        for i in range(count)
    ]


def ids_of(ticket: Ticket) -> list[int]:
    end = ticket.wait(LONG_S)
    assert end.error is None, end.error
    return [id for piece in ticket for id in piece.ids]


def alone(folder: Path, asked: list[Ask]) -> list[list[int]]:
    with Batch(plan_of(folder), folder=folder, keep_s=0.0) as batch:
        return [ids_of(batch.submit(ask)) for ask in asked]


def small(folder: Path, swap: SwapRoom, **given: Any) -> Batch:
    """Return an engine whose keys and values have few blocks."""

    def few(*args: Any, **more: Any) -> PagedMemory:
        return PagedMemory(*args, **(more | {"capacity_bytes": CACHED}))

    given = {"scheduler": FAIR} | given
    with mock.patch("loci.run.stores.PagedMemory", few):
        return Batch(plan_of(folder, disk="1MiB"), folder=folder, swap=swap, paged=True, **given)


ROOMS = {
    "memory": SwapRoom(memory_bytes=4 << 20),
    "disk": SwapRoom(disk_bytes=1 << 20),
    "both, short": SwapRoom(memory_bytes=4 * 49152, disk_bytes=7 * 49152),
    "nowhere": SwapRoom(),
}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("keep_s", [0.0, 300.0])
def test_turns_change_no_word(folder: Path, tmp_path: Path, room: str, keep_s: float) -> None:
    wanted = asks()
    expected = alone(folder, wanted)
    where = ROOMS[room]
    swap = SwapRoom(
        memory_bytes=where.memory_bytes, disk_bytes=where.disk_bytes, folder=tmp_path / "swap"
    )
    with small(folder, swap, keep_s=keep_s) as batch:
        stores = batch.stores
        assert isinstance(stores, PagedStores)
        for _ in range(2):  # the second time around, what was kept is found and moved as well
            tickets = [batch.submit(ask) for ask in wanted]
            assert [ids_of(ticket) for ticket in tickets] == expected
            batch.between_steps(stores.memory.check_integrity)
        stats = stores.memory.swap.stats()
        assert (stats.outs > 4) == (room != "nowhere")
        events = [event.name for event in batch.events.recent("run.swap")]
        assert "run.swap_out" in events and ("run.swap_in" in events) == (room != "nowhere")
        if keep_s and room == "memory":
            assert batch.load().reused_tokens > 0
    assert batch.ledger.used("dram") == batch.ledger.used("disk") == 0


def test_freed_blocks_are_poisoned_and_nobody_reads_them(folder: Path) -> None:
    wanted = asks()
    expected = alone(folder, wanted)
    with small(folder, SwapRoom(memory_bytes=1 << 20)) as batch:
        stores = batch.stores
        assert isinstance(stores, PagedStores)
        groups, memory = stores.memory.groups, stores.memory
        free = groups.free

        def poison(owner: object, count: int | None = None) -> list[int]:
            gone = free(owner, count)  # type: ignore[arg-type]
            memory.swap.settle()  # copies under way may still read them
            for block in gone:
                memory._memory[block] = 255  # NaN in every number
            return gone

        groups.free = poison  # type: ignore[method-assign]
        tickets = [batch.submit(ask) for ask in wanted]
        assert [ids_of(ticket) for ticket in tickets] == expected
        groups.free = free  # type: ignore[method-assign]


def test_a_user_with_many_requests_does_not_keep_another_waiting(folder: Path) -> None:
    def first_of_b(scheduler: str) -> int:
        order: list[str] = []
        with small(folder, SwapRoom(memory_bytes=1 << 20), scheduler=scheduler) as batch:
            with paused(batch):
                many = [
                    batch.submit(Ask(ids=prompt(i, 30), max_tokens=40, goes_on=True, user="A"))
                    for i in range(6)
                ]
                one = batch.submit(Ask(ids=prompt(9, 30), max_tokens=6, goes_on=True, user="B"))
                for name, ticket in [*((f"a{i}", t) for i, t in enumerate(many)), ("b", one)]:
                    ticket.listen(lambda item, name=name: order.append(name))  # type: ignore[misc]
            for ticket in (*many, one):
                ids_of(ticket)
        return order.index("b")

    assert first_of_b(FAIR) < first_of_b("fcfs(chunk=32)") / 2


def test_cancelling_whoever_is_out_or_here_leaves_nothing(folder: Path) -> None:
    with small(folder, SwapRoom(memory_bytes=1 << 20), keep_s=0.0) as batch:
        stores = batch.stores
        assert isinstance(stores, PagedStores)
        tickets = [batch.submit(ask) for ask in asks()]
        for _ in tickets[0]:
            break
        for number, ticket in enumerate(tickets):
            if number % 2:
                ticket.cancel()
        ends = [ticket.wait(LONG_S) for ticket in tickets]
        assert {end.reason for end in ends} <= {"cancelled", "length"}
        batch.between_steps(lambda: None)
        stores.memory.swap.settle()
        assert stores.memory.groups.used == 0
        assert all(place.groups.used == 0 for place in stores.memory.swap.places)


@pytest.mark.parametrize("scheduler", ["fcfs", "fcfs(chunk=16)", "layered_prefill(work=7)"])
@pytest.mark.parametrize("weights", [{}, {"weights": "400KiB", "disk": "1GiB"}])
def test_other_schedulers_run_in_mapped_blocks_too(
    folder: Path, scheduler: str, weights: dict[str, str]
) -> None:
    plan = plan_of(folder, **weights)
    wanted = asks()
    expected = alone(folder, wanted)
    with Batch(plan, folder=folder, scheduler=scheduler, paged=True) as batch:
        tickets = [batch.submit(ask) for ask in wanted]
        assert [ids_of(ticket) for ticket in tickets] == expected
        again = [batch.submit(ask) for ask in wanted]
        assert [ids_of(ticket) for ticket in again] == expected
        assert batch.load().reused_tokens > 0
        assert isinstance(batch.stores, PagedStores)
        batch.between_steps(batch.stores.memory.check_integrity)
    assert batch.ledger.used("dram") == 0


def test_what_was_promised_is_not_given_away(folder: Path) -> None:
    with Batch(plan_of(folder), folder=folder, paged=True) as batch:
        with slowed(batch):
            ticket = batch.submit(Ask(ids=prompt(1, 30), max_tokens=220, goes_on=True))
            for _ in ticket:
                break
            with paused(batch):
                pass
            free = batch.ledger.free("dram")
            with pytest.raises(OverloadError, match="which running requests hold"):
                batch.reserve("somebody", free - 1000)
        assert len(ids_of(ticket)) == 220
        lease = batch.reserve("somebody", free - 1000)
        lease.release()


def test_a_shared_beginning_takes_its_blocks_once(folder: Path) -> None:
    with Batch(plan_of(folder), folder=folder, paged=True) as batch:
        assert isinstance(batch.stores, PagedStores)
        groups = batch.stores.memory.groups
        common = prompt(5, 128)
        ids_of(batch.submit(Ask(ids=(*common, 1), max_tokens=2, goes_on=True)))
        used = groups.used
        for number in range(5):
            ticket = batch.submit(Ask(ids=(*common, *prompt(number, 9)), max_tokens=2))
            assert ticket.wait(LONG_S).reused_tokens == 128
        batch.between_steps(lambda: None)
        assert groups.used <= used + 5


def test_what_cannot_move_is_told(folder: Path) -> None:
    with pytest.raises(MethodError, match="keeps every token"):
        Batch(plan_of(folder, kv="streaming_llm"), folder=folder, scheduler=FAIR)
    with pytest.raises(MethodError, match="moves requests"):
        Batch(plan_of(folder), folder=folder, scheduler=FAIR, paged=False)


def test_many_threads_and_turns(folder: Path) -> None:
    events = Events()
    wanted = asks(12)
    expected = alone(folder, wanted)
    said: dict[int, list[int]] = {}
    with small(folder, SwapRoom(memory_bytes=1 << 20), events=events) as batch:

        def ask(number: int) -> None:
            said[number] = ids_of(batch.submit(wanted[number]))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
    assert [said[number] for number in range(12)] == expected


def test_what_is_forgotten_lies_in_no_block_and_in_no_other_place(folder: Path) -> None:
    with small(folder, SwapRoom(memory_bytes=4 << 20)) as batch:
        assert isinstance(batch.stores, PagedStores)
        memory = batch.stores.memory
        for ticket in [batch.submit(ask) for ask in asks()]:
            ids_of(ticket)
        assert memory.swap.stats().outs and memory._memory.any()
        batch.forget_kept()
        assert not memory._memory.any()
        assert not any(place.memory.any() for place in memory.swap.places)
        # Who runs meanwhile leaves nothing either.
        with paused(batch):
            late = [batch.submit(ask) for ask in asks(2)]
        with slowed(batch):
            for _ in late[0]:
                break
            batch.forget_kept()
        for ticket in late:
            ids_of(ticket)
        batch.between_steps(lambda: None)
        assert not memory._memory.any()


def test_blocks_are_mapped_where_not_every_row_has_room_for_the_longest(folder: Path) -> None:
    # 256 tokens are 768 KiB: one request fits three times beside the model's own memory.
    for dram, kv, is_paged in (
        ("64MiB", "", False),
        ("6MiB", "", True),
        ("6MiB", "bfp(block=16)", False),
    ):
        with Batch(plan_of(folder, dram=dram, kv=kv), folder=folder, rows=8) as batch:
            assert isinstance(batch.stores, PagedStores) is is_paged
    with Batch(plan_of(folder, dram="6MiB"), folder=folder, rows=8, paged=False) as batch:
        assert not isinstance(batch.stores, PagedStores)
