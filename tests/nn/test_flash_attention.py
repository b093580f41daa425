"""FlashAttention: outputs, gradients and what moves, for every back end that is here."""

import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.nn import native
from loci.nn.attend import merge
from loci.nn.fast_memory import FastMemory
from loci.nn.flash_attention import (
    Mask,
    Tiles,
    flash_attention,
    reference,
    visited,
    words_backward,
    words_forward,
)


def tensors(
    heads: int, kv_heads: int, queries: int, keys: int, size: int, batch: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    q = torch.randn(batch, heads, queries, size, generator=generator)
    k, v = torch.randn(2, batch, kv_heads, keys, size, generator=generator)
    return q, k, v


def check(q: Tensor, k: Tensor, v: Tensor, mask: Mask, tiles: Tiles, backend: str | None) -> None:
    o, lse = flash_attention(q, k, v, mask=mask, tiles=tiles, backend=backend)
    wide = [x.double() for x in (q, k, v)]
    expected, expected_lse = reference(*wide, mask=mask, tiles=tiles)
    assert (o - expected).abs().max() <= 4e-6
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), expected_lse, rtol=2e-6, atol=4e-6)


MASKS = [
    Mask(),
    Mask(causal=True),
    Mask(causal=True, window=7),
    Mask(causal=True, window=5, sinks=3),
]


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    queries=st.integers(1, 40),
    past=st.integers(-10, 50),
    size=st.sampled_from([4, 16, 20]),
    mask=st.sampled_from(MASKS),
    tile=st.sampled_from([(1, 1), (3, 5), (16, 8), (64, 128)]),
    seed=st.integers(0, 99),
)
def test_tiles_equal_plain_attention(
    heads: tuple[int, int],
    queries: int,
    past: int,
    size: int,
    mask: Mask,
    tile: tuple[int, int],
    seed: int,
) -> None:
    keys = max(1, queries + past)  # fewer keys than queries too: the first of them see nothing
    q, k, v = tensors(*heads, queries, keys, size, seed=seed)
    check(q, k, v, mask, Tiles(queries=tile[0], keys=tile[1]), "tiled")
    if mask.sinks == 0 and keys >= queries and native.available():
        check(q, k, v, mask, Tiles(), "native")


def test_the_fastest_back_end_is_taken_unless_asked() -> None:
    q, k, v = tensors(6, 2, 100, 130, 64, batch=2)
    check(q, k, v, Mask(causal=True), Tiles(), None)
    sparse = Mask(blocks=torch.rand(2, 2, generator=Generator().manual_seed(0)) < 0.7)
    check(q, k, v, sparse, Tiles(), None)  # which only the tiles can do


def test_a_query_that_sees_nothing_weighs_nothing() -> None:
    q, k, v = tensors(2, 1, 5, 3, 8)
    o, lse = flash_attention(q, k, v, mask=Mask(causal=True))
    assert (o[:, :, :2] == 0).all() and (lse[:, :, :2] == -math.inf).all()
    assert lse[:, :, 2:].isfinite().all()


def test_no_keys_at_all() -> None:
    q, k, v = tensors(2, 1, 4, 0, 8)
    o, lse = flash_attention(q, k, v)
    assert (o == 0).all() and (lse == -math.inf).all()


@pytest.mark.parametrize("parts", [2, 7, 64])
def test_parts_of_the_keys_merge_into_the_whole(parts: int) -> None:
    q, k, v = tensors(4, 2, 9, 200, 16)
    whole, lse = flash_attention(q, k, v)
    total = None
    for keys, values in zip(k.chunk(parts, 2), v.chunk(parts, 2), strict=True):
        part = flash_attention(q, keys, values)
        total = part if total is None else merge(total, part)
    assert total is not None
    assert (total[0] - whole).abs().max() <= 1e-6
    assert (total[1] - lse).abs().max() <= 2e-6


@pytest.mark.parametrize(
    "mask", [*MASKS, Mask(blocks=torch.tensor([[1, 0], [1, 1], [0, 1]]).bool())]
)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_gradients(mask: Mask, heads: tuple[int, int]) -> None:
    tiles = Tiles(queries=10, keys=17)
    generator = Generator().manual_seed(5)
    plain = [x.double().requires_grad_() for x in tensors(*heads, 29, 33, 12)]
    ours = [x.detach().float().requires_grad_() for x in plain]
    weight = torch.randn(1, heads[0], 29, 12, generator=generator)
    (reference(*plain, mask=mask, tiles=tiles)[0] * weight).sum().backward()
    (flash_attention(*ours, mask=mask, tiles=tiles)[0] * weight).sum().backward()
    for found, expected in zip(ours, plain, strict=True):
        assert found.grad is not None and expected.grad is not None
        error = (found.grad - expected.grad).abs().max()
        assert error <= 1e-4 * expected.grad.abs().max()


