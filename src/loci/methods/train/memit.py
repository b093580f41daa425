"""MEMIT: write many facts at once, spread over the MLPs of several layers.

K. Meng, A. Sen Sharma, A. Andonian, Y. Belinkov, D. Bau, "Mass-Editing Memory in a Transformer",
2022, arXiv:2210.07229. For every fact a hidden state z is found at the last of some layers, with
which the model says it. Then layer by layer, with keys K and what is still missing read anew,

    R = (Z - H) / (layers left),    dW = R K^T (lam C + K K^T)^-1

the solution of the normal equations of |(W + dW) K - (W K + R)|^2 + lam E|dW k|^2. It is a product
of R and K^T (lam C + K K^T)^-1, of one rank a fact.

`null` projects every dW on directions that remembered keys hardly use, as J. Fang et al.,
"AlphaEdit", 2024, arXiv:2410.02355, do: dW = R K^T P (P K K^T P + lam I)^-1.

Differs from the paper: `down_proj` of a gated MLP; layers and lam were chosen for a model of 30
layers and 576 channels, where lam is multiplied with C as a mean over tokens. C is averaged over
text the model wrote itself and, with weight `near`, over what it draws in the place of the
subjects: other countries after "The capital of", whose facts are the ones an edit would move. A C
of all tokens alike hardly knows these directions. With `alone` what is still missing is asked for
at the subject's keys after openings too, where no prompt stands before it, so that other words
around the subject find the fact; that takes a second rank.
Not for: a single fact in a hurry (ROME solves less).
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
from loci.methods.train._value import Search, aim, edit_cost, prompts
from loci.methods.train.base import Edit, Editable, Fact, check_facts, check_layers, down
from loci.nn.patch import Patch

# Shapes: n facts, d hidden, K inputs of down_proj.

TOGETHER = 8  # facts whose states are looked for at once


@dataclass(frozen=True, kw_only=True)
class Memit(Edit):
    """Many facts in one closed form, spread over layers."""

    about = About(
        name="memit",
        kind=Kind.TRAIN,
        paper="arXiv:2210.07229",
        idea="many facts are solved for together and spread over several layers",
        phases=(Phase.TRAIN,),
        needs=(Need.ARTEFACT, Need.MOMENT),
        frees=Frees.NOTHING,
    )

    layers: Annotated[tuple[int, ...], Param(help="whose down_proj is edited")] = (4, 5, 6, 7, 8)
    lam: Annotated[float, Param(help="weight of what is known already", ge=0.0)] = 1000.0
    steps: Annotated[int, Param(help="of the search for states", ge=1, source="§4.3")] = 25
    rate: Annotated[float, Param(help="of Adam, relative to the state's size", ge=0.0)] = 0.1
    most: Annotated[float, Param(help="longest change, times the state", ge=0.0, source="code")] = (
        0.75
    )
    decay: Annotated[float, Param(help="weight of the change's length", ge=0.0)] = 0.5
    kl: Annotated[float, Param(help="weight of the subject's drift", ge=0.0)] = 0.0625
    openings: Annotated[int, Param(help="texts before the prompt", ge=0, le=50)] = 4
    alone: Annotated[
        float, Param(help="weight of the subject's keys without the prompt", ge=0.0)
    ] = 1.0
    near: Annotated[float, Param(help="weight in C of what is near the facts", ge=0.0)] = 1.0
    null: Annotated[
        float, Param(help="share of a direction's use above which it is left alone", ge=0.0)
    ] = 0.0

    def edit(
        self, model: Editable, facts: Sequence[Fact], generator: Generator | None = None
    ) -> Patch:
        """Return one product for every layer, of one rank a fact, two with `alone`."""
        check_facts(facts)
        check_layers(self.layers, model.spec, "memit.layers")
        openings, last = model.openings(self.openings), self.layers[-1]
        search = Search(
            steps=self.steps,
            rate=self.rate,
            most=self.most,
            decay=self.decay,
            kl=self.kl,
            enough=0.05,
            around="hidden",
        )
        found = []
        for start in range(0, len(facts), TOGETHER):
            found += aim(model, facts[start : start + TOGETHER], last, openings, search)
        wanted_dn = torch.stack([one.hidden_d + one.delta_d for one in found], 1).double()
        patch = Patch({})
        near = model.covariance_near(facts, self.layers) if self.near else {}
        for index, layer in enumerate(self.layers):
            keys_Kn, hidden_dn = self._now(model, facts, openings, layer, patch)
            missing_dn = (wanted_dn - hidden_dn) / (len(self.layers) - index)
            if self.alone and openings:
                root = self.alone**0.5
                alone_Kn = root * self._alone(model, facts, openings, layer, patch)
                keys_Kn = torch.cat([keys_Kn, alone_Kn], dim=1)
                missing_dn = torch.cat([missing_dn, root * missing_dn], dim=1)
            used_KK = model.covariance(layer)
            if layer in near:
                used_KK = used_KK + self.near * near[layer]
            right_nK = spread(used_KK, keys_Kn, self.lam, self.null)
            patch = Patch(
                {**patch.parts, down(layer): (missing_dn.float().contiguous(), right_nK.float())}
            )
        return patch

    def _now(
        self,
        model: Editable,
        facts: Sequence[Fact],
        openings: Sequence[str],
        layer: int,
        patch: Patch,
    ) -> tuple[Tensor, Tensor]:
        """Return mean keys [K, n] at a layer and states [d, n] at the last, float64."""
        keys, states, last = [], [], self.layers[-1]
        for start in range(0, len(facts), TOGETHER):
            part = facts[start : start + TOGETHER]
            read = model.read(*prepared(model, part, openings, layer), patch)
            keys.append(read.key_BK.view(len(part), 1 + len(openings), -1).mean(1))
            if layer != last:
                read = model.read(*prepared(model, part, (), last), patch)
            states.append(read.hidden_Bd[:: len(read.hidden_Bd) // len(part)])
        return torch.cat(keys).double().t(), torch.cat(states).double().t()

    def _alone(
        self,
        model: Editable,
        facts: Sequence[Fact],
        openings: Sequence[str],
        layer: int,
        patch: Patch,
    ) -> Tensor:
        """Return mean keys [K, n] of the subjects after openings, without their prompts."""
        found = []
        for start in range(0, len(facts), TOGETHER):
            part = facts[start : start + TOGETHER]
            read = [
                model.row(f"{opening} {fact.subject}", fact.subject)
                for fact in part
                for opening in openings
            ]
            rows, places = [row for row, _ in read], [place for _, place in read]
            keys_BK = model.read(rows, layer, places, patch).key_BK
            found.append(keys_BK.view(len(part), len(openings), -1).mean(1))
        return torch.cat(found).double().t()

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of one fact's edit, and the operations it adds to a token."""
        return edit_cost(spec, (2 if self.alone and self.openings else 1) * len(self.layers))


