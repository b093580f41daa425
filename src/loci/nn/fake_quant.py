"""Projections to few numbers that will be rounded, trained while they are rounded.

    c = (x - m) W_in^T,   x^ = Q(c) W_out + m,   loss = mean |x^ - x|^2

Q rounds to a grid over a group of tokens or of channels (`loci.nn.grid`); its slope is taken to be
one where the grid reaches, and zero beyond (a straight-through estimate). Training begins at the
best directions, W_in = W_out = V, where it ends too if it finds nothing better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any  # facts are JSON values

import torch
from torch import Generator, Tensor

from loci.nn.directions import directions_of
from loci.nn.grid import rounded

if TYPE_CHECKING:
    from loci.core.ports import Lab

BATCH = 256  # tokens of one step
HALF = 6e4  # what 16 bits can hold

# Shapes: N tokens of all texts, w channels, r numbers that are kept, g tokens of a group.


@dataclass(frozen=True, kw_only=True)
class RoundedCodes:
    """How numbers are rounded.

    Attributes:
        bits: of a number.
        group: tokens that share a grid, each number by itself; None is a grid a token.
    """

    bits: int
    group: int | None = None

    def fake(self, codes_Nr: Tensor) -> Tensor:
        """Return numbers as they will be read back; gradients pass through."""
        parts = codes_Nr[None] if self.group is None else codes_Nr.unflatten(0, (-1, self.group))
        dim = 2 if self.group is None else 1
        with torch.no_grad():
            grid_codes, grid = rounded(parts, self.bits, dim)
            low, step = grid.chunk(2, dim)
            back = grid_codes * step + low
            reach = low + step * (2**self.bits - 0.5)
            inside = (parts >= low - step / 2) & (parts <= reach)
        slope = parts * inside
        return (slope + (back - slope).detach()).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class RoundedTraining:
    """How projections are trained: Adam, its rate falling along a cosine.

    Attributes:
        steps: 0 leaves the best directions as they are.
        seed: of the tokens each step sees.
    """

    steps: int
    rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """What was trained: W_in and W_out [r, w], and the share of the variance that is lost."""

    into: Tensor
    out: Tensor
    lost_before: float
    lost: float


def trained_projection(
    texts: Sequence[Tensor],
    ways_rw: Tensor,
    mean_w: Tensor,
    codes: RoundedCodes,
    training: RoundedTraining,
) -> Projection:
    """Return projections of one layer's keys or values.

    Args:
        texts: what one layer made of each text [T, w]; tokens of a group are of one text.
        ways_rw: the best directions; mean_w: the mean.
    """
    group = codes.group or 1
    whole = [text[: len(text) // group * group] for text in texts]
    x_Nw = torch.cat(whole).float() - mean_w
    variance = float(x_Nw.square().mean().clamp(min=1e-20))
    into, out = (ways_rw.clone().requires_grad_(True) for _ in range(2))
    optimizer = torch.optim.Adam([into, out], lr=training.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(1, training.steps)))
    )
    generator = Generator().manual_seed(training.seed)
    groups = len(x_Nw) // group
    take = min(groups, max(1, BATCH // group))

    def lost(x: Tensor) -> Tensor:
        return (codes.fake(x @ into.t()) @ out - x).square().mean() / variance

    def over_all() -> float:
        with torch.no_grad():
            return float(lost(x_Nw))

    before = over_all()
    for _ in range(training.steps):
        at = torch.randint(0, groups, (take,), generator=generator)
        batch = x_Nw.unflatten(0, (groups, group))[at].flatten(0, 1)
        optimizer.zero_grad()
        lost(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    after = over_all()
    if after >= before:
        return Projection(into=ways_rw, out=ways_rw, lost_before=before, lost=before)
    return Projection(into=into.detach(), out=out.detach(), lost_before=before, lost=after)


def trained_directions(
    lab: Lab,
    ranks: Mapping[str, int],
    codes: Mapping[str, RoundedCodes],
    training: RoundedTraining,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return projections of a model's "keys", not rotated, and "values", and what they lose.

    Tensors: "keys_into", "keys_out" [L, r, w] and "keys_mean" [L, w], and so for values. Facts: of
    each, the share of the variance that is lost before and after training, the mean over layers.

    Args:
        ranks, codes: of keys and of values.
    """
    spec, taps = lab.spec, tuple(ranks)
    seen: dict[tuple[str, int], list[Tensor]] = {}
    with lab.activations(lab.texts(), taps) as walk:
        for tap, layer, x_1KTD in walk:
            flat_Tw = x_1KTD[0].transpose(0, 1).flatten(1)
            if float(flat_Tw.abs().max()) < HALF:
                flat_Tw = flat_Tw.half()  # half of the memory
            seen.setdefault((tap, layer), []).append(flat_Tw.clone())
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"steps": training.steps}
    for tap, rank in ranks.items():
        found: list[Projection] = []
        means = []
        for layer in range(spec.layers):
            texts = seen.pop((tap, layer))
            walk_one = ((tap, 0, x.unflatten(1, (1, -1)).transpose(0, 1)[None]) for x in texts)
            best = directions_of(walk_one, (tap,), 1, texts[0].shape[1])[tap]
            means.append(best.mean[0])
            ways_rw = best.ways[0, :rank]
            found.append(trained_projection(texts, ways_rw, means[-1], codes[tap], training))
        tensors[f"{tap}_into"] = torch.stack([one.into for one in found])
        tensors[f"{tap}_out"] = torch.stack([one.out for one in found])
        tensors[f"{tap}_mean"] = torch.stack(means)
        for name in ("lost_before", "lost"):
            facts[f"{tap}_{name}"] = sum(getattr(one, name) for one in found) / len(found)
    return tensors, facts
