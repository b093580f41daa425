"""Orthogonal turns that spread what a few channels have over all of them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def hadamard(size: int) -> Tensor:
    """Return the orthogonal Hadamard matrix [size, size], its own inverse; size a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def turned(x: Tensor, width: int) -> Tensor:
    """Return numbers [..., D] with every `width` channels turned; turned again, they are back.

    Args:
        width: a power of two that divides D.
    """
    return (x.unflatten(-1, (-1, width)) @ hadamard(width).to(x.device)).flatten(-2)
