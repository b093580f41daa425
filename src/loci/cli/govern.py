"""`loci govern`: changes of memory with a bar, a canary and a way back, from one file each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values

import click

from loci import config
from loci.cli.adapter_parts import pack_of
from loci.cli.app import Group
from loci.cli.memory_parts import opened
from loci.cli.options import whose
from loci.cli.output import as_json_option, emit, note, plain, say, table
from loci.errors import MethodError

if TYPE_CHECKING:
    from loci.core.governance import Arm, Ruling
    from loci.run.cases import Case
    from loci.run.change_files import Proposal
    from loci.run.govern import Governor
    from loci.run.governed import GovernedCube, GovernedTexts
    from loci.run.proposed import Answers
    from loci.store.shelf import Shelf

change_argument = click.argument(
    "path", metavar="CHANGE.toml", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
memory_option = click.option("--memory", "file", help="The memory; else the configured one.")
model_option = click.option("--model", help="Who answers probes of cubes and adapters.")
user_option = click.option("--user", help="Whose texts, where the file names nobody.")
key_option = click.option("--key", required=True, help="Of a request; the same sees the same arm.")
why_option = click.option("--why", default="asked for", help="Stands in the change's history.")


@click.group(cls=Group)
def command() -> None:
    """Change what is remembered with a bar, a canary and a way back.

    A change is a file: what is changed, on what grounds, the policy it has to meet and the probes
    it is held against. Propose it, admit it, try it on a share of requests, tell what became of
    them, release it or take it back; every step is in the audit beside the memory.
    """


@command.command()
@change_argument
@model_option
@user_option
@memory_option
@as_json_option
def propose(
    path: Path, model: str | None, user: str | None, file: str | None, as_json: bool
) -> None:
    """Register a change with its policy and probes, which are fixed from here on."""
    with _at_hand(path, file, model, user, is_new=True) as at:
        proposal = at.proposal
        case = at.governor.propose(proposal.change, proposal.policy, at.governed)
    _tell(case, as_json)


@command.command()
@change_argument
@click.option("--seed", type=click.IntRange(0), default=0, help="Stands in the certificate.")
@model_option
@user_option
@memory_option
@as_json_option
def admit(
    path: Path, seed: int, model: str | None, user: str | None, file: str | None, as_json: bool
) -> None:
    """Measure both versions against the policy; nobody sees the new one yet.

    Exit code 1 means that it was refused, and stays a draft.
    """
    with _at_hand(path, file, model, user) as at:
        ruling = at.governor.admit(at.id, seed=seed)
        _tell_ruling(at.governor.case(at.id), ruling, as_json)
    if ruling.verdict != "pass":
        raise click.exceptions.Exit(1)


@command.command()
@change_argument
@model_option
@user_option
@memory_option
@as_json_option
def canary(
    path: Path, model: str | None, user: str | None, file: str | None, as_json: bool
) -> None:
    """Put the new version into effect for the first share of requests."""
    with _at_hand(path, file, model, user) as at:
        case = at.governor.canary(at.id)
    _tell(case, as_json)


@command.command()
@change_argument
@click.argument("question")
@key_option
@model_option
@user_option
@memory_option
@as_json_option
def ask(
    path: Path,
    question: str,
    key: str,
    model: str | None,
    user: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Answer a question with the version that a request's key sees.

    Of texts it is what is found first; of cubes and adapters it is what the model says.
    """
    with _at_hand(path, file, model, user) as at:
        arm = at.governor.arm(at.id, key)
        answer = at.answer(arm, question)
    if as_json:
        emit({"arm": arm, "answer": answer})
    else:
        say(answer)
        note(f"by the {arm} version")


