"""Tokens on their way out of a KV store, as the bank takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loci.methods.kv.base import Encode
from loci.nn.kv import KVBlock
from loci.run.kv_lanes import Lane
from loci.run.kv_pool import Pool

# Shapes: B batch, k heads of a lane, S stored tokens, s that stay, d that go, D head size.


def drop(pool: Pool, lane: Lane, new: Mapping[str, Tensor], chosen_BKs: Tensor) -> None:
    """Give the bank, where there is one, what will not stay in a lane.

    Args:
        new: the lane's parts of tokens that would come behind those in the slots, {name:
            [B, k, T, ...]}; {} where none come.
        chosen_BKs: which of slots + new stay.
    """
    if pool.bank is None:
        return
    count = pool.count[lane.number]
    total = count + (next(iter(new.values())).shape[2] if new else 0)
    batch, heads = lane.parts["slot_positions"].shape[:2]
    stays_BKS = torch.zeros(batch, heads, total, dtype=torch.uint8)
    stays_BKS.scatter_(2, chosen_BKs, 1)
    goes = stays_BKS.argsort(dim=2, stable=True)[:, :, : total - chosen_BKs.shape[2]]
    parts = {}
    for name, slots in lane.parts.items():
        if name == "scores":
            continue
        held = slots[:, :, :count]
        if name in new:
            held = torch.cat([held, new[name].to(slots.dtype)], 2)
        index = goes.reshape(*goes.shape, *([1] * (held.dim() - 3)))
        parts[name] = held.gather(2, index.expand(*goes.shape, *held.shape[3:]))
    if pool.codec is not None:
        assert isinstance(pool.codec, Encode)
        codes = {n.removeprefix("codes."): p for n, p in parts.items() if n.startswith("codes.")}
        fixed = pool.fixed(lane.layer, lane.heads)
        keys, values = pool.codec.decode(codes, fixed, pool.spec.head_dim)
        if "order" in fixed:
            back_BkD = fixed["order"].long().argsort(-1)
            keys = keys.gather(-1, back_BkD[:, :, None].expand_as(keys))
    else:
        keys, values = parts["keys"], parts["values"]
    pool.bank.add(lane.layer, lane.heads, KVBlock(keys, values, parts["slot_positions"]))
