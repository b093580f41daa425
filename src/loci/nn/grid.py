"""Numbers rounded to an even grid between the least and the largest of a group.

    low = min,   step = (max - low) / (2^bits - 1),   code = round((x - low) / step)

Grids are rounded to float16 first, as they will be kept, so that what is decoded is what was
chosen. Codes of a row are packed as one bit stream (`loci.nn.packing`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn.packing import pack_codes, unpack_codes


def rounded(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return uint8 codes like `x`, and the grid: (low, step) side by side along `dim`, float32.

    Args:
        dim: the group; numbers along it share low and step.

    Raises:
        ParameterError: if a number is too large for a grid in float16, or is not finite.
    """
    most = 2**bits - 1
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    low = low.to(torch.float16).float()
    step = ((high - low) / most).clamp(min=0).to(torch.float16).float()
    if not (torch.isfinite(low).all() and torch.isfinite(step).all()):
        raise ParameterError(
            "keys or values are too large for a grid in 16 bits", value=float(x.abs().max())
        )
    divisor = torch.where(step == 0, 1.0, step)
    codes = ((x - low) / divisor).round_().clamp_(0, most).to(torch.uint8)
    return codes, torch.cat([low, step], dim)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Return codes [..., n] packed along the last axis, uint8 [..., ceil(n * bits / 8)]."""
    flat = codes.reshape(-1, codes.shape[-1])
    return pack_codes(flat, bits).view(*codes.shape[:-1], -1)


def unpack_rows(packed: Tensor, bits: int, width: int) -> Tensor:
    """Return packed codes as float32 [..., width]."""
    flat = packed.reshape(-1, packed.shape[-1])
    return unpack_codes(flat, bits, width).view(*packed.shape[:-1], width).float()
