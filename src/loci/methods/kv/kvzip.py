"""KVzip: keep what the model needs to repeat its context.

J.-H. Kim et al., "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", 2025,
arXiv:2505.23416.

A cache from which the context can be repeated can answer any question about it. So run the context
through the model a second time, against the cache, and keep the keys that this reads:

    score[t] = max over probe queries q and the heads of a group of softmax(q . k[t] / sqrt(D))

The context is repeated chunk by chunk, each after `prompt`. Nothing depends on the question, so one
compressed cache serves many.

Differs from the paper: the softmax runs over the stored keys alone, without the probe's own; every
head keeps the same number of tokens; and a context longer than the budget is probed as it is read,
against what is left of the earlier chunks, so that the full cache never exists.
Not for: one short question on a long text, once; probing costs a second prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from loci.core.method import About, Kind, Need, Param, Phase
from loci.methods.kv.base import Select

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from loci.nn.kv import KVView, Seen


@dataclass(frozen=True, kw_only=True)
class KVzip(Select):
    """The most attention a token gets while the context is repeated."""

    about = About(
        name="kvzip",
        kind=Kind.KV,
        paper="arXiv:2505.23416",
        idea="what is needed to repeat the context is needed to answer anything about it",
        phases=(Phase.PREFILL,),
        needs=(Need.PROBE,),
    )

    prompt: Annotated[
        tuple[int, ...],
        Param(
            help="token ids put before each repeated chunk, such as those of 'Repeat the previous "
            "context exactly.'",
            source="section 3.2",
        ),
    ] = ()

    def score(self, view: KVView, seen: Seen | None, generator: Generator | None = None) -> Tensor:
        """Return the largest attention weight any probe query gives a token."""
        from loci.nn.attend import attention_mass

        assert seen is not None and seen.queries is not None
        return attention_mass(
            seen.queries,
            view,
            positions=seen.positions,
            scale=seen.queries.shape[-1] ** -0.5,
            reduce="max",
        )

    def merge(self, remembered: Tensor, fresh: Tensor) -> Tensor:
        """Return the larger score, so that each token is judged by its best probe."""
        return fresh.where(remembered.isinf(), remembered.maximum(fresh))

    def probe_ids(self, ids: Sequence[int]) -> list[int]:
        """Return the prompt and the chunk to repeat."""
        return [*self.prompt, *ids]
