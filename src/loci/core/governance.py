"""A change to what is remembered, the bar it has to clear, and the states it goes through.

"Memory in Large Language Models: Mechanisms, Evaluation and Evolution", 2025, arXiv:2509.18868,
asks for a change to be registered with its thresholds, admitted, tried on a few, watched, rolled
back if it harms, and certified. The values here are what a method of the role `Govern` decides
over; `run.govern` carries it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal  # JSON values

from loci.errors import ParameterError

Substance = Literal["text", "kv", "adapter", "edit", "index"]
Arm = Literal["old", "new"]
Verdict = Literal["pass", "fail", "insufficient"]
OnFail = Literal["rollback", "degrade", "quarantine"]
SUBSTANCES: tuple[Substance, ...] = ("text", "kv", "adapter", "edit", "index")


class Stage(StrEnum):
    """Where a change stands."""

    DRAFT = "draft"
    ADMITTED = "admitted"
    CANARY = "canary"
    RELEASED = "released"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"


NEXT: Mapping[Stage, frozenset[Stage]] = {
    Stage.DRAFT: frozenset({Stage.ADMITTED, Stage.REVOKED}),
    Stage.ADMITTED: frozenset({Stage.CANARY, Stage.REVOKED}),
    Stage.CANARY: frozenset({Stage.CANARY, Stage.RELEASED, Stage.ROLLED_BACK, Stage.REVOKED}),
    Stage.RELEASED: frozenset({Stage.ROLLED_BACK, Stage.SUPERSEDED, Stage.REVOKED}),
    Stage.ROLLED_BACK: frozenset(),
    Stage.SUPERSEDED: frozenset(),
    Stage.REVOKED: frozenset(),
}
"""What may follow a state; from a canary step a change goes on to the next or back to the last."""


def moved(now: Stage, then: Stage, id: str) -> Stage:
    """Return the state a change goes to.

    Raises:
        ParameterError: if it cannot go there from where it is.
    """
    if then not in NEXT[now]:
        allowed = ", ".join(sorted(NEXT[now])) or "nothing; this is its end"
        raise ParameterError(f"change {id} is {now} and cannot become {then}", allowed=allowed)
    return then


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be changed, by whom and on what grounds.

    Attributes:
        id: an identifier, without spaces.
        subject: id of what it is about.
        substance: what kind of memory it changes.
        evidence: ids of what speaks for it; at least one.
        valid_from, valid_to: ISO 8601; when what it says holds.
        approvals: who agreed to it.
    """

    id: str
    subject: str
    substance: Substance
    evidence: tuple[str, ...]
    owner: str
    valid_from: str | None = None
    valid_to: str | None = None
    approvals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("id", self.id), ("subject", self.subject), ("owner", self.owner)):
            if not value or any(letter.isspace() for letter in value):
                raise ParameterError(f"the {name} of a change has no spaces", value=value)
        if not self.evidence:
            raise ParameterError(
                "a change needs evidence", value=self.evidence, allowed="ids of what speaks for it"
            )
        if self.substance not in SUBSTANCES:
            raise ParameterError(
                "unknown kind of memory", value=self.substance, allowed=", ".join(SUBSTANCES)
            )


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a metric has to reach, by its one-sided bound and not by its mean.

    Attributes:
        op: ">=" asks the lower bound to be at least `value - margin`; "<=" the upper bound to be
            at most `value + margin`.
        paired: bounds the difference new - old, probe by probe.
        part: "target" for what the change is for, "regression" for what it must leave alone.
    """

    metric: str
    op: Literal[">=", "<="]
    value: float
    margin: float = 0.0
    paired: bool = False
    part: Literal["target", "regression"] = "target"

    @property
    def limit(self) -> float:
        """What the bound is held against."""
        return self.value - self.margin if self.op == ">=" else self.value + self.margin


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The bar, registered before anything is measured.

    Attributes:
        canary: shares of requests that see the new version, step by step; the last is 1.
        step_n: observations on the new version that a step needs.
        watched: metrics that the canary is watched by; higher is better.
        max_step_seconds: a step that has not got them by then has failed.
        approvals: how many people have to agree.
    """

    thresholds: tuple[Threshold, ...]
    canary: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)
    min_n: int = 30
    step_n: int = 50
    alpha: float = 0.05
    watched: tuple[str, ...] = ("success",)
    max_step_seconds: float = 86_400.0
    on_fail: OnFail = "rollback"
    approvals: int = 0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.canary), self.canary, strict=False))
        checks: tuple[tuple[str, object, bool, str], ...] = (
            ("thresholds", len(self.thresholds), bool(self.thresholds), "at least one"),
            ("watched", self.watched, bool(self.watched), "at least one metric"),
            (
                "canary",
                self.canary,
                rising and bool(self.canary) and self.canary[-1] == 1.0,
                "rising shares, the last 1",
            ),
            ("min_n", self.min_n, self.min_n >= 2, ">= 2"),
            ("step_n", self.step_n, self.step_n >= 5, ">= 5"),
            ("alpha", self.alpha, 0 < self.alpha < 0.5, "above 0, below 0.5"),
            ("max_step_seconds", self.max_step_seconds, self.max_step_seconds > 0, "> 0"),
            ("approvals", self.approvals, self.approvals >= 0, ">= 0"),
            (
                "on_fail",
                self.on_fail,
                self.on_fail in ("rollback", "degrade", "quarantine"),
                "rollback, degrade, quarantine",
            ),
        )
        for name, value, fine, allowed in checks:
            if not fine:
                raise ParameterError(f"policy.{name} is not usable", value=value, allowed=allowed)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """Return the policy of `to_json`."""
        given = dict(data)
        thresholds = tuple(Threshold(**one) for one in given.pop("thresholds"))
        given["canary"], given["watched"] = tuple(given["canary"]), tuple(given["watched"])
        return cls(thresholds=thresholds, **given)

    @property
    def hash(self) -> str:
        """Of every number in it; thresholds that were chosen later have another one."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Outcomes of the same probes on both versions, in the same order.

    Attributes:
        seed: what the probes were drawn from; the same seed gives the same outcomes.
    """

    metric: str
    new: tuple[float, ...]
    old: tuple[float, ...] = ()
    seed: int = 0

    @property
    def digest(self) -> str:
        """Of all outcomes."""
        text = json.dumps([self.metric, self.seed, self.new, self.old])
        return blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One threshold, measured."""

    metric: str
    n: int
    mean: float
    bound: float
    limit: float
    op: str
    verdict: Verdict
    part: str = "target"
    paired: bool = False


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What is to be done with a change, and why.

    Attributes:
        gates: what was measured for it, if anything was.
    """

    verdict: Verdict
    why: str
    gates: tuple[Gate, ...] = field(default=())
