"""Texts and cubes under governance: both versions side by side, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from loci.core.clock import ManualClock
from loci.core.cube import CubeHeader, MemoryKind
from loci.core.governance import Change, Policy, Stage, Threshold
from loci.errors import MethodError
from loci.run.govern import Governor
from loci.run.governed import GovernedCube, GovernedTexts, Search, TextEdit
from loci.run.memory import Memory
from loci.store.audit import Audit
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf

RULES = Policy(
    thresholds=(Threshold(metric="fresh", op=">=", value=0.8),), canary=(0.5, 1.0), step_n=10
)


def fresh(metric: str, search: Search, seed: int) -> Sequence[float]:
    """Whether Oslo is what is found first, asked in thirty ways."""
    asked = [f"where does the user live, {seed + number}?" for number in range(30)]
    return [float("Oslo" in (search(text) or [None])[0].text) for text in asked]  # type: ignore[union-attr]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def memory(tmp_path: Path, clock: ManualClock) -> Iterator[Memory]:
    with Memory(tmp_path / "m.db", clock=clock) as opened:
        opened.add("I live in Ghent. I like tea.", user="ada")
        clock.advance(60)
        yield opened


@pytest.fixture
def governor(tmp_path: Path, clock: ManualClock) -> Governor:
    return Governor(tmp_path / "gov", audit=Audit(tmp_path / "m.db.audit"), clock=clock)


def texts(memory: Memory, change: str = "move") -> GovernedTexts:
    [home] = [item for item in memory.list(user="ada") if "Ghent" in item.text]  # type: ignore[union-attr]
    [tea] = [item for item in memory.list(user="ada") if "tea" in item.text]  # type: ignore[union-attr]
    edits = [
        TextEdit("edit", home.id, "The user lives in Oslo"),
        TextEdit("retire", tea.id),
        TextEdit("note", text="Ada likes coffee best"),
    ]
    return GovernedTexts(memory, "ada", change, edits, fresh)


def proposal(substance: str = "text") -> Change:
    return Change(
        id="move",
        subject="home",
        substance=substance,
        evidence=("t1",),
        owner="ada",  # type: ignore[arg-type]
    )


def test_texts_are_probed_on_a_copy_and_come_back_as_they_were(
    memory: Memory, governor: Governor, clock: ManualClock
) -> None:
    governed = texts(memory)
    before, listed = governed.state(), memory.list(user="ada")
    governor.propose(proposal(), RULES, governed)
    assert governor.admit("move").verdict == "pass"
    assert memory.list(user="ada") == listed, "nobody saw it yet"
    governor.canary("move")
    clock.advance(60)
    assert "Oslo" in governed.search("new")("where does the user live?")[0].text
    assert "Ghent" in governed.search("old")("where does the user live?")[0].text
    assert governed.state() != before
    assert governed.probe("fresh", "old", 0) == [0.0] * 30
    governor.rollback("move")
    assert governed.state() == before
    assert {item.text for item in memory.list(user="ada")} == {item.text for item in listed}  # type: ignore[union-attr]


def test_a_change_that_makes_it_worse_is_undone_by_itself(
    memory: Memory, governor: Governor, clock: ManualClock
) -> None:
    governed = texts(memory)
    before = governed.state()
    governor.propose(proposal(), RULES, governed)
    governor.admit("move")
    governor.canary("move")
    while governor.case("move").stage is Stage.CANARY:
        governor.observe("move", "success", 1.0, "old")
        if governor.case("move").stage is Stage.CANARY:
            governor.observe("move", "success", 0.0, "new")
    assert governor.case("move").stage is Stage.ROLLED_BACK and governed.state() == before
    changes = memory.changes(user="ada")
    assert sum(change.action == "undo" for change in changes) == 3


def test_what_others_add_meanwhile_stays(
    memory: Memory, governor: Governor, clock: ManualClock
) -> None:
    governor.propose(proposal(), RULES, texts(memory))
    governor.admit("move")
    governor.canary("move")
    clock.advance(60)
    memory.add("I have a dog.", user="ada")
    governor.rollback("move")
    told = {item.text for item in memory.list(user="ada")}  # type: ignore[union-attr]
    assert any("dog" in text for text in told) and any("Ghent" in text for text in told)


def test_what_cannot_be_taken_back_is_out_of_use_and_said(
    memory: Memory, governor: Governor, clock: ManualClock
) -> None:
    governed = texts(memory)
    governor.propose(proposal(), RULES, governed)
    governor.admit("move")
    governor.canary("move")
    clock.advance(60)
    memory.edit(governed.edits[0].id, "The user lives in Bergen", user="ada")
    with pytest.raises(MethodError, match="something else changed the same meanwhile"):
        governor.rollback("move")
    case = governor.case("move")
    assert case.stage is Stage.REVOKED and governor.arm("move", "anybody") == "old"
    assert [entry.what for entry in governor.audit.entries()][-1] == "stuck"


def payload(number: float) -> Payload:
    return Payload(tensors={"keys": torch.full((2, 3), number)}, facts={"tokens": 2})


def of_tensor(metric: str, given: Payload | None, seed: int) -> Sequence[float]:
    return [float(given is not None and given.tensors["keys"][0, 0] > 0)] * 30


@pytest.mark.parametrize("had", [False, True])
def test_a_cube_goes_back_to_what_there_was(
    tmp_path: Path, governor: Governor, clock: ManualClock, had: bool
) -> None:
    shelf = Shelf(tmp_path / "m.db.cubes", clock=clock, audit=governor.audit)
    header = CubeHeader(id="kv-1", kind=MemoryKind.ACTIVATION, fingerprint="f")
    if had:
        header = shelf.put(header, payload(-1.0))
    governed = GovernedCube(shelf, header, payload(2.0), of_tensor)
    before = governed.state()
    governor.propose(proposal("kv"), RULES, governed)
    assert governor.admit("move").verdict == "pass" and governed.state() == before
    governor.canary("move")
    assert torch.equal(shelf.payload("kv-1").tensors["keys"], torch.full((2, 3), 2.0))
    resumed = GovernedCube(shelf, header, payload(2.0), of_tensor)  # as another process has it
    governor = Governor(governor.book.folder, audit=governor.audit, clock=clock)
    governor.attach("move", resumed)
    assert resumed.probe("fresh", "old", 0) == [0.0] * 30
    governor.rollback("move")
    assert governed.state() == before
    if had:
        assert torch.equal(shelf.payload("kv-1").tensors["keys"], torch.full((2, 3), -1.0))
    else:
        assert shelf.headers() == []
    governor.verify(governor.certificate("move"))
