"""The native kernels against plain torch, with every set of instructions this machine has."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.kv.bfp import Bfp
from loci.nn import native
from loci.nn.attend import attend_reference
from loci.nn.kv import KVBlock
from loci.nn.packing import PackedWeight, dequantise_reference, pack_codes
from loci.nn.rope import Rope, rotate

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "")


def levels() -> list[str]:
    """Return the instruction sets this machine can run."""
    return native.levels() if native.available() else []


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.force_simd(request.param):
        yield request.param


def packed(
    out: int, groups: int, bits: int, group: int, *, symmetric: bool, wide: bool, seed: int = 0
) -> PackedWeight:
    """Return a random packed weight whose last row ends its storage."""
    generator = Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, groups * group), generator=generator, dtype=torch.uint8)
    dtype = torch.float32 if wide else torch.float16
    scales = (torch.rand(out, groups, generator=generator) + 0.5).to(dtype)
    mins = None if symmetric else torch.randn(out, groups, generator=generator).to(dtype)
    return PackedWeight(pack_codes(codes, bits), scales, mins, bits, group, (out, groups * group))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def check_product(found: Tensor, x: Tensor, weight: PackedWeight) -> None:
    dense = dequantise_reference(weight).double()
    scales = weight.scales.double().repeat_interleave(weight.group, dim=1)
    mins = weight.mins
    shift = 2 ** (weight.bits - 1) * scales
    if mins is not None:
        shift = mins.double().repeat_interleave(weight.group, dim=1).abs()
    # What rounding is measured against: code and minimum (or zero point) are added up separately.
    reach = x.double().abs() @ (dense.abs() + 2 * shift).t()
    assert ((found - x.double() @ dense.t()).abs() <= 2e-6 * reach + 1e-30).all()


SHAPES = {
    "out": st.integers(1, 40),
    "groups": st.integers(1, 9),
    "bits": st.integers(1, 8),
    "group": st.sampled_from([1, 3, 8, 12, 16, 24, 32, 40, 64, 96, 128, 192]),
    "symmetric": st.booleans(),
    "wide": st.booleans(),
}


def rounded_rows(x: Tensor) -> Tensor:
    """Return what rows of x are rounded to: whole numbers up to 127, every eight with a step."""
    eights = x.view(*x.shape[:-1], -1, 8)
    largest = eights.abs().amax(-1, keepdim=True)
    back = torch.where(largest > 0, 127 / largest, 0)
    return ((eights * back).round() * (largest / 127)).view(x.shape)


@given(
    out=st.integers(1, 40),
    eights=st.sampled_from([8, 16, 24, 40, 72]),
    bits=st.integers(1, 8),
    group=st.sampled_from([8, 16, 32, 64]),
    rows=st.integers(1, native.MAX_ROWS),
    symmetric=st.booleans(),
    wide=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_products_of_whole_numbers(
    out: int, eights: int, bits: int, group: int, rows: int, symmetric: bool, wide: bool
) -> None:
    weight = packed(out, 8 * eights // group, bits, group, symmetric=symmetric, wide=wide)
    other = packed(3, 8 * eights // group, 8, group, symmetric=True, wide=True)
    x = noise(rows, weight.shape[1])
    x[0, :8] = 0.0
    for name in levels():
        with native.force_simd(name):
            found, beside = torch.empty(rows, out), torch.empty(rows, 3)
            native.gemv_many(x, (weight, other), (found, beside), rounded=True)
            check_product(found, rounded_rows(x), weight)
            check_product(beside, rounded_rows(x), other)


@pytest.mark.parametrize("name", levels())
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, native.MAX_ROWS), **SHAPES)
def test_products_of_every_shape(
    name: str,
    rows: int,
    out: int,
    groups: int,
    bits: int,
    group: int,
    symmetric: bool,
    wide: bool,
) -> None:
    weight = packed(out, groups, bits, group, symmetric=symmetric, wide=wide)
    x, found = noise(rows, weight.shape[1]), torch.full((rows, out + 3), 9.0)
    with native.force_simd(name):
        native.gemv(x, weight, found[:, 1:-2])
    check_product(found[:, 1:-2], x, weight)
    assert (found[:, 0] == 9).all() and (found[:, -2:] == 9).all(), "wrote beside its columns"


@pytest.mark.parametrize("name", levels())
@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_dequantised_weights_are_equal_to_the_bit(
    name: str, out: int, groups: int, bits: int, group: int, symmetric: bool, wide: bool
) -> None:
    weight = packed(out, groups, bits, group, symmetric=symmetric, wide=wide)
    whole = dequantise_reference(weight)
    first, last = out // 3, out - out // 4
    found = torch.empty(last - first, weight.shape[1])
    ids = torch.tensor([out - 1, 0, out // 2, 0])
    picked = torch.empty(4, weight.shape[1])
    with native.force_simd(name):
        native.dequantise(weight, first, last, found)
        native.rows(weight, ids, picked)
    assert torch.equal(found, whole[first:last])
    assert torch.equal(picked, whole[ids])


@pytest.mark.parametrize("name", levels())
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    spare=st.integers(0, 9000),
    threads=st.integers(1, 3),
    offset=st.integers(0, 3),
    **SHAPES,
)
def test_products_of_many_rows(
    name: str,
    rows: int,
    spare: int,
    threads: int,
    offset: int,
    out: int,
    groups: int,
    bits: int,
    group: int,
    symmetric: bool,
    wide: bool,
) -> None:
    weight = packed(out, groups, bits, group, symmetric=symmetric, wide=wide)
    other = packed(7, groups, bits, group, symmetric=symmetric, wide=wide, seed=3)
    whole = noise(rows, weight.shape[1] + 5)
    x = whole[:, offset : offset + weight.shape[1]]
    found = torch.full((rows, out + 9), 9.0)
    before = native.threads()
    with native.force_simd(name):
        scratch = torch.empty(native.gemm_floats(weight.shape[1]) + spare)
        try:
            native.set_threads(threads)
            outs = [found[:, 1 : out + 1], found[:, out + 1 : out + 8]]
            native.gemm_many(x, [weight, other], outs, scratch)
        finally:
            native.set_threads(before)
    check_product(found[:, 1 : out + 1], x, weight)
    check_product(found[:, out + 1 : out + 8], x, other)
    assert (found[:, 0] == 9).all() and (found[:, -1] == 9).all(), "wrote beside its columns"


def test_products_whose_inputs_fit_no_panel(level: str) -> None:
    weight = packed(70, 90, 4, 32, symmetric=False, wide=False)  # 2,880 inputs, in several pieces
    x, found = noise(9, 2880), torch.empty(9, 70)
    native.gemm_many(x, [weight], [found], torch.empty(native.gemm_floats(2880)))
    check_product(found, x, weight)


def test_scratch_that_is_too_small_is_refused(level: str) -> None:
    weight, x = packed(8, 2, 4, 32, symmetric=False, wide=False), noise(20, 64)
    scratch = torch.empty(native.gemm_floats(64) - 1)
    with pytest.raises(ValueError, match="too small"):
        native.gemm_many(x, [weight], [torch.empty(20, 8)], scratch)


@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_many_weights_share_one_x(level: str, rows: int) -> None:
    weights = [
        packed(64, 6, 4, 32, symmetric=False, wide=False),
        packed(24, 3, 8, 64, symmetric=True, wide=False),
        packed(5, 24, 3, 8, symmetric=False, wide=True),
        packed(1, 3, 4, 64, symmetric=True, wide=True),
    ]
    x = noise(rows, 192)
    outs = [torch.empty(rows, weight.shape[0]) for weight in weights]
    native.gemv_many(x, weights, outs)
    for weight, found in zip(weights, outs, strict=True):
        check_product(found, x, weight)


def test_same_bytes_whatever_the_number_of_threads(level: str) -> None:
    weight, x = packed(97, 18, 4, 32, symmetric=False, wide=False), noise(3, 576)
    before = native.threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            native.set_threads(count)
            assert native.threads() == count
            found = torch.empty(3, 97)
            native.gemv(x, weight, found)
            results.append(found)
        assert all(torch.equal(results[0], other) for other in results)
    finally:
        native.set_threads(before)
    with pytest.raises(ParameterError, match="at least one thread"):
        native.set_threads(0)


def test_calls_from_many_python_threads() -> None:
    weight = packed(64, 6, 4, 32, symmetric=False, wide=False)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = noise(2, 192, seed=seed)
        expected = torch.empty(2, 64)
        native.gemv(x, weight, expected)
        for _ in range(200):
            found = torch.empty(2, 64)
            native.gemv(x, weight, found)
            if not torch.equal(found, expected):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    # In a process of its own, because forking one that has torch's threads warns.
    program = """
