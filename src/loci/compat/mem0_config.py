"""What a configuration of Mem0 means here: where memories are kept, and which models are asked.

Loci keeps facts, vectors and history in one file or database, so whatever vector store, graph store
or history file is named, that is where they go; what this replaces is told in `notes`. Models are
asked only if they are named, and over any OpenAI-compatible server. A provider that nobody knows is
refused with the nearest known one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON values
from urllib.parse import quote

from loci import config as settings
from loci.core.ports import Embedder, Llm
from loci.errors import ConfigError, ModelError, ParameterError
from loci.models.endpoint import Endpoint
from loci.models.endpoint_embed import EndpointEmbedder
from loci.models.late import EMBEDDER, default_embedder
from loci.units import nearest

KEYS = (
    *("vector_store", "llm", "embedder", "history_db_path", "graph_store", "reranker", "version"),
    *("custom_instructions", "custom_fact_extraction_prompt", "custom_update_memory_prompt"),
)
VECTOR_STORES = (
    *("loci", "qdrant", "chroma", "pgvector", "milvus", "upstash_vector", "azure_ai_search"),
    *("azure_mysql", "pinecone", "mongodb", "redis", "valkey", "databricks", "elasticsearch"),
    *("vertex_ai_vector_search", "opensearch", "supabase", "weaviate", "faiss", "langchain"),
    *("s3_vectors", "baidu", "cassandra", "neptune", "turbopuffer", "oracledb"),
)
GRAPH_STORES = (
    *("loci", "neo4j", "memgraph", "neptune", "neptunedb", "kuzu", "apache_age", "default"),
)
RERANKERS = ("cohere", "sentence_transformer", "zero_entropy", "llm_reranker", "huggingface")
# provider: (base of its server, the key of its configuration that changes it, variable of its key)
_SERVERS: dict[str, tuple[str, str, str | None]] = {
    "openai": ("https://api.openai.com/v1", "openai_base_url", "OPENAI_API_KEY"),
    "openai_structured": ("https://api.openai.com/v1", "openai_base_url", "OPENAI_API_KEY"),
    "ollama": ("http://localhost:11434", "ollama_base_url", None),
    "lmstudio": ("http://localhost:1234/v1", "lmstudio_base_url", None),
    "vllm": ("http://localhost:8000/v1", "vllm_base_url", None),
    "groq": ("https://api.groq.com/openai/v1", "groq_base_url", "GROQ_API_KEY"),
    "together": ("https://api.together.xyz/v1", "together_base_url", "TOGETHER_API_KEY"),
    "deepseek": ("https://api.deepseek.com", "deepseek_base_url", "DEEPSEEK_API_KEY"),
    "xai": ("https://api.x.ai/v1", "xai_base_url", "XAI_API_KEY"),
}
_OTHER_LLMS = (
    *("aws_bedrock", "litellm", "azure_openai", "anthropic", "azure_openai_structured", "gemini"),
    *("minimax", "sarvam", "langchain"),
)
_EMBEDDING_SERVERS = ("openai", "ollama", "lmstudio", "together")
_OTHER_EMBEDDERS = (
    *("azure_openai", "gemini", "vertexai", "langchain", "aws_bedrock", "upstash_vector"),
)
_MINILM = ("all-minilm-l6-v2", "sentence-transformers/all-minilm-l6-v2")


class MemoryConfig:
    """The parts of a configuration, by the names Mem0 gives them."""

    def __init__(self, **parts: Any) -> None:
        _check_keys(parts, KEYS, "the configuration of Mem0")
        self.parts = parts

    def model_dump(self) -> dict[str, Any]:
        """Return the parts as a dict."""
        return dict(self.parts)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What `Memory` is made of.

    Attributes:
        url: the memory file or database.
        tenant: whose memory in it: a database that other programs share has one of its own.
        notes: what of the configuration is done otherwise here.
    """

    url: str
    tenant: str
    embedder: Embedder | None
    llm: Llm | None
    graph: bool
    tz: str
    notes: tuple[str, ...]


def read(config: Any) -> Parts:
    """Return what a configuration asks for; None takes all defaults.

    Raises:
        ConfigError: for a key nobody knows.
        ParameterError: for a provider nobody knows, or one that cannot be asked.
    """
    given = _mapping(config)
    _check_keys(given, KEYS, "the configuration of Mem0")
    version = given.get("version") or "v1.1"
    if version != "v1.1":
        raise ConfigError(
            "results come as Mem0 1.0 and later return them", value=version, allowed="v1.1"
        )
    here, notes = settings.load(), list[str]()
    url, tenant = _place(given.get("vector_store"), here.memory_file, notes)
    if given.get("history_db_path"):
        notes.append(f"history_db_path: the history is kept with the memories, in {url}")
    graph = given.get("graph_store")
    if graph is not None:
        name = _provider(graph, "graph_store", GRAPH_STORES, "default")
        if name not in ("loci", "default"):
            notes.append(f"graph_store: relations are kept with the memories; {name} is not used")
    if given.get("reranker") is not None:
        name = _provider(given["reranker"], "reranker", RERANKERS, None)
        notes.append(f"reranker: results come in the order of Loci's recall; {name} is not asked")
    for key in KEYS[-3:]:
        if given.get(key):
            notes.append(f"{key}: operations have prompts of their own; this one is not used")
    return Parts(
        url=url,
        tenant=tenant,
        embedder=_embedder(given.get("embedder"), here.models_dir),
        llm=_llm(given.get("llm")),
        graph=graph is not None and bool(_mapping(graph).get("config") or _named(graph)),
        tz=here.timezone,
        notes=tuple(notes),
    )


