"""COMET's KV cache: four bits for every key and value, keys by channel, values by token.

L. Liu et al., "COMET: Towards Practical W4A4KV4 LLMs Serving", 2024, arXiv:2410.12168. Its weights
and activations are `comet` of kind quant.

A few channels of the keys are large in every token, so a grid that all channels of a token share is
too coarse for the others. Keys are therefore rounded channel by channel, over a group of tokens:

    low = min over the group,   step = (max - low) / 15,   code = round((k - low) / step)

Values have few outliers and are rounded token by token. The last tokens wait as they are until
their group is full; a group that was rounded is never rounded again.

Differs from the paper: its values are rounded by channel too; by token they lose less here and need
no group. Grids are kept in float16, each token of a
group carrying its share of the group's, so that a token takes the same bytes wherever it is.
Not for: chains that drop single tokens, which would leave a group without its grid; they are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Param, Phase
from loci.errors import ParameterError
from loci.methods.kv.base import CodeForm, Encode, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

_BITS = 4

# Shapes: B batch, K key/value heads, T tokens, G groups of g tokens, D head size, s numbers of a
# group's grid that one token carries.


@dataclass(frozen=True, kw_only=True)
class CometKV(Encode):
    """Four-bit keys by channel and values by token."""

    about = About(
        name="comet_kv",
        kind=Kind.KV,
        paper="arXiv:2410.12168",
        idea="keys rounded channel by channel over groups of tokens, values token by token",
        phases=(Phase.PREFILL, Phase.DECODE),
        reconstruction="values by token, group size, where grids are kept",
    )

    keeps_groups: ClassVar[bool] = True

    group: Annotated[
        int,
        Param(help="tokens whose keys share a grid per channel", choices=(16, 32, 64, 128)),
    ] = 64

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return self.group

    def code_table(self, head_dim: int) -> Shapes:
        """Return codes and grids of one token of one head."""
        row = (head_dim * _BITS + 7) // 8
        return {
            "keys": ((row,), "uint8"),
            "key_grid": ((self._share(head_dim),), "float16"),
            "values": ((row,), "uint8"),
            "value_grid": ((2,), "float16"),
        }

    def code_form(self, head_dim: int) -> CodeForm:
        """Return what kernels need to know."""
        return CodeForm(_BITS, head_dim, self.group)

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
        grouped_BKGgD = keys_BKTD.unflatten(2, (-1, self.group))
        keys, key_grid_BKG2D = rounded(grouped_BKGgD, _BITS, dim=3)
        share = self._share(size)
        flat_BKGn = key_grid_BKG2D.flatten(3)
        flat_BKGn = pad(flat_BKGn, (0, self.group * share - flat_BKGn.shape[-1]))
        values, value_grid_BKT2D = rounded(values_BKTD.unsqueeze(-1), _BITS, dim=3)
        return {
            "keys": pack_rows(keys.flatten(2, 3), _BITS),
            "key_grid": flat_BKGn.reshape(batch, heads, tokens, share).to(torch.float16),
            "values": pack_rows(values.squeeze(-1), _BITS),
            "value_grid": value_grid_BKT2D.squeeze(-1).to(torch.float16),
        }

    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of whole groups of tokens."""
        from loci.nn.grid import unpack_rows

        grid_BKGn = codes["key_grid"].float().unflatten(2, (-1, self.group)).flatten(3)
        grid_BKG2D = grid_BKGn[..., : 2 * head_dim].unflatten(3, (2, head_dim))
        low_BKG1D, step_BKG1D = grid_BKG2D[..., :1, :], grid_BKG2D[..., 1:, :]
        keys_BKGgD = unpack_rows(codes["keys"], _BITS, head_dim).unflatten(2, (-1, self.group))
        keys_BKTD = (keys_BKGgD * step_BKG1D + low_BKG1D).flatten(2, 3)
        low_BKT1, step_BKT1 = codes["value_grid"].float().split(1, dim=-1)
        values_BKTD = unpack_rows(codes["values"], _BITS, head_dim)
        return keys_BKTD, values_BKTD * step_BKT1 + low_BKT1

    def _share(self, head_dim: int) -> int:
        """Return how many numbers of its group's grid one token carries."""
        return -(-2 * head_dim // self.group)
