"""Block floating point for weights: a few bits a weight and one exponent for a block of inputs.

N. Trukhanov and I. Soloveychik, "Accurate Block Quantization in LLMs with Outliers", 2024,
arXiv:2403.20137.

A block of n weights of a row shares an 8-bit exponent e, each weight is a signed m-bit mantissa:

    e = floor(log2(max |w|)),   step = 2^(e - m + 2),   q = round(w / step), -2^(m-1) <= q < 2^(m-1)

so a weight takes m + 8 / n bits: half of what a scale in float16 adds. Products need no
multiplication by a scale, only an addition of exponents.

Differs from the paper: the rounding is our reading of the abstract; of e and e - 1 the one with
less error is taken, because cutting a block's largest weight is often worth a finer step. The
paper's sorting of channels is for keys, whose outliers stay in place (`bfp` of kind kv).
Not for: the best quality at its size; steps are powers of two, so up to half of the grid is unused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant._packed import check_matrix
from loci.methods.quant.base import Quant
from loci.nn.bfp_weight import BIAS, BfpWeight
from loci.nn.form import Form
from loci.nn.packing import pack_codes, row_bytes
from loci.nn.taps import ActStats

_LEAST = -100  # smaller exponents are stored as this one

# Shapes: N outputs, K inputs, b blocks of a row, n weights of a block.


@dataclass(frozen=True, kw_only=True)
class BfpWeights(Quant):
    """Shared exponents and packed mantissas."""

    about = About(
        name="bfp_weights",
        kind=Kind.QUANT,
        paper="arXiv:2403.20137",
        idea="weights share an exponent by blocks, so a grid costs 8 bits and no multiplication",
        phases=(Phase.LOAD,),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="rounding, and the choice between two exponents",
    )

    bits: Annotated[int, Param(help="bits of a mantissa, sign included", ge=2, le=8)] = 6
    block: Annotated[
        int, Param(help="weights that share an exponent", choices=(8, 16, 32, 64, 128), source="4")
    ] = 32

    def packed_bytes(self, out: int, inner: int) -> int:
        if inner % self.block:
            raise ParameterError(
                f"bfp_weights.block does not divide a row of {inner} weights",
                value=self.block,
                way_out=f"bfp_weights(block={min(128, inner & -inner)})"
                if inner % 8 == 0
                else "a method whose group is the whole row",
            )
        return out * (row_bytes(inner, self.bits) + inner // self.block)

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        self.packed_bytes(out, inner)
        w_Nbn = weight.detach().to(torch.float32).reshape(out, -1, self.block)
        largest_Nb = w_Nbn.abs().amax(-1)
        # frexp gives a mantissa in [1/2, 1), so the floor of the logarithm is one less.
        high_Nb = (torch.frexp(largest_Nb).exponent - 1).clamp(_LEAST, BIAS)
        high_Nb = torch.where(largest_Nb == 0, _LEAST, high_Nb)
        low_Nb = (high_Nb - 1).clamp(min=_LEAST)
        (codes_Nbn, error_Nb), (others_Nbn, other_Nb) = (
            self._rounded(w_Nbn, places_Nb) for places_Nb in (high_Nb, low_Nb)
        )
        is_less_Nb = other_Nb < error_Nb
        codes_Nbn = torch.where(is_less_Nb.unsqueeze(-1), others_Nbn, codes_Nbn)
        exponents_Nb = torch.where(is_less_Nb, low_Nb, high_Nb) + BIAS
        return BfpWeight(
            pack_codes(codes_Nbn.reshape(out, inner).to(torch.uint8), self.bits).contiguous(),
            exponents_Nb.to(torch.uint8),
            self.bits,
            self.block,
            (out, inner),
        )

    def _rounded(self, w_Nbn: Tensor, places_Nb: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and errors with these exponents."""
        half = 2 ** (self.bits - 1)
        steps_Nb1 = torch.exp2((places_Nb - (self.bits - 2)).float()).unsqueeze(-1)
        values_Nbn = (w_Nbn / steps_Nb1).round_().clamp_(-half, half - 1)
        error_Nb = (values_Nbn * steps_Nb1 - w_Nbn).square_().sum(-1)
        return values_Nbn + half, error_Nb
