"""CSKV: keep fewer channels of keys and values, found once for a model.

L. Wang et al., "CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios",
2024, arXiv:2409.10593.

Keys and values of a layer have far fewer directions than channels. Each token keeps its coordinates
in the r best of them, and the newest `window` tokens stay as they are beside that:

    c = (k - m) V^T,   k ~ c V + m,   V [r, w]: the top eigenvectors of cov(k),  m: the mean

with keys before their rotation, and values likewise. Directions and means are found once on
calibration text (`loci methods prepare cskv`), for all ranks at once.

Differs from the paper: it trains the two projections by gradient on the error of keys and values.
Without quantisation that is a reduced-rank regression, whose optimum is the closed form above, and
no hidden state is needed, since x W V^T is k V^T. The mean is ours, for models with a bias. The
window does not fall to nothing: its oldest half is shrunk when twice as many wait. `sinks` are
ours: the first token points where no other does, and is read by all. Training with quantised
coordinates is left out.
Not for: models whose grouped queries left few channels to shrink; see the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.kv.base import EncodeLayers, LayerGroup, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVBlock

# Shapes: B batch, L layers, T tokens, K key/value heads, D head size, w = K D channels, r rank.


@dataclass(frozen=True, kw_only=True)
class Cskv(EncodeLayers):
    """Coordinates of keys and values in a model's best directions."""

    about = About(
        name="cskv",
        kind=Kind.KV,
        paper="arXiv:2409.10593",
        idea="keep the few directions that a layer's keys and values really have",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT,),
        reconstruction="closed form in place of training, the mean, the sliding window",
    )
    keeps_groups: ClassVar[bool] = False

    density_k: Annotated[
        float, Param(help="share of a layer's key channels that is kept", ge=0.001, le=1)
    ] = 0.5
    density_v: Annotated[
        float, Param(help="share of a layer's value channels that is kept", ge=0.001, le=1)
    ] = 0.5
    window: Annotated[
        int,
        Param(help="newest tokens that always stay exact", unit="tokens", ge=0, source="3.2"),
    ] = 32
    sinks: Annotated[
        int,
        Param(help="first tokens that stay exact", unit="tokens", ge=0),
    ] = 4  # ours: without them the KL of this form is twenty times larger on SmolLM2 (see the card)
    dtype: Annotated[
        str, Param(help="what coordinates are kept in", choices=("float16", "float32"))
    ] = "float16"

    @property
    def closes_every(self) -> int:
        """Tokens that are shrunk together."""
        return max(1, self.window)

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
        """The same for all densities: directions are kept in the order of what they hold."""
        return self.about.name

    def prepare(self, lab: Lab) -> Artefact:
        """Return directions [L, w, w], best first, means [L, w] and energies [L, w]."""
        from loci.nn.directions import prepared_directions

        return prepared_directions(lab, self.preparation)

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return directions and means, once for all tokens."""
        width, (keys, values) = spec.kv_heads * spec.head_dim, self._ranks(spec)
        return {
            "keys": ((spec.layers, keys, width), self.dtype),
            "values": ((spec.layers, values, width), self.dtype),
            "keys_mean": ((spec.layers, width), self.dtype),
            "values_mean": ((spec.layers, width), self.dtype),
        }

    def shared(self, spec: ModelSpec, artefact: Artefact | None) -> Mapping[str, Tensor]:
        """Return the best directions of those prepared."""
        assert artefact is not None
        found = dict(artefact.tensors)
        for name, rank in zip(("keys", "values"), self._ranks(spec), strict=True):
            if name in found:
                found[name] = found[name][:, :rank]
        return found

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the coordinates of one token."""
        keys, values = self._ranks(spec)
        return {"keys": ((keys,), self.dtype), "values": ((values,), self.dtype)}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return coordinates."""
        import torch

        layer, rows = group.layers[0], {}
        for name in ("keys", "values"):
            x_BTw = getattr(blocks[0], name).transpose(1, 2).flatten(2)
            ways_rw = group.shared[name][layer].float()
            rows[name] = (x_BTw - group.shared[f"{name}_mean"][layer].float()) @ ways_rw.t()
            most = float(rows[name].abs().max())
            if self.dtype == "float16" and most > torch.finfo(torch.half).max:
                raise ParameterError(
                    f"the {name} of layer {layer} are too large for 16 bits",
                    value=most,
                    way_out="cskv(dtype=float32)",
                )
        return rows, {}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values from coordinates."""
        found = []
        for name in ("keys", "values"):
            x_BTw = rows[name].float() @ group.shared[name][layer].float()
            x_BTw += group.shared[f"{name}_mean"][layer].float()
            found.append(x_BTw.unflatten(2, (group.spec.kv_heads, -1)).transpose(1, 2))
        return found[0], found[1]

    def _ranks(self, spec: ModelSpec) -> tuple[int, int]:
        width = spec.kv_heads * spec.head_dim
        return max(1, round(self.density_k * width)), max(1, round(self.density_v * width))
