"""The role Retrieve: a bank of the tokens that a store drops, and what fetches from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol  # states are JSON values

from loci.core.cost import Cost
from loci.core.spec import ModelSpec, Workload
from loci.methods.kv.base import KVMethod, Shapes

if TYPE_CHECKING:
    from torch import Tensor

    from loci.nn.kv import KVBlock

# Shapes: B batch, L layers, K key/value heads, k some of them, G query heads per KV head,
# T tokens, D head size.


class Bank(Protocol):
    """Tokens that a store dropped, and what fetches from them."""

    def add(self, layer: int, heads: slice, block: KVBlock) -> None:
        """Take tokens of some heads of a layer, oldest first.

        Args:
            block: rotated keys, and values, [B, k, T, D], positions [B, k, T]; a negative position
                is padding, which nobody may find.
        """
        ...

    def attend(
        self, layer: int, queries: Tensor, positions: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the queries read from what they found, and the log-sum-exp.

        Args:
            queries: rotated, float32 [B, K, G, T, D].
            positions: of the queries [B, T].
            window: a token is seen only by queries less than that many positions after it.

        Returns:
            o like the queries and lse [B, K, G, T]; zero and -inf where nothing was found.
        """
        ...

    def held(self, layer: int) -> int:
        """Return the tokens of a layer that can be found, per head; of unequal heads, the most."""
        ...

    def reset(self) -> None:
        """Hold nothing."""
        ...

    def state(self) -> Any:
        """Return how much of the tensors is in use, as JSON."""
        ...

    def set_state(self, state: Any) -> None:
        """Take back what `state` returned."""
        ...


class Retrieve(KVMethod):
    """Keeps tokens that a method before it drops, and fetches what a query asks for.

    What is fetched and what the store holds merge into one softmax. Rows of a batch have banks of
    their own: none finds another's tokens.
    """

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of a bank for the whole context, by tier; the store comes on top."""
        from loci.methods.kv.store_plan import table_bytes

        held = {"dram": 0}
        heads = load.batch * spec.layers * spec.kv_heads
        for name, entry in self.bank_table(spec, load.context).items():
            tier = "disk" if name in self.on_disk() else "dram"
            held[tier] = held.get(tier, 0) + heads * table_bytes({name: entry})
        return Cost(held=held, freed={}, loss=None)

    @abstractmethod
    def bank_table(self, spec: ModelSpec, tokens: int) -> Shapes:
        """Return {name: (shape, dtype)} of one head's bank in a store of so many tokens."""

    def on_disk(self) -> tuple[str, ...]:
        """Return which tensors of the table lie in a file instead of the store's own tier."""
        return ()

    @abstractmethod
    def open(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> Bank:
        """Return an empty bank over tensors [B, L, K, ...] as the table says."""
