"""Layered prefill: a prompt runs through a few layers a step, beside everybody's next token.

"From Tokens to Layers: Redefining Stall-Free Scheduling for LLM Serving with Layered Prefill",
2025, arXiv:2510.08055.

A long prompt must not hold up who is being answered. Cutting it into chunks of tokens does that,
but every chunk reads the weights of every layer again (of a mixture of experts: nearly all its
experts). Cut by layers instead, each layer's weights are read once for the whole prompt:

    G = max(1, ceil(T / work))      groups of layers, for a prompt (or several) of T tokens

Each step decodes all running rows through all layers; one group also carries the prompt, whose
states wait between steps. After G steps the prompt is read and its first token comes. The work of
a step is that of a chunk of `work` tokens.

Differs from the authors' program: G follows the formula instead of a table of powers of two; while
nobody decodes there is nothing to protect, so the rest of the layers runs at once; admission is by
bytes, so nothing is put out again.
Not for: weights that all lie in fast memory, of a dense model: chunks then cost nothing extra, and
wait less for the first token of a short prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.methods.sched.base import Request, Sched, SchedView, StepPlan, admit


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Who runs, and the prompts that are being read together.

    Attributes:
        admitted: ids in the order they were admitted.
        prompts: (id, tokens) on their way through the layers; () is nobody.
        groups: of layers; done: how many of them they went through.
    """

    admitted: tuple[str, ...] = ()
    prompts: tuple[tuple[str, int], ...] = ()
    groups: int = 1
    done: int = 0


@dataclass(frozen=True, kw_only=True)
class LayeredPrefill(Sched):
    """Prompts by groups of layers; admission by bytes in order of arrival."""

    about = About(
        name="layered_prefill",
        kind=Kind.SCHED,
        paper="arXiv:2510.08055",
        idea="a prompt goes through a few layers a step, so each layer's weights are read once",
        phases=(Phase.PREFILL, Phase.DECODE),
        frees=Frees.NOTHING,
        lossy=False,
    )

    work: Annotated[
        int,
        Param(
            help="prompt tokens a step may cost, were they to run all layers", unit="tokens", ge=1
        ),
    ] = 512
    together: Annotated[
        int,
        Param(help="prompt tokens that are read together at most", unit="tokens", ge=1),
    ] = 8192

    def start(self) -> Reading:
        """Nobody is there yet."""
        return Reading()

    def choose(self, view: SchedView, state: Reading) -> tuple[StepPlan, Reading]:
        running, refuse = admit(view, state.admitted)
        decode = tuple(request.id for request in running if request.is_decoding)
        here = {request.id for request in running}
        prompts = tuple((id, tokens) for id, tokens in state.prompts if id in here)
        groups, done = state.groups, state.done
        if not prompts:
            prompts, done = self._next(running), 0
            tokens = sum(count for _, count in prompts)
            groups = min(view.layers, max(1, -(-tokens // self.work)))
        first, last = _layers(view.layers, groups, done)
        if not decode:
            last = view.layers
        is_read = last == view.layers
        plan = StepPlan(
            decode=decode,
            prefill=prompts,
            prefill_layers=(first, last) if prompts else None,
            refuse=refuse,
        )
        after = Reading(
            admitted=tuple(request.id for request in running),
            prompts=() if is_read else prompts,
            groups=groups,
            done=0 if is_read else done + 1,
        )
        return plan, after

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of the states of one prompt between two layers."""
        tokens = load.context if load.prompt_tokens is None else load.prompt_tokens
        tokens = min(tokens, self.together)
        held = 0 if tokens <= self.work else 4 * tokens * spec.hidden
        return Cost(held={"dram": held})

    def _next(self, running: list[Request]) -> tuple[tuple[str, int], ...]:
        """Return the prompts to read next; what is too long for once goes on after that."""
        room, found = self.together, []
        for request in running:
            left = request.prompt_tokens - request.prefilled
            if left and room:
                found.append((request.id, min(left, room)))
                room -= found[-1][1]
        return tuple(found)


def _layers(layers: int, groups: int, group: int) -> tuple[int, int]:
    """Return the layers of a group; the first groups get one more where they do not divide."""
    each, more = divmod(layers, groups)
    first = group * each + min(group, more)
    return first, first + each + (group < more)
