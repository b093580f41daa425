"""`loci cube`: memory as cubes: text that becomes keys and values, goes back, and moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci.cli import cube_keep
from loci.cli.app import Group
from loci.cli.cube_parts import (
    as_user_option,
    keep_option,
    memory_option,
    permitted,
    reading,
    shelf_of,
    tell,
    tell_dropped,
)
from loci.cli.input import read_text
from loci.cli.memory_parts import opened
from loci.cli.options import SIZE, budget_options, whose
from loci.cli.output import as_json_option, emit, note, plain, say, table
from loci.core.cube import (
    Action,
    Caller,
    CubeHeader,
    MemoryKind,
    Move,
    Policy,
    Sensitivity,
    expiry,
    require,
)
from loci.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from loci.store.shelf import Shelf

off_option = click.option("--off", is_flag=True, help="Take it back.")


@click.group(cls=Group)
def command() -> None:
    """Keep text, keys and values, and adapters as cubes beside a memory.

    A cube of text costs little and is read anew by every session; promoted, it holds the keys and
    values that a model made of it, and a session that opens with it begins at once. Forgetting
    what a cube was made of takes the cube along.
    """


@command.command(name="list")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in MemoryKind]), help="Only this kind."
)
@memory_option
@as_json_option
def list_(kind: str | None, file: str | None, as_json: bool) -> None:
    """Show the cubes beside a memory."""
    shelf = shelf_of(file)
    wanted = None if kind is None else MemoryKind(kind)
    heads = [shelf.head(header.id) for header in shelf.headers(wanted, readable=True)]
    unreadable = shelf.unreadable()
    if as_json:
        cubes = [{**plain(h.header), "bytes": h.nbytes, "facts": plain(h.facts)} for h in heads]
        emit({"cubes": cubes, "unreadable": unreadable, "bytes": shelf.nbytes()})
        return
    rows = [
        (
            h.header.id,
            h.header.kind,
            h.header.state,
            h.header.version,
            h.facts.get("tokens", ""),
            format_bytes(h.nbytes),
            h.header.usage.reads,
            h.header.policy.owner or "everybody",
            "pinned" if h.header.policy.pinned else h.header.policy.expires or "",
        )
        for h in heads
    ]
    head = ("cube", "kind", "state", "version", "tokens", "bytes", "reads", "owner", "until")
    table(rows, head, right=(3, 4, 5, 6))
    for id, why in unreadable.items():
        note(f"{id} cannot be read: {why}")


@command.command()
@click.argument("id")
@click.option("--purpose", help="What it is read for, where the cube asks for that.")
@memory_option
@as_user_option
@as_json_option
def show(id: str, purpose: str | None, file: str | None, user: str | None, as_json: bool) -> None:
    """Show one cube: what it is, where it came from, and what it says."""
    from loci.store.cube_file import read_texts

    shelf = shelf_of(file)
    head = permitted(shelf, id, Action.READ, user, purpose)
    texts = read_texts(shelf.path(id))
    versions = shelf.versions(id)
    if as_json:
        found = {**plain(head), "bytes": shelf.head(id).nbytes, "versions": versions}
        emit({**found, "facts": plain(shelf.head(id).facts), "texts": texts})
        return
    policy = head.policy
    say(f"{id}  {head.kind}, {head.state}, version {head.version} of {versions}")
    say(f"made by {head.provenance.made_by} at {head.provenance.at or 'an unknown time'}")
    say(f"made of {', '.join(head.parents) or 'a text that was given'}")
    readers = f", read by {', '.join(policy.readers)}" if policy.readers else ""
    say(
        f"of {policy.owner or 'everybody'}{readers}, {policy.sensitivity}"
        + (", pinned" if policy.pinned else "")
        + (f", until {policy.expires}" if policy.expires else "")
    )
    for name, value in shelf.head(id).facts.items():
        say(f"  {name}: {value}")
    for text in texts.values():
        say(text)


@command.command()
@click.argument("id", required=False)
@click.option("--text", help="Make a cube of this text.")
@click.option(
    "--file",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Make a cube of the text in this file.",
)
@click.option("--item", "items", multiple=True, help="Make a cube of these memories; repeatable.")
@click.option("--user", help="Whose it is; alone, a cube of all facts about them is made.")
@click.option("--reader", "readers", multiple=True, help="Who else may read it; repeatable.")
@click.option("--purpose", "purposes", multiple=True, help="Only for this; repeatable.")
@click.option("--ttl", type=float, help="Seconds until it expires.")
@click.option(
    "--sensitivity", type=click.Choice([one.value for one in Sensitivity]), help="Else normal."
)
@click.option("--as-text", is_flag=True, help="Keep it as text; no model is loaded.")
@click.option("--limit", type=SIZE, help="Bytes that all cubes may take together.")
@keep_option
@click.option("--model", help="Whose keys and values; else the configured model.")
@budget_options
@memory_option
@as_json_option
def promote(
    id: str | None,
    text: str | None,
    text_file: Path | None,
    items: tuple[str, ...],
    user: str | None,
    readers: tuple[str, ...],
    purposes: tuple[str, ...],
    ttl: float | None,
    sensitivity: str | None,
    as_text: bool,
    limit: int | None,
    keep: int | None,
    model: str | None,
    file: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Read a text once and keep what the model makes of it, exactly.

    The text is a cube by its ID, --text, --file, memories by --item, or all facts about --user.
    Afterwards `loci run MODEL "..." --cube ID` begins with it already read. The run must keep keys
    and values in the same way: name the same budget.
    """
    given_by = [part for part in (id, text, text_file, items or None) if part is not None]
    if len(given_by) > 1 or (not given_by and user is None):
        raise click.UsageError("promote takes one of: ID, --text, --file, --item, --user")
    name = whose(user)
    policy = Policy(
        owner=name,
        readers=readers,
        purposes=purposes,
        sensitivity=Sensitivity(sensitivity or Sensitivity.NORMAL),
        expires=None if ttl is None else expiry(shelf_of(file).clock.now(), ttl),
    )
    said = read_text(text_file) if text_file is not None else text
    shelf, made, header = _made(file, keep, id, said, items, name, policy)
    try:
        if as_text:
            tokens, took = None, None
        else:
            tokens, took = _promoted(shelf, header, name, model, limit, given)
    except BaseException:
        if made:
            shelf.remove(header.id)  # nothing stays of a promotion that failed
        raise
    head = shelf.head(header.id)
    tell_dropped(shelf.dropped)
    if as_json:
        emit({**plain(head.header), "bytes": head.nbytes, "tokens": tokens, "read_s": took})
    elif tokens is None or took is None:
        say(f"{header.id}: text, {format_bytes(head.nbytes)}")
    else:
        say(
            f"{header.id}: {tokens:,} tokens read in {format_seconds(took)}, "
            f"{format_bytes(head.nbytes)} of keys and values"
        )


