"""What a server refuses, and that it stays up: keys, sizes, load, clients that go away, a stop."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from served import CHAT, Served

from loci.errors import FormatError, NotFoundError, ParameterError
from loci.server import keys
from loci.server.app import check_address
from loci.server.serve import listening
from loci.testing.batch import paused, slowed

Serve = Callable[..., Served]
LONG_S = 30.0
LONG = {**CHAT, "max_tokens": 400, "temperature": 0}


def until(true: Callable[[], bool]) -> None:
    """Wait for something, and fail if it takes too long."""
    deadline = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/nothing", None, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"\xff\xfe", 400),
        ("POST", "/v1/chat/completions", b"[1]", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/messages", b"{", 400),
        ("POST", "/api/v1/memories", b'{"messages": []}', 400),
        ("GET", "/api/v1/memories", None, 400),
        ("GET", "/v1/responses/nothing", None, 404),
    ],
)
def test_malformed_requests_get_their_status_and_a_form(
    server: Served, method: str, path: str, body: bytes | None, status: int
) -> None:
    with server.http() as client:
        found = client.request(
            method, path, content=body, headers={"Content-Type": "application/json"}
        )
        assert found.status_code == status, found.text
        assert "error" in found.json()
        assert client.get("/health").json() == {"status": "ok"}


def test_a_body_that_is_too_large_is_refused_however_it_comes(serve: Serve) -> None:
    server = serve(limit_bytes=10_000)
    whole = json.dumps({**CHAT, "stop": "x" * 20_000}).encode()

    def pieces() -> object:
        for start in range(0, len(whole), 1000):
            yield whole[start : start + 1000]

    for content in (whole, pieces()):
        with server.http() as client:
            found = client.post("/v1/chat/completions", content=content)  # type: ignore[arg-type]
            assert found.status_code == 413
            assert found.json()["error"]["code"] == "request_too_large"
    with server.http() as client:
        assert (
            client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1}).status_code == 200
        )


def test_too_many_requests_are_told_when_to_come_back(serve: Serve) -> None:
    server = serve(rows=1, waiting=1)
    batch, statuses = server.service.batch, []

    def ask() -> None:
        with server.http() as client:
            statuses.append(client.post("/v1/chat/completions", json=CHAT).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    with paused(batch), server.http() as client:
        for thread in threads:
            thread.start()
        until(lambda: batch.load().waiting == 2)
        for path in ("/v1/chat/completions", "/v1/messages"):
            found = client.post(path, json={**CHAT, "max_tokens": 4})
            assert found.status_code == 429 and int(found.headers["Retry-After"]) >= 1
            error = found.json()["error"]
            assert error["type"] == "rate_limit_error" and "wait already" in error["message"]
        assert "loci_requests_refused_total 2.0" in client.get("/metrics").text
    for thread in threads:
        thread.join(LONG_S)
    assert statuses == [200, 200]
    with server.openai() as client:
        assert client.chat.completions.create(**CHAT, max_tokens=1)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_ends_its_request(server: Served, streamed: bool) -> None:
    batch = server.service.batch
    before = batch.load().ended.get("cancelled", 0)
    with slowed(batch):
        body = json.dumps({**LONG, "stream": streamed}).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
            head = ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1"]
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
            client.sendall("\r\n".join(head).encode() + body)
            until(lambda: batch.load().running > 0)
        until(lambda: batch.load().ended.get("cancelled", 0) == before + 1)
    assert batch.load().running == batch.load().waiting == 0


def test_keys_say_who_may_ask(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    acme = keys.add(file, tenant="acme")
    admin = keys.add(file, tenant="local", role="admin")
    server = serve(keys=file)
    for key in (acme, admin):
        with server.openai(key) as client, server.anthropic(key) as other:
            assert client.chat.completions.create(**CHAT, max_tokens=1)
            assert other.messages.create(**CHAT, max_tokens=1)
    for key in ("none", "x", acme[:-1], acme.replace("loci-", "loci-0")):
        with server.http(headers={"Authorization": f"Bearer {key}"}) as http:
            found = http.post("/v1/chat/completions", json=CHAT)
            assert found.status_code == 401 and found.headers["WWW-Authenticate"] == "Bearer"
            assert http.get("/health").status_code == http.get("/ready").status_code == 200
    with server.openai("none") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    of_admins = ("ledger", "events", "plan", "load", "blocks", "config")
    for path in ("/metrics", *(f"/api/v1/{what}" for what in of_admins)):
        with server.http(headers={"x-api-key": acme}) as http:
            assert http.get(path).status_code == 403, path
    with server.http(headers={"x-api-key": admin}) as http:
        assert http.get("/metrics").status_code == 200
    keys.drop(file, acme.split("-")[1])  # and the server knows at once
    with server.openai(acme) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert acme not in file.read_text()


def test_files_of_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, tenant="acme", user="ada")
    assert keys.Keys(file).read().keys()
    assert os.stat(file).st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(FormatError, match="others on this machine"):
        keys.Keys(file)
    file.chmod(0o600)
    file.write_text("[]")
    with pytest.raises(FormatError, match="no list of keys"):
        keys.Keys(file)
    with pytest.raises(FormatError, match="loci key add"):
        keys.Keys(tmp_path / "none.json")
    with pytest.raises(ParameterError, match="no such role"):
        keys.add(tmp_path / "other.json", tenant="acme", role="god")
    keys.add(tmp_path / "other.json", tenant="acme")
    with pytest.raises(NotFoundError, match="no such key"):
        keys.drop(tmp_path / "other.json", "feed")


def test_other_machines_need_keys_and_pages_are_kept_out(server: Served) -> None:
    with pytest.raises(ParameterError, match="needs keys") as caught:
        check_address("0.0.0.0", False)
    assert "loci key add" in str(caught.value)
    check_address("0.0.0.0", True)
    check_address("localhost", False)
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        with server.http(headers=headers) as http:
            assert http.get("/v1/models").status_code == 403
    with server.http(headers={"Origin": "http://localhost:3000"}) as http:
        assert http.get("/v1/models").status_code == 200


def test_an_address_that_is_taken_is_named() -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ParameterError, match="cannot listen"), listening("127.0.0.1", port):
            pass


def test_stopping_lets_requests_end_and_takes_no_more(serve: Serve) -> None:
    server = serve(drain_s=20.0)
    found: list[httpx.Response] = []

    def ask() -> None:
        with server.http() as client:
            found.append(client.post("/v1/chat/completions", json=LONG))

    thread = threading.Thread(target=ask)
    with server.http() as late:
        late.get("/health")  # a connection from before
        thread.start()
        until(lambda: server.service.batch.load().running > 0 or bool(found))
        server.server.drain()
        refused = late.post("/v1/chat/completions", json=CHAT)
        ready = late.get("/ready")
    thread.join(LONG_S)
    assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
    assert ready.status_code == 503
    assert found[0].status_code == 200
    assert found[0].json()["usage"]["completion_tokens"] > 0


def test_what_is_there_at_the_start_is_not_searched_for_garbage(serve: Serve) -> None:
    server = serve()
    until(lambda: gc.get_freeze_count() > 10_000)
    with server.http() as client:
        assert (
            client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2}).status_code == 200
        )
    server.server.should_exit = True
    until(lambda: gc.get_freeze_count() == 0)


def test_stopping_at_once_tells_those_that_run(serve: Serve) -> None:
    server = serve(drain_s=0.0)
    with slowed(server.service.batch), server.http() as client:
        asked = client.build_request("POST", "/v1/chat/completions", json={**LONG, "stream": True})
        answer = client.send(asked, stream=True)
        lines = answer.iter_lines()
        next(lines)
        server.server.drain()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        answer.close()
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["code"] == "stopping"


def test_an_unforeseen_error_is_told_without_details(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("a secret")

    with monkeypatch.context() as patched, server.http() as client:
        patched.setattr(server.service, "_submit", broken)
        found = client.post("/v1/chat/completions", json=CHAT)
        assert found.status_code == 500 and "a secret" not in found.text
        assert found.json()["error"]["type"] == "server_error"
    with server.openai() as client:
        assert client.chat.completions.create(**CHAT, max_tokens=1)
