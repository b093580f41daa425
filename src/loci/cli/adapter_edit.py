"""`loci adapter edit`: single facts put into a model's weights, as an adapter that can be dropped.

An edit is an adapter that was solved for: it lies on the same shelf, is listed, put to work and
dropped as one, so it has no group of commands of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any  # reports hold JSON values

import click

from loci.cli.adapter_parts import (
    fresh,
    memory_option,
    model_option,
    pack_of,
    permitted,
    shelf_of,
    tell,
)
from loci.cli.memory_parts import opened
from loci.cli.output import as_json_option, emit, note, plain, progress, say
from loci.core.cube import Action, Policy
from loci.errors import FingerprintError, MethodError
from loci.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from loci.core.cube import CubeHeader
    from loci.methods.train.base import Edit, Fact
    from loci.models.pack import Pack
    from loci.nn.patch import Patch
    from loci.run.adapters import Adapter
    from loci.run.edit_model import PackModel
    from loci.run.edits import Edited
    from loci.store.shelf import Shelf


@click.command()
@click.argument("name")
@click.option(
    "--fact",
    "given",
    nargs=2,
    multiple=True,
    metavar="PROMPT ANSWER",
    help='What to say from now on: "The capital of [France] is" "Lyon"; repeatable.',
)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Facts in JSON: [{"prompt": "The capital of [France] is", "target": "Lyon"}].',
)
@click.option("--method", help="rome, memit or mend; else rome for one fact, memit for several.")
@click.option("--over", help="On top of this adapter, which becomes part of the new one.")
@click.option(
    "--keep", "kept", multiple=True, metavar="PROMPT", help="Must go on as before; repeatable."
)
@click.option("--cap", type=float, help="How far weights may move, |dW| / |W|; else 0.5.")
@click.option("--item", "items", multiple=True, help="The memory the facts are of; repeatable.")
@click.option("--user", help="Whose it is; else everybody's.")
@click.option("--dry-run", is_flag=True, help="Show what would be edited, and do nothing.")
@model_option
@memory_option
@as_json_option
def edit(
    name: str,
    given: Sequence[tuple[str, str]],
    path: Path | None,
    method: str | None,
    over: str | None,
    kept: tuple[str, ...],
    cap: float | None,
    items: tuple[str, ...],
    user: str | None,
    dry_run: bool,
    model: str | None,
    file: str | None,
    as_json: bool,
) -> None:
    """Make a model say facts, by an adapter that is solved for.

    The subject of a fact stands in brackets. The adapter is kept if the model says at least one of
    the facts with it and goes on as before after every --keep. The weights are never written to:
    `loci adapter drop NAME` gives the model back bit for bit.
    """
    from loci.run.edit_model import PackModel
    from loci.run.edits import advised, check_prepared, editor

    facts = _facts(given, path)
    shelf = shelf_of(file)
    fresh(shelf, name)
    _check_items(file, items)
    with pack_of(model) as pack:
        layers = pack.spec.layers
        chosen = advised(facts, layers) if method is None else editor(method, layers)
        before = None if over is None else _below(shelf, over, user, pack)
        opened_model = PackModel(pack)
        check_prepared(opened_model, chosen)
        if dry_run:
            patch = None if before is None else before.patch
            _tell_plan(name, chosen, facts, opened_model.under(patch), as_json)
            return
        made = _edited(pack, opened_model, facts, chosen, before, kept, cap)
    header, payload = made.cube(
        name,
        parents=(*items, *([before.id] if before is not None and before.id else ())),
        before=None if before is None else before.patch,
    )
    header = shelf.put(replace(header, policy=Policy(owner=user)), payload)
    _tell(shelf, header, made.report, as_json)


# -- private ----------------------------------------------------------------------------------


def _facts(given: Sequence[tuple[str, str]], path: Path | None) -> list[Fact]:
    from loci.methods.train.base import check_facts
    from loci.run.fact_files import fact_of, facts_in

    if bool(given) == (path is not None):
        raise click.UsageError("edit takes --fact, once or more, or --file")
    facts = [fact_of(*one) for one in given] if path is None else facts_in(path)
    check_facts(facts)
    return facts


def _check_items(file: str | None, items: Sequence[str]) -> None:
    """Refuse evidence that is not there: what forgets it must find the adapter by it."""
    if items:
        with opened(file) as memory:
            for id in items:
                memory.get(id)


def _below(shelf: Shelf, over: str, user: str | None, pack: Pack) -> Adapter:
    """Return the adapter that the edit comes on top of."""
    from loci.run.adapters import adapter_of

    header = permitted(shelf, over, Action.READ, user)
    found = adapter_of(header, shelf.payload(header.id))
    if found.base is not None and found.base != pack.spec.fingerprint:
        raise FingerprintError(
            f"the adapter {over} is of another model",
            value=found.base,
            allowed=f"{pack.spec.fingerprint}, which is {pack.spec.name}",
            way_out="name its model with --model",
        )
    return found


def _edited(
    pack: Pack,
    model: PackModel,
    facts: Sequence[Fact],
    method: Edit,
    before: Adapter | None,
    kept: Sequence[str],
    cap: float | None,
) -> Edited:
    """Return an edit that does something and leaves what must stay.

    Raises:
        MethodError: if the model says none of the facts with it, or goes on differently.
    """
    from loci.core.method import Need
    from loci.run.edits import CAP, ELSEWHERE, edit, elsewhere
    from loci.run.key_moments import prepare_editor

    below: Patch | None = None if before is None else before.patch
    with progress() as report:
        if Need.MOMENT in method.about.needs:
            prepare_editor(pack, method, progress=report)
        report("solving for the facts", 0, 1)
        made = edit(pack, facts, method, model=model, before=below, cap=CAP if cap is None else cap)
        report("solving for the facts", 1, 1)
    prompts = (*ELSEWHERE, *kept)
    found = elsewhere(model, made.patch, prompts, before=below)
    lost = [one for one in found["changed"] if one["prompt"] in kept]
    if lost:
        raise MethodError(
            "the edit changes what must be said as before",
            value="; ".join(f"{one['prompt']} {one['after']}" for one in lost),
            allowed="; ".join(f"{one['prompt']} {one['before']}" for one in lost),
            way_out="edit fewer facts at a time, or choose another --method; nothing was kept",
        )
    if not any(made.report["says"]):
        raise MethodError(
            "the model says none of the facts with this edit",
            value=made.report["method"],
            way_out="another --method, or a prompt that the model understands; nothing was kept",
        )
    told = {"elsewhere": found, "over": "" if before is None else before.id}
    return replace(made, report={**made.report, **told})


def _tell_plan(
    name: str, method: Edit, facts: Sequence[Fact], model: PackModel, as_json: bool
) -> None:
    from loci.core.spec import Workload
    from loci.run.edits import goes_on

    longest = max(len(model.tail(fact.continuation)) for fact in facts)
    now = goes_on(model, [fact.prompt for fact in facts], longest)
    cost = method.predict(model.spec, Workload(context=model.spec.max_context), 0)
    nbytes = len(facts) * cost.held["dram"]
    if as_json:
        told = [{**vars(fact), "now": said} for fact, said in zip(facts, now, strict=True)]
        emit({"name": name, "method": str(method), "facts": told, "bytes": nbytes})
        return
    say(f"{name}  {method}, about {format_bytes(nbytes)}")
    for fact, said in zip(facts, now, strict=True):
        say(f"would say {fact.text} (now: {said})")


def _tell(shelf: Shelf, header: CubeHeader, report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        head = shelf.head(header.id)
        emit({**plain(header), "bytes": head.nbytes, "facts": plain(head.facts)})
        return
    tell(shelf, header, as_json=False)
    for fact, is_said in zip(report["facts"], report["says"], strict=True):
        said = "says" if is_said else "does NOT say"
        say(f"{said} {fact['prompt']} {fact['target']}")
    furthest = max(report["moved"], key=lambda matrix: report["moved"][matrix])
    say(
        f"{report['method']}, {format_seconds(report['seconds'])}; "
        f"{furthest} moved by {report['moved'][furthest]:.3f}"
    )
    other = report["elsewhere"]
    say(
        f"{other['kept']} of {other['asked']} unrelated prompts go on as before, "
        f"KL {other['kl']:.4f} nats"
    )
    for one in other["changed"]:
        say(f"  {one['prompt']} | {one['before']} -> {one['after']}")
    note(f"take it back: loci adapter drop {shelf.head(header.id).facts['name']}")
