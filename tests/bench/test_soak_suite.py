"""The suite that loads a server for long, run for a moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import soak
from loci.errors import ParameterError
from loci.testing.models import tiny_pack

SIZES = {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}


def test_a_moment_of_load_leaves_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pack(tmp_path / "tiny", **SIZES).close()
    monkeypatch.setattr(soak, "KEEP_S", 0.5)
    options = {"seconds": "6", "rows": "2", "waiting": "2", "dram": "32MiB", "context": "512"}
    context = Context(folder=tmp_path, model="tiny", quick=True, options=options)
    found = soak.run(context)
    assert found["clients"] == 2 * found["admitted"] == 8
    targets = dict(found["targets"])
    for name in ("slope_at_most_1_mib_per_min", "beyond_ledger_at_most_1_mib_per_min"):
        targets.pop(name)  # a few seconds say nothing of minutes
    assert targets == dict.fromkeys(targets, True), found
    assert found["remembered"]["acknowledged"] > 0
    assert {"200", "400"} <= set(found["statuses"])
    assert found["held"]["before"] == found["held"]["after"]


def test_a_slope_is_that_of_the_later_part(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = soak.Resident(os.getpid(), "http://nowhere")
    resident.values = [(float(at), 100 + 1000 * min(at, 30), 0) for at in range(120)]
    assert resident.slope(0.5) == pytest.approx(0.0)
    resident.values = [(60.0 * at, 5_000 * at, 4_000 * at) for at in range(10)]
    assert resident.slope(0.2) == pytest.approx(5_000.0)
    assert resident.slope(0.2, beyond_ledger=True) == pytest.approx(1_000.0)
    resident.values = []
    with monkeypatch.context() as patched:
        patched.setattr(soak, "_told", lambda url, what: {"tiers": {"dram": {"used": 7}}})
        resident.look()
    assert resident.values[0][1] > 2**20 and resident.values[0][2] == 7
    assert resident.slope(0.2) is None


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ParameterError, match="no such option"):
        soak.run(Context(folder=Path("."), options={"minutes": "1"}))
