"""Block floating point with sorted channels: 2 to 8 bits per element of keys and values.

N. Trukhanov and I. Soloveychik, "Accurate Block Quantization in LLMs with Outliers", 2024,
arXiv:2403.20137.

A block of n values shares one 8-bit exponent e; each value is a signed m-bit mantissa:

    e = floor(log2(max |x|)),   q = round(x / 2^(e - m + 2)),   |q| < 2^(m - 1)

so an element takes m + 8 / n bits. A few channels of the keys are large in every token and cost
their block's neighbours all precision. Sorting the channels by size puts large beside large
(K-sort); queries are put into the same order, which leaves every product unchanged.

Differs from the paper: the rounding is our reading of the abstract. Rotation turns channel i with
i + D/2, so pairs are sorted by their common norm, which it does not change. `sort=keys` measures
the norms on the first tokens of each row, `sort=weights` takes orders made by `pair_order` from the
key projection, as the paper does. Values use the same form, unsorted. Keys are not sorted unless
asked for, because that lost quality on the model we measured. The first tokens and the newest stay
exact beside their codes, which costs little room and leaves a third of the loss.
Not for: head sizes that the block does not divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from loci.core.method import About, Kind, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import MethodError
from loci.methods.kv.base import CodeForm, Encode, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

BIAS = 127  # a stored exponent of 0 marks a block of zeros
LEAST = -100  # smaller exponents are stored as this one; such values are rounded to it

# Shapes: B batch, K key/value heads, T tokens, D head size, N blocks of a head.


@dataclass(frozen=True, kw_only=True)
class Bfp(Encode):
    """Shared exponents, packed mantissas, keys with sorted channels."""

    about = About(
        name="bfp",
        kind=Kind.KV,
        paper="arXiv:2403.20137",
        idea="values share an exponent by blocks; large channels are sorted together",
        phases=(Phase.PREFILL, Phase.DECODE),
        reconstruction="rounding, the order of rotated pairs, norms measured on keys",
    )

    bits: Annotated[
        int, Param(help="bits of a mantissa, sign included", ge=2, le=8, source="section 3")
    ] = 8
    block: Annotated[
        int,
        Param(help="channels that share an exponent", choices=(8, 16, 32, 64, 128), source="4"),
    ] = 32
    sort: Annotated[
        str, Param(help="what the key channels are sorted by", choices=("keys", "weights", "none"))
    ] = "none"  # on SmolLM2-135M sorting raised the KL at every width (see the card)
    tail: Annotated[
        int, Param(help="tokens that wait uncoded and are coded together", unit="tokens", ge=1)
    ] = 32
    sinks: Annotated[int, Param(help="first tokens that stay exact", unit="tokens", ge=0)] = 4
    window: Annotated[int, Param(help="newest tokens that stay exact", unit="tokens", ge=0)] = 64

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
        """Return mantissas and exponents of one token of one head."""
        if head_dim % self.block:
            raise MethodError(
                f"bfp cannot cut a head of {head_dim} channels into blocks",
                value=self.block,
                allowed=f"divisors of {head_dim}",
                way_out=f"bfp(block={head_dim & -head_dim})",
            )
        row, blocks = (head_dim * self.bits + 7) // 8, head_dim // self.block
        return {
            "keys": ((row,), "uint8"),
            "key_exponents": ((blocks,), "uint8"),
            "values": ((row,), "uint8"),
            "value_exponents": ((blocks,), "uint8"),
        }

    def code_form(self, head_dim: int) -> CodeForm:
        """Return what kernels need to know."""
        return CodeForm(self.bits, self.block)

    def fixed_table(self, spec: ModelSpec) -> Shapes:
        """Return the channel orders, where keys are sorted."""
        if self.sort == "none":
            return {}
        return {"order": ((spec.layers, spec.kv_heads, spec.head_dim), "int16")}

    def learn(self, block: KVBlock) -> dict[str, Tensor] | None:
        """Return the pairs by falling energy of these keys; None where orders must be given."""
        if self.sort == "weights":
            return None
        is_real_B1T1 = (block.positions >= 0).unsqueeze(-1)
        return {"order": pair_order((block.keys.float() * is_real_B1T1).square().sum(dim=2))}

    def encode(self, block: KVBlock, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return packed mantissas and biased exponents."""
        keys_BKTD, order = block.keys.float(), fixed.get("order")
        if order is not None:
            keys_BKTD = keys_BKTD.gather(-1, order.long().unsqueeze(2).expand_as(keys_BKTD))
        keys, key_exponents = self._pack(keys_BKTD)
        values, value_exponents = self._pack(block.values.float())
        return {
            "keys": keys,
            "key_exponents": key_exponents,
            "values": values,
            "value_exponents": value_exponents,
        }

    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys in their sorted order, and values."""
        return (
            self._unpack(codes["keys"], codes["key_exponents"], head_dim),
            self._unpack(codes["values"], codes["value_exponents"], head_dim),
        )

    def _pack(self, x_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        from loci.nn.packing import pack_codes

        blocks_BKTNn = x_BKTD.unflatten(-1, (-1, self.block))
        largest = blocks_BKTNn.abs().amax(dim=-1)
        exponents = (torch.frexp(largest).exponent - 1).clamp(min=LEAST)
        stored = torch.where(largest == 0, 0, exponents + BIAS).to(torch.uint8)
        steps = self._steps(exponents + BIAS)
        top = 2 ** (self.bits - 1) - 1
        mantissas = (blocks_BKTNn / steps.unsqueeze(-1)).round_().clamp_(-top, top)
        rows = (mantissas + (top + 1)).to(torch.uint8).reshape(-1, x_BKTD.shape[-1])
        return pack_codes(rows, self.bits).view(*x_BKTD.shape[:-1], -1), stored

    def _unpack(self, packed: Tensor, exponents: Tensor, head_dim: int) -> Tensor:
        import torch

        from loci.nn import native
        from loci.nn.packing import unpack_codes

        if native.available():
            found = torch.empty(*packed.shape[:-1], head_dim)
            rows, steps = packed.contiguous(), exponents.contiguous()
            native.bfp_dequant(rows, steps, self.bits, self.block, found)
            return found

        if self.bits < 8:
            flat = packed.reshape(-1, packed.shape[-1])
            packed = unpack_codes(flat, self.bits, head_dim).view(*packed.shape[:-1], head_dim)
        mantissas = packed.float().sub_(2 ** (self.bits - 1)).unflatten(-1, (-1, self.block))
        return mantissas.mul_(self._steps(exponents).unsqueeze(-1)).flatten(-2)

    def _steps(self, stored: Tensor) -> Tensor:
        """Return 2^(e - m + 2) of biased exponents, put together from the bits of a float32."""
        import torch

        return ((stored.int() - (self.bits - 2)).clamp_(min=0) << 23).view(torch.float32)


def pair_order(energy: Tensor) -> Tensor:
    """Return the channel order [..., D] int16 that sorts rotated pairs by falling energy.

    Args:
        energy: [..., D] sum of squares per channel, of keys or of the rows of the key projection.
    """
    import torch

    half = energy.shape[-1] // 2
    pairs = energy[..., :half] + energy[..., half:]
    first = pairs.sort(dim=-1, descending=True, stable=True).indices
    return torch.stack([first, first + half], -1).flatten(-2).to(torch.int16)
