"""The differentiable forward against transformers' own."""

from pathlib import Path

import pytest
import torch
from torch import Generator

from loci.nn.decoder import Pair, decode, visible
from loci.run.calibrate import PackWeights
from loci.testing.models import dense, tiny_pair


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_agrees_with_transformers_and_its_gradients(tmp_path: Path, architecture: str) -> None:
    window = {"window": 8} if architecture == "mistral" else {}
    pack, model = tiny_pair(tmp_path, architecture=architecture, **window)
    ids = torch.randint(0, pack.spec.vocab, (2, 20), generator=Generator().manual_seed(0))
    weights = {"norm": dense(pack.block("norm")["norm"])}
    for layer in range(pack.spec.layers):
        for name, weight in pack.block(f"layer.{layer}").items():
            weights[f"layer.{layer}.{name}"] = dense(weight)
    table = torch.cat([dense(pack.block(block)["weight"]) for block, _ in pack.tiles()])
    head = torch.cat([dense(pack.block(block)["weight"]) for block, _ in pack.tiles("head")])
    watched = weights["layer.0.v_proj"].requires_grad_(True)
    hidden = decode(
        pack.spec, table[ids], lambda name, x: x @ weights[name].t(), lambda name: weights.get(name)
    )
    logits = hidden @ head.t()
    expected = model(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    expected.square().mean().backward()
    theirs = model.get_submodule("model.layers.0.self_attn.v_proj").weight.grad
    torch.testing.assert_close(watched.grad, theirs, rtol=1e-3, atol=1e-5)


def test_a_window_hides_what_is_further_back() -> None:
    assert visible(4, None) is None and visible(4, 4) is None
    mask = visible(3, 2)
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, False], [False, True, True]]


@pytest.mark.parametrize("window", [None, 6])
def test_a_text_that_goes_on_over_its_past_is_the_whole_text(
    tmp_path: Path, window: int | None
) -> None:
    architecture = "llama" if window is None else "mistral"
    pack, _ = tiny_pair(tmp_path, architecture=architecture, window=window)
    weights = PackWeights(pack)
    ids = torch.randint(0, pack.spec.vocab, (2, 15), generator=Generator().manual_seed(0))
    rows = weights.table("embed")[ids]
    kept: list[Pair] = []
    with torch.no_grad():
        whole = decode(pack.spec, rows, weights.plain, weights.vector)
        first = decode(pack.spec, rows[:, :9], weights.plain, weights.vector, kept=kept)
        assert len(kept) == pack.spec.layers
        rest = decode(pack.spec, rows[:, 9:], weights.plain, weights.vector, past=kept)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-4, atol=1e-5)


def test_what_came_before_is_seen_from_everywhere() -> None:
    mask = visible(2, None, 3)
    assert mask is not None
    assert mask.tolist() == [[True, True, True, True, False], [True] * 5]
    near = visible(2, 3, 3)
    assert near is not None
    assert near.tolist() == [[False, True, True, True, False], [False, False, True, True, True]]
