"""What attention sees of a KV store: blocks, segments, and the view of one layer.

A view is a short list of segments with disjoint tokens. A segment hands its keys and values out in
tiles, so that codes are decoded a tile at a time; attention merges the tiles into one exact
softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

TILE_TOKENS = 1024  # stored tokens that are decoded or converted to float32 at once

# Shapes: B batch, H query heads, K key/value heads, T new tokens, S stored tokens, D head size.


@dataclass(frozen=True, eq=False)
class KVBlock:
    """Keys and values of some tokens, keys rotated.

    Attributes:
        keys, values: [B, K, T, D].
        positions: [B, T], or [B, K, T] where heads keep different tokens; a negative position
            marks a slot that nobody sees (padding).
        hidden: [B, T, d], what the layer's projections were given; None where nobody asked.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    hidden: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer was shown in one step.

    Attributes:
        layer: its index.
        queries: rotated queries [B, H, T, D]; None where nobody asked for them.
        positions: their positions [B, T]; negative marks padding.
        prepared: the shared tensors of the method that is asked, by name.
    """

    layer: int
    queries: Tensor | None
    positions: Tensor
    prepared: Mapping[str, Tensor] = field(default_factory=dict)


class Segment(Protocol):
    """Stored tokens of one layer.

    Attributes:
        tokens: how many slots it has.
        clear: every slot is visible to every query of this step, so no mask is needed.
        positions_BKS: [B, 1 or K, S] where the slots stand; None where slot i of the whole view
            stands at position i.
        order: [B, K, D], the channel order its keys are stored in; None is the natural one. Queries
            are put into the same order, which leaves every product unchanged.
    """

    tokens: int
    clear: bool
    positions_BKS: Tensor | None
    order: Tensor | None

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield keys, values [B, K, s, D] float32 and positions [B, 1 or K, s] or None.

        What was yielded holds until the next tile is asked for.
        """
        ...


class DenseSegment:
    """Tokens whose keys and values are kept as they are, in float32, float16 or bfloat16.

    Args:
        keys_BKSD, values_BKSD: storage of at least `tokens` tokens; only the first `tokens` count.
        positions: [B, 1 or K, S]; None where every slot is visible.
        causal: the segment is the block the queries belong to: query t sees slots 0..t.
    """

    __slots__ = (
        "causal",
        "clear",
        "keys_BKSD",
        "order",
        "positions_BKS",
        "tokens",
        "values_BKSD",
    )

    def __init__(
        self,
        keys_BKSD: Tensor,
        values_BKSD: Tensor,
        tokens: int,
        *,
        positions_BKS: Tensor | None = None,
        causal: bool = False,
    ) -> None:
        self.keys_BKSD = keys_BKSD
        self.values_BKSD = values_BKSD
        self.tokens = tokens
        self.positions_BKS = positions_BKS
        self.causal = causal
        self.clear = positions_BKS is None and not causal
        self.order: Tensor | None = None

    def keys(self) -> Tensor:
        """Return the keys that count, [B, K, tokens, D]."""
        return self.keys_BKSD.narrow(2, 0, self.tokens)

    def values(self) -> Tensor:
        """Return the values that count, [B, K, tokens, D]."""
        return self.values_BKSD.narrow(2, 0, self.tokens)

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield the tokens, converted to float32 a tile at a time where they are kept shorter."""
        keys, values, places = self.keys(), self.values(), self.positions_BKS
        step = self.tokens if keys.dtype == torch.float32 else TILE_TOKENS
        for start in range(0, self.tokens, max(step, 1)):
            stop = min(start + step, self.tokens)
            yield (
                keys[:, :, start:stop].float(),
                values[:, :, start:stop].float(),
                None if places is None else places[..., start:stop],
            )


@dataclass(frozen=True, eq=False)
class FirstTokens:
    """Tokens at the beginning of each row, exact: the one at position p at place p.

    Attributes:
        keys, values: [B, K, F, D].
    """

    keys: Tensor
    values: Tensor

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        return self.keys, self.values

    @property
    def count(self) -> int:
        """How many there is room for, F."""
        return self.keys.shape[2]

    def keep(self, keys: Tensor, values: Tensor, places_B1T: Tensor) -> None:
        """Take those among new tokens [B, K, T, D] that stand at the beginning."""
        is_first_BT = self._are_first(places_B1T)[:, 0]
        for row, token in is_first_BT.nonzero().tolist():
            place = int(places_B1T[row, 0, token])
            self.keys[row, :, place] = keys[row, :, token]
            self.values[row, :, place] = values[row, :, token]

    def put(self, keys: Tensor, values: Tensor, places_BKs: Tensor) -> None:
        """Replace those among decoded tokens [B, K, s, D] that stand at the beginning.

        Args:
            places_BKs: positions, [B, 1 or K, s].
        """
        is_first_BKs = self._are_first(places_BKs)
        found = is_first_BKs.flatten(0, 1).any(0).nonzero()
        if not len(found):
            return
        stop = int(found[-1]) + 1  # tokens come oldest first, so there are few of others before
        heads, size = keys.shape[1], keys.shape[3]
        is_first_BKs1 = is_first_BKs[..., :stop].unsqueeze(-1)
        places = places_BKs[..., :stop].clamp(0, self.count - 1).long()
        index = places.expand(-1, heads, -1).unsqueeze(-1).expand(-1, -1, -1, size)
        for new, exact in zip((keys, values), self.both, strict=True):
            part = new[:, :, :stop]
            part.copy_(torch.where(is_first_BKs1, exact.gather(2, index).to(new.dtype), part))

    def found(self, places_BKS: Tensor) -> tuple[Tensor, Tensor]:
        """Return which first tokens are among others, and the positions of those that are not.

        Both are positions, [B, 1 or K, F] and [B, 1 or K, S]; -1 where there is none.
        """
        all_F = torch.arange(self.count, device=places_BKS.device, dtype=places_BKS.dtype)
        is_there_BKF = (places_BKS.unsqueeze(-1) == all_F).any(2)
        found_BKF = torch.where(is_there_BKF, all_F, -1)
        return found_BKF, places_BKS.masked_fill(self._are_first(places_BKS), -1)

    def _are_first(self, places: Tensor) -> Tensor:
        return (places >= 0) & (places < self.count)


class RaggedSegment:
    """Tokens of which every head keeps a number of its own.

    Attention goes head by head over `parts`. Read as tiles, heads with fewer tokens are filled up
    with zeros at positions -1.

    Args:
        parts: of each KV head, the segment of its tokens, with positions.
        order: [B, K, D], see `Segment`.
    """

    __slots__ = ("clear", "order", "parts", "positions_BKS", "tokens")

    def __init__(self, parts: Sequence[Segment], order: Tensor | None = None) -> None:
        self.parts, self.order = tuple(parts), order
        self.tokens = max(part.tokens for part in parts)
        self.clear = False
        self.positions_BKS: Tensor | None = torch.cat(
            [_filled(part.positions_BKS, self.tokens, -1) for part in parts], 1
        )

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield all tokens as one tile, which is a copy; for methods that score."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for part in self.parts:
            found = list(part.tiles())
            keys.append(_filled(torch.cat([tile[0] for tile in found], 2), self.tokens, 0))
            values.append(_filled(torch.cat([tile[1] for tile in found], 2), self.tokens, 0))
        yield torch.cat(keys, 1), torch.cat(values, 1), self.positions_BKS


def _filled(x_BKS: Tensor | None, tokens: int, value: int) -> Tensor:
    """Return a tensor [B, K, S, ...] with more slots of one value behind."""
    assert x_BKS is not None
    shape = list(x_BKS.shape)
    shape[2] = tokens - shape[2]
    return torch.cat([x_BKS, x_BKS.new_full(shape, value)], 2)


class Fetches(Protocol):
    """What fetches tokens for queries; see `loci.methods.kv.retrieve.Bank`."""

    def attend(
        self, layer: int, queries: Tensor, positions: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return what rotated queries [B, K, G, T, D] read, and lse [B, K, G, T]."""
        ...


