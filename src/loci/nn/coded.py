"""Keys and values in codes, as kernels read them, and what they stand for in plain torch.

Codes of a token's channels are one bit stream. Two forms: block floating point, where blocks of
channels share a biased exponent, and grids, where a code q stands for low + step * q, keys by
channel over groups of tokens and values by token over blocks of channels. Each token of a group
carries its share of the group's grid, all lows and then all steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.nn.packing import unpack_codes
from loci.nn.turn import turned

# Shapes: B batch, K key/value heads, S tokens, D head size.


@dataclass(frozen=True, eq=False)
class Coded:
    """Coded tokens of one layer.

    Attributes:
        codes: "keys" and "values" uint8 [B, K, S, bytes]; with them "key_exponents" and
            "value_exponents" uint8 [B, K, S, D / block], or "key_grid" float16 [B, K, S, share] and
            "value_grid" float16 [B, K, S, 2 * D / block].
        bits: of a code.
        block: channels that share an exponent, or a grid of values.
        group: tokens that share a grid of keys; 0 for block floating point.
        head_dim: D.
    """

    codes: Mapping[str, Tensor]
    bits: int
    block: int
    group: int
    head_dim: int

    @property
    def tokens(self) -> int:
        """Coded tokens."""
        return self.codes["keys"].shape[2]

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Return keys and values float32 [B, K, S, D], step by step; the oracle of kernels."""
        keys, values = self._numbers("keys"), self._numbers("values")
        size = self.head_dim
        if not self.group:
            return self._floating(keys, "key_exponents"), self._floating(values, "value_exponents")
        held = self.codes["key_grid"].float().unflatten(2, (-1, self.group)).flatten(3)
        low, step = held[..., :size], held[..., size : 2 * size]  # [B, K, groups, D]
        keys = keys.unflatten(2, (-1, self.group)) * step.unsqueeze(3) + low.unsqueeze(3)
        grid = self.codes["value_grid"].float().unflatten(3, (-1, 2))
        values = values.unflatten(3, (-1, self.block)) * grid[..., 1:] + grid[..., :1]
        return keys.flatten(2, 3), values.flatten(3)

    def _numbers(self, name: str) -> Tensor:
        return _unpacked(self.codes[name], self.bits, self.head_dim).float()

    def _floating(self, numbers: Tensor, exponents: str) -> Tensor:
        shifted = (self.codes[exponents].int() - (self.bits - 2)).clamp(min=0)
        steps = (shifted << 23).view(torch.float32).repeat_interleave(self.block, -1)
        return (numbers - 2 ** (self.bits - 1)) * steps


@dataclass(frozen=True, eq=False)
class Turned:
    """Coded tokens of one layer whose heads were turned as a whole: mean + scale * signs * H level.

    Attributes:
        codes: "keys" and "values" uint8 [B, K, S, bytes], "key_scale" and "value_scale" float16
            [B, K, S, 1].
        fixed: "key_mean" and "value_mean" float16 [B, K, D].
        bits_k, bits_v: of a code of keys and of values.
        signs: of the channels, before they are turned by the orthogonal Hadamard matrix H.
        levels_k, levels_v: what each code stands for.
        head_dim: D, a power of two.
    """

    codes: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    bits_k: int
    bits_v: int
    signs: tuple[float, ...]
    levels_k: tuple[float, ...]
    levels_v: tuple[float, ...]
    head_dim: int

    @property
    def tokens(self) -> int:
        """Coded tokens."""
        return self.codes["keys"].shape[2]

    @property
    def signs_D(self) -> Tensor:
        """The signs, where the codes are."""
        return torch.tensor(self.signs, device=self.codes["keys"].device)

    def turn(self, x: Tensor) -> Tensor:
        """Return numbers [..., D] turned as keys and values were."""
        return turned(x * self.signs_D, self.head_dim)

    def back(self, x: Tensor) -> Tensor:
        """Return numbers [..., D] turned back."""
        return turned(x, self.head_dim) * self.signs_D

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Return keys and values float32 [B, K, S, D], step by step; the oracle of kernels."""
        found = []
        for name, bits, levels in (
            ("key", self.bits_k, self.levels_k),
            ("value", self.bits_v, self.levels_v),
        ):
            at = _unpacked(self.codes[f"{name}s"], bits, self.head_dim).int()
            z = torch.tensor(levels)[at] * self.codes[f"{name}_scale"].float()
            found.append(self.back(z) + self.fixed[f"{name}_mean"].float().unsqueeze(2))
        return found[0], found[1]


def _unpacked(packed: Tensor, bits: int, size: int) -> Tensor:
    flat = unpack_codes(packed.reshape(-1, packed.shape[-1]), bits, size)
    return flat.view(*packed.shape[:-1], size)
