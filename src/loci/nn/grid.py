"""Numbers rounded to an even grid between the least and the largest of a group.

    low = min,   step = (max - low) / (2^bits - 1),   code = round((x - low) / step)

Grids are rounded to float16 first, as they will be kept, so that what is decoded is what was
chosen. Codes of a row are packed as one bit stream (`loci.nn.packing`).

Rows of tokens are rounded in one of two ways: channel by channel over groups of tokens, where a few
channels are large in every token, or token by token over groups of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loci.errors import ParameterError
from loci.nn.packing import pack_codes, unpack_codes

# Shapes: B batch, T tokens, N groups of tokens, w channels, c bytes of a row of codes.


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


def by_channel(x_BTw: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Return codes [B, T, c] and grids float16 [B, N, 2, w], each over `group` tokens."""
    codes, grid = rounded(x_BTw.unflatten(1, (-1, group)), bits, dim=2)
    return pack_rows(codes.flatten(1, 2), bits), grid.to(torch.float16)


def of_channel(codes_BTc: Tensor, grid_BN2w: Tensor, bits: int) -> Tensor:
    """Return float32 [B, T, w], what `by_channel` rounded."""
    low_step = grid_BN2w.float()
    x_BNgw = unpack_rows(codes_BTc, bits, low_step.shape[-1])
    x_BNgw = x_BNgw.unflatten(1, (low_step.shape[1], -1))
    return x_BNgw.mul_(low_step[:, :, 1:]).add_(low_step[:, :, :1]).flatten(1, 2)


def by_token(x_BTw: Tensor, bits: int, share: int) -> tuple[Tensor, Tensor]:
    """Return codes [B, T, c] and grids float16 [B, T, 2 w / share], each over `share` channels."""
    codes, grid = rounded(x_BTw.unflatten(2, (-1, share)), bits, dim=3)
    return pack_rows(codes.flatten(2), bits), grid.flatten(2).to(torch.float16)


def of_token(codes_BTc: Tensor, grid_BTn: Tensor, bits: int, width: int) -> Tensor:
    """Return float32 [B, T, width], what `by_token` rounded."""
    low_step = grid_BTn.float().unflatten(2, (-1, 2))
    x = unpack_rows(codes_BTc, bits, width).unflatten(2, (low_step.shape[2], -1))
    return x.mul_(low_step[..., 1:]).add_(low_step[..., :1]).flatten(2)
