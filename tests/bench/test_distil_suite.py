"""The suite that makes adapters of facts: its people, and what its result says."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import distil
from loci.bench.tellings import tellings
from loci.errors import ParameterError
from loci.text.quiz import quizzes


def test_people_of_development_and_test_share_nothing() -> None:
    halves = [
        {
            word
            for seed in range(5)
            for one in tellings(20, seed, half)
            for word in (one.name, one.text)
        }
        for half in ("development", "test")
    ]
    assert len(halves[0]) > 40 and not halves[0] & halves[1]
    assert tellings(20, 3) == tellings(20, 3) != tellings(20, 4)
    with pytest.raises(ValueError, match="were asked for"):
        tellings(1000)


def test_a_memory_draws_every_fact_they_tell() -> None:
    for seed in range(3):
        items = distil.told(20, seed, "test")
        assert len(items) == 20
        for telling, item in zip(tellings(20, seed), items, strict=True):
            (quiz,) = quizzes([item])
            assert quiz.is_answered(telling.text) and telling.name in quiz.learn[0], telling


def test_a_result_becomes_a_row() -> None:
    probe = {"asked": 40, "answered": 36, "base": 1, "strangers": 2, "kl": 0.004}
    result = {
        "half": "test",
        "seed": 0,
        "probe": probe,
        "in_prompt": {"answered": 30, "tokens": 200},
        "processor_s": 250.0,
        "bytes": 1000,
        "forgotten": {
            "knew": 1.0,
            "knows": 0.0,
            "probe": probe,
            "likelihood": {
                "knew": -0.1,
                "again": -4.0,
                "never": -3.9,
                "base": -5.0,
                "taught": {"value": 3.8, "low": 3.0, "high": 4.5},
                "difference": {"value": -0.1, "low": -0.6, "high": 0.5},
                "noise": {"value": 0.2, "low": -0.1, "high": 0.4},
            },
        },
        "traces": {
            "before": {"files": 3, "cubes": 1, "prefix": 200},
            "after": {"files": 0, "cubes": 0, "prefix": 0},
        },
    }
    (row,) = distil.card_rows(result)
    assert row.metrics["answered"] == {
        "this": 0.9,
        "rivals": {"without the adapter": 0.025, "facts in the prompt": 0.75},
    }
    assert row.metrics["forgotten_facts_answered"] == {"this": 0.0, "rivals": {"before": 1.0}}
    assert row.metrics["difference_to_never_saw"] == {
        "this": -0.1,
        "rivals": {"before": 3.8, "between two that never saw": 0.2},
    }
    assert row.interval["difference_to_never_saw"] == (-0.6, 0.5)
    assert row.metrics["files_with_a_secret"] == {"this": 0, "rivals": {"before": 3}}


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    for options in (
        {"half": "both"},
        {"fact": "2"},
        {"facts": "none"},
        {"facts": "3", "canaries": "3"},
        {"others": "0"},
    ):
        with pytest.raises(ParameterError):
            distil.run(Context(folder=tmp_path, options=options))
