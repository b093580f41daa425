"""Stored tokens that must be decoded before attention sees them, a tile at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from loci.methods.kv.base import CodeForm, Encode, EncodeLayers, LayerGroup
from loci.nn.attend import attend
from loci.nn.coded import Coded, Turned
from loci.nn.kv import TILE_TOKENS, DenseSegment, FirstTokens, KVView
from loci.nn.rope import Rope, rotate

# Shapes: B batch, K key/value heads, G query heads per KV head, S stored tokens, n some of them,
# N chunks of c tokens, C of them chosen, D head size, w carried numbers.


class CodesSegment:
    """Tokens kept as codes, decoded a tile at a time."""

    __slots__ = (
        "_codec",
        "_codes",
        "_first",
        "_fixed",
        "_head_dim",
        "clear",
        "order",
        "positions_BKS",
        "tokens",
    )

    def __init__(
        self,
        codec: Encode,
        codes: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        tokens: int,
        head_dim: int,
        positions_BKS: Tensor,
        clear: bool,
        first: FirstTokens | None = None,
    ) -> None:
        self._codec, self._codes, self._fixed = codec, codes, fixed
        self._head_dim, self._first = head_dim, first
        self.tokens, self.order, self.clear = tokens, fixed.get("order"), clear
        if first is not None and self.order is not None:
            index = self.order.long().unsqueeze(2).expand_as(first.keys)
            self._first = FirstTokens(first.keys.gather(-1, index), first.values)
        self.positions_BKS: Tensor | None = positions_BKS

    @property
    def coded(self) -> Coded | Turned | None:
        """The codes as kernels read them; None where no kernel knows their form."""
        form = self._codec.code_form(self._head_dim)
        if form is None:
            return None
        if isinstance(form, CodeForm):
            return Coded(self._codes, *form, head_dim=self._head_dim)
        return Turned(self._codes, self._fixed, *form, head_dim=self._head_dim)

    def apart(self) -> tuple[DenseSegment | None, Tensor]:
        """Return the first tokens that are held, exact, and positions that leave them out.

        Both are for kernels, which read codes alone; tokens left out stand at -1.
        """
        assert self.positions_BKS is not None
        if self._first is None:
            return None, self.positions_BKS
        found, rest_BKS = self._first.found(self.positions_BKS)
        return DenseSegment(*self._first.both, self._first.count, positions_BKS=found), rest_BKS

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield decoded keys (in stored order), values, and positions."""
        for start in range(0, self.tokens, TILE_TOKENS):
            stop = min(start + TILE_TOKENS, self.tokens)
            part = {name: codes[:, :, start:stop] for name, codes in self._codes.items()}
            keys, values = self._codec.decode(part, self._fixed, self._head_dim)
            assert self.positions_BKS is not None
            places_BKs = self.positions_BKS[:, :, start:stop]
            if self._first is not None:
                self._first.put(keys, values, places_BKs)
            yield keys, values, places_BKs


