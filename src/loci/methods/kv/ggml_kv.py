"""llama.cpp's quantised KV cache: blocks of 32 numbers that share a scale in half precision.

ggml-org/llama.cpp, `--cache-type-k` and `--cache-type-v`, pull requests 4312 and 7412; turned since
pull request 21038. What most people run at home, so it is a rival here, in its own bytes:

    q8_0:  d = max|x| / 127,    code = round(x / d)                        34 bytes, 8.5 bits each
    q4_0:  d = extreme / -8,    code = min(15, floor(x / d + 8.5))         18 bytes, 4.5 bits each

The extreme is the number farthest from zero, with its sign. A block is the bytes of d, then of the
codes; in q4_0 code i and code i + 16 share a byte. Tokens are coded as they come, one by one.

Where heads are whole 64s, keys and values are first multiplied by an orthogonal Hadamard matrix,
which spreads what a few channels have over all: the largest that divides the head for keys, 64 for
values. Queries turned alike see the same products, and what was read is turned back.

Differs from the source: it turns queries and results, here what was decoded is turned back, which
is the same up to rounding.
Not for: head sizes that are no multiple of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from loci.core.method import About, Kind, Param, Phase
from loci.errors import MethodError, ParameterError
from loci.methods.kv.base import Encode, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

BLOCK = 32  # numbers that share a scale
TYPES = {"q8_0": 34, "q4_0": 18}  # bytes of a block
TURN = 64  # channels that are turned together, or a multiple of them by a power of two

# Shapes: B batch, K key/value heads, T tokens, D head size, N blocks of a head, n numbers of one,
# h channels that are turned together.


@dataclass(frozen=True, kw_only=True)
class GgmlKV(Encode):
    """Keys and values in llama.cpp's q8_0 or q4_0."""

    about = About(
        name="ggml_kv",
        kind=Kind.KV,
        paper="github.com/ggml-org/llama.cpp, pull requests 4312, 7412 and 21038",
        idea="blocks of 32 numbers share a scale in half precision, as llama.cpp's caches do",
        phases=(Phase.PREFILL, Phase.DECODE),
    )

    keys: Annotated[str, Param(help="type of keys", choices=tuple(TYPES))] = "q8_0"
    values: Annotated[str, Param(help="type of values", choices=tuple(TYPES))] = "q8_0"
    turned: Annotated[
        bool, Param(help="spread channels by a Hadamard matrix first; before April 2026 it was not")
    ] = True

    @property
    def closes_every(self) -> int:
        """Tokens are coded one by one."""
        return 1

    def code_table(self, head_dim: int) -> Shapes:
        """Return the blocks of one token of one head."""
        if head_dim % BLOCK:
            raise MethodError(
                f"ggml_kv cannot cut a head of {head_dim} channels into blocks",
                value=BLOCK,
                allowed=f"heads of a multiple of {BLOCK} channels",
                way_out=f"bfp(block={head_dim & -head_dim})",
            )
        blocks = head_dim // BLOCK
        return {
            "keys": ((blocks * TYPES[self.keys],), "uint8"),
            "values": ((blocks * TYPES[self.values],), "uint8"),
        }

    def encode(self, block: KVBlock, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return blocks of every token.

        Raises:
            ParameterError: if a number is too large for a scale in half precision.
        """
        keys, values = block.keys.float(), block.values.float()
        if self.turned:
            keys, values = _turned(keys, keys.shape[-1]), _turned(values, TURN)
        return {"keys": _blocks(keys, self.keys), "values": _blocks(values, self.values)}

    def decode(
        self, codes: Mapping[str, Tensor], fixed: Mapping[str, Tensor], head_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, turned back."""
        keys, values = _numbers(codes["keys"], self.keys), _numbers(codes["values"], self.values)
        if self.turned:
            keys, values = _turned(keys, head_dim), _turned(values, TURN)
        return keys, values


def _turned(x_BKTD: Tensor, most: int) -> Tensor:
    """Return numbers with every few channels turned; as they are where a head is no whole 64s."""
    from loci.nn.turn import turned

    size = x_BKTD.shape[-1]
    if size % TURN:
        return x_BKTD
    width = TURN
    while width * 2 <= most and size % (width * 2) == 0:
        width *= 2
    return turned(x_BKTD, width)


def _blocks(x_BKTD: Tensor, kind: str) -> Tensor:
    """Return numbers as blocks, uint8 [B, K, T, N * bytes]."""
    import torch

    x_BKTNn = x_BKTD.unflatten(-1, (-1, BLOCK))
    at = x_BKTNn.abs().argmax(-1, keepdim=True)
    extreme = x_BKTNn.gather(-1, at)
    scale = extreme.abs() / 127 if kind == "q8_0" else extreme / -8
    stored = scale.to(torch.float16)
    if not torch.isfinite(stored).all():
        raise ParameterError(
            "keys or values are too large for a scale in 16 bits", value=float(extreme.abs().max())
        )
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    steps = x_BKTNn * inverse
    if kind == "q8_0":
        # Halves go away from zero, as C's roundf has it.
        codes = (steps.sign() * (steps.abs() + 0.5).floor()).to(torch.int8).view(torch.uint8)
    else:
        nibbles = (steps + 8.5).clamp(0, 15).to(torch.uint8)
        low, high = nibbles[..., : BLOCK // 2], nibbles[..., BLOCK // 2 :]
        codes = low | high << 4
    return torch.cat([stored.view(torch.uint8), codes], -1).flatten(-2)


def _numbers(packed: Tensor, kind: str) -> Tensor:
    """Return the numbers of blocks, float32 [B, K, T, D]."""
    import torch

    blocks = packed.unflatten(-1, (-1, TYPES[kind]))
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    codes = blocks[..., 2:]
    if kind == "q8_0":
        steps = codes.contiguous().view(torch.int8).float()
    else:
        steps = torch.cat([codes & 15, codes >> 4], -1).float() - 8
    return (steps * scale).flatten(-2)
