"""A packed model with thin products beside its weights, as it reads texts to learn from.

What texts begin with in common (the head of a chat) is read once for all of them. Texts of like
lengths go together, so that little is padded. Below the lowest layer with a product nothing ever
changes, so what it hands up is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from loci.models.pack import Pack
from loci.nn.decoder import Pair, decode_layer, rms_norm
from loci.nn.lmhead import ROWS
from loci.nn.packed_linear import linear
from loci.nn.patch import Patch
from loci.run.calibrate import PackWeights

PART_ROWS = 512  # tokens that go through the layers at once: some 1.5 MB each at 135M parameters
KEPT_BYTES = 2**28  # of what frozen layers hand up, kept from step to step

# Shapes: B texts, T tokens of one, n target tokens, d hidden, V vocabulary, r rank.


@dataclass(frozen=True)
class Sample:
    """A text whose end is to be learned: token ids before it, and its own."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


class Learner:
    """A packed model with thin products that may learn.

    Args:
        thin: {"layer.3.q_proj": (left [N, r], right [r, K])}.
        scale: what products are multiplied with.

    Attributes:
        dropout: share of the inputs of `right` that are left out, drawn by `generator`.
    """

    def __init__(
        self, pack: Pack, thin: Mapping[str, tuple[Tensor, Tensor]], scale: float = 1.0
    ) -> None:
        self.spec, self.thin, self.scale = pack.spec, thin, scale
        self._pack, self._weights = pack, PackWeights(pack)
        self._tiles = [pack.block(name)["weight"] for name, _ in pack.tiles("head")]
        self.first = min((int(name.split(".")[1]) for name in thin), default=0)
        self._below: dict[tuple[int, ...], Tensor] = {}
        self._room = KEPT_BYTES
        self.dropout, self.generator = 0.0, Generator()

    def head(self, hidden_nd: Tensor) -> Tensor:
        """Return logits [n, V]."""
        return torch.cat([linear(hidden_nd, tile) for tile in self._tiles], -1)

    def multiply(self, name: str, x: Tensor) -> Tensor:
        """Return a layer's output; gradients flow to its input and its thin product."""
        out = linear(x, self._weights(name))
        if name not in self.thin:
            return out
        left_Nr, right_rK = self.thin[name]
        if self.dropout:
            kept = torch.rand(x.shape, generator=self.generator) >= self.dropout
            x = x * kept / (1 - self.dropout)
        return out + (x @ right_rK.float().t()) @ (left_Nr.float().t() * self.scale)

    def below(self, ids: tuple[int, ...]) -> Tensor:
        """Return what the frozen layers hand up of a text, [T, d]; kept while there is room."""
        found = self._below.get(ids)
        if found is None:
            with torch.no_grad():
                found = self._pack.embed_rows(list(ids))[None] * self.spec.embed_scale
                for index in range(self.first):
                    found = self._layer(index, found)
                found = found[0]
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._below[ids] = found
        return found

    def hidden(self, texts: Sequence[tuple[int, ...]], ends: Sequence[int] = ()) -> list[Tensor]:
        """Return hidden states of each text after the final norm, from its `ends` token on.

        What all begin with is read once: the last token of that is before every end.
        """
        ends = ends or [0] * len(texts)
        shared = _shared(texts, min(ends))
        rows = [self.below(ids) for ids in texts]
        kept: list[Pair] = []
        if shared:
            before = rows[0][None, :shared]
            for index in range(self.first, self.spec.layers):
                before = self._layer(index, before, kept=kept)
        longest = max(map(len, texts)) - shared
        after = torch.stack(
            [pad(row[shared:], (0, 0, 0, longest - len(row) + shared)) for row in rows]
        )
        for place, index in enumerate(range(self.first, self.spec.layers)):
            past = None
            if shared:
                keys, values = kept[place]
                past = keys.expand(len(texts), -1, -1, -1), values.expand(len(texts), -1, -1, -1)
            after = self._layer(index, after, past=past)
        wanted = [
            after[at, end - shared : len(ids) - shared]
            for at, (ids, end) in enumerate(zip(texts, ends, strict=True))
        ]
        normed = rms_norm(torch.cat(wanted), self._weights.vector("norm"), self.spec)
        return list(normed.split([len(part) for part in wanted]))

    def answers(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Return the hidden states that predict all target tokens [n, d], and those tokens [n]."""
        texts = [(*one.prompt, *one.target[:-1]) for one in samples]
        found = self.hidden(texts, [len(one.prompt) - 1 for one in samples])
        return torch.cat(found), torch.tensor([id for one in samples for id in one.target])

    def loss(self, samples: Sequence[Sample]) -> float:
        """Return the mean cross entropy of all target tokens."""
        total = 0.0
        with torch.no_grad():
            for part in parts(samples):
                hidden_nd, wanted_n = self.answers(part)
                for start in range(0, len(wanted_n), ROWS):
                    logs = torch.log_softmax(self.head(hidden_nd[start : start + ROWS]), -1)
                    total -= float(logs.gather(1, wanted_n[start : start + ROWS, None]).sum())
        return total / sum(len(one.target) for one in samples)

    def _layer(
        self, index: int, hidden: Tensor, past: Pair | None = None, kept: list[Pair] | None = None
    ) -> Tensor:
        return decode_layer(
            self.spec, index, hidden, self.multiply, self._weights.vector, past=past, kept=kept
        )


def loss_of(pack: Pack, patch: Patch | None, samples: Sequence[Sample]) -> float:
    """Return the mean cross entropy of all target tokens, with a patch or without."""
    learner = Learner(pack, {} if patch is None else patch.parts)
    return learner.loss(samples)


def kl_of_patch(pack: Pack, patch: Patch, texts: Sequence[Sequence[int]]) -> float:
    """Return the mean KL from the model without the patch to it with, nats per token of texts."""
    full, changed = Learner(pack, {}), Learner(pack, patch.parts)
    total = 0.0
    with torch.no_grad():
        for ids in texts:
            one, other = (
                torch.log_softmax(m.head(m.hidden([tuple(ids)])[0]), -1) for m in (full, changed)
            )
            total += float((one.exp() * (one - other)).sum())
    return total / sum(map(len, texts))


def parts(samples: Sequence[Sample], rows: int = PART_ROWS) -> Iterator[list[Sample]]:
    """Yield the samples in parts of like lengths that hold at most `rows` tokens, padding too."""

    def length(one: Sample) -> int:
        return len(one.prompt) + len(one.target)

    part: list[Sample] = []
    for one in sorted(samples, key=length):
        if part and (len(part) + 1) * length(one) > rows:
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _shared(texts: Sequence[tuple[int, ...]], most: int) -> int:
    """Return how many tokens all texts begin with, at most `most`; of one text none is shared."""
    if len(texts) == 1:
        return 0
    count = 0
    while count < most and len({ids[count] for ids in texts}) == 1:
        count += 1
    return count
