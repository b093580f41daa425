"""Patches: sums, truncation, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.errors import FormatError, ParameterError
from loci.nn.packed_linear import matmul
from loci.nn.patch import Patch, joined, patched, truncated
from loci.testing.kv import spec_of
from loci.testing.models import RoundToGrid


def pair(out: int, inner: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(out, rank, generator=generator),
        torch.randn(rank, inner, generator=generator),
    )


@pytest.mark.parametrize("bits", [4, None])
def test_the_product_is_added(bits: int | None) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    base = weight if bits is None else RoundToGrid(bits=bits).pack_one(weight)
    x = torch.randn(3, 64)
    left, right = pair(24, 64, 2)
    found = matmul(x, patched(base, (left, right)))
    assert torch.allclose(found, matmul(x, base) + x @ right.t() @ left.t(), atol=1e-4)


def test_tensors_come_back_and_name_the_patch() -> None:
    patch = Patch({"layer.0.q_proj": pair(8, 6, 2), "layer.1.up_proj": pair(5, 6, 1)})
    again = Patch.from_tensors(patch.tensors())
    assert again.fingerprint == patch.fingerprint and again.nbytes == patch.nbytes == 4 * 39
    assert patch.scaled(2.0).fingerprint != patch.fingerprint
    with pytest.raises(FormatError, match="lacks"):
        Patch.from_tensors({"layer.0.q_proj.left": torch.ones(8, 2)})


def test_sums_are_exact_and_truncation_is_the_best_there_is() -> None:
    one, two = Patch({"layer.0.q_proj": pair(9, 7, 3)}), Patch({"layer.0.q_proj": pair(9, 7, 2, 5)})
    both = joined([one, two])
    whole = one.delta("layer.0.q_proj") + two.delta("layer.0.q_proj")
    assert torch.allclose(both.delta("layer.0.q_proj"), whole, atol=1e-5)
    cut = truncated(both, 2)
    u, values, v = torch.linalg.svd(whole)
    best = u[:, :2] * values[:2] @ v[:2]
    assert cut.parts["layer.0.q_proj"][0].shape == (9, 2)
    assert torch.allclose(cut.delta("layer.0.q_proj"), best, atol=1e-4)
    with pytest.raises(ParameterError, match="rank 1"):
        truncated(both, 0)


def test_what_does_not_fit_is_refused() -> None:
    spec = spec_of()
    out, inner = spec.layer_linears()["q_proj"]
    Patch({"layer.1.q_proj": pair(out, inner, 1)}).check(spec)
    for name, shape in (
        ("layer.9.q_proj", (out, inner)),
        ("layer.0.z_proj", (out, inner)),
        ("layer.00.q_proj", (out, inner)),
        ("q_proj", (out, inner)),
        ("layer.0.q_proj", (out + 1, inner)),
    ):
        with pytest.raises(FormatError):
            Patch({name: pair(*shape, 1)}).check(spec)
    left, right = pair(4, 4, 2)
    with pytest.raises(FormatError, match="thin"):
        Patch({"layer.0.q_proj": (left[:, :1], right)})
    with pytest.raises(FormatError, match="finite"):
        Patch({"layer.0.q_proj": (left * float("nan"), right)})
