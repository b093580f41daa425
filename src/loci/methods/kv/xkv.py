"""xKV: neighbouring layers share one row of numbers for each token.

C.-C. Chang et al., "xKV: Cross-Layer KV-Cache Compression via Aligned Singular Vector Extraction",
2025, arXiv:2503.18893.

Keys of one token differ from layer to layer, but the dominant left singular vectors of the layers'
matrices [tokens, channels] are nearly the same. So put the matrices of G layers side by side and
decompose them together, keys before their rotation and values each for themselves:

    X = [X_1 .. X_G]  [S, G w]      X ~ A R,  R [r, G w] the top r of eig(X^T X),  A = X R^T [S, r]

Layer j reads A R_j. What a token needs is a row of r numbers for G layers. Generated tokens wait
exact until a segment is full; each segment has a basis R of its own, which is stored and counted:
r (S + G w) numbers in place of S G w.

With `chunks`, a token that is decoded rebuilds only some of what is stored. Of every 8 tokens the
mean of their exact keys, rotated, is kept as a landmark; the queries of a KV head choose the chunks
whose landmarks they would give most to, and only the rows of these are multiplied by R_j:

    chosen = the `chunks` highest of  max over the group's queries q of softmax(q . landmarks)

Differs from the paper: a prompt is encoded segment by segment instead of once at its end, which
bounds what is exact at any time; R comes from the Gram matrix, which gives the same product.
`sinks` are ours: the first token points where no other does, and is read by all. Without ranks, the
paper's shares of G w are taken. How the paper's second version chooses what it rebuilds is our
reading, after H. Sun et al., "ShadowKV", 2024, arXiv:2410.21465, whose landmarks these are.
Not for: contexts that are short beside G w, where the bases take what the rows save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Granularity, Kind, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.kv.base import (
    EncodeLayers,
    Landmarks,
    LayerGroup,
    Shapes,
    as_heads,
    as_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

LANDMARK = 8  # tokens that share a landmark and are rebuilt together, ShadowKV's section 4

# Shapes: B batch, N segments, S tokens of one, T = N S, K key/value heads, D head size, w = K D
# channels of a layer, G layers, r rank.


@dataclass(frozen=True, kw_only=True)
class Xkv(EncodeLayers):
    """Keys and values of several layers as one low-rank product."""

    about = About(
        name="xkv",
        kind=Kind.KV,
        paper="arXiv:2503.18893",
        idea="neighbouring layers share one low-rank row per token",
        phases=(Phase.PREFILL, Phase.DECODE),
        reconstruction="segments, where generated tokens join them, how chunks are chosen",
    )
    granularity: ClassVar[Granularity] = Granularity.LAYER_GROUP

    group: Annotated[
        int, Param(help="layers that share rows; 1 decomposes each by itself", ge=1, source="4.1")
    ] = 4
    rank_k: Annotated[
        int | None, Param(help="numbers of a token's keys in a group; an eighth by default", ge=1)
    ] = None
    rank_v: Annotated[
        int | None, Param(help="the same of values; three sixteenths by default", ge=1)
    ] = None
    segment: Annotated[
        int, Param(help="tokens that share a basis and wait for each other", unit="tokens", ge=2)
    ] = 2048
    window: Annotated[
        int, Param(help="newest tokens that always stay exact", unit="tokens", ge=0)
    ] = 32
    sinks: Annotated[
        int,
        Param(help="first tokens that stay exact", unit="tokens", ge=0),
    ] = 4
    dtype: Annotated[
        str, Param(help="what rows and bases are kept in", choices=("float16", "float32"))
    ] = "float16"
    chunks: Annotated[
        int | None,
        Param(help=f"chunks of {LANDMARK} tokens that a decoded token rebuilds, else all", ge=1),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunks is not None and self.segment % LANDMARK:
            raise ParameterError(
                "xkv.segment must be whole chunks where a decoded token rebuilds some of them",
                value=self.segment,
                allowed=f"multiples of {LANDMARK}",
                way_out=f"xkv(segment={self.segment + -self.segment % LANDMARK}, ...)",
            )

    @property
    def closes_every(self) -> int:
        """Tokens of a segment."""
        return self.segment

    @property
    def exact_tokens(self) -> int:
        """Newest tokens that stay exact."""
        return self.window

    @property
    def first_tokens(self) -> int:
        """First tokens that stay exact."""
        return self.sinks

    @property
    def group_layers(self) -> int:
        """Layers that share rows."""
        return self.group

    @property
    def landmarks(self) -> Landmarks | None:
        """Chunks that a decoded token rebuilds."""
        return None if self.chunks is None else Landmarks(LANDMARK, self.chunks)

    def check(self, spec: ModelSpec) -> None:
        """Refuse ranks that no matrix has."""
        most = min(self.segment, self.group * spec.kv_heads * spec.head_dim)
        for name, rank in zip(("rank_k", "rank_v"), self._ranks(spec, self.group), strict=True):
            if rank > most:
                raise ParameterError(
                    f"xkv.{name} is more than a segment's matrix has",
                    value=rank,
                    allowed=f"<= {most}",
                    way_out="fewer, or a longer segment, or more layers in a group",
                )

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the coefficients of one token."""
        keys, values = self._ranks(spec, len(layers))
        return {"keys": ((keys,), self.dtype), "values": ((values,), self.dtype)}

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the bases of one segment."""
        keys, values = self._ranks(spec, len(layers))
        width = len(layers) * spec.kv_heads * spec.head_dim
        return {"keys": ((keys, width), self.dtype), "values": ((values, width), self.dtype)}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return coefficients and bases of whole segments."""
        import torch

        rows, bases = {}, {}
        ranks = self._ranks(group.spec, len(group.layers))
        for name, rank in zip(("keys", "values"), ranks, strict=True):
            parts = [as_rows(getattr(block, name)) for block in blocks]
            x_BNSw = torch.cat(parts, -1).unflatten(1, (-1, self.segment))
            basis_BNrw = top_rows(x_BNSw, rank)
            rows[name] = (x_BNSw @ basis_BNrw.mT).flatten(1, 2)
            bases[name] = basis_BNrw
            if self.dtype == "float16" and rows[name].abs().max() > torch.finfo(torch.half).max:
                raise ParameterError(
                    f"these {name} are too large for rows in 16 bits",
                    value=float(rows[name].abs().max()),
                    way_out="xkv(dtype=float32)",
                )
        return rows, bases

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of one layer: its columns of the product."""
        width = group.spec.kv_heads * group.spec.head_dim
        first = (layer - group.layers[0]) * width
        found = []
        for name in ("keys", "values"):
            basis_BNrw = bases[name][..., first : first + width].float()
            rows_BNSr = rows[name].float().unflatten(1, (-1, self.segment))
            found.append(as_heads((rows_BNSr @ basis_BNrw).flatten(1, 2), group.spec))
        return found[0], found[1]

    def decode_heads(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        heads: slice,
        group: LayerGroup,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of some heads of a layer: their columns of the product."""
        size, first = group.spec.head_dim, (layer - group.layers[0]) * group.spec.kv_heads
        columns = slice((first + heads.start) * size, (first + heads.stop) * size)
        found = []
        for name in ("keys", "values"):
            basis_krD = bases[name][:, columns].float().unflatten(1, (-1, size)).transpose(0, 1)
            found.append(rows[name].float() @ basis_krD)
        return found[0], found[1]

    def _ranks(self, spec: ModelSpec, layers: int) -> tuple[int, int]:
        """Return the ranks of keys and values of so many layers; a shorter group has less."""
        width = self.group * spec.kv_heads * spec.head_dim
        keys = self.rank_k if self.rank_k is not None else -(-width // 8)
        values = self.rank_v if self.rank_v is not None else -(-3 * width // 16)
        return -(-keys * layers // self.group), -(-values * layers // self.group)


def top_rows(x: Tensor, rank: int) -> Tensor:
    """Return the top right singular vectors [..., r, w] of matrices [..., S, w], as rows.

    From the smaller of the two Gram matrices, which costs a fraction of a decomposition.
    """
    import torch

    tokens, width = x.shape[-2:]
    if width <= tokens:
        vectors = torch.linalg.eigh(x.mT @ x).eigenvectors  # rising
        return vectors[..., -rank:].flip(-1).mT
    left = torch.linalg.eigh(x @ x.mT).eigenvectors[..., -rank:].flip(-1)
    return torch.linalg.qr(x.mT @ left).Q.mT
