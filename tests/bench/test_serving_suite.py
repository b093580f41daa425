"""The serving suite on a tiny model, and the mixture of experts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench import experts
from loci.bench.experts import Mixture, Sizes, serve
from loci.bench.suite import Context
from loci.bench.suites import experts as suite_of_experts
from loci.bench.suites import serving
from loci.errors import ParameterError
from loci.methods.sched.base import Request
from loci.methods.sched.fcfs import Fcfs
from loci.methods.sched.layered_prefill import LayeredPrefill
from loci.testing.models import tiny_pack

SMALL = Sizes(layers=4, hidden=32, heads=2, experts=8, top=2, ffn=8, vocab=64)


def request(id: str, prompt: int, new: int) -> Request:
    return Request(id=id, prompt_tokens=prompt, new_tokens=new, kv_bytes=1)


def arrivals() -> list[tuple[int, Request, list[int]]]:
    return [
        (0, request("a", 3, 9), [1, 2, 3]),
        (2, request("b", 40, 3), [(7 * i + i * i) % 64 for i in range(40)]),
    ]


def test_every_way_says_the_same_and_layers_read_fewest_experts() -> None:
    ways = [Fcfs(), Fcfs(chunk=11), LayeredPrefill(work=10)]
    whole, chunked, layered = (serve(way, arrivals(), Mixture(SMALL)) for way in ways)
    assert whole.tokens == chunked.tokens == layered.tokens
    assert [len(layered.tokens[id]) for id in "ab"] == [9, 3]
    assert layered.read_bytes < chunked.read_bytes
    # Four groups of one layer: in each the prompt's experts are read once, and at most all of them.
    own = serve(LayeredPrefill(work=10), arrivals()[:1], Mixture(SMALL)).prompt_bytes
    assert layered.prompt_bytes - own <= SMALL.layers * SMALL.experts * SMALL.expert_bytes
    assert len(set(layered.tokens["a"])) > 1  # it does not say one thing for ever
    assert layered.prompt_bytes < chunked.prompt_bytes


def test_one_token_reads_its_own_experts_alone() -> None:
    run = serve(Fcfs(), [(0, request("a", 1, 1), [5])], Mixture(SMALL))
    assert run.read_bytes == SMALL.layers * SMALL.top * SMALL.expert_bytes
    assert run.steps == {"a": [0]}


def test_a_token_sees_no_later_one() -> None:
    model = Mixture(SMALL)
    first = model.embedding[[1, 2]]
    row = experts._Row("a", first.clone(), 0, True)
    both = experts._Row("b", model.embedding[[1, 2, 9]], 0, True)
    model.layer(0, [row])
    model.layer(0, [both])
    assert (row.hidden_Td - both.hidden_Td[:2]).abs().max() < 1e-12


def test_the_suite_measures_what_it_says(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", layers=6).close()
    context = Context(folder=tmp_path, model="tiny", quick=True)
    found = serving.run(context)
    assert set(found["results"]) == set(serving.PARTS)
    for part in ("resident", "streamed"):
        for way in found["results"][part].values():
            assert way["says_the_same"] and way["between_tokens_p50_s"] > 0
            assert way["between_tokens_p99_s"] <= way["between_tokens_max_s"] * 1.0001
            assert (way["moved_bytes"] > 0) == (part == "streamed")
    rows = serving.card_rows(found)
    assert {row.part for row in rows} == set(serving.PARTS)
    assert all("longest_wait.fcfs" in row.ratio for row in rows if row.method != "fcfs")


def test_layers_read_each_expert_once_and_fewest_in_all() -> None:
    found = suite_of_experts.run(Context(folder=Path("none"), quick=True))["results"]
    chunked, layered = (found[name] for name in suite_of_experts.QUICK_DEFAULT)
    assert chunked["says_the_same"] and layered["says_the_same"]
    assert layered["times_each_expert"] <= 1 < chunked["times_each_expert"]
    for decoding in suite_of_experts.DECODING:
        assert layered[f"expert_bytes_{decoding}"] < chunked[f"expert_bytes_{decoding}"]
        assert layered[f"steps_between_tokens_{decoding}"] <= 1


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no such part"):
        serving.run(Context(folder=tmp_path, options={"parts": "gpu"}))
