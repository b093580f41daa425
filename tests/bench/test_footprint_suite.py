"""The suite that measures whether a run keeps its budget: what it judges, and the default model."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import footprint
from loci.errors import LociError, ParameterError
from loci.testing.models import tiny_pack

MIB = 2**20
FOUND = {
    "kv": "",
    "weights": "streamed",
    "chunk": 32,
    "predicted": 100 * MIB,
    "walked": [97 * MIB, 102 * MIB, 99 * MIB],
    "read": 5 * MIB,
    "peak": 360 * MIB,
    "first_token_s": 1.0,
    "tokens_per_s": 10.0,
    "predicted_first_token_s": 1.1,
    "predicted_tokens_per_s": 11.0,
}


def test_the_highest_bytes_and_the_peak_are_judged() -> None:
    found = footprint._judged(FOUND, 234 * MIB, 100 * MIB)
    assert (found["measured"], found["measured_highest"]) == (99 * MIB, 102 * MIB)
    assert found["error"] == pytest.approx(0.02)
    assert found["peak_over_bare"] == 126 * MIB == found["allowed_peak"]
    assert found["is_met"]
    assert not footprint._judged(FOUND, 233 * MIB, 100 * MIB)["is_met"]
    assert not footprint._judged({**FOUND, "walked": [104 * MIB]}, 234 * MIB, 100 * MIB)["is_met"]
    assert not footprint._judged({**FOUND, "walked": [96 * MIB]}, 234 * MIB, 100 * MIB)["is_met"]
    packing = {"peak": 361 * MIB, "largest_tensor": 30 * MIB, "seconds": 3.0}
    assert footprint._judged_packing(packing, 231 * MIB, 100 * MIB)["is_met"]
    assert not footprint._judged_packing(packing, 230 * MIB, 100 * MIB)["is_met"]


def test_what_it_cannot_measure_is_refused(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny").close()
    with pytest.raises(ParameterError, match="only the pack of this model"):
        footprint._source(Context(folder=tmp_path, model="tiny"))
    with pytest.raises(ParameterError, match="no such option"):
        footprint.run(Context(folder=tmp_path, model="tiny", options={"dramm": "1GiB"}))


def test_a_case_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(LociError, match="a measuring process failed") as caught:
        footprint._process({"folder": str(tmp_path), "model": "none", "tokenizer": True})
    assert "there is no model of that name" in str(caught.value)


@pytest.mark.slow
@pytest.mark.model
def test_the_default_model_keeps_its_budgets(models_folder: Path) -> None:
    found = footprint.run(Context(folder=models_folder, quick=True))
    assert found["whole"]["is_met"], found["whole"]
    assert found["streamed"]["is_met"], found["streamed"]
    assert found["same"]["is_same"], found["same"]
    assert "Paris" in found["same"]["answers"][0]
    assert found["packing"]["is_met"], found["packing"]
