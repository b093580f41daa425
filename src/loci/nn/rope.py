"""Rotary position embedding, one implementation in float32, for the half-split layout.

J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
arXiv:2104.09864. Channel i is paired with channel i + D/2; the pair turns by position * f[i] with
f[i] = theta ** (-2 i / D). Rotation is orthogonal, so `undo` takes it back exactly, given the
positions. Scaled variants: `linear` (all frequencies divided by a factor) and `llama3` (slow
frequencies divided, fast ones kept, a smooth ramp between).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import ModelError, ParameterError

KNOWN = ("default", "linear", "llama3")

# Shapes: B batch, H heads, T tokens, D head size.


class Rope:
    """Tables and rotations for one model.

    Args:
        spec: gives head size, base and scaling. `rope_scaling` holds `rope_type` (or `type`) and
            the parameters of that type, named as in Hugging Face configurations.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if spec.head_dim % 2:
            raise ParameterError("rotary embedding needs an even head size", value=spec.head_dim)
        self.head_dim = spec.head_dim
        self.frequencies = _frequencies(spec)

    def table(
        self, positions_BT: Tensor, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the angles, float32 [B, T, D] each, both halves alike.

        Negative positions mark padding and are treated as 0.
        """
        half = self.head_dim // 2
        if out is None:
            shape = (*positions_BT.shape, self.head_dim)
            out = (
                torch.empty(shape, device=positions_BT.device),
                torch.empty(shape, device=positions_BT.device),
            )
        cos_BTD, sin_BTD = out
        places_BT1 = positions_BT.clamp(min=0).to(torch.float32).unsqueeze(-1)
        angles_BTh = places_BT1 * self.frequencies.to(positions_BT.device)
        torch.cos(angles_BTh, out=cos_BTD[..., :half])
        torch.sin(angles_BTh, out=sin_BTD[..., :half])
        cos_BTD[..., half:] = cos_BTD[..., :half]
        sin_BTD[..., half:] = sin_BTD[..., :half]
        return cos_BTD, sin_BTD


def rotate(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `x` turned by the angles; `out` may be `x` itself.

    The arithmetic is float32; the result has the dtype of `x`, or of `out` where given.
    """
    half = x_BHTD.shape[-1] // 2
    cos_B1Th, sin_B1Th = cos_BTD[..., :half].unsqueeze(1), sin_BTD[..., :half].unsqueeze(1)
    low, high = x_BHTD[..., :half].float(), x_BHTD[..., half:].float()
    turned_low = low * cos_B1Th - high * sin_B1Th
    turned_high = high * cos_B1Th + low * sin_B1Th
    if out is None:
        out = torch.empty_like(x_BHTD)
    out[..., :half] = turned_low
    out[..., half:] = turned_high
    return out


def undo(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `x` turned back by the angles."""
    return rotate(x_BHTD, cos_BTD, -sin_BTD, out)


def _frequencies(spec: ModelSpec) -> Tensor:
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    plain = 1.0 / (spec.rope_theta**exponents)
    scaling = dict(spec.rope_scaling)
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / _number(scaling, "factor")
    if kind == "llama3":
        return _llama3(plain, scaling)
    raise ModelError(
        f"{spec.name} scales its rotary embedding in a way Loci does not know",
        value=kind,
        allowed=", ".join(KNOWN),
    )


def _llama3(plain: Tensor, scaling: dict[str, float | str]) -> Tensor:
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    context = _number(scaling, "original_max_position_embeddings")
    wavelengths = 2 * math.pi / plain
    ramp = ((context / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return plain / factor * (1 - ramp) + plain * ramp


def _number(scaling: dict[str, float | str], name: str) -> float:
    try:
        return float(scaling[name])
    except (KeyError, ValueError):
        raise ModelError(
            f"the scaled rotary embedding lacks the number {name!r}",
            value=dict(scaling),
        ) from None
