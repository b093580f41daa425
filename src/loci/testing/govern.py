"""Checks that every method that governs changes must pass."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from loci.core.governance import Policy, Sample, Threshold
from loci.errors import ParameterError
from loci.methods.recall.base import Govern

RUNS = 300
POLICY = Policy(
    thresholds=(Threshold(metric="efficacy", op=">=", value=0.8),), canary=(0.5, 1.0), step_n=40
)


def _hits(good: int, n: int) -> Sample:
    return Sample(metric="efficacy", new=(1.0,) * good + (0.0,) * (n - good))


def _play(method: Govern, new_share: float, old_share: float, dice: Random) -> str:
    """Return how one step ends, with as many requests on either version."""
    new: list[float] = []
    old: list[float] = []
    for _ in range(POLICY.step_n + 1):
        old.append(float(dice.random() < old_share))
        new.append(float(dice.random() < new_share))
        ruling = method.watch(POLICY, new, old)
        if ruling.verdict != "insufficient":
            return ruling.verdict
    raise AssertionError("a step that has seen enough is not over")


def check_too_few_are_never_enough(method: Govern) -> None:
    """Fewer probes than the policy asks for are insufficient, however good."""
    for n in (0, 1, POLICY.min_n - 1):
        assert method.admit(POLICY, [_hits(n, n)]).verdict == "insufficient"


def check_better_outcomes_never_do_harm(method: Govern) -> None:
    """All good passes, all bad fails, and in between one change of verdict is all there is."""
    verdicts = [method.admit(POLICY, [_hits(good, 60)]).verdict for good in range(61)]
    assert verdicts[0] == "fail" and verdicts[-1] == "pass"
    assert verdicts == sorted(verdicts), "fail comes before pass"


def check_the_mean_alone_does_not_pass(method: Govern) -> None:
    """A mean that is exactly the threshold leaves every doubt."""
    assert method.admit(POLICY, [_hits(48, 60)]).verdict != "pass"


def check_what_was_not_measured_is_an_error(method: Govern) -> None:
    """A threshold without a measurement is refused, and named."""
    try:
        method.admit(POLICY, [Sample(metric="other", new=(1.0,) * 60)])
    except ParameterError as problem:
        assert "efficacy" in str(problem)
    else:
        raise AssertionError("a metric that nobody measured was passed over")


def check_chance_alone_seldom_alarms(method: Govern) -> None:
    """Both versions alike: no more alarms than this step's part of alpha, with room for luck."""
    dice = Random(0)
    alarms = sum(_play(method, 0.7, 0.7, dice) == "fail" for _ in range(RUNS))
    share = POLICY.alpha / len(POLICY.canary)
    assert alarms <= RUNS * share + 3 * (RUNS * share) ** 0.5


def check_harm_is_seen(method: Govern) -> None:
    """A version that is right in one of ten where the old one is in nine is caught in its step."""
    dice = Random(1)
    assert all(_play(method, 0.1, 0.9, dice) == "fail" for _ in range(30))


def check_the_old_version_is_needed(method: Govern) -> None:
    """Without an outcome of the old version nothing is known."""
    assert method.watch(POLICY, [1.0] * POLICY.step_n, []).verdict == "insufficient"


def check_requests_stay_with_their_version(method: Govern) -> None:
    """A larger share adds requests and takes none away; another change draws others."""
    keys = [f"request{number}" for number in range(1000)]
    before: set[str] = set()
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        seen = {key for key in keys if method.arm("c1", key, share) == "new"}
        assert before <= seen and abs(len(seen) / len(keys) - share) < 0.06
        before = seen
    half = [{key for key in keys if method.arm(c, key, 0.5) == "new"} for c in ("c1", "c2")]
    assert half[0] != half[1] and before == set(keys)


def check_the_same_question_has_the_same_answer(method: Govern) -> None:
    """Nothing is drawn anew: a ruling can be checked by asking again."""
    sample = _hits(52, 60)
    assert method.admit(POLICY, [sample]) == method.admit(POLICY, [sample])


CONFORMANCE_GOVERN: tuple[Callable[[Govern], None], ...] = (
    check_too_few_are_never_enough,
    check_better_outcomes_never_do_harm,
    check_the_mean_alone_does_not_pass,
    check_what_was_not_measured_is_an_error,
    check_chance_alone_seldom_alarms,
    check_harm_is_seen,
    check_the_old_version_is_needed,
    check_requests_stay_with_their_version,
    check_the_same_question_has_the_same_answer,
)
