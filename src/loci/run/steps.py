"""One step of many requests: what decodes together, prompts beside it, whole or layer by layer.

A lot is what goes through the model together (`loci.run.runner.Lot`); a step is one list of lots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loci.errors import MethodError
from loci.nn import native
from loci.run.live import Live
from loci.run.parts import Parts
from loci.run.runner import Lot

_FEW = 16  # rows of one native step; see `loci.nn.native.MAX_ROWS`


class Steps:
    """Runs what a scheduler chose.

    Args:
        parts: the model and the stores of requests.
        take: gets a request whose turn ended in a token, and that token's logits [1, V].
    """

    def __init__(self, parts: Parts, take: Callable[[Live, Tensor], None]) -> None:
        self._parts, self._take = parts, take
        self.spec, self.runner, self.stores = parts.spec, parts.runner, parts.stores

    def run(
        self,
        decode: Sequence[Live],
        prompts: Sequence[tuple[Live, int]],
        layers: tuple[int, int] | None,
        by: str,
    ) -> None:
        """Decode a token of each, and read so many tokens of prompts that have begun.

        Args:
            layers: that prompts go through in this step; None is all.
            by: the scheduler's name, for errors.

        Raises:
            MethodError: if layers cannot be run apart here, or some were left out.
        """
        by_layers = layers is not None and prompts
        if by_layers and (self._parts.chain or not native.available()):
            raise MethodError(
                f"{by} reads prompts by layers, which needs the native kernels and "
                "a cache that keeps every token",
                way_out='serve with --kv "", or with another scheduler',
            )
        if self._parts.chain:
            self._run(self._decode_lots(decode))
            for live, tokens in prompts:
                self._read(live, min(tokens, live.read - live.prefilled))
        elif by_layers and layers != (0, self.spec.layers):
            assert layers is not None
            lots = [self._layer_lot(live, tokens, layers, by) for live, tokens in prompts]
            self._run([*self._decode_lots(decode), *filter(None, lots)])
        else:
            self._run_with_prompts(self._decode_lots(decode), prompts)

    def _decode_lots(self, decode: Sequence[Live]) -> list[tuple[Lot, list[Live]]]:
        """Return what decodes: those with one token together, others on their own."""
        for live in decode:
            while len(live.pending) > self.runner.chunk:  # a schema may force many at once
                part, live.pending = (
                    live.pending[: self.runner.chunk],
                    live.pending[self.runner.chunk :],
                )
                self._run([(self._lot([live], [part], (0, self.spec.layers), end=False), [live])])
        ones = [live for live in decode if len(live.pending) == 1]
        groups = [ones[i : i + _FEW] for i in range(0, len(ones), _FEW)]
        groups += [[live] for live in decode if len(live.pending) > 1]
        return [
            (self._lot(group, [live.pending for live in group], (0, self.spec.layers)), group)
            for group in groups
        ]

    def _lot(
        self,
        lives: Sequence[Live],
        ids: list[list[int]],
        layers: tuple[int, int],
        *,
        end: bool = True,
    ) -> Lot:
        if layers[0] == 0:
            for live in lives:
                self.stores.grow(live, len(ids[0]))
        stores = [live.store for live in lives if live.store is not None]
        assert len(stores) == len(lives), "only begun requests run"
        return Lot(stores=stores, ids_ST=torch.tensor(ids), layers=layers, wants_logits=end)

    def _run_with_prompts(
        self, lots: list[tuple[Lot, list[Live]]], prompts: Sequence[tuple[Live, int]]
    ) -> None:
        """Run what decodes together with the first part of the prompts, then the other parts."""
        room = self.runner.chunk
        for live, tokens in prompts:
            stop = min(live.prefilled + tokens, live.read)
            while live.prefilled < stop:
                if room == 0 or (self._parts.at_once and lots):
                    self._run(lots)
                    lots, room = [], self.runner.chunk
                part = live.ids[live.prefilled : min(stop, live.prefilled + room)]
                live.prefilled += len(part)
                room -= len(part)
                is_last = live.prefilled == live.read
                lots.append((self._lot([live], [part], (0, self.spec.layers), end=is_last), [live]))
        self._run(lots)

    def _layer_lot(
        self, live: Live, tokens: int, layers: tuple[int, int], by: str
    ) -> tuple[Lot, list[Live]] | None:
        """Return a prompt's tokens on their way through some layers; None for none left."""
        part = live.ids[live.prefilled : min(live.read, live.prefilled + tokens)]
        if live.through != layers[0]:
            raise MethodError(f"{by} left layers out", value=layers)
        if live.states is None:
            nbytes = 4 * len(part) * self.spec.hidden
            self.stores.make_room(nbytes)
            lease = self._parts.ledger.reserve(f"states {live.ticket.id}", "dram", nbytes, "work")
            live.states = lease, torch.empty(len(part), self.spec.hidden)
        is_end = layers[1] == self.spec.layers
        is_last = is_end and live.prefilled + len(part) == live.read
        lot = self._lot([live], [part], layers, end=is_last)
        lot.hidden_Nd = live.states[1]
        live.through = 0 if is_end else layers[1]
        if is_end:
            live.prefilled += len(part)
        return lot, [live]

    def _run(self, lots: Sequence[tuple[Lot, list[Live]]]) -> None:
        """Run lots, and take the next token of each row that ended."""
        if not lots:
            return
        first = 0
        for at, (lot, _) in enumerate(lots):
            if lot.hidden_Nd is None and self._parts.states is not None:
                count = lot.ids_ST.numel()
                if first + count > len(self._parts.states):  # forced tokens beside full prompts
                    self._run(lots[:at])
                    self._run(lots[at:])
                    return
                lot.hidden_Nd = self._parts.states[first : first + count]
                first += count
        whose = {id(lot): lives for lot, lives in lots}

        def done(lot: Lot, logits_SV: Tensor) -> None:
            for row, live in enumerate(whose[id(lot)]):
                self._take(live, logits_SV[row : row + 1])

        self.runner.run([lot for lot, _ in lots], done)
        for lot, lives in lots:
            for live in lives:
                if lot.layers[1] == self.spec.layers and live.states is not None:
                    live.drop_states()

    def _read(self, live: Live, tokens: int) -> None:
        """Read a part of a prompt into a store that compresses."""
        prefiller = live.prefiller
        assert prefiller is not None and live.store is not None
        part = live.ids[live.prefilled : live.prefilled + tokens]
        live.prefilled += len(part)
        if live.prefilled < live.read:
            prefiller.prefill(part)
            live.store.finish_chunk(prefiller)
            return
        logits_1V = prefiller.read(part)
        live.store.finish_prompt(prefiller)
        self._take(live, logits_1V)
