"""The page about governed changes says what is true: its example runs, its commands verify."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from loci.cli import main
from loci.config import FILE_VARIABLE, KEYS
from loci.memory import Memory

PAGE = (Path(__file__).parents[1] / "docs/how-to/govern.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LOCI_MEMORY", str(tmp_path / "memory.db"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_runs_and_its_audit_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "govern.md", "exec"), {})
    verdict, where = capsys.readouterr().out.splitlines()
    assert verdict == "pass" and "Ghent" in where
    (commands,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    lines = commands.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert main(shlex.split(line.partition("#")[0])[1:]) == 0
    shown = capsys.readouterr().out
    assert "rollback" in shown and "whole; last digest" in shown and "Ghent" not in shown


def test_the_commands_run_on_a_file_as_it_is_shown(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Memory("team.db") as memory:
        office = memory.note("Our office is in Ghent.", user="team")
    (change,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (probe,) = re.findall(r"# (\{.*\})", change)
    (home / "move.toml").write_text(change.replace("ITEM", office.id))
    (home / "move.jsonl").write_text(f"{probe}\n" * 40)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    shown = {}
    for line in block.splitlines():
        words = shlex.split(line.partition("#")[0])[1:]
        assert main(words) == 0, capsys.readouterr().err
        shown[words[1]] = capsys.readouterr().out
    assert "right 1.000 of 40" in shown["admit"] and "Our office" in shown["ask"]
    assert "canary" in shown["status"] and "rolled_back" in shown["rollback"]
    assert shown["verify"] == "move, rolled_back: as certified\n"
