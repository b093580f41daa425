"""Configurations of Mem0: what they mean here, and what is refused."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loci.compat import mem0_config
from loci.compat.mem0 import Memory, MemoryConfig
from loci.errors import ConfigError, EndpointError, LociError, ModelError, ParameterError
from loci.models.endpoint import Endpoint
from loci.models.endpoint_embed import EndpointEmbedder


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        if self.path.endswith("/embeddings"):
            answer: Any = self.server.vectors(body["input"])  # type: ignore[attr-defined]
        else:
            facts = {"facts": []}
            answer = {"choices": [{"message": {"content": json.dumps(facts)}}]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def vectors(texts: list[str]) -> dict[str, Any]:
    data = [
        {"index": n, "embedding": [float(len(text)), 1.0, float(text.count("e"))]}
        for n, text in enumerate(texts)
    ]
    return {"data": data[::-1]}


@pytest.fixture
def server() -> Iterator[Any]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.vectors = [], vectors  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    running.url = f"http://127.0.0.1:{running.server_address[1]}/v1"  # type: ignore[attr-defined]
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def test_no_configuration_asks_nobody(home: Path) -> None:
    parts = mem0_config.read(None)
    assert parts.llm is None and parts.embedder is None and parts.notes == ()
    assert parts.url == str(home / "data" / "mem0.db")
    assert mem0_config.read(MemoryConfig()) == parts


def test_the_documented_configuration_says_what_it_replaces(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    config = {
        "vector_store": {
            "provider": "qdrant",
            "config": {"host": "localhost", "port": 6333},
        },
        "llm": {
            "provider": "openai",
            "config": {"model": "gpt-5-mini", "temperature": 0.1},
        },
        "embedder": {
            "provider": "openai",
            "config": {"model": "text-embedding-3-small"},
        },
        "reranker": {
            "provider": "cohere",
            "config": {"model": "rerank-v3.5"},
        },
    }
    with pytest.warns(UserWarning) as told:
        memory = Memory.from_config(config)
    assert [str(one.message) for one in told] == list(memory.notes)
    assert "qdrant is not used (host, port)" in memory.notes[0] and "cohere" in memory.notes[1]
    assert isinstance(memory.inner.embedder, EndpointEmbedder)
    assert isinstance(memory.inner.llm, Endpoint) and memory.inner.backend == "endpoint"
    assert server.asked == [], "nothing is asked before it is needed"
    memory.add("The gate code has the digits of pi", user_id="ada", infer=False)
    assert memory.search("gate code", user_id="ada")["results"]
    path, headers, body = server.asked[-1]
    assert path == "/v1/embeddings" and headers["Authorization"] == "Bearer sk-test"
    assert body["model"] == "text-embedding-3-small"
    memory.close()


def test_places_of_memories(home: Path, tmp_path: Path) -> None:
    def place(store: dict[str, Any]) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mem0_config.read({"vector_store": store}).url

    assert place({"provider": "loci", "config": {"path": "x.db"}}) == "x.db"
    chroma = {"provider": "chroma", "config": {"path": str(tmp_path / "db")}}
    assert place(chroma) == str(tmp_path / "db" / "loci.db")
    assert place({"provider": "faiss"}) == str(home / "data" / "mem0.db")
    named = {"user": "me", "password": "p@ss", "host": "db", "port": 5433, "dbname": "mem"}
    assert place({"provider": "pgvector", "config": named}) == "postgresql://me:p%40ss@db:5433/mem"
    whole = {"provider": "pgvector", "config": {"connection_string": "postgresql://x/y"}}
    assert place(whole) == "postgresql://x/y"


def test_a_store_in_a_folder_of_its_own(tmp_path: Path) -> None:
    store = {"provider": "qdrant", "config": {"path": str(tmp_path / "deep" / "qdrant")}}
    with pytest.warns(UserWarning, match="qdrant is not used"):
        memory = Memory.from_config({"vector_store": store})
    memory.add("I live in Ghent", user_id="ada")
    memory.close()
    assert (tmp_path / "deep" / "qdrant" / "loci.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("config", "near"),
    [
        ({"vector_store": {"provider": "qdrent"}}, "qdrant"),
        ({"llm": {"provider": "opanai"}}, "openai"),
        ({"embedder": {"provider": "hugingface"}}, "huggingface"),
        ({"graph_store": {"provider": "neo5j"}}, "neo4j"),
        ({"reranker": {"provider": "coherent"}}, "cohere"),
        ({"vectorstore": {}}, "vector_store"),
        ({"llm": {"provder": "openai"}}, "provider"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(config: dict[str, Any], near: str) -> None:
    with pytest.raises(LociError, match=f"did you mean '{near}'"):
        Memory.from_config(config)


def test_what_cannot_be_asked_is_refused_with_a_way_out() -> None:
    with pytest.raises(ParameterError, match="OpenAI-compatible") as refused:
        Memory.from_config({"llm": {"provider": "anthropic", "config": {"model": "x"}}})
    assert 'leave "llm" out' in str(refused.value)
    with pytest.raises(ParameterError, match="names no model"):
        Memory.from_config({"llm": {"provider": "openai", "config": {}}})
    with pytest.raises(ParameterError, match="not one of those that are known"):
        other = {"provider": "huggingface", "config": {"model": "bge-large"}}
        Memory.from_config({"embedder": other})
    with pytest.raises(ModelError, match=r"(?s)not there.*loci pull minilm"):
        minilm = {"model": "sentence-transformers/all-MiniLM-L6-v2"}
        Memory.from_config({"embedder": {"provider": "huggingface", "config": minilm}})
    for wrong in ("qdrant", 7, ["x"]):
        with pytest.raises(ConfigError, match="is a dict"):
            Memory.from_config(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"allowed: v1\.1"):
        Memory.from_config({"version": "v1.0"})


@pytest.mark.parametrize(
    ("provider", "options", "url"),
    [
        ("ollama", {}, "http://localhost:11434/v1"),
        ("ollama", {"ollama_base_url": "http://box:1/v1"}, "http://box:1/v1"),
        ("lmstudio", {}, "http://localhost:1234/v1"),
        ("vllm", {"vllm_base_url": "http://box:2/v1"}, "http://box:2/v1"),
        ("groq", {"api_key": "k"}, "https://api.groq.com/openai/v1"),
        ("openai", {"openai_base_url": "http://box:3/v1"}, "http://box:3/v1"),
    ],
)
def test_servers_of_language_models(provider: str, options: dict[str, str], url: str) -> None:
    config = {"provider": provider, "config": {"model": "m", **options}}
    llm = mem0_config.read({"llm": config}).llm
    assert isinstance(llm, Endpoint) and (llm.url, llm.name) == (url, "m")
    assert mem0_config.read({"llm": {"provider": "rules"}}).llm is None


def test_a_graph_store_turns_relations_on() -> None:
    graph = {"provider": "neo4j", "config": {"url": "neo4j://x", "username": "u", "password": "p"}}
    with pytest.warns(UserWarning, match="neo4j is not used"):
        memory = Memory.from_config({"graph_store": graph})
    told = memory.add("I live in Ghent. My sister Lena lives in Rome.", user_id="ada")
    assert set(told) == {"results", "relations"}
    assert set(told["relations"]) == {"added_entities", "deleted_entities"}
    for found, end in (
        (memory.search("Lena", user_id="ada"), "destination"),
        (memory.get_all(user_id="ada"), "target"),
    ):
        assert set(found) == {"results", "relations"}
        for one in found["relations"]:
            assert set(one) == {"source", "relationship", end}
    assert memory.get_all(user_id="ada")["relations"]
    memory.close()


def test_embeddings_of_a_server(server: Any) -> None:
    embedder = EndpointEmbedder(server.url, "m", "sk", retries=0)
    made = embedder.encode(["bee", "a longer text with e"])
    assert made.dtype == np.float32 and made.shape == (2, 3)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, rtol=1e-6)
    expected = np.array([3.0, 1.0, 2.0]) / np.linalg.norm([3.0, 1.0, 2.0])
    np.testing.assert_allclose(made[0], expected, rtol=1e-6)
    assert embedder.fingerprint == f"m@{server.url}" and "sk" not in repr(embedder)
    many = embedder.encode([f"text {n}" for n in range(130)])
    assert many.shape == (130, 3) and len(server.asked) == 1 + 3
    assert embedder.encode([]).shape[0] == 0


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": []},
        {"data": [{"index": 0}]},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": ["x"]}]},
        [],
    ],
)
def test_strange_embeddings_are_refused(server: Any, answer: Any) -> None:
    server.vectors = lambda texts: answer
    with pytest.raises(EndpointError, match="in the form of embeddings"):
        EndpointEmbedder(server.url, "m", retries=0).encode(["x"])


def test_embeddings_of_different_widths_are_refused(server: Any) -> None:
    data = [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]
    server.vectors = lambda texts: {"data": data}
    with pytest.raises(EndpointError, match="different widths"):
        EndpointEmbedder(server.url, "m", retries=0).encode(["x", "y"])
