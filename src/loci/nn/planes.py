"""Bit planes: signs and codes with one bit of every number side by side, and products of them.

One convention for all: bit k % 8 of byte k / 8 of a row belongs to column k, rows are padded with
zero bits to whole bytes, and the true number of columns is kept beside the planes.

A bipolar integer of n bits (arXiv:2409.17870) has no sign bit: every bit counts as +1 or -1,

    X = sum_i (2 b_i - 1) 2^i

so its values are the odd numbers from -(2^n - 1) to 2^n - 1, and its bits are those of the offset
code q with X = 2 q - (2^n - 1). All planes therefore follow one rule, and a dot product needs only
exclusive or and the counting of bits:

    x . w = sum_ij 2^(i + j) (K - 2 popcount(x_i xor w_j))

Dropping the lowest plane and doubling the scale is rounding to the nearest value that is left,
because X = 2 Y + 1 or 2 Y - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.errors import FormatError, ParameterError
from loci.nn.form import Form
from loci.nn.packed_linear import matmul
from loci.nn.packing import PackedWeight, pack_codes, rows, unpack_codes

MAX_BITS = 8

# Shapes: P planes of a weight, Q planes of x, M rows of x, N rows of the weight, K columns,
# R = ceil(K / 8) bytes of a row of one plane, G groups of a row, g columns of a group.


@dataclass(frozen=True, eq=False)
class PlanesWeight(Form):
    """The highest `bits` of the `whole` planes of a weight on a grid per group.

    The codes of the planes that are held lie together, as in a `PackedWeight`, so that its kernels
    multiply them; what is left to add is one number per group:

        w = (code - 2^(bits - 1)) scale + rest,     rest = scale / 2 + centre

    where the centre of a group's grid is the same for any number of planes.

    Attributes:
        codes: uint8 [N, row bytes], codes of `bits` bits.
        scales: float16 [N, G], the step of the grid of `bits` bits.
        mins: float16 [N, G], the minimum of the whole grid; None for a symmetric one.
        bits, whole: planes that are held, and that there are.
        group: inputs that share a scale.
    """

    codes: Tensor
    scales: Tensor
    mins: Tensor | None
    bits: int
    whole: int
    group: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= self.whole <= MAX_BITS:
            raise FormatError(
                "planes out of range", value=(self.bits, self.whole), allowed=f"1 to {MAX_BITS}"
            )
        self.packed()  # checks the tensors
        if self.mins is not None and self.mins.shape != self.scales.shape:
            raise FormatError("minima do not fit the scales", value=tuple(self.mins.shape))

    def tensors(self) -> dict[str, Tensor]:
        """Return {"codes", "scales"} and, for an asymmetric grid, "mins"."""
        found = {"codes": self.codes, "scales": self.scales}
        return found if self.mins is None else found | {"mins": self.mins}

    def meta(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON values."""
        numbers = {"bits": self.bits, "whole": self.whole, "group": self.group}
        return {"type": "planes", "shape": list(self.shape), **numbers}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> PlanesWeight:
        """Return the weight from `tensors()` and `meta()`."""
        try:
            values = {name: meta[name] for name in ("bits", "whole", "group")}
            return cls(
                codes=tensors["codes"],
                scales=tensors["scales"],
                mins=tensors.get("mins"),
                shape=(meta["shape"][0], meta["shape"][1]),
                **values,
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(f"these are no bit planes of a weight: {error}") from error

    @classmethod
    def highest(
        cls,
        plane_NR: Tensor,
        scales: Tensor,
        mins: Tensor | None,
        whole: int,
        shape: tuple[int, int],
    ) -> PlanesWeight:
        """Return the weight of one plane.

        Args:
            scales: the step of the whole grid.
        """
        group = shape[1] // scales.shape[1]
        return cls(plane_NR, scales * 2 ** (whole - 1), mins, 1, whole, group, shape)

    def with_plane(self, plane_NR: Tensor) -> PlanesWeight:
        """Return the weight with one more plane, in memory of its own."""
        inner = self.shape[1]
        codes_NK = unpack_codes(self.codes, self.bits, inner)
        codes_NK = (codes_NK << 1) | unpack_bits(plane_NR, inner)
        return self._at(self.bits + 1, codes_NK, self.scales / 2)

    def without_plane(self) -> PlanesWeight:
        """Return the weight without its lowest plane, in memory of its own."""
        codes_NK = unpack_codes(self.codes, self.bits, self.shape[1]) >> 1
        return self._at(self.bits - 1, codes_NK, self.scales * 2)

    def packed(self) -> PackedWeight:
        """Return codes and scales as a symmetric packed weight, which lacks the rest."""
        return PackedWeight(self.codes, self.scales, None, self.bits, self.group, self.shape)

    def rest(self, rows: slice = slice(None)) -> Tensor:
        """Return what each group adds to all its weights, float32 [rows, G]."""
        steps_NG = self.scales[rows].to(torch.float32)
        whole_NG = steps_NG / 2 ** (self.whole - self.bits)
        if self.mins is None:
            return (steps_NG - whole_NG) / 2
        most = 2**self.whole - 1
        return steps_NG / 2 + self.mins[rows].to(torch.float32) + whole_NG * (most / 2)

    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out."""
        self.packed().write(out, first, last)
        out.view(last - first, -1, self.group).add_(self.rest(slice(first, last)).unsqueeze(-1))

    def take(self, ids: Tensor) -> Tensor:
        """Return rows in float32 [n, K]."""
        found_nK = rows(self.packed(), ids)
        part = PlanesWeight(
            self.codes[ids], self.scales[ids], None if self.mins is None else self.mins[ids],
            self.bits, self.whole, self.group, (ids.numel(), self.shape[1]),
        )  # fmt: skip
        found_nK.view(ids.numel(), -1, self.group).add_(part.rest().unsqueeze(-1))
        return found_nK

    def product(self, x_MK: Tensor, out_MN: Tensor, tile: Tensor | None) -> Tensor:
        """Write x times the transposed weight into out and return it."""
        matmul(x_MK, self.packed(), out_MN, tile=tile)
        if self.bits < self.whole or self.mins is not None:
            sums_MG = x_MK.reshape(x_MK.shape[0], -1, self.group).sum(-1)
            out_MN.addmm_(sums_MG, self.rest().t())
        return out_MN

    def _at(self, bits: int, codes_NK: Tensor, scales: Tensor) -> PlanesWeight:
        codes = pack_codes(codes_NK, bits)
        return PlanesWeight(codes, scales, self.mins, bits, self.whole, self.group, self.shape)


def plane_bytes(columns: int) -> int:
    """Return the bytes of one row of one plane."""
    return -(-columns // 8)


def pack_bits(bits_NK: Tensor) -> Tensor:
    """Return a bool [N, K] as one plane, uint8 [N, ceil(K / 8)]."""
    rows, columns = bits_NK.shape
    padded_NK = torch.nn.functional.pad(bits_NK.to(torch.uint8), (0, -columns % 8))
    grouped_NR8 = padded_NK.view(rows, -1, 8)
    plane_NR = grouped_NR8[..., 0].clone()
    for place in range(1, 8):
        plane_NR |= grouped_NR8[..., place] << place
    return plane_NR


def unpack_bits(plane_NR: Tensor, columns: int) -> Tensor:
    """Return the bits of a plane as uint8 zeros and ones [N, columns]."""
    places_8 = torch.arange(8, dtype=torch.uint8)
    return ((plane_NR.unsqueeze(-1) >> places_8) & 1).flatten(-2)[..., :columns]


def to_planes(codes_NK: Tensor, bits: int) -> Tensor:
    """Return codes uint8 [N, K] below 2**bits as planes uint8 [bits, N, R], the highest first."""
    _check(bits)
    return torch.stack([pack_bits((codes_NK >> i) & 1) for i in reversed(range(bits))])


def from_planes(planes_PNR: Tensor, columns: int) -> Tensor:
    """Return the codes uint8 [N, columns] whose highest bits these planes are."""
    codes_NK = unpack_bits(planes_PNR[0], columns)
    for plane_NR in planes_PNR[1:]:
        codes_NK = (codes_NK << 1) | unpack_bits(plane_NR, columns)
    return codes_NK


def to_bipolar(codes: Tensor, bits: int) -> Tensor:
    """Return the bipolar values int32 of offset codes: X = 2 q - (2^bits - 1)."""
    _check(bits)
    return 2 * codes.to(torch.int32) - (2**bits - 1)


def from_bipolar(values: Tensor, bits: int) -> Tensor:
    """Return the offset codes uint8 of bipolar values.

    Raises:
        ParameterError: if a value is even or too large: those have no bits.
    """
    _check(bits)
    most = 2**bits - 1
    if not bool(((values % 2 != 0) & (values.abs() <= most)).all()):
        raise ParameterError(
            f"these are no bipolar integers of {bits} bits",
            value=(int(values.min()), int(values.max())),
            allowed=f"the odd numbers from {-most} to {most}",
        )
    return ((values + most) // 2).to(torch.uint8)


def plane_dot(x_QMR: Tensor, w_PNR: Tensor, columns: int) -> Tensor:
    """Return the exact products int32 [M, N] of bipolar integers given as planes, highest first.

    This is the oracle of every integer product: bits are counted in plain torch.

    Args:
        columns: the true K; padding is 0 in both operands, so their exclusive or is 0 there.

    Raises:
        ParameterError: if a sum could leave 32 bits.
    """
    (q, rows, _), (p, outputs, _) = x_QMR.shape, w_PNR.shape
    if columns * (2**p - 1) * (2**q - 1) >= 2**31:
        raise ParameterError(
            "these sums may not fit 32 bits",
            value=(columns, q, p),
            way_out="multiply group by group",
        )
    counts_256 = _popcounts()
    total_MN = torch.zeros(rows, outputs, dtype=torch.int32)
    for i, x_MR in enumerate(x_QMR):
        for j, w_NR in enumerate(w_PNR):
            differ_MNR = (x_MR.unsqueeze(1) ^ w_NR.unsqueeze(0)).to(torch.int64)
            dot_MN = columns - 2 * counts_256[differ_MNR].sum(-1, dtype=torch.int32)
            total_MN += dot_MN << (q - 1 - i + p - 1 - j)
    return total_MN


@cache
def _popcounts() -> Tensor:
    return torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.int32)


def _check(bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise ParameterError("bits out of range", value=bits, allowed=f"1 to {MAX_BITS}")
