"""Our AdamW beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from loci.nn.adamw import AdamW


def tensors() -> list[Tensor]:
    generator = Generator().manual_seed(0)
    shapes = ((3, 4), (5,))
    return [torch.randn(shape, generator=generator).requires_grad_(True) for shape in shapes]


def lost(held: list[Tensor]) -> Tensor:
    return (held[0] - 1).square().sum() + (held[1] * held[0].sum()).square().sum()


def test_it_steps_as_torch_does() -> None:
    ours, theirs = tensors(), tensors()
    own, other = AdamW(ours, decay=0.1), torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1)
    for step in range(6):
        own.clear()
        other.zero_grad()
        lost(ours).backward()  # type: ignore[no-untyped-call]
        lost(theirs).backward()  # type: ignore[no-untyped-call]
        norm = own.clip(3.0)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 3.0)), rel=1e-5)
        own.step(0.02)
        other.step()
        if step == 2:  # laid down and taken up again
            fresh = AdamW(ours, decay=0.1)
            fresh.load({name: tensor.clone() for name, tensor in own.state().items()}, own.steps)
            own = fresh
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