class FetchedSegment:
    """Tokens of which every query fetches its own few. It has no tiles: queries decide."""

    __slots__ = ("_bank", "_layer", "clear", "order", "positions_BKS", "tokens")

    def __init__(self, bank: Fetches, layer: int, tokens: int) -> None:
        self._bank, self._layer, self.tokens = bank, layer, tokens
        self.clear = False
        self.positions_BKS: Tensor | None = None
        self.order: Tensor | None = None

    def attend(
        self, q_BKGTD: Tensor, positions_BT: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the queries read from what they fetch, and the log-sum-exp."""
        return self._bank.attend(self._layer, q_BKGTD, positions_BT, scale, window)

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield nothing."""
        yield from ()


class KVView:
    """Everything one layer can attend to in one step, oldest segment first.

    Attributes:
        layer: its index.
        heads: KV heads.
        segments: disjoint tokens; the last may be the block just appended.
        scores_BKS: importance that was remembered for the stored tokens; None where nobody scores.
    """

    __slots__ = ("heads", "layer", "scores_BKS", "segments")

    def __init__(
        self,
        layer: int,
        heads: int,
        segments: tuple[Segment, ...],
        scores_BKS: Tensor | None = None,
    ) -> None:
        self.layer = layer
        self.heads = heads
        self.segments = segments
        self.scores_BKS = scores_BKS

    @property
    def tokens(self) -> int:
        """Slots over all segments."""
        return sum(segment.tokens for segment in self.segments)

    def positions(self) -> Tensor:
        """Return where every slot stands, int64 [B, K, S]; negative is padding."""
        found, first = [], 0
        for segment in self.segments:
            places = segment.positions_BKS
            if places is None:
                places = torch.arange(first, first + segment.tokens).view(1, 1, -1)
            found.append(places.long())
            first += segment.tokens
        batch = max(places.shape[0] for places in found)
        return torch.cat([places.expand(batch, self.heads, -1) for places in found], 2)

    def dense(self) -> KVBlock:
        """Return all tokens as one block in float32, natural channel order.

        For methods and tests: it copies everything. Slots of unmasked segments that carry no
        positions are numbered in the order they stand.
        """
        keys, values, places = [], [], []
        first = 0
        for segment in self.segments:
            for keys_BKsD, values_BKsD, positions_BKs in segment.tiles():
                batch, heads, count, _ = keys_BKsD.shape
                if positions_BKs is None:
                    numbers = torch.arange(first, first + count, device=keys_BKsD.device)
                    positions_BKs = numbers.expand(batch, heads, count)
                if segment.order is not None:
                    back_BKD = segment.order.long().argsort(dim=-1)
                    index = back_BKD[:, :, None].expand_as(keys_BKsD)
                    keys_BKsD = keys_BKsD.gather(-1, index)
                keys.append(keys_BKsD.clone())
                values.append(values_BKsD.clone())
                places.append(positions_BKs.expand(batch, heads, count).long())
                first += count
        return KVBlock(torch.cat(keys, 2), torch.cat(values, 2), torch.cat(places, 2))
