"""The stack a plan may fall back on: as it was made, or as it will be, from sizes alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.models.stack import Part, StackTable, stack_path, table_of
from loci.tiers.blocks import read_table
from loci.tiers.pool import round_up

if TYPE_CHECKING:
    from loci.methods.quant.base import Nested

_GROUP, _TABLE_GROUP = 64, 32  # of weights at most, and of embedding and head
NOT_MADE = (
    "the first run takes the model apart, which takes minutes; only then are quality and speed "
    "known, and it is slower than what is said here: loci methods prepare {method}"
)


def table_for(spec: ModelSpec, pack: Path, method: str) -> tuple[StackTable, str]:
    """Return the table of a model's stack, and a note where it was not made yet.

    Args:
        pack: the file of the model.
        method: as the catalogue writes it.

    Raises:
        ParameterError: if the method does not pack weights in levels.
    """
    nested = _nested(method)
    text = str(nested)
    path = stack_path(pack, text, spec.fingerprint)
    if not path.is_file():
        return expected(spec, pack, nested), NOT_MADE.format(method=text)
    return table_of(path, method=text, fingerprint=spec.fingerprint), ""


def defaults(spec: ModelSpec, pack: Path) -> list[tuple[StackTable, str]]:
    """Return `table_for` of the methods that are tried unasked; [] where none suits the widths.

    The first loses less, the second goes further down.
    """
    shapes = spec.layer_linears().values()
    shared = math.gcd(spec.hidden, *(inner for _, inner in shapes))
    groups = [size for size in range(8, _GROUP + 1, 8) if shared % size == 0]
    if spec.hidden % _TABLE_GROUP or not groups:
        return []
    finer = "" if groups[-1] == _GROUP else f"(group={groups[-1]})"
    return [table_for(spec, pack, name) for name in (f"any_precision{finer}", "bitstack")]


def expected(spec: ModelSpec, pack: Path, method: Nested) -> StackTable:
    """Return the table of a stack that is not made yet: its sizes, depth by depth."""
    table, header = method.table(), read_table(pack)[0]
    parts: dict[str, Part] = {}
    sizes: dict[str, tuple[int, ...]] = {}

    def add(name: str, packer: Nested, shape: tuple[int, int]) -> None:
        parts[name] = Part(shape=shape, least=packer.least_levels, losses=())
        sizes[name] = packer.level_bytes(*shape)

    for kind in ("embed",) if spec.tied else ("embed", "head"):
        step = int(header[f"{kind}_rows"])
        for tile, first in enumerate(range(0, spec.vocab, step)):
            rows = min(step, spec.vocab - first)
            add(f"{kind}.{tile}", cast("Nested", table), (rows, spec.hidden))
    for layer in range(spec.layers):
        for name, shape in spec.layer_linears().items():
            add(f"layer.{layer}.{name}", method, shape)
    vectors = 4 * (spec.layers * spec.layer_norm_elements() + spec.hidden)
    held = [vectors + sum(sum(sizes[name][: part.least]) for name, part in parts.items())]
    order = []
    for depth in range(max(len(row) for row in sizes.values())):
        for name, part in parts.items():
            if part.least <= depth < len(sizes[name]):
                order.append(name)
                held.append(held[-1] + sizes[name][depth])
    return StackTable(
        method=str(method),
        fingerprint=spec.fingerprint,
        parts=parts,
        order=tuple(order),
        sizes=tuple(held),
        curve=(),
        buffer_bytes=max(round_up(max(row)) for row in sizes.values()),
    )


def _nested(method: str) -> Nested:
    from loci.methods.quant.base import Nested  # brings torch

    found = catalogue.find(method, "quant")
    if not isinstance(found, Nested):
        able = [cls.about.name for cls in catalogue.all_methods("quant") if issubclass(cls, Nested)]
        raise ParameterError(
            "this method does not pack weights in levels",
            value=method,
            allowed=", ".join(able),
        )
    return found
