"""A change from proposal to certificate: gates, canary, alarms, the way back, and forgeries."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from loci.core.clock import ManualClock
from loci.core.governance import Change, Policy, Stage, Threshold
from loci.errors import FormatError, MethodError, NotFoundError, ParameterError, StoreError
from loci.nn.patch import Patch
from loci.run.govern import Governor
from loci.run.governed import GovernedPatch, Slot
from loci.store.audit import Audit

PROBES = 60


def patch(size: float) -> Patch:
    made = torch.Generator().manual_seed(7)
    left, right = torch.randn(6, 1, generator=made), torch.randn(1, 4, generator=made)
    return Patch({"layer.0.q_proj": (left * size, right)})


def probes(metric: str, given: Patch | None, seed: int) -> Sequence[float]:
    """Efficacy: whether the patch is on. Utility: it harms with its size."""
    dice = Random(f"{metric} {seed}")
    size = 0.0 if given is None else float(given.delta("layer.0.q_proj").abs().max())
    if metric == "efficacy":
        return [float(size > 0)] * PROBES
    return [float(dice.random() > size / 40) for _ in range(PROBES)]


RULES = Policy(
    thresholds=(
        Threshold(metric="efficacy", op=">=", value=0.9),
        Threshold(metric="utility", op=">=", value=0.0, margin=0.2, paired=True, part="regression"),
    ),
    canary=(0.1, 0.5, 1.0),
    step_n=20,
    watched=("success",),
)
WEAK = replace(RULES, thresholds=RULES.thresholds[:1])


def change(id: str = "edit-1", subject: str = "fact-9", **more: object) -> Change:
    return Change(
        id=id,
        subject=subject,
        substance="edit",
        evidence=("t3",),
        owner="ada",
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def governor(tmp_path: Path, clock: ManualClock) -> Governor:
    return Governor(tmp_path / "gov", audit=Audit(tmp_path / "gov.audit"), clock=clock)


def serve(governor: Governor, id: str, rates: dict[str, float], most: int, seed: int = 0) -> int:
    """Serve requests until the change is settled; return how many it took."""
    dice = Random(seed)
    for number in range(most):
        arm = governor.arm(id, f"request{number}")
        governor.observe(id, "success", float(dice.random() < rates[arm]), arm)
        case = governor.case(id)
        if case.ready or case.stage is not Stage.CANARY:
            return number + 1
    return most


def test_a_good_change_goes_all_the_way(governor: Governor) -> None:
    slot, fresh = Slot(), patch(0.1)
    assert (
        governor.propose(change(), RULES, GovernedPatch(slot, fresh, probes)).stage is Stage.DRAFT
    )
    assert governor.arm("edit-1", "anybody") == "old"
    assert governor.admit("edit-1").verdict == "pass" and slot.patch is None
    governor.canary("edit-1")
    assert slot.patch is fresh
    with pytest.raises(ParameterError, match="watched to the end"):
        governor.release("edit-1")
    served = serve(governor, "edit-1", {"old": 0.9, "new": 0.9}, 2000)
    assert 20 + 40 + 200 * 0.5 < served < 600
    case = governor.release("edit-1")
    assert case.stage is Stage.RELEASED and governor.arm("edit-1", "anybody") == "new"
    assert [what for _, what, _ in case.told] == [
        *("propose", "admit", "canary", "canary", "canary", "ready", "release")
    ]
    governor.verify(governor.certificate("edit-1"))
    assert governor.audit.verify() == 10


def test_a_harmful_change_is_caught_and_taken_back_bit_for_bit(governor: Governor) -> None:
    before = patch(0.1)
    slot = Slot(before)
    bits = {name: tensor.clone() for name, tensor in before.tensors().items()}
    governed = GovernedPatch(slot, patch(10.0), probes)
    assert governor.propose(change(), WEAK, governed).before == before.fingerprint
    assert governor.admit("edit-1").verdict == "pass", "the weak gate looks at efficacy alone"
    governor.canary("edit-1")
    served = serve(governor, "edit-1", {"old": 0.9, "new": 0.1}, 500)
    case = governor.case("edit-1")
    assert served < 500 and case.stage is Stage.ROLLED_BACK and "worse" in case.told[-1][2]
    assert slot.patch is not None
    assert all(torch.equal(slot.patch.tensors()[name], bits[name]) for name in bits)
    assert governor.arm("edit-1", "anybody") == "old"
    assert list(governor.book.folder.glob("*.point")) == [], "nothing goes back from here"
    with pytest.raises(ParameterError, match="cannot become"):
        governor.canary("edit-1")


def test_the_same_change_is_refused_by_gates_that_look(governor: Governor) -> None:
    slot = Slot()
    governor.propose(change(), RULES, GovernedPatch(slot, patch(10.0), probes))
    ruling = governor.admit("edit-1")
    assert ruling.verdict == "fail" and "utility" in ruling.why and slot.patch is None
    assert governor.case("edit-1").stage is Stage.DRAFT
    with pytest.raises(ParameterError, match="cannot become"):
        governor.canary("edit-1")


def test_too_few_probes_admit_nothing(governor: Governor) -> None:
    governed = GovernedPatch(Slot(), patch(0.1), probes)
    governor.propose(change(), replace(WEAK, min_n=PROBES + 1), governed)
    assert governor.admit("edit-1").verdict == "insufficient"


def test_chance_alone_takes_back_few_changes(tmp_path: Path) -> None:
    taken = 0
    for seed in range(15):
        folder = tmp_path / str(seed)
        governor = Governor(folder / "gov", audit=Audit(folder / "gov.audit"))
        governor.propose(change(), WEAK, GovernedPatch(Slot(), patch(0.1), probes))
        governor.admit("edit-1")
        governor.canary("edit-1")
        serve(governor, "edit-1", {"old": 0.7, "new": 0.7}, 1000, seed)
        taken += governor.case("edit-1").stage is Stage.ROLLED_BACK
    assert taken <= 3, "alpha is 0.05; of 15, 4 or more come up once in 180"


def test_thresholds_chosen_after_the_results_are_void(governor: Governor, tmp_path: Path) -> None:
    governed = GovernedPatch(Slot(), patch(10.0), probes)
    governor.propose(change(), RULES, governed)
    governor.admit("edit-1")  # refused
    path = governor.book.folder / "edit-1.json"
    data = json.loads(path.read_text())
    data["policy"]["thresholds"][1]["margin"] = 1.0
    path.write_text(json.dumps(data))
    again = Governor(governor.book.folder, audit=governor.audit)
    again.attach("edit-1", governed)
    with pytest.raises(MethodError, match="not the one that was registered"):
        again.admit("edit-1")


def test_a_killed_process_goes_on_where_it_was(governor: Governor, clock: ManualClock) -> None:
    slot, fresh = Slot(), patch(0.1)
    governed = GovernedPatch(slot, fresh, probes)
    governor.propose(change(), WEAK, governed)
    governor.admit("edit-1")
    governor.canary("edit-1")
    for _ in range(19):
        governor.observe("edit-1", "success", 1.0, "new")
        governor.observe("edit-1", "success", 1.0, "old")
    again = Governor(governor.book.folder, audit=governor.audit, clock=clock)
    with pytest.raises(MethodError, match="not at hand"):
        again.rollback("edit-1")
    with pytest.raises(MethodError, match="proposed with"):
        again.attach("edit-1", GovernedPatch(slot, patch(0.2), probes))
    empty = Slot()  # as it is when a process begins
    resumed = GovernedPatch(empty, fresh, probes)
    again.attach("edit-1", resumed)
    assert empty.patch is fresh and resumed.serving("old") is None
    again.observe("edit-1", "success", 1.0, "new")
    assert again.case("edit-1").step == 1, "the twentieth ends the first step"
    again.rollback("edit-1")
    assert empty.patch is None


def test_a_change_whose_way_back_is_gone_is_out_of_use(governor: Governor) -> None:
    slot = Slot(patch(0.2))
    governor.propose(change(), WEAK, GovernedPatch(slot, patch(0.1), probes))
    governor.admit("edit-1")
    governor.canary("edit-1")
    [path] = governor.book.folder.glob("*.point")
    path.write_bytes(b"something else")
    with pytest.raises(MethodError, match="altered or is gone"):
        governor.rollback("edit-1")
    assert governor.case("edit-1").stage is Stage.REVOKED
    assert governor.arm("edit-1", "anybody") == "old"


def test_two_changes_of_one_thing_are_not_tried_at_once(governor: Governor) -> None:
    slot = Slot()
    for id in ("edit-1", "edit-2"):
        governor.propose(change(id, f"fact-{id}"), WEAK, GovernedPatch(slot, patch(0.1), probes))
        governor.admit(id)
    governor.canary("edit-1")
    with pytest.raises(ParameterError, match="of the same is being tried"):
        governor.canary("edit-2")


def test_what_somebody_else_put_there_is_not_taken_away(governor: Governor) -> None:
    slot, other = Slot(), patch(0.5)
    governor.propose(change(), WEAK, GovernedPatch(slot, patch(0.1), probes))
    governor.admit("edit-1")
    governor.canary("edit-1")
    slot.patch = other
    with pytest.raises(MethodError, match="something else is in effect"):
        governor.rollback("edit-1")
    assert slot.patch is other and governor.case("edit-1").stage is Stage.REVOKED


def test_a_step_that_takes_too_long_has_failed(governor: Governor, clock: ManualClock) -> None:
    slot = Slot()
    rules = replace(WEAK, max_step_seconds=60.0)
    governor.propose(change(), rules, GovernedPatch(slot, patch(0.1), probes))
    governor.admit("edit-1")
    governor.canary("edit-1")
    governor.observe("edit-1", "success", 1.0, "old")
    clock.advance(61)
    assert governor.observe("edit-1", "success", 1.0, "old").verdict == "fail"
    assert governor.case("edit-1").stage is Stage.ROLLED_BACK and slot.patch is None


@pytest.mark.parametrize(
    ("on_fail", "stages"),
    [
        ("quarantine", [Stage.REVOKED]),
        ("degrade", [Stage.CANARY, Stage.ROLLED_BACK]),
    ],
)
def test_what_follows_an_alarm_is_the_policys(
    governor: Governor, on_fail: str, stages: list[Stage]
) -> None:
    slot = Slot()
    rules = replace(WEAK, on_fail=on_fail)  # type: ignore[arg-type]
    governor.propose(change(), rules, GovernedPatch(slot, patch(0.1), probes))
    governor.admit("edit-1")
    governor.canary("edit-1")
    for _ in range(20):
        governor.observe("edit-1", "success", 1.0, "old")
        governor.observe("edit-1", "success", 1.0, "new")
    assert governor.case("edit-1").step == 1
    for stage in stages:
        while governor.observe("edit-1", "success", 0.0, "new").verdict != "fail":
            pass
        case = governor.case("edit-1")
        assert case.stage is stage
    assert slot.patch is None and governor.case("edit-1").share == 0.0


def test_a_release_supersedes_the_one_before(governor: Governor) -> None:
    slot = Slot()
    for number, size in enumerate((0.1, 0.2)):
        id = f"edit-{number}"
        governor.propose(change(id), WEAK, GovernedPatch(slot, patch(size), probes))
        governor.admit(id)
        governor.canary(id)
        serve(governor, id, {"old": 1.0, "new": 1.0}, 1000)
        governor.release(id)
    assert governor.case("edit-0").stage is Stage.SUPERSEDED
    with pytest.raises(ParameterError, match="cannot become"):
        governor.rollback("edit-0")
    governor.rollback("edit-1")
    assert slot.patch is not None and slot.patch.fingerprint == patch(0.1).fingerprint


def certified(governor: Governor) -> dict[str, object]:
    governor.propose(change(), WEAK, GovernedPatch(Slot(), patch(0.1), probes))
    governor.admit("edit-1")
    return governor.certificate("edit-1")


def test_a_certificate_says_it_all_and_verifies(governor: Governor) -> None:
    made = certified(governor)
    for field in ("F1", "F2", "F3", "F4", "F5", "F6", "F7", "artefacts", "mac", "previous"):
        assert field in made
    governor.verify(made)
    assert governor.certificate("edit-1") == made, "asked twice, it is the same"
    again = Governor(governor.book.folder, audit=governor.audit)
    again.verify(json.loads(json.dumps(made)))
    assert stat.S_IMODE((governor.book.folder / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("field", "inner", "value"),
    [
        ("F1", "target", "fact-8"),
        ("F4", "gates", []),
        ("F6", "before", "none at all"),
        ("F7", "owner", "eve"),
        ("previous", None, "0" * 64),
        ("stage", None, "released"),
    ],
)
def test_an_altered_certificate_is_found(
    governor: Governor, field: str, inner: str | None, value: object
) -> None:
    made = json.loads(json.dumps(certified(governor)))
    if inner is None:
        made[field] = value
    else:
        made[field][inner] = value
    with pytest.raises(FormatError, match=r"altered|follow"):
        governor.verify(made)


def test_probes_that_come_out_differently_are_found(governor: Governor) -> None:
    made = certified(governor)

    def other(metric: str, given: Patch | None, seed: int) -> Sequence[float]:
        return [0.0] * PROBES

    governor.attach("edit-1", GovernedPatch(Slot(), patch(0.1), other))
    with pytest.raises(FormatError, match="come out differently"):
        governor.verify(made)
    governor.verify(made, probes=False)


def test_a_certificate_of_another_governor_or_a_broken_audit_is_found(
    governor: Governor, tmp_path: Path
) -> None:
    made = certified(governor)
    other = Governor(tmp_path / "other", audit=Audit(tmp_path / "other.audit"))
    with pytest.raises(FormatError, match="another key"):
        other.verify(made)
    path = governor.audit.path
    path.write_text(path.read_text().replace('"verdict"', '"ruling"').replace("measure", "guess"))
    with pytest.raises(StoreError, match="altered"):
        governor.verify(made)


def test_bad_calls_are_refused_and_change_nothing(governor: Governor) -> None:
    governed = GovernedPatch(Slot(), patch(0.1), probes)
    with pytest.raises(NotFoundError):
        governor.case("edit-1")
    governor.propose(change(approvals=("bob",)), replace(WEAK, approvals=2), governed)
    with pytest.raises(ParameterError, match="of this id"):
        governor.propose(change(), WEAK, governed)
    with pytest.raises(ParameterError, match="another kind of memory"):
        governor.propose(
            Change(id="t-1", subject="i7", substance="text", evidence=("t1",), owner="ada"),
            WEAK,
            governed,
        )
    with pytest.raises(ParameterError, match="needs 2 approvals"):
        governor.admit("edit-1")
    with pytest.raises(ParameterError, match="nothing to certify"):
        governor.certificate("edit-1")
    with pytest.raises(ParameterError, match="nothing of it is watched"):
        governor.observe("edit-1", "success", 1.0, "new")
    with pytest.raises(ParameterError, match="no id of a change"):
        governor.case("../secret")
    governor.revoke("edit-1")
    assert governor.case("edit-1").stage is Stage.REVOKED


def test_every_metric_that_is_watched_has_its_say(governor: Governor) -> None:
    rules = replace(WEAK, watched=("success", "politeness"))
    governor.propose(change(), rules, GovernedPatch(Slot(), patch(0.1), probes))
    governor.admit("edit-1")
    governor.canary("edit-1")
    for metric in ("success", "politeness"):
        assert governor.case("edit-1").step == 0, "a step waits for the slowest metric"
        for _ in range(20):
            governor.observe("edit-1", metric, 1.0, "old")
            governor.observe("edit-1", metric, 1.0, "new")
    assert governor.case("edit-1").step == 1
    with pytest.raises(ParameterError, match="does not watch this"):
        governor.observe("edit-1", "speed", 1.0, "new")
    for _ in range(20):
        governor.observe("edit-1", "success", 1.0, "new")
        if governor.observe("edit-1", "politeness", 0.0, "new").verdict == "fail":
            break
    assert governor.case("edit-1").stage is Stage.ROLLED_BACK