import os, torch
from loci.methods.quant.groupwise import Groupwise
from loci.nn import native
native.set_threads(3)
weight, x, out = Groupwise().pack_one(torch.randn(300, 64)), torch.randn(1, 64), torch.empty(1, 300)
native.gemv(x, weight, out)
child = os.fork()
again = torch.empty(1, 300)
native.gemv(x, weight, again)
same = torch.equal(out, again)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("size", [1, 5, 64, 576])
@pytest.mark.parametrize("rows", [1, 40])
def test_rmsnorm(level: str, size: int, rows: int) -> None:
    x, weight = noise(rows, size) * 3, noise(size, seed=2)
    found = torch.empty_like(x)
    for offset in (0.0, 1.0):
        native.rmsnorm(x, weight, 1e-5, offset, found)
        expected = x.double() * (x.double().square().mean(-1, True) + 1e-5).rsqrt()
        expected = expected * (weight + offset)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    inside = x.clone()
    native.rmsnorm(inside, weight, 1e-5, 1.0, inside)
    assert torch.equal(inside, found)


@pytest.mark.parametrize("rows", [1, 40])
def test_gates(level: str, rows: int) -> None:
    gate, up = noise(rows, 203) * 6, noise(rows, 203, seed=2)
    gate[0, :6] = torch.tensor([0.0, -200.0, 200.0, -88.0, 88.0, -1e-6])
    silu, gelu = gate.clone(), gate.clone()
    native.silu_mul(silu, up)
    native.gelu_tanh_mul(gelu, up)
    wide = gate.double()
    expected = torch.nn.functional.silu(wide) * up
    torch.testing.assert_close(silu.double(), expected, rtol=2e-6, atol=1e-7)
    expected = torch.nn.functional.gelu(wide, approximate="tanh") * up
    torch.testing.assert_close(gelu.double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_rope(level: str, tokens: int) -> None:
    spec = ModelSpec(
        name="t",
        layers=1,
        hidden=32,
        heads=4,
        kv_heads=2,
        head_dim=24,
        ffn=8,
        vocab=8,
        max_context=512,
    )
    cos, sin = Rope(spec).table(torch.arange(7, 7 + tokens)[None])
    x = noise(tokens, 4, 24)
    found = torch.empty_like(x)
    native.rope(x, cos[0].contiguous(), sin[0].contiguous(), found)
    expected = rotate(x.transpose(0, 1)[None], cos, sin)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 20), (2, 1, 7)])