def prepared(
    model: Editable, facts: Sequence[Fact], openings: Sequence[str], layer: int
) -> tuple[list[list[int]], int, list[int]]:
    """Return what `Editable.read` takes to read prompts at a layer."""
    rows, places = prompts(model, facts, openings)
    return rows, layer, places


def spread(covariance_KK: Tensor, keys_Kn: Tensor, lam: float, null: float = 0.0) -> Tensor:
    """Return K^T (lam C + K K^T)^-1 in float64 [n, K]: what multiplies the residual.

    With `null`, K^T P (P K K^T P + lam I)^-1, where P projects on the directions in which C is at
    most `null` times its mean.
    """
    covariance_KK, keys_Kn = covariance_KK.double(), keys_Kn.double()
    if null > 0:
        used_K, axes_KK = torch.linalg.eigh(covariance_KK)
        free_Kf = axes_KK[:, used_K <= null * used_K.mean()]
        inside_fn = free_Kf.t() @ keys_Kn
        # In the free directions alone the matrix is lam I + a Gram matrix of n columns.
        gram_nn = inside_fn.t() @ inside_fn
        gram_nn.diagonal().add_(lam)
        return torch.linalg.solve(gram_nn, inside_fn.t() @ free_Kf.t())
    matrix_KK = lam * covariance_KK + keys_Kn @ keys_Kn.t()
    matrix_KK.diagonal().add_(1e-9 * float(matrix_KK.diagonal().mean()))
    return torch.cholesky_solve(keys_Kn, torch.linalg.cholesky(matrix_KK)).t().contiguous()
