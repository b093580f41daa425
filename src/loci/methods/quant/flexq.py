"""FlexQ: six bits for weights and for what flows in, eight where a layer is sensitive.

H. Zhang et al., "FlexQ: Efficient Post-training INT6 Quantization for LLM Serving via
Algorithm-System Co-Design", 2025, arXiv:2508.04405.

Weights and activations are rounded to a symmetric grid per group of inputs,

    scale = max|w| / (2^5 - 1),   q = round(w / scale), -31 <= q <= 31

the weights once, the activations of every token when they come. Both sides are small integers then,
so a product of a group is exact in 32 bits and one multiplication by the two scales ends it. Inputs
of layers that are sensitive get eight bits.

Differs from the paper: which layers are sensitive is measured, one layer at a time, as the KL its
rounded input costs (the released code takes every down_proj, and the analysis behind it is not
part of it); groups are of 64, which divides widths that 128 does not; -32 is not used.
Not for: speed here. On this processor rounding an input costs time and saves none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from loci.core.method import About, Frees, Kind, Param, Phase
from loci.errors import ParameterError
from loci.methods.quant._packed import check_matrix
from loci.methods.quant.base import Quant, Sensitive
from loci.methods.quant.groupwise import Groupwise
from loci.nn.adjusted import AdjustedWeight
from loci.nn.form import DenseWeight, Form
from loci.nn.packing import PackedWeight, pack_codes
from loci.nn.taps import ActStats

_WIDE = 8  # bits of a sensitive layer's input

# Shapes: N outputs, K inputs, G groups of a row, g inputs of a group.


@dataclass(frozen=True, kw_only=True)
class FlexQ(Sensitive):
    """Integer weights and inputs, wider inputs where it matters."""

    about = About(
        name="flexq",
        kind=Kind.QUANT,
        paper="arXiv:2508.04405",
        idea="6 bits for weights and inputs, 8 for the inputs of layers that are sensitive",
        phases=(Phase.LOAD, Phase.PREFILL, Phase.DECODE),
        frees=Frees.STORAGE,
        lossy=True,
        reconstruction="the measure of sensitivity, and how many layers it widens",
    )

    bits: Annotated[int, Param(help="width of a weight", unit="bits", ge=2, le=8)] = 6
    act_bits: Annotated[
        int, Param(help="width of an input; 16 leaves it as it is", choices=(4, 6, 8, 16))
    ] = 6
    group: Annotated[int, Param(help="inputs that share a scale", ge=8, source="code: 128")] = 64
    wide: Annotated[float, Param(help="share of layers whose inputs get 8 bits", ge=0, le=1)] = (
        1 / 6
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source()

    def packed_bytes(self, out: int, inner: int) -> int:
        rounding = inner // self.group if self.act_bits < 16 else 0
        return self._source().packed_bytes(out, inner) + rounding

    def table(self) -> Quant:
        return Groupwise(bits=8, group=32, symmetric=True)

    def variants(self) -> Sequence[Quant]:
        return (self,)  # which layers differ is decided by `assign`, and takes no more bytes

    @property
    def asks(self) -> bool:
        return self.act_bits < _WIDE and self.wide > 0

    def probe(self, weight: Form | Tensor) -> Form:
        base = DenseWeight(weight) if isinstance(weight, Tensor) else weight
        if self.act_bits == 16:
            return base
        return AdjustedWeight(base, bits=self._widths(base.shape[1]))

    def assign(self, losses: Mapping[str, float]) -> dict[str, Quant]:
        """Return the method of every layer: the most sensitive ones get wider inputs.

        Args:
            losses: KL that the rounded input of each layer alone costs.
        """
        count = round(self.wide * len(losses))
        chosen = sorted(losses, key=lambda name: -losses[name])[:count]
        wider = replace(self, act_bits=max(self.act_bits, _WIDE))
        return {name: wider if name in chosen else self for name in losses}

    def pack_one(
        self, weight: Tensor, *, stats: ActStats | None = None, generator: Generator | None = None
    ) -> Form:
        check_matrix(weight, self.about.name)
        out, inner = weight.shape
        self.packed_bytes(out, inner)
        w_NGg = weight.detach().to(torch.float32).reshape(out, -1, self.group)
        half = 2 ** (self.bits - 1)
        scales_NG = (w_NGg.abs().amax(-1) / (half - 1)).to(torch.float16)
        if not torch.isfinite(scales_NG).all():
            raise ParameterError(
                "weights this large have no scale in 16 bits", value=float(weight.abs().max())
            )
        divisor_NG1 = torch.where(scales_NG == 0, 1.0, scales_NG.float()).unsqueeze(-1)
        values_NGg = (w_NGg / divisor_NG1).round_().clamp_(1 - half, half - 1)
        codes_NK = (values_NGg + half).reshape(out, inner).to(torch.uint8)
        packed = PackedWeight(
            pack_codes(codes_NK, self.bits).contiguous(),
            scales_NG,
            None,
            self.bits,
            self.group,
            (out, inner),
        )
        return self.probe(packed)

    def _widths(self, inner: int) -> Tensor:
        return torch.full((inner // self.group,), self.act_bits, dtype=torch.uint8)

    def _source(self) -> Groupwise:
        return Groupwise(bits=self.bits, group=self.group, symmetric=True)
