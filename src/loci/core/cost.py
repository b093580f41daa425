"""What something costs, said in advance; and a model's work as a graph of operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


def _added(left: Mapping, right: Mapping) -> dict:
    return {key: left.get(key, 0) + right.get(key, 0) for key in {**left, **right}}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes held, bytes moved, operations, time and loss. Costs add.

    Attributes:
        held: {tier: bytes} held while it runs, at its largest.
        freed: {tier: bytes} that are given back compared with the full form.
        moved: {(from tier, to tier): bytes} per decoded token.
        operations: arithmetic operations per decoded token.
        seconds_per_token: time per decoded token; 0 when nobody predicted it.
        prefill_s: time for the whole prompt; 0 when nobody predicted it.
        loss: mean KL to the full model in nats per token; None when unknown for this model.
    """

    held: Mapping[str, int] = field(default_factory=dict)
    freed: Mapping[str, int] = field(default_factory=dict)
    moved: Mapping[tuple[str, str], int] = field(default_factory=dict)
    operations: float = 0.0
    seconds_per_token: float = 0.0
    prefill_s: float = 0.0
    loss: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        unknown = self.loss is None or other.loss is None
        return Cost(
            held=_added(self.held, other.held),
            freed=_added(self.freed, other.freed),
            moved=_added(self.moved, other.moved),
            operations=self.operations + other.operations,
            seconds_per_token=self.seconds_per_token + other.seconds_per_token,
            prefill_s=self.prefill_s + other.prefill_s,
            loss=None if unknown else (self.loss or 0.0) + (other.loss or 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator of a model: its arithmetic and the bytes it must read and write.

    `rate` names the arithmetic unit it uses: "float32", "bfloat16", "int8".
    """

    name: str
    operations: float
    read_bytes: float
    write_bytes: float = 0.0
    rate: str = "float32"
    repeat: int = 1
    parts: Mapping[str, float] = field(default_factory=dict)  # weight, act_in, kv_read, ...

    @property
    def nbytes(self) -> float:
        """Bytes read and written."""
        return self.read_bytes + self.write_bytes


@dataclass(frozen=True, kw_only=True)
class OpGraph:
    """The operators of one step, in order; `after[i]` lists what operator i waits for."""

    ops: tuple[Op, ...]
    after: tuple[tuple[int, ...], ...] = ()

    def totals(self) -> Op:
        """Return the sum of all operators as one."""
        return Op(
            name="total",
            operations=sum(op.operations * op.repeat for op in self.ops),
            read_bytes=sum(op.read_bytes * op.repeat for op in self.ops),
            write_bytes=sum(op.write_bytes * op.repeat for op in self.ops),
        )
