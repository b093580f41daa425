"""The page about an assistant that remembers says what is true: its examples run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from loci.cli import main
from loci.config import FILE_VARIABLE, KEYS

PAGE = (Path(__file__).parents[1] / "docs/how-to/remember.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LOCI_MEMORY", str(tmp_path / "memory.db"))
    monkeypatch.setenv("LOCI_USER", "ada")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put a client in the place of `openai` that answers with what it was told."""
    asked: list[Any] = []

    class OpenAI:
        def __init__(self, *, base_url: str, api_key: str) -> None:
            self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

        def create(self, *, model: str, messages: list[dict[str, str]]) -> Any:
            asked.append(messages)
            message = SimpleNamespace(content=f"I was told: {messages[0]['content']}")
            return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    module = ModuleType("openai")
    module.OpenAI = OpenAI  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openai", module)
    return asked


def test_with_an_openai_client(openai: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    exec(EXAMPLES[0], space)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("[]") and len(openai) == 2
    known = json.loads(second.partition(": ")[2].partition("): ")[2])
    assert isinstance(known, list)
    space["ask"]("Am I allergic to something?", user="ada")
    assert "allergic to nuts" in openai[-1][0]["content"]
    space["ask"]("Am I allergic to something?", user="bob")
    assert "nuts" not in openai[-1][0]["content"]
    space["memory"].close()


def test_with_the_import_of_another_system(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    exec(EXAMPLES[1], space)
    assert "basketball" in capsys.readouterr().out
    space["m"].close()


def test_with_the_import_of_memos(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {}
    exec(EXAMPLES[2], space)
    assert "football" in capsys.readouterr().out
    space["mos"].close()


def test_with_langgraph(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    exec(EXAMPLES[3], {})
    assert capsys.readouterr().out == '["I\'m allergic to nuts"]\n'
    assert main(["memory", "list", "--file", "graph.db", "--user", "memories.ada"]) == 0
    assert "allergic to nuts" in capsys.readouterr().out


def test_every_python_block_is_run_here() -> None:
    assert len(EXAMPLES) == 4


def test_the_settings_of_an_assistant_are_json_and_name_a_command() -> None:
    (settings,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    server = json.loads(settings)["mcpServers"]["memory"]
    assert server["command"] == "loci" and main([server["args"][0], "--help"]) == 0


def test_every_command_of_the_page_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "add", "I'm allergic to nuts", "--time", "2025-01-01"]) == 0
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        command = line.partition("#")[0].split()[1:]
        assert main([*command[:2], "--help"]) == 0
        shown = capsys.readouterr().out
        for option in (word for word in command if word.startswith("--")):
            assert option in shown, line
