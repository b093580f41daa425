"""What goes wrong around a server: its answer has the right status, and the server stays up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import CHAT, Served

from loci.errors import PolicyError
from loci.models.endpoint import Endpoint
from loci.models.tokenizer import Tokenizer
from loci.run.memory import Memory
from loci.server import refusals
from loci.store.sqlite import SqliteStore
from loci.testing.batch import slowed

Serve = Callable[..., Served]
HUGE = "word " * 2_000_000  # 10 MB
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": HUGE}]},
    "/v1/completions": {"model": "tiny", "prompt": HUGE},
    "/v1/responses": {"model": "tiny", "input": HUGE},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": HUGE}],
    },
    "/api/v1/memories": {"messages": [{"content": HUGE}]},
}


def stays_up(server: Served) -> None:
    """Check that it answers as before, and holds nothing for nobody."""
    with server.http() as http:
        assert http.get("/ready").status_code == 200
        assert http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2}).status_code == 200
        load = http.get("/api/v1/load").json()
    assert (load["running"], load["waiting"]) == (0, 0)
    server.service.batch.ledger.check_integrity()


@pytest.mark.parametrize("path", BODIES)
def test_a_prompt_of_ten_megabytes_is_too_large(server: Served, path: str) -> None:
    with server.http() as http:
        found = http.post(path, json=BODIES[path])
    assert found.status_code == 413 and "8,388,608 bytes" in found.text
    stays_up(server)


def test_where_so_much_may_be_sent_it_is_too_long_and_never_read_by_the_tokenizer(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(limit_bytes=20 << 20, memory=tmp_path / "m.db")
    for name in ("prompt", "chat", "encode"):
        real = getattr(Tokenizer, name)

        def watched(self: Tokenizer, text: Any, *given: Any, real: Any = real, **more: Any) -> Any:
            assert len(str(text)) < 1_000_000
            return real(self, text, *given, **more)

        monkeypatch.setattr(Tokenizer, name, watched)
    for path, body in BODIES.items():
        with server.http() as http:
            found = http.post(path, json=body)
        assert found.status_code == 400, (path, found.text[:200])
        assert HUGE[:1000] not in found.text  # it is not sent back
    stays_up(server)


def test_a_dead_endpoint_is_told_and_nothing_is_stored(serve: Serve, tmp_path: Path) -> None:
    dead = Endpoint("http://127.0.0.1:9/v1", "none", retries=0)

    def opener(tenant: str, embedder: Any) -> Memory:
        return Memory(tmp_path / "m.db", tenant=tenant, backend="endpoint", llm=dead)

    server = serve(open_memory=opener)
    with server.http() as http:
        said = {"messages": [{"content": "I live in Ghent."}]}
        found = http.post("/api/v1/memories", json=said)
        assert found.status_code == 502, found.text
        assert "nothing was stored" in found.text and "127.0.0.1:9" in found.text
        asked = {**CHAT, "max_tokens": 2, "memory": True}
        for path in ("/v1/chat/completions", "/v1/messages"):
            found = http.post(path, json=asked)
            assert found.status_code == 502 and "127.0.0.1:9" in found.text
        lines = http.post("/v1/chat/completions", json={**asked, "stream": True}).text
        assert "127.0.0.1:9" in lines and "[DONE]" not in lines
        # It can still be read.
        turns = http.get("/api/v1/memories", params={"kinds": "turn"})
        assert turns.status_code == 200 and turns.json()["memories"] == []
    stays_up(server)


def test_a_full_disk_is_told_and_what_was_there_can_be_read(serve: Serve, tmp_path: Path) -> None:
    server = serve(memory=tmp_path / "m.db")
    text = "I live in Ghent, in a long street with many trees. " * 200
    with server.http() as http:
        kept = http.post("/api/v1/memories", json={"messages": [{"content": "I like tea."}]})
        store = server.service.memory("local").store
        assert isinstance(store, SqliteStore)
        pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
        store.database.connection.execute(f"PRAGMA max_page_count={pages + 30}")
        body = {"messages": [{"content": text}], "infer": False}
        statuses = [http.post("/api/v1/memories", json=body).status_code for _ in range(30)]
        assert set(statuses) <= {200, 507} and statuses[-1] == 507
        whole = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2, "memory": True})
        assert whole.status_code in (200, 507)
        found = http.get("/api/v1/memories/search", params={"query": "tea"}).json()
        assert kept.json()["turns"][0]["id"] in str(found)
        # Every add that was acknowledged is there, and no other.
        turns = http.get("/api/v1/memories", params={"kinds": "turn", "limit": 100}).json()
        long = [turn for turn in turns["memories"] if turn["content"].strip() == text.strip()]
        assert len(long) == statuses.count(200)
    assert server.service.memory("local").check_integrity() == []
    stays_up(server)


def test_wrong_media_and_broken_bodies_are_no_failures_of_the_server(server: Served) -> None:
    odd = [
        (b"model=tiny&prompt=x", "application/x-www-form-urlencoded"),
        (b"\x00\x01\x02", "application/octet-stream"),
        (b'{"model": "tiny", "prompt": "x"', "application/json"),
        (b'{"model": "tiny", "prompt": NaN}', "application/json"),
        (json.dumps("x" * 1000).encode(), "application/json"),
        (b"[" * 10_000 + b"]" * 10_000, "application/json"),
        (b'{"model": 5, "prompt": {"a": 1}}', "application/json"),
    ]
    with server.http() as http:
        for content, kind in odd:
            found = http.post("/v1/completions", content=content, headers={"Content-Type": kind})
            assert found.status_code == 400, (content[:40], found.status_code)
            assert found.json()["error"]["message"]
    stays_up(server)


def test_many_clients_that_leave_at_once_leave_nothing_behind(server: Served) -> None:
    before = server.service.batch.load().ended.get("cancelled", 0)

    def leave() -> None:
        with (
            server.http() as http,
            http.stream(
                "POST",
                "/v1/chat/completions",
                json={**CHAT, "max_tokens": 400, "temperature": 0, "stream": True},
            ) as stream,
        ):
            next(stream.iter_lines())

    with slowed(server.service.batch):
        threads = [threading.Thread(target=leave) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        deadline = time.monotonic() + 30
        while server.service.batch.load().running and time.monotonic() < deadline:
            time.sleep(0.01)
    assert server.service.batch.load().ended["cancelled"] == before + 12
    stays_up(server)


def test_connections_that_say_nothing_stop_nobody(server: Served) -> None:
    with httpx.Client(base_url=server.url) as idle:
        idle.get("/health")  # and then keeps its connection
        stays_up(server)


def test_what_a_policy_forbids_is_forbidden() -> None:
    found = refusals.of(PolicyError("cube a is frozen", way_out="loci cube freeze a --off"))
    assert (found.status, found.code) == (403, "forbidden")
    assert refusals.body(found, "/v1/messages")["error"]["type"] == "permission_error"
