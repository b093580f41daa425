"""DMM-Gov against paper and pencil: gates, arms, looks, and what chance does to it."""

from __future__ import annotations

import pytest

from loci.core.governance import Change, Policy, Sample, Stage, Threshold, moved
from loci.errors import ParameterError
from loci.methods.recall.base import Govern
from loci.methods.recall.dmm_gov import EDIT_DEFAULTS, TEXT_DEFAULTS, DmmGov

GOV = DmmGov()
EFFICACY = Threshold(metric="efficacy", op=">=", value=0.9)


def policy(*thresholds: Threshold, **more: object) -> Policy:
    return Policy(thresholds=thresholds or (EFFICACY,), **more)  # type: ignore[arg-type]


def hits(good: int, n: int, metric: str = "efficacy") -> Sample:
    return Sample(metric=metric, new=(1.0,) * good + (0.0,) * (n - good))


def test_it_is_a_method_that_governs() -> None:
    assert isinstance(GOV, Govern)
    assert str(DmmGov(looks=3)) == "dmm_gov(looks=3)"
    assert Policy(thresholds=EDIT_DEFAULTS).hash != Policy(thresholds=TEXT_DEFAULTS).hash


def test_a_gate_asks_the_bound_and_not_the_mean() -> None:
    # 28 of 28 bound the share at 0.05^(1/28) = 0.8985; 29 of 29 at 0.9019.
    few = policy(min_n=20)
    assert GOV.admit(few, [hits(28, 28)]).verdict == "fail"
    passed = GOV.admit(few, [hits(29, 29)])
    assert passed.verdict == "pass" and passed.gates[0].bound == pytest.approx(0.9019, abs=1e-4)
    failed = GOV.admit(few, [hits(46, 50)])  # mean 0.92, and still
    assert failed.verdict == "fail" and "is not >= 0.9" in failed.why


def test_too_few_probes_are_insufficient_however_good() -> None:
    ruling = GOV.admit(policy(min_n=30), [hits(29, 29)])
    assert ruling.verdict == "insufficient" and "at least 30" in ruling.why
    assert GOV.admit(policy(min_n=30), [Sample(metric="efficacy", new=())]).verdict != "pass"


def test_a_failed_gate_weighs_more_than_a_missing_probe() -> None:
    other = Threshold(metric="locality", op=">=", value=0.9)
    ruling = GOV.admit(policy(EFFICACY, other), [hits(5, 5), hits(10, 40, "locality")])
    assert ruling.verdict == "fail"
    assert [gate.verdict for gate in ruling.gates] == ["insufficient", "fail"]


def test_a_paired_gate_bounds_what_was_lost() -> None:
    drop = Threshold(metric="utility", op=">=", value=0.0, margin=0.05, paired=True)
    old = (1.0,) * 100
    one_lost = Sample(metric="utility", new=(0.0, *old[1:]), old=old)
    many_lost = Sample(metric="utility", new=(0.0,) * 10 + old[10:], old=old)
    assert GOV.admit(policy(drop), [one_lost]).verdict == "pass"
    assert GOV.admit(policy(drop), [many_lost]).verdict == "fail"
    with pytest.raises(ParameterError, match="same probes on both"):
        GOV.admit(policy(drop), [Sample(metric="utility", new=old, old=old[1:])])


def test_an_upper_threshold_bounds_from_above() -> None:
    rate = Threshold(metric="unsupported", op="<=", value=0.05)
    assert GOV.admit(policy(rate), [hits(0, 58, "unsupported")]).verdict == "fail"
    assert GOV.admit(policy(rate), [hits(0, 59, "unsupported")]).verdict == "pass"  # 0.95^59 < .05


def test_choosing_follows_the_first_two_steps() -> None:
    assert GOV.choose(1, changes_often=True) == "text" == GOV.choose(500, conflicts=True)
    assert GOV.choose(3) == "edit" and GOV.choose(5000) == "adapter"
    with pytest.raises(ParameterError):
        GOV.choose(0)


def test_a_change_goes_from_state_to_state() -> None:
    assert moved(Stage.DRAFT, Stage.ADMITTED, "c1") is Stage.ADMITTED
    for now, then in (
        (Stage.DRAFT, Stage.RELEASED),
        (Stage.ADMITTED, Stage.RELEASED),
        (Stage.ROLLED_BACK, Stage.CANARY),
        (Stage.SUPERSEDED, Stage.RELEASED),
    ):
        with pytest.raises(ParameterError, match="cannot become"):
            moved(now, then, "c1")


def test_policies_and_changes_refuse_what_makes_no_sense() -> None:
    for bad in (
        {"canary": (0.5, 0.1, 1.0)},
        {"canary": (0.1, 0.5)},
        {"canary": ()},
        {"min_n": 1},
        {"step_n": 0},
        {"alpha": 0.0},
        {"max_step_seconds": 0.0},
        {"on_fail": "hope"},
        {"watched": ()},
    ):
        with pytest.raises(ParameterError, match=r"policy\."):
            policy(**bad)
    with pytest.raises(ParameterError, match="needs evidence"):
        Change(id="c1", subject="i7", substance="text", evidence=(), owner="ada")
    with pytest.raises(ParameterError, match="no spaces"):
        Change(id="c1", subject="all nuts", substance="text", evidence=("t1",), owner="ada")


def test_a_policy_comes_back_from_json_with_its_hash() -> None:
    rules = policy(*EDIT_DEFAULTS, canary=(0.1, 1.0), on_fail="quarantine")
    again = Policy.from_json(rules.to_json())
    assert again == rules and again.hash == rules.hash
    assert policy(alpha=0.01).hash != policy().hash
