"""Memory over every protocol, and Loci's own: plan, ledger, memories, methods, events, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from served import CHAT, Served

from loci.errors import StorageError
from loci.plan.solve import Plan
from loci.run.memory import Memory
from loci.server import keys

Serve = Callable[..., Served]
SAID = {"messages": [{"content": "I am allergic to nuts."}]}
ASK = [{"role": "user", "content": "What am I allergic to?"}]


@pytest.fixture
def remembering(serve: Serve, tmp_path: Path) -> Served:
    return serve(memory=tmp_path / "m.db")


def test_a_request_may_use_a_memory_and_says_what_it_used(remembering: Served) -> None:
    with remembering.http() as http, remembering.openai() as client:
        assert http.post("/api/v1/memories", json=SAID).status_code == 200
        plain = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=4)
        assert not hasattr(plain, "memory")
        with_it = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=4, extra_body={"memory": True}
        )
        assert with_it.memory["user"] == "ada"
        assert any("nuts" in used["text"] for used in with_it.memory["used"])
        assert with_it.usage.prompt_tokens > plain.usage.prompt_tokens
        # The question was remembered, without the notes.
        turns = http.get("/api/v1/memories", params={"kinds": "turn"}).json()["memories"]
        assert ASK[0]["content"] in [turn["content"] for turn in turns]
        before = len(turns)
        quiet = {"user": "bob", "remember": False}
        bob = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=4, extra_body={"memory": quiet}
        )
        assert bob.memory == {"user": "bob", "used": [], "remembered": False}
        assert http.get("/api/v1/memories", params={"user": "bob"}).json()["memories"] == []
        turns = http.get("/api/v1/memories", params={"kinds": "turn"}).json()["memories"]
        assert len(turns) == before


def test_streams_and_the_other_protocols_use_it_too(remembering: Served) -> None:
    with remembering.http() as http:
        http.post("/api/v1/memories", json=SAID)
    body = {"memory": {"remember": False}}
    with remembering.openai() as client, remembering.anthropic() as other:
        chunks = list(
            client.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=3, stream=True, extra_body=body
            )
        )
        told = chunks[-1].memory
        response = client.responses.create(
            model="tiny", input=ASK[0]["content"], max_output_tokens=3, extra_body=body
        )
        message = other.messages.create(model="tiny", messages=ASK, max_tokens=3, extra_body=body)
    for found in (told, response.memory, message.memory):
        assert any("nuts" in used["text"] for used in found["used"])


def test_what_cannot_be_remembered_is_told_in_every_form(
    remembering: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **more: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Memory, "add", full)
    asked = {"model": "tiny", "max_tokens": 2, "messages": ASK, "memory": True}
    response = {"model": "tiny", "max_output_tokens": 16, "input": "Hello", "memory": True}
    with remembering.http() as http:
        for path, body in (
            ("/v1/chat/completions", asked),
            ("/v1/messages", asked),
            ("/v1/responses", response),
        ):
            whole = http.post(path, json=body)
            assert whole.status_code == 507 and "the disk is full" in whole.text
            lines = http.post(path, json={**body, "stream": True}).text
            assert "the disk is full" in lines and "[DONE]" not in lines
            assert "message_stop" not in lines and "response.completed" not in lines


@pytest.mark.parametrize("odd", [{"session": ""}, {"user": " "}, {"agent": "a\ud800"}])
def test_a_scope_that_cannot_be_is_refused_before_anything(
    remembering: Served, odd: dict[str, str]
) -> None:
    body = {**CHAT, "stream": True, "memory": {"recall": False, **odd}}
    with remembering.http() as http:
        assert http.post("/v1/chat/completions", content=json.dumps(body)).status_code == 400
        assert http.get("/api/v1/memories", params={"kinds": "turn"}).json()["memories"] == []


def test_a_key_reaches_its_own_tenant_and_user_alone(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    acme = keys.add(file, tenant="acme")
    bob = keys.add(file, tenant="acme", user="bob")
    other = keys.add(file, tenant="other")
    server = serve(keys=file, memory=tmp_path / "m.db")
    with server.http(headers={"x-api-key": acme}) as http:
        added = http.post("/api/v1/memories", json={**SAID, "user": "ada"}).json()
        (item, *_) = added["memories"]
        assert http.get(f"/api/v1/memories/{item['id']}", params={"user": "ada"}).json()["text"]
        assert http.get(f"/api/v1/memories/{item['id']}", params={"user": "bob"}).status_code == 404
    with server.http(headers={"x-api-key": other}) as http:
        assert http.get("/api/v1/memories", params={"user": "ada"}).json()["memories"] == []
        assert http.get(f"/api/v1/memories/{item['id']}", params={"user": "ada"}).status_code == 404
    with server.http(headers={"x-api-key": bob}) as http:
        refused = http.get("/api/v1/memories", params={"user": "ada"})
        assert refused.status_code == 400 and "one user" in refused.text
        assert http.get("/api/v1/memories").json()["user"] == "bob"
        chat = {**CHAT, "memory": {"user": "ada"}}
        assert http.post("/v1/chat/completions", json=chat).status_code == 400


def test_prefixes_of_one_tenant_are_no_others(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    one, two = (keys.add(file, tenant=tenant) for tenant in ("one", "two"))
    server = serve(keys=file)

    def cached(key: str) -> int:
        with server.openai(key) as client:
            usage = client.chat.completions.create(**CHAT, max_tokens=1).usage
            return int(usage.prompt_tokens_details.cached_tokens)

    assert cached(one) == 0 and cached(one) > 0
    assert cached(two) == 0


def test_what_is_remembered_can_be_found_changed_undone_and_forgotten(remembering: Served) -> None:
    with remembering.http() as http:
        (item, *_) = http.post("/api/v1/memories", json=SAID).json()["memories"]
        hits = http.get("/api/v1/memories/search", params={"query": "nuts"}).json()["hits"]
        assert hits[0]["sources"]
        where = f"/api/v1/memories/{item['id']}"
        edited = http.patch(where, json={"text": "Allergic to walnuts", "reason": "told so"})
        assert edited.json()["text"] == "Allergic to walnuts"
        actions = [change["action"] for change in http.get(f"{where}/history").json()["changes"]]
        assert actions[0] == "add" and "edit" in actions
        assert http.post(f"{where}/undo").json()["memories"][0]["text"] == item["text"]
        assert http.delete(where, params={"dry_run": True}).status_code == 200
        assert http.get(where).status_code == 200
        assert http.delete(where).status_code == 200
        gone = http.get(where)
        assert gone.status_code == 404 and gone.json()["error"]["type"] == "NotFoundError"


def test_a_note_is_kept_explained_retired_and_comes_back(remembering: Served) -> None:
    with remembering.http() as http:
        item = http.post("/api/v1/memories/note", json={"text": "Tea at four."}).json()
        assert (item["kind"], item["text"]) == ("note", "Tea at four.")
        where = f"/api/v1/memories/{item['id']}"
        gone = http.post(f"{where}/retire", json={"reason": "no more tea"}).json()
        assert gone["retired_at"] is not None
        assert http.get("/api/v1/memories").json()["memories"] == []
        assert http.post(f"{where}/undo").json()["memories"][0]["retired_at"] is None
        assert http.post(f"{where}/redo").json()["memories"][0]["retired_at"] is not None
        http.post(f"{where}/undo")
        told = http.get(f"{where}/explain", params={"query": "tea"}).json()
        assert told["about"]["kind"] == "note" and told["rank"] == 1
        assert [change["action"] for change in told["history"]][:2] == ["add", "retire"]
        changes = http.get("/api/v1/changes", params={"limit": 2}).json()["changes"]
        assert len(changes) == 2 and changes[0]["item"] == item["id"]
        assert http.get("/api/v1/users").json() == ["ada"]


def test_memories_are_told_as_a_graph(remembering: Served) -> None:
    with remembering.http() as http:
        for text in ("I live in Ghent.", "Tom moved to Ghent."):
            http.post("/api/v1/memories", json={"messages": [{"content": text}]})
        graph = http.get("/api/v1/memories/graph").json()
    assert "name:ghent" in [node["id"] for node in graph["nodes"]]
    assert {"names"} == {edge["relation"] for edge in graph["edges"]}


def test_another_program_sees_what_the_server_remembers(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "m.db"
    server = serve(memory=file)
    with server.openai() as client:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "I live in Ghent."}],
            max_tokens=3,
            extra_body={"memory": {"user": "eve"}},
        )
    with Memory(file) as memory:
        assert any("Ghent" in hit.text for hit in memory.search("Ghent", user="eve"))


def test_plan_ledger_load_and_methods(server: Served) -> None:
    with server.http() as http, server.openai() as client:
        client.chat.completions.create(**CHAT, max_tokens=2)
        plan = Plan.from_json(http.get("/api/v1/plan").json())
        assert plan == server.service.batch.plan
        ledger = http.get("/api/v1/ledger").json()
        dram = ledger["tiers"]["dram"]
        assert dram["used"] == sum(r["nbytes"] for r in ledger["held"] if r["tier"] == "dram")
        assert dram["used"] + dram["free"] == dram["limit"] == 32 << 20
        load = http.get("/api/v1/load").json()
        assert load["new_tokens"] >= 2 and load["scheduler"] == "fcfs(chunk=128)"
        methods = http.get("/api/v1/methods", params={"kind": "sched"}).json()
        assert "fcfs" in [method["name"] for method in methods]
        assert http.get("/api/v1/methods", params={"kind": "kw"}).status_code == 400
        paths = http.get("/openapi.json").json()["paths"]
        assert {"/v1/chat/completions", "/v1/messages", "/api/v1/ledger"} <= set(paths)


def test_another_budget_can_be_planned_and_nothing_changes(server: Served) -> None:
    with server.http() as http:
        found = http.post("/api/v1/plan", json={"dram": "64MiB", "context": 256}).json()
        first = found["lines"][0]
        assert first.startswith("tiny fits: ") and "256 tokens" in first
        assert str(Plan.from_json(found["plan"])).splitlines() == found["lines"]
        short = http.post("/api/v1/plan", json={"dram": 100_000})
        assert short.status_code == 400 and short.json()["error"]["type"] == "BudgetError"
        assert short.json()["error"]["way_out"]
        odd = http.post("/api/v1/plan", json={"drem": 1})
        assert odd.status_code == 400 and "did you mean 'dram'" in odd.text
        assert http.get("/api/v1/plan").json() == server.service.batch.plan.to_json()


def test_blocks_are_those_of_the_weights(server: Served) -> None:
    with server.http() as http:
        blocks = http.get("/api/v1/blocks").json()
        held = http.get("/api/v1/ledger").json()["tiers"]["dram"]["by_kind"]["weights"]
    assert {"embed.0", "layer.0", "layer.3", "norm"} <= {block["name"] for block in blocks}
    assert sum(block["nbytes"] for block in blocks) == held
    assert all(block["checksum"].startswith("blake2b:") for block in blocks)
    assert {block["tier"] for block in blocks} == {"dram"}


def test_cards_are_those_that_are_shipped(server: Served) -> None:
    with server.http() as http:
        cards = http.get("/api/v1/cards", params={"kind": "sched"}).json()
        assert "fcfs" in [card["method"] for card in cards]
        card = http.get("/api/v1/cards/kv/snapkv").json()
        assert card["verdict"] in ("reproduced", "in part", "not reproduced")
        assert card["measurements"] and card["claim"]
        method = http.get("/api/v1/methods/snapkv").json()
        assert method["parameters"]["window"] and method["card"]["claim"] == card["claim"]
        near = http.get("/api/v1/methods/snapvk")
        assert near.status_code == 400 and "snapkv" in near.text
        assert http.get("/api/v1/cards/kv/nothing").status_code == 400


def test_settings_are_shown_without_their_secrets(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCI_ENDPOINT_KEY", "a-secret")
    monkeypatch.setenv("LOCI_MEMORY", "postgresql://ada:pa55@db/loci")
    with server.http() as http:
        text = http.get("/api/v1/config").text
    assert "a-secret" not in text and "pa55" not in text
    assert json.loads(text)["endpoint_key"]["value"] == "***"
    assert json.loads(text)["memory_file"]["source"] == "environment"


def test_metrics_count_what_happened(server: Served) -> None:
    def value(text: str, name: str) -> float:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.rpartition(" ")[2])

    made = 'loci_tokens_total{kind="made"}'
    with server.http() as http, server.openai() as client:
        client.chat.completions.create(**CHAT, max_tokens=3, temperature=0)
        before = http.get("/metrics").text
        usage = client.chat.completions.create(**CHAT, max_tokens=3, temperature=0).usage
        after = http.get("/metrics").text
    assert value(after, made) - value(before, made) == usage.completion_tokens
    assert value(after, 'loci_budget_bytes{tier="dram"}') == 32 << 20
    assert value(after, "loci_first_token_seconds_count") >= 2


def test_events_come_as_they_happen(server: Served) -> None:
    with server.http() as http, server.openai() as client:
        params = {"prefix": "run.", "recent": "false"}
        with http.stream("GET", "/api/v1/events", params=params) as stream:
            client.chat.completions.create(**CHAT, max_tokens=2)
            lines = stream.iter_lines()
            assert next(lines) == "event: run.answer"
            data = json.loads(next(lines).removeprefix("data: "))
    assert data["new"] <= 2 and data["reason"] in ("end", "length")


@pytest.mark.model
def test_texts_are_embedded_and_the_embedder_is_counted(
    serve: Serve, models: Path, models_folder: Path
) -> None:
    (models / "minilm").symlink_to(models_folder / "minilm")
    try:
        server = serve(dram="160MiB")
        with server.openai() as client, server.http() as http:
            assert [model.id for model in client.models.list()] == ["tiny", "minilm"]
            both = client.embeddings.create(model="minilm", input=["a dog", "a puppy", "a tax"])
            plain = http.post("/v1/embeddings", json={"model": "minilm", "input": "a dog"}).json()
            dog, puppy, tax = (entry.embedding for entry in both.data)
            assert sum(a * b for a, b in zip(dog, puppy, strict=True)) > sum(
                a * b for a, b in zip(dog, tax, strict=True)
            )
            assert plain["data"][0]["embedding"] == pytest.approx(dog, abs=1e-6)
            assert both.usage.prompt_tokens > 6
            held = http.get("/api/v1/ledger").json()["held"]
            assert "embedder" in [row["owner"] for row in held]
        small = serve(dram="16MiB")
        with small.http() as http:
            refused = http.post("/v1/embeddings", json={"model": "minilm", "input": "a dog"})
            assert refused.status_code == 400 and "embedder" in refused.text
    finally:
        (models / "minilm").unlink()
