"""ROME: write one fact into one layer's MLP as an edit of rank one.

K. Meng, D. Bau, A. Andonian, Y. Belinkov, "Locating and Editing Factual Associations in GPT", 2022,
arXiv:2202.05262. The matrix W after an MLP's nonlinearity is read as a store: keys k (its inputs)
and values v (its outputs). To store a new value for a key while disturbing the others least, in the
sense of their second moment C = E[k k^T],

    dW = (v* - W k) u^T / (k . u),     u = C^-1 k*

so that (W + dW) k = v* exactly. k* is the mean over openings of the key at the subject's last
token, k that of the bare prompt, v* = W k + delta with delta found by `_value.aim`.

k must not be the first token of a text, which models treat in a way of its own: a prompt that
begins with a subject of one token is edited badly.

Differs from the paper: the matrix is `down_proj` of a gated MLP, the rate of Adam is relative to
the size of the value, and the values of layer, rate and openings were chosen for a model of 30
layers and 576 channels. Several facts are written one after the other, each seeing those before.
Not for: many facts at once (see MEMIT), or facts that are not about a subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.methods.train._value import Aim, Search, aim, edit_cost
from loci.methods.train.base import Edit, Editable, Fact, check_facts, check_layers, down
from loci.nn.patch import Patch, joined

# Shapes: d outputs of down_proj, K its inputs.

RIDGE = 1e-3  # of the mean diagonal of C: rarely used directions must not weigh without bound


@dataclass(frozen=True, kw_only=True)
class Rome(Edit):
    """An edit of rank one for every fact."""

    about = About(
        name="rome",
        kind=Kind.TRAIN,
        paper="arXiv:2202.05262",
        idea="one fact becomes one key and one value of an MLP, an edit of rank one",
        phases=(Phase.TRAIN,),
        needs=(Need.ARTEFACT, Need.MOMENT),
        frees=Frees.NOTHING,
    )

    layer: Annotated[int, Param(help="whose down_proj is edited", ge=0)] = 7
    steps: Annotated[int, Param(help="of the search for the value", ge=1, source="app. E.5")] = 20
    rate: Annotated[float, Param(help="of Adam, relative to the value's size", ge=0.0)] = 0.5
    most: Annotated[float, Param(help="longest change, times the value", ge=0.0, source="code")] = (
        2.0
    )
    decay: Annotated[float, Param(help="weight of the change's length", ge=0.0)] = 0.5
    kl: Annotated[float, Param(help="weight of the subject's drift", ge=0.0)] = 0.0625
    openings: Annotated[int, Param(help="texts before the prompt", ge=0, le=50)] = 4

    def edit(
        self, model: Editable, facts: Sequence[Fact], generator: Generator | None = None
    ) -> Patch:
        """Return the sum of one product of rank one for every fact."""
        check_facts(facts)
        check_layers((self.layer,), model.spec, "rome.layer")
        openings = model.openings(self.openings)
        covariance_KK = model.covariance(self.layer)
        search = Search(
            steps=self.steps,
            rate=self.rate,
            most=self.most,
            decay=self.decay,
            kl=self.kl,
            enough=0.05,
            around="value",
        )
        found: Patch | None = None
        for fact in facts:
            [value] = aim(model, [fact], self.layer, openings, search, found)
            part = rank_one(value, covariance_KK, self.layer)
            found = part if found is None else joined([found, part])
        assert found is not None
        return found

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of one fact's edit, and the operations it adds to a token."""
        return edit_cost(spec, 1)


def rank_one(found: Aim, covariance_KK: Tensor, layer: int) -> Patch:
    """Return the edit that gives key `key_K` the value `value_d + delta_d` exactly.

    Raises:
        ParameterError: if the two keys have nothing in common, so that no such edit is small.
    """
    key_K = found.key_K.double()
    u_K = solved(covariance_KK, found.mean_key_K.double()[:, None])[:, 0]
    u_K = u_K / u_K.norm()
    overlap = float(key_K @ u_K)
    if abs(overlap) < 1e-6 * float(key_K.norm()):
        raise ParameterError(
            "the prompt's key has no part in the direction of the edit",
            value=overlap,
            way_out="take fewer openings, or another layer",
        )
    left_d1 = (found.delta_d.double() / overlap)[:, None]
    return Patch({down(layer): (left_d1.float(), u_K[None].float())})


def solved(covariance_KK: Tensor, right_Kn: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return (C + ridge mean(diag C) I)^-1 times some columns, all in float64."""
    matrix_KK = covariance_KK.double().clone()
    matrix_KK.diagonal().add_(ridge * float(matrix_KK.diagonal().mean()))
    return torch.cholesky_solve(right_Kn, torch.linalg.cholesky(matrix_KK))
