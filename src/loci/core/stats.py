"""One-sided bounds and tests that may be looked at more than once; the standard library alone.

What a gate or a monitor decides with. Two-sided intervals of benchmarks are in `bench.stats`.

Sources: C. Clopper, E. Pearson, 1934 (exact binomial bound); R. A. Fisher, 1935 (exact test of two
shares); K. Lan, D. DeMets, "Discrete sequential boundaries for clinical trials", 1983, with the
spending function that P. O'Brien and T. Fleming's boundaries (1979) lead to:

    alpha(t) = 2 - 2 Phi( z(1 - alpha/2) / sqrt(t) )          t = share of the observations so far

`boundaries` turns what may be spent between two looks into a z value for each look, by integrating
the walk of the test statistic that has not crossed yet (P. Armitage et al., 1969).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, lgamma, log, pi, pow, sqrt
from random import Random
from statistics import NormalDist, fmean, stdev

from loci.errors import ParameterError

DRAWS = 2000
_NORMAL = NormalDist()
_STEP = 0.04  # of the grid of the walk, in standard deviations of one look's increment


def share_bound(hits: int, n: int, alpha: float = 0.05, *, upper: bool = False) -> float:
    """Return the exact one-sided bound of a share: it is wrong with at most `alpha`.

    The lower bound is the share below which `hits` or more of `n` would be that unlikely.
    """
    if not 0 <= hits <= n or n == 0:
        raise ParameterError("a share needs 0 <= hits <= n and n > 0", value=(hits, n))
    if upper:
        return 1.0 - share_bound(n - hits, n, alpha)
    if hits == 0:
        return 0.0
    low, high = 0.0, hits / n
    for _ in range(60):  # halving reaches the last bit of a double
        middle = (low + high) / 2
        if _at_least(hits, n, middle) < alpha:
            low = middle
        else:
            high = middle
    return low


def mean_bound(
    values: Sequence[float],
    alpha: float = 0.05,
    *,
    upper: bool = False,
    span: float = 1.0,
    seed: int = 0,
) -> float:
    """Return the one-sided percentile bootstrap bound of a mean, for paired differences too.

    A sample whose values are all the same has nothing to resample; then the exact rule of n equal
    outcomes is used: with probability 1 - alpha a value as far off as `span` is rarer than
    1 - alpha^(1/n).

    Args:
        span: how far apart two values can be.
    """
    if not values:
        raise ParameterError("there is nothing to average", value=0)
    sample, sign = [float(value) for value in values], 1.0 if upper else -1.0
    if min(sample) == max(sample):
        return sample[0] + sign * span * (1.0 - pow(alpha, 1.0 / len(sample)))
    dice = Random(seed)
    means = sorted(fmean(dice.choices(sample, k=len(sample))) for _ in range(DRAWS))
    place = int(alpha * DRAWS)
    return means[DRAWS - 1 - place] if upper else means[place]


def worse_p(new: Sequence[float], old: Sequence[float]) -> float:
    """Return how likely outcomes as much lower as `new`'s would be if both were alike.

    Outcomes of 0 and 1 alone are compared by Fisher's exact test, others by Welch's statistic
    taken as normal (30 of each at least; fewer tell nothing, 1).
    """
    if not new or not old:
        return 1.0
    if all(value in (0.0, 1.0) for value in (*new, *old)):
        return _fisher(round(sum(new)), len(new), round(sum(old)), len(old))
    if min(len(new), len(old)) < 30:
        return 1.0
    error = sqrt(stdev(new) ** 2 / len(new) + stdev(old) ** 2 / len(old))
    gap = fmean(old) - fmean(new)
    if error == 0:
        return 0.0 if gap > 0 else 1.0
    return 1.0 - _NORMAL.cdf(gap / error)


def spent(alpha: float, share: float) -> float:
    """Return how much of a one-sided alpha may be used after a share of the observations."""
    if share <= 0:
        return 0.0
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    return 2.0 * (1.0 - _NORMAL.cdf(z / sqrt(min(share, 1.0))))


@lru_cache(maxsize=64)
def boundaries(shares: tuple[float, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the z value for each look; crossing one anywhere has probability alpha by chance.

    Args:
        shares: of all observations planned, at each look; rising, the last at most 1.
    """
    if not shares or any(b <= a for a, b in zip((0.0, *shares), shares, strict=False)):
        raise ParameterError("looks come one after the other", value=shares, allowed="rising")
    if shares[-1] > 1:
        raise ParameterError("the last look is at all observations", value=shares[-1])
    found: list[float] = []
    grid: list[float] = [0.0]  # where the walk (a sum with variance t) may be
    mass: list[float] = [1.0]  # and with what probability, not having crossed
    before_t = before = 0.0
    for share in shares:
        spend = spent(alpha, share) - before
        scale = sqrt(share - before_t)
        edge = _edge(grid, mass, scale, spend)
        found.append(edge / sqrt(share))
        grid, mass = _walked(grid, mass, scale, edge, reach=6.0 * sqrt(share))
        before_t, before = share, before + spend
    return tuple(found)


def p_limits(shares: tuple[float, ...], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the p value that each look has to be below, for tests that give one."""
    return tuple(1.0 - _NORMAL.cdf(z) for z in boundaries(shares, alpha))


# -- private ----------------------------------------------------------------------------------


def _chosen(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _at_least(hits: int, n: int, share: float) -> float:
    """Return the probability of `hits` or more of n."""
    if share <= 0.0:
        return 0.0
    if share >= 1.0:
        return 1.0
    a, b = log(share), log(1.0 - share)
    return sum(exp(_chosen(n, k) + k * a + (n - k) * b) for k in range(hits, n + 1))


def _fisher(new: int, n: int, old: int, m: int) -> float:
    """Return the probability of `new` or fewer of n, given how many there are in n + m."""
    good, every = new + old, n + m
    whole = _chosen(every, n)
    least = max(0, n - (every - good))
    chances = (
        exp(_chosen(good, k) + _chosen(every - good, n - k) - whole) for k in range(least, new + 1)
    )
    return min(1.0, sum(chances))


def _tail(x: float) -> float:
    return 1.0 - _NORMAL.cdf(x) if x < 5 else _NORMAL.cdf(-x)


def _edge(grid: list[float], mass: list[float], scale: float, spend: float) -> float:
    """Return what a step of the walk exceeds with probability `spend`."""
    low, high = -1.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        over = sum(
            m * _tail((middle - at) / scale) for at, m in zip(grid, mass, strict=True) if m > 0
        )
        if over > spend:
            low = middle
        else:
            high = middle
    return high


def _walked(
    grid: list[float], mass: list[float], scale: float, edge: float, *, reach: float
) -> tuple[list[float], list[float]]:
    """Return the grid and the masses after one more step that stayed below the edge."""
    step = _STEP * scale
    top = min(edge, reach)
    count = max(2, int((top + reach) / step))
    step = (top + reach) / count
    places = [-reach + (k + 0.5) * step for k in range(count)]
    norm = step / (scale * sqrt(2 * pi))
    near = 6.0 * scale
    landed = []
    for place in places:
        total = 0.0
        for at, m in zip(grid, mass, strict=True):
            off = place - at
            if -near < off < near:
                total += m * exp(-0.5 * (off / scale) ** 2)
        landed.append(total * norm)
    return places, landed
