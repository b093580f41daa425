"""Packed weights: integer codes with one scale, and perhaps one minimum, per group of inputs.

The form on disk and in memory is the same. With a minimum (asymmetric) a weight is

    w = code * scale + min

and without one (symmetric)

    w = (code - 2**(bits - 1)) * scale

The codes of a row are one little-endian bit stream: code i takes bits i*bits up to (i+1)*bits, low
bits of byte 0 first, and every row starts on a byte. So 4-bit codes put element 2i into the low
nibble, and 8-bit codes are stored as they are.

Plain torch is the reference; where the native kernels were built, they do the same work faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.errors import FormatError, ParameterError
from loci.nn import native
from loci.nn.form import Form

MIN_BITS, MAX_BITS = 1, 8
SCALE_DTYPES = (torch.float16, torch.float32)
DENSE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TILE = 2**18  # codes unpacked at once: the 64-bit words of one tile take 2 MiB

# Shapes: N outputs (rows), K inputs, G groups of a row, R bytes of a packed row, M looked-up rows.


@dataclass(frozen=True, eq=False)
class PackedWeight(Form):
    """A weight [out, in] as integer codes; immutable, its tensors may be read-only memory maps.

    Attributes:
        codes: uint8 [out, row_bytes], the bit stream of every row.
        scales: float16 or float32 [out, in / group].
        mins: like `scales`, or None for a symmetric grid.
        bits: 1 to 8.
        group: inputs that share a scale; divides `in`.
        shape: (out, in).
    """

    codes: Tensor
    scales: Tensor
    mins: Tensor | None
    bits: int
    group: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        _check_grid(*self.shape, self.bits, self.group)
        out, inner = self.shape
        expected = {
            "codes": ((out, row_bytes(inner, self.bits)), (torch.uint8,)),
            "scales": ((out, inner // self.group), SCALE_DTYPES),
            "mins": ((out, inner // self.group), (self.scales.dtype,)),
        }
        for name, tensor in self.tensors().items():
            shape, dtypes = expected[name]
            if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
                raise FormatError(
                    f"{name} of a packed weight do not fit its {self.bits} bits and shape",
                    value=(tuple(tensor.shape), str(tensor.dtype)),
                    allowed=f"{shape} of {' or '.join(map(str, dtypes))}",
                )
            if not tensor.is_contiguous():
                raise FormatError(f"{name} of a packed weight must be contiguous")

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored tensors by name; `mins` only where there are any."""
        found = {"codes": self.codes, "scales": self.scales}
        return found if self.mins is None else found | {"mins": self.mins}

    def meta(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON values."""
        return {
            "type": "groupwise",
            "bits": self.bits,
            "group": self.group,
            "shape": list(self.shape),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> PackedWeight:
        """Return the weight from `tensors()` and `meta()`; nothing is copied.

        Raises:
            FormatError: if the two do not belong together.
        """
        try:
            if meta["type"] != "groupwise":
                raise FormatError("unknown packed weight", value=meta["type"], allowed="groupwise")
            out, inner = meta["shape"]
            return cls(
                codes=tensors["codes"],
                scales=tensors["scales"],
                mins=tensors.get("mins"),
                bits=meta["bits"],
                group=meta["group"],
                shape=(out, inner),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"this is no packed weight: {error}") from error

    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out, by the native kernel where it was built."""
        if native.handles(self.bits) and self.codes.device.type == out.device.type == "cpu":
            native.dequantise(self, first, last, out)
            return
        whole = (first, last) == (0, self.shape[0])
        part = self if whole else _rows_of(self, slice(first, last))
        _decode(part.codes, part.scales, part.mins, self.bits, self.shape[1], out)

    def take(self, ids: Tensor) -> Tensor:
        """Return rows in float32 [n, in], by the native kernel where it was built."""
        found_MK = torch.empty(ids.numel(), self.shape[1])
        if native.handles(self.bits) and self.codes.device.type == "cpu":
            native.rows(self, ids.contiguous(), found_MK)
            return found_MK
        mins_MG = None if self.mins is None else self.mins[ids]
        codes_MR, scales_MG = self.codes[ids], self.scales[ids]
        return _decode(codes_MR, scales_MG, mins_MG, self.bits, self.shape[1], found_MK)


def row_bytes(inner: int, bits: int) -> int:
    """Return the bytes of one packed row of `inner` codes."""
    return (inner * bits + 7) // 8


def packed_bytes(
    out: int, inner: int, bits: int, group: int, *, symmetric: bool, scale_bytes: int = 2
) -> int:
    """Return exactly the bytes that a packed weight [out, inner] stores.

    >>> packed_bytes(576, 576, 4, 32, symmetric=False)
    207360
    """
    _check_grid(out, inner, bits, group)
    per_group = scale_bytes * (1 if symmetric else 2)
    return out * (row_bytes(inner, bits) + inner // group * per_group)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Return codes uint8 [out, in], each below 2**bits, as bit streams uint8 [out, row_bytes]."""
    _check_bits(bits)
    out, inner = codes.shape
    if bits == 8:
        return codes.contiguous()
    if bits == 4 and inner % 2 == 0:
        return codes[:, 0::2] | (codes[:, 1::2] << 4)
    packed_NR = torch.empty(out, row_bytes(inner, bits), dtype=torch.uint8)
    shifts = torch.arange(8, dtype=torch.int64) * bits
    padded = -(-inner // 8) * 8
    step = max(1, _TILE // padded)
    for first in range(0, out, step):
        part_nK = codes[first : first + step]
        if padded != inner:
            part_nK = torch.nn.functional.pad(part_nK, (0, padded - inner))
        words = (part_nK.reshape(part_nK.shape[0], -1, 8).to(torch.int64) << shifts).sum(-1)
        octets = words.unsqueeze(-1).view(torch.uint8)[..., :bits]  # 8 codes fill `bits` bytes
        packed_NR[first : first + step] = octets.flatten(1)[:, : packed_NR.shape[1]]
    return packed_NR


def unpack_codes(packed: Tensor, bits: int, inner: int) -> Tensor:
    """Return the codes uint8 [out, inner] of bit streams uint8 [out, row_bytes]."""
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != row_bytes(inner, bits):
        raise FormatError(
            f"{inner} codes of {bits} bits take {row_bytes(inner, bits)} bytes a row",
            value=(packed.shape[-1], str(packed.dtype)),
        )
    if bits == 8:
        return packed.clone()
    out = packed.shape[0]
    codes_NK = torch.empty(out, inner, dtype=torch.uint8)
    if bits == 4:
        codes_NK[:, 0::2] = packed & 15
        codes_NK[:, 1::2] = packed[:, : inner // 2] >> 4
        return codes_NK
    shifts = torch.arange(8, dtype=torch.int64) * bits
    blocks = -(-inner // 8)
    step = max(1, _TILE // (blocks * 8))
    for first in range(0, out, step):
        part_nR = packed[first : first + step]
        part_nR = torch.nn.functional.pad(part_nR, (0, blocks * bits - part_nR.shape[1]))
        octets = part_nR.new_zeros(part_nR.shape[0], blocks, 8)
        octets[..., :bits] = part_nR.reshape(part_nR.shape[0], blocks, bits)
        words = octets.view(torch.int64)  # [n, blocks, 1]
        codes = ((words >> shifts) & (2**bits - 1)).to(torch.uint8)
        codes_NK[first : first + step] = codes.flatten(1)[:, :inner]
    return codes_NK


def dequantise(weight: Form, out: Tensor | None = None, rows: slice | None = None) -> Tensor:
    """Return the weight, or a range of its rows, in float32 [rows, in].

    Args:
        out: where to write it, contiguous float32 of that very shape.
        rows: output rows, a slice of step 1.
    """
    return weight.dense(out, rows)


def dequantise_reference(weight: PackedWeight) -> Tensor:
    """Return the weight in float32 by plain torch; the oracle of the kernels."""
    out = torch.empty(weight.shape)
    return _decode(weight.codes, weight.scales, weight.mins, weight.bits, weight.shape[1], out)


def rows(weight: Form | Tensor, ids: Tensor) -> Tensor:
    """Return the rows `ids` [n] of a packed or dense weight in float32 [n, in]."""
    ids = ids.reshape(-1).to(torch.int64)
    out = weight.shape[0]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < out:
        raise ParameterError(
            "row out of range", value=(int(ids.min()), int(ids.max())), allowed=f"0 to {out - 1}"
        )
    if isinstance(weight, Tensor):
        return weight[ids].to(torch.float32)
    return weight.take(ids)


def _decode(
    codes_NR: Tensor, scales_NG: Tensor, mins_NG: Tensor | None, bits: int, inner: int, out: Tensor
) -> Tensor:
    """Write the float32 values of packed rows into `out` [N, K] and return it."""
    out.copy_(unpack_codes(codes_NR, bits, inner))
    if out.numel() == 0:
        return out
    grouped_NGg = out.view(out.shape[0], scales_NG.shape[1], -1)
    if mins_NG is None:
        grouped_NGg -= 2 ** (bits - 1)
    grouped_NGg *= scales_NG.to(torch.float32).unsqueeze(-1)
    if mins_NG is not None:
        grouped_NGg += mins_NG.to(torch.float32).unsqueeze(-1)
    return out


def _rows_of(weight: PackedWeight, rows: slice) -> PackedWeight:
    mins = None if weight.mins is None else weight.mins[rows]
    codes, scales = weight.codes[rows], weight.scales[rows]
    shape = (codes.shape[0], weight.shape[1])
    return PackedWeight(codes, scales, mins, weight.bits, weight.group, shape)


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ParameterError("bits out of range", value=bits, allowed=f"{MIN_BITS} to {MAX_BITS}")


def _check_grid(out: int, inner: int, bits: int, group: int) -> None:
    _check_bits(bits)
    if out < 0 or inner < 1:
        raise ParameterError("a weight has two sizes, out and in", value=(out, inner))
    if not isinstance(group, int) or group < 1 or inner % group:
        raise ParameterError(
            f"the group does not divide a row of {inner} inputs",
            value=group,
            allowed=f"a divisor of {inner}",
        )
