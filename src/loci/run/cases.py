"""A change under way, and how it is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any  # JSON values

from loci.core.governance import Change, Gate, Policy, Sample, Stage
from loci.errors import FormatError

FORMAT, VERSION = "loci-change", 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A change and how far it has come.

    Attributes:
        step: of the canary, from 0; None outside of it.
        ready: whether the last step is over and it may be released.
        before: digest of what was in effect before.
        point: SHA-256 of what restores it.
        artefact: SHA-256 of what is changed.
        began: when the step began, ISO 8601.
        told: (when, what, why), oldest first.
    """

    change: Change
    policy: Policy
    stage: Stage = Stage.DRAFT
    step: int | None = None
    ready: bool = False
    before: str = ""
    point: str = ""
    artefact: str = ""
    began: str = ""
    samples: tuple[Sample, ...] = ()
    gates: tuple[Gate, ...] = ()
    told: tuple[tuple[str, str, str], ...] = ()

    @property
    def share(self) -> float:
        """The share of requests that see the new version."""
        if self.stage in (Stage.RELEASED, Stage.SUPERSEDED):
            return 1.0
        return 0.0 if self.step is None else self.policy.canary[self.step]

    @property
    def degraded(self) -> bool:
        """Whether it was put back by a step before; the second alarm takes it back whole."""
        return any(what == "degrade" for _, what, _ in self.told)


def written(case: Case) -> dict[str, Any]:
    """Return a case as JSON values."""
    return {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(asdict(case)))}


def read_case(data: Mapping[str, Any]) -> Case:
    """Return the case of `written`.

    Raises:
        FormatError: if it is of another version.
    """
    given = dict(data)
    found = given.pop("format", None), given.pop("version", None)
    if found != (FORMAT, VERSION):
        raise FormatError(
            "this is no change of a version we know", value=found, allowed=f"{FORMAT} {VERSION}"
        )
    change = dict(given.pop("change"))
    for name in ("evidence", "approvals"):
        change[name] = tuple(change[name])
    samples = given.pop("samples")
    return Case(
        change=Change(**change),
        policy=Policy.from_json(given.pop("policy")),
        stage=Stage(given.pop("stage")),
        samples=tuple(
            Sample(**{**one, "new": tuple(one["new"]), "old": tuple(one["old"])}) for one in samples
        ),
        gates=tuple(Gate(**one) for one in given.pop("gates")),
        told=tuple((one[0], one[1], one[2]) for one in given.pop("told")),
        **given,
    )