def test_attention_of_one_token(
    level: str, dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, size: int
) -> None:
    # A pool with room to spare and keys beside values: both strides are larger than they need be.
    pool = noise(kv_heads, 2, tokens + 5, size + 3).to(dtype)
    keys, values = pool[:, 0, :tokens, :size], pool[:, 1, :tokens, :size]
    q, out, lse = noise(heads, size) * 2, torch.empty(heads, size), torch.empty(heads)
    native.attend_decode(q, keys, values, size**-0.5, out, lse)
    expected, expected_lse = attend_reference(
        q[None, :, None],
        keys[None],
        values[None],
        torch.ones(1, dtype=torch.bool).expand(1, kv_heads, 1, tokens),
        size**-0.5,
    )
    torch.testing.assert_close(out, expected[0, :, 0], rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(lse, expected_lse[0, :, 0], rtol=2e-6, atol=2e-6)


def test_attention_with_scores_far_apart(level: str) -> None:
    keys = torch.zeros(1, 130, 8)
    keys[0, :, 0] = torch.linspace(-900, 900, 130)
    values, q = noise(1, 130, 8), torch.zeros(1, 8)
    q[0, 0] = 1.0
    out, lse = torch.empty(1, 8), torch.empty(1)
    native.attend_decode(q, keys, values, 1.0, out, lse)
    weights = (keys[0, :, 0].double()).softmax(0)
    torch.testing.assert_close(out[0].double(), weights @ values[0].double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), keys[0, :, 0].double().logsumexp(0)[None])


