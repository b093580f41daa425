"""Corrections of low rank, trained until a packed model imitates the one it was made from.

Y. Chai et al., "INT2.1", 2023, arXiv:2306.08162: low-rank error correction. The packed weights stay
as they are; only the thin matrices beside them learn. The loss is

    KL(original || corrected) + 0.1 * cross entropy of the text,   each a mean over tokens

and the original runs beside the student, so that no logits are stored. Nothing of a packed weight
is kept for the way back (`nn.packed_linear.linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loci.errors import ParameterError
from loci.models.pack import Pack
from loci.nn.adjusted import AdjustedWeight
from loci.nn.decoder import decode
from loci.nn.form import Form
from loci.nn.lmhead import head_loss
from loci.nn.packed_linear import linear
from loci.run.calibrate import PackWeights
from loci.run.trainer import cosine

Progress = Callable[[str, int, int], None]

# Shapes: S texts, T tokens of a text, d hidden, V vocabulary, n tokens of a part.


@dataclass(frozen=True, kw_only=True)
class Training:
    """How corrections are trained.

    Attributes:
        steps: each on one text; texts are taken in turns.
        rate: of Adam, falling to 0 along a cosine after a short rise.
        kl, ce: weights of the two losses, per token.
        seed: of the order of texts.
    """

    steps: int = 200
    rate: float = 3e-4
    kl: float = 1.0
    ce: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """What training gave.

    Attributes:
        forms: all layers, corrections trained, in float16.
        losses: KL of every step, nats per token, as the student had it then.
    """

    forms: dict[str, Form]
    losses: tuple[float, ...]


def corrected(
    pack: Pack,
    forms: Mapping[str, Form],
    ids_ST: Tensor,
    training: Training | None = None,
    *,
    progress: Progress | None = None,
) -> Corrected:
    """Return the forms with their corrections trained.

    Args:
        forms: packed layers by name; those with a correction of low rank learn, the rest stays.
        ids_ST: texts to learn from.

    Raises:
        ParameterError: if no layer has a correction, or a loss is not finite: then nothing of what
            was learned is kept.
    """
    training = training or Training()
    if training.steps < 1 or ids_ST.numel() == 0 or ids_ST.shape[1] < 2:
        raise ParameterError(
            "training needs a step and a text", value=(training.steps, tuple(ids_ST.shape))
        )
    student = _Student(forms)
    weights = PackWeights(pack)
    table = weights.table("embed")
    head = table if pack.spec.tied else weights.table("head")
    optimizer = torch.optim.Adam(student.parameters(), lr=training.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(training.steps))
    generator = torch.Generator().manual_seed(training.seed)
    order: list[int] = []
    losses: list[float] = []
    for step in range(training.steps):
        order = order or torch.randperm(len(ids_ST), generator=generator).tolist()
        ids_T = ids_ST[order.pop()]
        embedded = table[ids_T].unsqueeze(0)
        with torch.no_grad():
            teacher_Td = decode(pack.spec, embedded, weights.plain, weights.vector)[0]
        hidden_Td = decode(pack.spec, embedded, student.multiply, weights.vector)[0]
        loss, slope_Td = _loss(hidden_Td.detach(), teacher_Td, head, ids_T, training)
        if not torch.isfinite(slope_Td).all():
            raise ParameterError(
                "the loss of a step is not finite",
                value=f"step {step}",
                way_out=f"train with a smaller rate than {training.rate:g}",
            )
        optimizer.zero_grad()
        hidden_Td.backward(slope_Td)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss)
        if progress is not None:
            progress("training corrections", step + 1, training.steps)
    return Corrected(forms=student.forms(), losses=tuple(losses))


# -- private ----------------------------------------------------------------------------------


class _Student:
    """Packed layers whose corrections are parameters."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._forms = dict(forms)
        self._thin: dict[str, tuple[Tensor, Tensor]] = {}
        for name, form in forms.items():
            if isinstance(form, AdjustedWeight) and form.left is not None:
                assert form.right is not None
                left, right = form.left.float(), form.right.float()
                # Both sides of the same size, so that one rate suits both.
                scale = (right.norm() / left.norm().clamp(min=1e-12)).sqrt().clamp(1e-3, 1e3)
                self._thin[name] = (
                    (left * scale).requires_grad_(True),
                    (right / scale).requires_grad_(True),
                )
        if not self._thin:
            raise ParameterError(
                "no layer has a correction to train", way_out="pack with int21(rank=8)"
            )
        self._bare = {n: replace(self._adjusted(n), left=None, right=None) for n in self._thin}

    def parameters(self) -> list[Tensor]:
        """Return everything that learns."""
        return [tensor for pair in self._thin.values() for tensor in pair]

    def multiply(self, name: str, x: Tensor) -> Tensor:
        """Return a layer's output; gradients flow to its input and its correction."""
        if name not in self._thin:
            return linear(x, self._forms[name])
        left_Nr, right_rK = self._thin[name]
        return linear(x, self._bare[name]) + x @ right_rK.t() @ left_Nr.t()

    def forms(self) -> dict[str, Form]:
        """Return all layers with what was learned."""
        return self._forms | {
            name: replace(
                self._adjusted(name),
                left=left.detach().to(torch.float16),
                right=right.detach().to(torch.float16),
            )
            for name, (left, right) in self._thin.items()
        }

    def _adjusted(self, name: str) -> AdjustedWeight:
        form = self._forms[name]
        assert isinstance(form, AdjustedWeight)
        return form


def _loss(
    hidden_Td: Tensor, teacher_Td: Tensor, head_Vd: Tensor, ids_T: Tensor, training: Training
) -> tuple[float, Tensor]:
    """Return the KL, and the derivative of the whole loss by the hidden states."""
    tokens, total = len(ids_T), 0.0

    def loss(logs_nV: Tensor, which: slice) -> Tensor:
        nonlocal total
        with torch.no_grad():
            real_nV = torch.log_softmax(teacher_Td[which] @ head_Vd.t(), dim=-1)
        kl = (real_nV.exp() * (real_nV - logs_nV)).sum() / tokens
        next_n = ids_T[which.start + 1 : which.stop + 1]  # the last token has none
        ce = cross_entropy(logs_nV[: len(next_n)], next_n, reduction="sum") / max(1, tokens - 1)
        total += float(kl.detach())
        return training.kl * kl + training.ce * ce

    _, slope_Td = head_loss(hidden_Td, lambda part_nd: part_nd @ head_Vd.t(), loss)
    return total, slope_Td
