"""First come, first served: admit in order of arrival, while the whole request fits.

G.-I. Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI
2022 (iteration-level scheduling); A. Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM
Inference with Sarathi-Serve", 2024, arXiv:2403.02310 (prefill in chunks beside decoding).

Requests join and leave between steps. One is admitted when the KV bytes of its longest possible end
fit beside those of all admitted before it, so none must ever be put out again:

    admitted = the longest prefix of arrivals with  sum(kv_bytes) <= budget  and  rows <= max_rows

Every admitted request with a finished prompt decodes in each step. Prompts are processed in order
of arrival, whole, or with `chunk` at most that many tokens a step less one per decoding row, which
bounds how long a long prompt can hold up the others.

Differs from Orca: bytes instead of slots. Nobody is overtaken, so a large request at the head of
the queue waits until enough is free.
Not for: priorities, or prompts so long that one must yield to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.methods.sched.base import Request, Sched, SchedView, StepPlan, admit

Admitted = tuple[str, ...]  # the state: ids in the order they were admitted


@dataclass(frozen=True, kw_only=True)
class Fcfs(Sched):
    """Admission by bytes in order of arrival; prompts whole or in chunks."""

    about = About(
        name="fcfs",
        kind=Kind.SCHED,
        paper="OSDI 2022 (Orca), arXiv:2403.02310",
        idea="whoever came first runs first, as soon as all it may need fits",
        phases=(Phase.PREFILL, Phase.DECODE),
        frees=Frees.NOTHING,
        lossy=False,
    )

    chunk: Annotated[
        int | None,
        Param(help="tokens a step processes at most; none is whole prompts", unit="tokens", ge=1),
    ] = None

    def start(self) -> Admitted:
        """Nobody is admitted yet."""
        return ()

    def choose(self, view: SchedView, state: Admitted) -> tuple[StepPlan, Admitted]:
        admitted, refuse = admit(view, state)
        decode = tuple(request.id for request in admitted if request.is_decoding)
        plan = StepPlan(
            decode=decode,
            prefill=self._prompts(admitted, len(decode)),
            refuse=refuse,
        )
        return plan, tuple(request.id for request in admitted)

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """A scheduler holds nothing; what requests hold is the KV cache's affair."""
        return Cost()

    def _prompts(self, admitted: list[Request], decoding: int) -> tuple[tuple[str, int], ...]:
        waiting = [request for request in admitted if not request.is_decoding]
        if self.chunk is None:
            return tuple((r.id, r.prompt_tokens - r.prefilled) for r in waiting)
        room = max(1, self.chunk - decoding)  # a full step of decoding must not starve prompts
        parts = []
        for request in waiting:
            tokens = min(room, request.prompt_tokens - request.prefilled)
            if tokens:
                parts.append((request.id, tokens))
            room -= tokens
        return tuple(parts)
