"""FastSwitch against paper and pencil."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from loci.errors import ParameterError
from loci.methods.sched.base import Request, SchedView
from loci.methods.sched.fastswitch import FastSwitch, Turns
from loci.methods.sched.fcfs import Fcfs
from loci.testing.sched import simulate


def request(id: str, prompt: int = 4, new: int = 8, kv: int = 10, **more: object) -> Request:
    return Request(id=id, prompt_tokens=prompt, new_tokens=new, kv_bytes=kv, **more)  # type: ignore[arg-type]


def test_two_users_take_turns_by_hand() -> None:
    # One fits. Every 3 steps the one who was served less runs.
    method = FastSwitch(every=3)
    a, b = request("a", new=20, user="A"), request("b", new=20, user="B")
    run = simulate(method, [(0, a), (0, b)], budget_bytes=10)
    first = [plan.decode or plan.prefill or plan.swap_out or plan.swap_in for plan in run.plans]
    assert first[:3] == [(("a", 4),), ("a",), ("a",)]
    assert run.plans[3].swap_out == ("a",) and not run.plans[3].decode
    assert run.plans[4].prefill == (("b", 4),)
    # B was served 4 + 2 in two steps, A 8: B goes on for another turn, then A comes back.
    assert run.plans[9].swap_out == ("b",) and run.plans[10].swap_in == ("a",)
    assert run.finished.keys() == {"a", "b"}


def test_a_user_with_many_requests_gets_no_more_than_one_with_one() -> None:
    many = [(0, request(f"a{i}", new=40, user="A")) for i in range(8)]
    one = (0, request("b", new=40, user="B"))
    fair = simulate(FastSwitch(every=4), [*many, one], budget_bytes=20)
    early = simulate(Fcfs(), [*many, one], budget_bytes=20)
    assert fair.first_token["b"] < 20 < 100 < early.first_token["b"]
    assert fair.finished["b"] < early.finished["b"] / 2
    assert set(fair.finished) == set(early.finished)


def test_while_all_fits_nobody_is_put_out_and_it_is_first_come_first_served() -> None:
    arrivals = [(i, request(f"r{i}", 5 + i, 3, user=f"u{i % 2}")) for i in range(6)]
    turns = simulate(FastSwitch(every=2, chunk=64), arrivals, budget_bytes=90)
    plain = simulate(Fcfs(chunk=64), arrivals, budget_bytes=90)
    assert not any(plan.swap_out or plan.swap_in for plan in turns.plans)
    assert turns.finished == plain.finished


def test_between_two_changes_nobody_is_put_out() -> None:
    arrivals = [(i, request(f"r{i}", new=30, user=f"u{i}")) for i in range(9)]
    run = simulate(FastSwitch(every=10), arrivals, budget_bytes=40)
    swaps = [step for step, plan in enumerate(run.plans) if plan.swap_out]
    assert swaps and all(step % 10 == 0 for step in swaps)


def test_who_came_back_runs_before_it_goes_again() -> None:
    method = FastSwitch(every=1)
    back = request("a", user="A", where="here", prefilled=4, generated=1, stored=4)
    other = request("b", user="B", where="out", prefilled=4, generated=1, stored=4)
    state = Turns(step=5, running=("a",), served=(("A", 99), ("B", 0)), users=("A", "B"))
    view = SchedView(requests=(back, other), budget_bytes=10, max_rows=4)
    plan, _ = method.choose(view, state)
    assert plan.swap_out == ("a",)  # B was served less
    plan, after = method.choose(view, replace(state, fresh=("a",)))
    assert plan.decode == ("a",) and not plan.swap_out and not after.fresh


def test_what_is_on_its_way_is_counted_and_not_run() -> None:
    method = FastSwitch()
    coming = request("a", where="coming", prefilled=4, generated=2, stored=5)
    waits = request("b")
    view = SchedView(requests=(coming, waits), budget_bytes=15, max_rows=4)
    plan, after = method.choose(view, method.start())
    assert plan.is_idle and not (plan.swap_in or plan.swap_out) and after.running == ("a",)


def test_what_grows_is_counted_in_blocks_until_the_next_change() -> None:
    # 64 tokens of 1 byte in blocks of 16; both have 20 tokens now and will have 45.
    method = FastSwitch(every=25)
    requests = tuple(
        request(id, prompt=20, new=70, kv=90, where="here", prefilled=20, generated=1, stored=20)
        for id in "ab"
    )
    view = SchedView(requests=requests, budget_bytes=95, max_rows=4, token_bytes=1, block_tokens=16)
    plan, _ = method.choose(view, method.start())
    assert plan.decode == ("a",) and plan.swap_out == ("b",)  # 48 + 48 > 95
    plan, _ = method.choose(replace(view, budget_bytes=96), method.start())
    assert plan.decode == ("a", "b")
    assert view.bytes_of(requests[0], 999) == 90 and view.bytes_of(requests[0], 17) == 32


def test_a_newcomer_has_no_claim_on_the_past_and_leaving_does_not_help() -> None:
    method = FastSwitch(every=1)
    busy = [request("a", user="A", where="here", prefilled=4, generated=1, stored=4)]
    state = Turns(step=9, running=("a",), served=(("A", 500),), users=("A",))
    view = SchedView(requests=(*busy, request("b", user="B")), budget_bytes=99, max_rows=2)
    _, after = method.choose(view, state)
    assert dict(after.served)["B"] == 500 + 4
    gone = SchedView(requests=(request("b", user="B"),), budget_bytes=99, max_rows=2)
    ahead = replace(after, served=(("A", 900), ("B", 504)))
    _, later = method.choose(gone, ahead)
    assert dict(later.served)["A"] == 900  # comes back no better than it left
    _, later = method.choose(gone, replace(ahead, served=(("A", 100), ("B", 504))))
    assert "A" not in dict(later.served)


@pytest.mark.parametrize("policy", ["vtc", "asked", "random"])
def test_every_policy_ends_all_requests(policy: str) -> None:
    draw = random.Random(policy)
    arrivals = [
        (
            draw.randrange(60),
            request(
                f"r{i}",
                draw.randrange(1, 40),
                draw.randrange(1, 30),
                draw.randrange(5, 50),
                user=f"u{i % 4}",
                priority=i % 3,
            ),
        )
        for i in range(40)
    ]
    run = simulate(FastSwitch(every=5, chunk=16, policy=policy), arrivals, budget_bytes=90)
    assert len(run.finished) == 40 and any(plan.swap_in for plan in run.plans)


def test_what_the_request_says_goes_first() -> None:
    method = FastSwitch(policy="asked")
    view = SchedView(requests=(request("a"), request("b", priority=5)), budget_bytes=10, max_rows=4)
    assert method.choose(view, method.start())[0].prefill == (("b", 4),)


def test_bad_parameters_are_refused() -> None:
    for wrong in ({"every": 0}, {"chunk": 0}, {"policy": "lottery"}):
        with pytest.raises(ParameterError, match="fastswitch"):
            FastSwitch(**wrong)  # type: ignore[arg-type]
