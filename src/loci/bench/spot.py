"""A small language model trained on the spot in float32: weights that no grid has touched.

The default model's own weights lie on a 4-bit grid, so a method that hits the grid loses nothing
there and proves nothing. This one is trained in a few minutes on text that every machine has, the
documentation strings of Python's own library and the first half of its help topics; the second half
stays unseen. It is kept in the models folder under a name that is not listed.

A second one has as many key heads as query heads, and is shown longer texts: for methods of the KV
cache whose papers speak of such models, where the default model shares its keys.
"""

from __future__ import annotations

import ast
import math
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loci.core.spec import ModelSpec
from loci.models.pack import PACK_FILE, Pack, Weight, expected_tensors, open_pack, write_pack
from loci.nn.decoder import decode
from loci.text.prose import first_half

Progress = Callable[[str, int, int], None]
SPEC = ModelSpec(
    name="spot",
    layers=4,
    hidden=256,
    heads=4,
    kv_heads=2,
    head_dim=64,
    ffn=768,
    vocab=2048,
    max_context=512,
    tied=True,
)
MULTI = replace(SPEC, name="spot-multi", kv_heads=SPEC.heads, max_context=1024)
STEPS, BATCH, LENGTH, RATE = 1000, 8, 128, 2e-3
LONG, FEW = 512, 2  # tokens of a text and texts of a step, for the second one
QUICK_STEPS = 20
_CHARACTERS = 4_000_000  # of documentation strings; more than this many steps read

# Shapes: B texts, T tokens.


def spot(
    folder: Path, *, quick: bool = False, multi: bool = False, progress: Progress | None = None
) -> Pack:
    """Return a model, trained when it is not there.

    Args:
        folder: the models folder.
        quick: train a few steps only, into a place of its own.
        multi: the one with a key head for every query head.
    """
    spec = MULTI if multi else SPEC
    home = folder / ".bench" / (f"{spec.name}-quick" if quick else spec.name)
    if not (home / PACK_FILE).is_file():
        tokenizer = _tokenizer()
        source = _train(spec, tokenizer, QUICK_STEPS if quick else STEPS, progress)
        return packed(source, home, tokenizer)
    return open_pack(home)


def packed(source: TrainedSource, home: Path, tokenizer: str) -> Pack:
    """Write a model and its tokenizer.json into a folder, and open it."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    write_pack(
        source,
        home / PACK_FILE,
        extra={
            "source": {"file": "trained on the spot"},
            "tokenizer": {"file": "tokenizer.json"},
            "chat_template": None,
            "special": {"bos": None, "eos": [0], "pad": 0, "unk": None, "add_bos": False},
        },
    )
    return open_pack(home)


def corpus() -> str:
    """Return the text it is trained on: documentation strings, and half of the help topics."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: list[str] = []
    size = 0
    for file in sorted(library.rglob("*.py")):
        if "site-packages" in file.parts or "test" in file.parts or "pydoc_data" in file.parts:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # files that test the parser
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 60:
                    found.append(text)
                    size += len(text)
        if size > _CHARACTERS:
            break
    return "\n\n".join([*found, first_half()])


def trained(
    spec: ModelSpec,
    loss: Callable[[Mapping[str, Tensor], torch.Generator], Tensor],
    steps: int,
    *,
    rate: float = RATE,
    extra: Mapping[str, Tensor] | None = None,
    what: str = "training a small model",
    progress: Progress | None = None,
) -> TrainedSource:
    """Return a model trained from a fixed seed by AdamW, its rate falling along a cosine.

    Args:
        loss: called with the tensors by our names and a generator to draw texts with.
        extra: tensors that learn beside the model and are no part of it.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else _start(spec, name, shape, generator)
        for name, shape in expected_tensors(spec).items()
    }
    learns = tensors | dict(extra or {})
    for tensor in learns.values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(list(learns.values()), lr=rate, weight_decay=0.05)
    for step in range(steps):
        rise = min(1.0, (step + 1) / (0.05 * steps))
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * rise * fall
        lost = loss(learns, generator)
        optimizer.zero_grad()
        lost.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(learns.values()), 1.0)
        optimizer.step()
        if progress is not None:
            progress(what, step + 1, steps)
    return TrainedSource(spec, {name: tensors[name].detach() for name in tensors})


def states(spec: ModelSpec, tensors: Mapping[str, Tensor], ids_BT: Tensor) -> Tensor:
    """Return the hidden states [B, T, d] of a model that is trained, after the final norm."""
    return decode(
        spec,
        tensors["embed"][ids_BT],
        lambda name, x: x @ tensors[name].t(),
        lambda name: tensors.get(name),
    )


class TrainedSource:
    """Trained tensors as a source for a pack."""

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor]) -> None:
        self.spec, self.path, self.file_bytes = spec, Path(spec.name), 0
        self._tensors = tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape."""
        found = self._tensors.get(name)
        return None if found is None else tuple(found.shape)

    def tensor(self, name: str, rows: slice | None = None) -> Weight:
        """Return a tensor, or some of its rows."""
        return self._tensors[name] if rows is None else self._tensors[name][rows]

    def strangers(self, known: set[str]) -> list[str]:
        """There are none."""
        return []


def _tokenizer() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SPEC.vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus()], trainer)
    return str(tokenizer.to_str())


def _train(spec: ModelSpec, tokenizer: str, steps: int, progress: Progress | None) -> TrainedSource:
    from tokenizers import Tokenizer

    length, batch = (LONG, FEW) if spec is MULTI else (LENGTH, BATCH)
    ids = torch.tensor(Tokenizer.from_str(tokenizer).encode(corpus()).ids)

    def loss(tensors: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        starts = torch.randint(0, len(ids) - length - 1, (batch,), generator=generator)
        text_BT = torch.stack([ids[start : start + length + 1] for start in starts.tolist()])
        logits = states(spec, tensors, text_BT[:, :-1]) @ tensors["embed"].t()
        return cross_entropy(logits.flatten(0, 1), text_BT[:, 1:].flatten())

    return trained(spec, loss, steps, progress=progress)


def _start(
    spec: ModelSpec, name: str, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    if name == "embed":
        return torch.randn(shape, generator=generator) * 0.02
    depth = math.sqrt(2 * spec.layers) if name.endswith(("o_proj", "down_proj")) else 1.0
    return torch.randn(shape, generator=generator) / math.sqrt(shape[-1]) / depth
