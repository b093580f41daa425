"""KVTC: code keys and values as pictures are coded: turn, share bits out, round.

K. Staniszewski and A. Lancucki, "KV Cache Transform Coding for Compact Storage in LLM Inference",
2025, arXiv:2511.01815.

In the directions found for a model (principal components of keys before their rotation, and of
values) channels are uncorrelated and few of them are large. A bit is worth most where it lowers the
error most, so bits are given out one by one:

    z = (k - m) V^T,   gain of the next bit of channel i = energy_i * (loss(b_i) - loss(b_i + 1))

where loss(b) is what a uniform quantiser of b bits leaves of a normal variable. Channels that get
no bit cost nothing. Each token has one gain of its own, tried at a few sizes. The first tokens and
the newest stay exact.

Differs from the paper: components of each layer by itself, where it takes all layers together,
whose basis would be larger than the cache here; bits for eight channels at a time, given greedily,
which is what its dynamic program finds where losses are convex; no entropy coding at the end, so
that single tokens are found again. Gains by token are ours.
Not for: contexts so short that V, stored once, takes more than the tokens save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import MethodError
from loci.methods.kv.base import (
    EncodeLayers,
    LatentForm,
    LayerGroup,
    Shapes,
    as_heads,
    as_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVBlock

# The best uniform quantiser of a normal variable (J. Max, "Quantizing for Minimum Distortion",
# 1960): step, and what is left of the variance, for 0 to 8 bits.
STEPS = (0.0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
LOSSES = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.00349, 0.00104, 0.000304, 0.0000877)
MOST = len(STEPS) - 1
GAINS = (0.7, 0.85, 1.0, 1.25, 1.6, 2.2)  # of the root mean square, tried for every token
CLOSES = 32  # tokens that are coded together
BLOCK = 8  # channels with as many bits; a bit of each is a byte of a token

# Shapes: B batch, L layers, T tokens, K key/value heads, D head size, w = K D channels, m of them
# that may have bits.


@dataclass(frozen=True, kw_only=True)
class Kvtc(EncodeLayers):
    """Principal components with as many bits as each is worth."""

    about = About(
        name="kvtc",
        kind=Kind.KV,
        paper="arXiv:2511.01815",
        idea="keep a model's principal components, and give bits where they count",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT,),
        reconstruction="components by layer, gains by token, no entropy coding",
    )
    keeps_groups: ClassVar[bool] = False

    bits_k: Annotated[
        float, Param(help="bits of a key's number, on average over its channels", ge=0.05, le=8)
    ] = 3.0
    bits_v: Annotated[
        float, Param(help="bits of a value's number, on average over its channels", ge=0.05, le=8)
    ] = 3.0
    sinks: Annotated[
        int, Param(help="first tokens that stay exact", unit="tokens", ge=0, source="section 3")
    ] = 4
    window: Annotated[
        int, Param(help="newest tokens that stay exact", unit="tokens", ge=0, source="section 3")
    ] = 128
    dtype: Annotated[
        str, Param(help="what components are kept in", choices=("float16", "float32"))
    ] = "float16"

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return CLOSES

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that stay exact."""
        return self.window

    @property
    def first_tokens(self) -> int:
        """First tokens that stay exact."""
        return self.sinks

    @property
    def preparation(self) -> str:
        """The same for all bits: components in the order of what they hold."""
        return self.about.name

    def prepare(self, lab: Lab) -> Artefact:
        """Return components [L, w, w], best first, means [L, w] and energies [L, w]."""
        from loci.nn.directions import prepared_directions

        return prepared_directions(lab, self.preparation)

    def check(self, spec: ModelSpec) -> None:
        """Refuse widths that blocks of channels do not divide."""
        width = spec.kv_heads * spec.head_dim
        if width % BLOCK:
            raise MethodError(
                f"kvtc gives bits to {BLOCK} channels at a time; {spec.name} has {width}",
                value=width,
                allowed=f"multiples of {BLOCK}",
            )

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return components, means, sizes and bits, once for all tokens."""
        width = spec.kv_heads * spec.head_dim
        table: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, nbytes in self._bytes(spec).items():
            most = min(width, nbytes * BLOCK)  # those that may have a bit
            table[name] = ((spec.layers, most, width), self.dtype)
            table[f"{name}_mean"] = ((spec.layers, width), self.dtype)
            table[f"{name}_size"] = ((spec.layers, most), "float32")
            table[f"{name}_bits"] = ((spec.layers, most), "uint8")
        return table

    def shared(self, spec: ModelSpec, artefact: Artefact | None) -> Mapping[str, Tensor]:
        """Return the components that may have a bit, and how many each has."""
        import torch

        assert artefact is not None
        found = {}
        for name, nbytes in self._bytes(spec).items():
            most = min(spec.kv_heads * spec.head_dim, nbytes * BLOCK)
            energy = artefact.tensors[f"{name}_energy"][:, :most]
            found[name] = artefact.tensors[name][:, :most]
            found[f"{name}_mean"] = artefact.tensors[f"{name}_mean"]
            found[f"{name}_size"] = energy.sqrt()
            found[f"{name}_bits"] = torch.stack([shared_out(e, nbytes) for e in energy])
        return found

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the codes of one token and its gains."""
        table: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, nbytes in self._bytes(spec).items():
            table[name] = ((nbytes,), "uint8")
            table[f"{name}_gain"] = ((1,), "float16")
        return table

    def latent_form(self) -> LatentForm | None:
        """Return what kernels need to know."""
        return LatentForm(STEPS) if self.dtype == "float16" else None

    def decode_operations(self, spec: ModelSpec) -> float:
        """Return the operations of a number, at most: of two, only that of the key is made."""
        return float(min(spec.kv_heads * spec.head_dim, self._bytes(spec)["keys"] * BLOCK))

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return codes and gains."""
        import torch

        from loci.nn.grid import pack_rows

        layer, rows = group.layers[0], {}
        for name in ("keys", "values"):
            part = _Part(group, name, layer)
            x_BTw = as_rows(getattr(blocks[0], name))
            u_BTm = ((x_BTw - part.mean) @ part.ways.t()) / part.size
            codes, gain = _rounded(u_BTm, part)
            packed = [pack_rows(codes[..., at], bits) for bits, at in part.classes]
            rows[name], rows[f"{name}_gain"] = torch.cat(packed, -1), gain
        return rows, {}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, turned back from their components."""
        import torch

        from loci.nn.grid import unpack_rows

        found = []
        for name in ("keys", "values"):
            part, first, codes = _Part(group, name, layer), 0, []
            for bits, at in part.classes:
                count = at.stop - at.start
                stop = first + count * bits // BLOCK
                codes.append(unpack_rows(rows[name][..., first:stop], bits, count))
                first = stop
            u_BTm = torch.cat(codes, -1).sub_(part.half).mul_(part.step * part.size)
            x_BTw = (u_BTm.mul_(rows[f"{name}_gain"].float()) @ part.ways).add_(part.mean)
            found.append(as_heads(x_BTw, group.spec))
        return found[0], found[1]

    def _bytes(self, spec: ModelSpec) -> dict[str, int]:
        """Return the bytes of a token's keys and values in one layer."""
        width = spec.kv_heads * spec.head_dim
        shares = {"keys": self.bits_k, "values": self.bits_v}
        return {name: max(1, int(bits * width) // BLOCK) for name, bits in shares.items()}


def shared_out(energy_m: Tensor, nbytes: int) -> Tensor:
    """Return how many bits each channel gets, uint8, so that the error left is least.

    Args:
        energy_m: falling, of a whole number of blocks.
        nbytes: a byte is one more bit for a block of channels.
    """
    import torch

    losses = torch.tensor(LOSSES, dtype=torch.float64)
    blocks = energy_m.double().clamp(min=1e-30).unflatten(0, (-1, BLOCK)).mean(1)
    worth = blocks[:, None] * (losses[:-1] - losses[1:])
    order = worth.flatten().sort(descending=True, stable=True).indices[:nbytes]
    bits = torch.bincount(order // MOST, minlength=len(blocks))
    return bits.repeat_interleave(BLOCK).to(torch.uint8)


class _Part:
    """What is shared of one layer's keys or values, of the channels that have bits, in float32.

    Attributes:
        classes: channels with equally many bits lie together: (bits, which).
    """

    def __init__(self, group: LayerGroup, name: str, layer: int) -> None:
        import torch

        held = group.shared
        bits = held[f"{name}_bits"][layer].long()
        count = int((bits > 0).sum())
        bits = bits[:count]  # they fall with the energy
        self.ways = held[name][layer, :count].float()
        self.mean = held[f"{name}_mean"][layer].float()
        self.size = held[f"{name}_size"][layer, :count].clamp(min=1e-12)
        self.step, self.half = torch.tensor(STEPS)[bits], (2.0**bits - 1) / 2
        self.classes: list[tuple[int, slice]] = []
        first = 0
        widths, counts = bits.unique_consecutive(return_counts=True)
        for width, many in zip(widths.tolist(), counts.tolist(), strict=True):
            self.classes.append((width, slice(first, first + many)))
            first += many


def _rounded(u_BTm: Tensor, part: _Part) -> tuple[Tensor, Tensor]:
    """Return codes uint8 [B, T, m] and gains float16 [B, T, 1] that leave least error."""
    import torch

    rms_BT1 = u_BTm.square().mean(-1, keepdim=True).sqrt()
    best_codes, best_gain = torch.zeros_like(u_BTm), torch.ones_like(rms_BT1)
    best_loss = torch.full_like(rms_BT1, torch.inf)
    for size in GAINS:
        gain = (rms_BT1 * size).clamp(1e-4, 6e4).to(torch.float16).float()
        codes = (u_BTm / (gain * part.step) + part.half).round()
        codes = torch.minimum(codes.clamp(min=0), 2 * part.half)
        off = (codes - part.half) * part.step * gain - u_BTm
        loss = (off * part.size).square().sum(-1, keepdim=True)
        is_less = loss < best_loss
        best_codes = torch.where(is_less, codes, best_codes)
        best_gain = torch.where(is_less, gain, best_gain)
        best_loss = torch.where(is_less, loss, best_loss)
    return best_codes.to(torch.uint8), best_gain.to(torch.float16)
