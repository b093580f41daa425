"""The fuser's network against the formula, token by token."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import silu

from loci.nn.fuser import DROPOUT, FuserShape, change, drawn_gate, settled_gate

SHAPE = FuserShape(layers=3, heads=2, head_dim=4, given=6, hidden=5)


def drawn(seed: int = 0) -> dict[str, Tensor]:
    """Return weights none of which is zero."""
    generator = Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) for n, s in SHAPE.table().items()}


def by_hand(
    weights: dict[str, Tensor], own_w: Tensor, given_s: Tensor, at: tuple[int, int]
) -> Tensor:
    """Return the change of one token's keys (or values) in one layer, before its gate."""
    part = {name: tensor[at] for name, tensor in weights.items()}

    def block(name: str, x: Tensor) -> Tensor:
        normed = x / (x.square().mean() + 1e-6).sqrt() * part[f"{name}.norm"]
        inner = silu(part[f"{name}.gate"] @ normed) * (part[f"{name}.up"] @ normed)
        return x + part[f"{name}.down"] @ inner

    h = block("common", part["in"] @ torch.cat([given_s, own_w]))
    says_K = torch.sigmoid(part["weight"] @ block("weigh", h))
    return (part["out"] @ block("change", h)) * says_K.repeat_interleave(SHAPE.head_dim)


def test_every_token_of_every_layer_is_the_formula() -> None:
    weights, generator = drawn(), Generator().manual_seed(1)
    own = torch.randn(3, 2, 7, 8, generator=generator)
    given = torch.randn(3, 2, 7, 6, generator=generator)
    gate = torch.rand(3, 2, generator=generator)
    found = change(weights, own, given, gate)
    for layer, part, token in ((0, 0, 0), (1, 1, 6), (2, 0, 3)):
        expected = by_hand(
            weights, own[layer, part, token], given[layer, part, token], (layer, part)
        )
        expected = expected * gate[layer, part]
        torch.testing.assert_close(found[layer, part, token], expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_fuser_changes_nothing_but_can_learn() -> None:
    weights = SHAPE.start(Generator().manual_seed(0))
    for tensor in weights.values():
        tensor.requires_grad_(True)
    own, given = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 6)
    found = change(weights, own, given, torch.ones(3, 2))
    assert (found == 0).all()
    (found - 1).square().sum().backward()
    grad = weights["out"].grad
    assert grad is not None and grad.abs().sum() > 0


def test_gates_are_drawn_fairly_and_settle() -> None:
    # A logistic draw is below 0 half of the time, so a gate at logit 0 is a fair coin; at logit x
    # it opens with chance sigmoid(x).
    generator = Generator().manual_seed(0)
    for logit in (0.0, 1.0, -2.0):
        gates = drawn_gate(torch.full((20_000,), logit), 1e-3, generator)
        assert abs(float(gates.mean()) - float(torch.sigmoid(torch.tensor(logit)))) < 0.015
        assert ((gates < 0.01) | (gates > 0.99)).float().mean() > 0.98
    soft = drawn_gate(torch.zeros(1000), 1.0, generator)
    assert ((soft > 0.05) & (soft < 0.95)).float().mean() > 0.8
    assert settled_gate(torch.tensor([[1.0, 0.0], [-1.0, 1e-9]])).tolist() == [[1, 0], [0, 1]]


def test_training_leaves_a_share_out_by_its_own_seed() -> None:
    weights = drawn()
    own, given, gate = torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 6), torch.ones(3, 2)
    whole = change(weights, own, given, gate)
    first, again, other = (
        change(weights, own, given, gate, generator=Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, whole) and 0 < DROPOUT < 1
