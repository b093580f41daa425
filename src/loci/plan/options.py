"""What the planner may choose between, and what one choice costs.

An option is one form of the KV cache, one place for the weights, one length of prompt steps. Every
option is worked out to the byte from sizes alone; times come from the roofline of the machine, KL
from the cards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from loci.core.budget import Budget
from loci.core.spec import ModelSpec, Workload
from loci.core.work import work_bytes
from loci.methods.cost.base import Machine
from loci.methods.offload.base import Placement
from loci.models.stack import StackTable
from loci.plan.kvform import (
    EXACT,
    Cards,
    KVForm,
    by_loss,
    decode_operations,
    decoded,
    kv_bytes,
    kv_on_disk,
    ladder,
    loss_of,
    read_tokens,
)
from loci.plan.streaming import least_streamed, place
from loci.plan.times import predict, prompt_tokens

Weights = Literal["resident", "streamed", "stacked"]

CHUNKS = (512, 256, 128, 64, 32)  # tokens of a prompt that are read at once


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything a plan is made from."""

    model: str
    spec: ModelSpec
    blocks: tuple[tuple[str, int, int], ...]
    budget: Budget
    workload: Workload
    profile: Machine
    cards: Cards
    forced_kv: str | None = None
    forced_weights: Weights | None = None
    forced_chunk: int | None = None
    runtime_bytes: int | None = None
    stack: StackTable | None = None  # weights in levels, which lose something; None has no such
    more_forms: tuple[KVForm, ...] = ()  # of the KV cache, beside the usual ones

    @property
    def limit(self) -> int:
        """Bytes of memory that Loci may hold: --dram, or less where --process says so."""
        dram = self.budget.dram or 0
        if self.budget.process is None:
            return dram
        return max(0, min(dram, self.budget.process - (self.runtime_bytes or 0)))

    def forms(self) -> tuple[KVForm, ...]:
        """Return the forms of the KV cache to choose from, the least lossy first."""
        choice = ladder(self.spec.head_dim)
        if self.forced_kv is None:
            more = [f for f in self.more_forms if all(f.chain != g.chain for g in choice)]
            return by_loss((*choice, *more), self.spec, self.cards)
        for form in choice[:2]:
            if (self.forced_kv or EXACT.name) == form.name:
                return (form,)
        wanted = KVForm(chain=self.forced_kv)
        known = tuple(f for f in choice if f.chain and f.methods() == wanted.methods())
        return known or (KVForm(chain=" | ".join(map(str, wanted.methods()))),)

    def chunks(self) -> tuple[int, ...]:
        """Return the lengths of prompt steps to choose from, the longest first."""
        if self.forced_chunk is not None:
            return (self.forced_chunk,)
        return tuple(dict.fromkeys(min(chunk, self.workload.context) for chunk in CHUNKS))

    def places(self) -> tuple[Weights, ...]:
        """Return where the weights may be."""
        if self.forced_weights:
            return (self.forced_weights,)
        return ("resident", "streamed") if self.stack is None else get_args(Weights)

    def with_(self, **changes: object) -> Problem:
        """Return the problem with parts of its budget or workload changed."""
        budget = {k: v for k, v in changes.items() if hasattr(self.budget, k)}
        load = {k: v for k, v in changes.items() if hasattr(self.workload, k)}
        rest = {k: v for k, v in changes.items() if k not in budget and k not in load}
        return replace(
            self,
            budget=replace(self.budget, **budget),  # type: ignore[arg-type]
            workload=replace(self.workload, **load),  # type: ignore[arg-type]
            **rest,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A limit that an option does not keep."""

    where: str  # "dram", "disk", "--weights", "--kv"
    need: int
    limit: int

    @property
    def short(self) -> int:
        """Bytes that are missing."""
        return self.need - self.limit


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One option worked out.

    Attributes:
        parts: (name, tier, kind, bytes) of everything it holds.
        least: the smallest amount of memory the option could do with.
        gaps: limits it does not keep; empty when it fits.
        loss: KL in nats per token; None when unknown for this model.
        weights_budget_bytes: what stacked weights get, else None.
        first_token_s, seconds_per_token: predicted; infinite when it does not fit.
    """

    weights: Weights
    form: KVForm
    chunk: int
    parts: tuple[tuple[str, str, str, int], ...]
    least: int
    gaps: tuple[Gap, ...]
    placement: Placement | None = None
    kv_budget_bytes: int | None = None
    weights_budget_bytes: int | None = None
    loss: float | None = None
    first_token_s: float = math.inf
    seconds_per_token: float = math.inf

    @property
    def fits(self) -> bool:
        """Whether it keeps every limit."""
        return not self.gaps

    def held(self, tier: str = "dram", kind: str | None = None) -> int:
        """Return the bytes it holds on a tier."""
        return sum(n for _, on, of, n in self.parts if on == tier and kind in (None, of))

    def total_s(self, load: Workload) -> float:
        """Return the time of the whole answer."""
        return self.first_token_s + load.new_tokens * self.seconds_per_token


def evaluate(
    problem: Problem, weights: Weights, form: KVForm, chunk: int, *, is_timed: bool = True
) -> Candidate:
    """Work out one option: bytes, gaps, placement, times and loss.

    Args:
        is_timed: False leaves out placement and times, for who only asks whether it fits.
    """
    spec, load, budget = problem.spec, problem.workload, problem.budget
    resident = sum(nbytes for _, nbytes, _ in problem.blocks)
    on_disk = sum(stored for _, _, stored in problem.blocks)
    work = work_bytes(spec, chunk, load.batch, decoded_tokens=decoded(form, load.context))
    fixed = spec.tokenizer_bytes + work
    if weights == "stacked":
        assert problem.stack is not None
        fewest = problem.stack.least_bytes
    else:
        fewest = resident if weights == "resident" else least_streamed(problem.blocks)
    room = min(problem.limit - fixed - fewest, _or_inf(budget.kv))
    kv, kv_budget, least_kv = kv_bytes(form, spec, load, chunk, room)
    least = fixed + fewest + least_kv
    gaps = [
        Gap(where="dram", need=least, limit=problem.limit),
        Gap(where="--weights", need=fewest, limit=_or(budget.weights, fewest)),
        Gap(where="--kv", need=least_kv, limit=_or(budget.kv, least_kv)),
    ]
    parts = [("tokenizer", "dram", "tokenizer", spec.tokenizer_bytes)]
    placement = None
    kv_disk = (
        0 if any(gap.short > 0 for gap in gaps) else kv_on_disk(form, spec, load, chunk, kv_budget)
    )
    if weights == "streamed" or kv_disk:
        has_disk = "disk" in problem.profile.tiers  # else nobody knows how fast it is
        need = kv_disk + (on_disk if weights == "streamed" else 0)
        gaps.append(Gap(where="disk", need=need, limit=budget.disk or 0 if has_disk else 0))
    if weights == "streamed":
        parts.append(("weights on disk", "disk", "weights", on_disk))
    if kv_disk:
        parts.append(("kv on disk", "disk", "kv", kv_disk))
    gaps = [gap for gap in gaps if gap.short > 0]
    if weights == "streamed" and not gaps and is_timed:
        free = problem.limit - fixed - kv
        free = free if budget.weights is None else min(free, budget.weights)
        placement = place(problem.blocks, free)
        fewest = placement.held_bytes
    weights_budget = None
    loss = loss_of(form, spec, problem.cards)[0]
    if weights == "stacked" and not gaps:
        assert problem.stack is not None
        weights_budget = problem.limit - fixed - kv
        if budget.weights is not None:
            weights_budget = min(weights_budget, budget.weights)
        fewest = problem.stack.held_bytes(weights_budget)
        cut = problem.stack.loss(fewest)
        loss = None if cut is None or loss is None else cut + loss
    parts += [
        ("weights", "dram", "weights", fewest),
        ("kv", "dram", "kv", kv),
        ("work", "dram", "work", work),
    ]
    candidate = Candidate(
        weights=weights,
        form=form,
        chunk=chunk,
        parts=tuple(parts),
        least=least,
        gaps=tuple(gaps),
        placement=placement,
        kv_budget_bytes=kv_budget,
        weights_budget_bytes=weights_budget,
        loss=loss,
    )
    if gaps or not is_timed:
        return candidate
    first_s, token_s = predict(
        spec,
        load,
        problem.profile,
        problem.blocks,
        chunk=chunk,
        kv_bytes=kv,
        decode_operations=decode_operations(form, spec),
        reads=lambda tokens: read_tokens(form, tokens),
        placement=placement,
    )
    if weights == "stacked":
        assert problem.stack is not None
        # Weights are put together for every step of the prompt, and for every token.
        extra = problem.stack.seconds(fewest)
        first_s += extra * -(-prompt_tokens(load) // chunk)
        token_s += extra
    return replace(candidate, first_token_s=first_s, seconds_per_token=token_s)


# -- private ----------------------------------------------------------------------------------


def _or(value: int | None, other: int) -> int:
    return other if value is None else value


def _or_inf(value: int | None) -> float:
    return math.inf if value is None else value
