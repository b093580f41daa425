"""`loci memory`, the commands that change what is remembered, or carry it in and out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loci.cli.adapter import retrainer
from loci.cli.memory_parts import (
    agent_option,
    backend_option,
    count_of,
    fall_back_option,
    file_option,
    opened,
    others,
    owner_option,
    print_items,
    recall_option,
    rows_of,
    session_option,
    steps_of,
    times,
    user_option,
)
from loci.cli.options import whose
from loci.cli.output import as_json_option, emit, note, plain, progress, say, table
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.core.item import Item
    from loci.memory import Memory
    from loci.store.base import Erased


@click.command()
@click.argument("id")
@click.argument("text")
@click.option("--reason", default="", help="Why; kept in the history.")
@file_option
@owner_option
@as_json_option
def edit(
    id: str, text: str, reason: str, file: str | None, user: str | None, as_json: bool
) -> None:
    """Write an item anew; the old text stays in its history."""
    with opened(file) as memory:
        item = memory.edit(id, text, user=user, reason=reason)
    _tell(item, as_json)


@click.command()
@click.argument("id")
@file_option
@owner_option
@as_json_option
def history(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Show every change of an item, oldest first, with the messages that led to it."""
    with opened(file) as memory:
        changes = memory.history(id, user=user)
    if as_json:
        emit([{**plain(change), "steps": steps_of(change.steps)} for change in changes])
        return
    table(
        [(row[0], *row[2:]) for row in rows_of(changes)],
        ("change", "when", "what", "by", "text", "reason"),
    )
    for change in changes:
        for step in change.steps:
            say(f"{change.id}: {step}")


@click.command()
@click.option("--by", "made_by", help="Only what this made, such as rules or person.")
@click.option("--limit", type=click.IntRange(min=1), default=20, help="At most so many; else 20.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Pass over so many first.")
@file_option
@user_option
@as_json_option
def log(
    made_by: str | None, limit: int, offset: int, file: str | None, user: str | None, as_json: bool
) -> None:
    """Show what was changed last in a user's memory, newest first.

    With --by rules it shows what was done without asking; undo takes any of it back.
    """
    who = whose(user)
    with opened(file) as memory:
        changes = memory.changes(user=who, made_by=made_by, limit=limit, offset=offset)
        if not changes:
            others(memory, who)
    if as_json:
        emit([{**plain(change), "steps": steps_of(change.steps)} for change in changes])
        return
    table(rows_of(changes), ("change", "item", "when", "what", "by", "text", "reason"))


