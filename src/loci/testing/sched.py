"""What every scheduler must pass, and a simulation that runs one to the end.

def test_conformance():
    for method in catalogue.all_methods("sched"):
        sched.check(method())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loci.methods.sched.base import Request, Sched, SchedView, StepPlan, Where


@dataclass(kw_only=True)
class Run:
    """What happened: every step's plan, and when each request got its tokens."""

    plans: list[StepPlan] = field(default_factory=list)
    first_token: dict[str, int] = field(default_factory=dict)  # id -> step
    finished: dict[str, int] = field(default_factory=dict)  # id -> step
    refused: list[str] = field(default_factory=list)
    peak_bytes: int = 0


def simulate(
    method: Sched,
    arrivals: Sequence[tuple[int, Request]],
    *,
    budget_bytes: int,
    max_rows: int = 8,
    max_steps: int = 10_000,
    layers: int = 6,
) -> Run:
    """Run requests that arrive before given steps until all are finished or refused.

    Every plan is checked against the rules of `Sched`.

    Raises:
        AssertionError: if a plan breaks a rule, or the steps run out.
    """
    run, state = Run(), method.start()
    waiting = sorted(arrivals, key=lambda pair: pair[0])
    live: dict[str, Request] = {}
    resident: set[str] = set()  # ids whose KV is on the tier
    out: set[str] = set()  # ids whose KV was put out
    through: dict[str, tuple[int, int]] = {}  # id -> (tokens, layers they went through)
    for step in range(max_steps):
        while waiting and waiting[0][0] <= step:
            request = waiting.pop(0)[1]
            live[request.id] = request
        if not live and not waiting:
            return run
        view = SchedView(
            requests=tuple(_placed(r, resident, out) for r in live.values()),
            budget_bytes=budget_bytes,
            max_rows=max_rows,
            layers=layers,
        )
        plan, after = method.choose(view, state)
        assert method.choose(view, state) == (plan, after), "the same view gave another plan"
        state = after
        check_plan(plan, view, resident)
        resident |= set(plan.swap_in)
        out -= set(plan.swap_in)
        resident |= {id for id, _ in plan.prefill} | set(plan.decode)
        held = sum(live[id].kv_bytes for id in resident)
        assert held <= budget_bytes, f"step {step} holds {held} of {budget_bytes} bytes"
        run.peak_bytes = max(run.peak_bytes, held)
        resident -= set(plan.swap_out)
        out |= set(plan.swap_out)
        for id in plan.refuse:
            run.refused.append(id)
            del live[id]
        first, last = plan.prefill_layers or (0, layers)
        for id, tokens in plan.prefill:
            assert through.pop(id, (tokens, 0)) == (tokens, first), f"{id}: layers out of order"
            if last == layers:
                live[id] = replace(live[id], prefilled=live[id].prefilled + tokens)
            else:
                through[id] = tokens, last
        for id in plan.decode:
            live[id] = replace(live[id], generated=live[id].generated + 1)
            run.first_token.setdefault(id, step)
            if live[id].generated == live[id].new_tokens:
                run.finished[id] = step
                del live[id]
                resident.discard(id)
        run.plans.append(plan)
    raise AssertionError(f"not finished after {max_steps} steps: {', '.join(live)}")


def _placed(request: Request, resident: set[str], out: set[str]) -> Request:
    where: Where = "out" if request.id in out else "here" if request.id in resident else "nowhere"
    return replace(request, where=where, stored=request.prefilled + request.generated)


def check_plan(plan: StepPlan, view: SchedView, resident: set[str]) -> None:
    """Raise AssertionError unless the plan keeps to the rules of `Sched`."""
    known = {request.id: request for request in view.requests}
    prefill = [id for id, _ in plan.prefill]
    named = [*plan.decode, *prefill, *plan.refuse]
    assert len(set(named)) == len(named), "a request is named twice"
    assert set(named) | set(plan.swap_out) | set(plan.swap_in) <= set(known), "nobody asked for it"
    assert len(plan.decode) <= view.max_rows, "more rows than the engine has"
    for id in plan.decode:
        assert known[id].is_decoding, f"{id} decodes before its prompt is done"
    for id, tokens in plan.prefill:
        assert 0 < tokens <= known[id].prompt_tokens - known[id].prefilled, f"{id}: {tokens} tokens"
    first, last = plan.prefill_layers or (0, view.layers)
    assert 0 <= first < last <= view.layers, f"no such layers: {first} to {last}"
    for id in plan.refuse:
        assert known[id].kv_bytes > view.budget_bytes, f"{id} would fit alone"
    if any(request.kv_bytes <= view.budget_bytes for request in view.requests):
        moves = plan.swap_in or plan.swap_out
        assert not plan.is_idle or moves, "nothing runs although a request fits"
    assert not set(plan.swap_in) & resident, "swapped in twice"
    where = {request.id: request.where for request in view.requests}
    assert all(where[id] == "out" for id in plan.swap_in), "brought back without being out"
    running = {*plan.decode, *prefill}
    assert all(where[id] == "here" for id in plan.swap_out), "put out without being here"
    assert not running & set(plan.swap_out), "put out while it runs"
    assert all(where[id] in ("here", "nowhere") for id in running), "runs while it is out"


def check(method: Sched) -> None:
    """Raise AssertionError unless a scheduler keeps its rules on small worlds of all shapes."""
    one = Request(id="a", prompt_tokens=5, new_tokens=3, kv_bytes=80)
    alone = simulate(method, [(0, one)], budget_bytes=80)
    assert alone.finished.keys() == {"a"} and alone.peak_bytes == 80
    assert not simulate(method, [], budget_bytes=0).plans
    too_large = simulate(method, [(0, one), (0, replace(one, id="b", kv_bytes=9))], budget_bytes=79)
    assert too_large.refused == ["a"] and too_large.finished.keys() == {"b"}
    empty = method.choose(SchedView(requests=(), budget_bytes=10), method.start())[0]
    assert empty == StepPlan()
    for budget in (80, 200, 1000):
        for rows in (1, 3):
            arrivals = [
                (
                    index // 2,
                    Request(
                        id=f"r{index}",
                        prompt_tokens=1 + 7 * index % 11,
                        new_tokens=1 + index % 4,
                        kv_bytes=20 + 13 * index % 60,
                    ),
                )
                for index in range(9)
            ]
            run = simulate(method, arrivals, budget_bytes=budget, max_rows=rows)
            assert len(run.finished) == 9 and not run.refused
