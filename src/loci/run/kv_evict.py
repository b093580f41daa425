"""Which tokens of a KV store stay, and how many slots each lane has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from loci.core.method import Need
from loci.errors import MethodError
from loci.methods.kv.base import EncodeLayers
from loci.methods.kv.store_plan import fitted, kept_tokens
from loci.nn.kv import Seen
from loci.run.kv_dropped import drop
from loci.run.kv_lanes import Lane, best_of, keep_only, levelled
from loci.run.kv_pool import Pool
from loci.run.kv_views import view

# Shapes: B batch, K key/value heads, S stored tokens, s of them that stay.


class Evictor:
    """Asks the method that selects, remembers what it said, and chooses.

    Args:
        pool: where tokens are kept; its lanes move when the method gives them other sizes.
        generator: for methods that draw.
    """

    def __init__(self, pool: Pool, generator: Generator | None) -> None:
        self._pool, self._generator = pool, generator
        self.prepared: dict[str, Tensor] = {}  # the method's shared tensors
        select = pool.select
        self.wants_queries = pool.evicts and Need.QUERIES in (select.about.needs if select else ())
        self.reallocates = select is not None and pool.allocates and select.reallocates
        self.reset()

    def reset(self) -> None:
        """Remember nothing."""
        self._evicted_now = False
        self._shared_scores = ((-1, -1), torch.empty(0))
        self._before: dict[int, Tensor] = {}  # scores before the last eviction

    def check(self, batch: int) -> None:
        """Raise MethodError if the method cannot serve so many rows, or lacks a generator."""
        select, pool = self._pool.select, self._pool
        if select is not None and Need.GENERATOR in select.about.needs and self._generator is None:
            raise MethodError(
                f"{select} draws, and needs a seeded generator",
                way_out="KVStore(..., generator=torch.Generator().manual_seed(0))",
            )
        if batch > 1 and pool.probes and pool.evicts:
            raise MethodError(f"{select} probes one row at a time", value=batch, allowed="1")
        if batch > 1 and self.reallocates:
            raise MethodError(
                f"{select} shares slots out for one row at a time", value=batch, allowed="1"
            )

    def scored(self, layer: int, seen: Seen | None) -> Tensor:
        """Return what the method says of all tokens of a layer, float32 [B, K, S]."""
        assert self._pool.select is not None
        end = self._pool.end[layer]
        group = layer // self._pool.select.scores_layers(), end
        if group == self._shared_scores[0]:  # the first layer of the group was asked
            return self._shared_scores[1]
        if self.prepared:
            if seen is None:
                seen = Seen(layer, None, self._pool.positions(end - 1, end)[:, 0])
            seen = replace(seen, prepared=self.prepared)
        scores = self._pool.select.score(view(self._pool, layer), seen, self._generator)
        if self._pool.select.scores_layers() > 1:
            self._shared_scores = (group, scores)
        return scores

    def remember(self, layer: int, fresh_BKS: Tensor) -> None:
        """Merge new scores of the tokens in the slots into those remembered."""
        assert self._pool.select is not None
        for lane in self._pool.lanes[layer]:
            held = lane.parts["scores"][:, :, : self._pool.count[lane.number]]
            fresh = fresh_BKS[:, lane.heads, : held.shape[2]]
            held.copy_(self._pool.select.merge(held, fresh))

    def chosen(
        self,
        layer: int,
        moved: int,
        places_B1T: Tensor,
        seen: Seen | None,
        fresh_BKS: Tensor | None,
    ) -> list[Tensor | None]:
        """Return for each lane which of slots + moved tokens stay, [B, k, keep] in order.

        None where all of them fit. Scores are remembered.
        """
        lanes, select = self._pool.lanes[layer], self._pool.select
        if select is None:
            return [None] * len(lanes)
        counts = [self._pool.count[lane.number] for lane in lanes]
        is_over = [n + moved > lane.slots for n, lane in zip(counts, lanes, strict=True)]
        scores = []
        for lane, count in zip(lanes, counts, strict=True):
            held = lane.parts["scores"][:, :, :count]
            fresh = held.new_full((*held.shape[:2], moved), math.inf)
            scores.append(torch.cat([held, fresh], 2))
        if fresh_BKS is None and not self._pool.probes:
            wanted = select.each_chunk and seen is not None and moved > self._pool.plan.tail + 1
            if wanted or any(
                self._asks(lane, part, moved)
                for lane, part, over in zip(lanes, scores, is_over, strict=True)
                if over
            ):
                if seen is None and self.wants_queries:
                    raise MethodError(
                        f"{select} must be shown the queries of every chunk",
                        way_out="call observe(layer, seen) after each layer's attention",
                    )
                fresh_BKS = self.scored(layer, seen)
        chosen: list[Tensor | None] = []
        most, all_scores = max(counts), []
        for lane, count, part, over in zip(lanes, counts, scores, is_over, strict=True):
            if fresh_BKS is not None:
                mine = fresh_BKS[:, lane.heads]
                mine = torch.cat([mine[:, :, :count], mine[:, :, most : most + moved]], 2)
                part = select.merge(part, mine)
            all_scores.append(part)
            held = lane.parts["scores"]
            if not over:
                held[:, :, : count + moved] = part
                chosen.append(None)
                continue
            places = torch.cat(
                [
                    lane.parts["slot_positions"][:, :, :count],
                    places_B1T.expand(-1, part.shape[1], -1),
                ],
                2,
            )
            part = part.masked_fill(places < 0, -math.inf)  # padding goes first
            best = best_of(part, lane.keep)
            held[:, :, : best.shape[-1]] = part.gather(-1, best)
            chosen.append(best)
        if any(is_over):
            self._pool.has_evicted = self._evicted_now = True
            if self.reallocates:
                self._before[layer] = levelled(all_scores)
        self._check_granularity(layer, chosen)
        return chosen

    # -- numbers of tokens of their own -------------------------------------------------------

    def slots_wanted(self, scores: Sequence[Tensor] | None) -> list[int]:
        """Return the slots of every lane as the method wants them, in the same bytes."""
        even = self._pool.even_slots()
        if not self._pool.allocates:
            return even
        assert self._pool.select is not None
        wanted = self._pool.select.allocate(
            scores,
            self._pool.plan.slots,
            self._pool.spec,
            self.prepared,
            context=self._pool.max_tokens,
        )
        if wanted is None:
            return even if scores is None else self._pool.slots()
        if len(wanted) != len(even):
            raise MethodError(
                f"{self._pool.select} shares slots out among another number of "
                f"{'heads' if self._pool.by_head else 'layers'}",
                value=len(wanted),
                allowed=str(len(even)),
            )
        slots = fitted([float(x) for x in wanted], sum(even), self._pool.max_tokens)
        size = self._pool.select.scores_layers()
        groups = [slots[at : at + size] for at in range(0, len(slots), size)]
        return [min(group) for group in groups for _ in group]  # by one score, so as many

    def reallocate(self) -> None:
        """Ask how many slots lanes should have now, after a chunk that evicted."""
        if not (self.reallocates and self._evicted_now):
            return
        self._evicted_now = False
        layers, before = range(self._pool.spec.layers), self._before
        self._before = {}
        self._resize(self.slots_wanted([before.get(i, self._pool.remembered(i)) for i in layers]))

    def share_out(self, fresh: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Give lanes other sizes by the scores of a probe, before what waits is folded in.

        Args:
            fresh: of each layer, scores of the tokens in the slots and of those that wait.

        Returns:
            The scores of what is left then, in the same form.
        """
        pool, left = self._pool, list(fresh)
        lanes = [lane for lanes in pool.lanes for lane in lanes]
        is_over = any(
            pool.count[lane.number] + pool.staged_count[lane.layer] > lane.slots for lane in lanes
        )
        if not self.reallocates or not is_over or any(scores is None for scores in fresh):
            return left
        scores, waiting = [], []
        for layer, found in enumerate(fresh):
            assert found is not None
            self.remember(layer, found)
            waiting.append(
                found[:, :, max(pool.count[lane.number] for lane in pool.lanes[layer]) :]
            )
            scores.append(torch.cat([pool.remembered(layer), waiting[-1]], 2))
        self._resize(self.slots_wanted(scores))
        return [torch.cat([pool.remembered(i), part], 2) for i, part in enumerate(waiting)]

    # -- private ------------------------------------------------------------------------------

    def _asks(self, lane: Lane, scores: Tensor, moved: int) -> bool:
        """Return whether remembered scores are not enough to choose by."""
        assert self._pool.select is not None
        known = int(scores.isfinite().sum(-1).min())
        drop = scores.shape[2] - lane.keep
        return self._pool.select.each_step or moved > self._pool.plan.tail + 1 or known < drop

    def _check_granularity(self, layer: int, chosen: Sequence[Tensor | None]) -> None:
        """Raise MethodError if heads differ where the rows of a layer cannot."""
        if isinstance(self._pool.codec, EncodeLayers):
            for best_BKs in chosen:
                if best_BKs is not None and bool((best_BKs != best_BKs[:, :1]).any()):
                    raise MethodError(
                        f"{self._pool.select} chose other tokens for other heads of layer {layer}, "
                        f"which {self._pool.codec} cannot keep apart",
                        way_out="a method that selects by layer",
                    )

    def _shrink(self, lane: Lane, keep: int) -> None:
        """Evict from a lane by remembered scores."""
        count = self._pool.count[lane.number]
        scores = lane.parts["scores"][:, :, :count]
        is_pad = lane.parts["slot_positions"][:, :, :count] < 0
        best = best_of(scores.masked_fill(is_pad, -math.inf), keep)
        drop(self._pool, lane, {}, best)
        for part in lane.parts.values():
            keep_only(part, count, part[:, :, :0], best[:, : part.shape[1]])  # rows have no heads
        self._pool.count[lane.number] = keep

    def _resize(self, slots: Sequence[int]) -> None:
        """Evict from lanes that get smaller, and give all their new sizes."""
        if list(slots) == self._pool.slots():
            return
        limit = self._pool.select.limit() if self._pool.select is not None else None
        for lanes in self._pool.lanes:
            for lane in lanes:
                if self._pool.count[lane.number] > slots[lane.number]:
                    self._shrink(lane, kept_tokens(slots[lane.number], limit))
        self._repack(slots)

    def _repack(self, slots: Sequence[int]) -> None:
        """Move lanes inside the pool until each has its slots; copies one lane at a time."""
        held = [self._pool.count[lane.number] for lanes in self._pool.lanes for lane in lanes]
        for target, numbers in ((held, range(len(slots))), (slots, range(len(slots))[::-1])):
            # First all close together, first to last; then apart, last to first: nothing that has
            # not moved yet is overwritten.
            old = [lane for lanes in self._pool.lanes for lane in lanes]
            self._pool.cut(target)
            new = [lane for lanes in self._pool.lanes for lane in lanes]
            for number in numbers:
                count = held[number]
                moved = {n: p[:, :, :count].clone() for n, p in old[number].parts.items()}
                for name, part in moved.items():
                    new[number].parts[name][:, :, :count] = part