@click.command()
@click.argument("id")
@file_option
@owner_option
@as_json_option
def undo(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Take back a change, the last change of an item, or all that a message led to."""
    with opened(file) as memory:
        items = memory.undo(id, user=user)
    _tell(items, as_json)


@click.command()
@click.argument("id")
@file_option
@owner_option
@as_json_option
def redo(id: str, file: str | None, user: str | None, as_json: bool) -> None:
    """Do again what undo took back: a change, the next of an item, or a message's."""
    with opened(file) as memory:
        items = memory.redo(id, user=user)
    _tell(items, as_json)


@click.command()
@click.argument("id")
@click.option("--at", help="When it ended, ISO 8601; else now.")
@click.option("--reason", default="", help="Why; kept in the history.")
@file_option
@owner_option
@as_json_option
def retire(
    id: str, at: str | None, reason: str, file: str | None, user: str | None, as_json: bool
) -> None:
    """Stop believing an item; it is kept, and undo brings it back."""
    with opened(file) as memory:
        item = memory.retire(id, at=at, user=user, reason=reason)
    _tell(item, as_json)


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of --user, with --session or --agent.")
@click.option("--mentions", is_flag=True, help="Also what only speaks of the same.")
@click.option(
    "--retrain", is_flag=True, help="Make adapters anew without it; else they are emptied."
)
@click.option("--dry-run", is_flag=True, help="Show what would go and erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@session_option
@agent_option
@file_option
@click.option("--user", help="Refuse ids that are not this user's; with --all, whose memory.")
@as_json_option
def forget(
    ids: tuple[str, ...],
    everything: bool,
    mentions: bool,
    retrain: bool,
    dry_run: bool,
    yes: bool,
    session: str | None,
    agent: str | None,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Erase items or messages for good, with all that was derived from them.

    The sentences they came from go too, wherever they were said. The report says how often the
    erased text is still found in the bytes of the memory, what else still speaks of it, and what
    erasing cannot reach.
    """
    if everything == bool(ids) or (everything and user is None):
        raise click.UsageError("forget takes one ID or more, or --all with --user")
    if (session or agent) and not everything:
        raise click.UsageError("--session and --agent go with --all")

    def erase(memory: Memory, *, dry: bool) -> Erased:
        with progress() as report:
            anew = retrainer(memory, report) if retrain and not dry else None
            if everything:
                assert user is not None
                return memory.forget_all(
                    user=user, session=session, agent=agent, dry_run=dry, retrain=anew
                )
            return memory.forget(list(ids), user=user, dry_run=dry, mentions=mentions, retrain=anew)

    with opened(file) as memory:
        if not dry_run and not yes and sys.stdin.isatty():
            for text in erase(memory, dry=True).texts:
                note(f"- {text}")
            click.confirm("Erase this for good?", abort=True, err=True)
        erased = erase(memory, dry=dry_run)
    if as_json:
        emit({**plain(erased), "clean": erased.clean})
    else:
        _report(erased)


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@file_option
@user_option
@as_json_option
def export(path: Path, file: str | None, user: str | None, as_json: bool) -> None:
    """Write everything remembered of a user as JSON lines that only you can read."""
    who = whose(user)
    with opened(file) as memory:
        count = memory.export(path, user=who)
    if as_json:
        emit({"records": count, "path": path})
    else:
        say(f"{count_of(count, 'record')}, {format_bytes(path.stat().st_size)} in {path}")


@click.command(name="import")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "format",
    default="auto",
    help="loci, locomo, mem0 or langmem; else it is recognised.",
)
@click.option("--conversation", help="Only this sample of a LoCoMo file.")
@click.option("--no-facts", is_flag=True, help="Keep what was said and draw no facts from it.")
@recall_option
@backend_option
@fall_back_option
@file_option
@click.option("--user", help="Whose memory it becomes; else the names in the file.")
@as_json_option
def import_(
    path: Path,
    format: str,
    conversation: str | None,
    no_facts: bool,
    recall: str | None,
    backend: str | None,
    fall_back: bool,
    file: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Add an export of Loci, of Mem0 or of a LangGraph store (LangMem), or a LoCoMo file.

    What is there already is passed over, so an import that was cut off goes on when it is run
    again. Without --user, memories keep the user of the file: the one an export was written for,
    the user_id of Mem0, a namespace joined with dots, the sample of a LoCoMo conversation.
    """
    with opened(file, True, recall, backend, fall_back) as memory:
        with progress() as report:
            count = memory.import_(
                path,
                format,
                user=user,
                infer=False if no_facts else None,
                conversation=conversation,
                progress=lambda done, total: report("importing", done, total),
            )
        users = memory.users()
    if as_json:
        emit({"new": count, "users": users})
    else:
        say(f"{count_of(count, 'record')} new")
        note(f"remembered in this memory: {', '.join(users)}; search with --user")


COMMANDS = (edit, history, log, undo, redo, retire, forget, export, import_)


def _tell(changed: Item | Sequence[Item], as_json: bool) -> None:
    """Print what a command changed."""
    if as_json:
        emit(changed)
    else:
        print_items(changed if isinstance(changed, Sequence) else [changed])


def _report(erased: Erased) -> None:
    """Print what an erasure took, what is left of it, and what it could not reach."""
    say("erased:" if erased.done else "would erase:")
    for text in erased.texts:
        say(f"  {text}")
    for id, sentences in erased.cut.items():
        say(f"  {'cut' if erased.done else 'would cut'} out of {id}: {' '.join(sentences)}")
    for what, cubes in (
        ("cubes that go with it", erased.cubes),
        ("adapters emptied for good", erased.retired),
        ("adapters trained anew without it", erased.retrained),
    ):
        if cubes:
            say(f"{what}: {', '.join(cubes)}")
    if erased.done:
        left = sum(erased.found.values())
        say(f"found again in {count_of(len(erased.found), 'file')} of the memory: {times(left)}")
    for name, number in erased.beside.items():
        say(f"found beside the memory, in {name}: {times(number)}")
    if erased.too_short:
        say(f"too short to look for: {count_of(len(erased.too_short), 'text')}")
    if erased.mentions:
        most = ", ".join(erased.mentions[:10]) + (", ..." if len(erased.mentions) > 10 else "")
        say(f"what still speaks of it: {most}; --mentions takes it along")
    if erased.elsewhere:
        say(f"held by other users too: {count_of(erased.elsewhere, 'text')}")
    if erased.out_of_reach:
        say(f"out of reach: {', '.join(erased.out_of_reach)}")
