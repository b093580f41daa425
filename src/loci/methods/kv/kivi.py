"""KIVI: two bits a number, keys by channel, values by token.

Z. Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024,
arXiv:2402.02750.

A few channels of the keys are large in every token; values have no such channels. So keys share a
grid along the tokens, and values along the channels:

    keys:    for each channel, over `group` tokens
    values:  for each token, over `group` channels
    both:    low = min,  step = (max - low) / (2^bits - 1),  code = round((x - low) / step)

The latest tokens wait as they are and are coded together; codes never change again. With their
grids two bits become 2 + 32 / group.

Differs from the paper: it keeps the last tokens' values exact at all times, here keys and values
wait and are coded together. Each token of a group carries its share of the group's key grid.
Not for: chains that drop single tokens, which would leave a group without its grid; they are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Param, Phase
from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import CodeForm, Encode, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

# Shapes: B batch, K key/value heads, T tokens, G groups of g tokens, D head size, N groups of g
# channels.


@dataclass(frozen=True, kw_only=True)
class Kivi(Encode):
    """Asymmetric grids: keys along tokens, values along channels."""

    about = About(
        name="kivi",
        kind=Kind.KV,
        paper="arXiv:2402.02750",
        idea="keys have large channels, values have none: round keys by channel, values by token",
        phases=(Phase.PREFILL, Phase.DECODE),
    )

    keeps_groups: ClassVar[bool] = True

    bits: Annotated[int, Param(help="bits of a code", ge=2, le=8, source="section 4")] = 2
    group: Annotated[
        int,
        Param(
            help="tokens of a key channel, and channels of a value, that share a grid",
            choices=(16, 32, 64, 128),
            source="section 5.1",
        ),
    ] = 32
    waiting: Annotated[
        int,
        Param(help="groups of tokens that wait and are coded together", ge=1, source="section 5.1"),
    ] = 4

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return self.group * self.waiting

    def code_table(self, head_dim: int) -> Shapes:
        """Return codes and grids of one token of one head."""
        if head_dim % self.group:
            raise MethodError(
                f"kivi cannot cut a head of {head_dim} channels into groups",
                value=self.group,
                allowed=f"divisors of {head_dim}",
                way_out=f"kivi(group={min(head_dim & -head_dim, 128)})",
            )
        row = (head_dim * self.bits + 7) // 8
        return {
            "keys": ((row,), "uint8"),
            "key_grid": ((self._share(head_dim),), "float16"),
            "values": ((row,), "uint8"),
            "value_grid": ((2 * head_dim // self.group,), "float16"),
        }

    def code_form(self, head_dim: int) -> CodeForm:
        """Return what kernels need to know."""
        return CodeForm(self.bits, self.group, self.group)

    def encode(self, block: KVBlock, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return codes of whole groups of tokens.

        Raises:
            ParameterError: if the tokens are no whole groups.
        """
        import torch
        from torch.nn.functional import pad

        from loci.nn.grid import pack_rows, rounded

        keys_BKTD, values_BKTD = block.keys.float(), block.values.float()
        batch, heads, tokens, size = keys_BKTD.shape
        if tokens % self.group:
            raise ParameterError(
                "keys are rounded in whole groups of tokens",
                value=tokens,
                allowed=f"multiples of {self.group}",
            )
        keys, grid_BKG2D = rounded(keys_BKTD.unflatten(2, (-1, self.group)), self.bits, dim=3)
        share, flat_BKGn = self._share(size), grid_BKG2D.flatten(3)
        flat_BKGn = pad(flat_BKGn, (0, self.group * share - flat_BKGn.shape[-1]))
        values, grid_BKTN2 = rounded(values_BKTD.unflatten(3, (-1, self.group)), self.bits, dim=4)
        return {
            "keys": pack_rows(keys.flatten(2, 3), self.bits),
            "key_grid": flat_BKGn.reshape(batch, heads, tokens, share).to(torch.float16),
            "values": pack_rows(values.flatten(3), self.bits),
            "value_grid": grid_BKTN2.flatten(3).to(torch.float16),
        }

    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of whole groups of tokens."""
        from loci.nn.grid import unpack_rows

        flat_BKGn = codes["key_grid"].float().unflatten(2, (-1, self.group)).flatten(3)
        grid_BKG2D = flat_BKGn[..., : 2 * head_dim].unflatten(3, (2, head_dim))
        keys_BKTD = unpack_rows(codes["keys"], self.bits, head_dim)
        keys_BKGgD = keys_BKTD.unflatten(2, (-1, self.group))
        keys_BKGgD.mul_(grid_BKG2D[..., 1:, :]).add_(grid_BKG2D[..., :1, :])
        grid_BKTN2 = codes["value_grid"].float().unflatten(3, (-1, 2))
        values_BKTD = unpack_rows(codes["values"], self.bits, head_dim)
        values_BKTNg = values_BKTD.unflatten(3, (-1, self.group))
        values_BKTNg.mul_(grid_BKTN2[..., 1:]).add_(grid_BKTN2[..., :1])
        return keys_BKTD, values_BKTD

    def _share(self, head_dim: int) -> int:
        """Return how many numbers of its group's grid one token carries."""
        return -(-2 * head_dim // self.group)
