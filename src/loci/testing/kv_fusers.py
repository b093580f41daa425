"""What every method that fuses caches must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any  # no lab is needed to be refused

import torch
from torch import Generator, Tensor

from loci.core.spec import ModelSpec, Workload
from loci.errors import MethodError
from loci.methods.kv.fuse import Cached, Fuse, Sharer
from loci.nn.kv import KVBlock
from loci.testing.models import tiny_spec

RECEIVER = tiny_spec(layers=3, heads=4, kv_heads=2, head_dim=8)
SHARER = tiny_spec(layers=4, heads=2, kv_heads=1, head_dim=12, rope_theta=500.0)
ROWS, TOKENS = 2, 5

Pairs = Sequence[tuple[Tensor, Tensor]]


def cached(spec: ModelSpec, seed: int, first: int = 0) -> Cached:
    """Return random keys and values of a prompt that begins at a position."""
    generator = Generator().manual_seed(seed)
    shape = (ROWS, spec.kv_heads, TOKENS, spec.head_dim)
    places_BT = torch.arange(first, first + TOKENS).expand(ROWS, -1)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator)

    return Cached(
        spec=spec, blocks=[KVBlock(draw(), draw(), places_BT) for _ in range(spec.layers)]
    )


def sharer(
    method: Fuse, seed: int = 0, *, gate: float = 1.0, speaks: Tensor | None = None
) -> Sharer:
    """Return a sharer whose fuser has learned something, nobody knows what."""
    generator = Generator().manual_seed(100 + seed)
    weights = method.start(RECEIVER, SHARER, generator)
    for name, tensor in weights.items():
        noise = torch.randn(tensor.shape, generator=generator)
        weights[name] = tensor + noise / tensor.shape[-1] ** 0.5
    weights["gate"] = torch.full((RECEIVER.layers, 2), gate)
    held = cached(SHARER, 7 + seed)
    return Sharer(spec=SHARER, blocks=held.blocks, weights=weights, speaks=speaks)


def pairs_of(held: Cached) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values by layer."""
    return [(block.keys, block.values) for block in held.blocks]


def is_same(one: Pairs, other: Pairs) -> bool:
    """Return whether keys and values of all layers are equal, bit for bit."""
    both = zip(one, other, strict=True)
    return all(torch.equal(k, k_2) and torch.equal(v, v_2) for (k, v), (k_2, v_2) in both)


def check_fuser(method: Fuse) -> None:
    """Raise AssertionError unless the method keeps the rules of methods that fuse."""
    check_layer_map(method)
    check_weights(method)
    check_silence(method)
    check_rows(method)
    check_learns(method)
    check_two_models(method)


def check_layer_map(method: Fuse) -> None:
    """Raise AssertionError unless every layer has one of the sharer's beside it."""
    for one, other in ((RECEIVER, SHARER), (SHARER, RECEIVER)):
        layers = method.layer_map(one, other)
        assert len(layers) == one.layers
        assert all(0 <= at < other.layers for at in layers)


def check_weights(method: Fuse) -> None:
    """Raise AssertionError unless weights are those of the table, from a seed, as predicted."""
    one, again = (method.start(RECEIVER, SHARER, Generator().manual_seed(3)) for _ in range(2))
    assert {name: tuple(t.shape) for name, t in one.items()} == dict(method.table(RECEIVER, SHARER))
    assert all(torch.equal(one[name], again[name]) for name in one), "same seed, other weights"
    assert tuple(one["gate"].shape) == (RECEIVER.layers, 2)
    cost = method.predict(RECEIVER, Workload(context=64), 0)
    own = method.table(RECEIVER, RECEIVER)
    assert cost.held["dram"] == 4 * sum(map(prod, own.values()))


def check_silence(method: Fuse) -> None:
    """Raise AssertionError unless closed gates, silence and a fresh fuser leave every bit."""
    held, layers = cached(RECEIVER, 1), [method.layer_map(RECEIVER, SHARER)]
    own = pairs_of(held)
    silent = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    fresh = replace(
        sharer(method), weights=method.start(RECEIVER, SHARER, Generator().manual_seed(0))
    )
    for one in (sharer(method, gate=-1.0), sharer(method, speaks=silent), fresh):
        assert is_same(method.fuse(held, [one], layers), own), "what is silent was heard"
    assert is_same(method.fuse(held, [], []), own)
    open_ones = sharer(method)
    assert not is_same(method.fuse(held, [open_ones], layers), own), "nothing was heard"
    silent[0, 2] = True
    keys, values = method.fuse(held, [sharer(method, speaks=silent)], layers)[0]
    moved = (keys != own[0][0]).any(-1).any(1) | (values != own[0][1]).any(-1).any(1)
    assert moved.tolist() == silent.tolist(), "heard where nobody speaks"
    assert is_same(own, pairs_of(cached(RECEIVER, 1))), "what was given was changed"


def check_rows(method: Fuse) -> None:
    """Raise AssertionError if rows of a batch see each other."""
    held, one, layers = cached(RECEIVER, 1), sharer(method), [method.layer_map(RECEIVER, SHARER)]
    both = method.fuse(held, [one], layers)

    def row(of: Cached) -> list[KVBlock]:
        return [KVBlock(b.keys[1:], b.values[1:], b.positions[1:]) for b in of.blocks]

    alone = method.fuse(replace(held, blocks=row(held)), [replace(one, blocks=row(one))], layers)
    for pair, single in zip(both, alone, strict=True):
        for found, expected in zip(pair, single, strict=True):
            torch.testing.assert_close(found[1:], expected)


def check_learns(method: Fuse) -> None:
    """Raise AssertionError unless gradients reach weights and gates."""
    one = sharer(method)
    for tensor in one.weights.values():
        tensor.requires_grad_(True)
    gate_L2 = torch.full((RECEIVER.layers, 2), 0.5, requires_grad=True)
    layers = method.layer_map(RECEIVER, SHARER)
    drawn = Generator().manual_seed(0)
    method.added(cached(RECEIVER, 1), one, layers, gate_L2, drawn).square().sum().backward()
    assert gate_L2.grad is not None and (gate_L2.grad != 0).all()
    for name, tensor in one.weights.items():
        assert name == "gate" or tensor.grad is not None, f"{name} cannot learn"


def check_two_models(method: Fuse) -> None:
    """Raise AssertionError unless it is said that one model is not enough."""
    nothing: Any = None
    try:
        method.prepare(nothing)
    except MethodError as error:
        assert "trained for two models" in str(error), str(error)
    else:
        raise AssertionError("a fuser was prepared for one model")
