"""The suite of context switches, small, and its trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import switching
from loci.bench.swapping import BLOCK, Stack, draw
from loci.errors import BudgetError, ParameterError
from loci.testing.models import tiny_pack
from loci.tiers.pages import why_not


@pytest.mark.parametrize("seed", range(3))
def test_a_trace_never_needs_more_than_its_pool(seed: int) -> None:
    trace = draw(9, seed, scale=1 / 16)
    tokens: dict[int, int] = {}
    out: set[int] = set()
    asked = answered = 0
    for step in trace.steps:
        assert set(step.outs) <= set(tokens) - out and set(step.ins) <= out | set(step.outs)
        out = (out | set(step.outs)) - set(step.ins)
        assert not out & set(step.grown)
        tokens |= step.grown
        held = sum(-(-count // BLOCK) for id, count in tokens.items() if id not in out)
        assert held <= trace.capacity
        for id in step.ends:
            del tokens[id]
        asked, answered = asked + len(step.asked), answered + len(step.answered)
    assert not tokens and asked == answered > 9


def test_a_stack_scatters_and_loses_nothing() -> None:
    stack = Stack(6)
    assert stack.alloc("a", 2) == [0, 1] and stack.alloc("b", 2) == [2, 3]
    stack.free("a")
    assert stack.alloc("b", 3) == [0, 1, 4] and len(stack.runs("b")) == 3
    stack.check_integrity()
    with pytest.raises(BudgetError):
        stack.alloc("c", 2)


def test_moves_and_simulation_say_what_they_should() -> None:
    context = Context(folder=Path("none"), quick=True, options={"parts": "moves,simulated"})
    result = switching.run(context)
    moves, simulated = result["results"]["moves"], result["results"]["simulated"]
    assert all(way["holds_the_same"] for way in moves.values())
    ours, blockwise = moves["fastswitch"], moves["blockwise"]
    assert ours["copies_a_switch"] <= 0.3 * blockwise["copies_a_switch"]
    assert ours["out_bytes"] <= 0.55 * blockwise["out_bytes"]
    assert ours["blocks_a_run"] > 2 * blockwise["blocks_a_run"]
    for way in simulated.values():
        assert simulated["fastswitch"]["first_token_p99_s"] <= way["first_token_p99_s"]
    rows = switching.card_rows(result)
    assert {row.part for row in rows} == {"moves", "simulated"}
    assert all(row.method == "fastswitch" and row.ratio for row in rows)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_second_questions_find_what_was_put_out(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", layers=6, hidden=128, heads=8, kv_heads=4, head_dim=16).close()
    context = Context(folder=tmp_path, model="tiny", quick=True, options={"parts": "turns"})
    turns = switching.run(context)["results"]["turns"]
    assert all(way["says_the_same"] for way in turns.values())
    assert turns["fastswitch"]["reused_tokens"] == turns["to_disk"]["reused_tokens"] >= 3 * 112
    assert turns["read_again"]["reused_tokens"] == 0


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ParameterError, match="no such part"):
        switching.run(Context(folder=Path("none"), options={"parts": "gpu"}))
