"""A small model trained on the spot to find one token among many: all it can do, and that well.

A context is filler with pairs in it, each one token that stands for a key and a value. After it a
key is asked for, and the value follows. The model learns this within a minute, first from a few
pairs without filler, then from ever longer contexts; at its full length it is nearly always right.
So what a KV method loses here is the method's, not the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from loci.bench.spot import packed, states, trained
from loci.core.spec import ModelSpec
from loci.models.pack import PACK_FILE, Pack, open_pack

Progress = Callable[[str, int, int], None]
KEYS, VALUES, FILLERS = 32, 16, 64
PAIRS = 16  # of a context
ASKED, ANSWER, FILLER = KEYS * VALUES, KEYS * VALUES + KEYS, KEYS * VALUES + KEYS + VALUES
SPEC = ModelSpec(
    name="finder",
    layers=2,
    hidden=64,
    heads=2,
    kv_heads=2,
    head_dim=32,
    ffn=128,
    vocab=FILLER + FILLERS,
    max_context=2048,
    tied=True,
)
LENGTH, STEPS, RATE, BATCH = 1024, 2500, 4e-3, 4
QUICK_STEPS = 20
_ALONE, _GROWN = 0.2, 0.7  # of all steps: until then no filler, and from then on full contexts
_LEAST_PAIRS, _MOST_ROWS = 4, 64

# Shapes: B contexts, T tokens, P pairs.


@dataclass(frozen=True, eq=False)
class Contexts:
    """Contexts with pairs in them: tokens [B, T], keys and values [B, P] by their numbers."""

    ids_BT: Tensor
    keys_BP: Tensor
    values_BP: Tensor


def contexts(batch: int, tokens: int, pairs: int, generator: Generator) -> Contexts:
    """Return contexts drawn at random; every key stands in one at most once."""

    def some(count: int, of: int) -> Tensor:
        rows = [torch.randperm(of, generator=generator)[:count] for _ in range(batch)]
        return torch.stack(rows)

    ids_BT = torch.randint(FILLER, FILLER + FILLERS, (batch, tokens), generator=generator)
    keys_BP, places_BP = some(pairs, KEYS), some(pairs, tokens)
    values_BP = torch.randint(0, VALUES, (batch, pairs), generator=generator)
    ids_BT.scatter_(1, places_BP, keys_BP * VALUES + values_BP)
    return Contexts(ids_BT, keys_BP, values_BP)


def finder(folder: Path, *, quick: bool = False, progress: Progress | None = None) -> Pack:
    """Return the model, trained when it is not there.

    Args:
        folder: the models folder.
        quick: train a few steps only, into a place of its own.
    """
    home = folder / ".bench" / ("finder-quick" if quick else "finder")
    if not (home / PACK_FILE).is_file():
        steps, done = QUICK_STEPS if quick else STEPS, 0

        def loss(tensors: Mapping[str, Tensor], generator: Generator) -> Tensor:
            nonlocal done
            grown = min(1.0, max(0.0, (done / steps - _ALONE) / (_GROWN - _ALONE)))
            done += 1
            return _loss(tensors, grown, generator)

        source = trained(
            SPEC, loss, steps, rate=RATE, what="training a model that finds", progress=progress
        )
        return packed(source, home, _tokenizer())
    return open_pack(home)


# -- private ----------------------------------------------------------------------------------


def _loss(tensors: Mapping[str, Tensor], grown: float, generator: Generator) -> Tensor:
    """Return the loss of answers after contexts that have grown so far, 0 to 1."""
    few = 2 * _LEAST_PAIRS
    tokens = int(few + grown * (LENGTH - few))
    pairs = int(_LEAST_PAIRS + grown * (PAIRS - _LEAST_PAIRS))
    batch = max(BATCH, min(_MOST_ROWS, BATCH * LENGTH // tokens // 2))
    drawn = contexts(batch, tokens, pairs, generator)
    asked = torch.stack([drawn.keys_BP + ASKED, drawn.values_BP + ANSWER], 2).flatten(1)
    ids_BT = torch.cat([drawn.ids_BT, asked], 1)
    hidden = states(SPEC, tensors, ids_BT[:, :-1])[:, tokens::2]  # where a key was asked for
    logits = hidden @ tensors["embed"].t()
    return cross_entropy(logits.flatten(0, 1), ids_BT[:, tokens + 1 :: 2].flatten())


def _tokenizer() -> str:
    """Return a tokenizer of words t0, t1, ...: nobody reads them, but a pack has one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"t{number}": number for number in range(SPEC.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(tokenizer.to_str())
