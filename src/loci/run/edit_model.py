"""A pack as editors of facts see it: read up to a layer, pushed there, asked for gradients.

The packed weights multiply through `nn.decoder` with a hook where a matrix is edited; none of them
is written to. While an editor works, matrices may be kept in float32, which is quicker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from loci.core.method import Method, Need
from loci.core.ports import Artefact
from loci.errors import MethodError, NotFoundError, ParameterError
from loci.methods.train.base import Fact, down
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.decoder import Linear, Pair, decode_layer, rms_norm
from loci.nn.form import Form
from loci.nn.packed_linear import linear
from loci.nn.patch import Patch, joined
from loci.run import artefacts, key_moments
from loci.run.calibrate import PackWeights

HELD_BYTES = 2**30  # of weights written out in float32 while editing, which is quicker
_CHOICES = 5  # words among which an opening goes on
_BEGINNINGS = ("The", "Therefore", "Because", "I", "You", "In", "When", "There")

# Shapes: B rows, T tokens, d hidden, K inputs of down_proj, V vocabulary, N = B * T.


class PackModel:
    """A pack as editors see it; satisfies `methods.train.base.Editable`.

    Args:
        held_bytes: of weights that may be kept in float32 between reads.
        seed: of the words that `openings` draws.
    """

    def __init__(self, pack: Pack, *, held_bytes: int = HELD_BYTES, seed: int = 0) -> None:
        self.pack, self.spec = pack, pack.spec
        self.tokenizer = Tokenizer(pack.folder)
        self._weights, self._held_bytes, self._seed = PackWeights(pack), held_bytes, seed
        self._dense: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor | None] = {}
        self._openings: list[str] = []
        self._before: Patch | None = None
        self._method: Method | None = None
        embed = self._weights.table("embed")
        self._embed_Vd = embed
        self._head_Vd = embed if pack.spec.tied else self._weights.table("head")

    def under(self, patch: Patch | None, method: Method | None = None) -> PackModel:
        """Return the same model with a patch in force, for a method; weights are shared."""
        if patch is not None:
            patch.check(self.spec)
        other = object.__new__(PackModel)
        other.__dict__ = {**self.__dict__, "_before": patch, "_method": method}
        return other

    # -- what editors see -----------------------------------------------------------------------

    def row(self, text: str, subject: str | None = None) -> tuple[list[int], int]:
        """Return the tokens of a text, and which of them ends the subject's last mention."""
        ids = self.tokenizer.prompt(text)
        if subject is None:
            return ids, len(ids) - 1
        raw, wanted = text.encode(), subject.encode()
        at = raw.rfind(wanted)
        if at < 0:
            raise ParameterError("the subject is not in the text", value=(subject, text))
        pieces = [self.tokenizer.bytes_of(id) for id in ids]
        whole = b"".join(pieces)
        if not whole.endswith(raw):  # a tokenizer may put a space before the first word
            raise MethodError("the tokens of this text do not spell it", value=text)
        end, reached = len(whole) - len(raw) + at + len(wanted), 0
        for index, piece in enumerate(pieces):
            reached += len(piece)
            if reached >= end:
                return ids, index
        raise AssertionError("the subject ends after the text")

    def tail(self, text: str) -> list[int]:
        """Return the tokens of a text that goes on after another."""
        return self.tokenizer.encode(text)

    def openings(self, count: int) -> list[str]:
        """Return the model's own words of 5 and 10 tokens, each a sentence to stand before."""
        if len(self._openings) < count:
            with torch.no_grad():
                self._openings[:] = self._drawn(count)
        return self._openings[:count]

    def read(
        self,
        rows: Sequence[Sequence[int]],
        layer: int,
        places: Sequence[int],
        patch: Patch | None = None,
    ) -> PackReading:
        """Return rows read up to a layer and to their own token each, with a patch in force."""
        return PackReading(self, rows, layer, places, self._force(patch))

    def weight(self, name: str) -> Tensor:
        """Return one weight as it stands, edits in force included, float32 [out, in]."""
        stored = self._weights(name)
        if isinstance(stored, Form) and not stored.is_linear:
            raise MethodError(
                "this layer rounds its inputs, so that no matrix says what it does",
                value=name,
                way_out="edit the model it was packed from",
            )
        dense = stored.float() if isinstance(stored, Tensor) else stored.dense()
        known = self._before is not None and name in self._before.parts
        return dense + self._before.delta(name) if known and self._before else dense

    def covariance(self, layer: int) -> Tensor:
        """Return E[k k^T] of what enters down_proj, [K, K]; prepared where it was not yet."""
        self.weight(down(layer))
        try:
            found = key_moments.covariance(self.pack, layer)
        except NotFoundError:
            key_moments.prepare_covariance(self.pack, [layer])
            found = key_moments.covariance(self.pack, layer)
        return found.tensors["covariance"]

    def covariance_near(self, facts: Sequence[Fact], layers: Sequence[int]) -> Mapping[int, Tensor]:
        """Return {layer: E[k k^T]} of what the model puts in the place of the facts' subjects."""
        return key_moments.covariance_near(self.pack, facts, layers, seed=self._seed)

    def artefact(self) -> Artefact:
        """Return what was prepared for the method at work."""
        if self._method is None or Need.ARTEFACT not in self._method.about.needs:
            raise NotFoundError("no method at work needs anything prepared")
        path = artefacts.path_of(self.pack.folder, self._method, self.spec.fingerprint)
        return artefacts.load(path, method=str(self._method), fingerprint=self.spec.fingerprint)

    # -- what others ask ------------------------------------------------------------------------

    def ends(
        self, rows: Sequence[Sequence[int]], lasts: Sequence[int], patch: Patch | None = None
    ) -> list[Tensor]:
        """Return logits [last, V] of the last tokens of rows of any lengths, read together."""
        length = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        multiply = self.multiply(self._force(patch))
        with torch.no_grad():  # what follows a row's end is not seen by it
            hidden = self.embed(padded)
            for index in range(self.spec.layers):
                hidden = decode_layer(self.spec, index, hidden, multiply, self.vector)
            return [
                self.head(h_Td[len(row) - last : len(row)])
                for h_Td, row, last in zip(hidden, rows, lasts, strict=True)
            ]

    def says(self, facts: Sequence[Fact], patch: Patch | None = None) -> list[bool]:
        """Return whether each fact's target is what the model says, token by token."""
        rows, lasts, targets = [], [], []
        for fact in facts:
            target = self.tail(fact.continuation)
            rows.append([*self.tokenizer.prompt(fact.prompt), *target[:-1]])
            lasts.append(len(target))
            targets.append(target)
        return [
            logits_tV.argmax(-1).tolist() == target
            for logits_tV, target in zip(self.ends(rows, lasts, patch), targets, strict=True)
        ]

    def moved(self, patch: Patch) -> dict[str, float]:
        """Return {matrix: |dW| / |W|} of a patch with what is in force, in Frobenius norms."""
        found = {}
        for name in patch.parts:
            stored = self._weights(name)
            weight = stored.float() if isinstance(stored, Tensor) else stored.dense()
            delta = joined([p for p in (self._before, patch) if p is not None]).delta(name)
            found[name] = float(delta.norm() / weight.norm())
        return found

    # -- what a reading needs -------------------------------------------------------------------

    def embed(self, rows_BT: Tensor) -> Tensor:
        """Return the hidden states [B, T, d] before the first layer."""
        return self._embed_Vd[rows_BT] * self.spec.embed_scale

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits of hidden states after the last layer."""
        return rms_norm(hidden, self.vector("norm"), self.spec) @ self._head_Vd.t()

    def vector(self, name: str) -> Tensor | None:
        """Return a norm or a bias."""
        if name not in self._vectors:
            self._vectors[name] = self._weights.vector(name)
        return self._vectors[name]

    def multiply(self, patch: Patch | None) -> Linear:
        """Return products with the weights, and with a patch beside them."""

        def product(name: str, x_NK: Tensor) -> Tensor:
            out_Nd = self._plain(name, x_NK)
            if patch is not None and name in patch.parts:
                left_dr, right_rK = patch.parts[name]
                out_Nd = out_Nd + x_NK @ right_rK.float().t() @ left_dr.float().t()
            return out_Nd

        return product

    def _plain(self, name: str, x_NK: Tensor) -> Tensor:
        dense = self._dense.get(name)
        if dense is None:
            stored = self._weights(name)
            elements = stored.shape[0] * stored.shape[1]
            held = sum(tensor.nbytes for tensor in self._dense.values())
            linear_form = isinstance(stored, Tensor) or stored.is_linear
            if not linear_form or held + 4 * elements > self._held_bytes:
                return linear(x_NK, stored)
            dense = stored.float() if isinstance(stored, Tensor) else stored.dense()
            self._dense[name] = dense
        return x_NK @ dense.t()

    def _force(self, patch: Patch | None) -> Patch | None:
        parts = [part for part in (self._before, patch) if part is not None and part.parts]
        return joined(parts) if len(parts) > 1 else parts[0] if parts else None

    def _drawn(self, count: int) -> list[str]:
        """Return words drawn from the model, 5 and 10 tokens in turn."""
        generator = torch.Generator().manual_seed(self._seed)
        firsts = [self.tokenizer.prompt(word) for word in _BEGINNINGS]
        rows = [list(firsts[index % len(firsts)]) for index in range(count)]
        plain = self.under(None)
        for _ in range(10):
            logits_BV = torch.cat(plain.ends(rows, [1] * count))
            best_Bk = logits_BV.topk(_CHOICES, dim=-1)
            picked = torch.multinomial(best_Bk.values.softmax(-1), 1, generator=generator)
            for row, id in zip(rows, best_Bk.indices.gather(1, picked)[:, 0].tolist(), strict=True):
                row.append(id)
        found = []
        for index, row in enumerate(rows):
            words = self.tokenizer.decode(row[: 5 if index % 2 == 0 else 10])
            found.append(" ".join(words.split()) + ".")
        return found


class PackReading:
    """Rows that a `PackModel` has read up to a layer; satisfies `methods.train.base.Reading`.

    Rows stand so that the tokens they were read to are below each other: what is missing before
    them is not seen, and what is missing behind them comes too late to be.
    """

    def __init__(
        self,
        model: PackModel,
        rows: Sequence[Sequence[int]],
        layer: int,
        places: Sequence[int],
        patch: Patch | None,
    ) -> None:
        self._model, self._layer = model, layer
        self._multiply = model.multiply(patch)
        self._taps: dict[int, tuple[Tensor, Tensor]] = {}
        place = max(places)
        self._tails = [len(row) - at for row, at in zip(rows, places, strict=True)]
        most = max(self._tails)
        missing = [place - at for at in places]
        self._unseen_B = torch.tensor(missing) if any(missing) else None
        rows_BT = torch.tensor(
            [
                [0] * (place - at) + list(row) + [0] * (most - tail)
                for row, at, tail in zip(rows, places, self._tails, strict=True)
            ]
        )
        self._past: list[Pair] = []  # of the tokens before, layer by layer as they are asked for
        with torch.no_grad():
            hidden = model.embed(rows_BT)
            for index in range(layer):
                hidden = self._layer_of(index, hidden, self._multiply)
            self._early_BTd, self._start_BTd = hidden[:, :place], hidden[:, place:]
            self._size = self._start_BTd.shape[:2]
            after = self._step(layer, self._start_BTd, None, {})
        x, y = self._taps[layer]
        self.key_BK, self.value_Bd = (t.view(*self._size, -1)[:, 0].clone() for t in (x, y))
        self.hidden_Bd = after[:, 0].clone()

    def logits(
        self,
        lasts: Sequence[int],
        *,
        shift_Bd: Tensor | None = None,
        changes: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Return logits [n, V] of the last tokens of each row; see `Reading`."""
        hidden = self._start_BTd
        for index in range(self._layer, self._model.spec.layers):
            hidden = self._step(index, hidden, shift_Bd, changes or {})
        ends = [
            h_Td[tail - last : tail]
            for h_Td, tail, last in zip(hidden, self._tails, lasts, strict=True)
        ]
        return self._model.head(torch.cat(ends))

    def slopes(self, loss: Tensor, layers: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Return {layer: (x [N, K], dy [N, d])} of the last `logits`; see `Reading`."""
        grads = torch.autograd.grad(loss, [self._taps[layer][1] for layer in layers])
        return {
            layer: (self._taps[layer][0].detach(), grad)
            for layer, grad in zip(layers, grads, strict=True)
        }

    def _step(
        self, index: int, hidden: Tensor, shift_Bd: Tensor | None, changes: Mapping[int, Tensor]
    ) -> Tensor:
        wanted = down(index)

        def product(name: str, x_NK: Tensor) -> Tensor:
            out_Nd = self._multiply(name, x_NK)
            if name != wanted:
                return out_Nd
            if index in changes:
                out_Nd = out_Nd + x_NK @ changes[index].t()
            if shift_Bd is not None and index == self._layer:
                out_BTd = out_Nd.view(*self._size, -1)
                shifted_B1d = (out_BTd[:, 0] + shift_Bd)[:, None]
                out_Nd = torch.cat([shifted_B1d, out_BTd[:, 1:]], 1).view(out_Nd.shape)
            if torch.is_grad_enabled() and not out_Nd.requires_grad:
                out_Nd = out_Nd.requires_grad_(True)
            self._taps[index] = x_NK, out_Nd
            return out_Nd

        return self._layer_of(index, hidden, product, past=self._before(index))

    def _before(self, index: int) -> Pair | None:
        """Return keys and values of the tokens before at a layer, None where there are none.

        Whoever asks for keys of one layer alone never has the later ones computed.
        """
        if not self._early_BTd.shape[1]:
            return None
        with torch.no_grad():
            while len(self._past) <= index - self._layer:
                at = self._layer + len(self._past)
                self._early_BTd = self._layer_of(
                    at, self._early_BTd, self._multiply, kept=self._past
                )
        return self._past[index - self._layer]

    def _layer_of(
        self,
        index: int,
        hidden: Tensor,
        multiply: Linear,
        *,
        past: Pair | None = None,
        kept: list[Pair] | None = None,
    ) -> Tensor:
        spec, vector = self._model.spec, self._model.vector
        return decode_layer(
            spec, index, hidden, multiply, vector, past=past, kept=kept, unseen_B=self._unseen_B
        )
