"""A model and a piece of work as arithmetic: bytes and operations with no tensor in sight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any  # a configuration file holds whatever JSON can hold

from loci.errors import ParameterError

FULL_BYTES = 2  # every ratio counts two bytes per element as full


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The sizes of a Llama-like decoder, enough to count its bytes and operations.

    Attributes:
        architecture: "llama", "qwen2", "qwen3", "mistral" or "gemma".
        layers, hidden, heads, kv_heads, head_dim, ffn, vocab: sizes; head_dim may differ from
            hidden / heads.
        tied: the output head is the embedding.
        attention_bias: q, k and v have a bias (qwen2).
        qk_norm: q and k are normalised per head (qwen3).
        rope_scaling: parameters of a scaled rotary embedding as sorted (name, value) pairs.
        window: sliding attention window in tokens, or None.
        activation: "silu" or "gelu_tanh".
        norm_offset: added to every norm weight (1.0 for gemma).
        embed_scale: what embeddings are multiplied with (sqrt(hidden) for gemma).
        weight_bits: bits per weight of the linear layers as stored, scales included.
        embed_bits: the same for the embedding.
        tokenizer_bytes: memory of the tokenizer's tables, measured when the model was packed.
        fingerprint: of weights and layout; "" for a spec that is only arithmetic.
    """

    name: str
    architecture: str = "llama"
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context: int
    tied: bool = True
    attention_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, float | str], ...] = ()
    norm_eps: float = 1e-5
    window: int | None = None
    activation: str = "silu"
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    weight_bits: float = 16.0
    embed_bits: float = 16.0
    tokenizer_bytes: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab",
            "max_context",
        ):
            if getattr(self, name) < 1:
                raise ParameterError(f"model.{name} must be >= 1", value=getattr(self, name))
        if self.heads % self.kv_heads:
            raise ParameterError(
                f"query heads must be a multiple of KV heads; got {self.heads} and {self.kv_heads}"
            )

    @property
    def groups(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    def layer_linears(self) -> dict[str, tuple[int, int]]:
        """Return {name: (out, in)} of the linear layers of one decoder layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }

    def layer_norm_elements(self) -> int:
        """Return the number of norm weights and biases in one decoder layer."""
        count = 2 * self.hidden
        if self.qk_norm:
            count += 2 * self.head_dim
        if self.attention_bias:
            count += (self.heads + 2 * self.kv_heads) * self.head_dim
        return count

    def linear_elements(self) -> int:
        """Return the number of weights in all linear layers, embedding and head not included."""
        return self.layers * sum(out * inner for out, inner in self.layer_linears().values())

    def embed_elements(self) -> int:
        """Return the number of weights in embedding and head; a tied one counts once."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    def elements(self) -> int:
        """Return the number of parameters."""
        norms = self.layers * self.layer_norm_elements() + self.hidden
        return self.linear_elements() + self.embed_elements() + norms

    def full_bytes(self) -> int:
        """Return the bytes of all weights at two bytes each."""
        return self.elements() * FULL_BYTES

    def kv_elements_per_token(self) -> int:
        """Return the KV elements of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def kv_bytes(self, tokens: int, bytes_per_element: float = FULL_BYTES) -> int:
        """Return the bytes of an uncompressed KV cache of `tokens`."""
        return round(tokens * self.kv_elements_per_token() * bytes_per_element)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return asdict(self) | {"rope_scaling": dict(self.rope_scaling)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Return the spec from `to_json`; an unknown field is an error."""
        values = dict(data)
        values["rope_scaling"] = tuple(sorted(values.get("rope_scaling", {}).items()))
        try:
            return cls(**values)
        except TypeError as error:
            raise ParameterError(f"this is no model spec: {error}") from None

    def with_fingerprint(self, fingerprint: str) -> ModelSpec:
        """Return the spec with the fingerprint of real weights."""
        return replace(self, fingerprint=fingerprint)

    def layout_hash(self) -> str:
        """Return a short hash of everything that decides the shape of its memory."""
        shape = self.to_json()
        for name in ("name", "fingerprint", "weight_bits", "embed_bits", "tokenizer_bytes"):
            shape.pop(name)
        return hashlib.blake2b(
            json.dumps(shape, sort_keys=True).encode(), digest_size=8
        ).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be done: context, length of prompt and answer, how many at once."""

    context: int
    prompt_tokens: int | None = None
    new_tokens: int = 256
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("context", "new_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ParameterError(f"workload.{name} must be >= 1", value=getattr(self, name))
        if self.prompt_tokens is not None and not 0 <= self.prompt_tokens <= self.context:
            raise ParameterError(
                "workload.prompt_tokens must lie within the context",
                value=self.prompt_tokens,
                allowed=f"0 to {self.context}",
            )
