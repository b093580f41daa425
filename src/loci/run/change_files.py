"""A change of memory as a person writes it down: one TOML file, and the probes it is held against.

    id = "move"                      # every command of `loci govern` is given this file
    subject = "office"
    owner = "ada"
    evidence = ["mail-7"]
    probes = "move.jsonl"            # beside this file: {"ask": "...", "expect": ["..."]} a line

    user = "team"                    # texts of a memory are changed ...
    [[edit]]
    kind = "edit"                    # edit, retire or note
    id = "item-..."
    text = "Our office is in Oslo."

    [adapter]                        # ... or an adapter comes, or takes the place of one
    name = "hat"
    file = "hat.cube"                # a cube's file or a PEFT folder

    [cube]                           # ... or a cube of text or of keys and values
    file = "notes.cube"

    [policy]
    step_n = 20
    [[policy.threshold]]
    metric = "right"
    op = ">="
    value = 0.8

The file is the person's own and stays where it is: what is governed keeps digests of it, so the
words in it are nowhere that forgetting would not reach. Probes are part of the change: their hash
stands in its evidence, and other probes later are refused.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any  # values of TOML and JSON

from loci.core.governance import Change, Policy, Substance, Threshold
from loci.core.utf8 import plain_text
from loci.errors import FormatError
from loci.run.governed import TextEdit
from loci.units import nearest

METRIC = "right"  # of probes that name none
_PROBES = "probes:"  # before their hash, among the evidence
_EDITS = ("edit", "retire", "note")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One probe: what is asked, and the words that a right answer has, whatever their case."""

    ask: str
    expect: tuple[str, ...]
    metric: str = METRIC

    def outcome(self, answer: str) -> float:
        """Return 1 if the answer has all words, else 0."""
        said = answer.casefold()
        return float(all(word.casefold() in said for word in self.expect))


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a file says.

    Attributes:
        change: its evidence ends with the hash of the probes.
        user: whose memory is edited.
        edits: of texts.
        source: the new cube or adapter.
        name: of the adapter.
        probes: of all metrics, in the order of their file.
    """

    change: Change
    policy: Policy
    probes: tuple[Question, ...]
    user: str | None = None
    edits: tuple[TextEdit, ...] = ()
    source: Path | None = None
    name: str = ""

    def asked(self, metric: str) -> list[Question]:
        """Return the probes of a metric."""
        return [probe for probe in self.probes if probe.metric == metric]


def read_proposal(path: Path) -> Proposal:
    """Return the change in a file.

    Raises:
        FormatError: naming the key that is unknown, missing or of another kind.
        ParameterError: if the change or its policy is not usable.
    """
    try:
        table = tomllib.loads(plain_text(path.read_bytes(), str(path)))
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{path} is no TOML: {error}") from error
    kinds = [name for name in ("edit", "adapter", "cube") if name in table]
    if len(kinds) != 1:
        raise FormatError(
            f"{path} does not say one thing to change",
            value=", ".join(kinds) or "nothing",
            allowed="one of [[edit]], [adapter], [cube]",
        )
    own = [field.name for field in fields(Change) if field.name != "substance"]
    _check_keys(
        path,
        "",
        table,
        (*own, "policy", "probes", kinds[0], *(["user"] if "edit" in kinds else [])),
    )
    for name in ("id", "subject", "owner", "probes", "policy"):
        if name not in table:
            raise FormatError(f"{path} lacks {name}", allowed="id, subject, owner, probes, policy")
    file = path.parent / _text(path, "probes", table["probes"])
    probes, digest = _probes(file)
    made: dict[str, Any] = {}
    substance: Substance = "text"
    if kinds == ["edit"]:
        made = {"edits": _edits(path, table["edit"]), "user": table.get("user")}
    else:
        part = table[kinds[0]]
        named = ("name", "file") if kinds == ["adapter"] else ("file",)
        _check_keys(path, kinds[0], part, named)
        values = {name: _text(path, f"{kinds[0]}.{name}", part.get(name)) for name in named}
        made = {"source": path.parent / values["file"], "name": values.get("name", "")}
        substance = "adapter" if kinds == ["adapter"] else "kv"
    given = {name: table[name] for name in own if name in table}
    for name in ("evidence", "approvals"):
        given[name] = tuple(_texts(path, name, given.get(name, [])))
    given["evidence"] += (_PROBES + digest,)
    policy = _policy(path, table["policy"])
    proposal = Proposal(
        change=Change(substance=substance, **given), policy=policy, probes=probes, **made
    )
    missing = {one.metric for one in policy.thresholds} - {one.metric for one in probes}
    if missing:
        raise FormatError(
            f"{file} has no probes for what {path.name} asks",
            value=", ".join(sorted(missing)),
            allowed=", ".join(sorted({one.metric for one in probes})),
        )
    return proposal


def same_probes(now: Change, registered: Change) -> bool:
    """Return whether the probes are those that a change was registered with."""
    hashes = [
        {one for one in change.evidence if one.startswith(_PROBES)} for change in (now, registered)
    ]
    return hashes[0] == hashes[1]


# -- private ----------------------------------------------------------------------------------


def _policy(path: Path, table: Any) -> Policy:
    own = [field.name for field in fields(Policy) if field.name != "thresholds"]
    _check_keys(path, "policy", table, (*own, "threshold"))
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in table.items()
    }
    named = [field.name for field in fields(Threshold)]
    thresholds = []
    for number, one in enumerate(values.pop("threshold", ()), start=1):
        where = f"policy.threshold {number}"
        _check_keys(path, where, one, named)
        lacking = [name for name in ("metric", "op", "value") if name not in one]
        if lacking or one["op"] not in (">=", "<="):
            raise FormatError(
                f"{path}: {where} is not usable",
                value=", ".join(lacking) or one["op"],
                allowed='metric, op (">=" or "<=") and value',
            )
        thresholds.append(Threshold(**one))
    for name, value in values.items():
        wanted = Policy.__dataclass_fields__[name].default
        fits = isinstance(value, type(wanted)) or (
            isinstance(wanted, float) and isinstance(value, int)
        )
        if not fits or isinstance(value, bool):
            raise FormatError(
                f"{path}: policy.{name} is of another kind", value=value, allowed=f"like {wanted!r}"
            )
    return Policy(thresholds=tuple(thresholds), **values)


def _edits(path: Path, found: Any) -> tuple[TextEdit, ...]:
    edits = []
    for number, one in enumerate(found if isinstance(found, list) else [found], start=1):
        where = f"edit {number}"
        _check_keys(path, where, one, ("kind", "id", "text"))
        kind = one.get("kind", "edit")
        needs = {"edit": {"id", "text"}, "retire": {"id"}, "note": {"text"}}.get(kind)
        if needs is None or needs != set(one) - {"kind"}:
            raise FormatError(
                f"{path}: {where} is not usable",
                value=f"{kind} with {', '.join(sorted(set(one) - {'kind'})) or 'nothing'}",
                allowed="edit with id and text, retire with id, note with text",
            )
        edits.append(TextEdit(kind=kind, id=one.get("id", ""), text=one.get("text", "")))
    return tuple(edits)


def _probes(path: Path) -> tuple[tuple[Question, ...], str]:
    """Return the probes of a file and its hash."""
    if not path.is_file():
        raise FormatError(
            "there is no such file of probes",
            value=str(path),
            way_out='one a line: {"ask": "where is the office?", "expect": ["Oslo"]}',
        )
    raw = path.read_bytes()
    found = []
    for number, line in enumerate(plain_text(raw, str(path)).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            one = json.loads(line)
        except json.JSONDecodeError as error:
            raise FormatError(f"{path}: {where} is no JSON: {error}") from error
        _check_keys(path, where, one, ("ask", "expect", "metric"))
        words = one.get("expect", [])
        expect = _texts(path, f"{where}, expect", [words] if isinstance(words, str) else words)
        if not expect:
            raise FormatError(f"{path}: {where} expects no words", allowed='"expect": ["Oslo"]')
        found.append(
            Question(
                ask=_text(path, f"{where}, ask", one.get("ask")),
                expect=tuple(expect),
                metric=_text(path, f"{where}, metric", one.get("metric", METRIC)),
            )
        )
    if not found:
        raise FormatError(f"{path} holds no probes", allowed="one a line, as JSON")
    return tuple(found), hashlib.sha256(raw).hexdigest()[:32]


def _check_keys(path: Path, where: str, table: Any, known: Iterable[str]) -> None:
    known = list(known)
    if not isinstance(table, Mapping):
        raise FormatError(f"{path}: {where} is no table", value=table, allowed=", ".join(known))
    for name in table:
        if name not in known:
            near = nearest(str(name), known)
            raise FormatError(
                f"{path}: unknown key in {where or 'the change'}",
                value=name,
                allowed=", ".join(known),
                way_out=f"did you mean {near!r}?" if near else (),
            )


def _text(path: Path, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"{path}: {name} is no text", value=value, allowed="a text, not empty")
    return value


def _texts(path: Path, name: str, value: Any) -> Sequence[str]:
    if not isinstance(value, list):
        raise FormatError(f"{path}: {name} is no list", value=value, allowed="a list of texts")
    return [_text(path, name, one) for one in value]
