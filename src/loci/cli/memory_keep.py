"""`loci memory`, the commands that look after the store itself."""

from __future__ import annotations

import click

from loci.cli.memory_parts import count_of, file_option, opened
from loci.cli.output import as_json_option, emit, note, say
from loci.errors import MethodError


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


COMMANDS = (index, check)
