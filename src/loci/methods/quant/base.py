"""The role of quantisation methods: a float32 weight in, a packed weight out, bytes said before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from loci.core.cost import Cost
from loci.core.holder import ShrinkOption, Undo
from loci.core.method import Method
from loci.core.spec import ModelSpec, Workload
from loci.errors import ParameterError
from loci.nn.packing import DENSE_DTYPES, PackedWeight


class Quant(Method):
    """Role: pack weights one at a time, in bytes that are known in advance."""

    @abstractmethod
    def pack_one(self, weight: Tensor, *, generator: Generator | None = None) -> PackedWeight:
        """Return the packed form of a weight [out, in], which is not changed.

        Args:
            generator: the only source of chance; the same seed packs the same bytes.

        Raises:
            ParameterError: if the weight is no finite matrix, or its shape does not fit the method.
        """

    @abstractmethod
    def packed_bytes(self, out: int, inner: int) -> int:
        """Return exactly the bytes that `pack_one` stores for a weight [out, inner].

        Raises:
            ParameterError: if the shape does not fit the method, in the same words as `pack_one`.
        """

    def pack(
        self, weights: Iterable[tuple[str, Tensor]], *, generator: Generator | None = None
    ) -> PackedModel:
        """Return a model whose matrices are packed; vectors (norms, biases) stay in float32.

        Weights are taken one after the other, so that an iterator that loads them holds one.
        """
        packed: dict[str, PackedWeight | Tensor] = {}
        for name, weight in weights:
            if name in packed:
                raise ParameterError("two weights have one name", value=name)
            if weight.ndim == 1:
                packed[name] = weight.to(torch.float32, copy=True)
            else:
                packed[name] = self.pack_one(weight, generator=generator)
        return PackedModel(weights=packed)

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of a whole model of these sizes packed by `pack`.

        The loss is unknown until it was measured for the model.
        """
        layer = sum(self.packed_bytes(*shape) for shape in spec.layer_linears().values())
        table = self.packed_bytes(spec.vocab, spec.hidden) * (1 if spec.tied else 2)
        vectors = 4 * (spec.layers * spec.layer_norm_elements() + spec.hidden)
        held = spec.layers * layer + table + vectors
        return Cost(
            held={"dram": held},
            freed={"dram": spec.full_bytes() - held},
            operations=2.0 * (spec.linear_elements() + spec.vocab * spec.hidden) * load.batch,
            loss=None,
        )


@dataclass(frozen=True, eq=False)
class PackedModel:
    """Named weights in packed form; a Holder."""

    weights: Mapping[str, PackedWeight | Tensor]

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
