"""Losses over a large vocabulary, a few tokens' logits at a time.

All logits of a text would be the largest thing in memory: 400 MB for 2,048 tokens of 49,152 words.
So a loss is taken part by part, and what comes back is its derivative by the hidden states, from
which the way back through the decoder goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 64  # tokens whose logits are held at once

# Shapes: n tokens, d hidden, V vocabulary.


def head_loss(
    hidden_nd: Tensor,
    head: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, slice], Tensor],
    *,
    rows: int = ROWS,
) -> tuple[float, Tensor]:
    """Return a loss over all tokens, and its derivative by the hidden states [n, d].

    Args:
        head: gives logits [m, V] of hidden states [m, d], differentiable.
        loss: takes log-probabilities [m, V] and which tokens they are of; what it returns is added
            up, so it says itself what one token counts.
    """
    slope_nd, total = torch.empty_like(hidden_nd), 0.0
    for start in range(0, len(hidden_nd), rows):
        part_md = hidden_nd[start : start + rows].detach().clone().requires_grad_(True)
        which = slice(start, start + len(part_md))
        value = loss(torch.log_softmax(head(part_md), dim=-1), which)
        value.backward()  # type: ignore[no-untyped-call]
        assert part_md.grad is not None
        slope_nd[which] = part_md.grad
        total += float(value.detach())
    return total, slope_nd
