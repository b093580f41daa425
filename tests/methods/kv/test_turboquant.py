"""Turned codes: levels, scales, what stays exact, and the kernel that rounds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError, ParameterError
from loci.methods.kv import turboquant
from loci.methods.kv.keydiff import KeyDiff
from loci.methods.kv.turboquant import LEVELS, TurboQuant, nearest
from loci.nn import native
from loci.nn.grid import unpack_rows
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, read, spec_of, store_of

LOSS = {2: 0.1175, 3: 0.03454, 4: 0.009497}  # of a normal variable (Max 1960, table I)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block(x: Tensor) -> KVBlock:
    return KVBlock(x, x, torch.arange(x.shape[2]).view(1, 1, -1))


def none(x: Tensor) -> Mapping[str, Tensor]:
    zero = torch.zeros(x.shape[0], x.shape[1], x.shape[3])
    return {"key_mean": zero, "value_mean": zero}


def through(method: TurboQuant, x: Tensor, fixed: Mapping[str, Tensor] | None = None) -> Tensor:
    fixed = none(x) if fixed is None else fixed
    return method.decode(method.encode(block(x), fixed), fixed, x.shape[-1])[0]


def lost(x: Tensor, found: Tensor) -> float:
    return float((x - found).square().sum() / x.square().sum())


@pytest.mark.parametrize("bits", LEVELS)
def test_levels_are_the_means_of_what_is_rounded_to_them(bits: int) -> None:
    x = numbers(2_000_000)
    above = torch.tensor(LEVELS[bits])
    levels = torch.cat([-above.flip(0), above])
    at = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    means = torch.zeros(len(levels)).index_add_(0, at, x) / torch.bincount(at)
    torch.testing.assert_close(means, levels, rtol=0, atol=0.01)


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("kind", ["normal", "outliers", "one"])
def test_what_is_lost_is_that_of_a_normal_variable_whatever_came(bits: int, kind: str) -> None:
    x = numbers(1, 2, 400, 64)
    if kind == "outliers":
        x[..., [3, 40]] *= 30
    if kind == "one":
        x[..., 1:] = 0
    found = lost(x, through(TurboQuant(bits_k=bits), x))
    # A few large channels make few values, which levels serve even better.
    assert found == pytest.approx(LOSS[bits], rel=0.25) if kind == "normal" else found < LOSS[bits]


def test_a_common_mean_costs_nothing() -> None:
    x = numbers(1, 2, 200, 64) + 20 * numbers(1, 2, 1, 64, seed=1)
    method = TurboQuant(sinks=0)
    learned = {name: mean.half() for name, mean in method.learn(block(x)).items()}
    centred = x - learned["key_mean"].float().unsqueeze(2)
    error = (through(method, x, learned) - x).square().mean() / centred.square().mean()
    assert float(error) == pytest.approx(LOSS[4], rel=0.25)
    assert float((through(method, x) - x).square().mean()) > 50 * float(error)


def test_the_mean_is_that_of_tokens_that_are_rounded() -> None:
    x = numbers(2, 1, 12, 8)
    places = torch.arange(12).expand(2, 1, 12).clone()
    places[1] -= 7  # the second row is padded on the left
    found = TurboQuant(sinks=4).learn(KVBlock(x, 2 * x, places))
    torch.testing.assert_close(found["key_mean"][0, 0], x[0, 0, 4:].mean(0))
    torch.testing.assert_close(found["value_mean"][1, 0], 2 * x[1, 0, 11:].mean(0))
    places[1] = -1
    assert not TurboQuant().learn(KVBlock(x, x, places))["key_mean"][1].any()


@pytest.mark.skipif(not native.available(), reason="no kernels")
@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("size", [16, 64, 128])
def test_the_kernel_rounds_as_the_oracle(bits: int, size: int) -> None:
    x = numbers(300, size) * torch.logspace(-3, 3, 300)[:, None]
    x[7] = 0
    levels = turboquant._levels(bits)
    expected, expected_scales = nearest(x, bits)
    for level in native.levels():
        with native.force_simd(level):
            packed, scales = native.round_levels(x, levels, bits, turboquant.SIZES)
        codes = unpack_rows(packed, bits, size)
        # Sums in another order: of two sizes as good the other may be taken.
        same = (codes == expected.float()).all(1) & (scales == expected_scales[:, 0])
        assert same.float().mean() > 0.97
        ours = levels[codes.int()] * scales[:, None].float()
        theirs = levels[expected.int()] * expected_scales.float()
        off, least = ((y - x).square().sum(1) for y in (ours, theirs))
        assert bool((off <= 1.002 * least + 1e-20).all())
        assert not ours[7].any()


@pytest.mark.parametrize("size", [8, 24, 48])
def test_heads_that_are_no_power_of_two_are_turned_in_parts(size: int) -> None:
    method, x = TurboQuant(), numbers(1, 1, 60, size)
    assert lost(x, through(method, x)) < 2 * LOSS[4]
    assert (method.code_form(size) is None) == (size != 8)


def test_first_and_newest_tokens_stay_exact() -> None:
    text = Text.of(spec_of(), 150)
    store = store_of(KVStore, (TurboQuant(sinks=4, window=16, tail=8),))
    read(store, text)
    held, exact = store.view(1).dense().keys, text.keys_LBKTD[1]
    assert torch.equal(held[:, :, :4], exact[:, :, :4])
    assert torch.equal(held[:, :, -16:], exact[:, :, -16:])
    middle = slice(4, 150 - 24)
    assert 0.002 < lost(exact[:, :, middle], held[:, :, middle]) < 2 * LOSS[4]


def test_first_tokens_of_padded_rows_stay_exact() -> None:
    text = Text.of(spec_of(), 80)
    store = store_of(KVStore, (TurboQuant(sinks=4, window=8, tail=8),))
    read(store, text, pad=10)
    held, exact = store.view(0).dense().keys, text.keys_LBKTD[0]
    assert torch.equal(held[:, :, 10:14], exact[:, :, 10:14])
    assert not torch.equal(held[:, :, 14:20], exact[:, :, 14:20])


def test_first_tokens_are_exact_where_a_method_keeps_them() -> None:
    text = Text.of(spec_of(), 120)
    text.keys_LBKTD[:, :, :, 2] *= 5  # KeyDiff keeps what is like no other, by head
    text.keys_LBKTD[:, :, 0, :2] = text.keys_LBKTD[:, :, 0, 20:22]
    store = store_of(KVStore, (KeyDiff(), TurboQuant(sinks=4, window=4, tail=4)), keep=40)
    read(store, text)
    seen = 0
    for layer in range(store.spec.layers):
        held = store.view(layer).dense()
        for head in range(store.spec.kv_heads):
            for slot, place in enumerate(held.positions[0, head].tolist()):
                exact = text.keys_LBKTD[layer][0, head, place]
                if place < 120 - 8:  # the newest may wait uncoded
                    is_exact = torch.equal(held.keys[0, head, slot], exact)
                    assert is_exact == (place < 4)
                seen += place < 4
    assert seen > 0, "no first token was kept, so nothing was shown"


def test_bad_input() -> None:
    with pytest.raises(MethodError, match="cannot turn heads of 36"):
        TurboQuant().code_table(36)
    with pytest.raises(ParameterError, match="too large for a scale"):
        through(TurboQuant(), numbers(1, 1, 4, 64) * 1e9)
    with pytest.raises(ParameterError):
        TurboQuant(bits_k=5)
    zero = torch.zeros(1, 1, 3, 64)
    assert torch.equal(through(TurboQuant(), zero), zero)
