"""Rotary embedding against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from loci.core.spec import ModelSpec
from loci.errors import ModelError, ParameterError
from loci.nn.rope import Rope, rotate, undo


def spec_of(head_dim: int = 8, **changes: object) -> ModelSpec:
    sizes = {"layers": 1, "hidden": 16, "heads": 2, "kv_heads": 1, "ffn": 16, "vocab": 8}
    return ModelSpec(name="t", head_dim=head_dim, max_context=64, **sizes, **changes)  # type: ignore[arg-type]


def test_turns_a_pair_by_its_angle() -> None:
    # One pair (1, 0) at position 2 with frequency 1 becomes (cos 2, sin 2).
    rope = Rope(spec_of(head_dim=2))
    cos, sin = rope.table(torch.tensor([[2]]))
    turned = rotate(torch.tensor([[[[1.0, 0.0]]]]), cos, sin)
    torch.testing.assert_close(turned.flatten(), torch.tensor([math.cos(2), math.sin(2)]))


def test_position_zero_and_padding_change_nothing() -> None:
    x = torch.randn(1, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, *Rope(spec_of()).table(torch.tensor([[0, -1]]))), x)


def test_undo_takes_a_rotation_back_also_in_place() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    table = Rope(spec_of()).table(torch.arange(5).expand(2, 5) + 100)
    rotate(x, *table, out=x)
    assert not torch.allclose(x, before)
    undo(x, *table, out=x)
    torch.testing.assert_close(x, before, rtol=1e-5, atol=1e-5)


def test_products_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    rope = Rope(spec_of())

    def product(at: int, to: int) -> float:
        turned_q = rotate(q, *rope.table(torch.tensor([[at]])))
        return float((turned_q * rotate(k, *rope.table(torch.tensor([[to]])))).sum())

    assert product(7, 3) == pytest.approx(product(24, 20), abs=1e-5)


def test_linear_scaling_divides_positions() -> None:
    plain = Rope(spec_of())
    scaled = Rope(spec_of(rope_scaling=(("factor", 4.0), ("rope_type", "linear"))))
    for left, right in zip(
        scaled.table(torch.tensor([[8]])), plain.table(torch.tensor([[2]])), strict=True
    ):
        torch.testing.assert_close(left, right)


def test_llama3_scaling_agrees_with_transformers() -> None:
    llama = pytest.importorskip("transformers.models.llama")
    values = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    config = llama.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, **values},
    )
    theirs = llama.modeling_llama.LlamaRotaryEmbedding(config)
    positions = torch.arange(0, 2000, 37)[None]
    cos, sin = theirs(torch.zeros(1), positions)
    ours = Rope(spec_of(head_dim=32, rope_scaling=tuple(sorted(values.items()))))
    torch.testing.assert_close(ours.table(positions)[0], cos, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.table(positions)[1], sin, rtol=1e-4, atol=1e-4)


def test_unknown_scaling_and_odd_heads_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="yarn"):
        Rope(spec_of(rope_scaling=(("rope_type", "yarn"),)))
    with pytest.raises(ModelError, match="factor"):
        Rope(spec_of(rope_scaling=(("rope_type", "linear"),)))
    with pytest.raises(ParameterError, match="even"):
        Rope(spec_of(head_dim=7))
