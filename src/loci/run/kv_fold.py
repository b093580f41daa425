"""Moving what waits in a KV store into its slots: encode it, and evict where there are too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # a prefiller's extra attributes

import torch
from torch import Tensor

from loci.errors import MethodError
from loci.methods.kv.base import Encode, EncodeLayers
from loci.methods.kv.chain import due_tokens
from loci.nn.kv import KVBlock, Seen
from loci.nn.rope import undo
from loci.run.kv_dropped import drop
from loci.run.kv_evict import Evictor
from loci.run.kv_lanes import keep_only
from loci.run.kv_pool import Pool

# Shapes: B batch, K key/value heads, T new tokens, S stored tokens, s that stay, D head size.


class Folder:
    """Encodes and moves; the evictor chooses what stays."""

    def __init__(self, pool: Pool, evictor: Evictor) -> None:
        self._pool, self._evictor = pool, evictor

    def fold(self, layer: int, seen: Seen | None, fresh_BKS: Tensor | None = None) -> None:
        """Move what waits into the slots: encode it, and evict where there are too few slots.

        Args:
            layer: the last one of its group.
        """
        if isinstance(self._pool.codec, EncodeLayers):
            self._fold_group(self._pool.codec, layer, seen, fresh_BKS)
            return
        tail, staged = self._pool.tail_count[layer], self._pool.staged_count[layer]
        waiting = tail + staged
        moved = waiting if self._pool.codec is None else due_tokens(self._pool.codec, waiting)
        if not moved and not staged:
            return  # a tail as long as the store, and full
        places_B1T = self._waiting_places(layer, moved)
        chosen = self._evictor.chosen(layer, moved, places_B1T, seen, fresh_BKS)
        parts = [self._waiting(layer, i, tail, staged) for i in (0, 1)]
        new = {n: p[:, :, :moved] for n, p in zip(("keys", "values"), parts, strict=True)}
        if self._pool.codec is not None:
            self._keep_first(layer, parts, places_B1T)
            self._leave(layer, parts, moved)
            new = self._encoded(layer, KVBlock(new["keys"], new["values"], places_B1T))
        self._move(layer, new, moved, places_B1T, chosen)
        self._pool.tail_count[layer], self._pool.staged_count[layer] = waiting - moved, 0

    def probe(self, prefiller: Any, chunk: int) -> None:
        """Score every token not scored yet by the queries of probes, then evict what is due."""
        if prefiller is None:
            raise MethodError(f"{self._pool.select} probes the model, and needs a prefiller")
        assert self._pool.select is not None
        fresh: list[Tensor | None] = [None] * self._pool.spec.layers
        ids = list(prefiller.ids[self._pool.probed : self._pool.length])
        if self._pool.select.probes_alike:
            ids = ids[-1:]
        for start in range(0, len(ids), chunk):
            for seen in prefiller.probe(self._pool.select.probe_ids(ids[start : start + chunk])):
                scores = self._evictor.scored(seen.layer, seen)
                held = fresh[seen.layer]
                # A long probe comes in parts; each token is judged by its best.
                fresh[seen.layer] = scores if held is None else held.maximum(scores)
        self._pool.probed = self._pool.length
        fresh = self._evictor.share_out(fresh)
        for layer, scores_BKS in enumerate(fresh):
            if self._pool.staged_count[layer]:
                self.fold(layer, None, scores_BKS)
            elif scores_BKS is not None:
                self._evictor.remember(layer, scores_BKS)

    def _fold_group(
        self, codec: EncodeLayers, last: int, seen: Seen | None, fresh_BKS: Tensor | None
    ) -> None:
        number = self._pool.group_of[last]
        layers = self._pool.groups[number]
        tail, staged = self._pool.tail_count[last], self._pool.staged_count[last]
        moved = due_tokens(codec, tail + staged)
        places_B1T = self._waiting_places(last, moved)
        chosen = self._evictor.chosen(last, moved, places_B1T, seen, fresh_BKS) if moved else []
        blocks = []
        for layer in layers:
            parts = [self._waiting(layer, i, tail, staged) for i in (0, 1)]
            hidden = self._waiting_hidden(layer, tail, staged)
            if moved:
                self._keep_first(layer, parts, places_B1T)
                self._mark(layer, parts[0][:, :, :moved], places_B1T)
                blocks.append(self._unturned(parts, hidden, moved, places_B1T))
            self._leave(layer, parts, moved)
            if hidden is not None:
                rest = hidden[:, moved:]
                self._pool.tensors["tail_hidden"][:, layer, : rest.shape[1]] = rest
        new: dict[str, Tensor] = {}
        if moved:
            first = self._pool.count[self._pool.lanes[last][0].number]
            rows, bases = codec.encode(blocks, self._pool.group(number))
            new = {f"rows.{name}": row.unsqueeze(1) for name, row in rows.items()}
            at = first // codec.closes_every
            for name, basis in bases.items():
                held = self._pool.tensors[f"bases.{number}.{name}"]
                held[:, at : at + basis.shape[1]] = basis
            if "carried" in self._pool.tensors:
                self._pool.tensors["carried"][:, first : first + moved, -1] = -1
        for layer in layers:
            if moved:
                self._move(layer, new, moved, places_B1T, chosen)
            self._pool.tail_count[layer], self._pool.staged_count[layer] = tail + staged - moved, 0

    def _keep_first(self, layer: int, parts: Sequence[Tensor], places_B1T: Tensor) -> None:
        """Keep the first tokens of all exact, when they are encoded."""
        first, moved = self._pool.first(layer), places_B1T.shape[2]
        if first is not None and moved:
            keys, values = (part[:, :, :moved] for part in parts)
            first.keep(keys, values, places_B1T)

    def _mark(self, layer: int, keys_BKTD: Tensor, places_B1T: Tensor) -> None:
        """Keep the mean of every few keys that are encoded, where the method has landmarks."""
        held = self._pool.tensors.get("landmarks")
        if held is None:
            return
        assert isinstance(self._pool.codec, EncodeLayers) and self._pool.codec.landmarks is not None
        each, batch = self._pool.codec.landmarks.tokens, keys_BKTD.shape[0]
        chunks_BKNtD = keys_BKTD.float().unflatten(2, (-1, each))
        means_BKND = chunks_BKNtD.mean(3)
        if not self._pool.is_regular:
            is_real = (places_B1T >= 0).view(batch, 1, -1, each, 1)
            means_BKND = (chunks_BKNtD * is_real).sum(3) / is_real.sum(3).clamp(min=1)
        at = self._pool.count[self._pool.lanes[layer][0].number] // each
        held[:, layer, :, at : at + means_BKND.shape[2]] = means_BKND

    def _waiting_places(self, layer: int, moved: int) -> Tensor:
        """Return the positions of the oldest `moved` tokens that wait, [B, 1, moved]."""
        start = (
            self._pool.end[layer] - self._pool.tail_count[layer] - self._pool.staged_count[layer]
        )
        return self._pool.positions(start, start + moved)

    def _unturned(
        self, parts: Sequence[Tensor], hidden: Tensor | None, moved: int, places_B1T: Tensor
    ) -> KVBlock:
        """Return the oldest tokens that wait in float32, keys without their rotation."""
        assert self._pool.rope is not None
        keys, values = (part[:, :, :moved].float() for part in parts)
        keys = undo(keys, *self._pool.rope.table(places_B1T[:, 0]))
        hidden = None if hidden is None else hidden[:, :moved].float()
        if not self._pool.is_regular:
            is_real_B1T1 = (places_B1T >= 0).unsqueeze(-1)
            keys, values = keys * is_real_B1T1, values * is_real_B1T1
            hidden = None if hidden is None else hidden * is_real_B1T1[:, 0]
        return KVBlock(keys, values, places_B1T, hidden)

    def _waiting_hidden(self, layer: int, tail: int, staged: int) -> Tensor | None:
        if not self._pool.wants_hidden:
            return None
        held, index = self._pool.tensors, self._pool.staged_index(layer)
        pieces = [
            held["tail_hidden"][:, layer, :tail],
            held["staged_hidden"][:, index, :staged],
        ]
        return torch.cat(pieces, 1)

    def _leave(self, layer: int, parts: Sequence[Tensor], moved: int) -> None:
        """Keep what is not moved in the exact tail."""
        for area, part in zip(self._pool.tail[layer], parts, strict=True):
            area[:, :, : part.shape[2] - moved] = part[:, :, moved:]

    def _move(
        self,
        layer: int,
        new: Mapping[str, Tensor],
        moved: int,
        places_B1T: Tensor,
        chosen: Sequence[Tensor | None],
    ) -> None:
        """Put tokens behind those in the slots; where some were chosen, only those stay."""
        heads = self._pool.spec.kv_heads
        for lane, chosen_BKs in zip(self._pool.lanes[layer], chosen, strict=True):
            count, fresh = self._pool.count[lane.number], {}
            for name in lane.parts:
                if name == "scores":
                    continue
                part = new.get(name)
                if name == "slot_positions":
                    part = places_B1T.expand(-1, heads, -1)
                assert part is not None
                # Rows have no heads.
                fresh[name] = part if name.startswith("rows.") else part[:, lane.heads]
            if chosen_BKs is not None:
                drop(self._pool, lane, fresh, chosen_BKs)
            for name, part in fresh.items():
                slots = lane.parts[name]
                if chosen_BKs is None:
                    slots[:, :, count : count + moved] = part
                else:
                    keep_only(slots, count, part, chosen_BKs[:, : slots.shape[1]])
            self._pool.count[lane.number] = (
                count + moved if chosen_BKs is None else chosen_BKs.shape[-1]
            )

    def _waiting(self, layer: int, part: int, tail: int, staged: int) -> Tensor:
        """Return the exact tail and the staged chunk as one tensor of its own."""
        pieces = []
        if tail:
            pieces.append(self._pool.tail[layer][part][:, :, :tail])
        if staged:
            pieces.append(self._pool.staged(layer)[part][:, :, :staged])
        return torch.cat(pieces, 2)

    def _encoded(self, layer: int, block: KVBlock) -> dict[str, Tensor]:
        assert isinstance(self._pool.codec, Encode)
        fixed = self._pool.fixed(layer)
        if fixed and not self._pool.learned[layer] and block.keys.shape[2]:
            found = self._pool.codec.learn(block)
            if found is None:
                raise MethodError(
                    f"{self._pool.codec} needs channel orders", way_out="pass orders="
                )
            for name, held in fixed.items():
                held.copy_(found[name])
            self._pool.learned[layer] = True
        codes = self._pool.codec.encode(block, fixed)
        return {f"codes.{name}": new for name, new in codes.items()}
