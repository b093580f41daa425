"""What editors learn before they edit: MEND's network for a model, SERAC's scope for an embedder.

Both are artefacts: made once, kept beside what they were made for, refused for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loci.core.ports import Embedder
from loci.errors import NotFoundError, ParameterError
from loci.methods.train.base import Fact
from loci.methods.train.mend import Mend, changes, gradients
from loci.methods.train.serac import Serac
from loci.run import artefacts
from loci.run.edit_model import PackModel, PackReading
from loci.text.scopes import Pair, pairs

Progress = Callable[[str, int, int], None]
_SEEN = 64  # facts by whose gradients the network's inputs are normalised
_STEP_OF_SIZES = 10.0  # the sizes of steps learn this much faster than the matrices

# Shapes: n tokens that count, V vocabulary, E width of an embedder.


@dataclass(frozen=True, kw_only=True)
class Triple:
    """One lesson: a fact, another prompt with the same target, and a prompt that must stay."""

    fact: Fact
    paraphrase: Fact
    other: str

    def __post_init__(self) -> None:
        if self.fact.continuation != self.paraphrase.continuation:
            raise ParameterError(
                "a paraphrase has the target of its fact",
                value=(self.fact.text, self.paraphrase.text),
            )


def train_mend(
    model: PackModel,
    triples: Sequence[Triple],
    method: Mend,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> artefacts.Artefact:
    """Return MEND's network for a model, trained on triples that are drawn at random.

    Raises:
        ParameterError: if there is no triple, or the loss is not finite: nothing is kept then.
    """
    if not triples:
        raise ParameterError("there is nothing to learn from", way_out="give at least one triple")
    layers = method.layers(model.spec)
    generator = torch.Generator().manual_seed(seed)
    lessons: dict[int, _Lesson] = {}
    seen = [gradients(model, one.fact, layers) for one in triples[:_SEEN]]
    learned = method.fresh(model.spec, seen, generator)
    fixed = {name for name in learned if name.endswith((".mean", ".std"))}
    sizes = [learned[f"{layer}.alpha"].requires_grad_(True) for layer in layers]
    rest = [
        tensor.requires_grad_(True)
        for name, tensor in learned.items()
        if name not in fixed and not name.endswith(".alpha")
    ]
    optimizer = torch.optim.Adam(
        [
            {"params": rest, "lr": method.rate},
            {"params": sizes, "lr": method.alpha * method.rate * _STEP_OF_SIZES},
        ]
    )
    losses: list[tuple[float, float]] = []
    for step in range(method.steps):
        index = int(torch.randint(len(triples), (), generator=generator))
        if index not in lessons:
            lessons[index] = _Lesson(model, triples[index], layers)
        said, drift = lessons[index].losses(
            {
                k: left @ right
                for k, (left, right) in changes(learned, lessons[index].slopes).items()
            }
        )
        loss = method.edit_weight * said + drift
        if not torch.isfinite(loss):
            raise ParameterError(
                "the loss of a step is not finite",
                value=f"step {step}",
                way_out=f"train with a smaller rate than {method.rate:g}",
            )
        (loss / method.gather).backward()
        losses.append((float(said.detach()), float(drift.detach())))
        if (step + 1) % method.gather == 0 or step + 1 == method.steps:
            torch.nn.utils.clip_grad_norm_(rest + sizes, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if progress is not None:
            progress("training an editor", step + 1, method.steps)
    tail = losses[-max(1, len(losses) // 10) :]
    return artefacts.Artefact(
        method=str(method),
        fingerprint=model.spec.fingerprint,
        tensors={name: tensor.detach().contiguous() for name, tensor in learned.items()},
        facts={
            "triples": len(triples),
            "first_loss": losses[0],
            "last_loss": [sum(part) / len(tail) for part in zip(*tail, strict=True)],
        },
    )


def train_scope(
    embedder: Embedder, method: Serac, *, lessons: Sequence[Pair] | None = None, seed: int = 0
) -> artefacts.Artefact:
    """Return SERAC's scope for an embedder, learned from made-up questions."""
    lessons = pairs(seed) if lessons is None else lessons
    texts = list(dict.fromkeys(text for pair in lessons for text in (pair.left, pair.right)))
    rows = dict(zip(texts, torch.as_tensor(embedder.encode(texts)), strict=True))
    learned = method.fit(
        torch.stack([rows[pair.left] for pair in lessons]),
        torch.stack([rows[pair.right] for pair in lessons]),
        torch.tensor([pair.same for pair in lessons]),
    )
    return artefacts.Artefact(
        method=str(method),
        fingerprint=embedder_fingerprint(embedder),
        tensors=learned,
        facts={"pairs": len(lessons)},
    )


def scope_of(embedder: Embedder, method: Serac, folder: Path) -> artefacts.Artefact:
    """Return the scope kept in a folder for this embedder, learned and kept where it was not."""
    fingerprint = embedder_fingerprint(embedder)
    path = artefacts.path_of(folder, method, fingerprint)
    try:
        return artefacts.load(path, method=str(method), fingerprint=fingerprint)
    except NotFoundError:
        made = train_scope(embedder, method)
        artefacts.save(made, path)
        return made


def embedder_fingerprint(embedder: Embedder) -> str:
    """Return what tells an embedder from others; strangers' go by their class."""
    return str(getattr(embedder, "fingerprint", type(embedder).__qualname__))


# -- private ----------------------------------------------------------------------------------


class _Lesson:
    """One triple as far as it does not depend on what is learned."""

    def __init__(self, model: PackModel, triple: Triple, layers: Sequence[int]) -> None:
        self.slopes = gradients(model, triple.fact, layers)
        target = model.tail(triple.paraphrase.continuation)
        rows = [[*model.row(triple.paraphrase.prompt)[0], *target[:-1]], model.row(triple.other)[0]]
        self._lasts, self._wanted_n1 = [len(target), 1], torch.tensor(target)[:, None]
        self._reading: PackReading = model.read(rows, layers[0], [0, 0])
        with torch.no_grad():
            self._before_V = torch.log_softmax(self._reading.logits(self._lasts)[-1], dim=-1)

    def losses(self, change: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the paraphrase's loss by token, and the KL at the other prompt's end."""
        logs_nV = torch.log_softmax(self._reading.logits(self._lasts, changes=change), dim=-1)
        said = -logs_nV[:-1].gather(1, self._wanted_n1).mean()
        return said, (self._before_V.exp() * (self._before_V - logs_nV[-1])).sum()
