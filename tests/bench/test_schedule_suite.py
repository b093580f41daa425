"""The simulated engine, by hand and against whole batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import schedule
from loci.bench.suites.schedule import Arrival, StepTime, serve, serve_whole_batches
from loci.errors import FormatError, ParameterError
from loci.hw.profiles import load_profile
from loci.methods.sched.base import Request, StepPlan
from loci.methods.sched.fcfs import Fcfs
from loci.methods.sched.layered_prefill import LayeredPrefill


class OneSecond(StepTime):
    """Every step takes a second."""

    def __init__(self) -> None:
        """Needs no machine."""

    def __call__(self, plan: StepPlan, live: object) -> float:
        return 1.0


def arrival(id: str, at_s: float, new: int, kv_bytes: int = 1) -> Arrival:
    request = Request(id=id, prompt_tokens=4, new_tokens=new, kv_bytes=kv_bytes)
    return Arrival(at_s=at_s, request=request)


def test_two_requests_by_hand() -> None:
    # a: prompt in second 1, tokens in 2, 3, 4. b comes at 1.5, waits for the step, its prompt runs
    # beside a's token in second 3, its only token in 4.
    served = serve(Fcfs(), [arrival("a", 0.0, 3), arrival("b", 1.5, 1)], OneSecond())
    assert served.first_s == [2.0, 2.5]
    assert served.between_s == [1.0, 1.0]
    assert (served.tokens, served.end_s) == (4, 4.0)


def test_a_whole_batch_lets_nobody_in() -> None:
    # a's batch: prompt 1, tokens 2 to 4. Only then b: prompt 5, token 6.
    served = serve_whole_batches([arrival("a", 0.0, 3), arrival("b", 1.5, 1)], OneSecond())
    assert served.first_s == [2.0, 4.5]
    assert (served.tokens, served.end_s) == (4, 6.0)


def test_what_can_never_fit_is_refused_by_both() -> None:
    huge = [arrival("a", 0.0, 1, schedule.KV_BYTES + 1), arrival("b", 0.0, 1)]
    for served in (serve(Fcfs(), huge, OneSecond()), serve_whole_batches(huge, OneSecond())):
        assert (served.refused, served.tokens) == (1, 1)


def test_step_time_of_one_token_is_reading_the_weights() -> None:
    machine = load_profile(schedule.MACHINE)
    request = arrival("a", 0.0, 8).request
    step = StepTime(schedule.MODEL, machine)(StepPlan(decode=("a",)), {"a": request})
    weights_s = schedule.MODEL.full_bytes() / machine.tiers["gpu"].read_bytes_per_s
    assert weights_s < step < 1.001 * weights_s


def test_a_mixture_reads_the_experts_its_tokens_want() -> None:
    machine = load_profile("h100")
    spec, experts = schedule.MODELS["qwen3-30b-a3b-sized"]
    assert experts is not None
    assert experts.wanted(1) == pytest.approx(8) and experts.wanted(512) > 127.99
    step_s = StepTime(spec, machine, experts)
    one = 2 * 3 * spec.hidden * spec.ffn
    assert step_s.expert_bytes(0, 0, 1) == pytest.approx(spec.layers * 8 * one)
    # Sixteen chunks of 512 read nearly all experts each; sixteen groups of three layers once.
    chunks = 16 * step_s.expert_bytes(spec.layers, 512, 4)
    groups = 16 * step_s.expert_bytes(3, 8192, 4)
    assert groups < 0.4 * chunks
    whole = arrival("a", 0.0, 8).request
    parts = [StepPlan(prefill=(("a", 4),), prefill_layers=(i, i + 16)) for i in (0, 16, 32)]
    full = step_s(StepPlan(prefill=(("a", 4),)), {"a": whole})
    assert all(step_s(part, {"a": whole}) < full for part in parts)


def test_layers_wait_for_nobody_and_read_fewer_experts() -> None:
    spec, experts = schedule.MODELS["qwen3-30b-a3b-sized"]
    step_s = StepTime(spec, load_profile("h100"), experts)
    arrivals = schedule.random_arrivals(30, 2.0, 3, schedule.LONG_PROMPTS, spec)
    whole, chunked, layered = (
        serve(method, arrivals, step_s, layers=spec.layers)
        for method in (Fcfs(), Fcfs(chunk=512), LayeredPrefill())
    )
    assert whole.tokens == chunked.tokens == layered.tokens
    assert layered.end_s < chunked.end_s
    assert max(layered.between_s) < max(whole.between_s) / 2


def test_chunks_bound_the_wait_between_tokens() -> None:
    step_s = StepTime(schedule.MODEL, load_profile(schedule.MACHINE))
    arrivals = schedule.random_arrivals(40, 2.0, seed=3)
    whole, cut = (serve(m, arrivals, step_s) for m in (Fcfs(), Fcfs(chunk=256)))
    assert whole.tokens == cut.tokens == sum(a.request.new_tokens for a in arrivals)
    assert max(cut.between_s) < max(whole.between_s) / 2


def test_a_trace_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.6805900,396,109\n"
    )
    first, second = schedule.trace_arrivals(file, 9)
    assert (first.at_s, second.at_s) == (0.0, 2.0)
    assert (second.request.prompt_tokens, second.request.new_tokens) == (396, 109)
    file.write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="TIMESTAMP"):
        schedule.trace_arrivals(file, 9)


def test_a_scheduler_that_moves_requests_is_simulated_elsewhere() -> None:
    with pytest.raises(ParameterError, match="bench run switching"):
        schedule.run(Context(folder=Path("none"), quick=True, methods=("fastswitch",)))
