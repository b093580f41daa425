"""Weights of a recall method fitted on conversations whose questions cite their turns.

A plain coordinate search over the method's own float parameters: each in turn is tried at a few
multiples of its value, the best is kept if it reaches a thousandth more, and the rounds go on until
nothing improves. It draws nothing, so the same cases give the same weights. Scores are kept per
case, so that fitting without each conversation in turn costs little more than fitting once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from loci.bench.metrics import any_at
from loci.methods.recall.base import Query, Recall, StoreView

DEPTHS = (5, 10, 20)
STEPS = (0.0, 0.5, 0.75, 1.33, 2.0)
ROUNDS = 3
GAIN = 0.001  # less is chance, and not worth another value


@dataclass(frozen=True, kw_only=True)
class Case:
    """One conversation as a method sees it, and what its questions should find.

    Attributes:
        asked: (text of the question, ids of the turns that answer it).
    """

    id: str
    view: StoreView
    asked: tuple[tuple[str, frozenset[str]], ...]


def reach(method: Recall, case: Case) -> float:
    """Return how often evidence is among the first 5, 10 and 20 hits, averaged over the three.

    A hit counts for the turn it rests on first, as everywhere in the benchmarks.
    """
    total = 0.0
    for text, evidence in case.asked:
        hits = method.find(Query(text=text, limit=max(DEPTHS)), case.view)
        shown = list(dict.fromkeys(hit.sources[0].id for hit in hits if hit.sources))
        total += sum(any_at(shown, evidence, k) for k in DEPTHS) / len(DEPTHS)
    return total / max(len(case.asked), 1)


def weights_of(method: Recall) -> list[str]:
    """Return the names of the method's float parameters: what can be fitted."""
    return [name for name, (kind, _) in method.declared().items() if kind is float]


class Fitter:
    """Fits one method to cases, and remembers the score of every weight tried on every case."""

    def __init__(
        self,
        start: Recall,
        cases: Sequence[Case],
        *,
        fixed: Collection[str] = ("words",),
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.start, self.cases = start, tuple(cases)
        self.names = [name for name in weights_of(start) if name not in fixed]
        self._scores: dict[tuple[Recall, str], float] = {}
        self._progress = progress

    def fit(self, without: str | None = None) -> Recall:
        """Return the method with the weights that reach most, leaving out one case by its id.

        Parameters named in `fixed` stay as they are: only the proportions of weights matter.
        """
        cases = [case for case in self.cases if case.id != without]
        best, value = self.start, self.mean(self.start, cases)
        for _ in range(ROUNDS):
            before = value
            for name in self.names:
                reached = {m: self.mean(m, cases) for m in self._near(best, name)}
                tried = max(reached, key=reached.__getitem__, default=best)
                if reached.get(tried, 0.0) >= value + GAIN:
                    best, value = tried, reached[tried]
            if value == before:
                break
        return best

    def _near(self, method: Recall, name: str) -> list[Recall]:
        """Return the method with this parameter at a few other values inside its bounds."""
        param = method.declared()[name][1]
        now = float(getattr(method, name)) or 0.25
        values = dict.fromkeys(round(now * step, 3) for step in (*STEPS, 1.0))
        return [
            replace(method, **{name: value})
            for value in values
            if value != getattr(method, name) and param.accepts(value)
        ]

    @property
    def tried(self) -> int:
        """How many settings were tried."""
        return len({method for method, _ in self._scores})

    def mean(self, method: Recall, cases: Sequence[Case] | None = None) -> float:
        """Return how far a method reaches over cases, by default all; every case is tried once."""
        total = questions = 0.0
        for case in self.cases if cases is None else cases:
            key = (method, case.id)
            if key not in self._scores:
                self._scores[key] = reach(method, case)
                if self._progress is not None:
                    self._progress("weights", len(self._scores), len(self._scores))
            total += self._scores[key] * len(case.asked)
            questions += len(case.asked)
        return total / max(questions, 1.0)
