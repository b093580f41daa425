"""CSKV: keep fewer channels of keys and values, found once for a model.

L. Wang et al., "CSKV: Training-Efficient Channel Shrinking for KV Cache in Long-Context Scenarios",
2024, arXiv:2409.10593.

Keys and values of a layer have far fewer directions than channels. Each token keeps its coordinates
in the r best of them, and the newest `window` tokens stay as they are beside that:

    c = (k - m) V^T,   k ~ c V + m,   V [r, w]: the top eigenvectors of cov(k),  m: the mean

with keys before their rotation, and values likewise. Directions and means are found once on
calibration text (`loci methods prepare cskv`), for all ranks at once. Two forms, each a method:

    cskv        coordinates in 16 bits
    cskv-qat    coordinates in few bits: keys by channel over windows of tokens, values token by
                token; both projections are trained while coordinates are rounded

Differs from the paper: it trains the two projections by gradient on the error of keys and values.
Without quantisation that is a reduced-rank regression, whose optimum is the closed form above, and
no hidden state is needed, since x W V^T is k V^T. Training with rounded coordinates begins there;
how its grids are differentiated is our reading (see `loci.nn.fake_quant`). The mean is ours, for
models with a bias. The window does not fall to nothing: its oldest half is shrunk when twice as
many wait. `sinks` are ours: the first token points where no other does, and is read by all.
Not for: models whose grouped queries left few channels to shrink; see the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
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
    from loci.nn.fake_quant import RoundedCodes
    from loci.nn.kv import KVBlock

# Shapes: B batch, L layers, T tokens, N groups of g tokens, K key/value heads, D head size,
# w = K D channels, r rank.


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
        width, (keys, values) = spec.kv_heads * spec.head_dim, _ranks(self, spec)
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
        for name, rank in zip(("keys", "values"), _ranks(self, spec), strict=True):
            if name in found:
                found[name] = found[name][:, :rank]
        return found

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the coordinates of one token."""
        keys, values = _ranks(self, spec)
        return {"keys": ((keys,), self.dtype), "values": ((values,), self.dtype)}

    def latent_form(self) -> LatentForm | None:
        """Return that rows are the numbers themselves; kernels read them in half precision."""
        return LatentForm() if self.dtype == "float16" else None

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return coordinates."""
        import torch

        layer, rows = group.layers[0], {}
        for name in ("keys", "values"):
            x_BTw = as_rows(getattr(blocks[0], name))
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
            found.append(as_heads(x_BTw, group.spec))
        return found[0], found[1]


@dataclass(frozen=True, kw_only=True)
class CskvQat(EncodeLayers):
    """Coordinates in few bits, in directions that were trained for it."""

    about = About(
        name="cskv-qat",
        kind=Kind.KV,
        paper="arXiv:2409.10593",
        idea="train the few directions that are kept while what is kept is rounded",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT,),
        reconstruction="training begins at the closed form; the mean, the sliding window",
    )

    density_k: Annotated[
        float, Param(help="share of a layer's key channels that is kept", ge=0.001, le=1)
    ] = 0.5
    density_v: Annotated[
        float, Param(help="share of a layer's value channels that is kept", ge=0.001, le=1)
    ] = 0.5
    bits: Annotated[int, Param(help="bits of a coordinate", choices=(2, 3, 4, 8))] = 4
    group: Annotated[
        int, Param(help="tokens whose keys share a grid", unit="tokens", ge=8, source="code")
    ] = 32
    window: Annotated[
        int, Param(help="newest tokens that always stay exact", unit="tokens", ge=0, source="3.2")
    ] = 32
    sinks: Annotated[int, Param(help="first tokens that stay exact", unit="tokens", ge=0)] = 4
    steps: Annotated[int, Param(help="of training; 0 rounds in the closed form", ge=0)] = 150

    @property
    def closes_every(self) -> int:
        """Tokens that are rounded together."""
        return self.group

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
        """The same whatever stays exact."""
        parts = ("density_k", "density_v", "bits", "group", "steps")
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in parts)
        return f"{self.about.name}({said})"

    def prepare(self, lab: Lab) -> Artefact:
        """Return projections into and out of the coordinates [L, r, w], and means [L, w]."""
        from loci.nn.fake_quant import RoundedTraining, trained_directions

        ranks = dict(zip(("keys", "values"), _ranks(self, lab.spec), strict=True))
        codes = {name: self._codes(name) for name in ranks}
        tensors, facts = trained_directions(lab, ranks, codes, RoundedTraining(steps=self.steps))
        return lab.artefact(self.preparation, tensors, facts)

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return projections and means, once for all tokens."""
        width = spec.kv_heads * spec.head_dim
        table: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, rank in zip(("keys", "values"), _ranks(self, spec), strict=True):
            for part in ("into", "out"):
                table[f"{name}_{part}"] = ((spec.layers, rank, width), "float16")
            table[f"{name}_mean"] = ((spec.layers, width), "float16")
        return table

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the codes of one token, and the grid of its values."""
        keys, values = ((rank * self.bits + 7) // 8 for rank in _ranks(self, spec))
        return {
            "keys": ((keys,), "uint8"),
            "values": ((values,), "uint8"),
            "values_grid": ((2,), "float16"),
        }

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the grid that the keys of a group of tokens share."""
        return {"keys": ((2, _ranks(self, spec)[0]), "float16")}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return codes of whole groups of tokens, and the grids of their keys."""
        from loci.nn.grid import by_channel, by_token

        layer, numbers = group.layers[0], {}
        for name in ("keys", "values"):
            x_BTw = as_rows(getattr(blocks[0], name)) - group.shared[f"{name}_mean"][layer].float()
            numbers[name] = x_BTw @ group.shared[f"{name}_into"][layer].float().t()
        keys, keys_grid = by_channel(numbers["keys"], self.bits, self.group)
        values, values_grid = by_token(numbers["values"], self.bits, numbers["values"].shape[2])
        return {"keys": keys, "values": values, "values_grid": values_grid}, {"keys": keys_grid}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values from codes."""
        from loci.nn.grid import of_channel, of_token

        _, rank = _ranks(self, group.spec)
        numbers = {
            "keys": of_channel(rows["keys"], bases["keys"], self.bits),
            "values": of_token(rows["values"], rows["values_grid"], self.bits, rank),
        }
        found = []
        for name, x_BTr in numbers.items():
            x_BTw = x_BTr @ group.shared[f"{name}_out"][layer].float()
            x_BTw += group.shared[f"{name}_mean"][layer].float()
            found.append(as_heads(x_BTw, group.spec))
        return found[0], found[1]

    def _codes(self, name: str) -> RoundedCodes:
        from loci.nn.fake_quant import RoundedCodes

        return RoundedCodes(bits=self.bits, group=self.group if name == "keys" else None)


def _ranks(method: Cskv | CskvQat, spec: ModelSpec) -> tuple[int, int]:
    width = spec.kv_heads * spec.head_dim
    return max(1, round(method.density_k * width)), max(1, round(method.density_v * width))
