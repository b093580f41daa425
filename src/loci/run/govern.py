"""Governing changes of memory: proposed, admitted, tried on a few, watched, released, certified.

    governor = Governor("ada.db.gov", audit=Audit("ada.db.audit"))
    governor.propose(change, policy, GovernedTexts(memory, "ada", change.id, edits, probes))
    governor.admit(change.id)                       # offline gates; refused changes stay drafts
    governor.canary(change.id)                      # the first share of requests sees it
    arm = governor.arm(change.id, request_key)      # for every request: "old" or "new"
    governor.observe(change.id, "success", 1.0, arm)    # rolls back by itself when it harms
    governor.release(change.id)
    governor.certificate(change.id)

What decides is a method of the role `Govern`, DMM-Gov (arXiv:2509.18868) unless another is given;
this engine measures, moves, keeps and tells the audit. Everything it knows is on the disk before it
returns, but for single observations, which are appended and not flushed one by one. One process
observes; another one may look.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any  # JSON values

from loci.core.clock import SystemClock
from loci.core.governance import Arm, Change, Policy, Ruling, Sample, Stage, moved
from loci.core.ports import Clock
from loci.errors import FormatError, LociError, MethodError, NotFoundError, ParameterError
from loci.methods.recall.base import Govern
from loci.methods.recall.dmm_gov import DmmGov
from loci.run import certificate as certificates
from loci.run.cases import Case, read_case, written
from loci.run.governed import Governed
from loci.run.kept import append_line, put_file, shred
from loci.store.audit import Audit


@dataclass
class _Seen:
    """Outcomes so far: of the old version all, of the new one those of this step."""

    old: dict[str, list[float]] = field(default_factory=dict)
    new: dict[str, list[float]] = field(default_factory=dict)


class Governor:
    """Changes of memory in one folder, made 0700, with their certificates.

    Args:
        audit: where every step is recorded; what proves that a policy came before the measuring.
        method: what decides.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        audit: Audit,
        method: Govern | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder, self.audit = Path(folder), audit
        self.method = method if method is not None else DmmGov()
        self.clock = clock or SystemClock()
        self._governed: dict[str, Governed] = {}
        self._cases: dict[str, Case] = {}
        self._seen: dict[str, _Seen] = {}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # -- before it is tried -------------------------------------------------------------------

    def propose(self, change: Change, policy: Policy, governed: Governed) -> Case:
        """Register a change with its policy; from now on the policy is fixed.

        Raises:
            ParameterError: if there is a change of this id, or it is of another kind of memory.
        """
        if self._path(change.id).exists():
            raise ParameterError("there is a change of this id", value=change.id)
        if governed.substance != change.substance:
            raise ParameterError(
                "the change is of another kind of memory",
                value=change.substance,
                allowed=governed.substance,
            )
        case = Case(change=change, policy=policy, before=governed.state())
        case = replace(case, artefact=certificates.sha256(governed.artefact()))
        self._governed[change.id] = governed
        self.audit.record(
            "propose",
            change.id,
            policy=policy.hash,
            substance=change.substance,
            artefact=case.artefact,
        )
        return self._keep(case, "propose", f"policy {policy.hash}")

    def attach(self, id: str, governed: Governed) -> None:
        """Give a change that was proposed by an earlier process what it changes."""
        case = self.case(id)
        if certificates.sha256(governed.artefact()) != case.artefact:
            raise MethodError(f"this is not what change {id} was proposed with")
        self._governed[id] = governed

    def admit(self, id: str, *, seed: int = 0) -> Ruling:
        """Measure both versions offline and hold them against the policy; keep a way back.

        A change that is refused stays a draft, and is never measured against another policy.

        Raises:
            MethodError: if the policy was altered after it was registered: the measuring is void.
            ParameterError: if fewer people agreed than the policy asks for.
        """
        case, governed = self.case(id), self._of(id)
        moved(case.stage, Stage.ADMITTED, id)
        self._check_policy(case)
        if len(set(case.change.approvals)) < case.policy.approvals:
            raise ParameterError(
                f"change {id} needs {case.policy.approvals} approvals",
                value=list(case.change.approvals),
            )
        point = governed.point()
        samples = []
        for metric in dict.fromkeys(one.metric for one in case.policy.thresholds):
            new = tuple(map(float, governed.probe(metric, "new", seed)))
            old = tuple(map(float, governed.probe(metric, "old", seed)))
            sample = Sample(metric=metric, new=new, old=old, seed=seed)
            self.audit.record(
                "measure",
                id,
                metric=metric,
                n=len(new),
                digest=sample.digest,
                policy=case.policy.hash,
            )
            samples.append(sample)
        ruling = self.method.admit(case.policy, samples)
        case = replace(case, samples=tuple(samples), gates=ruling.gates)
        if ruling.verdict != "pass":
            self.audit.record("refuse", id, verdict=ruling.verdict)
            self._keep(case, "refuse", ruling.why)
            return ruling
        digest = certificates.sha256(point)
        put_file(self.folder / f"{digest}.point", point)
        self.audit.record("admit", id, point=digest)
        self._keep(
            replace(case, stage=Stage.ADMITTED, point=digest, before=governed.state()),
            "admit",
            ruling.why,
        )
        return ruling

    # -- while it is tried --------------------------------------------------------------------

    def canary(self, id: str) -> Case:
        """Put the new version into effect for the first share of requests."""
        case = self.case(id)
        stage = moved(case.stage, Stage.CANARY, id)
        if case.stage is Stage.CANARY:
            raise ParameterError(
                f"change {id} is tried already; it goes on by what is observed", value=case.step
            )
        self._of(id).apply()
        self._seen[id] = _Seen()
        case = replace(case, stage=stage, step=0, began=self._now())
        self.audit.record("canary", id, step=0, share=case.share)
        return self._keep(case, "canary", f"{case.share:.0%} of requests")

    def arm(self, id: str, key: str) -> Arm:
        """Return which version a request sees."""
        case = self.case(id)
        return self.method.arm(id, key, case.share)

    def observe(self, id: str, metric: str, value: float, arm: Arm) -> Ruling:
        """Take in what became of a request; go on, or take the change back by itself.

        Raises:
            ParameterError: if the change is not being tried, or the policy does not watch this.
        """
        case = self.case(id)
        if case.stage is not Stage.CANARY or case.step is None:
            raise ParameterError(f"change {id} is {case.stage}; nothing of it is watched")
        if metric not in case.policy.watched or arm not in ("old", "new"):
            raise ParameterError(
                "the policy does not watch this",
                value=(metric, arm),
                allowed=", ".join(case.policy.watched) + "; old, new",
            )
        seen = self._outcomes(case)
        getattr(seen, arm).setdefault(metric, []).append(float(value))
        append_line(self._path(id, "seen"), json.dumps([metric, float(value), arm]))
        late = (self.clock.now() - datetime.fromisoformat(case.began)).total_seconds()
        ruling = Ruling(verdict="insufficient", why="of the old version")
        if arm == "new":
            ruling = self.method.watch(case.policy, seen.new[metric], seen.old.get(metric, ()))
            if ruling.verdict == "pass":
                ruling = self._whole_step(case, seen, ruling)
        if ruling.verdict == "insufficient" and late > case.policy.max_step_seconds:
            why = f"after {late:.0f} s the step has not seen enough: {ruling.why}"
            ruling = Ruling(verdict="fail", why=why)
        if ruling.verdict == "pass" and not case.ready:
            self._next_step(case, ruling)
        elif ruling.verdict == "fail":
            self._harmed(case, ruling)
        return ruling

    # -- afterwards ---------------------------------------------------------------------------

    def release(self, id: str) -> Case:
        """Make the new version the only one; what it replaces of the same subject is superseded."""
        case = self.case(id)
        stage = moved(case.stage, Stage.RELEASED, id)
        if not case.ready:
            raise ParameterError(
                f"change {id} has not been watched to the end",
                value=f"step {case.step}",
                allowed=f"{len(case.policy.canary)} steps of {case.policy.step_n} observations",
            )
        for other in self.cases():
            same = (other.change.subject, other.change.substance)
            if other.stage is Stage.RELEASED and same == (
                case.change.subject,
                case.change.substance,
            ):
                self.audit.record("supersede", other.change.id, by=id)
                self._drop_point(other)
                self._keep(replace(other, stage=Stage.SUPERSEDED), "supersede", f"by {id}")
        self.audit.record("release", id)
        return self._keep(replace(case, stage=stage, step=None), "release", "watched to the end")

    def rollback(self, id: str, why: str = "asked for") -> Case:
        """Take a change back: what was in effect before is in effect again, bit for bit.

        Raises:
            MethodError: if what came back is not what there was.
        """
        return self._back(self.case(id), Stage.ROLLED_BACK, "rollback", why)

    def revoke(self, id: str, why: str = "asked for") -> Case:
        """Take a change back, or out of consideration, for good."""
        case = self.case(id)
        if case.stage in (Stage.DRAFT, Stage.ADMITTED):
            stage = moved(case.stage, Stage.REVOKED, id)
            self.audit.record("revoke", id)
            self._drop_point(case)
            return self._keep(replace(case, stage=stage), "revoke", why)
        return self._back(case, Stage.REVOKED, "revoke", why)

    def certificate(self, id: str) -> dict[str, Any]:
        """Return the signed certificate of a change, made once for each state it is asked in."""
        case = self.case(id)
        chain = self._certificates()
        if chain and chain[-1]["change"] == id and chain[-1]["stage"] == case.stage:
            return chain[-1]
        if not case.samples:
            raise ParameterError(f"change {id} was not measured; there is nothing to certify")
        log = [
            {"seq": entry.seq, "what": entry.what, "digest": entry.digest}
            for entry in self.audit.entries()
            if entry.name == id
        ]
        made = certificates.make(
            case.change,
            case.policy,
            method=str(self.method),
            stage=case.stage,
            samples=case.samples,
            gates=case.gates,
            artefact=case.artefact,
            point={"before": case.before, "sha256": case.point},
            log=log,
            previous=certificates.digest(chain[-1]) if chain else None,
            key=self._key(),
        )
        self.audit.record("certify", id, digest=certificates.digest(made))
        append_line(self._path("certificates", "jsonl"), json.dumps(made), flush=True)
        return made

    def verify(self, certificate: Mapping[str, Any], *, probes: bool = True) -> None:
        """Check a certificate: signature, its place in the chain, the audit, its probes again.

        Args:
            probes: run them again, where what was changed is at hand.

        Raises:
            FormatError: naming what does not agree.
            StoreError: if the audit does not verify.
        """
        chain = self._certificates()
        digest = certificates.digest(certificate)
        places = {certificates.digest(one): place for place, one in enumerate(chain)}
        before = chain[places[digest] - 1] if places.get(digest, 0) else None
        governed = self._governed.get(str(certificate.get("change"))) if probes else None
        certificates.check(
            certificate,
            key=self._key(),
            previous=certificates.digest(before) if before is not None else None,
            artefact=None if governed is None else certificates.sha256(governed.artefact()),
            probe=None if governed is None else governed.probe,
        )
        if digest not in places:
            raise FormatError("this certificate is not one of those that were given out")
        self.audit.verify()
        told = {entry.seq: entry.digest for entry in self.audit.entries()}
        for entry in certificate["F7"]["log"]:
            if told.get(entry["seq"]) != entry["digest"]:
                raise FormatError(f"entry {entry['seq']} of the audit is not the certified one")

    def case(self, id: str) -> Case:
        """Return a change and how far it has come.

        Raises:
            NotFoundError: if none was proposed under this id.
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

    # -- private ------------------------------------------------------------------------------

    def _whole_step(self, case: Case, seen: _Seen, ruling: Ruling) -> Ruling:
        """A step is over when every metric that is watched has seen enough."""
        for metric in case.policy.watched:
            if len(seen.new.get(metric, ())) < case.policy.step_n:
                return Ruling(verdict="insufficient", why=f"too few outcomes of {metric} yet")
        return ruling

    def _next_step(self, case: Case, ruling: Ruling) -> None:
        assert case.step is not None
        if case.step + 1 == len(case.policy.canary):
            self.audit.record("ready", case.change.id)
            self._keep(replace(case, ready=True), "ready", ruling.why)
            return
        self._to_step(case, case.step + 1, "canary", ruling.why)

    def _to_step(self, case: Case, step: int, what: str, why: str) -> None:
        case = replace(case, step=step, began=self._now(), ready=False)
        self._seen[case.change.id].new.clear()
        append_line(self._path(case.change.id, "seen"), "[]")
        self.audit.record(what, case.change.id, step=step, share=case.share)
        self._keep(case, what, f"{why}; now {case.share:.0%} of requests")

    def _harmed(self, case: Case, ruling: Ruling) -> None:
        self.audit.record("alarm", case.change.id, step=case.step)
        if case.policy.on_fail == "quarantine":
            self._back(case, Stage.REVOKED, "quarantine", ruling.why)
        elif case.policy.on_fail == "degrade" and case.step and not case.degraded:
            self._to_step(case, case.step - 1, "degrade", ruling.why)
        else:
            self._back(case, Stage.ROLLED_BACK, "rollback", ruling.why)

    def _back(self, case: Case, stage: Stage, what: str, why: str) -> Case:
        id, governed = case.change.id, self._of(case.change.id)
        moved(case.stage, stage, id)
        path = self.folder / f"{case.point}.point"
        point = path.read_bytes() if path.is_file() else b""
        if certificates.sha256(point) != case.point:
            raise MethodError(f"what restores change {id} was altered or is gone", value=case.point)
        try:
            governed.restore(point)
            now: object = governed.state()
        except (LociError, OSError) as error:
            now = error
        if now != case.before:
            # Nobody may go on seeing it, whatever came of the way back.
            why = f"taken out of use, and not back to what was before: {now}"
            self.audit.record("stuck", id)
            self._keep(replace(case, stage=Stage.REVOKED, step=None, ready=False), "stuck", why)
            raise MethodError(
                f"change {id} is {why}",
                allowed=case.before,
                way_out="something else changed the same meanwhile; look at its history",
            ) from (now if isinstance(now, Exception) else None)
        self.audit.record(what, id, state=case.before)
        self._drop_point(case)
        return self._keep(replace(case, stage=stage, step=None, ready=False), what, why)

    def _check_policy(self, case: Case) -> None:
        for entry in self.audit.entries():
            if entry.name == case.change.id and entry.what == "propose":
                if entry.facts.get("policy") == case.policy.hash:
                    return
                break
        raise MethodError(
            f"the policy of {case.change.id} is not the one that was registered",
            value=case.policy.hash,
            way_out="thresholds chosen later are void; propose the change anew under another id",
        )

    def _outcomes(self, case: Case) -> _Seen:
        id = case.change.id
        if id not in self._seen:
            seen = self._seen[id] = _Seen()
            path = self._path(id, "seen")
            for line in path.read_text().splitlines() if path.is_file() else ():
                if line == "[]":
                    seen.new.clear()
                else:
                    metric, value, arm = json.loads(line)
                    getattr(seen, arm).setdefault(metric, []).append(value)
        return self._seen[id]

    def _of(self, id: str) -> Governed:
        if id not in self._governed:
            raise MethodError(
                f"what change {id} changes is not at hand in this process",
                way_out="governor.attach(id, ...) gives it back",
            )
        return self._governed[id]

    def _certificates(self) -> list[dict[str, Any]]:
        path = self._path("certificates", "jsonl")
        return (
            [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        )

    def _key(self) -> bytes:
        path = self.folder / "key"
        if not path.is_file():
            put_file(path, secrets.token_bytes(32))
        return path.read_bytes()

    def _drop_point(self, case: Case) -> None:
        """Overwrite what restores a change that nothing goes back from any more."""
        others = [one for one in self.cases() if one.change.id != case.change.id]
        live = (Stage.ADMITTED, Stage.CANARY, Stage.RELEASED)
        if case.point and all(o.point != case.point or o.stage not in live for o in others):
            shred(self.folder / f"{case.point}.point")

    def _keep(self, case: Case, what: str, why: str) -> Case:
        case = replace(case, told=(*case.told, (self._now(), what, why)))
        put_file(self._path(case.change.id), json.dumps(written(case)).encode())
        self._cases[case.change.id] = case
        return case

    def _path(self, id: str, end: str = "json") -> Path:
        if not id or not all(letter.isalnum() or letter in "-_." for letter in id) or id[0] == ".":
            raise ParameterError("this is no id of a change", value=id, allowed="such as edit-7")
        return self.folder / f"{id}.{end}"

    def _now(self) -> str:
        return self.clock.now().astimezone(UTC).isoformat()
