"""`loci cube`, the commands that keep cubes: versions, copies, files, and the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any  # click hands keyword arguments through

import click

from loci import config
from loci.cli.cube_parts import (
    as_user_option,
    keep_option,
    memory_option,
    permitted,
    reading,
    shelf_of,
    tell,
)
from loci.cli.memory_parts import opened
from loci.cli.options import SIZE, budget_options, whose
from loci.cli.output import as_json_option, emit, note, say
from loci.core.arrange import Change, Shift
from loci.core.cube import Action, Caller, State, permit
from loci.units import format_bytes


@click.command()
@click.argument("id")
@click.option("--to", "number", type=int, required=True, help="The version to go back to.")
@keep_option
@memory_option
@as_user_option
@as_json_option
def rollback(
    id: str, number: int, keep: int | None, file: str | None, user: str | None, as_json: bool
) -> None:
    """Make an earlier version the present one; the later ones are kept too."""
    shelf = shelf_of(file, keep)
    permitted(shelf, id, Action.WRITE, user)
    tell(shelf.rollback(id, number), as_json, shelf)


@click.command()
@click.argument("id", required=False)
@click.option("--dry-run", is_flag=True, help="Show what would go, and do nothing.")
@keep_option
@memory_option
@as_user_option
@as_json_option
def prune(
    id: str | None,
    dry_run: bool,
    keep: int | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Overwrite all but the newest earlier versions, of one cube or of all of yours.

    A frozen cube keeps all of its versions. The audit tells what went, with its digest.
    """
    from loci.store.shelf import KEEP_VERSIONS

    shelf = shelf_of(file)
    if id is not None:
        permitted(shelf, id, Action.WRITE, user)
        ids = [id]
    else:
        caller = Caller(user=whose(user))
        ids = [
            header.id
            for header in shelf.headers(readable=True)
            if header.state is not State.FROZEN
            and permit(caller, header, Action.WRITE, shelf.clock.now()).is_allowed
        ]
    gone = [
        one
        for each in ids
        for one in shelf.prune(KEEP_VERSIONS if keep is None else keep, each, dry_run=dry_run)
    ]
    if as_json:
        emit(gone)
        return
    for one in gone:
        would = "would drop" if dry_run else "dropped"
        say(f"{would} version {one.version} of {one.id}, {format_bytes(one.nbytes)}")
    if not gone:
        note("there is nothing to drop")


@click.command()
@click.argument("id")
@click.argument("name", required=False)
@memory_option
@as_user_option
@as_json_option
def fork(id: str, name: str | None, file: str | None, user: str | None, as_json: bool) -> None:
    """Put a copy beside a cube, under NAME or an id of its own; both go on apart."""
    shelf = shelf_of(file)
    permitted(shelf, id, Action.READ, user)
    tell(shelf.fork(id, name), as_json)


@click.command()
@click.argument("id")
@click.argument("other")
@click.option("--base", required=True, metavar="ID[@VERSION]", help="What both came from.")
@click.option("--ours", "stays", flag_value="ours", help="Where both changed, ID stays.")
@click.option("--theirs", "stays", flag_value="theirs", help="Where both changed, OTHER stays.")
@keep_option
@memory_option
@as_user_option
@as_json_option
def merge(
    id: str,
    other: str,
    base: str,
    stays: str | None,
    keep: int | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Bring what changed in OTHER into ID; both came from --base.

    Notes that both changed are refused and named, unless --ours or --theirs says which stays.
    """
    from loci.store.cube_merge import merge as merged

    shelf = shelf_of(file, keep)
    permitted(shelf, id, Action.WRITE, user)
    permitted(shelf, other, Action.READ, user)
    name, _, version = base.partition("@")
    number = int(version) if version.isdigit() else shelf.header(name).version
    resolve = None if stays is None else lambda _, mine, yours: mine if stays == "ours" else yours
    mine, theirs = ((shelf.header(one), shelf.payload(one)) for one in (id, other))
    made = merged(mine, theirs, shelf.version(name, number), resolve=resolve)
    tell(shelf.put(*made), as_json, shelf)


@click.command()
@click.argument("id")
@memory_option
@as_user_option
@as_json_option
def drop(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Overwrite a cube with all its versions and take it away."""
    shelf = shelf_of(file)
    if id not in shelf.unreadable():
        permitted(shelf, id, Action.ERASE, user)
    shelf.remove(id)
    if as_json:
        emit({"removed": id})
    else:
        say(f"{id} is gone")


@click.command()
@click.argument("id")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@memory_option
@as_user_option
@as_json_option
def save(id: str, path: Path, file: str | None, user: str | None, as_json: bool) -> None:
    """Write a cube to a file of its own, to be carried elsewhere."""
    shelf = shelf_of(file)
    permitted(shelf, id, Action.SHARE, user)
    shelf.save(id, path)
    if as_json:
        emit({"id": id, "path": path, "bytes": path.stat().st_size})
    else:
        say(f"{id}, {format_bytes(path.stat().st_size)} in {path}")


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Refuse what was made for another model than this.")
@memory_option
@as_json_option
def load(path: Path, model: str | None, file: str | None, as_json: bool) -> None:
    """Take a cube from a file, every byte of it checked."""
    fingerprint = None
    if model is not None:
        from loci.models.load import spec_of

        fingerprint = spec_of(model, config.load().models_dir)[0].fingerprint
    shelf = shelf_of(file)
    store = None
    if Path(str(shelf.folder).removesuffix(".cubes")).is_file():
        from loci.run.memory_files import name_of

        with opened(file) as memory:
            store = name_of(memory.store)
    tell(shelf.load(path, fingerprint=fingerprint, store=store), as_json)


@click.command()
@click.option("--limit", type=SIZE, help="Bytes that keys and values may take; promotes into them.")
@click.option("--model", help="Whose keys and values; else the configured model.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@budget_options
@memory_option
@as_json_option
def tick(
    limit: int | None,
    model: str | None,
    dry_run: bool,
    file: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Let the schedule act once: what is idle is archived, what is over expires and is erased.

    With --limit a model is loaded, and what is read often enough to pay for it is promoted; what
    no longer is goes back to text.
    """
    from loci.methods.recall.memos import Memos
    from loci.run import arrange

    shelf, method = shelf_of(file), Memos()
    if limit is None:
        changes = arrange.tick(shelf, method, dry_run=dry_run)
    else:
        with reading(model, given) as (session, report):
            changes = arrange.tick(
                shelf,
                method,
                budget_bytes=limit,
                session=session,
                dry_run=dry_run,
                progress=lambda done, total: report("arranging", done, total),
            )
    if as_json:
        emit([{"do": _verb(change), "id": change.id} for change in changes])
        return
    for change in changes:
        say(f"{'would ' if dry_run else ''}{_verb(change)} {change.id}")
    if not changes:
        note("nothing is due")


COMMANDS = (rollback, prune, fork, merge, drop, save, load, tick)


def _verb(change: Change) -> str:
    return change.move if isinstance(change, Shift) else type(change).__name__.lower()
