"""Weights that do not fit: which blocks stay in memory and which are read for every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from loci.errors import ParameterError
from loci.methods.offload.base import Placement, page_bytes
from loci.methods.offload.tpi_llm import TpiLlm

Blocks = Sequence[tuple[str, int, int]]  # name, bytes, bytes padded to whole pages
_NORM = "norm"  # the final norm stays in memory: it is smaller than a buffer of the ring


def place(blocks: Blocks, budget_bytes: int) -> Placement:
    """Return the placement of a model's blocks for streaming; the final norm is always pinned."""
    sizes, uses, norm = uses_of(blocks)
    placed = TpiLlm().place(sizes, uses, budget_bytes - norm)
    pinned = (*placed.pinned, _NORM) if norm else placed.pinned
    return replace(placed, pinned=pinned, pinned_bytes=placed.pinned_bytes + norm)


@cache
def least_streamed(blocks: tuple[tuple[str, int, int], ...]) -> int:
    """Return the least memory that streaming a model takes."""
    sizes, uses, norm = uses_of(blocks)
    return TpiLlm().least_bytes(sizes, uses) + norm


def uses_of(blocks: Blocks) -> tuple[list[tuple[str, int]], list[str], int]:
    """Return the blocks to place, those one token needs in order, and the bytes of the norm."""
    sizes = [(name, stored) for name, _, stored in blocks if name != _NORM]
    layers = [name for name, _ in sizes if name.startswith("layer.")]
    head = [name for name, _ in sizes if name.startswith("head.")]
    uses = layers + (head or [name for name, _ in sizes if name.startswith("embed.")])
    if not layers:
        raise ParameterError("the model has no blocks named layer.0 and so on")
    return sizes, uses, sum(page_bytes(stored) for name, _, stored in blocks if name == _NORM)
