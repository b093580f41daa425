"""The page about cubes says what is true: its commands parse, its example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from loci.cli.app import root

PAGE = (Path(__file__).parents[1] / "docs/how-to/cubes.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_exists(line: str, tmp_path: Path) -> None:
    for name in ("notes.txt", "gift.cube"):
        (tmp_path / name).write_text("The key lies under the third stone.")
        line = line.replace(name, str(tmp_path / name))
    name, *words = shlex.split(line)
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
def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import loci

    monkeypatch.chdir(tmp_path)
    with loci.Memory("ada.db", embedder=None) as memory:
        memory.add("I live in Graz. I am allergic to nuts.", user="ada")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.strip()
    with loci.Memory("ada.db", embedder=None) as memory:
        assert memory.shelf is not None
        (header,) = memory.shelf.headers()
        assert header.usage.reads == 1
