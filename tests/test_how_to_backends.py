"""The page about back ends says what is true: its example runs, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from loci.cli import main
from loci.cli.app import root
from loci.config import FILE_VARIABLE, KEYS
from loci.methods import catalogue
from loci.testing.models import tiny_pack

PAGE = (Path(__file__).parents[1] / "docs/how-to/backends.md").read_text("utf-8")
REPLIES = {
    "Draw lasting facts": {"facts": [{"text": "The user moved to Graz", "sources": [1]}]},
    "choose one operation": {"1": {"operation": "ADD", "memory": None}},
}


class Answers(BaseHTTPRequestHandler):
    """A server that knows the two answers the example needs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        reply = next(json.dumps(reply) for text, reply in REPLIES.items() if text in body)
        answer = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_the_example_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example.replace("http://localhost:11434/v1", url), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "draw facts by endpoint",
        "decide by endpoint",
    ]


def test_settings_options_and_methods_exist() -> None:
    names = {key.name for key in KEYS}
    assert set(re.findall(r"loci config [sg]et (\w+)", PAGE)) <= names
    memory = root.get_command(None, "memory")  # type: ignore[arg-type]
    add = memory.get_command(None, "add")  # type: ignore[union-attr]
    options = {name for parameter in add.params for name in parameter.opts}
    others = {"--method", "--option", "--model", "--data"}  # of the other commands on the page
    assert set(re.findall(r"--[a-z][a-z-]*", PAGE)) <= {*options, *others}
    named = re.findall(r"^\| `(\w+)` \|", PAGE.split("## Which method")[1], re.MULTILINE)
    assert set(named) <= set(catalogue.names("recall")) and len(named) == 4


def test_the_commands_about_experts_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_pack(tmp_path / "models" / "tiny").close()
    for name, value in (("MODEL", "tiny"), ("DRAM", "64MiB"), ("CONTEXT", "512")):
        monkeypatch.setenv(f"LOCI_{name}", value)
    monkeypatch.setenv("LOCI_MEMORY", str(tmp_path / "memory.db"))
    monkeypatch.setenv("LOCI_CACHE", str(tmp_path))
    [block] = re.findall(r"```text\n(loci methods prepare memlora.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        _, *words = shlex.split(line, comments=True)
        few = ["--train", "1"] if "prepare" in words else []  # the page's own steps take long
        assert main([*words, *few]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "models" / "tiny").glob("memlora.*"))) == 3
    assert main(["memory", "add", "I play chess"]) == 0
    assert "draw facts by slm, asked tiny once" in capsys.readouterr().err