class LayersSegment:
    """Tokens of one layer kept as rows of its group, decoded and rotated a tile at a time."""

    def __init__(
        self,
        codec: EncodeLayers,
        group: LayerGroup,
        layer: int,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        tokens: int,
        positions_BKS: Tensor,
        rope: Rope,
        carried_BSw: Tensor | None,
        clear: bool,
        first: FirstTokens | None = None,
    ) -> None:
        self._codec, self._group, self._layer = codec, group, layer
        self._rows, self._bases, self._rope = rows, bases, rope
        self._carried_BSw, self._first = carried_BSw, first
        self.tokens, self.clear = tokens, clear
        self.positions_BKS: Tensor | None = positions_BKS
        self.order: Tensor | None = None

    @property
    def first_tokens(self) -> int:
        """Tokens at the beginning that are exact."""
        return 0 if self._first is None else min(self._first.count, self.tokens)

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield rotated keys, values, and positions."""
        closes = self._codec.closes_every
        step = TILE_TOKENS
        if self._codec.keeps_groups:
            step = max(1, TILE_TOKENS // closes) * closes
        assert self.positions_BKS is not None
        for start in range(0, self.tokens, step):
            stop = min(start + step, self.tokens)
            places_BKs = self.positions_BKS[:, :, start:stop]
            keys, values = self._decoded(start, stop)
            rotate(keys, *self._rope.table(places_BKs[:, 0]), out=keys)
            if self._first is not None:
                self._first.put(keys, values, places_BKs)
            yield keys, values, places_BKs

    def some(self, tokens_BKn: Tensor) -> DenseSegment:
        """Return some tokens of each head by their numbers, rising, the first of all among them."""
        heads, count = tokens_BKn.shape[1:]
        parts = [self._rebuilt(row, tokens_Kn) for row, tokens_Kn in enumerate(tokens_BKn)]
        keys, values = (torch.stack(found) for found in zip(*parts, strict=True))
        assert self.positions_BKS is not None
        places_BKn = self.positions_BKS.expand(-1, heads, -1).gather(2, tokens_BKn)
        turned = self._rope.table(places_BKn.flatten(0, 1))
        rotate(keys.flatten(0, 1).unsqueeze(1), *turned, out=keys.flatten(0, 1).unsqueeze(1))
        if self._first is not None:
            self._first.put(keys, values, places_BKn)
        segment = DenseSegment(keys, values, count, positions_BKS=places_BKn)
        segment.clear = self.clear
        return segment

    def _rebuilt(self, row: int, tokens_Kn: Tensor) -> tuple[Tensor, Tensor]:
        """Decode some tokens of each head of a row, keys not rotated, [K, n, D]."""
        closes, count = self._codec.closes_every, tokens_Kn.shape[1]
        rows = {
            name: tensor[row].index_select(0, tokens_Kn.flatten()).view(*tokens_Kn.shape, -1)
            for name, tensor in self._rows.items()
        }

        def decoded(heads: slice, part: slice, number: int) -> tuple[Tensor, Tensor]:
            some = {name: tensor[heads, part] for name, tensor in rows.items()}
            bases = {name: held[row, number] for name, held in self._bases.items()}
            return self._codec.decode_heads(some, bases, self._layer, heads, self._group)

        if self.tokens <= closes:
            return decoded(slice(0, len(tokens_Kn)), slice(0, count), 0)
        shape = (len(tokens_Kn), count, self._group.spec.head_dim)
        keys, values = torch.empty(shape), torch.empty(shape)
        for head, numbers_n in enumerate(tokens_Kn // closes):
            stop = 0
            for number, many in enumerate(numbers_n.bincount().tolist()):
                start, stop = stop, stop + many
                if many:
                    found = decoded(slice(head, head + 1), slice(start, stop), number)
                    keys[head, start:stop], values[head, start:stop] = found[0][0], found[1][0]
        return keys, values

    def _decoded(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        rows = {name: tensor[:, start:stop] for name, tensor in self._rows.items()}
        closes, group = self._codec.closes_every, self._group
        bases = {
            name: tensor[:, start // closes : -(-stop // closes)]
            for name, tensor in self._bases.items()
        }
        if self._carried_BSw is None:
            return self._codec.decode(rows, bases, self._layer, group, None)
        # What is carried counts for the layer before; where another was read last, begin again.
        carried = self._carried_BSw[:, start:stop, :-1]
        at = self._carried_BSw[:, start:stop, -1]
        first = group.layers[0]
        if self._layer == first or not bool((at == self._layer - 1).all()):
            carried.zero_()
            for before in range(first, self._layer):
                self._codec.decode(rows, bases, before, group, carried)
        at.fill_(self._layer)
        return self._codec.decode(rows, bases, self._layer, group, carried)


class ChosenChunks:
    """Tokens of one layer of which a new token reads a few chunks; satisfies `nn.kv.Fetches`.

    Every KV head reads the chunks whose landmarks its queries give most to, the largest share
    among the queries of its group, and the chunks that hold the first tokens.

    Args:
        landmarks_BKND: of whole chunks, the mean of their rotated keys.
        chosen: chunks that a head reads, those of the first tokens not counted.
    """

    def __init__(self, whole: LayersSegment, landmarks_BKND: Tensor, chosen: int) -> None:
        self._whole, self._landmarks_BKND = whole, landmarks_BKND
        self._each = whole.tokens // landmarks_BKND.shape[2]
        self._always = -(-whole.first_tokens // self._each)
        self._count = self._always + chosen

    @property
    def are_all(self) -> bool:
        """Whether there are no more chunks than are read."""
        return self._count >= self._landmarks_BKND.shape[2]

    def attend(
        self, layer: int, queries: Tensor, positions: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return what one token's queries [B, K, G, 1, D] read of what they chose, and lse."""
        segment = self._whole.some(self._tokens(queries, positions, scale, window))
        shown = KVView(layer, queries.shape[1], (segment,))
        q_BHTD = queries.flatten(1, 2)
        o, lse = attend(q_BHTD, shown, positions=positions, scale=scale, window=window)
        return o.view_as(queries), lse.view(queries.shape[:-1])

    def _tokens(
        self, q_BKG1D: Tensor, positions_B1: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Return the numbers of the tokens that each head reads, rising, [B, K, n]."""
        scores_BKGN = q_BKG1D.squeeze(3) @ self._landmarks_BKND.float().transpose(-1, -2) * scale
        if window is not None or not self._whole.clear:
            scores_BKGN.masked_fill_(self._hidden(positions_B1, window), -math.inf)
        shares_BKN = scores_BKGN.softmax(-1).nan_to_num_(0.0).amax(2)
        shares_BKN[..., : self._always] = math.inf
        count = min(self._count, shares_BKN.shape[2])
        best_BKC = shares_BKN.topk(count, dim=-1).indices.sort(dim=-1).values
        return (best_BKC.unsqueeze(-1) * self._each + torch.arange(self._each)).flatten(2)

    def _hidden(self, positions_B1: Tensor, window: int | None) -> Tensor:
        """Return the chunks that a token does not see any part of, [B, 1, 1, N]."""
        places = self._whole.positions_BKS
        assert places is not None
        seen_B1S = places >= 0
        if window is not None:
            seen_B1S &= positions_B1[:, :, None] - places < window
        return ~seen_B1S.unflatten(2, (self._landmarks_BKND.shape[2], -1)).any(-1).unsqueeze(1)
