"""A model with a key head for every query head, made on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loci.bench import spot
from loci.bench.suite import Context
from loci.bench.suites import reference


def test_methods_that_need_such_a_model_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot, "QUICK_STEPS", 2)
    monkeypatch.setattr(spot, "LONG", 32)
    monkeypatch.setattr(spot, "_CHARACTERS", 20_000)
    monkeypatch.setattr(spot, "first_half", lambda: "A budget is a plan. " * 400)
    small = replace(spot.MULTI, layers=2, hidden=64, heads=2, kv_heads=2, head_dim=32, ffn=96)
    monkeypatch.setattr(spot, "MULTI", small)
    given = {"model": "spot-multi"}
    methods = ("xquant(bits=4)", "kivi(bits=4,group=32)")
    result = reference.run(Context(folder=tmp_path, methods=methods, options=given, quick=True))
    assert result["model"] == "spot-multi" and result["prompt_tokens"] == 256
    assert set(result["methods"]) == set(methods)
    whole = result["methods"]["xquant(bits=4)"]
    assert 0 < whole["kv_bytes"] < result["full"]["kv_bytes"] and whole["kl"]["value"] >= 0
    (row, _) = reference.card_rows(result)
    assert row.part == "256 tokens"
    pack = spot.spot(tmp_path, quick=True, multi=True)
    assert pack.spec.heads == pack.spec.kv_heads == 2
    pack.close()
