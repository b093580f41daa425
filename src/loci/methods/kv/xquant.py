"""XQuant: keep few bits of a layer's input, and compute keys and values from it again.

A. Tomar et al., "XQuant: Breaking the Memory Wall for LLM Inference with KV Cache
Rematerialization", 2025, arXiv:2508.10395.

Keys and values of a layer are products of one input X, so X is one tensor in place of two, and it
is easier to round. Three forms, each a method:

    xquant      K = Q(X) Wk,  V = Q(X) Wv:   X rounded token by token, groups along the channels
    xquant-gl   for grouped queries, where X is wider than K and V: Wk = U S B^T, and X U rounded,
                by channel over groups of tokens for keys, token by token for values
    xquant-cl   X changes little from layer to layer: keep Q((X_l - X^_(l-1)) U_l), U_l of [Wk Wv],
                and the running sum X^_l = X^_(l-1) + Q(..) U_l^T, which decoding carries upwards

The difference is taken to what was kept, so errors do not add up. X U need not be seen: it is
K B / S. Channels B and S are found from the weights (`loci methods prepare xquant-gl`).

Differs from the paper, of which we know the abstract and summaries: axes of the groups, how the
first layers of xquant-cl enter the sum, and its channels by group of tokens are our reading.
`gain=folded` is ours: the gain of the norm before the projections counts to the weights, so that
differences do not contain it. Weights and channels are counted as bytes of the cache.
Not for: xquant where X is wider than K and V together, which is refused; xquant-cl at short
contexts, where its channels take more than the tokens save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from loci.core.method import About, Granularity, Kind, Need, Param, Phase
from loci.core.spec import ModelSpec
from loci.errors import MethodError
from loci.methods.kv.base import EncodeLayers, LayerGroup, Shapes, as_heads, as_rows

if TYPE_CHECKING:
    from torch import Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVBlock

BITS = (2, 3, 4, 8)
_LEAST = 1e-6  # singular values below this share of the largest count as this much

# Shapes: B batch, L layers, T tokens, N groups of g tokens, d hidden, K key/value heads, D head
# size, w = K D channels of keys, m numbers of a token.


@dataclass(frozen=True, kw_only=True)
class XQuant(EncodeLayers):
    """A layer's input in few bits."""

    about = About(
        name="xquant",
        kind=Kind.KV,
        paper="arXiv:2508.10395",
        idea="keep a layer's input in few bits and compute keys and values again",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT, Need.HIDDEN),
        reconstruction="axis of the groups",
    )
    keeps_groups: ClassVar[bool] = False

    bits: Annotated[int, Param(help="bits of a number", choices=BITS)] = 4
    group: Annotated[int, Param(help="channels that share a grid, at most", ge=8, le=1024)] = 128
    tail: Annotated[
        int, Param(help="tokens that wait and are coded together", unit="tokens", ge=1)
    ] = 32
    dtype: Annotated[
        str, Param(help="what the weights are kept in", choices=("float16", "float32"))
    ] = "float16"

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return self.tail

    @property
    def preparation(self) -> str:
        """The same for all widths: the projections of the model."""
        return self.about.name

    def check(self, spec: ModelSpec) -> None:
        """Refuse models whose inputs are wider than what they save, or no plain product."""
        _check_linear(self, spec)
        width = 2 * spec.kv_heads * spec.head_dim
        if spec.hidden > width:
            raise MethodError(
                f"an input of {spec.name} has {spec.hidden} numbers, its keys and values {width}",
                value=str(self),
                allowed="models whose keys and values are wider than their input",
                way_out="xquant-gl, which keeps as many numbers as keys and values have",
            )

    def prepare(self, lab: Lab) -> Artefact:
        """Return the projections [L, 2 w, d]."""
        import torch

        made = [_projection(lab, layer) for layer in range(lab.spec.layers)]
        return lab.artefact(self.preparation, {"weights": torch.stack(made)})

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return the projections, once for all tokens."""
        width = 2 * spec.kv_heads * spec.head_dim
        return {"weights": ((spec.layers, width, spec.hidden), self.dtype)}

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return codes and grids of one token."""
        return _token_table("", spec.hidden, self.bits, self.group)

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the input, rounded token by token."""
        from loci.nn.grid import by_token

        hidden_BTd = blocks[0].hidden
        assert hidden_BTd is not None
        codes, grid = by_token(hidden_BTd, self.bits, _share(hidden_BTd.shape[2], self.group))
        return {"codes": codes, "grid": grid}, {}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, computed from the input."""
        from loci.nn.grid import of_token

        x_BTd = of_token(rows["codes"], rows["grid"], self.bits, group.spec.hidden)
        return _heads(x_BTd @ group.shared["weights"][layer].float().t(), group.spec)


