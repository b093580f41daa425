"""The role of cost methods, and a decoder's work as a graph of operations.

A cost method says how long a graph of operations takes on a machine. `graph_of` writes the graph of
one step of a Llama-like decoder: arithmetic and bytes per operator, from sizes alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from loci.core.cost import Cost, Op, OpGraph
from loci.core.method import Method
from loci.core.spec import ModelSpec
from loci.errors import ModelError

# Shapes: B rows at once, T tokens of this step per row, S keys that the last of them sees.

Phase = Literal["prefill", "decode"]
KNOWN = ("llama", "qwen2", "qwen3", "mistral", "gemma")
FEW_ROWS = 16  # so many rows are multiplied straight from the codes; more unpack the weight first
_ONE_BY_ONE = 2.0  # operations: a number is made of its code alone, else by a matrix
_NORM, _SOFTMAX, _ACTIVATE, _UNPACK = 7, 5, 5, 2  # operations per element
_PRODUCTS = (4, 8)  # bits whose products have a rate of their own; others take the nearest above


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
        """Operations per second by number format, "float32", "bfloat16", "int8": the peak.

        Where it was measured, also by what is done in that format, "float32/attend"; `rate_of`
        looks a rate up.
        """
        ...

    @property
    def launch_s(self) -> float:
        """Fixed time of one operator."""
        ...

    @property
    def starts(self) -> Mapping[str, float]:
        """Fixed time of operators that take longer to start, by what they do, as in `rates`."""
        ...


class CostModel(Method):
    """Role: say what a graph of operations costs on a machine."""

    @abstractmethod
    def estimate(self, work: OpGraph, machine: Machine) -> Cost:
        """Return the cost of running the graph once.

        `seconds_per_token` of the result is the time of that one pass, whatever the number of
        tokens in it. Neither argument is changed, and the same arguments give the same cost.
        """


def rate_of(machine: Machine, rate: str) -> float:
    """Return the operations per second of a kind of work, else the peak of its number format.

    Raises:
        ModelError: if the machine's profile has neither.
    """
    peak = machine.rates.get(rate.partition("/")[0])
    found = machine.rates.get(rate, peak)
    if found is None:
        raise ModelError(
            f"the machine's profile has no rate for {rate}", allowed=", ".join(machine.rates)
        )
    return found


def start_of(machine: Machine, rate: str) -> float:
    """Return the fixed time of an operator of this kind of work."""
    return machine.starts.get(rate, machine.launch_s)


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
    decode_operations: float = 2.0,
    rate: str = "float32",
) -> OpGraph:
    """Return the operators of one step, in order; layers are one operator with `repeat`.

    What has a speed of its own says so in its rate: "/product4" and "/product8" multiply few rows
    straight from codes, "/unpack" makes floats of codes, "/gemm" multiplies many rows, "/attend"
    and "/attend_many" are attention of one token and of many, "/decode_kv" makes floats of stored
    KV.

    Args:
        phase: "decode" is one token a row, "prefill" is `tokens` of them; only the last token of a
            row goes through the head.
        keys: keys the last token sees, itself included.
        chunk: tokens per pass of a prefill; weights and older KV are read once a pass.
        kv_bytes_per_element: as the KV cache stores them, scales included.
        decoded: whether stored KV is decoded from codes to float32 before attention reads it.
        decode_operations: what that takes for one number.
    """
    if spec.architecture not in KNOWN:
        raise ModelError("no cost model for this architecture", value=spec.architecture)
    T = tokens if phase == "prefill" else 1
    passes = -(-T // chunk) if chunk else 1
    rows, L = batch * T, spec.layers
    queries, width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    weight = spec.weight_bits / 8
    is_few = rows <= FEW_ROWS

    def op(
        name: str, operations: float, parts: dict[str, float], repeat: int = L, does: str = ""
    ) -> Op:
        wrote = sum(size for part, size in parts.items() if part.endswith(("out", "write")))
        read = sum(parts.values()) - wrote
        return Op(
            name=name,
            operations=operations,
            read_bytes=read,
            write_bytes=wrote,
            rate=f"{rate}/{does}" if does else rate,
            repeat=repeat,
            parts=parts,
        )

    def linear(name: str) -> Op:
        out, inner = spec.layer_linears()[name]
        to_cache = name in ("k_proj", "v_proj")
        out_bytes = rows * out * (kv_bytes_per_element if to_cache else act_bytes)
        return op(
            name,
            2.0 * rows * out * inner,
            {
                "weight": out * inner * weight * passes,
                "act_in": rows * inner * act_bytes,
                "kv_write" if to_cache else "act_out": out_bytes,
            },
            does=product(spec.weight_bits) if is_few else "gemm",
        )

    def product(bits: float) -> str:
        """Return what multiplies few rows by a weight of so many bits, scales included."""
        if bits >= 16:
            return "gemm"
        whole = next((known for known in _PRODUCTS if bits < known + 2), _PRODUCTS[-1])
        return f"product{whole}"

    def unpack() -> Iterator[Op]:
        """A product of many rows makes floats of its weights first, once a pass.

        Where arithmetic is in float32, halves are made floats too, for one row as well.
        """
        is_half = 16 <= spec.weight_bits < 32 and rate == "float32"
        if (spec.weight_bits < 16 and not is_few) or is_half:
            elements = spec.linear_elements() // L * passes
            yield op("unpack", _UNPACK * elements, {"weight": 0.0}, does="unpack")

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
        does="attend" if T == 1 else "attend_many",
    )
    decode = op(
        "decode_kv",
        decode_operations * stored,
        {"kv_read": stored * kv_bytes_per_element},
        does="decode_kv" if decode_operations <= _ONE_BY_ONE else "gemm",
    )
    ops = [
        pointwise("input_norm", _NORM, spec.hidden),
        *unpack(),
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
            product(spec.embed_bits) if batch <= FEW_ROWS else "gemm",
        ),
    ]
    return OpGraph(ops=tuple(ops), after=tuple((i - 1,) if i else () for i in range(len(ops))))
