"""Paired statistics and alternating timing: what makes two numbers comparable.

Absolute times on a shared machine mean little. Rivals therefore take turns inside one run, and
what is reported is the median of the ratios of neighbouring turns, with a bootstrap interval.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loci.errors import ParameterError

DRAWS = 2000  # bootstrap samples
NESTED_DRAWS = 10_000  # of groups, then of their items


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return {"value", "low", "high"}."""
        return {"value": self.value, "low": self.low, "high": self.high}


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of `values` with a percentile bootstrap interval."""
    sample = _checked(values)
    draws = _resampled(sample, seed).mean(axis=1)
    return Estimate(value=float(sample.mean()), low=_low(draws), high=_high(draws))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of ours minus theirs, item by item, with its bootstrap interval.

    Raises:
        ParameterError: if the two were not measured on the same items.
    """
    if len(ours) != len(theirs):
        raise ParameterError("paired values need the same items", value=(len(ours), len(theirs)))
    return mean([a - b for a, b in zip(ours, theirs, strict=True)], seed)


def nested_difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int = 0
) -> Estimate:
    """Return the mean of ours minus theirs over grouped items, with its bootstrap interval.

    Groups are resampled first (conversations), then the items of each (questions): items of one
    group resemble each other, and resampling items alone would be too sure.

    Raises:
        ParameterError: if the two were not measured on the same items.
    """
    sizes = [len(part) for part in ours]
    if sizes != [len(part) for part in theirs]:
        raise ParameterError("paired values need the same items", value=sizes)
    groups = [
        _checked([a - b for a, b in zip(mine, other, strict=True)])
        for mine, other in zip(ours, theirs, strict=True)
    ]
    if not groups:
        raise ParameterError("there is nothing to compare", value=0)
    dice = np.random.default_rng(seed)
    draws = np.empty(NESTED_DRAWS)
    for at in range(NESTED_DRAWS):
        chosen = dice.integers(0, len(groups), len(groups))
        picked = [groups[g][dice.integers(0, groups[g].size, groups[g].size)] for g in chosen]
        draws[at] = np.concatenate(picked).mean()
    return Estimate(value=float(np.concatenate(groups).mean()), low=_low(draws), high=_high(draws))


def mean_of_groups(groups: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """Return the mean over groups of their means, with its bootstrap interval.

    Each group counts the same whatever its size, and items are resampled inside their group: for
    the mean over tasks that have items of their own.
    """
    if not groups:
        raise ParameterError("there is nothing to average", value=0)
    samples = [_checked(group) for group in groups]
    draws = np.mean(
        [_resampled(part, seed + at).mean(axis=1) for at, part in enumerate(samples)], axis=0
    )
    value = float(np.mean([part.mean() for part in samples]))
    return Estimate(value=value, low=_low(draws), high=_high(draws))


def ratio(over: Sequence[float], under: Sequence[float], seed: int = 0) -> Estimate:
    """Return the median of over / under of neighbouring turns, with its bootstrap interval."""
    if len(over) != len(under):
        raise ParameterError("ratios need equally many turns", value=(len(over), len(under)))
    sample = _checked([a / b for a, b in zip(over, under, strict=True)])
    draws = np.median(_resampled(sample, seed), axis=1)
    return Estimate(value=float(np.median(sample)), low=_low(draws), high=_high(draws))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the exact two-sided McNemar p-value of paired right/wrong answers."""
    from math import comb

    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    trials = only_ours + only_theirs
    if trials == 0:
        return 1.0
    tail = sum(comb(trials, k) for k in range(min(only_ours, only_theirs) + 1)) / 2**trials
    return min(1.0, 2 * tail)


def alternate(
    runs: Mapping[str, Callable[[], float | None]],
    rounds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Run every entry once per round, in turn, and return {name: [seconds]}.

    A run returns its own seconds, or None to be timed from outside. The order turns around from
    round to round, so that nobody is always first; a round 0 to warm up is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    done, total = 0, (rounds + 1) * len(names)
    for index in range(rounds + 1):
        for name in names if index % 2 == 0 else reversed(names):
            gc.collect()
            began = time.perf_counter()
            own = runs[name]()
            seconds = own if own is not None else time.perf_counter() - began
            if index > 0:
                times[name].append(seconds)
            done += 1
            if progress is not None:
                progress(name, done, total)
    return times


def _checked(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ParameterError("there is nothing to average", value=len(values))
    return sample


def _resampled(sample: np.ndarray, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed).integers(0, sample.size, (DRAWS, sample.size))
    return sample[draws]


def _low(draws: np.ndarray) -> float:
    return float(np.quantile(draws, 0.025))


def _high(draws: np.ndarray) -> float:
    return float(np.quantile(draws, 0.975))
