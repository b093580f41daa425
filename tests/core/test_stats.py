"""Bounds and boundaries against tables, paper and pencil, and chance itself."""

from __future__ import annotations

from math import comb, sqrt
from random import Random

import pytest

from loci.core.stats import (
    boundaries,
    mean_bound,
    p_limits,
    share_bound,
    spent,
    worse_p,
)
from loci.errors import ParameterError


def test_all_of_n_bounds_the_share_from_below_by_a_root() -> None:
    # p^n = alpha, so p = alpha^(1/n): 0.8609 for 20 of 20.
    assert share_bound(20, 20) == pytest.approx(0.05 ** (1 / 20), abs=1e-9)
    assert share_bound(0, 20) == 0.0
    assert share_bound(0, 20, upper=True) == pytest.approx(1 - 0.05 ** (1 / 20), abs=1e-9)


def test_the_exact_bound_is_where_the_tail_is_alpha() -> None:
    low = share_bound(45, 50, 0.05)
    tail = sum(comb(50, k) * low**k * (1 - low) ** (50 - k) for k in range(45, 51))
    assert tail == pytest.approx(0.05, abs=1e-6)
    assert low < 0.9 < share_bound(45, 50, upper=True)


def test_the_bound_of_a_mean_holds_as_often_as_it_says() -> None:
    dice = Random(0)
    held = 0
    for seed in range(80):
        sample = [dice.gauss(0.3, 1.0) for _ in range(40)]
        held += mean_bound(sample, 0.05, seed=seed) <= 0.3
    assert 70 <= held <= 79, "about 95 %"
    assert mean_bound(sample) < mean_bound(sample, upper=True)


def test_equal_outcomes_bound_nothing_to_the_digit() -> None:
    # Ten differences of exactly 0 do not show that losses never happen.
    assert mean_bound([0.0] * 10) == pytest.approx(-(1 - 0.05**0.1))
    assert mean_bound([0.0] * 10, upper=True) == pytest.approx(1 - 0.05**0.1)
    assert mean_bound([0.0] * 1000) > -0.003


def test_fisher_by_hand() -> None:
    # 0 of 3 against 3 of 3: one table of comb(6, 3) = 20.
    assert worse_p([0.0] * 3, [1.0] * 3) == pytest.approx(1 / 20)
    assert worse_p([1.0] * 3, [1.0] * 3) == pytest.approx(1.0)
    assert worse_p([], [1.0]) == 1.0


def test_other_outcomes_are_compared_by_their_means() -> None:
    dice = Random(1)
    old = [dice.gauss(1.0, 0.2) for _ in range(100)]
    assert worse_p([value - 0.2 for value in old], old) < 1e-6
    assert worse_p(old, old) == pytest.approx(0.5)
    assert worse_p([0.1] * 5, old) == 1.0, "five tell nothing"
    assert worse_p([0.5] * 30, [0.7] * 30) == 0.0


def test_the_boundaries_are_those_of_the_tables() -> None:
    # Five equal looks, alpha 0.025 one-sided, O'Brien-Fleming spending (Lan and DeMets).
    found = boundaries((0.2, 0.4, 0.6, 0.8, 1.0), 0.025)
    assert found == pytest.approx((4.8769, 3.3569, 2.6803, 2.2898, 2.0310), abs=0.01)
    assert boundaries((1.0,), 0.05) == pytest.approx((1.6449,), abs=1e-3)


def test_spending_ends_at_alpha() -> None:
    assert spent(0.05, 1.0) == pytest.approx(0.05)
    assert spent(0.05, 0.0) == 0.0 < spent(0.05, 0.2) < spent(0.05, 0.5) < 0.02


def test_a_walk_crosses_by_chance_as_often_as_alpha() -> None:
    looks = (0.25, 0.5, 0.75, 1.0)
    limits, dice, crossed = boundaries(looks, 0.05), Random(2), 0
    for _ in range(4000):
        total, before = 0.0, 0.0
        for share, limit in zip(looks, limits, strict=True):
            total += dice.gauss(0, sqrt(share - before))
            before = share
            if total / sqrt(share) > limit:
                crossed += 1
                break
    assert 0.04 < crossed / 4000 < 0.06
    assert p_limits(looks, 0.05)[0] < p_limits(looks, 0.05)[-1] < 0.05


@pytest.mark.parametrize(
    "act",
    [
        lambda: share_bound(3, 2),
        lambda: share_bound(0, 0),
        lambda: mean_bound([]),
        lambda: boundaries(()),
        lambda: boundaries((0.5, 0.5)),
        lambda: boundaries((0.5, 1.5)),
    ],
)
def test_what_makes_no_sense_is_refused(act: object) -> None:
    with pytest.raises(ParameterError):
        act()  # type: ignore[operator]
