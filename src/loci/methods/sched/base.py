"""The role of schedulers: which request does what in the next step of the engine.

The engine asks `choose` before each step and carries out the plan as it is. Requests are values; a
scheduler's memory is a state of its own that it gets and returns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal  # a method's state is its own affair

from loci.core.method import Method
from loci.errors import ParameterError

Where = Literal["nowhere", "here", "coming", "out"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One unfinished request as a scheduler sees it.

    Attributes:
        id: unique among all requests.
        prompt_tokens: length of its prompt.
        new_tokens: tokens it may generate at most.
        prefilled: prompt tokens that were processed already.
        generated: tokens that were generated already.
        kv_bytes: bytes of its KV cache when it is complete.
        priority: larger goes first where a method knows priorities.
        user: whose it is, for methods that are fair between users.
        where: its KV is: "nowhere" before the first token (or after it was dropped, to be read
            again), "here", "coming" back, or "out".
        stored: tokens whose KV it has, here or out.
    """

    id: str
    prompt_tokens: int
    new_tokens: int
    kv_bytes: int
    prefilled: int = 0
    generated: int = 0
    priority: int = 0
    user: str = ""
    where: Where = "nowhere"
    stored: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.prefilled <= self.prompt_tokens or self.prompt_tokens < 1:
            raise ParameterError("a request's prefilled tokens must lie in its prompt", value=self)
        if not 0 <= self.generated <= self.new_tokens or self.kv_bytes < 0:
            raise ParameterError("a request cannot have generated more than it may", value=self)

    @property
    def is_decoding(self) -> bool:
        """Whether the whole prompt was processed."""
        return self.prefilled == self.prompt_tokens


@dataclass(frozen=True, kw_only=True)
class SchedView:
    """What a scheduler sees before a step.

    Attributes:
        requests: all unfinished requests, in the order they arrived.
        budget_bytes: bytes of KV that all admitted requests may hold together.
        max_rows: rows the engine can decode in one step.
        layers: of the model, for methods that plan by layers.
        token_bytes: of KV, where it grows with use, in blocks of `block_tokens`; None where each
            request holds all of `kv_bytes` from its beginning.
    """

    requests: tuple[Request, ...]
    budget_bytes: int
    max_rows: int = 1
    layers: int = 1
    token_bytes: int | None = None
    block_tokens: int = 1

    def bytes_of(self, request: Request, tokens: int) -> int:
        """Return what a request holds with so many tokens, whole blocks and at most all of it."""
        if self.token_bytes is None:
            return request.kv_bytes
        blocks = -(-tokens // self.block_tokens)
        return min(request.kv_bytes, blocks * self.block_tokens * self.token_bytes)


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What the next step does.

    Attributes:
        decode: ids of the requests that each get one more token.
        prefill: (id, prompt tokens to process now), in order.
        prefill_layers: the layers [first, end) that the prefill runs through; None is all. The
            tokens count as processed when the last layer was reached; until then each plan names
            the same tokens, and the layers follow each other.
        swap_out: ids whose KV leaves the tier after the step; swap_in: ids whose KV comes back
            before it.
        refuse: ids that can never run within the budget.
    """

    decode: tuple[str, ...] = ()
    prefill: tuple[tuple[str, int], ...] = ()
    prefill_layers: tuple[int, int] | None = None
    swap_out: tuple[str, ...] = ()
    swap_in: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs in this step."""
        return not (self.decode or self.prefill)


class Sched(Method):
    """Role: choose the next step.

    Plans keep to these rules, which `loci.testing.sched` checks: only requests in the view are
    named; a request decodes only after its whole prompt; the KV of all requests that hold any stays
    within the budget; while a request waits that fits alone, something runs or swaps.

    Attributes:
        swaps: plans may name requests to put out and to bring back.
    """

    swaps: ClassVar[bool] = False

    def start(self) -> Any:
        """Return the state before the first step."""
        return None

    @abstractmethod
    def choose(self, view: SchedView, state: Any) -> tuple[StepPlan, Any]:
        """Return the next step and the state after it; neither argument is changed."""


def admit(view: SchedView, admitted: Sequence[str]) -> tuple[list[Request], tuple[str, ...]]:
    """Return who runs, in order, and who never can: first come, first served, by bytes.

    Admitted is the longest beginning of the arrivals whose complete KV fits the budget together,
    and of no more than `max_rows`; so none must ever be put out again. Nobody is overtaken.

    Args:
        admitted: ids that run already, in the order they were admitted; those that ended are gone.
    """
    by_id = {request.id: request for request in view.requests}
    running = [by_id[id] for id in admitted if id in by_id]
    known, held, refuse = set(admitted), sum(r.kv_bytes for r in running), []
    for request in view.requests:
        if request.id in known:
            continue
        if request.kv_bytes > view.budget_bytes:
            refuse.append(request.id)
            continue
        if held + request.kv_bytes > view.budget_bytes or len(running) >= view.max_rows:
            break
        running.append(request)
        held += request.kv_bytes
    return running, tuple(refuse)
