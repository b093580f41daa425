"""CSKV against the decompositions it replaces, and against nothing shrunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import FormatError, MethodError, ParameterError
from loci.methods.kv.base import LayerGroup
from loci.methods.kv.chain import check_chain
from loci.methods.kv.cskv import Cskv, CskvQat
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import predict_store
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing.kv import FakeLab, Text, prepared, read, spec_of, store_of

SPEC = spec_of(layers=3, kv_heads=2, head_dim=32)
WIDTH, HIDDEN = 64, 64


class LinearLab(FakeLab):
    """Keys are x W of inputs that vary together, and values x V; no bias, unless asked for."""

    def __init__(self, spec: ModelSpec, bias: float = 0.0) -> None:
        super().__init__(spec)
        draw = torch.Generator().manual_seed(3)
        self.mix_dd = torch.randn(HIDDEN, HIDDEN, generator=draw)
        self.mix_dd *= torch.linspace(0, 4, HIDDEN).neg().exp()  # few directions matter
        self.bias = bias

    def inputs(self, seed: int) -> Tensor:
        """Return hidden states [T, d]."""
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(300, HIDDEN, generator=draw) @ self.mix_dd.t()

    def outputs(self, x_Td: Tensor, layer: int, tap: str) -> Tensor:
        """Return keys or values [T, w]."""
        weight = self.weights(f"layer.{layer}.{'k_proj' if tap == 'keys' else 'v_proj'}")
        return x_Td @ weight.t() + self.bias

    @contextmanager
    def activations(
        self, texts: Sequence[str], taps: Sequence[str]
    ) -> Iterator[Iterator[tuple[str, int, Tensor]]]:
        """Lend keys and values of all texts."""

        def walk() -> Iterator[tuple[str, int, Tensor]]:
            for text in texts:
                x_Td = self.inputs(int(text))
                for layer in range(self.spec.layers):
                    for tap in taps:
                        flat = self.outputs(x_Td, layer, tap)
                        yield tap, layer, flat.unflatten(1, (2, -1)).transpose(0, 1)[None]

        yield walk()


def loss(y_Tw: Tensor, ways_rw: Tensor, mean_w: Tensor) -> float:
    off = (y_Tw - mean_w) @ ways_rw.t() @ ways_rw + mean_w - y_Tw
    return float(off.square().mean())


def by_weights(y: Tensor, x: Tensor, weight: Tensor, rank: int, scale: Tensor) -> float:
    """Return the loss of a truncated decomposition of diag(scale) W^T."""
    u, s, v = torch.linalg.svd(scale[:, None] * weight.t(), full_matrices=False)
    found = (x / scale) @ (u[:, :rank] * s[:rank]) @ v[:rank]
    return float((found - y).square().mean())


def test_the_closed_form_loses_least() -> None:
    # A theorem on the calibration text: nothing of this rank loses less. ASVD scales by the inputs.
    lab, rank = LinearLab(SPEC), 16
    made = Cskv().prepare(lab)
    x = torch.cat([lab.inputs(int(text)) for text in lab.texts()])
    scale = (x.abs().mean(0) + 1e-6).sqrt()
    for layer in range(3):
        for tap, name in (("keys", "k_proj"), ("values", "v_proj")):
            y, weight = lab.outputs(x, layer, tap), lab.weights(f"layer.{layer}.{name}")
            ours = loss(y, made.tensors[tap][layer, :rank], made.tensors[f"{tap}_mean"][layer])
            asvd = by_weights(y, x, weight, rank, scale)
            svd = by_weights(y, x, weight, rank, torch.ones(HIDDEN))
            assert ours < asvd < svd


def test_a_bias_costs_no_direction() -> None:
    lab = LinearLab(SPEC, bias=50.0)
    made, plain = Cskv().prepare(lab), Cskv().prepare(LinearLab(SPEC))
    assert torch.allclose(made.tensors["keys_mean"], plain.tensors["keys_mean"] + 50, atol=1e-3)
    torch.testing.assert_close(
        made.tensors["keys_energy"], plain.tensors["keys_energy"], rtol=1e-3, atol=1e-4
    )


def test_all_directions_are_exact() -> None:
    method = Cskv(density_k=1.0, density_v=1.0, window=7, dtype="float32")
    text = Text.of(SPEC, 120)
    store = store_of(KVStore, (method,), max_tokens=120, spec=SPEC)
    plain = store_of(KVStore, (), max_tokens=120, spec=SPEC)
    got, want = read(store, text)[0], read(plain, text)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    ours, theirs = store.view(1).dense(), plain.view(1).dense()
    assert float((ours.keys - theirs.keys).abs().max()) < 1e-4


def test_by_hand() -> None:
    # One head of two channels; the direction is (0.6, 0.8) and the mean (1, 1).
    spec = spec_of(layers=1, kv_heads=1, heads=1, head_dim=2)
    way, mean = torch.tensor([[[0.6, 0.8]]]), torch.ones(1, 2)
    shared = {"keys": way, "values": way, "keys_mean": mean, "values_mean": mean}
    keys = torch.tensor([[[[1.6, 1.8], [1.8, 0.4]]]])  # on the direction, and across it
    group = LayerGroup(spec=spec, layers=range(1), shared=shared)
    rows, bases = Cskv().encode([KVBlock(keys, keys, torch.arange(2)[None])], group)
    torch.testing.assert_close(rows["keys"], torch.tensor([[[1.0], [0.0]]]))
    back, _ = Cskv().decode(rows, bases, 0, group, None)
    torch.testing.assert_close(back, torch.tensor([[[[1.6, 1.8], [1.0, 1.0]]]]))


def test_the_window_never_empties() -> None:
    method = Cskv(window=8)
    store = store_of(KVStore, (method,), max_tokens=100, spec=SPEC)
    text = Text.shared(SPEC, 100)
    for place in range(100):
        read(store, text, place, place + 1)
        exact = store.view(0).dense().keys[:, :, -min(8, place + 1) :]
        want = text.keys_LBKTD[0][:, :, max(0, place - 7) : place + 1]
        assert torch.equal(exact, want)


def test_one_preparation_serves_all_densities() -> None:
    made = prepared(Cskv(), SPEC)
    for density in (0.1, 0.5, 1.0):
        method = Cskv(density_k=density, density_v=density)
        KVStore(SPEC, (method,), max_tokens=50, artefacts={"cskv": made})
    with pytest.raises(MethodError, match="prepare"):
        KVStore(SPEC, (Cskv(),), max_tokens=50)
    cut = FakeLab(SPEC).artefact("cskv", {"keys": made.tensors["keys"]})
    with pytest.raises(FormatError, match="lacks values"):
        KVStore(SPEC, (Cskv(),), max_tokens=50, artefacts={"cskv": cut})


def test_bytes_are_density_and_directions() -> None:
    method = Cskv(density_k=0.25, density_v=0.5)
    one, two = (predict_store(SPEC, (method,), max_tokens=n, chunk=16) for n in (1000, 2024))
    # 16 + 32 numbers of two bytes for each layer and token, and its position; 32 tokens stay out.
    assert two - one == 3 * 1024 * (16 + 32) * 2 + 1024 * 4


def test_tokens_may_leave_by_layer_but_not_by_head() -> None:
    chain = (StreamingLLM(sinks=2, window=40), Cskv(window=8))
    store = store_of(KVStore, chain, max_tokens=200, spec=SPEC)
    text = Text.shared(SPEC, 200)
    read(store, text)
    block = store.view(2).dense()
    places = block.positions[0, 0]
    assert len(places) < 80
    want = text.keys_LBKTD[2][:, :, places]
    assert float((block.keys - want).norm() / want.norm()) < 0.2
    with pytest.raises(MethodError, match="evicts by head"):
        check_chain((SnapKV(), Cskv()))


def test_bad_shares_are_refused() -> None:
    for bad in (0.0, 1.01, -1):
        with pytest.raises(ParameterError, match=r"cskv.density_k must be"):
            Cskv(density_k=bad)


def facts_of(made: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = made.facts
    return found


def test_what_was_read_is_noted() -> None:
    assert facts_of(Cskv().prepare(FakeLab(SPEC))) == {"tokens": 800, "texts": 4}


def test_the_first_tokens_may_stay_exact() -> None:
    text = Text.of(SPEC, 90)
    store = store_of(KVStore, (Cskv(density_k=0.1, sinks=3, window=8),), max_tokens=90, spec=SPEC)
    read(store, text)
    block = store.view(1).dense()
    assert torch.equal(block.keys[:, :, :3], text.keys_LBKTD[1][:, :, :3])
    assert not torch.equal(block.keys[:, :, 3], text.keys_LBKTD[1][:, :, 3])


# -- coordinates in few bits --------------------------------------------------------------------


def lost(method: CskvQat, lab: LinearLab) -> float:
    """Return the share of the variance that is lost of a text nobody trained on."""
    made = method.prepare(lab)
    group = LayerGroup(spec=SPEC, layers=range(1, 2), shared=made.tensors)
    x_Td = lab.inputs(77)[:288]
    off = whole = 0.0
    keys, values = (
        lab.outputs(x_Td, 1, tap).unflatten(1, (2, -1)).transpose(0, 1)[None]
        for tap in ("keys", "values")
    )
    rows, bases = method.encode([KVBlock(keys, values, torch.arange(288)[None])], group)
    for found, wanted in zip(
        method.decode(rows, bases, 1, group, None), (keys, values), strict=True
    ):
        off += float((found - wanted).square().sum())
        whole += float((wanted - wanted.mean(2, keepdim=True)).square().sum())
    return off / whole


@pytest.mark.parametrize("bits", [2, 4])
def test_training_with_rounding_loses_less_than_rounding_the_closed_form(bits: int) -> None:
    lab = LinearLab(SPEC)
    plain = CskvQat(bits=bits, steps=0)
    trained = CskvQat(bits=bits, steps=120)
    assert lost(trained, lab) < (0.9 if bits == 2 else 1.0) * lost(plain, lab)
    facts = facts_of(trained.prepare(lab))
    assert facts["keys_lost"] <= facts["keys_lost_before"]
    assert facts["values_lost"] <= facts["values_lost_before"]


def test_eight_bits_are_the_closed_form() -> None:
    # The limit: so fine a grid that nothing is left to train, and cskv is what remains.
    text = Text.shared(SPEC, 130)
    spec = {"max_tokens": 130, "spec": SPEC}
    fine = store_of(KVStore, (CskvQat(bits=8, steps=0),), **spec)
    plain = store_of(KVStore, (Cskv(),), **spec)
    for store in (fine, plain):
        read(store, text)
    ours, theirs = fine.view(1).dense(), plain.view(1).dense()
    assert float((ours.keys - theirs.keys).norm()) < 0.02 * float(theirs.keys.norm())


def test_rounded_bytes_are_codes_and_grids() -> None:
    method = CskvQat(density_k=0.5, density_v=0.25, bits=4)
    one, two = (predict_store(SPEC, (method,), max_tokens=n, chunk=16) for n in (1024, 2048))
    keys, values = 32 * 4 // 8 + 2 * 2 * 32 // 32, 16 * 4 // 8 + 2 * 2  # codes and grids of a token
    assert two - one == 1024 * (3 * (keys + values) + 4)


def test_the_slope_passes_where_the_grid_reaches() -> None:
    from loci.nn.fake_quant import RoundedCodes

    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for codes in (RoundedCodes(bits=3, group=16), RoundedCodes(bits=3)):
        out = codes.fake(x)
        assert out.shape == x.shape and not torch.equal(out, x)
        out.sum().backward()
        assert x.grad is not None and (x.grad == 1).all()  # grids reach from least to largest
        x.grad = None
