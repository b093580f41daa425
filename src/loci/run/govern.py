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

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any  # JSON values

from loci.core.clock import SystemClock
from loci.core.governance import Arm, Change, Policy, Ruling, Sample, Stage, moved
from loci.core.ports import Clock
from loci.errors import FormatError, LociError, MethodError, ParameterError
from loci.methods.recall.base import Govern
from loci.methods.recall.dmm_gov import DmmGov
from loci.run import certificate as certificates
from loci.run.cases import Book, Case, Seen
from loci.run.governed import Governed
from loci.store.audit import Audit


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
        self.book, self.audit = Book(Path(folder)), audit
        self.method = method if method is not None else DmmGov()
        self.clock = clock or SystemClock()
        self._governed: dict[str, Governed] = {}

    # -- before it is tried -------------------------------------------------------------------

    def propose(self, change: Change, policy: Policy, governed: Governed) -> Case:
        """Register a change with its policy; from now on the policy is fixed.

        Raises:
            ParameterError: if there is a change of this id, or it is of another kind of memory.
        """
        if self.book.has(change.id):
            raise ParameterError("there is a change of this id", value=change.id)
        if governed.substance != change.substance:
            raise ParameterError(
                "the change is of another kind of memory",
                value=change.substance,
                allowed=governed.substance,
            )
        case = Case(change=change, policy=policy, before=governed.state())
        case = replace(case, artefact=self._artefact(governed))
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
        if self._artefact(governed) != case.artefact:
            raise MethodError(f"this is not what change {id} was proposed with")
        if id not in self._governed and case.stage in (Stage.CANARY, Stage.RELEASED):
            governed.resume(self.book.point(case))
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
        digest = self.book.put_point(point)
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
        self._check_alone(case)
        self._of(id).apply()
        after = self._of(id).state()
        case = replace(case, stage=stage, step=0, began=self._now(), after=after)
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
        seen = self.book.saw(case, metric, float(value), arm)
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
                self.book.drop_point(other)
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
            self.book.drop_point(case)
            return self._keep(replace(case, stage=stage), "revoke", why)
        return self._back(case, Stage.REVOKED, "revoke", why)

    def certificate(self, id: str) -> dict[str, Any]:
        """Return the signed certificate of a change, made once for each state it is asked in."""
        case = self.case(id)
        chain = self.book.certificates()
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
            key=self.book.key(),
        )
        self.audit.record("certify", id, digest=certificates.digest(made))
        self.book.add_certificate(made)
        return made

    def verify(self, certificate: Mapping[str, Any], *, probes: bool = True) -> None:
        """Check a certificate: signature, its place in the chain, the audit, its probes again.

        Args:
            probes: run them again, where what was changed is at hand.

        Raises:
            FormatError: naming what does not agree.
            StoreError: if the audit does not verify.
        """
        chain = self.book.certificates()
        digest = certificates.digest(certificate)
        places = {certificates.digest(one): place for place, one in enumerate(chain)}
        before = chain[places[digest] - 1] if places.get(digest, 0) else None
        governed = self._governed.get(str(certificate.get("change"))) if probes else None
        certificates.check(
            certificate,
            key=self.book.key(),
            previous=certificates.digest(before) if before is not None else None,
            artefact=None if governed is None else self._artefact(governed),
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
        return self.book.case(id)

    def cases(self) -> list[Case]:
        """Return all changes."""
        return self.book.cases()

    # -- private ------------------------------------------------------------------------------

    def _whole_step(self, case: Case, seen: Seen, ruling: Ruling) -> Ruling:
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
        self.book.next_step(case)
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
        now: object = "something else is in effect by now"
        if governed.state() == case.after:
            try:
                governed.restore(self.book.point(case))
                now = governed.state()
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
        self.book.drop_point(case)
        return self._keep(replace(case, stage=stage, step=None, ready=False), what, why)

    def _artefact(self, governed: Governed) -> str:
        """Return the SHA-256 of what is changed; a text's alone would tell whoever guesses it."""
        key = self.book.key() if governed.substance == "text" else b""
        return certificates.sha256(key + governed.artefact())

    def _check_alone(self, case: Case) -> None:
        """Refuse to try two changes of one thing at once: taking one back would take both."""
        weights = ("edit", "adapter")
        for other in self.cases():
            same = other.change.subject == case.change.subject
            if (
                other.stage is Stage.CANARY
                and other.change.substance
                in (weights if case.change.substance in weights else (case.change.substance,))
                and (same or case.change.substance in weights)
            ):
                raise ParameterError(
                    f"change {other.change.id} of the same is being tried", value=case.change.id
                )

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

    def _of(self, id: str) -> Governed:
        if id not in self._governed:
            raise MethodError(
                f"what change {id} changes is not at hand in this process",
                way_out="governor.attach(id, ...) gives it back",
            )
        return self._governed[id]

    def _keep(self, case: Case, what: str, why: str) -> Case:
        return self.book.put(replace(case, told=(*case.told, (self._now(), what, why))))

    def _now(self) -> str:
        return self.clock.now().astimezone(UTC).isoformat()