@command.command()
@click.argument("id")
@keep_option
@memory_option
@as_user_option
@as_json_option
def demote(id: str, keep: int | None, file: str | None, user: str | None, as_json: bool) -> None:
    """Drop a cube's keys and values; its text stays."""
    from loci.run import promote as conversions

    shelf = shelf_of(file, keep)
    header = conversions.demote(shelf, id, caller=Caller(user=whose(user)))
    tell(header, as_json, shelf)


@command.command()
@click.argument("id")
@off_option
@memory_option
@as_user_option
@as_json_option
def pin(id: str, off: bool, file: str | None, user: str | None, as_json: bool) -> None:
    """Keep a cube as it is, whatever a schedule would do with it."""
    shelf = shelf_of(file)
    header = permitted(shelf, id, Action.WRITE, user)
    header = replace(header, policy=replace(header.policy, pinned=not off))
    shelf.change(header)
    tell(header, as_json)


@command.command()
@click.argument("id")
@off_option
@memory_option
@as_user_option
@as_json_option
def freeze(id: str, off: bool, file: str | None, user: str | None, as_json: bool) -> None:
    """Let nothing about a cube change, erasing included, until --off."""
    _move(id, Move.UNFREEZE if off else Move.FREEZE, file, user, as_json)


@command.command()
@click.argument("id")
@off_option
@memory_option
@as_user_option
@as_json_option
def archive(id: str, off: bool, file: str | None, user: str | None, as_json: bool) -> None:
    """Put a cube away; using it, or --off, brings it back."""
    _move(id, Move.RESTORE if off else Move.ARCHIVE, file, user, as_json)


for _command in cube_keep.COMMANDS:
    command.add_command(_command)


def _move(id: str, move: Move, file: str | None, user: str | None, as_json: bool) -> None:
    shelf = shelf_of(file)
    header = shelf.header(id)
    # Who may thaw a frozen cube is who might write to it otherwise.
    as_thawed = header.moved(move) if move is Move.UNFREEZE else header
    require(Caller(user=whose(user)), as_thawed, Action.WRITE, shelf.clock.now())
    header = header.moved(move)
    shelf.change(header)
    tell(header, as_json)


def _made(
    file: str | None,
    keep: int | None,
    id: str | None,
    text: str | None,
    items: Sequence[str],
    user: str,
    policy: Policy,
) -> tuple[Shelf, bool, CubeHeader]:
    """Return the shelf, whether a cube was made, and the cube to be promoted."""
    from loci.run import promote as conversions

    shelf = shelf_of(file, keep)
    if id is not None:
        return shelf, False, shelf.header(id)
    if text is not None:
        return shelf, True, conversions.from_text(shelf, text, policy=policy)
    with opened(file) as memory:
        whole = None if items else user
        header = conversions.from_memory(memory, items=items, user=whole, policy=policy)
    return shelf, True, header


def _promoted(
    shelf: Shelf,
    header: CubeHeader,
    user: str,
    model: str | None,
    limit: int | None,
    given: dict[str, Any],
) -> tuple[int, float]:
    from loci.run import promote as conversions

    with reading(model, given) as (session, _):
        done = conversions.promote(
            session, shelf, header.id, caller=Caller(user=user), limit_bytes=limit
        )
    return done.tokens, done.read_s
