"""What editors of facts are held against: fine-tuning one matrix within a box."""

from __future__ import annotations

import torch

from loci.methods.train.base import Editable, Fact, down
from loci.nn.patch import Patch

# Shapes: n tokens of the target, d outputs of down_proj, K its inputs.


def constrained_tuning(
    model: Editable,
    fact: Fact,
    layer: int,
    *,
    steps: int = 25,
    rate: float = 2e-3,
    box: float = 2e-2,
    enough: float = 0.01,
) -> Patch:
    """Return what Adam changes in one down_proj to say a fact, no weight by more than `box`.

    The baseline FT+L of arXiv:2202.05262, after C. Zhu et al., "Modifying Memories in Transformer
    Models", 2020, arXiv:2012.00363: the bare prompt alone, an L-infinity constraint kept by
    clamping after every step. Rate and box were chosen on facts to develop on, for SmolLM2-135M: a
    box of 0.002 or less says nothing new there, one of 0.01 nothing in other words.
    """
    target = model.tail(fact.continuation)
    reading = model.read([[*model.row(fact.prompt)[0], *target[:-1]]], layer, [0])
    wanted_n1 = torch.tensor(target)[:, None]
    outputs, inputs = model.spec.layer_linears()["down_proj"]
    change_dK = torch.zeros(outputs, inputs, requires_grad=True)
    optimizer = torch.optim.Adam([change_dK], lr=rate)
    for _ in range(steps):
        logs_nV = torch.log_softmax(reading.logits([len(target)], changes={layer: change_dK}), -1)
        loss = -logs_nV.gather(1, wanted_n1).mean()
        if float(loss.detach()) < enough:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            change_dK.clamp_(-box, box)
    return Patch({down(layer): (torch.eye(outputs), change_dK.detach())})
