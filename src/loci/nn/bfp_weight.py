"""Weights in block floating point: a few bits a weight, and one exponent for every block.

    w = (code - 2^(bits - 1)) 2^(exponent - 127 - (bits - 2))

A grid whose steps are powers of two: the exponent takes 8 bits where a scale takes 16. A step too
small for a normal number is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.errors import FormatError
from loci.nn import native
from loci.nn.form import Form
from loci.nn.packing import row_bytes, unpack_codes

BIAS = 127

# Shapes: N outputs, K inputs, b blocks of a row, R bytes of a packed row.


@dataclass(frozen=True, eq=False)
class BfpWeight(Form):
    """A weight [out, in] as mantissas uint8 [N, R] and exponents uint8 [N, b]."""

    mantissas: Tensor
    exponents: Tensor
    bits: int
    block: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        out, inner = self.shape
        expected = {
            "mantissas": (out, row_bytes(inner, self.bits)),
            "exponents": (out, inner // self.block),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != expected[name] or tensor.dtype != torch.uint8:
                raise FormatError(
                    f"{name} of a weight in block floating point do not fit {self.shape}",
                    value=(tuple(tensor.shape), str(tensor.dtype)),
                    allowed=f"{expected[name]} of uint8",
                )

    def tensors(self) -> dict[str, Tensor]:
        """Return {"mantissas", "exponents"}."""
        return {"mantissas": self.mantissas, "exponents": self.exponents}

    def meta(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON values."""
        return {"type": "bfp", "bits": self.bits, "block": self.block, "shape": list(self.shape)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> BfpWeight:
        """Return the weight from `tensors()` and `meta()`."""
        try:
            out, inner = meta["shape"]
            mantissas, exponents = tensors["mantissas"], tensors["exponents"]
            return cls(mantissas, exponents, meta["bits"], meta["block"], (out, inner))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"this is no weight in block floating point: {error}") from error

    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out."""
        mantissas, exponents = self.mantissas[first:last], self.exponents[first:last]
        if native.available() and mantissas.device.type == "cpu":
            native.bfp_dequant(mantissas, exponents, self.bits, self.block, out)
            return
        codes_nK = unpack_codes(mantissas, self.bits, self.shape[1]).to(torch.float32)
        places_nb = exponents.to(torch.float32) - (self.bits - 2)
        steps_nb = torch.where(places_nb <= 0, 0.0, torch.exp2(places_nb - BIAS))
        grouped = (codes_nK - 2 ** (self.bits - 1)).view(last - first, -1, self.block)
        out.copy_((grouped * steps_nb.unsqueeze(-1)).flatten(1))
