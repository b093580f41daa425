"""Text a model writes itself: what it is looked at with where prose of one kind would mislead.

Technical prose names few people and places. A mean over it takes the directions that all names
share for unused, and an edit of one name then moves its neighbours. So the model goes on from
openings about many kinds of things, and what it wrote is averaged over instead. Kept beside the
model, as it takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loci.errors import NotFoundError, ParameterError
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.decoder import Pair, decode_layer, rms_norm
from loci.nn.packed_linear import linear
from loci.run import artefacts
from loci.run.calibrate import PackWeights
from loci.run.sampling import Sampling, choose

Progress = Callable[[str, int, int], None]
TOKENS = 64  # written after an opening at most
CHOICE = Sampling(temperature=1.0, top_p=0.95)
_TOGETHER = 48  # texts written at once

# What makes the model name things of many kinds. No wording of the bench's facts is among them.
OPENINGS = (
    "A short biography of the",
    "The most famous people of the century are",
    "She was born in the town of",
    "He grew up speaking",
    "My friends come from many countries:",
    "The biggest cities in the world include",
    "On our journey we first visited",
    "A list of rivers and mountains:",
    "The museum in the old town of",
    "News: the president of",
    "The company announced that its founder",
    "The scientist won the prize for",
    "A famous painter, a composer and a writer:",
    "The king and the queen of",
    "In the periodic table we find",
    "Words and what they mean:",
    "The animals that live in",
    "The battle took place near",
    "Recipe: a traditional dish from",
    "The film tells the story of",
    "The team from",
    "According to the map,",
    "The language spoken by",
    "Once upon a time",
)

# Shapes: B texts, T tokens, d hidden, V vocabulary.


def own_text(
    pack: Pack, *, texts: int, length: int, seed: int = 0, progress: Progress | None = None
) -> Tensor:
    """Return token ids int64 [texts, length] that a model wrote; written and kept if they were not.

    Raises:
        ParameterError: if nothing is asked for.
    """
    if texts < 1 or length < 2:
        raise ParameterError("a text has at least two tokens", value=(texts, length))
    name = f"own_text(texts={texts}, length={length}, seed={seed})"
    path = artefacts.path_of(pack.folder, name, pack.spec.fingerprint)
    try:
        return artefacts.load(path, method=name, fingerprint=pack.spec.fingerprint).tensors["ids"]
    except NotFoundError:
        ids_ST = _written(pack, texts, length, seed, progress)
    made = artefacts.Artefact(
        method=name,
        fingerprint=pack.spec.fingerprint,
        tensors={"ids": ids_ST},
        facts={"openings": len(OPENINGS), "choice": str(CHOICE)},
    )
    artefacts.save(made, path)
    return ids_ST


def gone_on(
    pack: Pack,
    starts: Sequence[Sequence[int]],
    tokens: int,
    generator: torch.Generator,
    *,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Return the tokens of every start and at most so many that the model draws after it."""
    model, ends = _Writer(pack), Tokenizer(pack.folder).eos_ids
    found: list[list[int]] = []
    for first in range(0, len(starts), _TOGETHER):
        part = starts[first : first + _TOGETHER]
        for start, row in zip(part, model.written(part, tokens, generator), strict=True):
            fresh = row[len(start) :]
            stop = next((at for at, id in enumerate(fresh) if id in ends), len(fresh))
            found.append(row[: len(start) + stop])
        if progress is not None:
            progress("writing text of its own", len(found), len(starts))
    return found


# -- private ----------------------------------------------------------------------------------


def _written(pack: Pack, texts: int, length: int, seed: int, progress: Progress | None) -> Tensor:
    tokenizer, generator = Tokenizer(pack.folder), torch.Generator().manual_seed(seed)
    openings, between = [tokenizer.prompt(text) for text in OPENINGS], tokenizer.encode("\n\n")
    wanted, ids, turn = texts * length, list[int](), 0
    while len(ids) < wanted:
        starts = [openings[(turn + at) % len(openings)] for at in range(_TOGETHER)]
        turn += _TOGETHER
        for row in gone_on(pack, starts, TOKENS, generator):
            ids += [*row, *between]
        if progress is not None:
            progress("writing text to look at", min(len(ids), wanted), wanted)
    return torch.tensor(ids[:wanted]).view(texts, length)


class _Writer:
    """A pack that goes on from many openings at once."""

    def __init__(self, pack: Pack) -> None:
        self._pack, self._weights = pack, PackWeights(pack)
        embed = self._weights.table("embed")
        self._head_Vd = embed if pack.spec.tied else self._weights.table("head")

    def written(
        self, starts: Sequence[Sequence[int]], tokens: int, generator: torch.Generator
    ) -> list[list[int]]:
        """Return the tokens of every opening and so many after it."""
        longest = max(map(len, starts))
        missing = [longest - len(row) for row in starts]
        unseen_B = torch.tensor(missing)
        rows = [list(row) for row in starts]
        ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        past: list[Pair] | None = None
        with torch.no_grad():
            for _ in range(tokens):
                logits_BV, past = self._read(ids_BT, past, unseen_B)
                picked_B = choose(logits_BV, CHOICE, generator)
                for row, id in zip(rows, picked_B.tolist(), strict=True):
                    row.append(id)
                ids_BT = picked_B[:, None]
        return rows

    def _read(
        self, ids_BT: Tensor, past: list[Pair] | None, unseen_B: Tensor
    ) -> tuple[Tensor, list[Pair]]:
        spec, weights = self._pack.spec, self._weights
        rows = self._pack.embed_rows(ids_BT.flatten())
        hidden = rows.view(*ids_BT.shape, -1) * spec.embed_scale
        fresh: list[Pair] = []
        for layer in range(spec.layers):
            hidden = decode_layer(
                spec,
                layer,
                hidden,
                self._product,
                weights.vector,
                past=None if past is None else past[layer],
                kept=fresh,
                unseen_B=unseen_B,
            )
        ends_Bd = rms_norm(hidden[:, -1], weights.vector("norm"), spec)
        if past is not None:
            fresh = [
                (torch.cat([k, k1], 2), torch.cat([v, v1], 2))
                for (k, v), (k1, v1) in zip(past, fresh, strict=True)
            ]
        return ends_Bd @ self._head_Vd.t(), fresh

    def _product(self, name: str, x_NK: Tensor) -> Tensor:
        return linear(x_NK, self._weights(name))
