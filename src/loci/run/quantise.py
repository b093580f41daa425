"""A whole model packed by a method: what it must be shown first, then layer by layer.

Every method of kind quant goes through here, whatever it needs: statistics, sensitivities, a budget
to share, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from loci.core.method import Need
from loci.methods.quant.base import Nested, Quant, Sensitive, allocate, within
from loci.models.pack import Pack
from loci.models.tokenizer import Tokenizer
from loci.nn.form import Form
from loci.nn.taps import ActStats
from loci.run.calibrate import (
    Calibration,
    cached_statistics,
    calibration_ids,
    effects,
    statistics,
    walk,
)

Progress = Callable[[str, int, int], None]
PROBED = 2  # texts on which sensitivities are measured


def packed_linears(
    pack: Pack,
    method: Quant,
    *,
    budget_bytes: int | None = None,
    ids_ST: Tensor | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Form]:
    """Return the linear layers of a model packed by a method, by name.

    Args:
        budget_bytes: for all of them together, shared by estimated KL; None takes the method's own
            settings for each.
        ids_ST: tokens to calibrate on; None takes pieces of Python's help topics.
        folder: where statistics are kept from one time to the next; None keeps none.

    Raises:
        BudgetError: if the smallest settings do not fit.
        ParameterError: if the calibration text is too short, or a weight does not fit the method.
    """
    needs = Need.CALIBRATION in method.about.needs
    ids_ST = calibration_ids(Tokenizer(pack.folder)) if ids_ST is None else ids_ST
    calibration: Calibration | None = None
    if budget_bytes is not None or isinstance(method, Nested):
        calibration = (
            statistics(pack, ids_ST, progress=progress)
            if folder is None
            else cached_statistics(pack, ids_ST, folder, progress=progress)
        )
    generator = torch.Generator().manual_seed(seed)
    if isinstance(method, Nested):
        assert calibration is not None
        return _nested(pack, method, calibration, budget_bytes, generator, progress)
    chosen: Mapping[str, Quant] = {}
    if budget_bytes is not None:
        assert calibration is not None
        chosen = allocate(method, _weights(pack), budget_bytes, stats=calibration.linears)
    elif isinstance(method, Sensitive) and method.asks:
        measured = effects(pack, ids_ST[:PROBED], method.probe, progress=progress)
        chosen = method.assign(measured)

    def packed(name: str, weight: Tensor, stats: ActStats) -> Form:
        found = chosen.get(name, method)
        return found.pack_one(weight, stats=stats if needs else None, generator=generator)

    if needs:
        return walk(pack, ids_ST, packed, progress=progress)
    forms = {}
    names = _names(pack)
    for name, weight in _weights(pack):
        forms[name] = chosen.get(name, method).pack_one(weight, generator=generator)
        if progress is not None:
            progress("packing weights", len(forms), len(names))
    return forms


def bytes_of(forms: Mapping[str, Form]) -> int:
    """Return the bytes of packed layers."""
    return sum(form.nbytes for form in forms.values())


# -- private ----------------------------------------------------------------------------------


def _nested(
    pack: Pack,
    method: Nested,
    calibration: Calibration,
    budget_bytes: int | None,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, Form]:
    names, forms = _names(pack), dict[str, Form]()
    if budget_bytes is not None:
        found = within(
            method, _weights(pack), budget_bytes, stats=calibration.linears, generator=generator
        )
        return {name: form for name, form in found.items() if isinstance(form, Form)}
    for name, weight in _weights(pack):
        stats = calibration.linears[name]
        forms[name] = method.pack_one(weight, stats=stats, generator=generator)
        if progress is not None:
            progress("packing weights", len(forms), len(names))
    return forms


def _names(pack: Pack) -> list[str]:
    spec = pack.spec
    return [f"layer.{i}.{name}" for i in range(spec.layers) for name in spec.layer_linears()]


def _weights(pack: Pack) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight in float32) of every linear layer, one held at a time."""
    for name in _names(pack):
        block, _, tensor = name.rpartition(".")
        stored = pack.block(block)[tensor]
        yield name, stored.float() if isinstance(stored, Tensor) else stored.dense()
