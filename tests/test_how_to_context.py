"""The page about long contexts says what is true: its commands parse, its example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from loci.cli.app import root

PAGE = (Path(__file__).parents[1] / "docs/how-to/context.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_exists(line: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The key lies under the third stone.")
    name, *words = shlex.split(line.replace("notes.txt", str(tmp_path / "notes.txt")))
    assert name == "loci"
    command: click.Command = root
    context = click.Context(root)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    command.make_context(command.name, words)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "context.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "True"
