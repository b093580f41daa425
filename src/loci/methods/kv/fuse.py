"""The role of methods that put the caches of other models into one's own.

Fuse works on a prompt that several models have read, token beside token. It needs keys and values
as they are, of every head; what it returns takes their place in the receiver's cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loci.core.spec import ModelSpec
from loci.errors import MethodError
from loci.methods.kv.base import KVMethod

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.core.ports import Artefact, Lab
    from loci.nn.kv import KVBlock

# Shapes: B batch, L layers of the receiver, K its key/value heads, T tokens, D head size.


@dataclass(frozen=True, kw_only=True, eq=False)
class Cached:
    """What a model keeps of a prompt.

    Attributes:
        spec: of the model.
        blocks: of each layer, all with the same positions [B, T].
    """

    spec: ModelSpec
    blocks: Sequence[KVBlock]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sharer(Cached):
    """What a model shares of a prompt.

    Attributes:
        weights: of the fuser from this model to the receiver.
        speaks: bool [B, T], where it is listened to; None is everywhere.
    """

    weights: Mapping[str, Tensor]
    speaks: Tensor | None = None


class Fuse(KVMethod):
    """Puts the caches of sharers into a receiver's, by a network trained for the two models."""

    def prepare(self, lab: Lab) -> Artefact:
        """Refuse: one model is not enough."""
        raise MethodError(
            f"{self.about.name} is trained for two models, and cannot be prepared for one",
            way_out="loci.hf.train_fuser(receiver, sharer, examples)",
        )

    @abstractmethod
    def layer_map(self, receiver: ModelSpec, sharer: ModelSpec) -> tuple[int, ...]:
        """Return the sharer's layer that stands beside each layer of the receiver."""

    @abstractmethod
    def table(self, receiver: ModelSpec, sharer: ModelSpec) -> Mapping[str, tuple[int, ...]]:
        """Return {name: shape} of the fuser's weights."""

    @abstractmethod
    def start(
        self, receiver: ModelSpec, sharer: ModelSpec, generator: Generator
    ) -> dict[str, Tensor]:
        """Return weights that change nothing yet; "gate" are the logits of the gates [L, 2]."""

    @abstractmethod
    def added(
        self,
        receiver: Cached,
        sharer: Sharer,
        layers: Sequence[int],
        gate_L2: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return what a sharer adds to rotated keys, and to values, [L, 2, B, K, T, D].

        Gradients flow to the sharer's weights and to the gate.

        Args:
            layers: the sharer's, beside each of the receiver's.
            gate_L2: of keys and values of each layer, 0 to 1.
            generator: of what training leaves out; None leaves nothing out.
        """

    @abstractmethod
    def fuse(
        self, receiver: Cached, sharers: Sequence[Sharer], layer_map: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the receiver's keys, rotated, and values, by layer, [B, K, T, D] float32.

        Where gates are closed or nobody speaks they are those of the receiver, bit for bit.

        Args:
            layer_map: of each sharer, its layer beside each of the receiver's.
        """
