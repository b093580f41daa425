"""One budget for many weights: which setting, or how many levels, each of them gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from loci.core.method import Need
from loci.errors import BudgetError
from loci.methods.quant._allocate import Choice, cheapest
from loci.methods.quant._pile import Pile, sorted_levels
from loci.nn.form import Form
from loci.nn.taps import ActStats
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.methods.quant.base import Nested, Quant

Stats = Mapping[str, ActStats]


def offers(
    method: Quant, weights: Iterable[tuple[str, Tensor]], *, stats: Stats | None = None
) -> dict[str, list[Choice]]:
    """Return what every variant of the method would take and lose for every weight.

    Args:
        stats: with slopes, the loss is an estimated KL; without, the squared error.
    """
    variants = method.variants()
    found: dict[str, list[Choice]] = {}
    for name, weight in weights:
        dense = weight.detach().to(torch.float32)
        known = (stats or {}).get(name)
        found[name] = []
        for index, variant in enumerate(variants):
            judge = variant.stand_in()
            needs = Need.CALIBRATION in judge.about.needs
            form = judge.pack_one(dense, stats=known if needs else None)
            nbytes = variant.packed_bytes(dense.shape[0], dense.shape[1])
            found[name].append(Choice(index, nbytes, loss_of(dense, form, known)))
    return found


def allocate(
    method: Quant, offered: Mapping[str, Sequence[Choice]], budget_bytes: int
) -> dict[str, Quant]:
    """Return a variant of the method for every weight, of least estimated loss within the budget.

    Args:
        offered: what `offers` returned.

    Raises:
        BudgetError: if the smallest variants together are too large.
    """
    variants = method.variants()
    chosen = cheapest(offered, budget_bytes)
    if chosen is None:
        least = sum(min(c.nbytes for c in row) for row in offered.values())
        raise too_small(method.about.name, least, budget_bytes)
    return {name: variants[index] for name, index in chosen.items()}


@dataclass(frozen=True)
class Piled:
    """Weights taken apart, by name: their levels, what those are worth, and what packed them."""

    levels: dict[str, list[dict[str, Tensor]]]
    piles: dict[str, Pile]
    packers: dict[str, Nested]
    shapes: dict[str, tuple[int, int]]

    def add(
        self,
        method: Nested,
        name: str,
        weight: Tensor,
        stats: ActStats | None,
        generator: Generator | None,
    ) -> None:
        """Take one weight apart."""
        packer = packer_of(method, name)
        levels = packer.levels(weight, stats=stats, generator=generator)
        self.levels[name] = levels
        self.piles[name] = pile_of(packer, weight, levels, stats)
        self.packers[name] = packer
        self.shapes[name] = (weight.shape[0], weight.shape[1])


def piled(
    method: Nested,
    weights: Iterable[tuple[str, Tensor]],
    *,
    stats: Stats | None = None,
    generator: Generator | None = None,
) -> Piled:
    """Return all levels of all weights; see `Nested.levels`."""
    found = Piled({}, {}, {}, {})
    for name, weight in weights:
        found.add(method, name, weight, (stats or {}).get(name), generator)
    return found


def within(
    method: Nested, piled: Piled, budget_bytes: int, generator: Generator | None = None
) -> dict[str, Form]:
    """Return weights of as many levels as fit, in the method's order.

    Raises:
        BudgetError: if the smallest forms together are too large.
    """
    left = budget_bytes - sum(pile.least_bytes for pile in piled.piles.values())
    if left < 0:
        raise too_small(method.about.name, budget_bytes - left, budget_bytes)
    forms = {
        name: packer.first(piled.levels[name][: packer.least_levels], piled.shapes[name])
        for name, packer in piled.packers.items()
    }
    depth = {name: packer.least_levels for name, packer in piled.packers.items()}
    for name, nbytes in sorted_levels(piled.piles, method.order, generator):
        left -= nbytes
        if left < 0:
            break
        forms[name] = piled.packers[name].grow(forms[name], piled.levels[name][depth[name]])
        depth[name] += 1
    return forms


def packer_of(method: Nested, name: str) -> Nested:
    """Return what packs a weight of this name in levels."""
    from loci.methods.quant.base import Nested, is_table

    found = method.table() if is_table(name) else method
    assert isinstance(found, Nested), "embedding and head are packed in levels as well"
    return found


def pile_of(
    method: Nested, weight: Tensor, levels: list[dict[str, Tensor]], stats: ActStats | None
) -> Pile:
    """Return what the levels of a weight take and are worth."""
    least, (out, inner) = method.least_levels, weight.shape
    form = method.first(levels[:least], (out, inner))
    dense = weight.detach().to(torch.float32)
    losses = [loss_of(dense, form, stats)]
    for level in levels[least:]:
        form = method.grow(form, level)
        losses.append(loss_of(dense, form, stats))
    sizes = method.level_bytes(out, inner)
    return Pile(sum(sizes[:least]), sizes[least:], tuple(losses))


def loss_of(dense: Tensor, form: Form, stats: ActStats | None) -> float:
    """Return the estimated loss of a form, or its squared error where nothing is known."""
    change = dense - form.dense()
    return float(change.square().sum()) if stats is None else stats.loss(change)


def too_small(name: str, least: int, budget_bytes: int) -> BudgetError:
    """Return the error for a budget below the smallest form of all weights."""
    return BudgetError(
        f"{name} needs at least {format_bytes(least)} for these weights; the budget gives "
        f"{format_bytes(budget_bytes)} ({format_bytes(least - budget_bytes)} short)",
        way_out=f"give the weights {format_bytes(least)}, or take a method of fewer bits",
    )
