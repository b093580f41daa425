"""XQuant in its three forms: exact without rounding, right in bytes, and the paper's points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError
from loci.methods import catalogue
from loci.methods.kv import xquant
from loci.methods.kv.base import EncodeLayers, LayerGroup
from loci.methods.kv.kivi import Kivi
from loci.methods.kv.store_plan import predict_store
from loci.methods.kv.xquant import XQuant, XQuantCL, XQuantGL
from loci.nn import grid
from loci.nn.kv import KVBlock
from loci.run import hf
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.testing.kv import Text, low_rank, prepared, read, spec_of, store_of
from loci.testing.models import tiny_pair

SPEC = spec_of(layers=6, kv_heads=1, heads=2, head_dim=32)  # inputs as wide as keys and values
PLAIN = {"dtype": "float32"}


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep numbers as they are, where they would be rounded."""

    def rounded(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
        shape = list(x.shape)
        shape[dim] = 1
        zero, one = torch.zeros(shape), torch.ones(shape)
        return x, torch.cat([zero, one], dim)

    monkeypatch.setattr(grid, "rounded", rounded)
    monkeypatch.setattr(grid, "pack_rows", lambda codes, bits: codes)
    monkeypatch.setattr(grid, "unpack_rows", lambda packed, bits, width: packed.clone())


def blocks_of(tokens: int = 128, seed: int = 0) -> list[KVBlock]:
    """Return keys, values and hidden states of all layers."""
    keys, values = low_rank(SPEC, tokens, seed=seed)
    places = torch.arange(tokens)[None]
    found = []
    for layer in range(SPEC.layers):
        both = torch.cat([keys[layer], values[layer]], 1).transpose(1, 2).flatten(2)
        weight = prepared(XQuant(), SPEC).tensors["weights"][layer]
        hidden = both @ torch.linalg.pinv(weight.double()).t().float()
        found.append(KVBlock(keys[layer], values[layer], places, hidden))
    return found


def coded(method: EncodeLayers, blocks: list[KVBlock]) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of all layers as they come back."""
    size = SPEC.layers if method.group_layers is None else 1
    shared = dict(method.shared(SPEC, prepared(method, SPEC)))
    found = []
    for first in range(0, SPEC.layers, size):
        group = LayerGroup(spec=SPEC, layers=range(first, first + size), shared=shared)
        rows, bases = method.encode(blocks[first : first + size], group)
        carried = torch.zeros(1, blocks[0].keys.shape[2], SPEC.hidden)
        for layer in group.layers:
            found.append(method.decode(rows, bases, layer, group, carried))
    return found


def lost(method: EncodeLayers, blocks: list[KVBlock], first: int = 0) -> float:
    """Return the mean squared error of keys and values, from a layer on."""
    total = 0.0
    for block, (keys, values) in list(zip(blocks, coded(method, blocks), strict=True))[first:]:
        total += float(
            (keys - block.keys).square().mean() + (values - block.values).square().mean()
        )
    return total


@pytest.mark.parametrize(
    "method",
    [
        XQuant(**PLAIN),
        XQuantGL(**PLAIN),
        XQuantCL(**PLAIN),
        XQuantCL(gain="folded", base_layers=1, **PLAIN),
        XQuantCL(base_layers=9, **PLAIN),
    ],
    ids=repr,
)
def test_without_rounding_nothing_is_lost(method: EncodeLayers, unrounded: None) -> None:
    blocks = blocks_of()
    for block, (keys, values) in zip(blocks, coded(method, blocks), strict=True):
        assert float((keys - block.keys).abs().max()) < 1e-3
        assert float((values - block.values).abs().max()) < 1e-3


def test_grouped_queries_lose_nothing_without_rounding(unrounded: None) -> None:
    # 3 KV heads of 16 channels: inputs of 64 are narrower than 96, as in multi-head models.
    for heads, size in ((3, 16), (1, 16)):
        spec = spec_of(layers=4, kv_heads=heads, heads=heads, head_dim=size)
        keys, values = low_rank(spec, 128)
        for method in (XQuantGL(**PLAIN), XQuantCL(**PLAIN)):
            layers = range(4)
            shared = dict(method.shared(spec, prepared(method, spec)))
            blocks = [
                KVBlock(k, v, torch.arange(128)[None]) for k, v in zip(keys, values, strict=True)
            ]
            carried = torch.zeros(1, 128, spec.hidden)
            for layer in layers:
                own = layers if method.group_layers is None else range(layer, layer + 1)
                group = LayerGroup(spec=spec, layers=own, shared=shared)
                rows, bases = method.encode([blocks[i] for i in own], group)
                k, v = method.decode(rows, bases, layer, group, carried)
                assert float((k - keys[layer]).abs().max()) < 2e-3
                assert float((v - values[layer]).abs().max()) < 2e-3


def test_by_hand() -> None:
    # One input of four numbers, 0 to 3, in two bits and one group: it comes back as it is.
    hidden = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])
    block = KVBlock(hidden[:, None], hidden[:, None], torch.zeros(1, 1), hidden)
    spec = spec_of(layers=1, kv_heads=1, heads=1, head_dim=2)
    group = LayerGroup(spec=replace(spec, hidden=4), layers=range(1))
    rows, _ = XQuant(bits=2, group=8).encode([block], group)
    assert rows["codes"].tolist() == [[[0b11100100]]] and rows["grid"].tolist() == [[[0, 1]]]
    weights = torch.eye(4).flip(0)[None]
    group = replace(group, shared={"weights": weights})
    keys, values = XQuant(bits=2, group=8).decode(rows, {}, 0, group, None)
    assert keys.tolist() == [[[[3, 2]]]] and values.tolist() == [[[[1, 0]]]]
    assert [xquant._share(width, 128) for width in (576, 192, 96, 7)] == [96, 96, 96, 7]


def test_differences_need_fewer_bits_than_layers() -> None:
    # The paper's point: inputs change little from layer to layer.
    blocks = blocks_of()
    for bits in (2, 3):
        through = lost(XQuantCL(bits=bits, base_bits=8, base_layers=1), blocks, 1)
        alone = lost(XQuantCL(bits=bits, base_bits=bits, base_layers=6), blocks, 1)
        assert through < 0.2 * alone


def test_errors_do_not_add_up_over_layers() -> None:
    blocks = blocks_of()
    found = coded(XQuantCL(bits=4), blocks)
    off = [
        float((k - b.keys).norm() / b.keys.norm()) for b, (k, _) in zip(blocks, found, strict=True)
    ]
    assert off[5] < 2 * off[3]


def test_rounded_by_channel_no_basis_loses_less_than_another() -> None:
    # What a channel loses goes with its variance, and their sum is the same in every orthonormal
    # basis: at equal bits for all channels, keys lose what KIVI loses.
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(32, 32, generator=draw)
    ours = theirs = 0.0
    method, kivi = XQuantGL(bits=4, group=32), Kivi(bits=4, group=32, waiting=4)
    blocks = [
        KVBlock(torch.randn(1, 1, 128, 32, generator=draw) @ mix, b.values, b.positions)
        for b in blocks_of()
    ]
    for block, (keys, _) in zip(blocks, coded(method, blocks), strict=True):
        back, _ = kivi.decode(kivi.encode(block, {}), {}, 32)
        ours += float((keys - block.keys).square().sum())
        theirs += float((back - block.keys).square().sum())
    assert ours == pytest.approx(theirs, rel=0.1)


def test_bytes_of_plain_are_half_and_bits() -> None:
    # b bits and a grid of 2 x 16 bits for 64 channels; full is 2 x 16 bits for as many.
    spec = spec_of(layers=6, kv_heads=4, heads=4, head_dim=16)  # multi-head: as wide as its input
    for bits in (8, 4, 3, 2):
        one, two = (
            predict_store(spec, (XQuant(bits=bits),), max_tokens=n, chunk=16) for n in (1000, 9000)
        )
        ours = (two - one) / 8000 - 4  # positions
        assert spec.kv_bytes(1) / ours == pytest.approx(2 * 16 / (bits + 32 / 64), rel=0.03)


@pytest.mark.parametrize(
    "method", [XQuant(bits=8), XQuantGL(bits=8), XQuantCL(bits=8, base_bits=8)]
)
def test_eight_bits_answer_as_nothing_rounded(method: EncodeLayers) -> None:
    text = Text.shared(SPEC, 400)
    store = store_of(KVStore, (method,), max_tokens=400, chunk=64, spec=SPEC)
    plain = store_of(KVStore, (), max_tokens=400, chunk=64, spec=SPEC)
    got, want = read(store, text)[0], read(plain, text)[0]
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    "chain",
    [
        "xquant(bits=8,tail=4)",
        "xquant-gl(bits=8,group=8)",
        "xquant-cl(bits=8,base_bits=8,group=8)",
        "xquant-cl(bits=8,base_bits=8,group=8,gain=folded)",
    ],
)
def test_a_real_model_answers_alike_in_both_ways_to_run(chain: str, tmp_path: Path) -> None:
    pack, model = tiny_pair(tmp_path, bits=None, kv_heads=4, layers=3)
    ids = torch.randint(0, 256, (1, 60), generator=torch.Generator().manual_seed(1))
    lab = Lab(pack, context=64, chunk=16)
    try:
        method = catalogue.find(chain, "kv")
        store, plain = lab.store((method,)), lab.store()
        found = []
        for held in (store, plain):
            with lab.reading(held) as prefiller:
                parts = [
                    prefiller.runner.forward(part, held, logits="all") for part in ids.split(12, 1)
                ]
                found.append(torch.cat([part for part in parts if part is not None], 1))
        torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.1)
        made = hf.prepare(model, method, ids)
        with hf.cache(model, chain, artefacts=[made], context=64) as cache, torch.inference_mode():
            parts = [hf.forward_with(model, part, cache).logits for part in ids.split(12, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), found[0], rtol=1e-2, atol=1e-2)
    finally:
        lab.close()


def test_models_that_do_not_fit_are_refused() -> None:
    narrow = spec_of(kv_heads=1, heads=4, head_dim=8)
    with pytest.raises(MethodError, match=r"64 numbers, its keys and values 16") as caught:
        store_of(KVStore, (XQuant(),), spec=narrow)
    assert "xquant-gl" in str(caught.value)
    for change, says in (({"attention_bias": True}, "a bias"), ({"qk_norm": True}, "a norm")):
        for method in (XQuant(), XQuantGL(), XQuantCL()):
            with pytest.raises(MethodError, match=says):
                predict_store(replace(SPEC, **change), (method,), max_tokens=99)
