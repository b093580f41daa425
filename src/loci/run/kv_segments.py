"""Stored tokens that must be decoded before attention sees them, a tile at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from loci.methods.kv.base import Encode, EncodeLayers, LayerGroup
from loci.nn.coded import Coded
from loci.nn.kv import TILE_TOKENS
from loci.nn.rope import Rope, rotate

# Shapes: B batch, K key/value heads, S stored tokens, D head size, c carried numbers.


class CodesSegment:
    """Tokens kept as codes, decoded a tile at a time."""

    __slots__ = ("_codec", "_codes", "_head_dim", "clear", "order", "positions_BKS", "tokens")

    def __init__(
        self,
        codec: Encode,
        codes: Mapping[str, Tensor],
        tokens: int,
        head_dim: int,
        positions_BKS: Tensor,
        order: Tensor | None,
        clear: bool,
    ) -> None:
        self._codec, self._codes, self._head_dim = codec, codes, head_dim
        self.tokens, self.order, self.clear = tokens, order, clear
        self.positions_BKS: Tensor | None = positions_BKS

    @property
    def coded(self) -> Coded | None:
        """The codes as kernels read them; None where no kernel knows their form."""
        form = self._codec.code_form(self._head_dim)
        return None if form is None else Coded(self._codes, *form, head_dim=self._head_dim)

    def tiles(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield decoded keys (in stored order), values, and positions."""
        for start in range(0, self.tokens, TILE_TOKENS):
            stop = min(start + TILE_TOKENS, self.tokens)
            part = {name: codes[:, :, start:stop] for name, codes in self._codes.items()}
            places = self.positions_BKS
            yield (
                *self._codec.decode(part, self._head_dim),
                None if places is None else places[:, :, start:stop],
            )


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
        carried_BSc: Tensor | None,
        clear: bool,
        first: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._codec, self._group, self._layer = codec, group, layer
        self._rows, self._bases, self._rope = rows, bases, rope
        self._carried_BSc, self._first = carried_BSc, first
        self.tokens, self.clear = tokens, clear
        self.positions_BKS: Tensor | None = positions_BKS
        self.order: Tensor | None = None

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
            if start == 0 and self._first is not None:
                for decoded, exact in zip((keys, values), self._first, strict=True):
                    decoded[:, :, : exact.shape[2]] = exact
            yield keys, values, places_BKs

    def _decoded(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        rows = {name: tensor[:, start:stop] for name, tensor in self._rows.items()}
        closes, group = self._codec.closes_every, self._group
        bases = {
            name: tensor[:, start // closes : -(-stop // closes)]
            for name, tensor in self._bases.items()
        }
        if self._carried_BSc is None:
            return self._codec.decode(rows, bases, self._layer, group, None)
        # What is carried counts for the layer before; where another was read last, begin again.
        carried = self._carried_BSc[:, start:stop, :-1]
        at = self._carried_BSc[:, start:stop, -1]
        first = group.layers[0]
        if self._layer == first or not bool((at == self._layer - 1).all()):
            carried.zero_()
            for before in range(first, self._layer):
                self._codec.decode(rows, bases, before, group, carried)
        at.fill_(self._layer)
        return self._codec.decode(rows, bases, self._layer, group, carried)
