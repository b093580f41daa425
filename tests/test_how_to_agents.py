"""The page about agents says what is true: its examples run, and its commands exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from loci.cli.app import root
from loci.config import FILE_VARIABLE, KEYS
from loci.run.agents import acting
from loci.testing.programmer import Programmer

PAGE = (Path(__file__).parents[1] / "docs/how-to/agents.md").read_text("utf-8")
SECTIONS = {
    title.rpartition(": ")[2]: text
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
SAYS = {
    "tme": ["destination was Seattle", "Said: What was the destination before?"],
    "arcmemo": [
        ", then recolor(?old0, ?new1)",
        "[[[0, 0, 8, 8]]] ['c",
        "clean(host=app-9)\nrestart(service=ledger)",
        "rests on 2 traces; not tried yet; ?1 is app-9, ?2 is ledger",
    ],
    "maple": ["second done [\"tap 'More'\", \"tap 'Drafts'\"]"],
    "l2mac": ["done ['rate.py', 'test_total.py', 'total.py'] syntax and tests"],
}


class Answers(BaseHTTPRequestHandler):
    """A server behind which a programmer sits."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = Programmer().generate(asked["messages"], max_tokens=asked["max_tokens"])
        answer = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_example_of_each_method_runs(
    name: str,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert examples
    for example in examples:
        exec(example.replace("http://localhost:11434/v1", url), {})
    told = capsys.readouterr().out
    for line in SAYS[name]:
        assert line in told, told


def test_every_method_has_a_section_and_every_command_exists() -> None:
    assert sorted(SECTIONS) == acting()
    agent = root.get_command(None, "agent")  # type: ignore[arg-type]
    known = set(agent.list_commands(None))  # type: ignore[union-attr,arg-type]
    assert set(re.findall(r"^loci agent (\w+)", PAGE, re.MULTILINE)) <= known
