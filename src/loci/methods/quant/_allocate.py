"""Sharing a budget between weights: one setting each, the least loss together."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One setting for one weight: which one, its bytes, its loss."""

    index: int
    nbytes: int
    loss: float


def cheapest(choices: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, int] | None:
    """Return {weight: index of its choice} within the budget; None when nothing fits.

    Every weight starts with its smallest choice, and the step that saves most loss per byte is
    taken as long as it fits. Only choices on the lower convex hull of loss over bytes are
    considered, on which this is optimal up to one step.
    """
    hulls = {name: _hull(row) for name, row in choices.items()}
    left = budget_bytes - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        return None
    at = dict.fromkeys(hulls, 0)
    steps: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        hull, place = hulls[name], at[name]
        if place + 1 < len(hull):
            heapq.heappush(steps, (-_gain(hull[place], hull[place + 1]), name))

    for name in hulls:
        offer(name)
    while steps:
        _, name = heapq.heappop(steps)
        step = hulls[name][at[name] + 1].nbytes - hulls[name][at[name]].nbytes
        if step > left:
            continue  # later steps of this weight cost more still; others may fit
        left -= step
        at[name] += 1
        offer(name)
    return {name: hulls[name][place].index for name, place in at.items()}


def _hull(row: Sequence[Choice]) -> list[Choice]:
    """Return the choices worth taking, by bytes, each step saving less per byte than the last."""
    hull: list[Choice] = []
    for choice in sorted(row, key=lambda c: (c.nbytes, c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(before: Choice, after: Choice) -> float:
    return (before.loss - after.loss) / (after.nbytes - before.nbytes)
