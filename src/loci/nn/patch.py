"""What is added to some linear weights: thin products, as adapters and edits of a model have them.

    y = x W^T + (x R^T) L^T

The weight itself is never touched, so taking a patch away gives back the model bit for bit. An
adapter (Hu et al., "LoRA", 2021, arXiv:2106.09685) is a patch that was trained, with R its A and
L = (alpha / r) B; an edit of rank k is one that was solved for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import FormatError, ParameterError
from loci.nn.adjusted import AdjustedWeight
from loci.nn.form import DenseWeight, Form

DTYPES = (torch.float16, torch.float32)

# Shapes: N outputs, K inputs, r rank.


@dataclass(frozen=True, eq=False)
class Patch:
    """Thin products by the names of the layers they are added to; immutable.

    Attributes:
        parts: {"layer.3.q_proj": (left [N, r], right [r, K])}, float16 or float32; ranks may
            differ.

    Raises:
        FormatError: if two factors do not belong together, or have numbers that are not finite.
    """

    parts: Mapping[str, tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        for name, (left, right) in self.parts.items():
            fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0] > 0
            if not fits or left.dtype not in DTYPES or right.dtype not in DTYPES:
                raise FormatError(
                    f"the patch of {name} is no product of two thin matrices",
                    value=(tuple(left.shape), tuple(right.shape), str(left.dtype)),
                    allowed="[out, r] and [r, in], float16 or float32",
                )
            if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
                raise FormatError(f"the patch of {name} has numbers that are not finite")

    def check(self, spec: ModelSpec) -> None:
        """Refuse a model this patch does not fit.

        Raises:
            FormatError: if a layer is not there, or has another shape.
        """
        shapes, layers = spec.layer_linears(), set(map(str, range(spec.layers)))
        for name, (left, right) in self.parts.items():
            index, _, linear = name.removeprefix("layer.").partition(".")
            if index not in layers or linear not in shapes or not name.startswith("layer."):
                raise FormatError(
                    "the patch is of a layer the model does not have",
                    value=name,
                    allowed=f"layer.0 to layer.{spec.layers - 1}, {', '.join(shapes)}",
                )
            if (left.shape[0], right.shape[1]) != shapes[linear]:
                raise FormatError(
                    f"the patch does not fit {name}",
                    value=(left.shape[0], right.shape[1]),
                    allowed=str(shapes[linear]),
                )

    def tensors(self) -> dict[str, Tensor]:
        """Return {"layer.3.q_proj.left": ..., "layer.3.q_proj.right": ...}."""
        return {
            f"{name}.{side}": tensor
            for name, pair in self.parts.items()
            for side, tensor in zip(("left", "right"), pair, strict=True)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Patch:
        """Return the patch from `tensors()`.

        Raises:
            FormatError: if a side is missing.
        """
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        try:
            found = {n: (tensors[f"{n}.left"], tensors[f"{n}.right"]) for n in names}
        except KeyError as error:
            raise FormatError(f"a patch lacks {error}") from error
        if len(tensors) != 2 * len(found):
            raise FormatError("this is no patch", value=sorted(tensors)[:4])
        return cls(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def fingerprint(self) -> str:
        """Of names and numbers; what was read with a patch must not be used without it."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def scaled(self, factor: float) -> Patch:
        """Return the patch times a number."""
        return Patch({n: (left * factor, right) for n, (left, right) in self.parts.items()})

    def delta(self, name: str) -> Tensor:
        """Return what is added to a weight, float32 [N, K]."""
        left, right = self.parts[name]
        return left.float() @ right.float()


def joined(patches: Iterable[Patch]) -> Patch:
    """Return the sum of patches: their ranks stand side by side, so nothing is lost."""
    sides: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for patch in patches:
        for name, (left, right) in patch.parts.items():
            lefts, rights = sides.setdefault(name, ([], []))
            lefts.append(left.float())
            rights.append(right.float())
    return Patch({n: (torch.cat(ls, 1), torch.cat(rs, 0)) for n, (ls, rs) in sides.items()})


def truncated(patch: Patch, rank: int) -> Patch:
    """Return the best patch of at most this rank for every layer, in float32.

    Decomposes the small matrix between two orthogonal bases, never the whole product.
    """
    if rank < 1:
        raise ParameterError("a patch has at least rank 1", value=rank, allowed=">= 1")
    found = {}
    for name, (left, right) in patch.parts.items():
        if left.shape[1] <= rank:
            found[name] = left.float(), right.float()
            continue
        basis_Nq, inner_qr = torch.linalg.qr(left.double())
        basis_Kq, inner_pr = torch.linalg.qr(right.double().t())
        u, values, v = torch.linalg.svd(inner_qr @ inner_pr.t())
        roots = values[:rank].sqrt()
        found[name] = (
            (basis_Nq @ u[:, :rank] * roots).float(),
            (roots[:, None] * v[:rank] @ basis_Kq.t()).float(),
        )
    return Patch(found)


def patched(weight: Form | Tensor, pair: tuple[Tensor, Tensor]) -> AdjustedWeight:
    """Return a weight with a thin product beside it; the weight is shared, not copied."""
    base = DenseWeight(weight) if isinstance(weight, Tensor) else weight
    return AdjustedWeight(base=base, left=pair[0], right=pair[1])