def test_half_precision_adds_up_in_float32() -> None:
    q, k, v = (x.half() for x in tensors(4, 2, 33, 70, 16))
    o, lse = flash_attention(q, k, v, mask=Mask(causal=True))
    assert o.dtype == torch.float16 and lse.dtype == torch.float32
    expected, _ = reference(q.double(), k.double(), v.double(), mask=Mask(causal=True))
    assert (o - expected).abs().max() <= 2e-3


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 3]),
    queries=st.integers(1, 40),
    keys=st.integers(1, 60),
    mask=st.sampled_from(MASKS),
    tile=st.sampled_from([(1, 1), (3, 5), (16, 8), (64, 128)]),
)
def test_words_that_move_are_those_of_the_formula(
    groups: int, queries: int, keys: int, mask: Mask, tile: tuple[int, int]
) -> None:
    tiles, size = Tiles(queries=tile[0], keys=tile[1]), 8
    q, k, v = (x.requires_grad_() for x in tensors(2 * groups, 2, queries, keys, size))
    memory = FastMemory()
    o, _ = flash_attention(q, k, v, mask=mask, tiles=tiles, memory=memory)
    shape = (mask, tiles, queries, keys, size, groups)
    assert memory.moved == 2 * words_forward(*shape)  # two KV heads
    assert memory.held == 0
    o.sum().backward()
    assert memory.moved == 2 * (words_forward(*shape) + words_backward(*shape))
    assert memory.held == 0


def test_without_a_mask_the_formula_is_the_papers() -> None:
    tiles = Tiles(queries=16, keys=32)
    passes = math.ceil(100 / 16)
    found = words_forward(Mask(), tiles, 100, 200, 8)
    assert found == 2 * 100 * 8 + 100 + passes * 2 * 200 * 8


def test_tiles_fit_the_memory_they_ask_for() -> None:
    tiles = Tiles(queries=16, keys=32)
    q, k, v = tensors(6, 2, 100, 200, 8)
    need = tiles.words(8, groups=3)
    memory = FastMemory(need)
    flash_attention(q, k, v, tiles=tiles, memory=memory)
    assert memory.peak == need
    with pytest.raises(ParameterError, match="do not fit the fast memory"):
        flash_attention(q, k, v, tiles=tiles, memory=FastMemory(need - 1))


def test_tiles_that_the_block_mask_leaves_out_are_never_read() -> None:
    tiles = Tiles(queries=8, keys=8)
    blocks = torch.eye(4, dtype=torch.bool)
    q, k, v = tensors(1, 1, 32, 32, 8)
    dense, sparse = FastMemory(), FastMemory()
    flash_attention(q, k, v, tiles=tiles, memory=dense)
    flash_attention(q, k, v, tiles=tiles, mask=Mask(blocks=blocks), memory=sparse)
    assert (dense.loaded - 32 * 8) == 4 * (sparse.loaded - 32 * 8)
    poisoned = k.clone()
    poisoned[:, :, 24:] = math.nan  # only the last queries may notice
    o, _ = flash_attention(q, poisoned, v, tiles=tiles, mask=Mask(blocks=blocks))
    assert o[:, :, :24].isfinite().all() and o[:, :, 24:].isnan().all()
    assert len(list(visited(Mask(blocks=blocks), tiles, 32, 32))) == 4


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    tiles, peaks = Tiles(queries=16, keys=16), []
    for length in (64, 128, 256):
        memory = FastMemory()
        q, k, v = tensors(1, 1, length, length, 8)
        flash_attention(q, k, v, tiles=tiles, memory=memory)
        peaks.append(memory.peak)
    assert len(set(peaks)) == 1  # the tiles; output and log-sum-exp lie in slow memory


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_in_the_interpreter() -> None:
    # In a process of its own, because Triton decides about its interpreter when it is imported.
    program = """
import torch
from loci.nn.flash_attention import Mask, flash_attention, reference
torch.manual_seed(0)
for heads, kv_heads, queries, keys, size, mask in (
    (4, 2, 64, 128, 64, Mask()),
    (4, 1, 70, 70, 32, Mask(causal=True)),
    (2, 2, 33, 100, 20, Mask(causal=True)),
    (2, 1, 90, 90, 16, Mask(causal=True, window=13)),
    (2, 1, 9, 5, 16, Mask(causal=True)),
):
    q = torch.randn(2, heads, queries, size)
    k, v = torch.randn(2, 2, kv_heads, keys, size)
    o, lse = flash_attention(q, k, v, mask=mask, backend="triton")
    expected, expected_lse = reference(q.double(), k.double(), v.double(), mask=mask)
    assert (o - expected).abs().max() <= 4e-6, mask
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, env=environment, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = tensors(4, 2, 5, 6, 8)
    with pytest.raises(ParameterError, match="multiple of KV heads"):
        flash_attention(q[:, :3], k, v)
    with pytest.raises(ParameterError, match="do not fit together"):
        flash_attention(q, k, v[:, :, :4])
    with pytest.raises(ParameterError, match="one floating dtype"):
        flash_attention(q, k.half(), v)
    with pytest.raises(ParameterError, match="another number of tiles"):
        flash_attention(q, k, v, mask=Mask(blocks=torch.ones(2, 2, dtype=torch.bool)))
    with pytest.raises(ParameterError, match="unknown back end"):
        flash_attention(q, k, v, backend="cuda")
    with pytest.raises(ParameterError, match="cannot do this"):
        sinks = Mask(causal=True, window=2, sinks=1)
        flash_attention(q, k, v, mask=sinks, backend="native")
    with pytest.raises(ParameterError, match="a window looks back"):
        Mask(window=3)
    with pytest.raises(ParameterError, match="sinks widen a window"):
        Mask(causal=True, sinks=1)
    with pytest.raises(ParameterError, match="a tile has rows"):
        Tiles(queries=0)
