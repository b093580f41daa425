"""The planner: of all options that fit, the one with the least loss, then the fastest.

Every combination of KV form, place of the weights and length of prompt steps is worked out to the
byte. What changes only time is always taken before what changes the model's words; what a memory
recalls is never traded. A larger budget only adds options, so it never makes a plan worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any  # JSON

from loci.core.budget import Budget
from loci.core.spec import ModelSpec, Workload
from loci.errors import BudgetError, FormatError, ParameterError
from loci.methods.cost.base import Machine
from loci.methods.offload.base import Placement
from loci.models.stack import StackTable
from loci.plan import explain, ways
from loci.plan.kvcards import Prepared, measured_forms
from loci.plan.kvform import Cards, KVDtype, KVForm, loss_of
from loci.plan.options import Candidate, Problem, Weights, evaluate
from loci.plan.streaming import Blocks
from loci.units import format_bytes

FORMAT, VERSION = "loci-plan", 1
WORTH_PREPARING = 0.005  # nats per token


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An option that was turned down.

    Attributes:
        name: such as "kv float16, weights resident".
        bytes: what it would hold in memory; gap: bytes missing, 0 when it fits.
        where: the limit that is too small: "dram", "disk", "--weights", "--kv"; "" when it fits.
        seconds_per_token, loss: None where unknown.
        why: in words.
    """

    name: str
    bytes: int
    gap: int
    where: str
    seconds_per_token: float | None
    loss: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done with a model in a budget, why, and what it costs.

    Attributes:
        weights: "resident" in memory, "streamed" from disk as `placement` says, or "stacked": as
            many levels as fit of the weights that `stack` made.
        weights_budget_bytes: what stacked weights get, else None.
        packed: what a method did to this model's weights before, in words; "" for others. The loss
            does not count it.
        kv: chain of KV methods, "" for an exact cache; kv_dtype: of tokens that are not encoded.
        kv_budget_bytes: what the store gets where methods choose tokens, else None.
        chunk: tokens of a prompt that are read at once.
        parts: (name, tier, kind, bytes) of everything that is held.
        predicted: {tier: bytes}; moved_per_token: {(from, to): bytes}.
        loss: mean KL to the full model in nats per token; None when unknown for this model.
        words: how the KV cache is kept, for people.
        change: what to change for more, in words; notes: what else to know.
        chosen: what was chosen, with numbers; turned_down: what was not.
        runtime_bytes: Python and its libraries, on top of the budget; None when not measured.
        activation_bits: 32, or 8 for what weights are multiplied with while tokens are decoded.
    """

    model: str
    spec: ModelSpec
    budget: Budget
    workload: Workload
    weights: Weights
    placement: Placement | None
    kv: str
    kv_dtype: KVDtype
    kv_budget_bytes: int | None
    chunk: int
    parts: tuple[tuple[str, str, str, int], ...]
    predicted: Mapping[str, int]
    moved_per_token: Mapping[tuple[str, str], int]
    seconds_per_token: float
    first_token_s: float
    loss: float | None
    words: str
    change: str
    notes: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    turned_down: tuple[Choice, ...] = ()
    runtime_bytes: int | None = None
    stack: str = ""
    weights_budget_bytes: int | None = None
    packed: str = ""
    activation_bits: int = 32

    def held(self, kind: str, tier: str = "dram") -> int:
        """Return the bytes of one kind on a tier."""
        return sum(n for _, on, of, n in self.parts if on == tier and of == kind)

    def form(self) -> KVForm:
        """Return how the KV cache is kept."""
        return KVForm(chain=self.kv, dtype=self.kv_dtype, words=self.words)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return (
            {"format": FORMAT, "version": VERSION}
            | values
            | {
                "spec": self.spec.to_json(),
                "budget": asdict(self.budget),
                "workload": asdict(self.workload),
                "placement": self.placement.to_json() if self.placement else None,
                "parts": [list(part) for part in self.parts],
                "predicted": dict(self.predicted),
                "moved_per_token": {f"{a}>{b}": n for (a, b), n in self.moved_per_token.items()},
                "notes": list(self.notes),
                "chosen": list(self.chosen),
                "turned_down": [asdict(choice) for choice in self.turned_down],
            }
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan from `to_json`.

        Raises:
            FormatError: if it is no plan, is of a newer version, or has unknown fields.
        """
        values = dict(data)
        found = (values.pop("format", None), values.pop("version", None))
        if found != (FORMAT, VERSION):
            raise FormatError(
                "this is no plan of a version we know",
                value=found,
                allowed=f"{FORMAT} {VERSION}",
                way_out="plan again with loci plan",
            )
        try:
            placed = values["placement"]
            return cls(
                **values
                | {
                    "spec": ModelSpec.from_json(values["spec"]),
                    "budget": Budget(**values["budget"]),
                    "workload": Workload(**values["workload"]),
                    "placement": None if placed is None else Placement.from_json(placed),
                    "parts": tuple((a, b, c, int(n)) for a, b, c, n in values["parts"]),
                    "moved_per_token": {
                        (pair.partition(">")[0], pair.partition(">")[2]): nbytes
                        for pair, nbytes in values["moved_per_token"].items()
                    },
                    "notes": tuple(values["notes"]),
                    "chosen": tuple(values["chosen"]),
                    "turned_down": tuple(Choice(**row) for row in values["turned_down"]),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"this is no plan: {error}") from None

    def __str__(self) -> str:
        """Return six plain lines."""
        return explain.plain(self)

    def explain(self) -> str:
        """Return what was chosen and turned down, with numbers."""
        return explain.explain(self)


def solve(
    spec: ModelSpec,
    blocks: Blocks,
    budget: Budget,
    workload: Workload,
    profile: Machine,
    cards: Cards,
    *,
    kv: str | None = None,
    weights: Weights | None = None,
    chunk: int | None = None,
    model: str | None = None,
    runtime_bytes: int | None = None,
    stack: StackTable | None = None,
    packed: str = "",
    notes: tuple[str, ...] = (),
    prepared: Prepared = lambda method: False,
) -> Plan:
    """Return the best plan.

    Args:
        blocks: (name, bytes, bytes padded to pages) of every block of the pack.
        budget: filled, so every tier is a number.
        cards: returns the card of (kind, method name), or None.
        kv, weights, chunk: what the person decided; None leaves it to the planner.
        runtime_bytes: Python and its libraries, measured; for `budget.process`.
        stack: weights in levels, for budgets that nothing without loss fits; None has no such.
        packed: see `Plan`.
        prepared: whether what a method of the KV cache needs is at hand for this model.

    Raises:
        BudgetError: if nothing fits; with the gap and three ways out that were tried and fit.
    """
    if chunk is not None and not 1 <= chunk <= workload.context:
        raise ParameterError(
            "a prompt step must lie within the context", value=chunk, allowed="1 to the context"
        )
    if workload.context > spec.max_context:
        raise ParameterError(
            f"{spec.name} was made for a context of {spec.max_context:,} tokens",
            value=workload.context,
            allowed=f"<= {spec.max_context}",
        )
    problem = Problem(
        model=model or spec.name,
        spec=spec,
        blocks=tuple(blocks),
        budget=budget,
        workload=workload,
        profile=profile,
        cards=cache(cards),  # asked for the same cards by every option
        forced_kv=kv,
        forced_weights=weights,
        forced_chunk=chunk,
        runtime_bytes=runtime_bytes,
        stack=stack,
    )
    candidates = all_candidates(problem)
    best = ways.best_of(candidates, problem)
    better: tuple[str, ...] = ()
    if kv is None and (best is None or best.loss != 0):
        more, waiting = measured_forms(spec, problem.cards, prepared)
        problem = replace(problem, more_forms=more)
        candidates = all_candidates(problem)
        best = ways.best_of(candidates, problem)
        better = _to_prepare(problem, best, waiting)
        notes += better
    if best is None:
        raise _does_not_fit(problem, candidates, better)
    return replace(_plan(problem, best, candidates, notes), packed=packed)


def all_candidates(problem: Problem) -> list[Candidate]:
    """Return every option worked out, the least lossy forms first."""
    return [
        evaluate(problem, place, form, chunk)
        for form in problem.forms()
        for place in problem.places()
        for chunk in problem.chunks()
    ]


# -- private ----------------------------------------------------------------------------------


def _plan(
    problem: Problem, best: Candidate, candidates: list[Candidate], notes: tuple[str, ...]
) -> Plan:
    moved = best.placement.moved_bytes if best.placement else 0
    tiers = dict.fromkeys(tier for _, tier, _, _ in best.parts)
    note = loss_of(best.form, problem.spec, problem.cards)[1]
    if problem.budget.process is not None and problem.runtime_bytes is None:
        notes += ("--process was compared with the budget alone: the runtime is not measured",)
    return Plan(
        model=problem.model,
        spec=problem.spec,
        budget=problem.budget,
        workload=problem.workload,
        weights=best.weights,
        placement=best.placement,
        kv=best.form.chain,
        kv_dtype=best.form.dtype,
        kv_budget_bytes=best.kv_budget_bytes,
        chunk=best.chunk,
        parts=best.parts,
        predicted={tier: best.held(tier) for tier in tiers},
        moved_per_token={("disk", "dram"): moved} if moved else {},
        seconds_per_token=best.seconds_per_token,
        first_token_s=best.first_token_s,
        loss=best.loss,
        words=best.form.words,
        change=ways.improvement(problem, best),
        notes=(*notes, *([note] if note else [])),
        chosen=_chosen(best),
        turned_down=tuple(_turned_down(problem, best, candidates)),
        runtime_bytes=problem.runtime_bytes,
        stack=problem.stack.method if best.weights == "stacked" and problem.stack else "",
        weights_budget_bytes=best.weights_budget_bytes,
    )


def _to_prepare(
    problem: Problem, best: Candidate | None, waiting: tuple[KVForm, ...]
) -> tuple[str, ...]:
    """Return a note of what would lose less, if it were prepared."""
    if not waiting:
        return ()
    wider = replace(problem, more_forms=(*problem.more_forms, *waiting))
    found = ways.best(wider)
    if found is None or found.form not in waiting or found.loss is None:
        return ()
    prepare = f"loci methods prepare {found.form.methods()[0].about.name}"
    if best is None:
        return (f"{prepare}; then {found.form.name} fits, at {found.loss:.3f} nats a token",)
    if best.loss is not None and best.loss - found.loss < WORTH_PREPARING:
        return ()
    instead = "" if best.loss is None else f" instead of {best.loss:.3f}"
    return (f"kv {found.form.name} would lose {found.loss:.3f} nats a token{instead}: {prepare}",)


def _chosen(best: Candidate) -> tuple[str, ...]:
    return (
        f"weights {best.weights}: {format_bytes(best.held(kind='weights'))}",
        f"kv {best.form.name}: {format_bytes(best.held(kind='kv'))}",
        f"prompt steps of {best.chunk} tokens: work buffers {format_bytes(best.held(kind='work'))}",
    )


def _turned_down(problem: Problem, best: Candidate, candidates: list[Candidate]) -> list[Choice]:
    """Return the best of every other pair of form and place, then longer prompt steps."""
    rows = []
    for form in problem.forms():
        for place in problem.places():
            same = [c for c in candidates if (c.form, c.weights) == (form, place)]
            other = ways.best_of(same, problem) or min(same, key=lambda c: c.least)
            if (form, place) != (best.form, best.weights):
                rows.append(_choice(f"kv {form.name}, weights {place}", other, best))
            else:
                rows += [
                    _choice(f"prompt steps of {c.chunk} tokens", c, best)
                    for c in same
                    if c.chunk != best.chunk
                ]
    return rows


def _choice(name: str, other: Candidate, best: Candidate) -> Choice:
    gap = max(other.gaps, key=lambda gap: gap.short, default=None)
    if gap is not None:
        why = (
            f"needs {format_bytes(gap.need)} of {gap.where}, the limit is "
            f"{format_bytes(gap.limit)}: {format_bytes(gap.short)} short"
        )
    elif other.form != best.form:
        why = "fits, but may change more of what the model says"
    else:
        why = "fits, but is slower"
    return Choice(
        name=name,
        bytes=other.least if gap else other.held(),
        gap=gap.short if gap else 0,
        where=gap.where if gap else "",
        seconds_per_token=None if gap else other.seconds_per_token,
        loss=other.loss,
        why=why,
    )


def _does_not_fit(
    problem: Problem, candidates: list[Candidate], better: tuple[str, ...]
) -> BudgetError:
    nearest = min(candidates, key=lambda c: (len(c.gaps), max(g.short for g in c.gaps)))
    gap = max(nearest.gaps, key=lambda g: g.short)
    where = {"dram": "memory", "disk": "disk"}.get(gap.where, gap.where)
    if gap.where == "dram" and problem.limit < (problem.budget.dram or 0):
        where = "memory (--process less the runtime)"
    found = ways.ways_out(problem)
    width = max((len(way.flags) for way in found), default=0)
    lines = [f"{way.flags:<{width}}   {way.result}" for way in found]
    lines = [*better, *lines]
    return BudgetError(
        f"{problem.model} with a context of {problem.workload.context:,} tokens needs at least "
        f"{format_bytes(gap.need)} of {where}; the budget gives {format_bytes(gap.limit)} "
        f"({format_bytes(gap.short)} short)",
        way_out=[
            f"{'It fits with' if index == 0 else '          or'}  {line}"
            for index, line in enumerate(lines)
        ],
    )
