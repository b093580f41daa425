"""DMM-Gov: a change of memory is registered, gated, tried on a few, watched and certified.

"Memory in Large Language Models: Mechanisms, Evaluation and Evolution", 2025, arXiv:2509.18868
(sections 4.5, 5 and 6): thresholds are registered before the change, an offline gate decides on
admission, a canary sees it first, and it is rolled back by itself when it harms.

    gate:    one-sided bound of a metric (exact binomial for outcomes of 0 and 1, else paired
             bootstrap) against its threshold; fewer than min_n probes are never enough
    canary:  hash(change, request key) < share, so a request that saw the new version stays with it
    watch:   at `looks` equal parts of a step, p of "new is worse than old" (Fisher's exact test, or
             Welch) against O'Brien-Fleming spending of alpha, shared out over steps and metrics

Reconstruction: the survey gives the protocol and example thresholds, no statistics; bounds,
boundaries, the hash and the sharing of alpha are ours. The engine that carries it out is
`run.govern`; `run.certificate` writes the certificate.
Not for: judging a metric nobody probes; canaries of a few requests, which no test can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Annotated

from loci.core.governance import Gate, Policy, Ruling, Sample, Substance, Threshold, Verdict
from loci.core.method import About, Frees, Kind, Param
from loci.core.stats import mean_bound, p_limits, share_bound, worse_p
from loci.errors import ParameterError
from loci.methods.recall.base import Govern

EDIT_DEFAULTS = (
    Threshold(metric="efficacy", op=">=", value=0.90),
    Threshold(metric="locality", op=">=", value=0.95, part="regression"),
    Threshold(metric="utility", op=">=", value=0.0, margin=0.02, paired=True, part="regression"),
)
TEXT_DEFAULTS = (
    Threshold(metric="cited", op=">=", value=0.85),
    Threshold(metric="unsupported", op="<=", value=0.05),
    Threshold(metric="recall@5", op=">=", value=0.85),
    Threshold(metric="fresh", op=">=", value=0.80),
    Threshold(metric="conflict@5", op=">=", value=0.80, part="regression"),
)
"""Example thresholds of the survey, as registered defaults; they are to be calibrated."""


@dataclass(frozen=True, kw_only=True)
class DmmGov(Govern):
    """Gates by bounds before a change is tried, and sequential tests while it is."""

    about = About(
        name="dmm_gov",
        kind=Kind.RECALL,
        paper="arXiv:2509.18868",
        idea="registered thresholds, a canary that is watched, rollback, a certificate",
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="bounds, sequential tests, the canary's hash and the certificate's form",
    )

    looks: Annotated[int, Param(help="times a canary step is looked at", ge=1, le=20)] = 5
    seed: Annotated[int, Param(help="of the bootstrap", ge=0)] = 0

    def choose(
        self, facts: int, *, changes_often: bool = False, conflicts: bool = False
    ) -> Substance:
        """Return where a change belongs (steps S1 and S2).

        What changes often or is disputed stays text outside the model, which is taken back at
        once; a few clear facts are an edit; many stable ones an adapter.
        """
        if facts < 1:
            raise ParameterError("a change is of at least one fact", value=facts)
        if changes_often or conflicts:
            return "text"
        return "edit" if facts <= 100 else "adapter"

    def admit(self, policy: Policy, samples: Sequence[Sample]) -> Ruling:
        """Return whether the bound of every threshold's metric is met."""
        known = {sample.metric: sample for sample in samples}
        missing = [one.metric for one in policy.thresholds if one.metric not in known]
        if missing:
            raise ParameterError(
                "a threshold's metric was not measured",
                value=missing,
                allowed=", ".join(known) or "nothing was measured",
            )
        gates = tuple(self._gate(one, known[one.metric], policy) for one in policy.thresholds)
        for verdict in ("fail", "insufficient"):
            bad = [gate for gate in gates if gate.verdict == verdict]
            if bad:
                why = "; ".join(_told(gate, policy) for gate in bad)
                return Ruling(verdict=bad[0].verdict, why=why, gates=gates)
        return Ruling(verdict="pass", why="every bound meets its threshold", gates=gates)

    def watch(self, policy: Policy, new: Sequence[float], old: Sequence[float]) -> Ruling:
        """Return "fail" where a look's test crosses its boundary, "pass" after the last look."""
        alpha = policy.alpha / (len(policy.canary) * len(policy.watched))
        ends = sorted({ceil((k + 1) * policy.step_n / self.looks) for k in range(self.looks)})
        if len(new) in ends:
            limits = p_limits(tuple(end / policy.step_n for end in ends), alpha)
            p, limit = worse_p(new, old), limits[ends.index(len(new))]
            if p < limit:
                why = (
                    f"the new version is worse: {fmean(new):.3f} of {len(new)} against "
                    f"{fmean(old):.3f} of {len(old)}, p {p:.1e} < {limit:.1e}"
                )
                return Ruling(verdict="fail", why=why)
        if len(new) < policy.step_n or not old:
            why = f"{len(new)} of {policy.step_n} observations, {len(old)} of the old version"
            return Ruling(verdict="insufficient", why=why)
        return Ruling(verdict="pass", why=f"{len(new)} observations, and no look alarmed")

    def _gate(self, threshold: Threshold, sample: Sample, policy: Policy) -> Gate:
        if threshold.paired and len(sample.old) != len(sample.new):
            raise ParameterError(
                f"{threshold.metric} is paired and needs the same probes on both versions",
                value=(len(sample.new), len(sample.old)),
            )
        values = list(sample.new)
        if threshold.paired:
            values = [new - old for new, old in zip(sample.new, sample.old, strict=True)]
        upper, n = threshold.op == "<=", len(values)
        bound, mean = float("nan"), fmean(values) if values else float("nan")
        verdict: Verdict = "insufficient"
        if n >= policy.min_n:
            if not threshold.paired and set(values) <= {0.0, 1.0}:
                bound = share_bound(round(sum(values)), n, policy.alpha, upper=upper)
            else:
                bound = mean_bound(values, policy.alpha, upper=upper, seed=self.seed)
            met = bound <= threshold.limit if upper else bound >= threshold.limit
            verdict = "pass" if met else "fail"
        return Gate(
            metric=threshold.metric,
            n=n,
            mean=mean,
            bound=bound,
            limit=threshold.limit,
            op=threshold.op,
            verdict=verdict,
            part=threshold.part,
            paired=threshold.paired,
        )


def _told(gate: Gate, policy: Policy) -> str:
    if gate.verdict == "insufficient":
        return f"{gate.metric}: {gate.n} probes, at least {policy.min_n} are needed"
    which = "upper" if gate.op == "<=" else "lower"
    return (
        f"{gate.metric}: {gate.mean:.3f} of {gate.n} probes; the {which} bound {gate.bound:.3f} "
        f"is not {gate.op} {gate.limit:g}"
    )
