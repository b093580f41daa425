"""The forward of a Llama-like decoder over packed weights and one KV store.

No module tree and no hooks: embedding, layers, head as a fixed sequence over preallocated buffers.
It agrees with transformers' eager float32 forward within 1e-4.

Where the native kernels were built they do as much as they can in one call. With weights that stay
where they are and a store that keeps keys and values as they come, that is the whole forward; so is
one token of a store that selects, or encodes in a form they read, until it has to evict or encode.
With weights that are streamed or another store, it is one half of a layer: attention and the store
between the halves are Python's. What is left runs in plain torch, which is also the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import silu

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import ContextError, ModelError, ParameterError
from loci.nn import native
from loci.nn.attend import attend
from loci.nn.kv import Seen
from loci.nn.packed_linear import matmul, matmul_many
from loci.nn.rope import Rope, rotate
from loci.nn.workspace import Buffers, decoder_work
from loci.run.weights import FixedSource

if TYPE_CHECKING:
    from loci.run.kvstore import KVStore
    from loci.run.weights import Weights, WeightSource

FLOAT_BITS, ROUNDED_BITS = 32, 8  # of what flows between layers

# Shapes: B batch, T tokens of a chunk, N = B * T rows, d hidden, H query heads, K key/value heads,
# D head size, V vocabulary, S stores.


@dataclass(eq=False, kw_only=True)
class Lot:
    """Tokens that go through some layers in one pass: as many for each of some stores.

    Attributes:
        stores: of one row each, of any length.
        ids_ST: their next tokens.
        layers: from the first to before the second; what stops before the end goes on later.
        hidden_Nd: memory of the caller, N = S * T, for the states between two layers; None for a
            lot that goes through all layers natively in one call.
        wants_logits: those after the last token of each store.
    """

    stores: Sequence[KVStore]
    ids_ST: Tensor
    layers: tuple[int, int]
    hidden_Nd: Tensor | None = None
    wants_logits: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Hand:
    """Weights, and the kernels that hold them; as long as it lives, so do both."""

    weights: WeightSource
    decoder: native.Decoder | None
    is_whole: bool


class Runner:
    """Runs tokens through the layers.

    Attributes:
        is_whole: the kernels have all weights, so a forward into a plain store is one call.

    Args:
        spec: sizes of the model.
        weights: where the blocks come from.
        ledger: pays for the work buffers.
        chunk: tokens one call may bring.
        batch: rows at most.
        rows: tokens of all rows together at most; None is a whole chunk of each row.
        decoded_tokens: see `loci.core.work.decoder_work`.
        kernels: False leaves the native kernels alone.
        activation_bits: 8 rounds what weights in codes are multiplied with, where few tokens are
            read at once; prompts are read in float32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightSource,
        ledger: Ledger,
        *,
        chunk: int = 512,
        batch: int = 1,
        rows: int | None = None,
        decoded_tokens: int = 0,
        tier: str = "dram",
        kernels: bool = True,
        activation_bits: int = FLOAT_BITS,
    ) -> None:
        if activation_bits not in (FLOAT_BITS, ROUNDED_BITS):
            raise ParameterError(
                "activations cannot have this many bits",
                value=activation_bits,
                allowed=f"{ROUNDED_BITS}, {FLOAT_BITS}",
            )
        if activation_bits == ROUNDED_BITS and not (kernels and native.available()):
            raise ParameterError(
                "activations of 8 bits need the native kernels",
                value=activation_bits,
                allowed=str(FLOAT_BITS),
                way_out=native.why_not() or "let the runner use the kernels",
            )
        self.spec, self.chunk, self.batch = spec, chunk, batch
        self._rounded = activation_bits == ROUNDED_BITS
        self._rows = chunk * batch if rows is None else rows
        self._work = Buffers(
            decoder_work(spec, chunk, batch, decoded_tokens=decoded_tokens, rows=rows),
            ledger,
            tier=tier,
        )
        self._rope = Rope(spec)
        self._scale = spec.head_dim**-0.5
        self._fast = kernels and native.available()
        self._backend = None if self._fast else "tiled"
        self.weights = weights

    @property
    def weights(self) -> WeightSource:
        """Where the blocks come from; another source of the same model may take over."""
        return self._weights

    @weights.setter
    def weights(self, weights: WeightSource) -> None:
        self._weights = weights
        self._decoder = self._open_decoder() if self._fast else None  # the old one holds the blocks
        self.is_whole = self._decoder is not None and self._is_fixed(self._decoder)

    def hand(self) -> Hand:
        """Return the weights with what the kernels were told of them, to be taken up again."""
        return Hand(weights=self._weights, decoder=self._decoder, is_whole=self.is_whole)

    def take(self, hand: Hand) -> None:
        """Go on with weights that this runner had before: pointers change, nothing is laid out."""
        self._weights, self._decoder = hand.weights, hand.decoder
        self.is_whole = hand.is_whole

    def rest(self) -> None:
        """Let go of the weights; others are set before the next forward."""
        del self._weights
        self._decoder = None

    def forward(
        self,
        ids_BT: Tensor,
        store: KVStore,
        positions_BT: Tensor | None = None,
        *,
        pad_B: Tensor | None = None,
        logits: str | None = "last",
    ) -> Tensor | None:
        """Append tokens to the store and return logits.

        Args:
            ids_BT: token ids.
            positions_BT: their positions, negative for padding; None continues after what the
                store holds.
            pad_B: how many tokens of padding stand on the left of each row.
            logits: "last" gives [B, V], a view of a work buffer that the next call overwrites;
                "all" gives fresh [B, T, V]; None computes no head and returns None.

        Raises:
            ContextError: if the store cannot hold the tokens.
        """
        rows, tokens = ids_BT.shape
        if tokens > self.chunk or rows > self.batch or rows * tokens > self._rows:
            raise ParameterError(
                f"a step takes at most {self.batch} x {self.chunk} tokens, {self._rows} together",
                value=(rows, tokens),
                way_out="split the prompt into chunks",
            )
        if logits not in (None, "last", "all"):
            raise ParameterError("unknown logits", value=logits, allowed="last, all or None")
        if positions_BT is None and pad_B is None and self._decoder is not None:
            pasts = store.pasts(self._takes_spans(self._decoder, rows, tokens))
            if pasts is not None and len(pasts) == rows:
                self._check_room(store, tokens)
                return self._step(self._decoder, ids_BT, (store,), pasts, logits)
        if positions_BT is None:
            start = store.length
            self._check_room(store, tokens)
            positions_BT = torch.arange(start, start + tokens).expand(rows, tokens)
            if pad_B is not None:
                positions_BT = positions_BT - pad_B[:, None]
        hidden_Nd = self._embed(ids_BT)
        for seen in self._layers(hidden_Nd, positions_BT, store):
            if store.wants_queries:
                store.observe(seen.layer, seen)
        store.advance(tokens)
        out = self._logits(hidden_Nd, rows, tokens, logits)
        self.weights.end_pass()
        return out

    def probe(self, ids_BT: Tensor, store: KVStore) -> Iterator[Seen]:
        """Run tokens against the store without keeping them; yield what each layer saw.

        The tokens see the stored ones and, causally, each other. Afterwards the store holds what
        it held before. The queries of a `Seen` are valid until the next one is asked for.
        """
        rows, tokens = ids_BT.shape
        start = store.length
        positions_BT = torch.arange(start, start + tokens).expand(rows, tokens)
        with store.trial():
            yield from self._layers(self._embed(ids_BT), positions_BT, store)
        self.weights.end_pass()

    def run(self, lots: Sequence[Lot], done: Callable[[Lot, Tensor], None]) -> None:
        """Carry lots through their layers, in one pass over weights that are not all at hand.

        Args:
            done: called with each lot that reached the end and its logits [S, V], a view of a work
                buffer that the next lot overwrites.

        Raises:
            ContextError: if a store cannot hold its tokens.
        """
        for lot in lots:
            for store in lot.stores if lot.layers[0] == 0 else ():
                self._check_room(store, lot.ids_ST.shape[1])
        rest = [lot for lot in lots if not self._run_at_once(lot, done)]
        if rest:
            self._carry(rest, done)

    def nbytes(self) -> int:
        """Return the bytes of the work buffers."""
        return self._work.nbytes()

    def release(self) -> None:
        """Give the work buffers back."""
        self._decoder, self.is_whole = None, False
        self._work.release()

    # -- private: native ----------------------------------------------------------------------

    def _open_decoder(self) -> native.Decoder | None:
        if not native.fits_decoder(self.spec):
            return None
        work = {name: self._work.whole(name) for name in native.WORK}
        if self._rows > 1 and work["tile"].numel() < native.decoder_floats(self.spec):
            return None
        return native.Decoder(
            self.spec, work, self._rope.frequencies, self._scale, rounded=self._rounded
        )

    def _is_fixed(self, decoder: native.Decoder) -> bool:
        """Hand all weights to the kernels, once and for all; False where that cannot be."""
        if not isinstance(self.weights, FixedSource):
            return False
        head = [weight for _, weight in self.weights.head()]
        return all(
            decoder.set_layer(index, self.weights.layer(index), self._rows)
            for index in range(self.spec.layers)
        ) and decoder.set_vocabulary(
            self.weights.embedding(), head, self.weights.norm(), self._rows
        )

    def _step(
        self,
        decoder: native.Decoder,
        ids_BT: Tensor,
        stores: Sequence[KVStore],
        pasts: list[native.Past],
        logits: str | None,
    ) -> Tensor | None:
        """Do a forward natively, into stores whose slots the kernels fill themselves.

        Several stores, of one row each, need kernels that have all weights.
        """
        rows, tokens = ids_BT.shape
        if not self.is_whole:
            (store,) = stores
            hidden_Nd = self._embed(ids_BT)
            self._steps(decoder, hidden_Nd, store, pasts, tokens)
            store.took(tokens)
            out = self._logits(hidden_Nd, rows, tokens, logits)
            self.weights.end_pass()
            return out
        out = None
        if logits == "last":
            out = self._work.take("logits", (rows, self.spec.vocab))
        elif logits == "all":
            out = torch.empty(rows, tokens, self.spec.vocab)
        which = {None: 0, "last": native.LAST, "all": native.ALL}[logits]
        ids_BT = ids_BT.contiguous()
        largest = min(store.largest for store in stores)
        status = decoder.step(ids_BT, pasts, which, out, largest)
        if status == native.BAD_ID:
            self._embed(ids_BT)  # says which
        self._check_status(status, largest)
        for store in stores:
            store.took(tokens)
        return out

    def _steps(
        self,
        decoder: native.Decoder,
        hidden_Nd: Tensor,
        store: KVStore,
        pasts: list[native.Past],
        tokens: int,
    ) -> None:
        """Carry `hidden_Nd` through all layers, natively those whose weights the kernels read."""
        store.begin(tokens)
        for index in range(self.spec.layers):
            block = self.weights.layer(index)
            if decoder.set_layer(index, block, self._rows):
                status = decoder.layer(index, tokens, pasts, store.largest)
                self._check_status(status, store.largest)
                continue
            start = store.length
            positions_BT = torch.arange(start, start + tokens).expand(len(pasts), tokens)
            self._torch_layer(index, block, hidden_Nd, positions_BT, store)
            self._feed_forward(block, hidden_Nd)

    def _check_status(self, status: int, largest: float) -> None:
        if status >= native.NOT_FINITE:
            raise ModelError(
                f"keys or values of layer {status - native.NOT_FINITE} are not finite, or too "
                "large for the cache's dtype",
                allowed=f"-{largest:g} to {largest:g}",
                way_out="check the model's weights; a float16 cache may need float32",
            )

    def _half_layer(
        self, decoder: native.Decoder, index: int, positions_BT: Tensor, store: KVStore
    ) -> tuple[Tensor, Tensor]:
        """Attend natively but for attention; return queries and what they read."""
        spec, take = self.spec, self._work.take
        rows, tokens = positions_BT.shape
        count, D, H, K = rows * tokens, spec.head_dim, spec.heads, spec.kv_heads
        heads = take("heads", (count * (H + K) * D,))
        q_BHTD, k_BKTD = (
            part.view(rows, n, tokens, D)
            for part, n in zip(heads.split((count * H * D, count * K * D)), (H, K), strict=True)
        )
        decoder.before(index, positions_BT, q_BHTD, k_BKTD)
        qkv_BTW = take("qkv", (rows, tokens, (H + 2 * K) * D))
        v_BKTD = qkv_BTW[..., (H + K) * D :].unflatten(-1, (K, D)).transpose(1, 2)
        given_BTd = take("normed", (rows, tokens, spec.hidden)) if store.wants_hidden else None
        view = store.append(index, k_BKTD, v_BKTD, positions_BT, given_BTd)
        o_BHTD, _ = attend(
            q_BHTD, view, positions=positions_BT, scale=self._scale, window=spec.window
        )
        return q_BHTD, o_BHTD

    # -- private: lots ------------------------------------------------------------------------

    def _run_at_once(self, lot: Lot, done: Callable[[Lot, Tensor], None]) -> bool:
        """Run a lot in one native call where that can be; return whether it could."""
        whole = lot.layers == (0, self.spec.layers) and lot.ids_ST.numel() <= self._rows
        if self._decoder is None or not (self.is_whole and whole):
            return False
        pasts = self._pasts(lot, self._takes_spans(self._decoder, *lot.ids_ST.shape))
        if pasts is None:
            return False
        which = "last" if lot.wants_logits else None
        out = self._step(self._decoder, lot.ids_ST, lot.stores, pasts, which)
        if out is not None:
            done(lot, out)
        return True

    def _takes_spans(self, decoder: native.Decoder, rows: int, tokens: int) -> bool:
        """Return whether a step may read stores whose layers or heads differ."""
        return self.is_whole and tokens == 1 and decoder.takes_spans(rows)

    def _pasts(self, lot: Lot, with_spans: bool = False) -> list[native.Past] | None:
        """Return where the kernels may append the tokens of a lot; None where they may not."""
        if self._decoder is None:
            return None
        found = []
        for store in lot.stores:
            pasts = store.pasts(with_spans)
            if pasts is None:
                return None
            found += pasts
        return found

    def _carry(self, lots: Sequence[Lot], done: Callable[[Lot, Tensor], None]) -> None:
        pasts = [self._pasts(lot) for lot in lots]
        for lot, places in zip(lots, pasts, strict=True):
            if lot.layers[0] == 0:
                self._embed_lot(lot)
            if places is not None:
                for store in lot.stores:
                    store.begin(lot.ids_ST.shape[1])
        for index in range(self.spec.layers):
            here = [i for i, lot in enumerate(lots) if lot.layers[0] <= index < lot.layers[1]]
            if not here and self.is_whole:
                continue
            block = self.weights.layer(index)
            decoder = self._decoder
            if decoder is not None and not self.is_whole:
                decoder = decoder if decoder.set_layer(index, block, self._rows) else None
            for i in here:
                places = pasts[i]
                if decoder is not None and places is not None:
                    self._lot_layer(decoder, index, lots[i], places)
                else:
                    self._row_layers(decoder, index, block, lots[i])
        ended = []
        for lot, places in zip(lots, pasts, strict=True):
            if lot.layers[1] < self.spec.layers:
                continue
            for store in lot.stores:
                (store.advance if places is None else store.took)(lot.ids_ST.shape[1])
            if lot.wants_logits:
                ended.append(lot)
        self._end_lots(ended, done)
        self.weights.end_pass()

    def _embed_lot(self, lot: Lot) -> None:
        hidden_Nd = _states(lot)
        ids_N = lot.ids_ST.reshape(-1)
        for start in range(0, len(ids_N), self._rows):
            part = ids_N[start : start + self._rows]
            hidden_Nd[start : start + len(part)] = self._embed(part)

    def _lot_layer(
        self, decoder: native.Decoder, index: int, lot: Lot, pasts: list[native.Past]
    ) -> None:
        """Carry a lot through one layer natively; a long row in parts, one after the other."""
        hidden_Nd, tokens = _states(lot), lot.ids_ST.shape[1]
        step = self._rows if len(pasts) == 1 else tokens
        largest = min(store.largest for store in lot.stores)
        for start in range(0, tokens, step):
            part_Nd = hidden_Nd[start : start + step] if len(pasts) == 1 else hidden_Nd
            work_Nd = self._work.take("hidden", part_Nd.shape)
            work_Nd.copy_(part_Nd)
            moved = [
                p._replace(stored=p.stored + start, position=p.position + start) for p in pasts
            ]
            status = decoder.layer(index, len(part_Nd) // len(pasts), moved, largest)
            self._check_status(status, largest)
            part_Nd.copy_(work_Nd)

    def _row_layers(
        self, decoder: native.Decoder | None, index: int, block: Weights, lot: Lot
    ) -> None:
        """Carry a lot through one layer row by row: its stores, or the weights, are not native."""
        hidden_Nd, tokens = _states(lot), lot.ids_ST.shape[1]
        for row, store in enumerate(lot.stores):
            part_Td = hidden_Nd[row * tokens : (row + 1) * tokens]
            work_Td = self._work.take("hidden", part_Td.shape)
            work_Td.copy_(part_Td)
            positions_1T = torch.arange(store.length, store.length + tokens)[None]
            if decoder is not None:
                q_BHTD, o_BHTD = self._half_layer(decoder, index, positions_1T, store)
                seen = Seen(layer=index, queries=q_BHTD, positions=positions_1T)
            else:
                q_BHTD = self._torch_layer(
                    index, block, work_Td, positions_1T, store, is_alone=False
                )
                seen = Seen(layer=index, queries=q_BHTD, positions=positions_1T)
            if store.wants_queries:
                store.observe(index, seen)
            if decoder is not None:
                decoder.after(index, o_BHTD.contiguous())
            else:
                self._feed_forward(block, work_Td)
            part_Td.copy_(work_Td)

    def _end_lots(self, lots: Sequence[Lot], done: Callable[[Lot, Tensor], None]) -> None:
        """Compute the head once, for the last token of every row."""
        if not lots:
            return
        ends = [_states(lot).view(len(lot.stores), -1, self.spec.hidden)[:, -1] for lot in lots]
        out = self._work.take("logits", (sum(map(len, ends)), self.spec.vocab))
        last_Sd = self._work.take("hidden", (len(out), self.spec.hidden))
        self._head(torch.cat(ends, out=last_Sd), out)
        first = 0
        for lot, end in zip(lots, ends, strict=True):
            done(lot, out[first : first + len(end)])
            first += len(end)

    # -- private ------------------------------------------------------------------------------

    def _check_room(self, store: KVStore, tokens: int) -> None:
        stop = store.length + tokens
        if stop > store.max_tokens:
            raise ContextError(
                f"{stop} tokens do not fit the context",
                value=stop,
                allowed=f"<= {store.max_tokens}",
                way_out="open the plan with a larger --context",
            )

    def _embed(self, ids_BT: Tensor) -> Tensor:
        hidden_Nd = self._work.take("hidden", (ids_BT.numel(), self.spec.hidden))
        self.weights.embed(ids_BT.reshape(-1), hidden_Nd)
        if self.spec.embed_scale != 1.0:
            hidden_Nd.mul_(self.spec.embed_scale)
        return hidden_Nd

    def _layers(self, hidden_Nd: Tensor, positions_BT: Tensor, store: KVStore) -> Iterator[Seen]:
        """Carry `hidden_Nd` through all layers in place; yield what each one saw."""
        positions_BT = positions_BT.contiguous()
        for index in range(self.spec.layers):
            block = self.weights.layer(index)
            decoder = self._decoder
            if decoder is not None and (
                self.is_whole or decoder.set_layer(index, block, self._rows)
            ):
                q_BHTD, o_BHTD = self._half_layer(decoder, index, positions_BT, store)
                yield Seen(layer=index, queries=q_BHTD, positions=positions_BT)
                decoder.after(index, o_BHTD.contiguous())
                continue
            q_BHTD = self._torch_layer(index, block, hidden_Nd, positions_BT, store)
            yield Seen(layer=index, queries=q_BHTD, positions=positions_BT)
            self._feed_forward(block, hidden_Nd)

    def _torch_layer(
        self,
        index: int,
        block: Weights,
        hidden_Nd: Tensor,
        positions_BT: Tensor,
        store: KVStore,
        *,
        is_alone: bool = True,
    ) -> Tensor:
        """Do the first half of a layer, up to what attention adds; return the queries."""
        rope = self._work.take("rope", (2, *positions_BT.shape, self.spec.head_dim))
        cos_sin_BTD = rope[0], rope[1]
        # Native layers, and other rows of the same pass, leave their own angles there.
        if index == 0 or self._decoder is not None or not is_alone:
            self._rope.table(positions_BT, out=cos_sin_BTD)
        return self._attention(index, block, hidden_Nd, cos_sin_BTD, positions_BT, store)

    def _attention(
        self,
        index: int,
        block: Weights,
        hidden_Nd: Tensor,
        cos_sin_BTD: tuple[Tensor, Tensor],
        positions_BT: Tensor,
        store: KVStore,
    ) -> Tensor:
        spec, take = self.spec, self._work.take
        rows, tokens = positions_BT.shape
        count, D, H, K = rows * tokens, spec.head_dim, spec.heads, spec.kv_heads
        normed_Nd = take("normed", hidden_Nd.shape)
        self._rms(hidden_Nd, _vector(block, "input_norm"), normed_Nd)
        flat = take("qkv", (count * (H + 2 * K) * D,))
        sizes = (count * H * D, count * K * D, count * K * D)
        q_N, k_N, v_N = (part.view(count, -1) for part in flat.split(sizes))
        matmul_many(
            normed_Nd,
            [block["q_proj"], block["k_proj"], block["v_proj"]],
            [q_N, k_N, v_N],
            tile=self._tile(count),
            backend=self._backend,
        )
        for part, name in ((q_N, "q_proj.bias"), (k_N, "k_proj.bias"), (v_N, "v_proj.bias")):
            if name in block:
                part.add_(_vector(block, name))
        if spec.qk_norm:
            self._rms(q_N.view(-1, D), _vector(block, "q_norm"), q_N.view(-1, D))
            self._rms(k_N.view(-1, D), _vector(block, "k_norm"), k_N.view(-1, D))
        heads = take("heads", (count * (H + K) * D,))
        q_BHTD, k_BKTD = (
            part.view(rows, n, tokens, D)
            for part, n in zip(heads.split((count * H * D, count * K * D)), (H, K), strict=True)
        )
        if self._fast and count == 1:  # one token: its heads lie alike before and after
            cos_1D, sin_1D = cos_sin_BTD[0].view(1, D), cos_sin_BTD[1].view(1, D)
            native.rope(q_N.view(1, H, D), cos_1D, sin_1D, q_BHTD.view(1, H, D))
            native.rope(k_N.view(1, K, D), cos_1D, sin_1D, k_BKTD.view(1, K, D))
        else:
            rotate(q_N.view(rows, tokens, H, D).transpose(1, 2), *cos_sin_BTD, out=q_BHTD)
            rotate(k_N.view(rows, tokens, K, D).transpose(1, 2), *cos_sin_BTD, out=k_BKTD)
        v_BKTD = v_N.view(rows, tokens, K, D).transpose(1, 2)
        given_BTd = normed_Nd.view(rows, tokens, -1) if store.wants_hidden else None
        view = store.append(index, k_BKTD, v_BKTD, positions_BT, given_BTd)
        o_BHTD, _ = attend(
            q_BHTD,
            view,
            positions=positions_BT,
            scale=self._scale,
            window=spec.window,
            kernels=self._fast,
        )
        mixed_N = take("mixed", (count, H * D))
        mixed_N.view(rows, tokens, H, D).copy_(o_BHTD.transpose(1, 2))
        tile, backend = self._tile(count), self._backend
        matmul(mixed_N, block["o_proj"], out=normed_Nd, tile=tile, backend=backend)
        if "o_proj.bias" in block:
            normed_Nd.add_(_vector(block, "o_proj.bias"))
        hidden_Nd.add_(normed_Nd)
        return q_BHTD

    def _feed_forward(self, block: Weights, hidden_Nd: Tensor) -> None:
        spec, count = self.spec, hidden_Nd.shape[0]
        normed_Nd = self._work.take("normed", hidden_Nd.shape)
        self._rms(hidden_Nd, _vector(block, "post_norm"), normed_Nd)
        flat = self._work.take("gate_up", (2 * count * spec.ffn,))
        gate_Nf, up_Nf = (part.view(count, spec.ffn) for part in flat.chunk(2))
        tile, backend = self._tile(count), self._backend
        gates = [block["gate_proj"], block["up_proj"]]
        matmul_many(normed_Nd, gates, [gate_Nf, up_Nf], tile=tile, backend=backend)
        if spec.activation == "silu":
            if self._fast:
                native.silu_mul(gate_Nf, up_Nf)
            else:
                silu(gate_Nf, inplace=True).mul_(up_Nf)
        elif self._fast:
            native.gelu_tanh_mul(gate_Nf, up_Nf)
        else:
            torch.ops.aten.gelu.out(gate_Nf, approximate="tanh", out=gate_Nf)
            gate_Nf.mul_(up_Nf)
        matmul(gate_Nf, block["down_proj"], out=normed_Nd, tile=tile, backend=backend)
        hidden_Nd.add_(normed_Nd)

    def _logits(
        self, hidden_Nd: Tensor, rows: int, tokens: int, logits: str | None
    ) -> Tensor | None:
        if logits is None:
            return None
        spec = self.spec
        if logits == "last":
            out = self._work.take("logits", (rows, spec.vocab))
            self._head(hidden_Nd.view(rows, tokens, -1)[:, -1], out)
            return out
        out = torch.empty(rows * tokens, spec.vocab)
        self._head(hidden_Nd, out)
        return out.view(rows, tokens, spec.vocab)

    def _head(self, hidden_Nd: Tensor, out: Tensor) -> None:
        normed = self._work.take("normed", hidden_Nd.shape)
        self._rms(hidden_Nd, self.weights.norm(), normed)
        tile = self._tile(normed.shape[0])
        for start, weight in self.weights.head():
            part = out[:, start : start + weight.shape[0]]
            if part.shape[0] == 1:
                matmul(normed, weight, out=part, tile=tile, backend=self._backend)
            else:
                part.copy_(matmul(normed, weight, tile=tile, backend=self._backend))

    def _rms(self, x_Nd: Tensor, weight_d: Tensor, out_Nd: Tensor) -> None:
        offset, eps = self.spec.norm_offset, self.spec.norm_eps
        if self._fast and x_Nd.is_contiguous():
            native.rmsnorm(x_Nd, weight_d, eps, offset, out_Nd)
            return
        mean_N1 = x_Nd.square().mean(-1, keepdim=True)
        torch.mul(x_Nd, torch.rsqrt(mean_N1 + eps), out=out_Nd)
        out_Nd.mul_(weight_d + offset if offset else weight_d)

    def _tile(self, rows: int) -> Tensor | None:
        if rows == 1:
            return None
        spec = self.spec
        elements = decoder_work(spec, self.chunk, self.batch, rows=self._rows)["tile"][0][0]
        return self._work.take("tile", (elements,)) if elements else None


def _states(lot: Lot) -> Tensor:
    assert lot.hidden_Nd is not None, "a lot that does not run at once brings its own memory"
    return lot.hidden_Nd


def _vector(block: Weights, name: str) -> Tensor:
    tensor = block[name]
    assert isinstance(tensor, Tensor), f"{name} is a vector and never packed"
    return tensor
