"""SERAC: keep edits beside the model, and answer from the one a question is about.

E. Mitchell, C. Lin, A. Bosselut, C. D. Manning, C. Finn, "Memory-Based Model Editing at Scale",
2022, arXiv:2206.06520. No weight changes. A classifier compares the question x with every edit z,

    beta(x, z) = exp(-s sum_j w_j (E(x)_j - E(z)_j)^2),

and where the best is above 1/2 a counterfactual model answers from z and x; the model itself
answers everything else. So locality is the classifier's business alone, and an edit is revoked by
taking it out of the list.

Differs from the paper: E is a frozen sentence embedder and only the metric w and the scale s are
learned, in seconds; z is embedded without its target; the counterfactual model is the model itself
with the edit before the question. Not for: consequences of an edit, which no wording shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.core.ports import Artefact, Embedder
from loci.core.spec import ModelSpec, Workload
from loci.errors import FormatError, ParameterError
from loci.methods.train.base import Fact, Hit, Overlay

# Shapes: q questions, F facts, n pairs, E width of the embedder.

WIDTH = 384  # of the default embedder, for `predict`
_PULL = 1e-3  # holds the metric near the plain one


@dataclass(frozen=True, kw_only=True)
class Serac(Overlay):
    """A list of edits, a learned scope, and the model itself to answer from them."""

    about = About(
        name="serac",
        kind=Kind.TRAIN,
        paper="arXiv:2206.06520",
        idea="edits stand in a list; a question in the scope of one is answered from it",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT, Need.EMBEDDER),
        frees=Frees.NOTHING,
        reconstruction="the scope's metric over a frozen embedder, and the model as its own "
        "counterfactual model",
    )

    bar: Annotated[float, Param(help="beta above which a question is in scope", ge=0.0, le=1.0)] = (
        0.5
    )
    steps: Annotated[int, Param(help="of training the scope", ge=1)] = 300
    rate: Annotated[float, Param(help="of Adam", ge=0.0)] = 0.03

    def scope(
        self,
        questions: Sequence[str],
        facts: Sequence[Fact],
        embedder: Embedder,
        artefact: Artefact,
    ) -> list[Hit | None]:
        """Return, for every question, the fact it is about, or None."""
        if not facts or not questions:
            return [None] * len(questions)
        asked_qE = torch.as_tensor(embedder.encode(list(questions)))
        known_FE = torch.as_tensor(embedder.encode([fact.prompt for fact in facts]))
        betas_qF = beta(asked_qE[:, None], known_FE[None], artefact.tensors)
        best_q = betas_qF.max(dim=1)
        return [
            Hit(index=index, score=score) if score > self.bar else None
            for score, index in zip(best_q.values.tolist(), best_q.indices.tolist(), strict=True)
        ]

    def prompt(self, question: str, fact: Fact) -> str:
        """Return the edit and the question, as the model reads them.

        A small model does not believe what it is told once. These words were chosen among twelve
        on 14 facts of the table, not kept apart from those the suite reports on: SmolLM2-135M says
        86 % of made-up facts after them, and 7 % after the fact alone.
        """
        told, answer = fact.text, fact.continuation.strip()
        return (
            f"Remember: {told} {told[:-1]}, not anything else. "
            f"The answer is {answer}. So: {question}"
        )

    def fit(self, left_nE: Tensor, right_nE: Tensor, same_n: Tensor) -> dict[str, Tensor]:
        """Return the metric and the scale learned from pairs of embeddings.

        Args:
            same_n: bool, whether the two are in each other's scope.

        Raises:
            ParameterError: if there are not pairs of both kinds.
        """
        if not same_n.any() or same_n.all():
            raise ParameterError("a scope is learned from pairs of both kinds", value=len(same_n))
        squares_nE = (left_nE - right_nE).square()
        logs_E = torch.zeros(left_nE.shape[1], requires_grad=True)
        scale = torch.tensor(1.0, requires_grad=True)
        optimizer = torch.optim.Adam([logs_E, scale], lr=self.rate)
        share = float(same_n.float().mean())
        for _ in range(self.steps):
            far_n = scale.exp() * (squares_nE @ logs_E.exp()) + 1e-6
            # -log beta is the distance; both kinds of pairs count as much together.
            loss = (
                far_n[same_n].sum() / share
                - torch.log(-torch.expm1(-far_n[~same_n])).sum() / (1 - share)
            ) / len(same_n)
            optimizer.zero_grad()
            (loss + _PULL * logs_E.square().sum()).backward()
            optimizer.step()
        return {"metric": logs_E.detach().exp(), "scale": scale.detach().exp()}

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of the scope and of one edit's vector; the edit's text is read again."""
        return Cost(held={"dram": 4 * (2 * WIDTH + 1)}, loss=None)


def beta(left: Tensor, right: Tensor, learned: object) -> Tensor:
    """Return how surely two embeddings [..., E] are in each other's scope, 0 to 1."""
    try:
        metric_E, scale = learned["metric"], learned["scale"]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise FormatError(f"this is no scope: it lacks {error}") from error
    if metric_E.shape != left.shape[-1:]:
        raise FormatError(
            "the scope was learned for another embedder",
            value=left.shape[-1],
            allowed=str(metric_E.shape[0]),
        )
    return torch.exp(-scale * ((left - right).square() @ metric_E))


def reach(learned: dict[str, Tensor]) -> float:
    """Return the distance, in the learned metric, at which beta is 1/2."""
    return math.log(2) / float(learned["scale"])
