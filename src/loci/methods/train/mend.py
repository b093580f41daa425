"""MEND: a small network turns the gradient of a fact into an edit that generalises.

E. Mitchell, C. Lin, A. Bosselut, C. Finn, C. D. Manning, "Fast Model Editing at Scale", 2021,
arXiv:2110.11309. The derivative of the loss by a weight is a sum of products, one a token,
sum_i dy_i x_i^T. A network g, shared by matrices of one shape, maps each pair to another,

    z = normalised (x, dy),    h = z + relu(s1 * (V1 U1 z) + b1),    g(z) = h + s2 * (V2 U2 h) + b2
    dW = -alpha sum_i dy~_i x~_i^T

with s, b and alpha of each layer. V begins at zero, so at start g is the identity and the edit a
step along the (normalised) gradient. It is trained so that a paraphrase is answered with the new
target while other answers stay: `edit` times the loss of the paraphrase plus the KL of another
prompt.

Differs from the paper: only down_proj of the last layers, rank 64, and thousands of made-up facts.
Not for: a model nobody trained it for; and it wears out after some tens of edits on top of each
other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.methods.train._value import edit_cost
from loci.methods.train.base import Edit, Editable, Fact, check_facts, check_layers, down
from loci.nn.patch import Patch, joined

# Shapes: N tokens, d outputs of down_proj, K its inputs, r rank, Z = K + d.

_TOKENS = 16  # of a prompt with its target, for `predict`


@dataclass(frozen=True, kw_only=True)
class Mend(Edit):
    """Gradients of facts, made into edits by a network that was trained to."""

    about = About(
        name="mend",
        kind=Kind.TRAIN,
        paper="arXiv:2110.11309",
        idea="a trained network turns a fact's gradient into an edit that generalises",
        phases=(Phase.TRAIN,),
        needs=(Need.ARTEFACT,),
        frees=Frees.NOTHING,
    )

    last: Annotated[int, Param(help="layers from the end whose down_proj is edited", ge=1)] = 3
    rank: Annotated[int, Param(help="of the network's matrices", ge=1)] = 64
    steps: Annotated[int, Param(help="of training, one triple each", ge=1)] = 2000
    rate: Annotated[float, Param(help="of Adam in training", ge=0.0)] = 1e-3
    edit_weight: Annotated[float, Param(help="of the paraphrase's loss", ge=0.0, source="§3.2")] = (
        0.1
    )
    alpha: Annotated[float, Param(help="size of a step before training", ge=0.0)] = 1e-3
    gather: Annotated[int, Param(help="triples to a step of Adam", ge=1, source="code")] = 10

    def layers(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return the layers that are edited."""
        found = tuple(range(spec.layers - self.last, spec.layers))
        check_layers(found, spec, "mend.last")
        return found

    def edit(
        self, model: Editable, facts: Sequence[Fact], generator: Generator | None = None
    ) -> Patch:
        """Return the sum of the edits of all facts, each seeing those before."""
        check_facts(facts)
        learned, layers = model.artefact().tensors, self.layers(model.spec)
        found: Patch | None = None
        for fact in facts:
            slopes = gradients(model, fact, layers, found)
            part = Patch(
                {
                    down(layer): (left_dN.float(), right_NK.float())
                    for layer, (left_dN, right_NK) in changes(learned, slopes).items()
                }
            )
            found = part if found is None else joined([found, part])
        assert found is not None
        return found

    def fresh(
        self,
        spec: ModelSpec,
        seen: Sequence[Mapping[int, tuple[Tensor, Tensor]]],
        generator: Generator,
    ) -> dict[str, Tensor]:
        """Return a network that is the identity, normalised by some gradients.

        Args:
            seen: of some facts, {layer: (x [N, K], dy [N, d])}.
        """
        outputs, inputs = spec.layer_linears()["down_proj"]
        width = inputs + outputs
        tensors = {
            "U1": torch.randn(self.rank, width, generator=generator) / width**0.5,
            "V1": torch.zeros(width, self.rank),
            "U2": torch.randn(self.rank, width, generator=generator) / width**0.5,
            "V2": torch.zeros(width, self.rank),
        }
        for layer in self.layers(spec):
            pairs_NZ = torch.cat([torch.cat(one[layer], 1) for one in seen])
            tensors[f"{layer}.mean"] = pairs_NZ.mean(0)
            tensors[f"{layer}.std"] = pairs_NZ.std(0, correction=0).clamp(min=1e-12)
            tensors[f"{layer}.alpha"] = torch.tensor(self.alpha)
            for part in "12":
                tensors[f"{layer}.scale{part}"] = torch.ones(width)
                tensors[f"{layer}.shift{part}"] = torch.zeros(width)
        return tensors

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of one fact's edit, and the operations it adds to a token."""
        return edit_cost(spec, _TOKENS * self.last)


def gradients(
    model: Editable, fact: Fact, layers: Sequence[int], patch: Patch | None = None
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return {layer: (x [N, K], dy [N, d])} of the loss of a fact's target."""
    target = model.tail(fact.continuation)
    ids = [*model.row(fact.prompt)[0], *target[:-1]]
    reading = model.read([ids], layers[0], [0], patch)
    logs_nV = torch.log_softmax(reading.logits([len(target)]), dim=-1)
    loss = -logs_nV.gather(1, torch.tensor(target)[:, None]).mean()
    return reading.slopes(loss, layers)


def changes(
    learned: Mapping[str, Tensor], slopes: Mapping[int, tuple[Tensor, Tensor]]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return {layer: (left [d, N], right [N, K])}: the edit as products, differentiable."""
    found = {}
    for layer, (x_NK, dy_Nd) in slopes.items():
        z_NZ = torch.cat([x_NK, dy_Nd], 1)
        z_NZ = (z_NZ - learned[f"{layer}.mean"]) / learned[f"{layer}.std"]
        thin_NZ = z_NZ @ learned["U1"].t() @ learned["V1"].t()
        # Unlike relu, clamp has a slope at 0, where all of it begins.
        active_NZ = learned[f"{layer}.scale1"] * thin_NZ + learned[f"{layer}.shift1"]
        h_NZ = z_NZ + active_NZ.clamp(min=0)
        thin_NZ = h_NZ @ learned["U2"].t() @ learned["V2"].t()
        out_NZ = h_NZ + learned[f"{layer}.scale2"] * thin_NZ + learned[f"{layer}.shift2"]
        x_out_NK, dy_out_Nd = out_NZ.split([x_NK.shape[1], dy_Nd.shape[1]], dim=1)
        found[layer] = -learned[f"{layer}.alpha"] * dy_out_Nd.t(), x_out_NK
    return found
