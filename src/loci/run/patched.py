"""Weights with a patch beside them: adapters and edits at work, taken away as fast as put on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.nn.form import Form
from loci.nn.patch import Patch, patched
from loci.run.weights import FixedSource, Weights, WeightSource


def with_patch(
    source: WeightSource,
    patch: Patch,
    spec: ModelSpec,
    ledger: Ledger,
    *,
    name: str = "adapter",
    tier: str = "dram",
) -> PatchedWeights:
    """Return a source that adds a patch to another's weights.

    Releasing it gives the patch's bytes back and leaves the other as it was.

    Args:
        name: of the bytes in the ledger.

    Raises:
        FormatError: if the patch does not fit the model.
        BudgetError: if there is no room for it.
    """
    patch.check(spec)
    kind = _FixedPatched if isinstance(source, FixedSource) else PatchedWeights
    return kind(source, patch, ledger, name, tier)


def laid_out_bytes(patch: Patch) -> int:
    """Return the bytes of a patch beside weights: float32, whatever it is kept in."""
    return 4 * sum(tensor.numel() for tensor in patch.tensors().values())


class PatchedWeights:
    """A `WeightSource` over another; use `with_patch`."""

    def __init__(
        self, source: WeightSource, patch: Patch, ledger: Ledger, name: str, tier: str
    ) -> None:
        self._lease = ledger.reserve(name, tier, laid_out_bytes(patch), "adapter")
        self.source, self.patch = source, patch
        self._parts: dict[int, list[tuple[str, tuple[Tensor, Tensor]]]] = {}
        for full, pair in patch.parts.items():
            _, index, linear = full.split(".")
            self._parts.setdefault(int(index), []).append((linear, _laid_out(*pair)))

    def layer(self, index: int) -> Weights:
        """Return the tensors of a decoder layer, the patched ones with their product."""
        block = self.source.layer(index)
        parts = self._parts.get(index)
        if not parts:
            return block
        return {**block, **{name: patched(block[name], pair) for name, pair in parts}}

    def norm(self) -> Tensor:
        """Return the final norm weight, float32 [hidden]."""
        return self.source.norm()

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile of the head."""
        return self.source.head()

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids [n] into out, float32 [n, hidden]."""
        self.source.embed(ids, out)

    def end_pass(self) -> None:
        """Tell that this forward needs no more blocks."""
        self.source.end_pass()

    def moved(self) -> dict[tuple[str, str], int]:
        """Return {(from tier, to tier): bytes} read so far."""
        return self.source.moved()

    @property
    def nbytes(self) -> int:
        """Bytes of the patch as it is laid out."""
        return self._lease.nbytes

    def release(self) -> None:
        """Give the bytes of the patch back; the weights below are their owner's."""
        self._parts.clear()
        self._lease.release()


def _laid_out(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return both factors in float32, and every direction in one piece, as the kernels read them.

    They are copies: a patch in a file that is mapped may go away.
    """
    return left.t().to(torch.float32, copy=True).contiguous().t(), right.to(
        torch.float32, copy=True
    ).contiguous()


class _FixedPatched(PatchedWeights):
    """The same over weights that stay what and where they are."""

    def embedding(self) -> Sequence[Form | Tensor]:
        """Return the tiles of the embedding, whose rows follow each other."""
        assert isinstance(self.source, FixedSource)
        return self.source.embedding()
