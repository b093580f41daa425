"""What a method does once for a model: a stack, a model, what a KV cache needs, or experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any  # results are JSON values

from loci.core.method import Need
from loci.errors import BudgetError, MethodError, ParameterError
from loci.methods import catalogue
from loci.methods.kv.base import KVMethod
from loci.methods.quant.base import Nested, Quant
from loci.methods.recall.base import Recall
from loci.methods.train.base import Edit
from loci.models.pack import Pack
from loci.models.stack import table_of
from loci.run.artefacts import path_of
from loci.run.correct import Training
from loci.run.expert_training import prepare_experts
from loci.run.key_moments import prepare_editor
from loci.run.lab import Lab
from loci.run.quantised import pack_model
from loci.run.stack_build import prepare_stack
from loci.units import format_bytes, parse_bytes


def prepare(
    pack: Pack,
    method: str,
    folder: Path,
    *,
    weights: str | int | None = None,
    train: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Return what was made, or found made before; see `loci.api.prepare`."""
    found = catalogue.find(method)
    if isinstance(found, KVMethod) and Need.ARTEFACT in found.about.needs:
        if weights is not None or train is not None:
            raise ParameterError("a method of the KV cache changes no weights", value=method)
        return _prepare_kv(pack, found, progress)
    if isinstance(found, Edit):
        if weights is not None or train is not None:
            raise ParameterError("an editor packs no weights", value=method)
        return prepare_editor(pack, found, progress=progress)
    if isinstance(found, Recall) and Need.ARTEFACT in found.about.needs:
        if weights is not None:
            raise ParameterError("experts of a memory pack no weights", value=f"weights={weights}")
        return prepare_experts(pack, steps=train, progress=progress)
    if not isinstance(found, Quant):
        needing = [
            cls.about.name
            for kind in ("kv", "recall")
            for cls in catalogue.all_methods(kind)
            if Need.ARTEFACT in cls.about.needs
        ]
        raise MethodError(
            "this method has nothing to prepare",
            value=method,
            allowed=", ".join([*catalogue.names("quant"), *needing]),
        )
    if isinstance(found, Nested) and weights is None:
        if train is not None:
            raise ParameterError("levels of weights are not trained", value=f"train={train}")
        path = prepare_stack(pack, found, progress=progress)
        table = table_of(path, method=str(found), fingerprint=pack.spec.fingerprint)
        return {
            "kind": "stack",
            "method": str(found),
            "path": str(path),
            "bytes": [point[0] for point in table.curve],
            "kl": [point[1] for point in table.curve],
        }
    made = pack_model(
        pack,
        found,
        folder,
        budget_bytes=None if weights is None else _linear_budget(pack, weights),
        training=None if train is None else Training(steps=train),
        progress=progress,
    )
    return {
        "kind": "model",
        "method": made.method,
        "name": made.name,
        "path": str(folder / made.name),
        "bytes": _rest(pack) + made.linear_bytes,
        "kl": made.loss,
    }


def _prepare_kv(
    pack: Pack, method: KVMethod, progress: Callable[[str, int, int], None] | None
) -> dict[str, Any]:
    if progress is not None:
        progress("looking at keys and values", 0, 1)
    lab = Lab(pack)
    try:
        made = lab.prepared(method)
    finally:
        lab.close()
    if progress is not None:
        progress("looking at keys and values", 1, 1)
    return {
        "kind": "artefact",
        "method": str(method),
        "path": str(path_of(pack.folder, method.preparation, pack.spec.fingerprint)),
        "bytes": made.nbytes(),
        "facts": dict(made.facts),
    }


def _linear_budget(pack: Pack, weights: str | int) -> int:
    try:
        whole = parse_bytes(weights)
    except ValueError as error:
        raise ParameterError(f"weights: {error}") from None
    rest = _rest(pack)
    if whole <= rest:
        raise BudgetError(
            f"embedding, head and norms of {pack.spec.name} alone take {format_bytes(rest)}; the "
            f"budget gives {format_bytes(whole)} ({format_bytes(rest - whole)} short)",
            way_out="a stack cuts those as well: loci methods prepare any_precision",
        )
    return whole - rest


def _rest(pack: Pack) -> int:
    """Return the bytes of everything but the linear layers."""
    linears = pack.spec.layer_linears()
    packed = sum(
        pack.block(f"layer.{index}")[name].nbytes
        for index in range(pack.spec.layers)
        for name in linears
    )
    return pack.total_bytes - packed
