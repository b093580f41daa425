"""What quantisation methods return for a whole model, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.core.holder import ShrinkOption, Undo
from loci.errors import ParameterError
from loci.nn.form import Form
from loci.nn.packing import DENSE_DTYPES
from loci.nn.taps import ActStats


@dataclass(frozen=True, eq=False)
class PackedModel:
    """Named weights in packed form; a Holder."""

    weights: Mapping[str, Form | Tensor]

    def nbytes(self) -> dict[str, int]:
        """Return {"dram": bytes} of the stored tensors, each storage once."""
        stored: dict[int, int] = {}
        for weight in self.weights.values():
            for tensor in [weight] if isinstance(weight, Tensor) else weight.tensors().values():
                stored[tensor.data_ptr()] = tensor.nbytes
        return {"dram": sum(stored.values())}

    def shrink_options(self) -> Sequence[ShrinkOption]:
        """Return nothing: codes cannot be made smaller without the weights they came from."""
        return ()

    def apply(self, option: ShrinkOption) -> Undo:
        """Refuse, as nothing was offered."""
        raise ParameterError("packed weights offer no way to shrink", value=option.name)


def check_matrix(weight: Tensor, name: str) -> None:
    """Raise ParameterError unless `weight` is a matrix of finite floating point numbers.

    Args:
        name: of the method that asks, for the message.
    """
    if weight.ndim != 2 or 0 in weight.shape or weight.dtype not in DENSE_DTYPES:
        raise ParameterError(
            f"{name} packs matrices [out, in]",
            value=(tuple(weight.shape), str(weight.dtype)),
            allowed="two sizes >= 1 of " + ", ".join(map(str, DENSE_DTYPES)),
        )
    low, high = torch.aminmax(weight)  # NaN passes through both
    if not (torch.isfinite(low) and torch.isfinite(high)):
        broken = ~torch.isfinite(weight)
        row, column = (int(index) for index in broken.nonzero()[0])
        raise ParameterError(
            f"{name} packs finite numbers only; {int(broken.sum())} are not",
            value=f"{weight[row, column].item()} at [{row}, {column}]",
        )


def check_stats(stats: ActStats | None, inner: int, name: str) -> ActStats:
    """Return the statistics a calibrated method needs, or say what is missing.

    Args:
        inner: inputs of the weight; name: of the method that asks.

    Raises:
        ParameterError: if there are none, or they are of a layer with other inputs.
    """
    if stats is None:
        raise ParameterError(
            f"{name} weighs errors by what flows into a layer and was shown nothing",
            way_out="give statistics of the layer's inputs, collected on some text",
        )
    if stats.squares_K.shape != (inner,):
        raise ParameterError(
            f"{name}: the statistics belong to another layer",
            value=tuple(stats.squares_K.shape),
            allowed=str((inner,)),
        )
    return stats