def _place(store: Any, memory_file: str, notes: list[str]) -> tuple[str, str]:
    """Return (the file or database, the tenant)."""
    shared = "://" in memory_file
    default = memory_file if shared else str(Path(memory_file).expanduser().with_name("mem0.db"))
    if store is None:
        return default, "mem0" if shared else "local"
    name = _provider(store, "vector_store", VECTOR_STORES, "qdrant")
    options = dict(_mapping(_mapping(store).get("config")))
    if name == "loci":
        _check_keys(options, ("path", "url"), "vector_store loci")
        path = options.get("url") or options.get("path") or default
        return str(path), "local"
    if name == "pgvector":
        return _postgres(options), "mem0"
    place = default
    if options.get("path"):
        place = str(Path(str(options["path"])).expanduser() / "loci.db")
    unused = sorted(set(options) - {"path"})
    told = f" ({', '.join(unused)})" if unused else ""
    notes.append(f"vector_store: vectors are kept in {place}; {name} is not used{told}")
    return place, "mem0" if shared and place == default else "local"


def _postgres(options: Mapping[str, Any]) -> str:
    if options.get("connection_string"):
        return str(options["connection_string"])
    user, password = options.get("user"), options.get("password")
    who = ""
    if user:
        who = quote(str(user), safe="") + (f":{quote(str(password), safe='')}" if password else "")
        who += "@"
    host, port = options.get("host", "localhost"), options.get("port", 5432)
    return f"postgresql://{who}{host}:{port}/{quote(str(options.get('dbname', 'postgres')))}"


def _llm(given: Any) -> Llm | None:
    if given is None:
        return None
    name = _provider(given, "llm", ("rules", *_SERVERS, *_OTHER_LLMS), "openai")
    if name == "rules":
        return None
    if name not in _SERVERS:
        raise ParameterError(
            "this language model is not asked over an OpenAI-compatible server",
            value=name,
            allowed=", ".join(("rules", *_SERVERS)),
            way_out=[
                'leave "llm" out: rules draw and reconcile memories, without any model',
                'or name a server: {"provider": "openai", "config": {"openai_base_url": ...}}',
            ],
        )
    url, key, model = _server(name, given, "llm")
    return Endpoint(url, model, key)


def _embedder(given: Any, models_dir: Path) -> Embedder | None:
    if given is None:
        return default_embedder(models_dir)
    known = ("minilm", "none", "huggingface", "fastembed", *_EMBEDDING_SERVERS, *_OTHER_EMBEDDERS)
    name = _provider(given, "embedder", known, "openai")
    if name == "none":
        return None
    if name in _EMBEDDING_SERVERS:
        url, key, model = _server(name, given, "embedder")
        return EndpointEmbedder(url, model, key)
    model = str(_mapping(_mapping(given).get("config")).get("model") or EMBEDDER)
    if name == "minilm" or (name in ("huggingface", "fastembed") and _is_minilm(model)):
        found = default_embedder(models_dir)
        if found is None:
            raise ModelError(
                "the embedder all-MiniLM-L6-v2 is not there", way_out=f"loci pull {EMBEDDER}"
            )
        return found
    raise ParameterError(
        "this embedder is not one of those that are known here",
        value=f"{name}: {model}",
        allowed="all-MiniLM-L6-v2, or a model behind an OpenAI-compatible server",
        way_out=[
            'leave "embedder" out: all-MiniLM-L6-v2 is used where it was pulled',
            'or name a server: {"provider": "openai", "config": {"openai_base_url": ...}}',
        ],
    )


def _is_minilm(model: str) -> bool:
    return model.lower() in (*_MINILM, EMBEDDER)


def _server(name: str, given: Any, part: str) -> tuple[str, str | None, str]:
    """Return (base URL, key, model) of a provider's server."""
    options = _mapping(_mapping(given).get("config"))
    base, setting, variable = _SERVERS[name]
    url = str(options.get(setting) or options.get("base_url") or base)
    if name.startswith("openai") and not options.get(setting):
        url = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE") or url
    if name == "ollama" and not url.rstrip("/").endswith("/v1"):
        url = url.rstrip("/") + "/v1"  # its OpenAI-compatible side
    key = options.get("api_key") or (os.environ.get(variable) if variable else None)
    model = options.get("model")
    if not isinstance(model, str) or not model:
        raise ParameterError(
            f"the configuration of {part} names no model",
            value=dict(options),
            allowed=f'{{"provider": "{name}", "config": {{"model": "..."}}}}',
        )
    return url, None if key is None else str(key), model


def _provider(part: Any, what: str, known: tuple[str, ...], default: str | None) -> str:
    given = _mapping(part)
    _check_keys(given, ("provider", "config", "llm", "threshold", "custom_prompt"), what)
    name = given.get("provider", default)
    if name not in known:
        near = nearest(str(name), known)
        raise ParameterError(
            f"unknown provider of {what}",
            value=name,
            allowed=", ".join(known),
            way_out=f"did you mean {near!r}?" if near else (),
        )
    return str(name)


def _named(part: Any) -> bool:
    return _mapping(part).get("provider") is not None


def _mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return {key: inner for key, inner in dump().items() if inner is not None}
    raise ConfigError("a configuration is a dict", value=value)


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in given:
        if key not in known:
            near = nearest(str(key), known)
            raise ConfigError(
                f"unknown key in {what}",
                value=key,
                allowed=", ".join(known),
                way_out=f"did you mean {near!r}?" if near else (),
            )
