"""The page about making a model fit says what is true: its commands parse, its example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from loci.cli.app import root

PAGE = (Path(__file__).parents[1] / "docs/how-to/fit.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_exists(line: str) -> None:
    name, *words = shlex.split(line)
    assert name == "loci"
    command: click.Command = root
    context = click.Context(root)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    command.make_context(command.name, words)


def test_pictures_of_the_page_are_there() -> None:
    for name in re.findall(r"\]\(\.\./(img/[^)]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / name).is_file(), name
