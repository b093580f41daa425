"""What ROME and MEMIT share: the vector that, put into one layer, makes a model say a fact.

K. Meng et al., "Locating and Editing Factual Associations in GPT", 2022, arXiv:2202.05262, section
3.1; "Mass-Editing Memory in a Transformer", 2022, arXiv:2210.07229, section 4.3.1. At the last
token of the subject, delta is added to what the layer's MLP gives, and found by Adam:

    mean over openings of -log p(target | opening + prompt)
      + kl * KL(p(. | "S is a") || p_delta(. | "S is a"))  +  decay * |delta| / |v0|^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.core.cost import Cost
from loci.core.spec import ModelSpec
from loci.methods.train.base import Editable, Fact
from loci.nn.patch import Patch

# Shapes: F facts, B rows, o rows of a fact, n tokens that count, d hidden, K inputs, V vocabulary.


@dataclass(frozen=True, kw_only=True, eq=False)
class Aim:
    """What was found for one fact.

    Attributes:
        delta_d: what is to be added at the subject.
        key_K: of the bare prompt; mean_key_K: the mean over openings.
        value_d, hidden_d: of the bare prompt, before.
        loss: mean negative log-likelihood of the target at the end.
        steps: taken.
    """

    delta_d: Tensor
    key_K: Tensor
    mean_key_K: Tensor
    value_d: Tensor
    hidden_d: Tensor
    loss: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the vector is looked for.

    Attributes:
        steps, rate: of Adam; the rate is in units of the root mean square of v0.
        most: how long delta may become, times |v0|.
        decay, kl: weights of the other two losses.
        enough: the loss at which it ends.
        around: "value" or "hidden": what v0 is.
    """

    steps: int
    rate: float
    most: float
    decay: float
    kl: float
    enough: float
    around: str


def aim(
    model: Editable,
    facts: Sequence[Fact],
    layer: int,
    openings: Sequence[str],
    search: Search,
    patch: Patch | None = None,
) -> list[Aim]:
    """Return the vector for each fact at one layer; facts do not see each other.

    Args:
        openings: stand before the prompt; the bare prompt is read as well.
        patch: what is in force already.
    """
    found: dict[int, Aim] = {}
    waiting = list(range(len(facts)))
    walks = [_Walk() for _ in facts]
    while waiting:
        # Facts take different times: those that are found leave, so that the rest costs less.
        part = _search(
            model,
            [facts[index] for index in waiting],
            layer,
            openings,
            search,
            patch,
            [walks[index] for index in waiting],
        )
        found |= {i: one for i, one in zip(waiting, part, strict=True) if one is not None}
        waiting = [index for index in waiting if index not in found]
    return [found[index] for index in range(len(facts))]


@dataclass(kw_only=True)
class _Walk:
    """Where the search for one fact stands: delta in units of its size, and Adam's means."""

    delta_d: Tensor | None = None
    first_d: Tensor | None = None
    second_d: Tensor | None = None
    steps: int = 0


