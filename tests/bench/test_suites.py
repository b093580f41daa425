"""Every suite keeps the form of suites, and those over a model run on a tiny one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loci.bench import suite
from loci.bench.cards import EXACT, ROOMS
from loci.bench.suites import needle, reference, scbench, streaming
from loci.cli.output import plain
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.testing.models import tiny_pack

QUICK_ON_TINY = {
    "reference": ("kv_dtype=float16", "bfp(bits=4,block=8)", "groupwise(bits=4,group=16)"),
    "perplexity": ("groupwise(bits=4,group=16)",),
    "needle": ("random", "snapkv(window=8)"),
    "scbench": ("random(window=8)", "snapkv(window=8)", "bfp(bits=4,block=16)"),
    "decoding": ("streaming_llm(window=8)", "bfp(bits=4,block=16,window=8)"),
    "streaming": ("tpi_llm",),
    "prediction": ("roofline",),
    "schedule": ("fcfs", "fcfs(chunk=64)"),
    "operations": ("mem0",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    tiny_pack(path / "tiny", max_context=4096).close()
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> Mapping[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PROMPT", 96)
        patch.setattr(reference, "REST", 32)
        patch.setattr(needle, "SHARES", (0.5,))
        patch.setattr(scbench, "SHARES", (0.9,))
        patch.setattr(streaming, "PASSES", 2)
        return {
            name: plain(
                suite.run(
                    name,
                    suite.Context(
                        folder=folder,
                        model="tiny",
                        methods=methods,
                        quick=True,
                        options={"difficulty": "short"} if name == "needle" else {},
                    ),
                )
            )
            for name, methods in QUICK_ON_TINY.items()
        }


@pytest.mark.parametrize("name", suite.names())
def test_a_suite_says_what_it_is_about(name: str) -> None:
    found = suite.find(name)
    assert 20 <= len(found.ABOUT) <= 100
    for kind in getattr(found, "KINDS", ()):
        assert kind in (*catalogue.kinds(), *ROOMS)
        assert callable(found.card_rows)


@pytest.mark.parametrize("name", QUICK_ON_TINY)
def test_results_are_json_and_say_where_they_are_from(
    results: Mapping[str, dict[str, Any]], name: str
) -> None:
    result = results[name]
    assert json.loads(json.dumps(result)) == result
    assert (result["format"], result["suite"]) == ("loci-bench", name)
    assert {"machine", "software", "commit", "date"} <= set(result)


@pytest.mark.parametrize("name", QUICK_ON_TINY)
def test_every_method_that_ran_gets_a_row(results: Mapping[str, dict[str, Any]], name: str) -> None:
    rows = suite.find(name).card_rows(results[name])
    names = {EXACT if m.startswith("kv_dtype") else m for m in QUICK_ON_TINY[name]}
    assert {EXACT if r.method.startswith(EXACT) else r.method for r in rows} == names
    for row in rows:
        assert all("this" in figures for figures in row.metrics.values())


def test_every_kind_of_method_has_a_suite() -> None:
    for kind in catalogue.kinds():
        assert suite.of_kind(kind), kind


def test_streamed_weights_say_the_same_in_the_predicted_bytes(
    results: Mapping[str, dict[str, Any]],
) -> None:
    (row,) = results["streaming"]["results"]
    assert row["difference"] == 0.0
    assert row["held_bytes"]["predicted"] == row["held_bytes"]["measured"]
    assert row["moved_bytes"]["measured"] >= row["moved_bytes"]["predicted"]


def test_half_precision_loses_less_than_four_bits(results: Mapping[str, dict[str, Any]]) -> None:
    methods = results["reference"]["methods"]
    half, four = (methods[n]["kl"]["value"] for n in list(methods)[:2])
    assert 0 <= half < four


def test_predicted_bytes_are_those_held(results: Mapping[str, dict[str, Any]]) -> None:
    for key, row in results["needle"]["results"].items():
        if key != needle.FULL:
            assert row["predicted_bytes"] == row["kv_bytes"]
    for part in results["prediction"]["bytes"].values():
        assert part["predicted"] == part["measured"]


def test_a_method_stands_for_the_suites_of_its_kind() -> None:
    every = ["experts", "schedule", "serving", "traces"]
    assert suite.chosen("fcfs") == (every, "fcfs")
    assert suite.chosen("fcfs(chunk=8)") == (every, "fcfs")
    assert suite.chosen("fastswitch") == (["switching"], "fastswitch")
    assert suite.chosen("needle") == (["needle"], "")
    with pytest.raises(ParameterError, match="did you mean 'needle'"):
        suite.chosen("needl")


def test_a_method_runs_beside_the_choice_of_the_suite() -> None:
    assert suite.contenders("schedule", "fcfs(chunk=8)", ()) == (
        "fcfs",
        "fcfs(chunk=512)",
        "layered_prefill",
        "fcfs(chunk=8)",
    )
    assert suite.contenders("schedule", None, ()) == ()
    assert suite.contenders("schedule", "fcfs", ("fcfs(chunk=9)",)) == ("fcfs(chunk=9)",)
