"""Cache-to-Cache: the layer map, the gates, several sharers, rotated and plain keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError, ParameterError
from loci.methods.kv.c2c import C2c
from loci.methods.kv.chain import check_chain
from loci.methods.kv.fuse import Cached
from loci.nn.rope import Rope, rotate
from loci.testing import kv_fusers
from loci.testing.kv_fusers import RECEIVER, SHARER, TOKENS, Pairs, is_same, pairs_of, sharer

PLAIN, ROTATED = C2c(hidden=10), C2c(hidden=10, keys="rotated")
HELD = kv_fusers.cached(RECEIVER, 1)
MAP = PLAIN.layer_map(RECEIVER, SHARER)
OPEN = torch.ones(RECEIVER.layers, 2)


def stacked(pairs: Pairs) -> Tensor:
    return torch.stack([torch.stack(pair) for pair in pairs])


@pytest.mark.parametrize("method", [PLAIN, ROTATED, replace(PLAIN, several="sequential")])
def test_keeps_the_rules_of_methods_that_fuse(method: C2c) -> None:
    kv_fusers.check_fuser(method)


def test_layers_stand_beside_each_other_from_the_last() -> None:
    assert MAP == (1, 2, 3)
    assert PLAIN.layer_map(SHARER, RECEIVER) == (0, 0, 1, 2)  # clamped at the first
    assert PLAIN.layer_map(RECEIVER, RECEIVER) == (0, 1, 2)


def test_the_change_is_added_and_keys_are_turned_by_the_receiver() -> None:
    # Values: v + gate w p. Keys: what is added was found for plain keys, and is turned.
    one = sharer(PLAIN)
    whole = stacked(PLAIN.fuse(HELD, [one], [MAP]))
    torch.testing.assert_close(whole, stacked(pairs_of(HELD)) + PLAIN.added(HELD, one, MAP, OPEN))
    half = PLAIN.added(HELD, one, MAP, OPEN / 2)
    torch.testing.assert_close(2 * half, PLAIN.added(HELD, one, MAP, OPEN))


@pytest.mark.parametrize("method", [PLAIN, ROTATED])
def test_one_gate_opens_one_layers_keys_or_values(method: C2c) -> None:
    one, gate_L2 = sharer(method), -OPEN
    gate_L2[1, 0] = 1.0
    ajar = replace(one, weights={**one.weights, "gate": gate_L2})
    for layer, (keys, values) in enumerate(method.fuse(HELD, [ajar], [MAP])):
        assert torch.equal(values, HELD.blocks[layer].values)
        assert torch.equal(keys, HELD.blocks[layer].keys) == (layer != 1)


def test_plain_keys_do_not_depend_on_where_the_prompt_stands() -> None:
    # The same text further back: keys of both models are turned on. What is added to plain keys
    # must be the same, turned on as well; with rotated keys it is not.
    shift = torch.full((2, TOKENS), 9)

    def moved(held: Cached) -> Cached:
        turn = Rope(held.spec).table(shift)
        blocks = [
            replace(b, keys=rotate(b.keys, *turn), positions=b.positions + shift)
            for b in held.blocks
        ]
        return replace(held, blocks=blocks)

    for method, does in ((PLAIN, True), (ROTATED, False)):
        theirs = sharer(method)
        here = method.added(HELD, theirs, MAP, OPEN)
        there = method.added(moved(HELD), replace(theirs, blocks=moved(theirs).blocks), MAP, OPEN)
        turned = rotate(here[:, 0], *Rope(RECEIVER).table(shift))
        assert torch.allclose(there[:, 0], turned, atol=1e-4) == does
        torch.testing.assert_close(there[:, 1], here[:, 1])  # values are never turned


def test_several_sharers_side_by_side_or_one_after_another() -> None:
    first, second = sharer(PLAIN, 0), sharer(PLAIN, 1)
    added = sum(PLAIN.added(HELD, one, MAP, OPEN) for one in (first, second))
    parallel = stacked(PLAIN.fuse(HELD, [first, second], [MAP, MAP]))
    torch.testing.assert_close(parallel, stacked(pairs_of(HELD)) + added)
    torch.testing.assert_close(parallel, stacked(PLAIN.fuse(HELD, [second, first], [MAP, MAP])))

    method = replace(PLAIN, several="sequential")
    chained = method.fuse(HELD, [first, second], [MAP, MAP])
    half = method.fuse(HELD, [first], [MAP])
    middle = [
        replace(block, keys=k, values=v) for block, (k, v) in zip(HELD.blocks, half, strict=True)
    ]
    assert is_same(chained, method.fuse(replace(HELD, blocks=middle), [second], [MAP]))
    assert not torch.allclose(stacked(chained), parallel, atol=1e-3)


def test_it_is_no_link_of_a_chain() -> None:
    with pytest.raises(MethodError, match="c2c is no method for a KV cache"):
        check_chain((C2c(),))
    with pytest.raises(ParameterError, match=r"c2c\.keys must be one of plain, rotated"):
        C2c(keys="turned")


def test_how_several_go_together_needs_no_other_fuser() -> None:
    assert PLAIN.preparation == replace(PLAIN, several="sequential").preparation
    assert PLAIN.preparation != ROTATED.preparation
