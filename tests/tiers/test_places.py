"""Blocks in memory, on a disk, and over a slow link."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.core.clock import ManualClock
from loci.core.ledger import Ledger
from loci.errors import BudgetError, FormatError, ParameterError, StorageError
from loci.tiers.disk import DiskTier
from loci.tiers.dram import DramTier
from loci.tiers.pool import aligned_empty
from loci.tiers.throttled import Link, Throttled

PAGE = 4096
Open = Callable[[int], tuple[DramTier | DiskTier, Ledger]]


@pytest.fixture(params=["dram", "disk"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    def make(limit: int) -> tuple[DramTier | DiskTier, Ledger]:
        ledger = Ledger({request.param: limit})
        tier = DramTier(ledger) if request.param == "dram" else DiskTier(tmp_path / "d", ledger)
        request.addfinalizer(tier.close)
        return tier, ledger

    return make


def block(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "w": torch.randn(5, 7),
        "codes": torch.randint(0, 255, (3,), dtype=torch.uint8),
        "half": torch.randn(4).bfloat16(),
        "one": torch.tensor(2.0),
        "none": torch.empty(0, 2),
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(
        torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left
    )


def test_blocks_come_back_whichever_way_they_are_read(opened: Open) -> None:
    tier, ledger = opened(2**20)
    made = tier.put("a/b ?", block(1), kind="kv", codec="bfp", meta={"x": 1})
    tier.put("c", block(2))
    assert tier.names() == ["a/b ?", "c"]
    buffer = aligned_empty(tier.stored_bytes("a/b ?") + PAGE)
    for tensors in (tier.get("a/b ?"), tier.read("a/b ?"), tier.read("a/b ?", buffer)):
        assert same(tensors, block(1))
    inside = range(buffer.data_ptr(), buffer.data_ptr() + buffer.numel())
    assert tier.read("a/b ?", buffer)["w"].data_ptr() in inside
    assert tier.block("a/b ?") == made and (made.kind, made.codec) == ("kv", "bfp")
    assert tier.meta("a/b ?") == {"x": 1}
    true = sum(t.numel() * t.element_size() for t in block().values())
    assert tier.nbytes("c") == made.nbytes == true
    assert sum(tier.held().values()) == ledger.used(next(iter(tier.held())))
    tier.check_integrity()
    ledger.check_integrity()


def test_replacing_and_deleting_give_bytes_back(opened: Open) -> None:
    tier, ledger = opened(2**20)
    name = next(iter(tier.held()))
    tier.put("a", block(1))
    once = ledger.used(name)
    tier.put("a", block(2))
    assert ledger.used(name) == once and same(tier.get("a"), block(2))
    tier.check_integrity()
    tier.delete("a")
    assert ledger.used(name) == 0 and tier.names() == []
    tier.check_integrity()
    with pytest.raises(ParameterError):
        tier.delete("a")


def test_what_does_not_fit_is_refused_and_the_rest_stays(opened: Open) -> None:
    tier, ledger = opened(3 * PAGE)
    tier.put("a", block(1))
    used = ledger.used(next(iter(tier.held())))
    for name in ("b", "a"):
        with pytest.raises(BudgetError):
            tier.put(name, {"w": torch.zeros(3 * PAGE)})
    assert tier.names() == ["a"] and same(tier.get("a"), block(1))
    assert sum(tier.held().values()) == used
    tier.check_integrity()


def test_unknown_blocks_and_small_buffers_are_refused(opened: Open) -> None:
    tier, _ = opened(2**20)
    tier.put("layer.1", block())
    with pytest.raises(ParameterError, match=r"layer\.1"):
        tier.get("layer.2")
    with pytest.raises(ParameterError, match="too small"):
        tier.read("layer.1", aligned_empty(8))


def test_memory_blocks_are_copies() -> None:
    tier, mine = DramTier(Ledger({"dram": 2**20})), block(1)
    tier.put("a", mine)
    mine["w"].zero_()
    assert same(tier.get("a"), block(1))


def test_disk_blocks_outlive_the_tier(tmp_path: Path) -> None:
    ledger = Ledger({"disk": 2**20})
    tier = DiskTier(tmp_path, ledger)
    tier.put("b", block(1))
    tier.put("a", block(2))
    used = ledger.used("disk")
    with pytest.raises(StorageError, match="another process"):
        DiskTier(tmp_path, Ledger({"disk": 2**20}))
    tier.close()
    tier.close()
    assert ledger.used("disk") == 0
    (tmp_path / ".x.block.0.partial").write_bytes(b"x")
    with pytest.raises(BudgetError):
        DiskTier(tmp_path, Ledger({"disk": PAGE}))
    again = DiskTier(tmp_path, ledger)
    assert ledger.used("disk") == used and again.names() == ["a", "b"]
    assert same(again.get("b"), block(1))
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))
    again.verify()
    again.check_integrity()
    again.close()


def test_a_damaged_disk_block_is_named(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, Ledger({"disk": 2**20}))
    tier.put("good", block(1))
    tier.put("bad", block(2))
    path = tier._path("bad")
    data = bytearray(path.read_bytes())
    data[PAGE + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="bad"):
        tier.verify()
    tier.close()
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError):
        DiskTier(tmp_path, Ledger({"disk": 2**20}))


def test_a_failed_write_gives_its_bytes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger({"disk": 2**20})
    tier = DiskTier(tmp_path, ledger)
    tier.put("a", block(1))
    used = ledger.used("disk")

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space"):
            tier.put("a", block(2))
    assert ledger.used("disk") == used and same(tier.read("a"), block(1))
    tier.check_integrity()
    tier.close()


@settings(max_examples=30, deadline=None)
@given(keys=st.lists(st.text(max_size=20), max_size=30, unique=True), dims=st.integers(0, 6))
def test_the_bytes_reserved_for_a_file_are_enough(keys: list[str], dims: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger({"disk": 2**22})
        tier = DiskTier(folder, ledger)
        tier.put("name", {key: torch.zeros([1] * dims) for key in keys}, meta={"keys": keys})
        tier.check_integrity()
        assert ledger.peak("disk") - ledger.used("disk") <= 8 * PAGE
        tier.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        DiskTier(tmp_path / "file" / "x", Ledger({"disk": 1}))


# -- a slow link ------------------------------------------------------------------------------


class Instant:
    """A reader that takes no time."""

    def names(self) -> list[str]:
        return ["a", "b"]

    def nbytes(self, name: str) -> int:
        return {"a": 100, "b": 300}[name]

    def read(self, name: str, into: object = None) -> dict[str, str]:
        return {"name": name}


def test_a_read_takes_latency_plus_bytes_over_bandwidth() -> None:
    clock = ManualClock()
    link = Link(bytes_per_s=100, latency_s=0.5, clock=clock, wait=clock.advance)
    slow = Throttled(Instant(), link)
    assert slow.read("a") == {"name": "a"} and clock.monotonic() == 1.5
    slow.read("b")
    assert clock.monotonic() == 1.5 + 3.5
    assert slow.names() == ["a", "b"] and slow.nbytes("b") == slow.stored_bytes("b") == 300
    assert (link.nbytes, link.busy_s) == (400, 4.0)


def test_bytes_of_reads_under_way_queue_up_and_their_latencies_overlap() -> None:
    clock = ManualClock()
    link = Link(bytes_per_s=100, latency_s=0.5, clock=clock, wait=clock.advance)
    assert [link.book(100), link.book(100), link.book(0)] == [1.5, 2.5, 2.5]
    clock.advance(10)
    assert link.book(100) == 11.5


def test_what_crosses_is_what_is_stored(tmp_path: Path) -> None:
    clock = ManualClock()
    tier = DiskTier(tmp_path, Ledger({"disk": 2**20}))
    tier.put("a", block(1))
    link = Link(bytes_per_s=PAGE, clock=clock, wait=clock.advance)
    assert same(Throttled(tier, link).read("a"), block(1))
    assert clock.monotonic() == pytest.approx(tier.stored_bytes("a") / PAGE)
    tier.close()


@pytest.mark.parametrize(("speed", "latency"), [(0, 0), (-1, 0), (1, -1)])
def test_impossible_links_are_refused(speed: float, latency: float) -> None:
    with pytest.raises(ParameterError):
        Link(bytes_per_s=speed, latency_s=latency)
