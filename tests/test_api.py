"""The public functions of Python: bad input is refused as on the command line, before anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loci
from loci.config import FILE_VARIABLE, KEYS
from loci.errors import LociError
from loci.run import runtime
from loci.run.runtime import Runtime
from loci.testing.models import tiny_pack

MODEL = "tiny"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give Python a home with one tiny model; measuring the machine takes no time."""
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LOCI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "runtime", lambda *args, **kwargs: Runtime(bytes=230 * 2**20))
    tiny_pack(tmp_path / "models" / MODEL).close()
    return tmp_path


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: loci.plan(MODEL, dram="5XB"), "--dram: unknown unit 'XB'"),
        (lambda: loci.plan(MODEL, dram=-1), "cannot be negative"),
        (lambda: loci.plan(MODEL, dram=1.5), "whole number of bytes"),  # type: ignore[arg-type]
        (lambda: loci.plan(MODEL, dram="1KiB"), "short"),
        (lambda: loci.plan(MODEL, context="many"), "context: cannot read 'many'"),
        (lambda: loci.plan(MODEL, context=0), "at least 1"),
        (lambda: loci.plan(MODEL, context=1.5), "cannot read 1.5"),  # type: ignore[arg-type]
        (lambda: loci.plan(MODEL, new_tokens=0), "at least 1"),
        (lambda: loci.plan(MODEL, new_tokens="few"), "new_tokens: cannot read 'few'"),
        (lambda: loci.plan(MODEL, kv="bpf"), "did you mean 'bfp'"),
        (lambda: loci.plan(MODEL, machine="h20"), "did you mean 'h200'"),
        (lambda: loci.plan("tinny"), "did you mean 'tiny'"),
        (lambda: loci.plan(Path("nowhere/x.gguf")), "no file or folder"),
        (lambda: loci.plan(5), "no model of that name"),  # type: ignore[arg-type]
        (lambda: loci.open("tiny"), "a session carries out a plan"),  # type: ignore[arg-type]
        (lambda: loci.open(None), "a session carries out a plan"),  # type: ignore[arg-type]
        (lambda: loci.methods("kvv"), "did you mean 'kv'"),
        (lambda: loci.Memory("nowhere/a.db"), "no such folder"),
        (lambda: loci.Memory("redis://x"), "not supported"),
        (lambda: loci.Budget.parse(dram="1Q"), "unknown unit 'Q'"),
        (lambda: loci.Budget.parse(drm="1"), "unknown part of a budget"),
        (lambda: loci.hf.load("tinny"), "did you mean 'tiny'"),
    ],
)
def test_bad_input_is_an_error_of_ours(ask: Callable[[], object], said: str) -> None:
    with pytest.raises(LociError) as caught:
        ask()
    assert said in str(caught.value)


def test_bad_input_inside_transformers_leaves_the_model_alone() -> None:
    model, _ = loci.hf.load(MODEL)
    for chain, budget, said in (
        ("snapkvv", None, "did you mean 'snapkv'"),
        ("snapkv", "5XB", "budget: unknown unit 'XB'"),
        ("snapkv", -1, "cannot be negative"),
    ):
        with pytest.raises(LociError, match=said):
            loci.hf.cache(model, chain, budget=budget)
    for method, budget, said in (
        ("groupwise(bits=99)", None, "groupwise.bits"),
        ("snapkv", None, "no quant method"),
        ("groupwise", "-1", "cannot be negative"),
    ):
        with pytest.raises(LociError, match=said), loci.hf.compressed(model, method, budget=budget):
            pass
    assert model.config._attn_implementation == "eager"
    assert {type(m).__name__ for m in model.modules()}.isdisjoint({"PackedModule"})


def test_a_plan_is_a_value_that_can_be_kept(home: Path) -> None:
    plan = loci.plan(home / "models" / MODEL, dram="16MiB", context="128", new_tokens="4")
    kept = json.loads(json.dumps(plan.to_json()))
    again = type(plan).from_json(kept)
    assert again == plan
    with loci.open(again) as session:
        assert isinstance("".join(session.generate("Hello")), str)
    for change in ({"version": 99}, {"format": "other"}, {"colour": "red"}, {"spec": None}):
        wrong: dict[str, Any] = {**kept, **change}
        with pytest.raises(LociError, match="plan"):
            type(plan).from_json(wrong)


def test_a_machine_measured_while_busy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "runtime", lambda *args, **kwargs: Runtime(is_busy=True))
    assert any("busy" in note for note in loci.plan(MODEL, dram="16MiB").notes)
