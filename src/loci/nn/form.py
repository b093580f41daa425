"""Forms of a weight: what every stored form answers, so that nobody need know which one it has.

A form holds a matrix [out, in] in few bytes. It can hand out its tensors and put itself together
from them again, write itself out in float32, and multiply. Most forms are linear in x; a form that
also rounds its input (W4A8 and the like) is not, and says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any  # JSON values

import torch
from torch import Tensor

from loci.core.work import TILE_ELEMENTS
from loci.errors import FormatError, ParameterError

# Shapes: M rows of x, K inputs, N outputs, n rows of one tile.

_HOMES = {
    "dense": ("loci.nn.form", "DenseWeight"),
    "groupwise": ("loci.nn.packing", "PackedWeight"),
    "residual": ("loci.nn.residual", "ResidualWeight"),
    "planes": ("loci.nn.planes", "PlanesWeight"),
    "adjusted": ("loci.nn.adjusted", "AdjustedWeight"),
    "bfp": ("loci.nn.bfp_weight", "BfpWeight"),
}


class Form(ABC):
    """A weight [out, in] in some stored form; immutable."""

    shape: tuple[int, int]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the stored tensors by name; names may have dots, "bias" is not used."""

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """Return what the tensors do not say, as JSON values; "type" names the form."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Form:
        """Return the weight from `tensors()` and `meta()`; nothing is copied.

        Raises:
            FormatError: if the two do not belong together.
        """

    @abstractmethod
    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out [last - first, in], contiguous."""

    def take(self, ids: Tensor) -> Tensor:
        """Return rows in float32 [n, in]; ids int64 [n], in range."""
        found = torch.empty(ids.numel(), self.shape[1])
        for index, row in enumerate(ids.tolist()):
            self.write(found[index : index + 1], row, row + 1)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def is_linear(self) -> bool:
        """Whether `product` is x W^T for the weight that `dense` returns."""
        return True

    def dense(self, out: Tensor | None = None, rows: slice | None = None) -> Tensor:
        """Return the weight, or a range of its rows, in float32 [rows, in]; see `dequantise`."""
        first, last = row_range(self.shape[0], rows)
        if out is None:
            out = torch.empty(last - first, self.shape[1])
        elif (
            tuple(out.shape) != (last - first, self.shape[1])
            or out.dtype != torch.float32
            or not out.is_contiguous()
        ):
            raise ParameterError(
                "dequantise writes contiguous float32 of the rows asked for",
                value=(tuple(out.shape), str(out.dtype)),
                allowed=str((last - first, self.shape[1])),
            )
        if last > first:
            self.write(out, first, last)
        return out

    def product(self, x_MK: Tensor, out_MN: Tensor, tile: Tensor | None) -> Tensor:
        """Write x times the transposed weight into out and return it; shapes were checked.

        Args:
            tile: one-dimensional float32 scratch of at least one row; None takes a new one.
        """
        return tiled(x_MK, self, out_MN, tile)


class DenseWeight(Form):
    """A plain matrix as a form, for what takes forms only."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.shape = (weight.shape[0], weight.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """Return {"weight"}."""
        return {"weight": self.weight}

    def meta(self) -> dict[str, Any]:
        """Return the name of the form."""
        return {"type": "dense"}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> DenseWeight:
        """Return the weight from `tensors()`."""
        if "weight" not in tensors or tensors["weight"].ndim != 2:
            raise FormatError("this is no dense weight")
        return cls(tensors["weight"])

    def write(self, out: Tensor, first: int, last: int) -> None:
        """Write rows first..last in float32 into out."""
        out.copy_(self.weight[first:last])


def tiled(x_MK: Tensor, weight: Form | Tensor, out_MN: Tensor, tile: Tensor | None) -> Tensor:
    """Multiply by a tile of output rows at a time, so that no whole float32 weight is held."""
    if isinstance(weight, Tensor) and weight.dtype == torch.float32:
        return torch.mm(x_MK, weight.t(), out=out_MN)
    outputs, inner = weight.shape
    if tile is None:
        tile = torch.empty(max(inner, min(TILE_ELEMENTS, outputs * inner)))
    step = tile.numel() // inner
    if step == 0:
        raise ParameterError(
            "the tile holds no whole row", value=tile.numel(), allowed=f">= {inner} elements"
        )
    for first in range(0, outputs, step):
        last = min(first + step, outputs)
        dense_nK = tile[: (last - first) * inner].view(last - first, inner)
        if isinstance(weight, Tensor):
            dense_nK.copy_(weight[first:last])
        else:
            weight.write(dense_nK, first, last)
        if step >= outputs:
            return torch.mm(x_MK, dense_nK.t(), out=out_MN)
        torch.mm(x_MK, dense_nK.t(), out=out_MN[:, first:last])
    return out_MN


def row_range(out: int, rows: slice | None) -> tuple[int, int]:
    """Return (first, last) of a slice of step 1 over `out` rows."""
    first, last, step = (rows or slice(None)).indices(out)
    if step != 1:
        raise ParameterError("rows are taken in order", value=rows, allowed="a slice of step 1")
    return first, max(first, last)


def from_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Form:
    """Return a weight of whatever form `meta` names.

    Raises:
        FormatError: if nobody knows the form, or tensors and meta do not belong together.
    """
    kind = meta.get("type")
    if kind not in _HOMES:
        raise FormatError(
            "unknown packed weight",
            value=kind,
            allowed=", ".join(_HOMES),
            way_out="the file was written by a newer Loci; update this one",
        )
    module, name = _HOMES[str(kind)]
    cls: type[Form] = getattr(import_module(module), name)
    return cls.from_tensors(tensors, meta)