def _search(
    model: Editable,
    facts: Sequence[Fact],
    layer: int,
    openings: Sequence[str],
    search: Search,
    patch: Patch | None,
    walks: Sequence[_Walk],
) -> list[Aim | None]:
    """Go on until half of the facts are found; return those, None for the others."""
    targets = [model.tail(fact.continuation) for fact in facts]
    own = 1 + len(openings)  # rows of a fact; behind all of them stand the rows "S is a"
    rows, places = prompts(model, facts, openings, targets)
    for fact in facts:
        ids, place = model.row(f"{fact.subject} is a", fact.subject)
        rows.append(ids)
        places.append(place)
    lasts = [len(target) for target in targets for _ in range(own)] + [1] * len(facts)
    reading = model.read(rows, layer, places, patch)
    wanted_n1 = torch.tensor([id for t in targets for _ in range(own) for id in t])[:, None]
    spoken = len(wanted_n1)
    of_n = torch.tensor([f for f, t in enumerate(targets) for _ in range(own * len(t))])
    counts_F = torch.bincount(of_n, minlength=len(facts))
    origin_Fd = reading.value_Bd if search.around == "value" else reading.hidden_Bd
    origin_Fd = origin_Fd[: own * len(facts) : own]
    root = origin_Fd.shape[1] ** 0.5
    size_F1 = origin_Fd.norm(dim=1, keepdim=True)
    nothing_d = torch.zeros(origin_Fd.shape[1])
    # A search in units of each fact's own size, so that one rate suits all.
    delta_Fd = torch.stack([nothing_d if w.delta_d is None else w.delta_d for w in walks])
    first_Fd = torch.stack([nothing_d if w.first_d is None else w.first_d for w in walks])
    second_Fd = torch.stack([nothing_d if w.second_d is None else w.second_d for w in walks])
    steps_F1 = torch.tensor([[w.steps] for w in walks])
    with torch.no_grad():
        before_FV = torch.log_softmax(reading.logits(lasts)[spoken:], dim=-1)
    while True:
        delta_Fd.requires_grad_(True)
        shift_Fd = delta_Fd * size_F1 / root
        shift_Bd = torch.cat([shift_Fd.repeat_interleave(own, 0), shift_Fd])
        logs_nV = torch.log_softmax(reading.logits(lasts, shift_Bd=shift_Bd), dim=-1)
        said_n = -logs_nV[:spoken].gather(1, wanted_n1)[:, 0]
        said_F = torch.zeros(len(facts)).index_add(0, of_n, said_n) / counts_F
        open_F = (said_F.detach() >= search.enough) & (steps_F1[:, 0] < search.steps)
        if int(open_F.sum()) <= len(facts) // 2:
            break
        drift_F = (before_FV.exp() * (before_FV - logs_nV[spoken:])).sum(-1)
        # The root has no slope at 0, where the search begins.
        length_F = torch.sqrt(shift_Fd.square().sum(1) + 1e-12)
        loss_F = said_F + search.kl * drift_F + search.decay * length_F / size_F1[:, 0] ** 2
        [slope_Fd] = torch.autograd.grad(loss_F.sum(), delta_Fd)
        with torch.no_grad():  # Adam, each fact at a step of its own
            steps_F1 = steps_F1 + open_F[:, None]
            first_Fd = 0.9 * first_Fd + 0.1 * slope_Fd
            second_Fd = 0.999 * second_Fd + 0.001 * slope_Fd.square()
            mean_Fd = first_Fd / (1 - 0.9**steps_F1)
            spread_Fd = (second_Fd / (1 - 0.999**steps_F1)).sqrt() + 1e-8
            moved_Fd = delta_Fd - search.rate * mean_Fd / spread_Fd
            length_F1 = moved_Fd.norm(dim=1, keepdim=True).clamp(min=1e-12)
            moved_Fd *= (search.most * root / length_F1).clamp(max=1)
            delta_Fd = torch.where(open_F[:, None], moved_Fd, delta_Fd)
    keys_FoK = reading.key_BK[: own * len(facts)].view(len(facts), own, -1)
    for index, walk in enumerate(walks):
        walk.delta_d, walk.steps = delta_Fd[index].detach(), int(steps_F1[index])
        walk.first_d, walk.second_d = first_Fd[index], second_Fd[index]
    return [
        None
        if open_F[f]
        else Aim(
            delta_d=shift_Fd[f].detach(),
            key_K=keys_FoK[f, 0],
            mean_key_K=keys_FoK[f].mean(0),
            value_d=reading.value_Bd[f * own],
            hidden_d=reading.hidden_Bd[f * own],
            loss=float(said_F[f].detach()),
            steps=int(steps_F1[f]),
        )
        for f in range(len(facts))
    ]


def prompts(
    model: Editable,
    facts: Sequence[Fact],
    openings: Sequence[str],
    targets: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Return the rows of all facts and where their subjects end, the bare prompt of each first.

    Args:
        targets: of each fact, all but their last token follow the prompt.
    """
    rows, places = [], []
    for index, fact in enumerate(facts):
        extra = [] if targets is None else list(targets[index][:-1])
        for opening in ("", *openings):
            text = f"{opening} {fact.prompt}" if opening else fact.prompt
            ids, place = model.row(text, fact.subject)
            rows.append([*ids, *extra])
            places.append(place)
    return rows, places


def edit_cost(spec: ModelSpec, ranks: int) -> Cost:
    """Return what products of these ranks in all, beside `down_proj`, hold and compute."""
    outputs, inputs = spec.layer_linears()["down_proj"]
    numbers = ranks * (outputs + inputs)
    return Cost(held={"dram": 4 * numbers}, operations=2.0 * numbers, loss=None)
