"""`loci memory`, the commands that look after the store itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loci import config
from loci.cli.memory_parts import count_of, file_option, opened
from loci.cli.output import as_json_option, emit, note, say, table
from loci.errors import MethodError, StoreError

if TYPE_CHECKING:
    from loci.store.audit import Audit


@click.command()
@file_option
@as_json_option
def index(file: str | None, as_json: bool) -> None:
    """Embed all that waits for it, and build the index of vectors above 100,000.

    Searches do both as far as they must; this does the rest, and may take minutes.
    """
    with opened(file) as memory:
        if memory.embedder is None:
            raise MethodError("there is no embedder", way_out="get it: loci pull minilm")
        count = memory.wait()
    if as_json:
        emit({"embedded": count})
    else:
        say(f"{count_of(count, 'text')} embedded")


@click.command()
@file_option
@as_json_option
def check(file: str | None, as_json: bool) -> None:
    """Look whether the memory is whole; nothing is changed. Exit code 1 means that it is not."""
    with opened(file) as memory:
        problems = memory.check_integrity()
    if as_json:
        emit({"problems": problems})
    else:
        for problem in problems:
            say(problem)
        if not problems:
            note("the memory is whole")
    if problems:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--verify", is_flag=True, help="Look whether the chain is whole; show no entries.")
@click.option("--anchor", help="With --verify: a digest kept elsewhere, which it must hold.")
@file_option
@as_json_option
def audit(verify: bool, anchor: str | None, file: str | None, as_json: bool) -> None:
    """Show what was forgotten, promoted and changed, as the chain beside the memory tells it.

    Each entry carries the hash of the one before it. --verify names the first entry that was
    altered, removed, moved or cut; keep the digest it prints in another place, and give it as
    --anchor: then a chain that was written anew is found too. Exit code 1 means that it is not
    whole.
    """
    if anchor is not None and not verify:
        raise click.UsageError("--anchor goes with --verify")
    chain = _chain(file)
    if verify:
        count = chain.verify(anchor=anchor)
        head = chain.head()
        digest = head.digest if head is not None else None
        if as_json:
            emit({"entries": count, "digest": digest})
        else:
            say(f"{count} {'entry' if count == 1 else 'entries'}, whole; last digest {digest}")
        return
    entries = chain.entries()
    if as_json:
        emit(entries)
        return
    rows = [
        (
            str(entry.seq),
            entry.at[:19],
            entry.what,
            entry.name if entry.name is not None else f"erased:{entry.subject[:12]}",
            " ".join(f"{name}={value}" for name, value in entry.facts.items()),
        )
        for entry in entries
    ]
    table(rows, ("entry", "when", "what", "subject", "facts"))


def _chain(file: str | None) -> Audit:
    """Return the audit beside a memory, whether or not the memory itself is still there."""
    from loci.run.audited import beside

    where = file if file is not None else config.load().memory_file
    found = beside(where)
    if found is None:
        raise StoreError(
            f"no audit was begun beside {where}",
            way_out="the first cube begins one, or Memory(path, audit=Audit(f'{path}.audit'))",
        )
    return found


COMMANDS = (index, check, audit)
