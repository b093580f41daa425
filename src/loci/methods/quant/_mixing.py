"""One budget for many weights: which setting, or how many levels, each of them gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def allocate(
    method: Quant,
    weights: Iterable[tuple[str, Tensor]],
    budget_bytes: int,
    *,
    stats: Stats | None = None,
) -> dict[str, Quant]:
    """Return a variant of the method for every weight, of least estimated loss within the budget.

    Args:
        stats: with slopes, the loss is an estimated KL; without, the squared error.

    Raises:
        BudgetError: if the smallest variants together are too large.
    """
    variants = method.variants()
    choices: dict[str, list[Choice]] = {}
    for name, weight in weights:
        dense = weight.detach().to(torch.float32)
        known = (stats or {}).get(name)
        choices[name] = []
        for index, variant in enumerate(variants):
            judge = variant.stand_in()
            needs = Need.CALIBRATION in judge.about.needs
            form = judge.pack_one(dense, stats=known if needs else None)
            nbytes = variant.packed_bytes(dense.shape[0], dense.shape[1])
            choices[name].append(Choice(index, nbytes, loss_of(dense, form, known)))
    chosen = cheapest(choices, budget_bytes)
    if chosen is None:
        least = sum(min(c.nbytes for c in row) for row in choices.values())
        raise too_small(method.about.name, least, budget_bytes)
    return {name: variants[index] for name, index in chosen.items()}


def within(
    method: Nested,
    weights: Iterable[tuple[str, Tensor]],
    budget_bytes: int,
    *,
    stats: Stats | None = None,
    generator: Generator | None = None,
) -> dict[str, Form | Tensor]:
    """Return weights of as many levels as fit, in the method's order; vectors as they are.

    Raises:
        BudgetError: if the smallest forms together are too large.
    """
    forms: dict[str, Form | Tensor] = {}
    piles: dict[str, Pile] = {}
    further: dict[str, list[dict[str, Tensor]]] = {}
    packers: dict[str, Nested] = {}
    for name, weight in weights:
        if weight.ndim == 1:
            forms[name] = weight.to(torch.float32, copy=True)
        else:
            known = (stats or {}).get(name)
            packer = packers[name] = packer_of(method, name)
            levels = packer.levels(weight, stats=known, generator=generator)
            further[name] = levels[packer.least_levels :]
            forms[name], piles[name] = pile_of(packer, weight, levels, known)
    left = budget_bytes - sum(pile.least_bytes for pile in piles.values())
    if left < 0:
        raise too_small(method.about.name, budget_bytes - left, budget_bytes)
    for name, nbytes in sorted_levels(piles, method.order, generator):
        left -= nbytes
        if left < 0:
            break
        form = forms[name]
        assert isinstance(form, Form)
        forms[name] = packers[name].grow(form, further[name].pop(0))
    return forms


def packer_of(method: Nested, name: str) -> Nested:
    """Return what packs a weight of this name in levels."""
    from loci.methods.quant.base import Nested, is_table

    found = method.table() if is_table(name) else method
    assert isinstance(found, Nested), "embedding and head are packed in levels as well"
    return found


def pile_of(
    method: Nested, weight: Tensor, levels: list[dict[str, Tensor]], stats: ActStats | None
) -> tuple[Form, Pile]:
    """Return the smallest form of a weight, and what its levels take and are worth."""
    least, (out, inner) = method.least_levels, weight.shape
    smallest = form = method.first(levels[:least], (out, inner))
    dense = weight.detach().to(torch.float32)
    losses = [loss_of(dense, form, stats)]
    for level in levels[least:]:
        form = method.grow(form, level)
        losses.append(loss_of(dense, form, stats))
    sizes = method.level_bytes(out, inner)
    return smallest, Pile(sum(sizes[:least]), sizes[least:], tuple(losses))


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
