"""A bank of keys and values in chunks, each found by the mean of its keys.

Chunks are found by keys without their rotation, which know nothing of distance. Every KV head of
every layer has a bank of its own, in a ring: when it is full, the oldest chunk makes room. The
chunk that is filling is not in the index; it is always read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any  # states are JSON values

import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.nn import native
from loci.nn.grid import pack_rows, rounded, unpack_rows
from loci.nn.kv import KVBlock
from loci.nn.rope import Rope, undo

TILE_NUMBERS = 2**22  # numbers of keys that are fetched at once: 16 MiB in float32

# Shapes: B batch, L layers, K key/value heads, k some of them, G query heads per KV head,
# T queries, t of a tile, N chunks, F chunks found, c tokens of a chunk, S = N c tokens,
# D head size, n tokens added.


class ChunkBank:
    """Tokens that a store dropped.

    Args:
        tensors: "index" [B, L, K, N, D], "positions" [B, L, K, S], "keys" and "values"
            [B, L, K, S, ...], with "keys_grid" and "values_grid" where they are codes.
        chunk: tokens of a chunk.
        fetched: chunks that a query fetches.
        bits: of a number of keys and values; 16 keeps half precision.
        is_near: keys are kept and read without their rotation, as if they stood where the query
            stands; else they are kept as they come.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, Tensor],
        *,
        chunk: int,
        fetched: int,
        bits: int,
        is_near: bool,
    ) -> None:
        self._tensors, self._rope = tensors, Rope(spec)
        self._chunk, self._fetched, self._bits, self._is_near = chunk, fetched, bits, is_near
        self._room = tensors["positions"].shape[-1]
        self._shape = (spec.layers, spec.kv_heads)
        self.reset()

    def reset(self) -> None:
        """Hold nothing."""
        self._added_LK = torch.zeros(self._shape, dtype=torch.int64)  # tokens ever
        self._most = [0] * self._shape[0]  # of the heads of each layer
        self._is_padded = False  # somebody may hold tokens that nobody may read

    def state(self) -> Any:
        """Return how many tokens every head of every layer was given."""
        return self._added_LK.tolist()

    def set_state(self, state: Any) -> None:
        """Take back what `state` returned."""
        self._added_LK = torch.tensor(state, dtype=torch.int64)
        self._most = self._added_LK.amax(1).tolist()
        self._is_padded = bool((self._tensors["positions"] < 0).any())

    def held(self, layer: int) -> int:
        """Return the tokens of a layer that can be found; of unequal heads, the most."""
        most = self._most[layer]
        return most if most <= self._room else self._room - self._chunk + (most % self._chunk)

    def add(self, layer: int, heads: slice, block: KVBlock) -> None:
        """Take tokens of some heads: rotated keys and values [B, k, n, D], positions [B, k, n]."""
        count = block.keys.shape[2]
        if not count:
            return
        start, c = int(self._added_LK[layer, heads].max()), self._chunk  # alike in one lane
        first = max(0, count - self._room)
        if first:  # of more than fits the last whole chunks stay
            first = -(-(start + first) // c) * c - start
        slots_n = torch.arange(start + first, start + count) % self._room
        places_Bkn = block.positions[:, :, first:]
        self._is_padded |= bool((places_Bkn < 0).any())
        keys = block.keys[:, :, first:].float()
        if self._is_near:
            keys = self._undone(keys, places_Bkn)
        kept = {"positions": places_Bkn.to(torch.int32), **self._coded("keys", keys)}
        kept |= self._coded("values", block.values[:, :, first:].float())
        for name, new in kept.items():
            self._tensors[name][:, layer, heads].index_copy_(2, slots_n, new)
        self._added_LK[layer, heads] = start + count
        self._most[layer] = int(self._added_LK[layer].max())
        self._index(layer, heads, start + first, start + count)

    def attend(
        self,
        layer: int,
        queries: Tensor,
        positions: Tensor,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what rotated queries [B, K, G, T, D] read, and the log-sum-exp; see `Bank`."""
        batch, heads, groups, count, size = queries.shape
        plain = undo(queries.flatten(1, 2), *self._rope.table(positions)).view(queries.shape)
        asked = plain if self._is_near else queries
        o = queries.new_zeros(queries.shape)  # contiguous, whatever the queries are
        lse = queries.new_full(queries.shape[:-1], -math.inf)
        if not self._most[layer]:
            return o, lse
        if count == 1 and window is None and self._is_plain(queries):
            self._read_native(layer, asked, self._found(layer, plain), scale, o, lse)
            return o, lse
        width = (self._fetched + 1) * self._chunk * size
        step = max(1, TILE_NUMBERS // (batch * heads * groups * width))
        for first in range(0, count, step):
            tile = slice(first, min(first + step, count))
            found_BKGtF = self._found(layer, plain[:, :, :, tile])
            o[:, :, :, tile], lse[:, :, :, tile] = self._read(
                layer, asked[:, :, :, tile], positions[:, tile], found_BKGtF, scale, window
            )
        return o, lse

    def find(self, layer: int, queries: Tensor, positions: Tensor) -> Tensor:
        """Return the positions of the tokens that rotated queries fetch, [B, K, G, T, s].

        Those of the chunk that is filling are not found but always there, and left out; -1 where
        there was nothing more to find.
        """
        c = self._chunk
        plain = undo(queries.flatten(1, 2), *self._rope.table(positions)).view(queries.shape)
        found = self._found(layer, plain)
        tokens = (found.unsqueeze(-1) * c + torch.arange(c)).flatten(4)
        places = self._tensors["positions"][:, layer, :, None, None]
        places = places.expand(*tokens.shape[:4], -1)
        held = places.gather(-1, tokens.clamp(max=self._room - 1))
        return held.masked_fill(tokens >= self._room, -1)

    # -- private ------------------------------------------------------------------------------

    def _undone(self, keys_BknD: Tensor, places_Bkn: Tensor) -> Tensor:
        """Return keys without their rotation, where heads have positions of their own."""
        table = self._rope.table(places_Bkn.flatten(0, 1))
        return undo(keys_BknD.flatten(0, 1).unsqueeze(1), *table).view_as(keys_BknD)

    def _coded(self, name: str, x_BknD: Tensor) -> dict[str, Tensor]:
        if self._bits == 16:
            return {name: x_BknD.to(torch.float16)}
        grids = self._tensors[f"{name}_grid"].shape[-1] // 2
        codes, grid = rounded(x_BknD.unflatten(3, (grids, -1)), self._bits, dim=4)
        return {
            name: pack_rows(codes.flatten(3), self._bits),
            f"{name}_grid": grid.flatten(3).to(torch.float16),
        }

    def _decoded(self, name: str, rows: Tensor, grid: Tensor | None) -> Tensor:
        if grid is None:
            return rows.float()
        grids = grid.shape[-1] // 2
        size = rows.shape[-1] * 8 // self._bits
        pairs = grid.float().unflatten(-1, (grids, 2))
        found = unpack_rows(rows, self._bits, size).unflatten(-1, (grids, -1))
        return (found * pairs[..., 1:] + pairs[..., :1]).flatten(-2)

    def _index(self, layer: int, heads: slice, start: int, stop: int) -> None:
        """Index the chunks that became whole by the tokens start..stop."""
        c = self._chunk
        numbers = range(start // c, stop // c)
        if not numbers:
            return
        slots_N = torch.tensor([number % (self._room // c) for number in numbers])
        tokens = (slots_N[:, None] * c + torch.arange(c)).flatten()
        held = {
            name: tensor[:, layer, heads].index_select(2, tokens)
            for name, tensor in self._tensors.items()
            if name in ("positions", "keys", "keys_grid")
        }
        keys = self._decoded("keys", held["keys"], held.get("keys_grid")).unflatten(2, (-1, c))
        if not self._is_near:
            keys = self._undone(keys.flatten(2, 3), held["positions"]).unflatten(2, (-1, c))
        is_real = (held["positions"] >= 0).unflatten(2, (-1, c)).unsqueeze(-1)
        means = (keys * is_real).sum(3) / is_real.sum(3).clamp(min=1)
        self._tensors["index"][:, layer, heads].index_copy_(2, slots_N, means.to(torch.float16))

    def _found(self, layer: int, plain_BKGtD: Tensor) -> Tensor:
        """Return the chunks each query fetches [B, K, G, t, F]; N where there are no more."""
        chunks, c = self._room // self._chunk, self._chunk
        most = min(chunks, -(-self._most[layer] // c))
        added_K = self._added_LK[layer]
        whole_KN = torch.arange(most) < (added_K // c)[:, None]
        filling_K = (added_K // c) % chunks
        is_full_K = added_K > self._room
        whole_KN &= ~(is_full_K[:, None] & (torch.arange(most) == filling_K[:, None]))
        index_BKND = self._tensors["index"][:, layer, :, :most].float()
        scores = plain_BKGtD.flatten(2, 3) @ index_BKND.transpose(-1, -2)
        hidden_BKN = ~whole_KN[None] | ~self._has_real(layer, most)
        scores = scores.masked_fill_(hidden_BKN[:, :, None], -math.inf)
        best, found = scores.topk(min(self._fetched, most), dim=-1)
        found = found.masked_fill(best == -math.inf, chunks)
        return found.unflatten(2, plain_BKGtD.shape[2:4])

    def _is_plain(self, queries: Tensor) -> bool:
        """Return whether kernels can read what a query fetches where it lies."""
        kept = self._bits == 16 and not self._is_padded
        return kept and native.available() and queries.dtype == torch.float32

    def _read_native(
        self,
        layer: int,
        asked_BKG1D: Tensor,
        found_BKG1F: Tensor,
        scale: float,
        o_BKG1D: Tensor,
        lse_BKG1: Tensor,
    ) -> None:
        """Write what `_read` returns, of one token of rows without padding."""
        c = self._chunk
        added_K = self._added_LK[layer]
        filling_K, filled_K = (added_K // c) % (self._room // c), added_K % c
        asked_BHD = asked_BKG1D.flatten(1, 3).contiguous()
        found_BHF = found_BKG1F.flatten(1, 3).contiguous()
        for row, (q_HD, found_HF) in enumerate(zip(asked_BHD, found_BHF, strict=True)):
            keys_KSD, values_KSD = (self._tensors[name][row, layer] for name in ("keys", "values"))
            native.attend_chunks(
                q_HD,
                keys_KSD,
                values_KSD,
                c,
                found_HF,
                filling_K,
                filled_K,
                scale,
                o_BKG1D[row].flatten(0, 2),
                lse_BKG1[row].flatten(),
            )

    def _has_real(self, layer: int, most: int) -> Tensor:
        """Return which chunks hold tokens that are no padding, [B, K, N]."""
        if not self._is_padded:
            return torch.ones(1, 1, most, dtype=torch.bool)
        places = self._tensors["positions"][:, layer, :, : most * self._chunk]
        return (places >= 0).unflatten(2, (-1, self._chunk)).any(-1)

    def _read(
        self,
        layer: int,
        asked_BKGtD: Tensor,
        positions_Bt: Tensor,
        found_BKGtF: Tensor,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor]:
        c, batch, heads = self._chunk, *asked_BKGtD.shape[:2]
        chunks = self._room // c
        added_K = self._added_LK[layer]
        filling = ((added_K // c) % chunks).view(1, -1, 1, 1, 1).expand(*found_BKGtF.shape[:4], 1)
        all_BKGtF = torch.cat([found_BKGtF, filling], -1)
        offsets_c = torch.arange(c)
        tokens = all_BKGtF.clamp(max=chunks - 1).unsqueeze(-1) * c + offsets_c
        # Of the chunk that is filling only the first tokens are new.
        here = (all_BKGtF < chunks).unsqueeze(-1).expand_as(tokens).clone()
        here[..., -1, :] = offsets_c < (added_K % c).view(1, -1, 1, 1, 1)
        tokens, here = tokens.flatten(4), here.flatten(4)
        rows = torch.arange(batch).view(-1, 1, 1, 1, 1)
        columns = torch.arange(heads).view(1, -1, 1, 1, 1)

        def fetched(name: str) -> Tensor | None:
            held = self._tensors.get(name)
            return None if held is None else held[rows, layer, columns, tokens]

        places = fetched("positions")
        assert places is not None
        now = positions_Bt[:, None, None, :, None]
        here &= (places >= 0) & (places <= now)
        if window is not None:
            here &= now - places < window
        parts = {}
        for name in ("keys", "values"):
            found = fetched(name)
            assert found is not None
            parts[name] = self._decoded(name, found, fetched(f"{name}_grid"))
        scores = (parts["keys"] @ asked_BKGtD.unsqueeze(-1)).squeeze(-1) * scale
        scores = scores.masked_fill_(~here, -math.inf)
        lse = scores.logsumexp(-1)
        weights = (scores - torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1)).exp_()
        return (weights.unsqueeze(-2) @ parts["values"]).squeeze(-2), lse
