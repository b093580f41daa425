"""Weights of transformers models packed by methods that look, share and try out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from loci.errors import BudgetError, ParameterError
from loci.run import hf
from loci.run.hf_weights import own_words
from loci.testing.models import tiny_hf

SIZES = {"hidden": 128, "ffn": 192, "heads": 8, "kv_heads": 4, "head_dim": 16}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return tiny_hf(tmp_path, **SIZES)[0]


def ids(model: Any, count: int = 3, length: int = 40, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (count, length), generator=generator)


def state(model: Any) -> list[tuple[str, str, int]]:
    """Return names, classes and hooks of every module."""
    return [(n, type(m).__name__, len(m._forward_pre_hooks)) for n, m in model.named_modules()]


def kl(model: Any, method: str, **asked: Any) -> tuple[float, int]:
    text = ids(model, seed=7)
    with torch.no_grad():
        full = torch.log_softmax(model(text).logits, -1)
        with hf.compressed(model, method, **asked) as run:
            other = torch.log_softmax(model(text).logits, -1)
            nbytes = run.nbytes
    return float((full.exp() * (full - other)).sum(-1).mean()), nbytes


@pytest.mark.parametrize("method", ["gptq(bits=3)", "awq", "comet", "flexq", "bitstack(blocks=3)"])
def test_every_kind_of_method_packs_and_leaves_no_trace(model: Any, method: str) -> None:
    before, weight = state(model), model.model.layers[0].mlp.up_proj.weight
    lost, _ = kl(model, method, calibration=ids(model))
    assert 0 < lost < 1
    assert state(model) == before and model.model.layers[0].mlp.up_proj.weight is weight


def test_a_budget_is_shared_and_kept(model: Any) -> None:
    weights = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith("_proj"))
    dense = kl(model, "groupwise(bits=8)")[1]
    found = {}
    for method in ("gptq", "any_precision", "bitstack"):
        for bits in (3.2, 4.5):
            budget = int(bits / 8 * weights)
            found[method, bits] = kl(model, method, budget=budget, calibration=ids(model))
            assert found[method, bits][1] < dense
        assert found[method, 4.5][0] < found[method, 3.2][0]
        assert found[method, 3.2][1] < found[method, 4.5][1]
    before = state(model)
    for method, budget in (("bitstack", "1KiB"), ("gptq", "1KiB"), ("flexq", "1KiB")):
        with (
            pytest.raises(BudgetError, match="short"),
            hf.compressed(model, method, budget=budget, calibration=ids(model)),
        ):
            pass
    assert state(model) == before


def test_the_model_writes_its_own_calibration(model: Any) -> None:
    text = own_words(model)
    assert text.shape[0] == 8 and torch.equal(text, own_words(model))
    lost, _ = kl(model, "gptq(bits=4)")
    assert 0 < lost < 0.5


def test_calibration_of_another_form_is_refused(model: Any) -> None:
    with (
        pytest.raises(ParameterError, match=r"\[texts, tokens\]"),
        hf.compressed(model, "gptq", calibration=torch.zeros(5).long()),
    ):
        pass
