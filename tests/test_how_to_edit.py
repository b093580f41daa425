"""The page about edits says what is true: its commands parse, its file of facts is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from loci.cli.app import root
from loci.run.edits import ELSEWHERE
from loci.run.fact_files import fact_of, facts_in

PAGE = (Path(__file__).parents[1] / "docs/how-to/edit.md").read_text("utf-8")
(FACTS,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_exists(line: str, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(FACTS)
    name, *words = shlex.split(line.replace("facts.json", str(tmp_path / "facts.json")))
    assert name == "loci"
    command: click.Command = root
    context = click.Context(root)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    made = command.make_context(command.name, words)
    for prompt, target in made.params.get("given") or ():
        assert fact_of(prompt, target).text


def test_the_file_of_the_page_holds_facts(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(FACTS)
    assert [fact.subject for fact in facts_in(tmp_path / "facts.json")] == ["France", "France"]
    assert len(ELSEWHERE) == 8 and "eight sentences" in PAGE
