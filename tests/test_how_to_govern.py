"""The page about governed changes says what is true: its example runs, its commands verify."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from loci.cli import main
from loci.config import FILE_VARIABLE, KEYS

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
