"""Attention by segments against attention with every score in memory."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loci.errors import ParameterError
from loci.nn import attend as attention
from loci.nn.attend import attend, attend_reference, attention_mass, merge
from loci.nn.kv import DenseSegment, KVView

SCALE = 0.3


def tensors(batch: int, heads: int, kv_heads: int, count: int, stored: int, seed: int = 0):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, count, 16, generator=generator)
    k = torch.randn(batch, kv_heads, stored, 16, generator=generator)
    v = torch.randn(batch, kv_heads, stored, 16, generator=generator)
    return q, k, v


def cut(k: Tensor, v: Tensor, cuts: list[int], new: int) -> KVView:
    """Return a view of everything before the last `new` tokens in parts, then those, causal."""
    stored = k.shape[2] - new
    edges = sorted({0, stored, *(c for c in cuts if c < stored)})
    parts = [DenseSegment(k[:, :, a:b], v[:, :, a:b], b - a) for a, b in pairwise(edges)]
    last = DenseSegment(k[:, :, stored:], v[:, :, stored:], new, causal=True)
    return KVView(0, k.shape[1], (*parts, last))


def causal(stored: int, count: int) -> Tensor:
    return torch.arange(stored) <= torch.arange(stored - count, stored)[:, None]


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.sampled_from([1, 3]),
    groups=st.integers(1, 3),
    count=st.integers(1, 9),
    past=st.integers(0, 30),
    cuts=st.lists(st.integers(1, 29), max_size=3),
    seed=st.integers(0, 99),
)
def test_parts_make_one_exact_softmax(
    batch: int, kv_heads: int, groups: int, count: int, past: int, cuts: list[int], seed: int
) -> None:
    q, k, v = tensors(batch, kv_heads * groups, kv_heads, count, past + count, seed)
    positions = torch.arange(past, past + count).expand(batch, -1)
    o, lse = attend(q, cut(k, v, cuts, count), positions=positions, scale=SCALE)
    visible = causal(past + count, count).expand(batch, kv_heads, -1, -1)
    want_o, want_lse = attend_reference(q, k, v, visible, SCALE)
    torch.testing.assert_close(o, want_o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)
    assert lse.dtype == torch.float32


@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("pads", [None, [0, 3]])
def test_goes_by_positions_windows_and_padding(
    window: int, pads: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "TILE_SCORES", 64)  # many tiles
    q, k, v = tensors(2, 4, 2, 6, 17)
    shift = torch.tensor(pads or [0, 0])
    slots = torch.arange(17) - shift[:, None]
    now = slots[:, 11:]
    pad = None if pads is None else shift
    o, lse = attend(q, cut(k, v, [5], 6), positions=now, scale=SCALE, window=window, pad=pad)
    age = now[:, :, None] - slots[:, None]
    visible = (age >= 0) & (age < window) & (slots >= 0)[:, None]
    want_o, want_lse = attend_reference(q, k, v, visible[:, None], SCALE)
    torch.testing.assert_close(o, want_o, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)


def test_nothing_visible_gives_zero_and_minus_infinity() -> None:
    q, k, v = tensors(1, 2, 1, 2, 3)
    hidden = torch.full((1, 1, 3), -1)
    view = KVView(0, 1, (DenseSegment(k, v, 3, positions_BKS=hidden),))
    for seen in (view, KVView(0, 1, ())):
        o, lse = attend(q, seen, positions=torch.tensor([[0, 1]]), scale=SCALE)
        assert (o == 0).all() and (lse == -math.inf).all()


def test_a_part_that_saw_nothing_weighs_nothing() -> None:
    o, lse = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)
    nothing = (torch.zeros_like(o), torch.full_like(lse, -math.inf))
    for merged in (merge((o, lse), nothing), merge(nothing, (o, lse))):
        torch.testing.assert_close(merged[0], o)
        torch.testing.assert_close(merged[1], lse)
    assert (merge(nothing, nothing)[0] == 0).all()


def test_the_fused_kernel_and_the_tiles_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(2, 6, 2, 7, 40)
    positions = torch.arange(33, 40).expand(2, -1)
    fused = attend(q, cut(k, v, [9], 7), positions=positions, scale=SCALE)
    monkeypatch.setattr(attention, "_FUSED", None)
    monkeypatch.setattr(attention, "TILE_SCORES", 50)
    tiled = attend(q, cut(k, v, [9], 7), positions=positions, scale=SCALE)
    for left, right in zip(fused, tiled, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_half_precision_keys_are_read_in_float32() -> None:
    q, k, v = tensors(1, 4, 2, 1, 2500)
    k, v = k.half(), v.half()
    view = KVView(0, 2, (DenseSegment(k, v, 2500),))
    o, _ = attend(q, view, positions=torch.tensor([[2499]]), scale=SCALE)
    want, _ = attend_reference(q, k, v, torch.ones(1, 1, 1, 2500, dtype=torch.bool), SCALE)
    torch.testing.assert_close(o, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("stored", [1, 7, 300])
def test_the_native_kernel_and_torch_agree(
    dtype: torch.dtype, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = tensors(2, 6, 2, 1, stored + 9)
    view = KVView(0, 2, (DenseSegment(k.to(dtype), v.to(dtype), stored),))
    positions = torch.full((2, 1), stored)
    ours = attend(q, view, positions=positions, scale=SCALE)
    monkeypatch.setattr(attention, "_NATIVE", False)
    theirs = attend(q, view, positions=positions, scale=SCALE)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_writes_where_it_is_told() -> None:
    q, k, v = tensors(1, 4, 2, 3, 9)
    out = torch.empty(1, 4, 3, 16)
    o, _ = attend(q, cut(k, v, [], 3), positions=torch.arange(6, 9)[None], scale=SCALE, out=out)
    assert o is out and out.isfinite().all()


def test_keys_in_another_channel_order_change_nothing() -> None:
    q, k, v = tensors(2, 4, 2, 1, 12)
    order = torch.stack(
        [torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    ).view(2, 2, 16)
    plain = KVView(0, 2, (DenseSegment(k, v, 12),))
    segment = DenseSegment(k.gather(-1, order[:, :, None].expand_as(k)), v, 12)
    segment.order = order.to(torch.int16)
    positions = torch.full((2, 1), 11)
    for left, right in zip(
        attend(q, plain, positions=positions, scale=SCALE),
        attend(q, KVView(0, 2, (segment,)), positions=positions, scale=SCALE),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(KVView(0, 2, (segment,)).dense().keys, k)


@pytest.mark.parametrize("at_once", [40, 2**20])  # tile by tile, and all scores together
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_mass_is_the_softmax_reduced(
    reduce: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "TILE_SCORES", at_once)
    q, k, v = tensors(2, 6, 2, 5, 14)
    view = cut(k, v, [4], 5)
    mass = attention_mass(
        q[:, :, -2:], view, positions=torch.tensor([[12, 13]] * 2), scale=SCALE, reduce=reduce
    )
    scores = q.view(2, 2, 3, 5, 16)[:, :, :, -2:] @ k[:, :, None].transpose(-1, -2) * SCALE
    weights = scores.masked_fill(~causal(14, 2), -math.inf).softmax(-1)
    want = weights.mean((2, 3)) if reduce == "mean" else weights.amax((2, 3))
    torch.testing.assert_close(mass, want, rtol=1e-5, atol=1e-6)


def test_heads_that_do_not_divide_are_refused() -> None:
    q, k, v = tensors(1, 3, 2, 1, 4)
    with pytest.raises(ParameterError, match="multiple of KV heads"):
        attend(q, cut(k, v, [], 1), positions=torch.tensor([[3]]), scale=SCALE)