@dataclass(frozen=True, kw_only=True)
class XQuantGL(EncodeLayers):
    """Keys and values in the channels of their weights: keys by channel, values by token."""

    about = About(
        name="xquant-gl",
        kind=Kind.KV,
        paper="arXiv:2508.10395",
        idea="round keys and values in the channels in which their weights read the input",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT,),
        reconstruction="width of the groups of values",
    )

    bits: Annotated[int, Param(help="bits of a number", choices=BITS)] = 4
    group: Annotated[
        int,
        Param(help="tokens that share a key's grid, and channels a value's at most", ge=8, le=1024),
    ] = 128
    dtype: Annotated[
        str, Param(help="what the channels are kept in", choices=("float16", "float32"))
    ] = "float16"

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return self.group

    @property
    def preparation(self) -> str:
        """The same for all widths: the channels of the weights."""
        return self.about.name

    def check(self, spec: ModelSpec) -> None:
        """Refuse models whose keys are no plain product."""
        _check_linear(self, spec)

    def prepare(self, lab: Lab) -> Artefact:
        """Return B^T of keys and of values [L, w, w], and S of values [L, w]."""
        import torch

        keys, values, scales = [], [], []
        for layer in range(lab.spec.layers):
            key_ways, _ = _channels(lab.weights(f"layer.{layer}.k_proj"))
            value_ways, scale = _channels(lab.weights(f"layer.{layer}.v_proj"))
            keys.append(key_ways)
            values.append(value_ways)
            scales.append(scale)
        tensors = {"keys": keys, "values": values, "values_scale": scales}
        stacked = {name: torch.stack(parts) for name, parts in tensors.items()}
        return lab.artefact(self.preparation, stacked)

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return the channels, once for all tokens."""
        width = spec.kv_heads * spec.head_dim
        square = ((spec.layers, width, width), self.dtype)
        scale = ((spec.layers, width), "float32")
        return {"keys": square, "values": square, "values_scale": scale}

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return codes of one token, and the grid of its values."""
        width = spec.kv_heads * spec.head_dim
        codes = {"keys_codes": (((width * self.bits + 7) // 8,), "uint8")}
        return codes | dict(_token_table("values_", width, self.bits, self.group))

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the grid that the keys of a group of tokens share."""
        return {"keys": ((2, spec.kv_heads * spec.head_dim), "float16")}

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return codes of whole groups of tokens, and the grids of their keys."""
        from loci.nn.grid import by_channel, by_token

        layer, shared = group.layers[0], group.shared
        keys_BTw, values_BTw = (
            as_rows(getattr(blocks[0], name)) @ shared[name][layer].float().t()
            for name in ("keys", "values")
        )
        keys, keys_grid = by_channel(keys_BTw, self.bits, self.group)
        values_BTw = values_BTw / shared["values_scale"][layer]
        values, grid = by_token(values_BTw, self.bits, _share(values_BTw.shape[2], self.group))
        return (
            {"keys_codes": keys, "values_codes": values, "values_grid": grid},
            {"keys": keys_grid},
        )

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values from their channels."""
        from loci.nn.grid import of_channel, of_token

        spec, shared = group.spec, group.shared
        width = spec.kv_heads * spec.head_dim
        keys_BTw = of_channel(rows["keys_codes"], bases["keys"], self.bits)
        values_BTw = of_token(rows["values_codes"], rows["values_grid"], self.bits, width)
        values_BTw *= shared["values_scale"][layer]
        return (
            as_heads(keys_BTw @ shared["keys"][layer].float(), spec),
            as_heads(values_BTw @ shared["values"][layer].float(), spec),
        )


@dataclass(frozen=True, kw_only=True)
class XQuantCL(EncodeLayers):
    """What each layer's input adds to that of the layer before."""

    about = About(
        name="xquant-cl",
        kind=Kind.KV,
        paper="arXiv:2508.10395",
        idea="inputs change little from layer to layer, so keep the differences in fewer bits",
        phases=(Phase.PREFILL, Phase.DECODE),
        needs=(Need.ARTEFACT,),
        reconstruction="axis of the groups, first layers, gains",
    )
    granularity: ClassVar[Granularity] = Granularity.GLOBAL

    bits: Annotated[int, Param(help="bits of a difference", choices=BITS)] = 3
    base_bits: Annotated[int, Param(help="bits in the first layers", choices=BITS)] = 4
    base_layers: Annotated[int, Param(help="first layers, kept as they are", ge=1)] = 3
    group: Annotated[int, Param(help="tokens that share a grid", unit="tokens", ge=8, le=1024)] = (
        128
    )
    gain: Annotated[
        str, Param(help="where the norm's gain counts to", choices=("input", "folded"))
    ] = "input"
    dtype: Annotated[
        str, Param(help="what the channels are kept in", choices=("float16", "float32"))
    ] = "float16"

    @property
    def closes_every(self) -> int:
        """Tokens that are coded together."""
        return self.group

    @property
    def group_layers(self) -> None:
        """All layers together."""
        return None

    @property
    def preparation(self) -> str:
        """The same for all widths; gains differ."""
        return f"{self.about.name}(gain={self.gain})"

    def check(self, spec: ModelSpec) -> None:
        """Refuse models whose keys are no plain product."""
        _check_linear(self, spec)

    def prepare(self, lab: Lab) -> Artefact:
        """Return of [Wk Wv]: B^T [L, m, 2 w], S [L, m] and U^T [L, m, d]."""
        import torch

        spec = lab.spec
        found: dict[str, list[Tensor]] = {"mix": [], "scale": [], "ways": []}
        for layer in range(spec.layers):
            weight = _projection(lab, layer)
            if self.gain == "folded":
                weight = weight * (lab.weights(f"layer.{layer}.input_norm") + spec.norm_offset)
            mix, scale, ways = torch.linalg.svd(weight.double(), full_matrices=False)
            found["mix"].append(mix.t().float())
            found["scale"].append(scale.clamp(min=_LEAST * float(scale.max())).float())
            found["ways"].append(ways.float())
        stacked = {name: torch.stack(parts) for name, parts in found.items()}
        return lab.artefact(self.preparation, stacked)

    def shared_table(self, spec: ModelSpec) -> Shapes:
        """Return the channels, once for all tokens."""
        width, size = 2 * spec.kv_heads * spec.head_dim, self._size(spec)
        return {
            "mix": ((spec.layers, size, width), self.dtype),
            "scale": ((spec.layers, size), "float32"),
            "ways": ((spec.layers, size, spec.hidden), self.dtype),
        }

    def row_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the codes of one token in all layers."""
        size, first = self._size(spec), min(self.base_layers, spec.layers)
        return {
            "base": ((first, (size * self.base_bits + 7) // 8), "uint8"),
            "more": ((spec.layers - first, (size * self.bits + 7) // 8), "uint8"),
        }

    def basis_table(self, spec: ModelSpec, layers: range) -> Shapes:
        """Return the grids of a group of tokens."""
        return {"grid": ((spec.layers, 2, self._size(spec)), "float16")}

    def carried(self, spec: ModelSpec) -> int:
        """Return the numbers of the running sum."""
        return spec.hidden

    def encode(
        self, blocks: Sequence[KVBlock], group: LayerGroup
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return codes and grids, each layer against what was kept of the one before."""
        import torch

        from loci.nn.grid import by_channel, of_channel

        shared, size = group.shared, self._size(group.spec)
        sum_BTd = torch.zeros(())
        codes: dict[str, list[Tensor]] = {"base": [], "more": []}
        grids = []
        for layer, block in enumerate(blocks):
            both = as_rows(torch.cat([block.keys, block.values], 1))
            own_BTm = both @ shared["mix"][layer].float().t() / shared["scale"][layer]
            ways_md = shared["ways"][layer].float()
            if layer == 0:
                sum_BTd = own_BTm.new_zeros(*own_BTm.shape[:2], group.spec.hidden)
            before_BTm = sum_BTd @ ways_md.t()
            is_base = layer < self.base_layers
            bits = self.base_bits if is_base else self.bits
            kept, grid = by_channel(own_BTm if is_base else own_BTm - before_BTm, bits, self.group)
            now_BTm = of_channel(kept, grid, bits)
            sum_BTd += (now_BTm - before_BTm if is_base else now_BTm) @ ways_md
            codes["base" if is_base else "more"].append(kept)
            grids.append(grid)
        rows = {name: torch.stack(parts, 2) for name, parts in codes.items() if parts}
        if not codes["more"]:
            empty = (*rows["base"].shape[:2], 0, (size * self.bits + 7) // 8)
            rows["more"] = rows["base"].new_empty(empty)
        return rows, {"grid": torch.stack(grids, 2)}

    def decode(
        self,
        rows: Mapping[str, Tensor],
        bases: Mapping[str, Tensor],
        layer: int,
        group: LayerGroup,
        carried_BTc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values from the running sum, to which this layer is added."""
        from loci.nn.grid import of_channel

        assert carried_BTc is not None
        shared = group.shared
        is_base = layer < self.base_layers
        bits = self.base_bits if is_base else self.bits
        kept = (
            rows["base"][:, :, layer] if is_base else rows["more"][:, :, layer - self.base_layers]
        )
        now_BTm = of_channel(kept, bases["grid"][:, :, layer], bits)
        ways_md = shared["ways"][layer].float()
        before_BTm = carried_BTc @ ways_md.t()
        if is_base:
            carried_BTc += (now_BTm - before_BTm) @ ways_md
        else:
            carried_BTc += now_BTm @ ways_md
            now_BTm = now_BTm + before_BTm
        both = (now_BTm * shared["scale"][layer]) @ shared["mix"][layer].float()
        return _heads(both, group.spec)

    def _size(self, spec: ModelSpec) -> int:
        """Return how many numbers a token keeps in a layer."""
        return min(spec.hidden, 2 * spec.kv_heads * spec.head_dim)


# -- private ----------------------------------------------------------------------------------


def _check_linear(method: EncodeLayers, spec: ModelSpec) -> None:
    """Refuse models whose keys and values are not the input times a weight."""
    for has, what in ((spec.attention_bias, "a bias"), (spec.qk_norm, "a norm of keys")):
        if has:
            raise MethodError(
                f"{method.about.name} computes keys as a product, and {spec.name} has {what}",
                value=spec.architecture,
                allowed="models whose keys and values are products of one input",
                way_out="cskv or bfp",
            )


def _projection(lab: Lab, layer: int) -> Tensor:
    """Return the weights of keys and values, [2 w, d]."""
    import torch

    return torch.cat([lab.weights(f"layer.{layer}.{name}") for name in ("k_proj", "v_proj")])


def _channels(weight_wd: Tensor) -> tuple[Tensor, Tensor]:
    """Return B^T [w, w], strongest first, and S [w] of a weight whose transpose is U S B^T."""
    import torch

    mix, scale, _ = torch.linalg.svd(weight_wd.double(), full_matrices=True)
    whole = scale.new_zeros(len(mix))
    whole[: len(scale)] = scale
    return mix.t().float(), whole.clamp(min=_LEAST * float(scale.max())).float()


def _heads(both_BTw: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, K, T, D] of what stands side by side."""
    heads = both_BTw.unflatten(2, (2, spec.kv_heads, spec.head_dim))
    keys_BKTD, values_BKTD = heads.permute(2, 0, 3, 1, 4)
    return keys_BKTD.contiguous(), values_BKTD.contiguous()


def _share(width: int, group: int) -> int:
    """Return the most channels, at most `group`, that cut the width into equal parts."""
    return next(size for size in range(min(group, width), 0, -1) if width % size == 0)


def _token_table(name: str, width: int, bits: int, group: int) -> Shapes:
    return {
        f"{name}codes": (((width * bits + 7) // 8,), "uint8"),
        f"{name}grid": ((2 * (width // _share(width, group)),), "float16"),
    }