@command.command()
@change_argument
@click.option("--metric", default="success", help="One that the policy watches; else success.")
@click.option("--value", type=float, required=True, help="1 for a good outcome, 0 for a bad one.")
@key_option
@model_option
@user_option
@memory_option
@as_json_option
def observe(
    path: Path,
    metric: str,
    value: float,
    key: str,
    model: str | None,
    user: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Tell what became of a request; a change that harms is taken back by itself."""
    with _at_hand(path, file, model, user) as at:
        ruling = at.governor.observe(at.id, metric, value, at.governor.arm(at.id, key))
        _tell_ruling(at.governor.case(at.id), ruling, as_json)


@command.command()
@click.argument("id", required=False)
@memory_option
@as_json_option
def status(id: str | None, file: str | None, as_json: bool) -> None:
    """Show the changes there are, or one with its history."""
    cases = _cases(file, id)
    if as_json:
        emit([_told(case) for case in cases])
        return
    if id is not None:
        _tell(cases[0], as_json)
        for at, what, why in cases[0].told:
            say(f"  {at}  {what}: {why}")
        return
    rows = [
        (
            case.change.id,
            case.stage,
            f"{case.share:.0%}",
            "ready" if case.ready else "",
            case.change.substance,
            case.change.subject,
            case.change.owner,
        )
        for case in cases
    ]
    table(rows, ("change", "stage", "share", "", "of", "subject", "owner"), right=(2,))


@command.command()
@click.argument("id")
@memory_option
@as_json_option
def release(id: str, file: str | None, as_json: bool) -> None:
    """Make the new version the only one, once it was watched to the end."""
    _tell(_governor(file).release(id), as_json)


@command.command()
@change_argument
@why_option
@model_option
@user_option
@memory_option
@as_json_option
def rollback(
    path: Path, why: str, model: str | None, user: str | None, file: str | None, as_json: bool
) -> None:
    """Take a change back: what was in effect before is so again, bit for bit."""
    with _at_hand(path, file, model, user) as at:
        case = at.governor.rollback(at.id, why)
    _tell(case, as_json)


@command.command()
@change_argument
@why_option
@model_option
@user_option
@memory_option
@as_json_option
def revoke(
    path: Path, why: str, model: str | None, user: str | None, file: str | None, as_json: bool
) -> None:
    """Take a change back, or out of consideration, for good."""
    with _at_hand(path, file, model, user) as at:
        case = at.governor.revoke(at.id, why)
    _tell(case, as_json)


@command.command()
@click.argument("id")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it here; else to stdout."
)
@memory_option
@as_json_option
def certificate(id: str, out: Path | None, file: str | None, as_json: bool) -> None:
    """Give out the signed certificate of a change, which is JSON with --json or without."""
    from loci.run.kept import put_file

    made = _governor(file).certificate(id)
    if out is not None:
        put_file(out, json.dumps(made, indent=2).encode())
        note(f"certificate of {id} in {out}")
    if out is None or as_json:
        emit(made)


@command.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--change",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its file: then the probes are run again, and must come out the same.",
)
@model_option
@user_option
@memory_option
@as_json_option
def verify(
    path: Path,
    change: Path | None,
    model: str | None,
    user: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Check a certificate: signature, place in the chain, audit, and its probes.

    Exit code 1 means that something does not agree; the message says what.
    """
    found = _read_certificate(path)
    if change is None:
        _governor(file).verify(found, probes=False)
    else:
        with _at_hand(change, file, model, user) as at:
            at.governor.verify(found)
    if as_json:
        emit({"change": found["change"], "stage": found["stage"], "verified": True})
    else:
        say(f"{found['change']}, {found['stage']}: as certified")


# -- private ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _AtHand:
    """A change with what it changes, in this process."""

    proposal: Proposal
    governor: Governor
    governed: GovernedTexts | GovernedCube
    answers: Answers | None

    @property
    def id(self) -> str:
        return self.proposal.change.id

    def answer(self, arm: Arm, question: str) -> str:
        from loci.run.governed import GovernedTexts
        from loci.run.proposed import found

        if isinstance(self.governed, GovernedTexts):
            return found(self.governed.search(arm), question)
        assert self.answers is not None
        return self.answers.answer(self.governed.serving(arm), question)


@contextmanager
def _at_hand(
    path: Path, file: str | None, model: str | None, user: str | None, *, is_new: bool = False
) -> Iterator[_AtHand]:
    """Read a change's file and give it to the governor of the memory, checked to be the same."""
    from loci.run.change_files import read_proposal, same_probes
    from loci.run.proposed import Answers, governed_texts

    proposal = read_proposal(path)
    governor = _governor(file)
    with ExitStack() as stack:
        answers: Answers | None = None
        governed: GovernedTexts | GovernedCube
        if proposal.change.substance == "text":
            name = proposal.user or whose(user)
            governed = governed_texts(proposal, stack.enter_context(opened(file)), name)
        else:
            pack = stack.enter_context(pack_of(model))
            answers = stack.enter_context(Answers(pack))
            governed = answers.governed(proposal, _shelf(file))
        if not is_new:
            case = governor.case(proposal.change.id)
            if not same_probes(proposal.change, case.change):
                raise MethodError(
                    f"the probes of change {proposal.change.id} are not those it was proposed with",
                    value=str(path),
                    way_out="put them back, or propose the change anew under another id",
                )
            if proposal.policy.hash != case.policy.hash:
                raise MethodError(
                    f"the policy of change {proposal.change.id} is not the registered one",
                    value=str(path),
                    way_out="put it back, or propose the change anew under another id",
                )
            governor.attach(proposal.change.id, governed)
        yield _AtHand(proposal=proposal, governor=governor, governed=governed, answers=answers)


def _governor(file: str | None) -> Governor:
    from loci.run.govern import Governor as Made
    from loci.store.audit import Audit

    place = _place(file)
    return Made(_folder(file), audit=Audit(place.with_name(f"{place.name}.audit")))


def _cases(file: str | None, id: str | None) -> list[Case]:
    """Return all changes or one; looking makes no folder where nothing was proposed yet."""
    if id is None and not _folder(file).is_dir():
        return []
    governor = _governor(file)
    return governor.cases() if id is None else [governor.case(id)]


def _folder(file: str | None) -> Path:
    place = _place(file)
    return place.with_name(f"{place.name}.gov")


def _shelf(file: str | None) -> Shelf:
    from loci.run.shelves import beside

    found = beside(_place(file))
    assert found is not None, "a memory in a file has a shelf"
    return found


def _place(file: str | None) -> Path:
    """Return the file of the memory, beside which changes are written down."""
    from loci.run.shelves import file_of

    where = file if file is not None else config.load().memory_file
    found = file_of(where)
    if found is None:
        raise MethodError(
            "changes are governed beside a memory in a file; this one is in a database server",
            value=str(where),
            way_out="loci.run.govern.Governor takes a folder and an audit of your own",
        )
    if not found.parent.is_dir():
        raise MethodError(
            "there is no folder for this memory", value=str(found), way_out="make it, or --memory"
        )
    return found


def _read_certificate(path: Path) -> dict[str, Any]:
    from loci.core.utf8 import plain_text
    from loci.errors import FormatError

    try:
        found = json.loads(plain_text(path.read_bytes(), str(path)))
    except json.JSONDecodeError as error:
        raise FormatError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or not {"change", "stage", "F7", "mac"} <= set(found):
        raise FormatError(
            f"{path} is no certificate", way_out="loci govern certificate ID --out FILE"
        )
    return found


def _told(case: Case) -> dict[str, Any]:
    """Return a case as JSON values, without the outcomes one by one."""
    found: dict[str, Any] = plain(case)
    found["samples"] = [
        {"metric": one.metric, "n": len(one.new), "digest": one.digest} for one in case.samples
    ]
    return {**found, "share": case.share}


def _tell(case: Case, as_json: bool) -> None:
    if as_json:
        emit(_told(case))
        return
    ready = ", ready to be released" if case.ready else ""
    say(f"{case.change.id}: {case.stage}, {case.share:.0%} of requests{ready}")


def _tell_ruling(case: Case, ruling: Ruling, as_json: bool) -> None:
    if as_json:
        emit({**plain(ruling), "stage": case.stage, "share": case.share, "ready": case.ready})
        return
    say(f"{case.change.id}: {ruling.verdict}, {ruling.why}")
    for gate in ruling.gates:
        say(
            f"  {gate.metric} {gate.mean:.3f} of {gate.n}, bound {gate.bound:.3f} {gate.op} "
            f"{gate.limit:.3f}: {gate.verdict}"
        )
    _tell(case, as_json)
