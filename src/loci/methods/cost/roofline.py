"""Roofline: an operator takes as long as its bytes or its arithmetic, whichever is slower.

Z. Yuan et al., "LLM Inference Unveiled: Survey and Roofline Model Insights", 2024, arXiv:2402.16363
(LLM-Viewer).

The intensity of an operator is its operations per byte. Below the machine's ridge, which is peak /
bandwidth, it waits for memory, above it for arithmetic:

    time = max(bytes / bandwidth, operations / peak),    summed over the operators of a step

(plus the fixed time of starting an operator, where the machine's profile has one).

Differs from the paper's code: KV is read once per KV head, not per query head; causal attention
counts only the pairs it computes; the tied embedding is stored once and read in full by the head;
weight bytes include scales; passes of a chunked prefill read the weights again (see `graph_of`).
Peak rates come from the machine's profile per number format; a profile that was measured here also
has what kernels reach, per kind of work.
Not for: absolute promises on a machine whose rates nobody measured; kernels reach a part of a
published peak, so with such a profile only comparisons hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from loci.core.cost import Cost, Op, OpGraph
from loci.core.method import About, Frees, Kind, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.errors import ModelError
from loci.methods.cost.base import CostModel, Machine, rate_of, start_of

Bound = Literal["memory", "compute"]


@dataclass(frozen=True, kw_only=True)
class Roofline(CostModel):
    """Bandwidth of one tier against the peak rate of the arithmetic."""

    about = About(
        name="roofline",
        kind=Kind.COST,
        paper="arXiv:2402.16363",
        idea="an operator waits for its bytes or for its arithmetic, whichever is slower",
        phases=(Phase.PREFILL, Phase.DECODE),
        frees=Frees.NOTHING,
        lossy=False,
    )

    tier: Annotated[
        str, Param(help="where weights and KV are read from", choices=("dram", "gpu"))
    ] = "dram"

    def estimate(self, work: OpGraph, machine: Machine) -> Cost:
        """Return the sum over all operators; `seconds_per_token` is the time of one pass."""
        return Cost(
            operations=work.totals().operations,
            seconds_per_token=sum(self.time(op, machine)[0] * op.repeat for op in work.ops),
        )

    def time(self, op: Op, machine: Machine) -> tuple[float, Bound]:
        """Return the seconds of one repetition of an operator, and what it waits for."""
        memory_s = op.nbytes / self._bandwidth(machine)
        compute_s = op.operations / rate_of(machine, op.rate)
        bound: Bound = "memory" if memory_s > compute_s else "compute"
        return max(memory_s, compute_s) + start_of(machine, op.rate), bound

    def attainable(self, op: Op, machine: Machine) -> float:
        """Return the operations per second that the operator can reach."""
        intensity = op.operations / op.nbytes
        return min(rate_of(machine, op.rate), intensity * self._bandwidth(machine))

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """A cost model holds no bytes and takes no time itself."""
        return Cost()

    def _bandwidth(self, machine: Machine) -> float:
        if self.tier not in machine.tiers:
            raise ModelError(
                f"the machine's profile has no tier {self.tier!r}",
                allowed=", ".join(machine.tiers),
            )
        return machine.tiers[self.tier].read_bytes_per_s
