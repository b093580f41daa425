"""The page about agents says what is true: its examples run, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loci.cli.app import root
from loci.config import FILE_VARIABLE, KEYS
from loci.run.agents import acting

PAGE = (Path(__file__).parents[1] / "docs/how-to/agents.md").read_text("utf-8")
SECTIONS = {
    title.rpartition(": ")[2]: text
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
SAYS = {"tme": ["destination was Seattle", "Said: What was the destination before?"]}


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_example_of_each_method_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    exec(example, {})
    told = capsys.readouterr().out
    for line in SAYS[name]:
        assert line in told, told


def test_every_method_has_a_section_and_every_command_exists() -> None:
    assert sorted(SECTIONS) == acting()
    agent = root.get_command(None, "agent")  # type: ignore[arg-type]
    known = set(agent.list_commands(None))  # type: ignore[union-attr,arg-type]
    assert set(re.findall(r"^loci agent (\w+)", PAGE, re.MULTILINE)) <= known
