"""A certificate of a change: what was claimed, measured and kept, so that somebody can check it.

arXiv:2509.18868 names seven fields (F1 to F7) and no form; the form is ours: JSON, SHA-256 of what
was changed, the digest of the certificate before it, and an HMAC-SHA256 over all of it with a key
that stays with the governor. Who has no key can still check the hashes and run the probes again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any  # JSON values

from loci.core.governance import Arm, Change, Gate, Policy, Sample
from loci.errors import FormatError

FORMAT, VERSION = "loci-certificate", 1

Probe = Callable[[str, Arm, int], Sequence[float]]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def make(
    change: Change,
    policy: Policy,
    *,
    method: str,
    stage: str,
    samples: Sequence[Sample],
    gates: Sequence[Gate],
    artefact: str,
    point: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    previous: str | None,
    key: bytes,
) -> dict[str, Any]:
    """Return a signed certificate.

    Args:
        artefact: SHA-256 of what was changed.
        point: how to get back: the state before, and the SHA-256 of what restores it.
        log: entries of the audit about the change: number, what, digest.
        previous: SHA-256 of the certificate before this one.
    """
    told = [asdict(gate) for gate in gates]
    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "change": change.id,
        "stage": stage,
        "F1": {"target": change.subject, "evidence": list(change.evidence)},
        "F2": {"valid_from": change.valid_from, "valid_to": change.valid_to},
        "F3": {
            "substance": change.substance,
            "method": method,
            "policy": policy.to_json(),
            "policy_hash": policy.hash,
        },
        "F4": {
            "probes": [
                {"metric": s.metric, "seed": s.seed, "n": len(s.new), "digest": s.digest}
                for s in samples
            ],
            "gates": [gate for gate in told if gate["part"] == "target"],
        },
        "F5": {"gates": [gate for gate in told if gate["part"] == "regression"]},
        "F6": dict(point),
        "F7": {
            "owner": change.owner,
            "approvals": list(change.approvals),
            "log": [dict(entry) for entry in log],
        },
        "artefacts": {change.substance: artefact},
        "previous": previous,
    }
    body = json.loads(json.dumps(body, allow_nan=True))
    return {**body, "mac": _mac(body, key)}


def digest(certificate: Mapping[str, Any]) -> str:
    """Return what the next certificate links to."""
    return sha256(_bytes(certificate))


def check(
    certificate: Mapping[str, Any],
    *,
    key: bytes,
    previous: str | None,
    artefact: str | None = None,
    probe: Probe | None = None,
) -> None:
    """Check a certificate: signature, link, what was changed, and its probes run again.

    Args:
        previous: digest of the certificate before it.
        artefact: SHA-256 of what was changed, as it is now.
        probe: gives the outcomes of a metric on a version from a seed.

    Raises:
        FormatError: naming what does not agree.
    """
    name = certificate.get("change")
    if (certificate.get("format"), certificate.get("version")) != (FORMAT, VERSION):
        raise FormatError(
            "this is no certificate of a version we know",
            value=(certificate.get("format"), certificate.get("version")),
            allowed=f"{FORMAT} {VERSION}",
        )
    body = {field: value for field, value in certificate.items() if field != "mac"}
    if not hmac.compare_digest(_mac(body, key), str(certificate.get("mac"))):
        raise FormatError(f"the certificate of {name} was altered, or signed with another key")
    policy = Policy.from_json(certificate["F3"]["policy"])
    if policy.hash != certificate["F3"]["policy_hash"]:
        raise FormatError(f"the policy of {name} is not the one its hash is of")
    if certificate["previous"] != previous:
        raise FormatError(f"the certificate of {name} does not follow the one before it")
    kept = next(iter(certificate["artefacts"].values()))
    if artefact is not None and artefact != kept:
        raise FormatError(f"what {name} changed is not what was certified", value=artefact[:16])
    order = {entry["what"]: entry["seq"] for entry in reversed(certificate["F7"]["log"])}
    if order.get("propose", 0) >= order.get("measure", 0):
        raise FormatError(f"{name} was measured before its policy was registered: it is void")
    for one in certificate["F4"]["probes"] if probe is not None else ():
        assert probe is not None
        again = Sample(
            metric=one["metric"],
            new=tuple(map(float, probe(one["metric"], "new", one["seed"]))),
            old=tuple(map(float, probe(one["metric"], "old", one["seed"]))),
            seed=one["seed"],
        )
        if again.digest != one["digest"]:
            raise FormatError(f"the probes of {one['metric']} come out differently for {name}")


def _bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _mac(body: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, _bytes(body), hashlib.sha256).hexdigest()
