"""Results go into cards: merged, rounded, and only where a person wrote the claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.cards import Row, write
from loci.core.card import Card, Verdict
from loci.errors import ParameterError

RESULT = {
    "suite": "schedule",
    "model": "toy",
    "fingerprint": "blake2b:1",
    "machine": {"name": "2-core"},
    "software": {"loci": "0.1.0"},
    "commit": "abc",
    "date": "2026-01-02",
}
CLAIM = """format = "loci-card"
version = 1
method = "fcfs"
[claim]
text = "who comes first runs first"
where = "Table 1"
[verdict]
value = "reproduced"
because = "measured"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sched").mkdir()
    (tmp_path / "sched" / "fcfs.toml").write_text(CLAIM)
    return tmp_path


def row(this: float, method: str = "fcfs", part: str = "") -> Row:
    return Row(method=method, kind="sched", metrics={"wait_s": {"this": this}}, part=part)


def card_in(folder: Path) -> Card:
    return Card.from_toml((folder / "sched" / "fcfs.toml").read_text(), "card")


def test_a_measurement_joins_and_the_verdict_stays(folder: Path) -> None:
    write(RESULT, [row(0.123456)], folder, "loci bench run schedule")
    card = card_in(folder)
    (found,) = card.measurements
    assert found.metrics == {"wait_s": {"this": 0.1235}}
    assert (found.suite, found.command) == ("schedule", "loci bench run schedule")
    assert (card.claim, card.verdict) == ("who comes first runs first", Verdict.REPRODUCED)


def test_a_newer_measurement_takes_the_place_of_the_same_one(folder: Path) -> None:
    write(RESULT, [row(1.0), row(2.0, part="0.5")], folder, "first")
    write(RESULT, [row(3.0)], folder, "second")
    found = {
        m.suite: (m.metrics["wait_s"]["this"], m.command) for m in card_in(folder).measurements
    }
    assert found == {"schedule/0.5": (2.0, "first"), "schedule": (3.0, "second")}


def test_other_parameters_are_another_measurement(folder: Path) -> None:
    write(RESULT, [row(1.0), row(2.0, "fcfs(chunk=8)")], folder, "both")
    assert [dict(m.parameters) for m in card_in(folder).measurements] == [{}, {"chunk": 8}]


def test_only_the_method_asked_for_is_written(folder: Path) -> None:
    assert write(RESULT, [row(1.0)], folder, "x", only="other") == []
    assert card_in(folder).measurements == ()


def test_without_a_claim_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no card to write to"):
        write(RESULT, [row(1.0)], tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
