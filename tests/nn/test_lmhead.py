"""Losses over a vocabulary, part by part."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from loci.nn.lmhead import head_loss


def test_a_loss_in_parts_is_the_loss_of_all_logits() -> None:
    generator = Generator().manual_seed(0)
    hidden = torch.randn(10, 6, generator=generator)
    head = torch.randn(17, 6, generator=generator)
    words = torch.randint(0, 17, (10,), generator=generator)

    def loss(logs: Tensor, which: slice) -> Tensor:
        return -logs.gather(1, words[which, None]).sum() / 10

    whole = hidden.clone().requires_grad_(True)
    expected = cross_entropy(whole @ head.t(), words)
    expected.backward()  # type: ignore[no-untyped-call]
    for rows in (1, 3, 10, 64):
        found, slope = head_loss(hidden, lambda part: part @ head.t(), loss, rows=rows)
        assert abs(found - float(expected.detach())) < 1e-6
        assert whole.grad is not None and torch.allclose(slope, whole.grad, atol=1e-6)
