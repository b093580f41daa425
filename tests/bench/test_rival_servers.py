"""How rivals are asked: over HTTP with a server in miniature, and transformers on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loci.bench import rival_servers
from loci.bench.rival_servers import Absent, Asked
from loci.bench.traffic import Call
from loci.errors import EndpointError
from loci.testing.models import tiny_pack

SERVER = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["stream"] and asked["temperature"] == 0
        assert isinstance(asked["prompt"], list if OWN else str)
        if asked["max_tokens"] == 99:
            self.send_response(500)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        for number in range(asked["max_tokens"]):
            event = {"choices": [{"text": "x"}]}
            self.wfile.write(f"data: {json.dumps(event)}\\n\\n".encode())
        self.wfile.write(b'data: {"choices": [{"text": ""}]}\\n\\ndata: [DONE]\\n\\n')

    def log_message(self, *said):
        pass

def serve(port):
    HTTPServer(("127.0.0.1", port), Answer).serve_forever()

OWN = __name__ != "__main__"
if not OWN:
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    assert given["--model"].endswith(".gguf") and int(given["--n_ctx"]) >= 40
    serve(int(given["--port"]))
"""
OWN_SERVER = """
from types import SimpleNamespace as Some

def CommonParams():
    return Some(model=Some(path=""), cpuparams=Some(), cpuparams_batch=Some())

def Server(params):
    assert params.n_parallel == 2 and params.n_ctx == 2 * 48 and params.model.path
    threading.Thread(target=serve, args=(params.port,), daemon=True).start()
"""


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    tiny_pack(tmp_path / "tiny").close()
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"")
    return Asked(
        model="tiny", folder=tmp_path, streams=2, context=40, python=sys.executable, gguf=gguf
    )


def call(new: int) -> Call:
    return Call(number=new, at_s=0.0, prompt=5, new=new, ids=(70, 71, 72, 73, 74))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package with llama.cpp's server in miniature where a new Python finds it."""
    home = tmp_path / "packages" / "llama_cpp" / "server"
    home.mkdir(parents=True)
    for file in (home.parent / "__init__.py", home / "__init__.py", home / "app.py"):
        file.write_text("")
    (home / "__main__.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    return home


def test_a_server_is_started_asked_and_ended(asked: Asked, server: Path) -> None:
    with rival_servers.WAYS["llama.cpp"](asked) as (answer, told):
        assert sum(answer(call(7))) == 7 and told() == {}
        with pytest.raises(EndpointError, match="answered 500"):
            list(answer(call(99)))


def test_its_own_server_goes_before_and_is_asked_with_ids(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "own"
    home.mkdir()
    (home / "xllamacpp.py").write_text(SERVER + OWN_SERVER)
    monkeypatch.setenv("PYTHONPATH", str(home))
    with rival_servers.WAYS["llama.cpp"](asked) as (answer, _):
        assert sum(answer(call(7))) == 7


def test_a_server_that_does_not_start_says_why(asked: Asked, server: Path) -> None:
    (server / "__main__.py").write_text("raise SystemExit('no such model')")
    lent = rival_servers.WAYS["llama.cpp"](asked)
    with pytest.raises(EndpointError, match="no such model"), lent:
        pass


def test_who_is_not_here_is_told_what_to_install(asked: Asked) -> None:
    without = Asked(model="tiny", folder=asked.folder, streams=2, context=40)
    for one, said in ((without, "llama_python="), (asked, "llama_cpp")):
        with pytest.raises(Absent, match=said), rival_servers.WAYS["llama.cpp"](one):
            pass


@pytest.mark.slow
def test_transformers_batches_say_as_many_tokens_as_asked(asked: Asked) -> None:
    pytest.importorskip("transformers")
    with rival_servers.WAYS["transformers"](asked) as (answer, told):
        assert sum(answer(call(6))) == 6
        assert "peak_bytes" in told()


@pytest.mark.slow
def test_our_own_server_is_asked_with_tokens(asked: Asked) -> None:
    with rival_servers.WAYS["loci serve"](asked) as (answer, _):
        assert 1 <= sum(answer(call(6))) <= 6
