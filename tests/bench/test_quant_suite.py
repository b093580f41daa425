"""The suite of quality over bytes, and what it is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from loci.bench import kquants, spot
from loci.bench.judge import Judge, pieces
from loci.bench.suite import Context
from loci.bench.suites import quant
from loci.errors import ParameterError
from loci.methods.quant.groupwise import Groupwise
from loci.nn.form import DenseWeight
from loci.run.quantise import packed_linears
from loci.testing.models import tiny_pack


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model that is trained on the spot smaller still."""
    spec = dataclasses.replace(spot.SPEC, layers=2, hidden=64, heads=2, kv_heads=1, head_dim=32,
                               ffn=128, vocab=512)  # fmt: skip
    monkeypatch.setattr(spot, "SPEC", spec)
    monkeypatch.setattr(spot, "QUICK_STEPS", 4)
    monkeypatch.setattr(spot, "_CHARACTERS", 20_000)
    monkeypatch.setattr(spot, "first_half", lambda: "A budget is a plan. " * 400)


def test_every_method_at_every_size_and_a_plot(small: None, tmp_path: Path) -> None:
    plot = tmp_path / "curve.png"
    methods = ("groupwise(group=64)", "gptq", "bitstack(blocks=3)", "flexq(group=64)")
    context = Context(
        folder=tmp_path,
        quick=True,
        methods=methods,
        options={"model": "spot", "bits": "3,4,6.4", "plot": str(plot)},
    )
    found = quant.run(context)
    assert plot.stat().st_size > 5000
    assert set(found["methods"]) == set(methods)
    for name in ("groupwise(group=64)", "gptq"):
        points = found["methods"][name]
        assert [p["target_bits"] for p in points] == [3.0, 4.0, 6.4]
        assert all(0.9 * p["target_bits"] < p["bits"] <= p["target_bits"] for p in points)
        kl = [p["kl"]["value"] for p in points]
        assert kl == sorted(kl, reverse=True)
    assert [p["target_bits"] for p in found["methods"]["flexq(group=64)"]] == [6.4]
    rows = quant.card_rows(found)
    assert {row.method for row in rows} == set(methods)
    assert all(row.bytes["measured"] < row.bytes["full"] for row in rows)
    again = quant.run(dataclasses.replace(context, options={"model": "spot", "bits": "4"}))
    assert again["fingerprint"] == found["fingerprint"]  # it was trained once


def test_bad_options_are_named() -> None:
    for options, words in (
        ({"bit": "3"}, "no such option"),
        ({"bits": "0.5"}, "bits per weight"),
        ({"bits": "three"}, "bits per weight"),
        ({"model": "other"}, "allowed: spot"),
    ):
        with pytest.raises(ParameterError, match=words):
            quant.run(Context(folder=Path("/nowhere"), options=options))


def test_the_judge_finds_nothing_lost_where_nothing_changed(tmp_path: Path) -> None:
    with tiny_pack(tmp_path, bits=None) as pack:
        judge = Judge(pack, pieces(pack, 2, 64))
        weight = pack.block("layer.0")["q_proj"]
        assert isinstance(weight, torch.Tensor)
        same = judge.judge({"layer.0.q_proj": DenseWeight(weight)})
        assert same["kl"]["value"] == pytest.approx(0.0, abs=1e-6)
        assert same["perplexity"] == pytest.approx(judge.full["perplexity"])
        worse = judge.judge(
            packed_linears(pack, Groupwise(bits=2), ids_ST=torch.zeros(1, 8).long())
        )
        assert worse["kl"]["value"] > 0.01
        with pytest.raises(ParameterError, match="too short"):
            pieces(pack, 2, 10_000)


def test_a_model_written_as_gguf_comes_back_exactly(tmp_path: Path) -> None:
    with tiny_pack(tmp_path / "model", bits=None, ffn=96) as pack:
        path = kquants.write_gguf(pack, tmp_path / "model.gguf")
        forms, nbytes = kquants.linears_of(path, pack.spec)
        assert nbytes == 4 * pack.spec.linear_elements()
        for name, form in forms.items():
            block, _, tensor = name.rpartition(".")
            assert torch.equal(form.dense(), pack.block(block)[tensor])
