"""Cache-to-Cache: put what another model's cache knows into one's own, without a word between them.

"Cache-to-Cache: Direct Semantic Communication Between Large Language Models", 2025,
arXiv:2510.03215.

Two frozen models read the same prompt. A small network per layer of the receiver, the fuser, looks
at both caches token by token and adds to the receiver's:

    k' = k + gate_k w_k p_k,   v' = v + gate_v w_v p_v        (p, w: see `loci.nn.fuser`)

Layers stand beside each other counted from the last: receiver layer t takes from sharer layer
t + L_s - L_r. The last token of the prompt and all that follow run on the receiver alone. Several
sharers have a fuser each; all read the receiver's own cache and their changes are added
("parallel"), or each reads what the one before made of it ("sequential").

Differs from the paper, which fuses rotated keys: the two models may turn keys differently, so both
are turned back, fused, and the change is turned as the receiver turns (`keys=rotated` is the
paper's form). The width inside a block is that of the block (reconstruction). Gates start open and
draw logistic noise. A fuser is trained for two models by `loci.run.fusers.train_fuser`.
Not for: a receiver whose prompt is compressed already; it must be exact to be written to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Annotated

from loci.core.cost import Cost
from loci.core.method import About, Frees, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec, Workload
from loci.methods.kv.fuse import Cached, Fuse, Sharer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.fuser import FuserShape

FLOAT_BYTES = 4

# Shapes: B batch, L layers of the receiver, T tokens, N = B T, K key/value heads, D head size,
# w = K D channels.


@dataclass(frozen=True, kw_only=True)
class C2c(Fuse):
    """Fuses the caches of sharers into a receiver's."""

    about = About(
        name="c2c",
        kind=Kind.KV,
        paper="arXiv:2510.03215",
        idea="a model reads another one's cache instead of its words",
        phases=(Phase.PREFILL,),
        needs=(Need.ARTEFACT,),
        frees=Frees.NOTHING,
        reconstruction="keys are turned back before they are fused; the width inside a block",
    )

    hidden: Annotated[
        int, Param(help="width of the network of a layer", ge=1, source="the authors' code")
    ] = 1024
    keys: Annotated[
        str,
        Param(help="what is fused: keys turned back, or as cached", choices=("plain", "rotated")),
    ] = "plain"
    several: Annotated[
        str, Param(help="how several sharers go together", choices=("parallel", "sequential"))
    ] = "parallel"

    @property
    def preparation(self) -> str:
        """The same however several sharers go together: each has a fuser of its own."""
        return f"{self.about.name}(hidden={self.hidden}, keys={self.keys})"

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of a fuser for a sharer of the receiver's own sizes."""
        weights = sum(map(prod, self.table(spec, spec).values()))
        return Cost(held={"dram": FLOAT_BYTES * weights}, loss=None)

    def layer_map(self, receiver: ModelSpec, sharer: ModelSpec) -> tuple[int, ...]:
        """Return the sharer's layer beside each of the receiver's, counted from the last."""
        ahead = sharer.layers - receiver.layers
        return tuple(min(max(0, t + ahead), sharer.layers - 1) for t in range(receiver.layers))

    def table(self, receiver: ModelSpec, sharer: ModelSpec) -> Mapping[str, tuple[int, ...]]:
        """Return {name: shape} of the fuser's weights."""
        return self._shape(receiver, sharer).table()

    def start(
        self, receiver: ModelSpec, sharer: ModelSpec, generator: Generator
    ) -> dict[str, Tensor]:
        """Return weights that change nothing yet."""
        return self._shape(receiver, sharer).start(generator)

    def fuse(
        self, receiver: Cached, sharers: Sequence[Sharer], layer_map: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the receiver's keys, rotated, and values, by layer; see `Fuse`."""
        import torch

        from loci.nn.fuser import settled_gate

        fused, base = _stacked(receiver), receiver
        for sharer, layers in zip(sharers, layer_map, strict=True):
            gate_L2 = settled_gate(sharer.weights["gate"])
            is_open = gate_L2.bool()[:, :, None, None, None, None]
            if sharer.speaks is not None:
                is_open = is_open & sharer.speaks[None, None, :, None, :, None]
            added = self.added(base, sharer, layers, gate_L2)
            fused = torch.where(is_open, fused + added, fused)
            if self.several == "sequential":
                blocks = [
                    replace(block, keys=layer[0], values=layer[1])
                    for block, layer in zip(receiver.blocks, fused, strict=True)
                ]
                base = replace(receiver, blocks=blocks)
        return [(layer[0], layer[1]) for layer in fused]

    def added(
        self,
        receiver: Cached,
        sharer: Sharer,
        layers: Sequence[int],
        gate_L2: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return what a sharer adds to rotated keys, and to values; see `Fuse`."""
        import torch

        from loci.nn.fuser import change
        from loci.nn.rope import Rope, rotate, undo

        places_BT = receiver.blocks[0].positions
        own, given = _stacked(receiver), _stacked(sharer)[list(layers)]
        turned = Rope(receiver.spec).table(places_BT)
        if self.keys == "plain":
            theirs = Rope(sharer.spec).table(places_BT)
            own = torch.stack([undo(own[:, 0], *turned), own[:, 1]], 1)
            given = torch.stack([undo(given[:, 0], *theirs), given[:, 1]], 1)
        found = change(sharer.weights, _rows(own), _rows(given), gate_L2, generator=generator)
        found = found.unflatten(2, places_BT.shape).unflatten(-1, (own.shape[3], -1))
        found = found.transpose(3, 4)
        if self.keys == "plain":
            found = torch.stack([rotate(found[:, 0], *turned), found[:, 1]], 1)
        return found

    def _shape(self, receiver: ModelSpec, sharer: ModelSpec) -> FuserShape:
        from loci.nn.fuser import FuserShape

        return FuserShape(
            layers=receiver.layers,
            heads=receiver.kv_heads,
            head_dim=receiver.head_dim,
            given=sharer.kv_heads * sharer.head_dim,
            hidden=self.hidden,
        )


def _stacked(cached: Cached) -> Tensor:
    """Return keys and values of all layers, float32 [L, 2, B, K, T, D]."""
    import torch

    return torch.stack([torch.stack([b.keys, b.values]) for b in cached.blocks]).float()


def _rows(x_L2BKTD: Tensor) -> Tensor:
    """Return the tokens of all rows as [L, 2, N, w]."""
    return x_L2BKTD.transpose(3, 4).flatten(4, 5).flatten(2, 3)
