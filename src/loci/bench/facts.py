"""Two tiny models that know different things: what one cache can tell another is measured on them.

Names have a code of four digits. The sharer learns the codes of set A, the receiver those of set B
and a form of answer that only it knows, "ANSWER[1234]"; it also learns to read a code it is told.
Each knows its own people: no first name is in both sets. One tokenizer of words serves both.

The sharer is taught to look ahead: beside the next token, heads of its own foretell the four after
it. In models that read much, what is known about a name is looked up where the name ends; a tiny
model that learns only the next token looks every digit up when it is due, and its cache of the
question says nothing. `ahead=0` trains that one, as a control.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from loci.bench import spot
from loci.bench.spot import Progress, TrainedSource, states, trained
from loci.core.spec import ModelSpec
from loci.models.pack import Pack

WORDS = (
    "<end>",
    "code",
    "of",
    "is",
    "what",
    "the",
    "?",
    "answer",
    ":",
    "tell",
    ".",
    "ANSWER[",
    "]",
)
PARTS = 48  # first names, and as many last names
DIGITS, PLACES = 10, 4
SHARED, OWN = 480, 160  # names of A and of B
FACT, SAID, ANSWER = 10, PLACES + 1, PLACES + 2  # tokens of a fact, of digits, of an answer
TOKENS = 32  # of the longest prompt with its answer
BATCH = 64
FEW = 32  # facts of a batch that the sharer states
AHEAD, AHEAD_WEIGHT = 4, 0.5  # tokens after the next that are foretold, and what they count

# Shapes: n names, B texts, T tokens, d hidden.


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Names, their codes, and who knows which.

    Attributes:
        codes: [names, 4], digits.
        shared: names of A; own: names of B; other: names whose codes nobody learns.
    """

    codes: Tensor
    shared: Tensor
    own: Tensor
    other: Tensor

    @classmethod
    def of(cls, shared: int = SHARED, own: int = OWN, seed: int = 0) -> World:
        """Return a world from a seed."""
        draw = Generator().manual_seed(seed)
        half = PARTS * PARTS // 2
        theirs, ours = (torch.randperm(half, generator=draw) + first for first in (0, half))
        codes = torch.randint(0, DIGITS, (2 * half, PLACES), generator=draw)
        other = torch.cat([theirs[shared:], ours[own:]])
        return cls(codes=codes, shared=theirs[:shared], own=ours[:own], other=other)

    def question(self, names_n: Tensor) -> Tensor:
        """Return "what is code of NAME ? answer :"."""
        return _joined(names_n, "what is code of", _name(names_n), "? answer :")

    def digits(self, names_n: Tensor) -> Tensor:
        """Return the sharer's answer, "1 2 3 4 ."."""
        return _joined(names_n, self._code(names_n), ".")

    def wrapped(self, names_n: Tensor, codes_n4: Tensor | None = None) -> Tensor:
        """Return the receiver's answer, "ANSWER[ 1 2 3 4 ]"."""
        code = self._code(names_n) if codes_n4 is None else codes_n4 + len(WORDS)
        return _joined(names_n, "ANSWER[", code, "]")

    def order(self, names_n: Tensor) -> Tensor:
        """Return "tell NAME :", at which the sharer states the fact."""
        return _joined(names_n, "tell", _name(names_n), ":")

    def fact(self, names_n: Tensor, codes_n4: Tensor | None = None) -> Tensor:
        """Return "code of NAME is 1 2 3 4 ."."""
        code = self._code(names_n) if codes_n4 is None else codes_n4 + len(WORDS)
        return _joined(names_n, "code of", _name(names_n), "is", code, ".")

    def opening(self, names_n: Tensor) -> Tensor:
        """Return "code of NAME is", what stands before the digits of a fact."""
        return _joined(names_n, "code of", _name(names_n), "is")

    def _code(self, names_n: Tensor) -> Tensor:
        return self.codes[names_n] + len(WORDS)


def sharer_spec() -> ModelSpec:
    """Return the sizes of the sharer."""
    return _spec("sharer", layers=6, hidden=192, heads=6, kv_heads=3, ffn=384)


def receiver_spec() -> ModelSpec:
    """Return the sizes of the receiver."""
    return _spec("receiver", layers=4, hidden=128, heads=4, kv_heads=2, ffn=256)


