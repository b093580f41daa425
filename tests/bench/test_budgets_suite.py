"""The suite of budgets, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench import suite
from loci.bench.suite import Context
from loci.bench.suites import budgets
from loci.errors import ParameterError
from loci.testing.models import tiny_pack


def test_every_budget_is_planned_opened_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "SCORED", 32)
    tiny_pack(tmp_path / "tiny", max_context=4096).close()
    context = Context(
        folder=tmp_path,
        model="tiny",
        quick=True,
        options={"budgets": "100KiB,64MiB", "context": "160", "plot": str(tmp_path / "b.svg")},
    )
    refused, held = suite.find("budgets").run(context)["budgets"]
    assert "refused" in refused and "kl" not in refused
    assert held["kl"]["value"] == pytest.approx(0.0, abs=1e-9) and held["planned_kl"] == 0
    assert 0 < held["weight_bytes"] < held["held_bytes"] <= 64 * 2**20
    assert (tmp_path / "b.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("options", [{"budgets": "much"}, {"budget": "1MiB"}])
def test_options_that_are_wrong_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ParameterError):
        suite.find("budgets").run(Context(folder=tmp_path, model="tiny", options=options))
