"""Packing the linear layers of any transformers causal LM, whatever the method must be shown.

Inputs are looked at through hooks that are gone afterwards. Where nobody gives a text, the model
writes one itself: what it says is as good a sample of what flows through it as any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any  # modules and their hooks

import torch
from torch import Tensor, nn

from loci.core.method import Need
from loci.errors import BudgetError, ParameterError
from loci.methods.quant.base import (
    Nested,
    Piled,
    Quant,
    Sensitive,
    allocate,
    offers,
    within,
)
from loci.nn.form import DenseWeight, Form
from loci.nn.taps import ActStats, merged, stats_of
from loci.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS, LENGTH = 8, 128  # texts the model writes for itself, and the tokens of each
MOMENT_BYTES = 2**29  # second moments that are collected in one pass

Linears = Mapping[str, nn.Linear]
Swap = Callable[[str, Form], nn.Module]

# Shapes: B texts, T tokens, K inputs, N outputs.


def packed_forms(
    model: PreTrainedModel,
    linears: Linears,
    method: Quant,
    *,
    budget_bytes: int | None = None,
    calibration: Tensor | None = None,
    swap: Swap,
) -> dict[str, Form]:
    """Return the packed form of every linear layer, by name; the model is as it was.

    Args:
        budget_bytes: for all of them together, shared by how much of each layer's output is lost.
        calibration: token ids [B, T] to look at; None lets the model write its own.
        swap: returns a module that multiplies by a form, for methods that try layers out.

    Raises:
        BudgetError: if they do not fit.
        ParameterError: if a weight does not fit the method.
    """
    shares = budget_bytes is not None and (isinstance(method, Nested) or len(method.variants()) > 1)
    asks = isinstance(method, Sensitive) and method.asks
    looks = Need.CALIBRATION in method.about.needs or shares or asks
    ids_BT = own_words(model) if looks and calibration is None else calibration
    if ids_BT is not None and (ids_BT.ndim != 2 or ids_BT.numel() == 0):
        raise ParameterError(
            "calibration is token ids of texts of one length",
            value=tuple(ids_BT.shape),
            allowed="[texts, tokens]",
        )
    chosen: Mapping[str, Quant] = {}
    forms: dict[str, Form] = {}
    taken = Piled({}, {}, {}, {})
    needs_moment = Need.MOMENT in method.about.needs
    for group in _groups(linears, needs_moment):
        seen = (
            dict.fromkeys(group) if ids_BT is None else watched(model, group, ids_BT, needs_moment)
        )
        for name, linear in group.items():
            stats, weight = seen[name], linear.weight.detach().float()
            if isinstance(method, Nested):
                taken.add(method, name, weight, stats, None)
            elif not shares and not asks:
                forms[name] = method.pack_one(weight, stats=stats)
    if isinstance(method, Nested):
        whole = sum(sum(method.level_bytes(*shape)) for shape in taken.shapes.values())
        return within(method, taken, whole if budget_bytes is None else budget_bytes)
    if asks:
        assert isinstance(method, Sensitive) and ids_BT is not None
        chosen = method.assign(_effects(model, linears, method, ids_BT[:2], swap))
    elif shares:
        assert ids_BT is not None and budget_bytes is not None
        known = watched(model, linears, ids_BT, False)
        weights = ((name, linear.weight.detach().float()) for name, linear in linears.items())
        chosen = allocate(method, offers(method, weights, stats=known), budget_bytes)
    for group in _groups(linears, needs_moment) if chosen else ():
        seen = (
            dict.fromkeys(group) if ids_BT is None else watched(model, group, ids_BT, needs_moment)
        )
        for name, linear in group.items():
            weight = linear.weight.detach().float()
            forms[name] = chosen[name].pack_one(weight, stats=seen[name])
    _check_budget(method, forms, budget_bytes)
    return {name: forms[name] for name in linears}


def watched(
    model: PreTrainedModel, linears: Linears, ids_BT: Tensor, moment: bool
) -> dict[str, ActStats]:
    """Return what each layer is shown on these texts, weighted so that layers compare.

    Without a way back through the model, every output counts by its share of the layer's output.
    """
    found: dict[str, ActStats] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            stats = stats_of(x, moment=moment)
            found[name] = merged(found[name], stats) if name in found else stats

        return look

    with _hooked(linears, hook), torch.no_grad():
        for ids_T in ids_BT:
            model(ids_T.unsqueeze(0).to(model.device), use_cache=False)
    missing = [name for name in linears if name not in found]
    if missing:
        raise ParameterError(
            "these layers saw nothing of the calibration text", value=", ".join(missing[:3])
        )
    return {
        name: stats.with_slopes(_evenly(linears[name].weight, stats))
        for name, stats in found.items()
    }


def own_words(model: PreTrainedModel, seed: int = 0) -> Tensor:
    """Return token ids [TEXTS, LENGTH] that the model drew itself, each from a random start."""
    vocab = int(model.config.get_text_config().vocab_size)
    length = min(LENGTH, int(getattr(model.config, "max_position_embeddings", LENGTH)))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        start = torch.randint(0, vocab, (TEXTS, 1), device=model.device)
        drawn: Tensor = model.generate(  # type: ignore[operator]
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length - 1,
            min_new_tokens=length - 1,
            pad_token_id=0,
        )
    return drawn


# -- private ----------------------------------------------------------------------------------


def _groups(linears: Linears, needs_moment: bool) -> Iterator[Linears]:
    """Yield layers in groups whose second moments fit into memory together."""
    group: dict[str, nn.Linear] = {}
    held = 0
    for name, linear in linears.items():
        size = 4 * linear.in_features**2 if needs_moment else 0
        if group and held + size > MOMENT_BYTES:
            yield group
            group, held = {}, 0
        group[name] = linear
        held += size
    if group:
        yield group


def _evenly(weight: Tensor, stats: ActStats) -> Tensor:
    """Return one slope for all outputs: one over the energy of the layer's output."""
    energy = float((weight.detach().float().square() * stats.mean_square()).sum())
    return torch.full((weight.shape[0],), 1 / max(energy, 1e-30))


def _effects(
    model: PreTrainedModel, linears: Linears, method: Sensitive, ids_BT: Tensor, swap: Swap
) -> dict[str, float]:
    """Return the KL that the change of each layer alone costs."""

    def logs() -> Tensor:
        logits = model(ids_BT.to(model.device), use_cache=False).logits.float()
        return torch.log_softmax(logits.flatten(0, 1), dim=-1)

    found = {}
    with torch.no_grad():
        full = logs()
        for name, linear in linears.items():
            parent, _, child = name.rpartition(".")
            home = model.get_submodule(parent)
            weight = DenseWeight(linear.weight.detach().float())
            setattr(home, child, swap(name, method.probe(weight)))
            try:
                found[name] = float((full.exp() * (full - logs())).sum(-1).mean())
            finally:
                setattr(home, child, linear)
    return found


def _check_budget(method: Quant, forms: Mapping[str, Form], budget_bytes: int | None) -> None:
    held = sum(form.nbytes for form in forms.values())
    if budget_bytes is not None and held > budget_bytes:
        raise BudgetError(
            f"{method} packs the linear layers into {format_bytes(held)}; the budget gives "
            f"{format_bytes(budget_bytes)} ({format_bytes(held - budget_bytes)} short)",
            way_out="take fewer bits, or a method that shares a budget: gptq, bitstack",
        )


@contextmanager
def _hooked(linears: Linears, hook: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
