"""The ledger under any order of reservations: sums, limits and peaks agree after every step."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from loci.core.event import Events
from loci.core.ledger import Lease, Ledger
from loci.errors import BudgetError

LIMITS = {"dram": 100, "disk": 1000}


def test_bytes_go_back_when_a_lease_ends() -> None:
    ledger = Ledger({"dram": 100})
    with ledger.reserve("weights", "dram", 60, "weights"):
        assert ledger.free("dram") == 40
    assert ledger.used("dram") == 0
    assert ledger.peak("dram") == 60


def test_a_lease_ends_when_its_body_raises() -> None:
    ledger = Ledger({"dram": 100})
    with pytest.raises(RuntimeError), ledger.reserve("kv", "dram", 60):
        raise RuntimeError
    assert ledger.used("dram") == 0


def test_releasing_twice_gives_back_once() -> None:
    ledger = Ledger({"dram": 100})
    lease = ledger.reserve("kv", "dram", 10)
    ledger.reserve("work", "dram", 10)
    lease.release()
    lease.release()
    assert ledger.used("dram") == 10


def test_a_refusal_takes_nothing_and_states_the_gap() -> None:
    events = Events()
    ledger = Ledger({"dram": 4096}, events)
    ledger.reserve("weights", "dram", 3072)
    with pytest.raises(BudgetError) as caught:
        ledger.reserve("kv", "dram", 2048)
    message = str(caught.value)
    assert "kv needs 2.0 KiB more on dram" in message
    assert "of 4.0 KiB there are 1.0 KiB left (1.0 KiB short)" in message
    assert "held now: weights 3.0 KiB" in message
    assert ledger.used("dram") == ledger.peak("dram") == 3072
    assert [event.name for event in events.recent()] == ["ledger.reserve", "ledger.refuse"]


def test_a_tier_that_was_not_named_holds_nothing() -> None:
    ledger = Ledger({"dram": 100})
    with pytest.raises(BudgetError):
        ledger.reserve("kv", "gpu", 1)
    ledger.reserve("nothing", "gpu", 0)
    ledger.check_integrity()


def test_commit_states_what_is_really_held() -> None:
    ledger = Ledger({"dram": 100})
    lease = ledger.reserve("kv", "dram", 60)
    lease.commit(20)
    assert (ledger.used("dram"), ledger.peak("dram")) == (20, 60)
    with pytest.raises(BudgetError):
        lease.commit(101)
    assert lease.nbytes == 20


def test_nobody_holds_a_negative_number_of_bytes() -> None:
    ledger = Ledger({"dram": 100})
    with pytest.raises(ValueError, match="cannot hold -1 bytes"):
        ledger.reserve("kv", "dram", -1)
    lease = ledger.reserve("kv", "dram", 5)
    with pytest.raises(ValueError, match="cannot hold -5 bytes"):
        lease.commit(-5)
    ledger.check_integrity()


def test_a_released_lease_cannot_grow_again() -> None:
    ledger = Ledger({"dram": 100})
    lease = ledger.reserve("kv", "dram", 5)
    lease.release()
    with pytest.raises(ValueError, match="was released"):
        lease.commit(1)


def test_the_table_is_largest_first_and_sums_by_kind() -> None:
    ledger = Ledger(LIMITS)
    ledger.reserve("layer.0", "dram", 10, "weights")
    ledger.reserve("layer.1", "dram", 20, "weights")
    ledger.reserve("cache", "dram", 15, "kv")
    ledger.reserve("pack", "disk", 500, "weights")
    assert [row["nbytes"] for row in ledger.table()] == [500, 20, 15, 10]
    assert ledger.by_kind("dram") == {"weights": 30, "kv": 15}


def test_threads_never_pass_the_limit() -> None:
    ledger = Ledger({"dram": 100})
    refused: list[str] = []

    def work(name: str) -> None:
        for _ in range(200):
            try:
                with ledger.reserve(name, "dram", 40):
                    assert ledger.used("dram") <= 100
            except BudgetError:
                refused.append(name)

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.check_integrity()
    assert ledger.used("dram") == 0
    assert ledger.peak("dram") <= 100


class AnyOrder(RuleBasedStateMachine):
    """Reserve, commit and release in any order, beside a plain dictionary that says the truth."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(LIMITS)
        self.truth: dict[int, tuple[str, int]] = {}
        self.peaks = dict.fromkeys(LIMITS, 0)

    def held(self, tier: str) -> int:
        return sum(nbytes for at, nbytes in self.truth.values() if at == tier)

    @rule(target=leases, tier=st.sampled_from(sorted(LIMITS)), nbytes=st.integers(0, 120))
    def reserve(self, tier: str, nbytes: int) -> Lease | None:
        if self.held(tier) + nbytes > LIMITS[tier]:
            with pytest.raises(BudgetError):
                self.ledger.reserve("x", tier, nbytes)
            return None
        lease = self.ledger.reserve("x", tier, nbytes)
        self.truth[id(lease)] = (tier, nbytes)
        return lease

    @rule(lease=leases, nbytes=st.integers(0, 120))
    def commit(self, lease: Lease | None, nbytes: int) -> None:
        if lease is None or lease.released:
            return
        tier, before = self.truth[id(lease)]
        if self.held(tier) - before + nbytes > LIMITS[tier]:
            with pytest.raises(BudgetError):
                lease.commit(nbytes)
            return
        lease.commit(nbytes)
        self.truth[id(lease)] = (tier, nbytes)

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            lease.release()
            self.truth.pop(id(lease), None)

    @invariant()
    def agrees(self) -> None:
        self.ledger.check_integrity()
        for tier, limit in LIMITS.items():
            self.peaks[tier] = max(self.peaks[tier], self.held(tier))
            assert self.ledger.used(tier) == self.held(tier)
            assert self.ledger.free(tier) == limit - self.held(tier)
            assert self.ledger.peak(tier) == self.peaks[tier]


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(st.integers(0, 50), max_size=20))
def test_events_tell_the_whole_story(sizes: list[int]) -> None:
    events = Events()
    ledger = Ledger({"dram": 100}, events)
    for nbytes in sizes:
        try:
            ledger.reserve("x", "dram", nbytes)
        except BudgetError:
            continue
    told = [e.data["nbytes"] for e in events.recent("ledger.reserve")]
    assert sum(told) == ledger.used("dram")
    assert len(told) + len(events.recent("ledger.refuse")) == len(sizes)
