"""TurboQuant: turn every head until its numbers look normal, and round them as best as can be.

A. Zandieh, M. Daliri, M. Hadian and V. Mirrokni, "TurboQuant: Online Vector Quantization with
Near-optimal Distortion Rate", 2025, arXiv:2504.19874.

A vector that is turned at random has channels that are nearly normal and nearly independent,
whatever it was. So one table of levels, the best for a normal variable, serves all of them, and a
token keeps b bits a channel and one scale:

    z = H S (x - c),   q_i = the level nearest to z_i / s,   x ~ c + s S H level[q]

Products with a query need no turning back: (H S q) . level[q_i] s, and values are turned back once,
when all are added up.

Differs from the paper (its form for least squared error): a Hadamard matrix H with random signs S
in place of a random rotation; scales are fitted to what was rounded, the best of a few sizes, where
it keeps the norm; c, the mean of the first tokens that are rounded, is taken away before; the first
tokens and those that wait stay exact. No channel gets more bits than others.
Not for: heads whose size no power of two from 8 on divides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated

from loci.core.method import About, Kind, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import Encode, LevelForm, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

# The best levels for a normal variable, those above zero, by bits (J. Max, "Quantizing for Minimum
# Distortion", 1960, table I).
LEVELS = {
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
SIZES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35)  # of the root mean square, tried for every token
LEAST_TURN = 8  # channels that are turned together
SEED = 1

# Shapes: B batch, L layers, K key/value heads, T tokens, D head size, N levels.


@dataclass(frozen=True, kw_only=True)
class TurboQuant(Encode):
    """Turned heads, levels of a normal variable, a scale for every token."""

    about = About(
        name="turboquant",
        kind=Kind.KV,
        paper="arXiv:2504.19874",
        idea="turn heads until channels look normal, and round to the levels best for that",
        phases=(Phase.PREFILL, Phase.DECODE),
        reconstruction="Hadamard in place of random rotations, fitted scales, means taken away",
    )

    bits_k: Annotated[int, Param(help="bits of a key's number", choices=tuple(LEVELS))] = 4
    bits_v: Annotated[int, Param(help="bits of a value's number", choices=tuple(LEVELS))] = 4
    sinks: Annotated[int, Param(help="first tokens that stay exact", unit="tokens", ge=0)] = 4
    window: Annotated[int, Param(help="newest tokens that stay exact", unit="tokens", ge=0)] = 64
    tail: Annotated[
        int, Param(help="tokens that wait uncoded and are coded together", unit="tokens", ge=1)
    ] = 32

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return self.tail

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that stay exact."""
        return self.window

    @property
    def first_tokens(self) -> int:
        """First tokens that stay exact."""
        return self.sinks

    def code_table(self, head_dim: int) -> Shapes:
        """Return codes and scales of one token of one head."""
        if head_dim % LEAST_TURN:
            raise MethodError(
                f"turboquant cannot turn heads of {head_dim} channels",
                value=head_dim,
                allowed=f"multiples of {LEAST_TURN}",
                way_out=f"bfp(block={head_dim & -head_dim})",
            )
        return {
            "keys": ((head_dim * self.bits_k // 8,), "uint8"),
            "key_scale": ((1,), "float16"),
            "values": ((head_dim * self.bits_v // 8,), "uint8"),
            "value_scale": ((1,), "float16"),
        }

    def code_form(self, head_dim: int) -> LevelForm | None:
        """Return what kernels need to know; None where a head is not turned as a whole."""
        if _width(head_dim) != head_dim:
            return None
        levels = [tuple(_levels(bits).tolist()) for bits in (self.bits_k, self.bits_v)]
        return LevelForm(self.bits_k, self.bits_v, tuple(_signs(head_dim).tolist()), *levels)

    def fixed_table(self, spec: ModelSpec) -> Shapes:
        """Return the means of keys and of values."""
        shape = (spec.layers, spec.kv_heads, spec.head_dim)
        return {"key_mean": (shape, "float16"), "value_mean": (shape, "float16")}

    def learn(self, block: KVBlock) -> dict[str, Tensor]:
        """Return the means over these tokens; zero of rows that have none."""
        counts_B1T1 = (block.positions >= self.sinks).unsqueeze(-1)
        many_B11 = counts_B1T1.sum(2).clamp(min=1)
        return {
            "key_mean": (block.keys.float() * counts_B1T1).sum(2) / many_B11,
            "value_mean": (block.values.float() * counts_B1T1).sum(2) / many_B11,
        }

    def encode(self, block: KVBlock, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return codes and scales.

        Raises:
            ParameterError: if a number is too large for a scale in half precision.
        """
        found = {}
        for name, mean, bits, x_BKTD in (
            ("key", fixed["key_mean"], self.bits_k, block.keys),
            ("value", fixed["value_mean"], self.bits_v, block.values),
        ):
            z_BKTD = _turned(x_BKTD.float() - mean.float().unsqueeze(2))
            found[f"{name}s"], found[f"{name}_scale"] = _rounded(z_BKTD, bits)
        return found

    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, turned back."""
        from loci.nn.grid import unpack_rows

        found = []
        for name, bits in (("key", self.bits_k), ("value", self.bits_v)):
            steps = unpack_rows(codes[f"{name}s"], bits, head_dim).int()
            z_BKTD = _levels(bits)[steps] * codes[f"{name}_scale"].float()
            found.append(_back(z_BKTD) + fixed[f"{name}_mean"].float().unsqueeze(2))
        return found[0], found[1]


def _width(head_dim: int) -> int:
    return head_dim & -head_dim


@cache
def _levels(bits: int) -> Tensor:
    import torch

    above = torch.tensor(LEVELS[bits])
    return torch.cat([-above.flip(0), above])


@cache
def _signs(head_dim: int) -> Tensor:
    import torch

    draw = torch.Generator().manual_seed(SEED)
    return torch.randint(0, 2, (head_dim,), generator=draw) * 2.0 - 1.0


def _turned(x_BKTD: Tensor) -> Tensor:
    from loci.nn.turn import turned

    size = x_BKTD.shape[-1]
    return turned(x_BKTD * _signs(size), _width(size))


def _back(z_BKTD: Tensor) -> Tensor:
    from loci.nn.turn import turned

    size = z_BKTD.shape[-1]
    return turned(z_BKTD, _width(size)) * _signs(size)


def _rounded(z_BKTD: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return packed codes uint8 [B, K, T, bytes] and scales float16 [B, K, T, 1].

    Raises:
        ParameterError: if a number is too large for a scale in half precision.
    """
    import torch

    from loci.nn import native
    from loci.nn.grid import pack_rows

    size = z_BKTD.shape[-1]
    if native.turns(size):
        rows_ND = z_BKTD.reshape(-1, size)
        codes, scales = native.round_levels(rows_ND, _levels(bits), bits, SIZES)
        packed, scale = codes.view(*z_BKTD.shape[:-1], -1), scales.view(*z_BKTD.shape[:-1], 1)
    else:
        best, scale = nearest(z_BKTD, bits)
        packed = pack_rows(best, bits)
    if not torch.isfinite(scale).all():
        raise ParameterError(
            "keys or values are too large for a scale in 16 bits", value=float(z_BKTD.abs().max())
        )
    return packed, scale


def nearest(z_BKTD: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes uint8 [B, K, T, D] and scales float16 [B, K, T, 1] that leave least error.

    With codes given, the best scale is z . level / level . level, which takes that times z . level
    from the error. The oracle of the kernel.
    """
    import torch

    levels_N = _levels(bits)
    edges = (levels_N[1:] + levels_N[:-1]) / 2
    rms_BKT1 = z_BKTD.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
    best = torch.zeros_like(z_BKTD, dtype=torch.uint8)
    best_scale = torch.zeros_like(rms_BKT1)
    best_gain = torch.full_like(rms_BKT1, -1.0)
    for size in SIZES:
        codes = torch.bucketize(z_BKTD / (rms_BKT1 * size), edges)
        held = levels_N[codes]
        product = (z_BKTD * held).sum(-1, keepdim=True)
        energy = held.square().sum(-1, keepdim=True)
        gain = product.square() / energy
        is_more = gain > best_gain
        best = torch.where(is_more, codes.to(torch.uint8), best)
        best_scale = torch.where(is_more, product / energy, best_scale)
        best_gain = torch.where(is_more, gain, best_gain)
    return best, best_scale.to(torch.float16)
