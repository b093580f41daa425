"""Reading a prompt chunk by chunk, and asking the model what it would look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from loci.nn.kv import Seen

if TYPE_CHECKING:
    from torch import Tensor

    from loci.run.kvstore import KVStore
    from loci.run.runner import Runner

Progress = Callable[[int, int], None]


class Prefiller:
    """Runs tokens against one KV store; satisfies `loci.core.ports.Prefiller`.

    Attributes:
        ids: the tokens the store was read from; methods that repeat the context need them.
    """

    def __init__(self, runner: Runner, store: KVStore) -> None:
        self.runner, self.store = runner, store
        self.ids: list[int] = []

    def prefill(self, ids: Sequence[int], progress: Progress | None = None) -> None:
        """Append tokens; no logits are computed."""
        self._run(ids, None, progress)

    def read(self, ids: Sequence[int], progress: Progress | None = None) -> Tensor:
        """Append tokens and return the logits [1, V] after the last one."""
        return self._run(ids, "last", progress)

    def probe(self, ids: Sequence[int]) -> Iterator[Seen]:
        """Run tokens against the store without appending; yield what each layer saw."""
        for start in range(0, len(ids), self.runner.chunk):
            part = torch.tensor([list(ids[start : start + self.runner.chunk])])
            yield from self.runner.probe(part, self.store)

    def _run(self, ids: Sequence[int], logits: str | None, progress: Progress | None) -> Tensor:
        out = None
        for start in range(0, len(ids), self.runner.chunk):
            part = list(ids[start : start + self.runner.chunk])
            is_last = start + len(part) == len(ids)
            self.ids.extend(part)
            out = self.runner.forward(
                torch.tensor([part]), self.store, logits=logits if is_last else None
            )
            if not is_last:
                self.store.finish_chunk(self)
            if progress is not None:
                progress(start + len(part), len(ids))
        return out  # type: ignore[return-value]  # None only when no logits were asked for
