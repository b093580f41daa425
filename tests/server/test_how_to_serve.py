"""The page about serving says what is true: its examples run, its paths and options exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Served

from loci.cli.app import root

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/serve.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
HOME = "http://127.0.0.1:8766"


@pytest.fixture
def remembering(serve: Callable[..., Served], tmp_path: Path) -> Served:
    return serve(memory=tmp_path / "m.db")


@pytest.mark.parametrize("text", [PAGE, README], ids=["serve.md", "README"])
def test_the_program_runs(
    text: str, remembering: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (program,) = (one for one in programs if "OpenAI(" in one)
    program = program.replace(HOME, remembering.url).replace('"smollm2"', '"tiny"')
    space: dict[str, object] = {}
    exec(program, space)
    space["client"].close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out
    with remembering.http() as http:
        found = http.get("/api/v1/memories", params={"user": "ada", "kinds": "turn"}).json()
    assert "I live in Ghent" in found["memories"][-1]["content"]


@pytest.mark.parametrize("text", [PAGE, README], ids=["serve.md", "README"])
def test_the_curl_line_is_answered(text: str, server: Served) -> None:
    (line,) = re.findall(r"^curl (.*?)(?:\n```)", text, re.DOTALL | re.MULTILINE)
    words = shlex.split(line)
    assert words[0].startswith(HOME)
    body = json.loads(words[words.index("-d") + 1]) | {"model": "tiny"}
    with server.http() as http:
        answer = http.post(words[0].removeprefix(HOME), json=body)
    assert answer.status_code == 200 and answer.json()["choices"]


def test_every_path_of_the_table_is_there(server: Served) -> None:
    with server.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    named = re.findall(r"`(/[a-z0-9/_.]+)`", PAGE.split("## One budget")[0])
    assert len(named) > 12
    assert {path for path in named if path not in ("/", "/openapi.json")} <= set(paths)


def test_commands_and_options_exist() -> None:
    context = root.make_context("loci", ["ps"])
    other = (ROOT / "docs/how-to/page.md").read_text("utf-8")
    for line in re.findall(r"^loci (.*)$", PAGE + other, re.MULTILINE):
        words = shlex.split(line.partition("#")[0])
        command = root.get_command(context, words.pop(0))
        assert command is not None, line
        if hasattr(command, "get_command"):
            command = command.get_command(context, words.pop(0))
            assert command is not None, line
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    serve = root.get_command(context, "serve")
    assert serve is not None
    options = {name for parameter in serve.params for name in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)`", PAGE + other)) - {"--no-server"} <= options | {
        name for parameter in serve.params for name in parameter.secondary_opts
    }
    for command in ("run", "chat"):
        found = root.get_command(context, command)
        assert found is not None
        assert "--no-server" in {n for p in found.params for n in p.secondary_opts}


def test_pictures_of_the_page_are_there_and_small() -> None:
    other = (ROOT / "docs/how-to/page.md").read_text("utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(\.\./img/([^)]+)\)", other)
    assert len(pictures) == 3
    for name in pictures:
        assert 10_000 < (ROOT / "docs/img" / name).stat().st_size < 150_000
