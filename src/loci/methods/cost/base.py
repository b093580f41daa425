"""The role of cost methods, and a decoder's work as a graph of operations.

A cost method says how long a graph of operations takes on a machine. `graph_of` writes the graph of
one step of a Llama-like decoder: arithmetic and bytes per operator, from sizes alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, Protocol

from loci.core.cost import Cost, Op, OpGraph
from loci.core.method import Method
from loci.core.spec import ModelSpec
from loci.errors import ModelError

# Shapes: B rows at once, T tokens of this step per row, S keys that the last of them sees.

Phase = Literal["prefill", "decode"]
KNOWN = ("llama", "qwen2", "qwen3", "mistral", "gemma")
_NORM, _SOFTMAX, _ACTIVATE, _UNPACK = 7, 5, 5, 2  # operations per element


class TierRates(Protocol):
    """How fast a tier is read."""

    @property
    def read_bytes_per_s(self) -> float:
        """Bytes per second of large sequential reads."""
        ...


class Machine(Protocol):
    """What a cost method must know of a machine; `hw.profiles.DeviceProfile` has it."""

    @property
    def tiers(self) -> Mapping[str, TierRates]:
        """Tiers by name."""
        ...

    @property
    def rates(self) -> Mapping[str, float]:
        """Operations per second by number format: "float32", "bfloat16", "int8"."""
        ...

    @property
    def launch_s(self) -> float:
        """Fixed time of one operator."""
        ...


class CostModel(Method):
    """Role: say what a graph of operations costs on a machine."""

    @abstractmethod
    def estimate(self, work: OpGraph, machine: Machine) -> Cost:
        """Return the cost of running the graph once.

        `seconds_per_token` of the result is the time of that one pass, whatever the number of
        tokens in it. Neither argument is changed, and the same arguments give the same cost.
        """


def causal_scores(tokens: int, keys: int, window: int | None = None) -> int:
    """Return the query-key pairs of `tokens` new tokens, the last of which sees `keys` keys.

    >>> causal_scores(3, 3)  # 1 + 2 + 3
    6
    """
    if window is None or keys <= window:
        return tokens * (2 * keys - tokens + 1) // 2
    full = max(0, min(tokens, tokens - (keys - window)))  # tokens that see fewer keys than window
    return causal_scores(full, window) + (tokens - full) * window


def graph_of(
    spec: ModelSpec,
    phase: Phase,
    *,
    tokens: int,
    keys: int,
    batch: int = 1,
    chunk: int | None = None,
    kv_bytes_per_element: float = 4.0,
    act_bytes: float = 4.0,
    decoded: bool = False,
    rate: str = "float32",
) -> OpGraph:
    """Return the operators of one step, in order; layers are one operator with `repeat`.

    Args:
        phase: "decode" is one token a row, "prefill" is `tokens` of them; only the last token of a
            row goes through the head.
        keys: keys the last token sees, itself included.
        chunk: tokens per pass of a prefill; weights and older KV are read once a pass.
        kv_bytes_per_element: as the KV cache stores them, scales included.
        decoded: whether stored KV is decoded from codes to float32 before attention reads it.
    """
    if spec.architecture not in KNOWN:
        raise ModelError("no cost model for this architecture", value=spec.architecture)
    T = tokens if phase == "prefill" else 1
    passes = -(-T // chunk) if chunk else 1
    rows, L = batch * T, spec.layers
    queries, width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    weight = spec.weight_bits / 8
    # A product of many rows unpacks its weights first, once a pass; one row unpacks as it goes.
    unpack = _UNPACK * passes if spec.weight_bits < 16 and rows > 1 else 0

    def op(name: str, operations: float, parts: dict[str, float], repeat: int = L) -> Op:
        wrote = sum(size for part, size in parts.items() if part.endswith(("out", "write")))
        read = sum(parts.values()) - wrote
        return Op(
            name=name,
            operations=operations,
            read_bytes=read,
            write_bytes=wrote,
            rate=rate,
            repeat=repeat,
            parts=parts,
        )

    def linear(name: str) -> Op:
        out, inner = spec.layer_linears()[name]
        to_cache = name in ("k_proj", "v_proj")
        out_bytes = rows * out * (kv_bytes_per_element if to_cache else act_bytes)
        return op(
            name,
            2.0 * rows * out * inner + unpack * out * inner,
            {
                "weight": out * inner * weight * passes,
                "act_in": rows * inner * act_bytes,
                "kv_write" if to_cache else "act_out": out_bytes,
            },
        )

    def pointwise(name: str, each: float, width: int, inputs: int = 1, repeat: int = L) -> Op:
        elements = rows * width
        parts = {"act_in": inputs * elements * act_bytes, "act_out": elements * act_bytes}
        return op(name, each * elements, parts, repeat)

    # Every pass reads the keys before and inside it once per KV head: queries of a group share.
    step = chunk or T
    ends = [keys - T + min(T, (index + 1) * step) for index in range(passes)]
    seen = sum(min(end, spec.window + step) if spec.window else end for end in ends)
    scores = batch * causal_scores(T, keys, spec.window) * spec.heads
    stored = 2.0 * batch * width * seen
    attention = op(
        "attention",
        scores * (4.0 * spec.head_dim + _SOFTMAX),
        {
            "act_in": rows * queries * act_bytes,
            "act_out": rows * queries * act_bytes,
            "kv_read": stored * (act_bytes if decoded else kv_bytes_per_element),
        },
    )
    decode = op("decode_kv", 2 * stored, {"kv_read": stored * kv_bytes_per_element})
    ops = [
        pointwise("input_norm", _NORM, spec.hidden),
        *(linear(name) for name in ("q_proj", "k_proj", "v_proj")),
        *([decode] if decoded else []),
        attention,
        linear("o_proj"),
        pointwise("attention_add", 1, spec.hidden, 2),
        pointwise("post_norm", _NORM, spec.hidden),
        *(linear(name) for name in ("gate_proj", "up_proj")),
        pointwise("activation", _ACTIVATE, spec.ffn, 2),
        linear("down_proj"),
        pointwise("ffn_add", 1, spec.hidden, 2),
        pointwise("norm", _NORM, spec.hidden, 1, 1),
        op(
            "head",
            2.0 * batch * spec.vocab * spec.hidden,
            {
                "weight": spec.vocab * spec.hidden * spec.embed_bits / 8,
                "act_in": batch * spec.hidden * act_bytes,
                "act_out": batch * spec.vocab * act_bytes,
            },
            1,
        ),
    ]
    return OpGraph(ops=tuple(ops), after=tuple((i - 1,) if i else () for i in range(len(ops))))
