"""The slots of a KV store in lanes: one for each layer, or for each head of it.

A lane is a region of the pool, seen as tensors [B, k, slots, ...]. Where layers or heads keep
numbers of tokens of their own, lanes have other sizes and the pool the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Shapes: B batch, K key/value heads, k heads of a lane, S stored tokens, s of them that stay.


@dataclass(eq=False)
class Lane:
    """The slots of a layer, or of one head of it, as views of the pool.

    Attributes:
        number: among all lanes.
        heads: which KV heads of the layer they belong to.
        slots: how many there are.
        keep: tokens that an eviction leaves in them.
        parts: {name: [B, k, slots, ...]} of everything that is kept for every slot.
    """

    number: int
    layer: int
    heads: slice
    slots: int
    keep: int
    parts: dict[str, Tensor] = field(default_factory=dict)


def levelled(parts: Sequence[Tensor]) -> Tensor:
    """Return scores of heads with unequal numbers of tokens as one tensor, -inf behind."""
    if len(parts) == 1:
        return parts[0]
    most = max(part.shape[2] for part in parts)
    return torch.cat(
        [
            torch.cat([part, part.new_full((*part.shape[:2], most - part.shape[2]), -math.inf)], 2)
            for part in parts
        ],
        1,
    )


def best_of(scores_BKS: Tensor, keep: int) -> Tensor:
    """Return the `keep` best tokens, in order; among equals the newer."""
    newest_first = scores_BKS.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    chosen = (scores_BKS.shape[-1] - 1) - newest_first[..., :keep]
    return chosen.sort(dim=-1).values


def keep_only(slots: Tensor, count: int, new: Tensor, chosen_BKs: Tensor) -> None:
    """Overwrite slots by the chosen ones of slots[:count] + new."""
    both = torch.cat([slots[:, :, :count], new.to(slots.dtype)], 2)
    index = chosen_BKs.reshape(*chosen_BKs.shape, *([1] * (both.dim() - 3)))
    index = index.expand(*chosen_BKs.shape, *both.shape[3:])
    slots[:, :, : chosen_BKs.shape[-1]] = both.gather(2, index)
