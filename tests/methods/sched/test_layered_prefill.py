"""Layered prefill against paper and pencil."""

from __future__ import annotations

from loci.core.spec import Workload
from loci.methods.sched.base import Request, SchedView
from loci.methods.sched.fcfs import Fcfs
from loci.methods.sched.layered_prefill import LayeredPrefill
from loci.testing.models import tiny_spec
from loci.testing.sched import simulate


def request(id: str, prompt: int, new: int = 4, **more: int) -> Request:
    return Request(id=id, prompt_tokens=prompt, new_tokens=new, kv_bytes=1, **more)


def test_a_long_prompt_by_hand() -> None:
    # a decodes; b's 1,300 tokens need ceil(1300 / 512) = 3 groups of 7 layers: 3, 2 and 2.
    a, b = request("a", 4, 9, prefilled=4, generated=1), request("b", 1300)
    method = LayeredPrefill()
    view = SchedView(requests=(a, b), budget_bytes=9, max_rows=4, layers=7)
    state, seen = method.start(), []
    for _ in range(3):
        plan, state = method.choose(view, state)
        assert plan.decode == ("a",) and plan.prefill == (("b", 1300),)
        seen.append(plan.prefill_layers)
    assert seen == [(0, 3), (3, 5), (5, 7)]
    done = SchedView(requests=(a, request("b", 1300, prefilled=1300)), budget_bytes=9, max_rows=4)
    plan, _ = method.choose(done, state)
    assert plan.decode == ("a", "b") and not plan.prefill


def test_with_nobody_to_hold_up_a_prompt_runs_at_once() -> None:
    method = LayeredPrefill(work=8)
    view = SchedView(requests=(request("b", 100),), budget_bytes=9, layers=5)
    plan, state = method.choose(view, method.start())
    assert plan.prefill_layers == (0, 5) and state.prompts == ()


def test_the_rest_runs_at_once_when_the_last_answer_ended() -> None:
    method = LayeredPrefill(work=10)
    a, b = request("a", 4, prefilled=4, generated=1), request("b", 50)
    both = SchedView(requests=(a, b), budget_bytes=9, max_rows=2, layers=5)
    plan, state = method.choose(both, method.start())
    assert plan.prefill_layers == (0, 1)
    plan, state = method.choose(SchedView(requests=(b,), budget_bytes=9, layers=5), state)
    assert plan.prefill_layers == (1, 5) and state.prompts == ()


def test_a_prompt_that_is_gone_makes_room_for_the_next() -> None:
    method = LayeredPrefill(work=10)
    a = request("a", 4, prefilled=4, generated=1)
    one = SchedView(requests=(a, request("b", 50)), budget_bytes=9, max_rows=3, layers=5)
    _, state = method.choose(one, method.start())
    two = SchedView(requests=(a, request("c", 20)), budget_bytes=9, max_rows=3, layers=5)
    plan, _ = method.choose(two, state)
    assert plan.prefill == (("c", 20),) and plan.prefill_layers == (0, 3)


def test_a_prompt_beyond_what_is_read_together_goes_on_after_that() -> None:
    method = LayeredPrefill(work=4, together=8)
    run = simulate(method, [(0, request("a", 20, 2))], budget_bytes=9)
    assert [plan.prefill for plan in run.plans if plan.prefill] == [
        (("a", 8),),
        (("a", 8),),
        (("a", 4),),
    ]


def test_short_prompts_run_as_first_come_first_served_does() -> None:
    arrivals = [(i, request(f"r{i}", 5 + i, 3)) for i in range(6)]
    layered, whole = (
        simulate(m, arrivals, budget_bytes=9) for m in (LayeredPrefill(work=512), Fcfs())
    )
    assert layered.finished == whole.finished


def test_nobody_waits_for_a_prompt_and_each_layer_sees_it_once() -> None:
    # The paper's point: chunks bring a layer its weights once a chunk, layers once a prompt.
    arrivals = [(0, request("a", 4, 40)), (2, request("b", 64, 4))]
    layered = simulate(LayeredPrefill(work=8), arrivals, budget_bytes=9, layers=8)
    chunked = simulate(Fcfs(chunk=9), arrivals, budget_bytes=9, layers=8)

    def layer_reads(plans: list) -> int:  # type: ignore[type-arg]
        spans = [p.prefill_layers or (0, 8) for p in plans if ("b" in dict(p.prefill))]
        return sum(last - first for first, last in spans)

    for run in (layered, chunked):
        decoded = [plan for plan in run.plans if "a" in plan.decode]
        assert len(decoded) == 40  # a token in every step, whatever b reads
    assert layer_reads(layered.plans) == 8
    assert layer_reads(chunked.plans) == 64
    assert layered.first_token["b"] == chunked.first_token["b"]


def test_what_it_holds_are_the_states_of_one_prompt() -> None:
    spec, method = tiny_spec(), LayeredPrefill(work=64)
    long = method.predict(spec, Workload(context=512, prompt_tokens=400), 0)
    assert long.held == {"dram": 4 * 400 * spec.hidden}
    assert method.predict(spec, Workload(context=512, prompt_tokens=64), 0).held == {"dram": 0}
