"""Every back end of the packed product against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.errors import ParameterError
from loci.methods.quant.groupwise import Groupwise
from loci.nn import native
from loci.nn.packed_linear import Weight, linear, matmul, matmul_back, matmul_many
from loci.nn.packing import PackedWeight


def weight_of(out: int, inner: int, **parameters: object) -> PackedWeight:
    generator = Generator().manual_seed(out * inner)
    weight = torch.randn(out, inner, generator=generator)
    return Groupwise(**parameters).pack_one(weight)  # type: ignore[arg-type]


def close(found: Tensor, expected: Tensor) -> None:
    # One number may be the small rest of large ones, so their size counts as well.
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 33),
    out=st.integers(1, 70),
    groups=st.integers(1, 6),
    group=st.sampled_from([8, 16, 24, 32, 64]),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    backend=st.sampled_from([None, "tiled", "native"]),
    tile_rows=st.integers(1, 80),
)
def test_back_ends_agree(
    rows: int,
    out: int,
    groups: int,
    group: int,
    bits: int,
    symmetric: bool,
    backend: str | None,
    tile_rows: int,
) -> None:
    if backend == "native" and not (native.available() and rows <= native.MAX_ROWS):
        backend = None
    inner = groups * group
    weight = weight_of(out, inner, bits=bits, group=group, symmetric=symmetric)
    x = torch.randn(rows, inner, generator=Generator().manual_seed(rows))
    before = x.clone()
    tile = torch.full((tile_rows * inner + 3,), float("nan"))
    found = matmul(x, weight, tile=tile, backend=backend)
    close(found, matmul(x, weight, backend="reference"))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 17])
def test_dense_weights_are_multiplied_in_float32(dtype: torch.dtype, rows: int) -> None:
    weight, x = torch.randn(30, 20).to(dtype), torch.randn(rows, 20)
    close(matmul(x, weight, tile=torch.empty(100)), x @ weight.float().t())
    close(matmul(x, weight, backend="reference"), x @ weight.float().t())


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_many_weights_write_into_parts_of_one_buffer(rows: int) -> None:
    weights: list[Weight] = [
        weight_of(24, 64),
        weight_of(8, 64, bits=8, group=64, symmetric=True),
        weight_of(8, 64, bits=3, group=16),
    ]
    x = torch.randn(rows, 64)
    for chosen in (weights, [*weights[:2], torch.randn(8, 64)]):
        buffer = torch.full((rows, 50), 7.0)
        outs = [buffer[:, 2:26], buffer[:, 26:34], buffer[:, 34:42]]
        assert matmul_many(x, chosen, outs) is outs
        for out, weight in zip(outs, chosen, strict=True):
            close(out, matmul(x, weight, backend="reference"))
        assert (buffer[:, :2] == 7).all() and (buffer[:, 42:] == 7).all()


def test_the_result_lands_where_it_was_asked_for() -> None:
    weight, out = weight_of(24, 64), torch.empty(3, 24)
    assert matmul(torch.randn(3, 64), weight, out) is out


def test_what_does_not_fit_is_refused() -> None:
    weight, x = weight_of(24, 64), torch.randn(3, 64)
    with pytest.raises(ParameterError, match="reference, tiled, native"):
        matmul(x, weight, backend="fast")
    with pytest.raises(ParameterError, match="x has 63 columns"):
        matmul(x[:, :63], weight)
    with pytest.raises(ParameterError, match="holds no whole row"):
        matmul(x, weight, tile=torch.empty(63), backend="tiled")
    with pytest.raises(ParameterError, match="cannot be used here"):
        matmul(x, torch.randn(4, 64), backend="native")


def test_a_result_of_the_wrong_form_is_refused() -> None:
    weight, x = weight_of(24, 64), torch.randn(3, 64)
    wrong = (torch.empty(3, 23), torch.empty(24, 3).t(), torch.empty(3, 24, dtype=torch.float64))
    for out in wrong:
        with pytest.raises(ParameterError, match="does not fit the product"):
            matmul(x, weight, out)
        with pytest.raises(ParameterError, match="does not fit the product"):
            matmul_many(x, [weight, weight], [torch.empty(3, 24), out])
    with pytest.raises(ParameterError, match="32 columns"):
        matmul_many(x[:, :32].contiguous(), [weight, weight], [torch.empty(3, 24)] * 2)


@pytest.mark.parametrize("tile_rows", [1, 5, 100, None])
def test_the_way_back_is_the_product_with_the_weight(tile_rows: int | None) -> None:
    weight, dy = weight_of(24, 64, bits=3), torch.randn(7, 24, generator=Generator().manual_seed(0))
    tile = None if tile_rows is None else torch.empty(tile_rows * 64)
    close(matmul_back(dy, weight, tile=tile), dy @ weight.dense())
    close(matmul_back(dy, weight.dense()), dy @ weight.dense())


def test_gradients_pass_through_packed_weights_and_keep_no_copy_of_them() -> None:
    weight = weight_of(24, 64)
    x = torch.randn(5, 64, generator=Generator().manual_seed(0), requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = linear(x, weight)
    out.square().sum().backward()
    assert not saved and x.grad is not None
    close(x.grad, 2 * (x.detach() @ weight.dense().t()) @ weight.dense())
    dense = weight.dense().requires_grad_(True)
    linear(x.detach(), dense).sum().backward()
    assert dense.grad is not None