def test_attention_to_nothing(level: str) -> None:
    out, lse = torch.ones(2, 8), torch.ones(2)
    nothing = torch.empty(1, 0, 8)
    native.attend_decode(torch.ones(2, 8), nothing, nothing, 1.0, out, lse)
    assert (out == 0).all() and (lse == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 20), (2, 1, 7)])
@pytest.mark.parametrize(("queries", "stored"), [(1, 1), (5, 5), (49, 300), (130, 130)])
@pytest.mark.parametrize("window", [None, 37])
def test_attention_of_a_prompt(
    level: str,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    size: int,
    queries: int,
    stored: int,
    window: int | None,
) -> None:
    pool = noise(2, kv_heads, 2, stored + 5, size + 3).to(dtype)
    keys, values = pool[:, :, 0, :stored, :size], pool[:, :, 1, :stored, :size]
    q = noise(2, queries, heads, size).transpose(1, 2) * 2
    start = stored - queries
    found, lse = torch.empty(2, heads, queries, size), torch.empty(2, heads, queries)
    scratch = torch.empty(native.attend_floats(size, heads // kv_heads))
    native.attend_prompt(
        q, keys, values, size**-0.5, found, lse, scratch, start=start, window=window
    )
    places, now = torch.arange(stored), torch.arange(start, stored)[:, None]
    visible = places <= now
    if window is not None:
        visible &= now - places < window
    seen = visible.expand(2, kv_heads, -1, -1)
    expected, expected_lse = attend_reference(q, keys, values, seen, size**-0.5)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=4e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=2e-6, atol=4e-6)


def test_attention_of_a_prompt_to_everything(level: str) -> None:
    keys, values, q = noise(1, 2, 200, 16), noise(1, 2, 200, 16, seed=2), noise(1, 4, 50, 16)
    found, lse = torch.empty(1, 4, 50, 16), torch.empty(1, 4, 50)
    scratch = torch.empty(3 * native.attend_floats(16, 2))
    native.attend_prompt(q, keys, values, 0.25, found, lse, scratch, start=None)
    everything = torch.ones(1, 2, 50, 200, dtype=torch.bool)
    expected, expected_lse = attend_reference(q, keys, values, everything, 0.25)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("block", [8, 32])
def test_block_floating_point(level: str, bits: int, block: int) -> None:
    keys = noise(1, 2, 9, 64) * torch.logspace(-30, 12, 9).view(1, 1, 9, 1)
    keys[0, 0, 2] = 0.0
    method = Bfp(bits=bits, block=block, sort="none")
    codes = method.encode(KVBlock(keys, keys, torch.arange(9)[None]), {})
    expected, _ = method.decode(codes, {}, 64)
    found = torch.empty(18, 64)
    native.bfp_dequant(
        codes["keys"].reshape(18, -1), codes["key_exponents"].reshape(18, -1), bits, block, found
    )
    assert torch.equal(found.view_as(expected), expected)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 1000])
def test_the_first_of_the_largest(level: str, count: int) -> None:
    for seed in range(20):
        x = torch.randint(-3, 3, (count,), generator=Generator().manual_seed(seed)).float()
        assert native.argmax(x) == int((x == x.max()).nonzero()[0])


def test_every_byte_is_read(level: str) -> None:
    # The exclusive or of 64-bit words, of however many pieces, tells a flipped bit.
    data = torch.randint(0, 255, (3_000_017,), dtype=torch.uint8, generator=Generator())
    pieces = [data[:1_000_003], data[1_000_003:]]
    before = native.read_all(pieces)
    for place in (0, 63, 1_000_002, 1_000_003, 2_345_678, 3_000_016):
        data[place] ^= 4
        assert native.read_all(pieces) != before
        data[place] ^= 4
    assert native.read_all(pieces) == before


def test_instructions_this_machine_lacks_are_refused() -> None:
    with pytest.raises(ParameterError, match="no such instructions"), native.force_simd("amx"):
        pass
    assert native.simd() == levels()[-1], "the strongest is not the default"


def test_why_not_is_silent_when_they_are_there() -> None:
    assert native.why_not() is None
