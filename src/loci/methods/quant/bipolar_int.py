"""Bipolar integers: bit planes without a sign, so that one stored model serves every width.

S. Ma et al., "Efficient Arbitrary Precision Acceleration for Large Language Models on GPU Tensor
Cores", 2024, arXiv:2409.17870.

A bipolar integer of n bits is X = sum_i (2 b_i - 1) 2^i: the odd numbers from -(2^n - 1) to
2^n - 1, every bit worth plus or minus its power of two. Codes q of any grid become bipolar without
loss, X = 2 q - (2^n - 1), and

    w = s q + m  =  (s / 2) X + (m + (2^n - 1) s / 2)

Because X = 2 Y + 1 or 2 Y - 1, dropping the lowest plane and doubling the scale is rounding to the
nearest value of the coarser grid. So planes are stored apart, the highest first, and a model is
read at as many of them as there is room for; products of planes are exact integers (`nn.planes`).

Differs from the paper: planes encode a grid with a scale per group, not a tensor-wide one; on this
processor the planes that are held are multiplied as codes, which is the same number and faster
than counting bits; the paper's kernels are for tensor cores.
Not for: fewer than 4 planes of a model that is sensitive. There is no zero among the values, so
small weights on large inputs become plus or minus half a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant.base import Nested
from loci.methods.quant.groupwise import Groupwise
from loci.nn.form import Form
from loci.nn.packing import unpack_codes
from loci.nn.planes import PlanesWeight, plane_bytes, to_planes
from loci.nn.taps import ActStats


@dataclass(frozen=True, kw_only=True)
class BipolarInt(Nested):
    """A grid per group, stored plane by plane."""

    about = About(
        name="bipolar_int",
        kind=Kind.QUANT,
        paper="arXiv:2409.17870",
        idea="bits without a sign, so that any number of planes of one model is a model",
        phases=(Phase.LOAD, Phase.DECODE),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="a scale per group; planes are kept and dropped while the model runs",
    )

    bits: Annotated[int, Param(help="planes of a weight", unit="bits", ge=1, le=8)] = 8
    least: Annotated[int, Param(help="planes that are never dropped", ge=1, le=8)] = 2
    group: Annotated[int | None, Param(help="inputs that share a scale", ge=8)] = 64
    symmetric: Annotated[bool, Param(help="no minimum, the grid is centred on zero")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source()

    @property
    def least_levels(self) -> int:
        return min(self.least, self.bits)

    def level_bytes(self, out: int, inner: int) -> tuple[int, ...]:
        plane = out * plane_bytes(inner)
        scales = self._source().packed_bytes(out, inner) - out * -(-inner * self._width() // 8)
        return (plane + scales, *[plane] * (self.bits - 1))

    def levels(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> list[dict[str, Tensor]]:
        packed = self._source().pack_one(weight)
        if not torch.isfinite(packed.scales * 2**self.bits).all():
            raise ParameterError(
                "weights this large have no scale in 16 bits", value=float(weight.abs().max())
            )
        codes_NK = unpack_codes(packed.codes, packed.bits, packed.shape[1])
        planes_PNR = to_planes(codes_NK, packed.bits)[: self.bits]
        found = [{"plane": plane_NR} for plane_NR in planes_PNR]
        found[0]["scales"] = packed.scales
        if packed.mins is not None:
            found[0]["mins"] = packed.mins
        return found

    def first(self, levels: Sequence[Mapping[str, Tensor]], shape: tuple[int, int]) -> Form:
        top = levels[0]
        form = PlanesWeight.highest(
            top["plane"], top["scales"], top.get("mins"), self._width(), shape
        )
        for level in levels[1:]:
            form = form.with_plane(level["plane"])
        return form

    def grow(self, form: Form, level: Mapping[str, Tensor]) -> Form:
        assert isinstance(form, PlanesWeight)
        return form.with_plane(level["plane"])

    def shrink(self, form: Form) -> Form:
        assert isinstance(form, PlanesWeight)
        return form.without_plane()

    def _width(self) -> int:
        """Return the bits of the grid: one of a single bit is cut from one of two."""
        return max(self.bits, 2)

    def _source(self) -> Groupwise:
        return Groupwise(bits=self._width(), group=self.group, symmetric=self.symmetric)
