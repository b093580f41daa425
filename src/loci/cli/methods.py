"""`loci methods`: the published methods that Loci has."""

from __future__ import annotations

from functools import partial
from typing import Any  # parameters are whatever JSON can hold

import click

from loci import api
from loci.cli.options import SIZE
from loci.cli.output import as_json_option, emit, note, progress, say, table
from loci.methods.describe import described
from loci.units import format_bytes


class Methods(click.Group):
    """A group in which every name that is no command is a method to show."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return `prepare`, or a command that shows the method of this name."""
        known = super().get_command(ctx, cmd_name)
        if known is not None or cmd_name.startswith("-"):
            return known
        return click.Command(
            cmd_name,
            callback=partial(show, cmd_name),
            params=[click.Option(["--json", "as_json"], is_flag=True, help="Print it as JSON.")],
            help="Show this method with its parameters and card.",
        )


@click.group(cls=Methods, invoke_without_command=True, subcommand_metavar="[NAME | prepare ...]")
@as_json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the published methods that Loci has, or show one with its parameters and card."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = as_json
        return
    entries = api.methods()
    if as_json:
        emit([described(method, card) for method, card in entries])
        return
    rows = [
        (m.about.kind, m.about.name, card.verdict if card else "no card", m.about.idea)
        for m, card in entries
    ]
    table(rows, ("kind", "name", "verdict", "idea"))


def show(name: str, as_json: bool) -> None:
    """Print one method."""
    from loci.methods import catalogue

    as_json = as_json or bool(click.get_current_context().obj)
    asked = catalogue.method_class(name)
    found = described(asked, next(card for method, card in api.methods() if method is asked))
    if as_json:
        emit(found)
        return
    for line in lines(found):
        say(line)


@command.command()
@click.argument("method")
@click.option("--model", help="The model to prepare it for; else the configured one.")
@click.option(
    "--weights",
    type=SIZE,
    help="Make a model whose weights take so many bytes, shared between layers by what each loses.",
)
@click.option(
    "--train",
    type=click.IntRange(1),
    help="Steps to train: corrections of int21, each expert of memlora.",
)
@as_json_option
def prepare(
    method: str, model: str | None, weights: int | None, train: int | None, as_json: bool
) -> None:
    """Do now what a method does once for a model.

    A method of weights that packs in levels (bitstack) makes a stack, from which runs of any size
    load what fits. Every other one (gptq) makes a model of its own, which is run by its name. A
    method of the KV cache (cskv) keeps what it found out beside the model. memlora teaches the
    model to draw facts, to settle them and to answer from them, an adapter each; that takes minutes
    and goes on where it was if it is cut off.
    """
    with progress() as report:
        made = api.prepare(method, model, weights=weights, train=train, progress=report)
    if as_json:
        emit(made)
        return
    note(f"kept in {made['path']}")
    if made["kind"] == "artefact":
        say(f"{made['method']}  {format_bytes(made['bytes'])}")
        return
    if made["kind"] == "experts":
        for name, one in made["experts"].items():
            say(
                f"{name:<8} {format_bytes(one['bytes']):>8}  right in {one['right']} of "
                f"{one['tried']} with people and wordings it was not taught; "
                f"{one['lessons']} lessons, {one['processor_s']:.0f} s of a processor"
            )
        return
    if made["kind"] == "model":
        say(f"{made['name']}  {format_bytes(made['bytes'])}  {made['kl']:.4f} nats a token")
        return
    for size, loss in zip(made["bytes"], made["kl"], strict=True):
        say(f"{format_bytes(size):>10}  {loss:.4f} nats a token")


def lines(found: dict[str, Any]) -> list[str]:
    """Return one method for people."""
    text = [
        f"{found['name']} ({found['kind']}): {found['idea']}",
        f"  paper     {found['paper']}",
        f"  works in  {', '.join(found['phases']) or '-'}",
        f"  needs     {', '.join(found['needs']) or 'nothing'}",
        f"  frees     {found['frees']}{'' if found['lossy'] else ', without loss'}",
    ]
    if found["reconstruction"]:
        text.append(f"  ours      {found['reconstruction']}")
    for name, entry in found["parameters"].items():
        default = f" (default {entry['default']})" if "default" in entry else ""
        unit = f" [{entry['unit']}]" if "unit" in entry else ""
        text.append(f"  {name:<9} {entry['description']}{unit}{default}")
    card = found["card"]
    if card is None:
        return [*text, "  card      none yet"]
    text.append(f"  claim     {card['claim']} ({card['where']})")
    text.append(f"  verdict   {card['verdict']}: {card['because']}")
    for m in card["measurements"]:
        numbers = ", ".join(f"{metric} {value['this']}" for metric, value in m.metrics.items())
        text.append(f"  measured  {m.model}, {m.suite}: {numbers}")
    return text
