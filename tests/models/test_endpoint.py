"""Endpoints against a server on the loopback, and the scripted model."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from loci.core.ports import Llm
from loci.errors import EndpointError, ModelError, ParameterError
from loci.models.endpoint import Endpoint
from loci.models.scripted import ScriptedLlm

KEY = "sk-very-secret"
ASK = [{"role": "user", "content": "hi"}]


class Server:
    """Answers with what it is told, in order, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes, dict[str, str]]] = []
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                server.asked.append((self.path, dict(self.headers.items()), json.loads(body)))
                status, raw, headers = server.answers.pop(0)
                self.send_response(status)
                for name, value in ({"content-length": str(len(raw))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1/"

    def say(self, text: str) -> None:
        content = {"choices": [{"message": {"content": text}}]}
        self.answers.append((200, json.dumps(content).encode(), {}))

    def fail(self, status: int, text: str = "no", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, text.encode(), named))

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def _endpoint(server: Server, **options: Any) -> tuple[Endpoint, list[float]]:
    slept: list[float] = []
    return Endpoint(server.url, "some-model", KEY, 5.0, sleep=slept.append, **options), slept


def test_asks_as_agreed(server: Server) -> None:
    server.say("hello")
    endpoint, _ = _endpoint(server)
    assert isinstance(endpoint, Llm) and endpoint.name == "some-model"
    assert endpoint.generate(ASK, max_tokens=7, stop=["\n"], seed=3) == "hello"
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "some-model",
        "messages": ASK,
        "max_tokens": 7,
        "stop": ["\n"],
        "seed": 3,
    }


def test_asks_for_json_and_takes_nothing_else(server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    server.say('{"a": 1}')
    server.say("sure! a is 1")
    endpoint, _ = _endpoint(server)
    assert json.loads(endpoint.generate(ASK, schema=schema)) == {"a": 1}
    form = server.asked[0][2]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == schema
    with pytest.raises(EndpointError, match=r"asked for JSON.*got 'sure! a is 1'"):
        endpoint.generate(ASK, schema=schema)


def test_tries_again_when_the_server_is_busy(server: Server) -> None:
    server.fail(503)
    server.fail(429, retry_after="7")
    server.say("at last")
    endpoint, slept = _endpoint(server)
    assert endpoint.generate(ASK) == "at last"
    assert slept == [0.5, 7.0]


def test_tries_have_an_end(server: Server) -> None:
    for _ in range(3):
        server.fail(429, retry_after="86400")
    endpoint, slept = _endpoint(server)
    with pytest.raises(EndpointError, match=r"did not answer; got 'status 429.*3 tries") as caught:
        endpoint.generate(ASK)
    assert slept == [30.0, 30.0] and "way" not in str(caught.value.value)
    assert caught.value.allowed and caught.value.way_out


@pytest.mark.parametrize(
    ("status", "hint"), [(400, "says why"), (401, "check the key"), (404, "name of the model")]
)
def test_refusals_are_final_and_never_show_the_key(server: Server, status: int, hint: str) -> None:
    server.fail(status, f"bad request with key {KEY}")
    endpoint, slept = _endpoint(server)
    with pytest.raises(EndpointError, match=f"status {status}") as caught:
        endpoint.generate(ASK)
    assert hint in str(caught.value) and slept == []
    assert KEY not in str(caught.value) and KEY not in repr(endpoint)


@pytest.mark.parametrize("raw", [b"<html>", b"{}", b'{"choices": []}', b"[1]", b"null"])
def test_strange_answers_are_refused(server: Server, raw: bytes) -> None:
    server.answers.append((200, raw, {}))
    with pytest.raises(EndpointError, match=r"did not answer (with JSON|in the form)"):
        _endpoint(server)[0].generate(ASK)


def test_nobody_there() -> None:
    running = Server()
    url = running.url
    running.close()
    endpoint = Endpoint(url, "m", KEY, 5.0, retries=1, sleep=lambda _: None)
    with pytest.raises(EndpointError, match="ConnectError"):
        endpoint.generate(ASK)


def test_the_key_is_not_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.say("hello")
    _endpoint(server)[0].generate(ASK)
    assert KEY not in caplog.text


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ParameterError, match="an endpoint is a URL; got 'localhost'"):
        Endpoint("localhost", "m")
    with pytest.raises(ParameterError, match="timeout_s must be > 0"):
        Endpoint("http://localhost", "m", timeout_s=0)
    assert Endpoint("http://localhost", "m").count_tokens("four") == 2


def test_scripted_replies_in_order() -> None:
    llm = ScriptedLlm(["one", "two. three"])
    assert isinstance(llm, Llm)
    assert llm.generate(ASK) == "one"
    assert llm.generate(ASK, stop=["."], seed=1, schema={"type": "string"}) == "two"
    assert llm.calls[0].messages == tuple(ASK) and llm.calls[1].seed == 1
    with pytest.raises(ModelError, match="has 2 replies and this is call 3"):
        llm.generate(ASK)


def test_scripted_replies_by_text() -> None:
    llm = ScriptedLlm({"nuts": "allergy", "h": "greeting"})
    assert llm.generate(ASK) == "greeting" and llm.generate(ASK) == "greeting"
    assert llm.generate([{"role": "user", "content": "has nuts"}]) == "allergy"
    with pytest.raises(ModelError, match=r"no reply.*got 'zzz'; allowed: text with one of"):
        llm.generate([{"role": "user", "content": "zzz"}])
    assert llm.count_tokens("two words") == 2