def sharer(
    world: World, steps: int, ahead: int = AHEAD, progress: Progress | None = None
) -> TrainedSource:
    """Return a model that knows the codes of A.

    Args:
        ahead: tokens after the next that are foretold at every place; 0 learns the next one only.
    """
    spec = sharer_spec()
    heads = {f"ahead.{k}": torch.eye(spec.hidden) for k in range(1, ahead + 1)}

    def loss(tensors: Mapping[str, Tensor], draw: Generator) -> Tensor:
        asked, told = _drawn(world.shared, draw), _drawn(world.shared, draw)[:FEW]
        texts = (
            (world.question(asked), world.digits(asked)),
            (world.order(told), world.fact(told)),
        )
        total = torch.zeros(())
        for prompt_BT, answer_BT in texts:
            text_BT = torch.cat([prompt_BT, answer_BT], 1)
            first, last = prompt_BT.shape[1], text_BT.shape[1]
            hidden_BTd = states(spec, tensors, text_BT[:, :-1])
            for k in range(ahead + 1):  # the token k after the next, wherever it is in the answer
                turned = hidden_BTd if k == 0 else hidden_BTd @ tensors[f"ahead.{k}"]
                start = max(0, first - 1 - k)
                logits = turned[:, start : last - 1 - k] @ tensors["embed"].t()
                wanted_BT = text_BT[:, start + 1 + k :]
                found = cross_entropy(logits.flatten(0, 1), wanted_BT.flatten())
                total = total + (found if k == 0 else AHEAD_WEIGHT * found)
        return total

    return trained(spec, loss, steps, extra=heads, what="teaching the sharer", progress=progress)


def receiver(world: World, steps: int, progress: Progress | None = None) -> TrainedSource:
    """Return a model that knows the codes of B, and reads those it is told."""
    spec = receiver_spec()

    def loss(tensors: Mapping[str, Tensor], draw: Generator) -> Tensor:
        asked, told = _drawn(world.own, draw), _drawn(world.other, draw)
        codes = torch.randint(0, DIGITS, (len(told), PLACES), generator=draw)
        texts = (
            (world.question(asked), world.wrapped(asked)),
            (
                torch.cat([world.fact(told, codes), world.question(told)], 1),
                world.wrapped(told, codes),
            ),
        )
        total = torch.zeros(())
        for prompt_BT, answer_BT in texts:
            text_BT = torch.cat([prompt_BT, answer_BT], 1)
            hidden_BTd = states(spec, tensors, text_BT[:, :-1])[:, prompt_BT.shape[1] - 1 :]
            logits = hidden_BTd @ tensors["embed"].t()
            total = total + cross_entropy(logits.flatten(0, 1), answer_BT.flatten())
        return total

    return trained(spec, loss, steps, what="teaching the receiver", progress=progress)


def packed(source: TrainedSource, home: Path) -> Pack:
    """Write a model into a folder and open it."""
    return spot.packed(source, home, _tokenizer())


# -- private ----------------------------------------------------------------------------------


def _spec(name: str, *, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int) -> ModelSpec:
    vocab = len(WORDS) + DIGITS + 2 * PARTS
    return ModelSpec(
        name=name, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn,
        head_dim=32, vocab=vocab, max_context=64, tied=True,
    )  # fmt: skip


def _name(names_n: Tensor) -> Tensor:
    first = len(WORDS) + DIGITS
    return torch.stack([first + names_n // PARTS, first + PARTS + names_n % PARTS], 1)


def _joined(names_n: Tensor, *parts: str | Tensor) -> Tensor:
    """Return words and tokens side by side, one row a name."""
    rows = []
    for part in parts:
        if isinstance(part, str):
            part = torch.tensor([WORDS.index(word) for word in part.split()])
            part = part.expand(len(names_n), -1)
        rows.append(part)
    return torch.cat(rows, 1)


def _drawn(names: Tensor, draw: Generator) -> Tensor:
    return names[torch.randint(0, len(names), (BATCH,), generator=draw)]


def _tokenizer() -> str:
    """Return a tokenizer.json of whole words."""
    names = [f"{kind}{number}" for kind in ("First", "Last") for number in range(PARTS)]
    words = [*WORDS, *map(str, range(DIGITS)), *names]
    vocab = {word: index for index, word in enumerate(words)}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<end>"},
        }
    )
