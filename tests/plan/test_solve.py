"""The planner: what it chooses, what it refuses, and what always holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import paper_model as paper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loci.core.budget import Budget
from loci.core.spec import ModelSpec, Workload
from loci.core.work import work_bytes
from loci.errors import BudgetError, FormatError, MethodError, ParameterError
from loci.methods.kv.store_plan import decoded_tokens, predict_store
from loci.plan.kvform import KVForm, ladder, read_tokens
from loci.plan.options import Problem
from loci.plan.solve import Plan, all_candidates, solve
from loci.plan.ways import OFFERED, best_of, ways_out

MIB = paper.MIB
LADDER = ladder(64)
Planner = Callable[..., Plan]


def test_plenty_of_memory_loses_nothing(plan_for: Planner) -> None:
    plan = plan_for(400)
    assert (plan.weights, plan.kv, plan.kv_dtype, plan.loss) == ("resident", "", "float32", 0.0)
    assert plan.chunk == 512 and plan.placement is None and not plan.moved_per_token


def test_every_byte_is_accounted_for(plan_for: Planner) -> None:
    plan = plan_for(400)
    kv = predict_store(plan.spec, (), max_tokens=4096, chunk=512)
    assert plan.held("kv") == kv and kv >= 4096 * 46_080
    assert plan.held("work") == work_bytes(plan.spec, 512)
    assert plan.held("tokenizer") == plan.spec.tokenizer_bytes
    assert plan.held("weights") == sum(n for _, n, _ in paper.blocks_of(plan.spec))
    assert plan.predicted == {"dram": sum(n for _, _, _, n in plan.parts)}


def test_a_long_context_in_little_memory_is_kept_in_fewer_bits(plan_for: Planner) -> None:
    plan = plan_for(160)
    assert (plan.weights, plan.kv) == ("resident", "bfp(bits=8)")
    assert plan.loss is None
    methods = LADDER[2].methods()
    assert plan.held("work") == work_bytes(
        plan.spec, plan.chunk, decoded_tokens=decoded_tokens(methods, 4096)
    )
    assert plan.held("kv") == predict_store(plan.spec, methods, max_tokens=4096, chunk=plan.chunk)
    assert plan.chunk < 512  # the prompt is read in shorter steps so that the buffers fit


def test_half_the_bits_come_before_codes(plan_for: Planner) -> None:
    assert plan_for(210).kv_dtype == "float16"


def test_streams_only_when_the_disk_was_asked_for(plan_for: Planner) -> None:
    plan = plan_for(60, disk=1024, context=512)
    assert plan.weights == "streamed" and plan.loss == 0
    assert plan.placement is not None
    assert plan.held("weights") == plan.placement.held_bytes
    assert plan.moved_per_token == {("disk", "dram"): plan.placement.moved_bytes}
    assert plan.placement.window_blocks >= 2 and "norm" in plan.placement.pinned
    assert plan.predicted["dram"] <= 60 * MIB
    assert plan.predicted["disk"] == sum(stored for *_, stored in paper.blocks_of(plan.spec))
    with pytest.raises(BudgetError, match="short"):
        plan_for(60, context=512)


def test_what_costs_only_time_comes_before_what_costs_quality(plan_for: Planner) -> None:
    assert plan_for(210).loss is None
    assert plan_for(210, disk=1024).loss == 0
    assert plan_for(210, disk=1024).weights == "streamed"


def test_caps_hold_inside_the_tier(plan_for: Planner) -> None:
    plan = plan_for(400, caps={"kv": 55 * MIB})
    assert plan.kv == "bfp(bits=8)" and plan.held("kv") <= 55 * MIB
    plan = plan_for(400, disk=200, caps={"weights": 30 * MIB})
    assert plan.weights == "streamed" and plan.held("weights") <= 30 * MIB


def test_the_process_limit_counts_the_runtime(plan_for: Planner) -> None:
    alone = plan_for(400, caps={"process": 400 * MIB})
    assert alone.loss == 0 and any("--process" in note for note in alone.notes)
    counted = plan_for(400, caps={"process": 400 * MIB}, runtime_bytes=240 * MIB)
    assert counted.kv == "bfp(bits=8)" and counted.predicted["dram"] <= 160 * MIB
    assert "runtime 240.0 MiB, not in the budget" in counted.explain()


def test_a_chain_that_chooses_tokens_gets_all_that_is_left(plan_for: Planner) -> None:
    plan = plan_for(160, kv="snapkv | bfp(bits=4)")
    assert plan.kv_budget_bytes is not None
    chain = plan_for(400, kv="snapkv").kv
    assert chain == "snapkv"
    assert plan.held("kv") == predict_store(
        plan.spec,
        (*LADDER[0].methods(), *_chain("snapkv | bfp(bits=4)")),
        max_tokens=4096,
        budget_bytes=plan.kv_budget_bytes,
        chunk=plan.chunk,
    )
    small = plan_for(130, kv="snapkv")
    assert small.held("kv") < plan_for(150, kv="snapkv").held("kv")
    assert plan_for(400, kv="snapkv", caps={"kv": 5 * MIB}).held("kv") <= 5 * MIB


def _chain(text: str) -> tuple:
    from loci.methods.catalogue import parse_chain

    return parse_chain(text, "kv")


def test_a_forced_form_is_kept_or_refused(plan_for: Planner) -> None:
    assert plan_for(400, kv="float16").kv_dtype == "float16"
    assert plan_for(400, kv="").kv_dtype == "float32"
    assert plan_for(400, kv="bfp").kv == "bfp(bits=8)"
    assert plan_for(400, chunk=64).chunk == 64
    assert plan_for(400, disk=200, weights="streamed").weights == "streamed"
    with pytest.raises(BudgetError):
        plan_for(160, kv="")
    with pytest.raises(MethodError, match="this chain cannot work"):
        plan_for(160, kv="bfp | snapkv")
    with pytest.raises(ParameterError, match="did you mean 'snapkv'"):
        plan_for(160, kv="snapkw")


def test_measured_loss_is_used_for_this_model_alone(plan_for: Planner) -> None:
    rows = [("bfp", {"bits": 8}, 0.0012, "smollm2-on-paper")]
    assert plan_for(160, cards=paper.cards_with(rows)).loss == 0.0012
    foreign = [("bfp", {"bits": 8}, 0.0012, "another")]
    plan = plan_for(160, cards=paper.cards_with(foreign))
    assert plan.loss is None
    assert "quality unknown for this model; on smollm2: 0.0012" in str(plan)


def test_the_least_measured_loss_that_fits_wins(plan_for: Planner) -> None:
    mine = "smollm2-on-paper"
    rows = [
        ("bfp", {"bits": bits}, kl, mine) for bits, kl in ((8, 0.02), (6, 0.01), (5, 0.3), (4, 0.5))
    ]
    turned = [{}, {"bits_v": 3}, {"bits_k": 3, "bits_v": 3}]
    rows += [("turboquant", parameters, 0.4, mine) for parameters in turned]
    rows.append(("exact", {"dtype": "float16"}, 0.001, mine))
    plan = plan_for(160, cards=paper.cards_with(rows))
    assert (plan.kv, plan.loss) == ("bfp(bits=6)", 0.01)


def test_too_small_names_the_gap_and_ways_out_that_fit(plan_for: Planner) -> None:
    with pytest.raises(BudgetError) as caught:
        plan_for(20)
    message = str(caught.value)
    assert re.search(
        r"needs at least [\d.]+ MiB of memory; .* 20\.0 MiB \([\d.]+ MiB short\)", message
    )
    assert len(caught.value.way_out) == OFFERED


def _problem(dram: int, disk: int = 0, context: int = 4096, **caps: int) -> Problem:
    return Problem(
        model="smollm2",
        spec=paper.SMOLLM2,
        blocks=tuple(paper.blocks_of(paper.SMOLLM2)),
        budget=Budget(dram=dram, disk=disk, **caps),
        workload=Workload(context=context),
        profile=paper.MACHINE,
        cards=paper.no_cards,
    )


@settings(max_examples=15, deadline=None)
@given(
    dram=st.integers(0, 120 * MIB),
    disk=st.sampled_from([0, 50 * MIB, 200 * MIB]),
    context=st.sampled_from([300, 2048, 8000]),
    cap=st.sampled_from([{}, {"kv": MIB}, {"weights": 2 * MIB}]),
)
def test_every_way_out_really_fits(dram: int, disk: int, context: int, cap: dict[str, int]) -> None:
    problem = _problem(dram, disk, context, **cap)
    if best_of(all_candidates(problem), problem) is not None:
        return
    found = ways_out(problem)
    assert len(found) == OFFERED
    for way in found:
        changed = way.problem
        plan = solve(
            changed.spec,
            changed.blocks,
            changed.budget,
            changed.workload,
            changed.profile,
            changed.cards,
        )
        assert plan.predicted["dram"] == way.best.held() <= changed.limit
        for flag, value in re.findall(r"--(\w+) (\d+)(?:MiB)?", way.flags):
            stated = (
                changed.workload.context if flag == "context" else getattr(changed.budget, flag)
            )
            assert stated == int(value) * (1 if flag == "context" else MIB)


def test_the_offered_memory_is_the_least(plan_for: Planner) -> None:
    way = next(way for way in ways_out(_problem(20 * MIB)) if way.flags.startswith("--dram"))
    plan_for(way.problem.budget.dram / MIB)
    with pytest.raises(BudgetError):
        plan_for(way.problem.budget.dram / MIB - 1)


SPECS = st.builds(
    lambda layers, groups, kv_heads, head_dim, ffn, vocab, hidden: ModelSpec(
        name="random",
        layers=layers,
        hidden=hidden,
        heads=groups * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        max_context=4096,
        weight_bits=5.0,
        embed_bits=8.5,
        tokenizer_bytes=10_000,
    ),
    layers=st.integers(1, 6),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([16, 32, 64]),
    ffn=st.sampled_from([64, 200]),
    vocab=st.integers(100, 3000),
    hidden=st.sampled_from([64, 96]),
)


def _solve(spec: ModelSpec, dram: int, disk: int, context: int) -> Plan | None:
    try:
        return solve(
            spec,
            paper.blocks_of(spec),
            Budget(dram=dram, disk=disk),
            Workload(context=context, new_tokens=32),
            paper.MACHINE,
            paper.no_cards,
        )
    except BudgetError:
        return None


@settings(max_examples=40, deadline=None)
@given(
    spec=SPECS,
    dram=st.integers(0, 8 * MIB),
    more=st.integers(0, 4 * MIB),
    disk=st.sampled_from([0, 64 * MIB]),
    context=st.sampled_from([64, 200, 1024]),
)
def test_stays_within_any_budget_and_more_is_never_worse(
    spec: ModelSpec, dram: int, more: int, disk: int, context: int
) -> None:
    less, plenty = _solve(spec, dram, disk, context), _solve(spec, dram + more, disk, context)
    for plan, limit in ((less, dram), (plenty, dram + more)):
        if plan is not None:
            assert sum(n for _, tier, _, n in plan.parts if tier == "dram") <= limit
            assert plan.predicted["dram"] <= limit and plan.predicted.get("disk", 0) <= disk
            assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    if less is None:
        return
    assert plenty is not None
    names = [form.name for form in ladder(spec.head_dim)]
    rank = [names.index(plan.kv or plan.kv_dtype) for plan in (less, plenty)]
    assert rank[1] <= rank[0]
    if rank[0] == rank[1]:
        times = [p.first_token_s + 32 * p.seconds_per_token for p in (less, plenty)]
        assert times[1] <= times[0] * 1.01  # the streaming cycle is timed over a few tokens


def test_explain_mentions_everything_turned_down_and_its_gap(plan_for: Planner) -> None:
    for plan in (plan_for(160), plan_for(60, disk=1024, context=512), plan_for(400)):
        text = plan.explain()
        forms = {
            f"kv {form.name}, weights {place}"
            for form in LADDER
            for place in ("resident", "streamed")
        }
        forms -= {f"kv {plan.kv or plan.kv_dtype}, weights {plan.weights}"}
        assert forms <= {choice.name for choice in plan.turned_down}
        for choice in plan.turned_down:
            assert f"  {choice.name}: {choice.why}" in text
            assert (choice.gap > 0) == ("short" in choice.why)


def test_six_plain_lines_without_names_of_methods(plan_for: Planner) -> None:
    for plan in (
        plan_for(160),
        plan_for(60, disk=1024, context=512),
        plan_for(400),
        plan_for(150, kv="snapkv"),
    ):
        lines = str(plan).splitlines()
        assert len(lines) == 6
        assert not re.search("bfp|snapkv|tpi_llm|roofline", str(plan))
        assert lines[0].startswith("smollm2 fits:")
        assert lines[3].startswith("Speed:") and lines[4].startswith("Quality:")
        assert lines[5].startswith("To change:")


def test_what_to_change_is_true(plan_for: Planner) -> None:
    [dram] = re.findall(r"--dram (\d+)MiB would hold it with nothing lost", str(plan_for(160)))
    assert plan_for(int(dram)).loss == 0
    assert plan_for(int(dram) - 1).loss != 0
    [context] = re.findall(r"room for a context of ([\d,]+)", str(plan_for(300)))
    assert plan_for(300, context=int(context.replace(",", ""))).loss == 0


def test_json_refuses_what_it_does_not_know(plan_for: Planner) -> None:
    data = plan_for(160).to_json()
    assert data["format"] == "loci-plan" and data["version"] == 1
    assert Plan.from_json(json.loads(json.dumps(data))) == plan_for(160)
    for broken in (data | {"version": 2}, data | {"colour": "red"}, {"format": "loci-plan"}, {}):
        with pytest.raises(FormatError):
            Plan.from_json(broken)
    without = dict(data)
    del without["parts"]
    with pytest.raises(FormatError, match="no plan"):
        Plan.from_json(without)


def test_what_the_model_cannot_do_is_refused(plan_for: Planner) -> None:
    with pytest.raises(ParameterError, match="made for a context of 8,192"):
        plan_for(400, context=9000)
    with pytest.raises(ParameterError, match="prompt step"):
        plan_for(400, chunk=0)


def test_an_untied_embedding_is_left_on_disk(plan_for: Planner) -> None:
    spec = replace(paper.SMOLLM2, tied=False)
    blocks = [*paper.blocks_of(spec), ("head.0", 3_000_000, 3_002_368)]
    plan = solve(
        spec,
        blocks,
        Budget(dram=60 * MIB, disk=200 * MIB),
        Workload(context=512),
        paper.MACHINE,
        paper.no_cards,
    )
    assert plan.placement is not None
    assert all(name.startswith("embed.") for name in plan.placement.left) and plan.placement.left
    assert "head.0" in plan.placement.pinned + plan.placement.streamed


def test_importing_the_planner_is_cheap() -> None:
    code = (
        "import sys, loci.plan, loci.plan.solve; "
        "assert not {'torch', 'numpy'} & set(sys.modules), 'torch came with it'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_read_takes_no_time(plan_for: Planner) -> None:
    some, whole = KVForm(chain="xkv(segment=256, chunks=16)"), KVForm(chain="xkv(segment=256)")
    # Sixteen chunks of eight tokens and that of the first ones, 32 exact and half a segment on
    # average, and a sixteenth for the landmarks.
    assert read_tokens(some, 4096) == 17 * 8 + 32 + 128 + 256
    assert read_tokens(whole, 4096) == 4096 and read_tokens(some, 100) == 100
    assert read_tokens(KVForm(chain="snapkv | bfp(bits=4)"), 4096) == 4096
    fast, slow = (plan_for(900, kv=form.chain) for form in (some, whole))
    assert fast.seconds_per_token < 0.7 * slow.seconds_per_token
    assert fast.first_token_s == slow.first_token_s
    assert fast.held("kv") > slow.held("kv"), "landmarks"
