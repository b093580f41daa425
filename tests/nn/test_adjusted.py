"""Adjusted inputs and corrections, and exact integer products, against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from loci.errors import FormatError, ParameterError
from loci.methods.quant.groupwise import Groupwise
from loci.nn.adjusted import AdjustedWeight, group_dot, quantised, rounded
from loci.nn.packed_linear import matmul
from loci.nn.planes import from_bipolar, plane_dot, to_planes


def base(out: int = 24, inner: int = 64):
    weight = torch.randn(out, inner, generator=Generator().manual_seed(0))
    return Groupwise(bits=8, group=32).pack_one(weight)


def bits(*widths: int) -> Tensor:
    return torch.tensor(widths, dtype=torch.uint8)


def test_rounding_by_hand() -> None:
    # Four bits: the largest, 7, is seven steps of 1; 2.4 rounds to 2. The second group is silent.
    x = torch.tensor([[7.0, 2.4, -3.6, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert rounded(x, bits(4, 4)).tolist() == [[7.0, 2.0, -4.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    values, scales = quantised(x, bits(4, 8))
    assert scales.tolist() == [[1.0, 0.0]] and values[0, 0].tolist() == [7.0, 2.0, -4.0, 0.0]


def test_every_part_does_what_it_says() -> None:
    inside, generator = base(), Generator().manual_seed(1)
    perm = torch.randperm(64, generator=generator).to(torch.int32)
    scale = (torch.rand(64, generator=generator) + 0.5).half()
    left, right = torch.randn(24, 3).half(), torch.randn(3, 64).half()
    form = AdjustedWeight(inside, perm=perm, scale=scale, left=left, right=right)
    x = torch.randn(5, 64, generator=generator)
    expected = (x[:, perm.long()] * scale.float()) @ inside.dense().t()
    expected += x @ right.float().t() @ left.float().t()
    torch.testing.assert_close(matmul(x, form), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x @ form.dense().t(), expected, rtol=1e-4, atol=1e-4)
    assert form.is_linear
    narrow = AdjustedWeight(inside, bits=bits(4, 8))
    assert not narrow.is_linear
    torch.testing.assert_close(
        matmul(x, narrow), rounded(x, bits(4, 8)) @ inside.dense().t(), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ParameterError, match="rounds its input"):
        matmul(x, narrow, backend="reference")


@settings(max_examples=40, deadline=None)
@given(
    a=st.integers(2, 8),
    w=st.integers(2, 8),
    rows=st.integers(1, 4),
    outputs=st.integers(1, 5),
    group=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_float_products_of_integers_are_the_counted_ones(
    a: int, w: int, rows: int, outputs: int, group: int, seed: int
) -> None:
    # W6A6 and the like: the exact group product, and bit planes that are counted, agree exactly.
    generator = Generator().manual_seed(seed)
    x = torch.randint(1 - 2 ** (a - 1), 2 ** (a - 1), (rows, 2, group), generator=generator)
    q = torch.randint(1 - 2 ** (w - 1), 2 ** (w - 1), (outputs, 2, group), generator=generator)
    found = group_dot(x.float(), q.float())
    exact = torch.einsum("mgk,ngk->gmn", x, q)
    assert torch.equal(found.long(), exact)
    for g in range(2):
        # Bipolar X = 2 q + 1 on both sides: XW = 4 qx qw + 2 qx + 2 qw + 1, summed over the group.
        planes_x = to_planes(from_bipolar(2 * x[:, g] + 1, a), a)
        planes_w = to_planes(from_bipolar(2 * q[:, g] + 1, w), w)
        counted = plane_dot(planes_x, planes_w, group).long()
        terms = 2 * x[:, g].sum(-1)[:, None] + 2 * q[:, g].sum(-1)[None] + group
        assert torch.equal((counted - terms) // 4, exact[g])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FormatError, match="perm does not fit"):
        AdjustedWeight(base(), perm=torch.arange(32))
    with pytest.raises(FormatError, match="bits does not fit"):
        AdjustedWeight(base(), bits=bits(4, 4, 4))
    with pytest.raises(FormatError, match="left does not fit"):
        AdjustedWeight(base(), left=torch.ones(24, 2))
    with pytest.raises(FormatError, match="no adjusted weight"):
        AdjustedWeight.from_tensors({}, {"type": "adjusted"})
    with pytest.raises(ParameterError, match="not finite"):
        rounded(torch.tensor([[float("nan"), 1.0]]), bits(4))
    with pytest.raises(ParameterError, match=r"below 2\^24"):
        group_dot(torch.full((1, 1, 2000), 127.0), torch.full((1, 1, 2000), 127.0))
