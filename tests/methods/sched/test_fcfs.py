"""First come, first served: small queues worked by hand."""

from __future__ import annotations

import pytest

from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.sched.base import Request, SchedView
from loci.methods.sched.fcfs import Fcfs
from loci.testing import sched


@pytest.mark.parametrize("method", catalogue.all_methods("sched"), ids=lambda c: c.about.name)
def test_conformance(method: type) -> None:
    sched.check(method())


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_conformance_in_chunks(chunk: int) -> None:
    sched.check(Fcfs(chunk=chunk))


def _request(name: str, *, prompt: int = 4, new: int = 2, kv: int = 10, **more: int) -> Request:
    return Request(id=name, prompt_tokens=prompt, new_tokens=new, kv_bytes=kv, **more)


def test_admits_in_order_while_the_whole_request_fits() -> None:
    view = SchedView(
        requests=(_request("a"), _request("b", kv=15), _request("c", kv=1)),
        budget_bytes=20,
        max_rows=8,
    )
    plan, state = Fcfs().choose(view, ())
    assert state == ("a",)  # b does not fit beside a, and c does not overtake b
    assert plan.prefill == (("a", 4),) and plan.decode == ()


def test_decodes_what_is_read_and_reads_what_is_new() -> None:
    ready = _request("a", prefilled=4, generated=1)
    view = SchedView(requests=(ready, _request("b")), budget_bytes=100, max_rows=8)
    plan, _ = Fcfs().choose(view, ("a",))
    assert plan.decode == ("a",) and plan.prefill == (("b", 4),)


def test_a_chunk_counts_decoding_rows() -> None:
    ready = _request("a", prefilled=4)
    view = SchedView(
        requests=(ready, _request("b", prompt=9), _request("c", prompt=9)),
        budget_bytes=100,
        max_rows=8,
    )
    plan, _ = Fcfs(chunk=12).choose(view, ("a",))
    assert plan.prefill == (("b", 9), ("c", 2))


def test_chunks_bound_how_long_a_long_prompt_holds_up_the_others() -> None:
    arrivals = [(0, _request("talking", new=20)), (3, _request("long", prompt=100))]
    whole = sched.simulate(Fcfs(), arrivals, budget_bytes=100)
    parts = sched.simulate(Fcfs(chunk=10), arrivals, budget_bytes=100)

    def largest(run: sched.Run) -> int:
        return max(
            sum(tokens for _, tokens in plan.prefill) + len(plan.decode) for plan in run.plans
        )

    assert largest(whole) == 101 and largest(parts) == 10
    assert whole.first_token["long"] < parts.first_token["long"]
    assert whole.finished["talking"] == parts.finished["talking"]


def test_first_tokens_come_in_order_of_arrival() -> None:
    arrivals = [(0, _request(name, kv=10)) for name in "abcde"]
    run = sched.simulate(Fcfs(), arrivals, budget_bytes=20)
    order = sorted(run.first_token, key=lambda name: (run.first_token[name], name))
    assert order == list("abcde") and run.peak_bytes == 20


def test_an_impossible_request_is_refused() -> None:
    with pytest.raises(ParameterError, match="lie in its prompt"):
        _request("a", prefilled=5)
