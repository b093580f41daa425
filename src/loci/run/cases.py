"""A change under way, and the book that all changes are written down in."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # JSON values

from loci.core.governance import Arm, Change, Gate, Policy, Sample, Stage
from loci.errors import FormatError, MethodError, NotFoundError, ParameterError
from loci.run.kept import append_line, put_file, shred

FORMAT, VERSION = "loci-change", 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A change and how far it has come.

    Attributes:
        step: of the canary, from 0; None outside of it.
        ready: whether the last step is over and it may be released.
        before, after: digests of what was in effect before it, and is with it.
        point: SHA-256 of what restores it.
        artefact: SHA-256 of what is changed; of texts with a key, so that nobody guesses them.
        began: when the step began, ISO 8601.
        told: (when, what, why), oldest first.
    """

    change: Change
    policy: Policy
    stage: Stage = Stage.DRAFT
    step: int | None = None
    ready: bool = False
    before: str = ""
    after: str = ""
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


@dataclass
class Seen:
    """Outcomes so far: of the old version all, of the new one those of this step."""

    old: dict[str, list[float]] = field(default_factory=dict)
    new: dict[str, list[float]] = field(default_factory=dict)


class Book:
    """Changes in one folder, made 0700.

    edit-1.json          the change and how far it has come
    edit-1.seen          what became of requests, one a line; "[]" where a step begins
    3f9a....point        what restores it, by its SHA-256; overwritten when nothing goes back
    certificates.jsonl   all of them, oldest first
    key                  what they are signed with
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cases: dict[str, Case] = {}
        self._seen: dict[str, Seen] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def has(self, id: str) -> bool:
        """Return whether there is a change of this id."""
        return self._path(id).exists()

    def case(self, id: str) -> Case:
        """Return a change.

        Raises:
            NotFoundError: if there is none of this id.
        """
        path = self._path(id)
        if id not in self._cases:
            if not path.is_file():
                raise NotFoundError("no change of this id was proposed", value=id)
            self._cases[id] = read_case(json.loads(path.read_text()))
        return self._cases[id]

    def cases(self) -> list[Case]:
        """Return all changes."""
        return [self.case(path.stem) for path in sorted(self.folder.glob("*.json"))]

    def put(self, case: Case) -> Case:
        """Write a change down; it is on the disk when this returns."""
        put_file(self._path(case.change.id), json.dumps(written(case)).encode())
        self._cases[case.change.id] = case
        return case

    def saw(self, case: Case, metric: str, value: float, arm: Arm) -> Seen:
        """Add an outcome; returns all of them."""
        seen = self._outcomes(case.change.id)
        append_line(self._path(case.change.id, "seen"), json.dumps([metric, value, arm]))
        getattr(seen, arm).setdefault(metric, []).append(value)
        return seen

    def next_step(self, case: Case) -> None:
        """Begin a step: what was seen of the new version belongs to the one before."""
        append_line(self._path(case.change.id, "seen"), "[]")
        self._outcomes(case.change.id).new.clear()

    def point(self, case: Case) -> bytes:
        """Return what restores a change.

        Raises:
            MethodError: if it was altered or is gone.
        """
        path = self.folder / f"{case.point}.point"
        point = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(point).hexdigest() != case.point:
            raise MethodError(
                f"what restores change {case.change.id} was altered or is gone", value=case.point
            )
        return point

    def put_point(self, point: bytes) -> str:
        """Keep what restores a change; returns its SHA-256."""
        digest = hashlib.sha256(point).hexdigest()
        put_file(self.folder / f"{digest}.point", point)
        return digest

    def drop_point(self, case: Case) -> None:
        """Overwrite what restores a change that nothing goes back from any more."""
        others = [one for one in self.cases() if one.change.id != case.change.id]
        live = (Stage.ADMITTED, Stage.CANARY, Stage.RELEASED)
        if case.point and all(o.point != case.point or o.stage not in live for o in others):
            shred(self.folder / f"{case.point}.point")

    def certificates(self) -> list[dict[str, Any]]:
        """Return all certificates, oldest first."""
        path = self._path("certificates", "jsonl")
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def add_certificate(self, certificate: Mapping[str, Any]) -> None:
        """Keep a certificate."""
        line = json.dumps(certificate)
        append_line(self._path("certificates", "jsonl"), line, flush=True)

    def key(self) -> bytes:
        """Return the key of signatures, made when it is first asked for."""
        path = self.folder / "key"
        if not path.is_file():
            put_file(path, secrets.token_bytes(32))
        return path.read_bytes()

    # -- private ------------------------------------------------------------------------------

    def _outcomes(self, id: str) -> Seen:
        if id not in self._seen:
            seen = self._seen[id] = Seen()
            path = self._path(id, "seen")
            for line in path.read_text().splitlines() if path.is_file() else ():
                if line == "[]":
                    seen.new.clear()
                else:
                    metric, value, arm = json.loads(line)
                    getattr(seen, arm).setdefault(metric, []).append(value)
        return self._seen[id]

    def _path(self, id: str, end: str = "json") -> Path:
        if not id or not all(letter.isalnum() or letter in "-_." for letter in id) or id[0] == ".":
            raise ParameterError("this is no id of a change", value=id, allowed="such as edit-7")
        return self.folder / f"{id}.{end}"
