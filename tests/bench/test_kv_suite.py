"""The comparison of KV methods: equal bytes, chosen on dev, shown on test, kept cell by cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loci.bench import contest, stages
from loci.bench.contest import Bench
from loci.bench.reading import Contender
from loci.bench.suite import Context
from loci.bench.suites import kv
from loci.errors import ParameterError
from loci.testing.models import tiny_pack

METHODS = (
    "random(window=8)",
    "keydiff",
    "keydiff(recent=32)",
    "bfp(bits=4,block=16)",
    "keydiff | bfp(bits=8,block=16,window=4)",
    "kvzip",
)


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Read on and decode fewer tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "REST", 32)
        patch.setattr(stages, "DECODED", 2)
        yield


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("models")
    tiny_pack(folder / "tiny", max_context=4096).close()
    options = {"shares": "0.6,0.2", "chunks": "64", "rounds": "1"}
    return Context(folder=folder, model="tiny", methods=METHODS, quick=True, options=options)


@pytest.fixture(scope="module")
def result(context: Context) -> dict[str, Any]:
    return kv.run(context)


def test_everybody_stays_within_the_same_bytes(result: dict[str, Any]) -> None:
    rows = {(row["method"], row["share"]): row for row in result["rows"]}
    assert {share for _, share in rows} == {0.6, 0.2}
    for (_, share), row in rows.items():
        assert row["kv_bytes"] == row["predicted_bytes"] <= share * result["full_bytes"]
        assert row["peak_bytes"] > row["kv_bytes"]
        assert row["generation"]["ratio"]["value"] > 0
    assert ("bfp", 0.6) in rows and ("bfp", 0.2) not in rows  # four bits are no fifth of sixteen
    assert rows["keydiff | bfp", 0.2]["variant"] == "keydiff | bfp(bits=8,block=16,window=4)"


def test_one_variant_of_a_family_is_shown_at_each_share(result: dict[str, Any]) -> None:
    shown = [row["variant"] for row in result["rows"] if row["method"] == "keydiff"]
    assert len(shown) == 2 and set(shown) <= {"keydiff", "keydiff(recent=32)"}


def test_tables_and_cards_come_from_the_result(result: dict[str, Any]) -> None:
    tables = kv.sheet(result)
    assert tables[0][0] == "full cache"
    for _, head, rows in tables:
        assert rows and all(len(row) == len(head) for row in rows)
    for row in kv.card_rows(result):
        assert "|" not in row.method
        assert row.metrics["kl"]["this"] >= 0 and "full" in row.metrics["lookup"]


def test_our_best_is_held_against_every_rival(result: dict[str, Any]) -> None:
    if not result["tasks"]["lookup"]["can_rank"]:  # random weights look nothing up
        assert all(contest["against"] == {} for contest in result["contests"])
        assert not any(contest["beats_all"] for contest in result["contests"])
    for contest_ in result["contests"]:
        assert kv.family_of(contest_["best"]) not in kv.RIVALS


def test_what_was_measured_is_not_measured_again(
    context: Context, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Bench, "_asked", lambda *_: asked.append(1) or {})
    monkeypatch.setattr(Bench, "_kl", lambda *_: asked.append(1) or {})
    options = {**context.options, "rounds": "0"}
    again = kv.run(dataclasses.replace(context, options=options))
    assert asked == []
    assert [row["tasks"] for row in again["rows"]] == [row["tasks"] for row in result["rows"]]
    more = kv.run(dataclasses.replace(context, methods=(*METHODS, "h2o"), options=options))
    assert asked and not any(row["method"] == "h2o" for row in more["rows"])


def test_a_plot_is_drawn(context: Context, result: dict[str, Any], tmp_path: Path) -> None:
    plot = tmp_path / "curve.svg"
    options = {**context.options, "rounds": "0", "plot": str(plot)}
    kv.run(dataclasses.replace(context, options=options))
    assert plot.read_text().startswith("<?xml") and "keydiff" in plot.read_text()


def test_who_reads_alone_is_read_in_chunks_only(context: Context) -> None:
    how = contest.Settings.of(dataclasses.replace(context, options={"shares": "0.5"}))

    class Lab:
        class spec:  # noqa: N801
            @staticmethod
            def kv_bytes(tokens: int) -> int:
                return 1000 * tokens

    bench = Bench(Lab(), how, context)  # type: ignore[arg-type]
    found = bench.variants(("kvzip", "snapkv", "bfp"))
    assert [(c.name, c.chunk) for c in found] == [
        ("kvzip", 64),
        ("snapkv", None),
        ("snapkv", 64),
        ("bfp", None),
        ("bfp", 64),
    ]
    assert Contender(name="bfp") in found and found[0].budget_bytes == 256000


def test_bad_options_are_named(context: Context) -> None:
    for options, words in (
        ({"share": "0.5"}, "no such option"),
        ({"shares": "2"}, "parts of the full cache"),
        ({"tasks": "riddles"}, "no such task"),
        ({"chunks": "half"}, "chunks are tokens"),
        ({"contexts": "0"}, "contexts is a whole number"),
        ({"size": "giant"}, "no such size"),
    ):
        with pytest.raises(ParameterError, match=words):
            kv.run(dataclasses.replace(context, options=options))
