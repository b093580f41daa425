"""Weights that grow and shrink while a model runs: the levels of a stack that fit the budget.

Every block is read into one buffer and copied into memory of exactly its size, so that letting go
of it gives those bytes back. A level more or less replaces one weight between two tokens; nothing
is computed anew and the conversation goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from loci.core.event import Event, Events
from loci.core.holder import ShrinkOption, Undo
from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods.quant.base import Nested
from loci.models.stack import block_name, open_stack
from loci.nn.form import Form
from loci.tiers.pool import aligned_empty, trim_heap


class StackedWeights:
    """The weights of a stack, as many levels as fit; a `WeightSource` and a `Holder`.

    Args:
        path: the stack; method: the one it was made by; spec: of the model.
        budget_bytes: for the weights, the buffer that blocks are read into included.
        events: told about every change of size.

    Raises:
        BudgetError: if the smallest forms do not fit; nothing is held then.
    """

    def __init__(
        self,
        path: Path,
        method: Nested,
        spec: ModelSpec,
        ledger: Ledger,
        *,
        budget_bytes: int,
        tier: str = "dram",
        events: Events | None = None,
    ) -> None:
        self._spec, self._method, self._table_method = spec, method, method.table()
        self._tier, self._events = tier, events
        self._store, self.table = open_stack(path, method=str(method), fingerprint=spec.fingerprint)
        try:
            held = self.table.held_bytes(budget_bytes)
            self._lease = ledger.reserve("weights", tier, held, "weights")
        except BaseException:
            self._store.close()
            raise
        self._buffer = aligned_empty(self.table.buffer_bytes)
        self._vectors: dict[str, dict[str, Tensor]] = {}
        self._forms: dict[str, Form] = {}
        self._depth: dict[str, int] = {}
        self._layers: list[dict[str, Form | Tensor]] = []
        try:
            self._load_smallest()
            self.resize(budget_bytes)
        except BaseException:
            self.release()
            raise

    # -- what the runner asks -----------------------------------------------------------------

    def layer(self, index: int) -> Mapping[str, Form | Tensor]:
        """Return the tensors of a decoder layer."""
        return self._layers[index]

    def norm(self) -> Tensor:
        """Return the final norm weight, float32 [hidden]."""
        return next(iter(self._vectors["norm"].values()))

    def head(self) -> Iterator[tuple[int, Form | Tensor]]:
        """Yield (first vocabulary row, weight) of each tile of the head."""
        start = 0
        for name in self._tiles("embed" if self._spec.tied else "head"):
            form = self._forms[name]
            yield start, form
            start += form.shape[0]

    def embed(self, ids: Tensor, out: Tensor) -> None:
        """Write the embeddings of ids [n] into out, float32 [n, hidden]."""
        start = 0
        for name in self._tiles("embed"):
            form = self._forms[name]
            at = ((ids >= start) & (ids < start + form.shape[0])).nonzero().squeeze(-1)
            if at.numel():
                out[at] = form.take(ids[at] - start)
            start += form.shape[0]

    def end_pass(self) -> None:
        """Nothing is read ahead, so nothing has to end."""

    def moved(self) -> dict[tuple[str, str], int]:
        """Return the bytes read from disk so far, those of opening included."""
        return {("disk", self._tier): self._store.bytes_read}

    def release(self) -> None:
        """Give every byte back."""
        self._layers.clear()
        self._forms.clear()
        self._vectors.clear()
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._store.close()
        self._lease.release()

    # -- growing and shrinking ----------------------------------------------------------------

    @property
    def depths(self) -> dict[str, int]:
        """How many levels each weight has."""
        return dict(self._depth)

    def resize(self, budget_bytes: int) -> int:
        """Load or drop levels until the weights are the largest that fit; return their bytes.

        Raises:
            BudgetError: if the smallest forms do not fit, or the ledger has no room to grow;
                nothing has changed then.
            StorageError: if a block cannot be read; what was loaded until then stays.
        """
        levels = self.table.levels_within(budget_bytes)
        wanted = {name: part.least for name, part in self.table.parts.items()}
        for name in self.table.order[:levels]:
            wanted[name] += 1
        target = self.table.sizes[levels] + self.table.buffer_bytes
        before = self._lease.nbytes
        if target > before:
            self._lease.commit(target)
        try:
            for name, depth in wanted.items():
                while self._depth[name] > depth:
                    self._drop(name)
            for name in self.table.order[:levels]:  # the order in which they lie on the disk
                while self._depth[name] < wanted[name]:
                    self._add(name)
        finally:
            self._lease.commit(self._count())
            trim_heap()
        if self._events is not None and before != target:
            data = {"before": before, "after": target, "levels": levels}
            self._events.emit(Event(name="weights.resize", data=data))
        return self._lease.nbytes

    def nbytes(self) -> dict[str, int]:
        """Return {tier: bytes} of weights and buffer."""
        return {self._tier: self._count()}

    def shrink_options(self) -> Sequence[ShrinkOption]:
        """Return one option for each level that may go, in the order that loses least.

        An option for a lower level of a weight applies once its higher ones are gone.
        """
        above = dict(self._depth)
        found = []
        for name in reversed(self.table.order):
            part = self.table.parts[name]
            if above[name] <= part.least:
                continue
            above[name] -= 1
            further = above[name] - part.least
            found.append(
                ShrinkOption(
                    name=f"weights: {block_name(name, above[name])}",
                    tier=self._tier,
                    bytes_freed=self._store.nbytes(block_name(name, above[name])),
                    loss=max(0.0, part.losses[further] - part.losses[further + 1]),
                )
            )
        return found

    def apply(self, option: ShrinkOption) -> Undo:
        """Drop the level an option names; the undo reads it again."""
        name, _, level = option.name.removeprefix("weights: ").rpartition("/")
        last = self._depth.get(name, 0) - 1
        if level != str(last) or last < self.table.parts[name].least:
            raise ParameterError(
                "this level cannot be dropped now",
                value=option.name,
                allowed=f"weights: {block_name(name, last)}" if name in self._depth else None,
                way_out="take the options in the order they are offered",
            )
        self._drop(name)
        self._lease.commit(self._count())
        trim_heap()
        return partial(self._undo, name, last)

    # -- private ------------------------------------------------------------------------------

    def _load_smallest(self) -> None:
        for name in self._store.names():
            if "/" not in name:
                self._vectors[name] = self._read(name)
        for name, part in self.table.parts.items():
            levels = [self._read(block_name(name, number)) for number in range(part.least)]
            self._forms[name] = self._method_of(name).first(levels, part.shape)
            self._depth[name] = part.least
        for index in range(self._spec.layers):
            block: dict[str, Form | Tensor] = dict(self._vectors[f"layer.{index}"])
            for tensor in self._spec.layer_linears():
                block[tensor] = self._forms[f"layer.{index}.{tensor}"]
            self._layers.append(block)

    def _read(self, block: str) -> dict[str, Tensor]:
        return {key: view.clone() for key, view in self._store.read(block, self._buffer).items()}

    def _add(self, name: str) -> None:
        level = self._read(block_name(name, self._depth[name]))
        self._put(name, self._method_of(name).grow(self._forms[name], level))
        self._depth[name] += 1

    def _drop(self, name: str) -> None:
        self._put(name, self._method_of(name).shrink(self._forms[name]))
        self._depth[name] -= 1

    def _undo(self, name: str, level: int) -> None:
        if self._depth[name] != level:
            raise ParameterError("this level cannot come back now", value=block_name(name, level))
        self._lease.commit(self._count() + self._store.nbytes(block_name(name, level)))
        self._add(name)

    def _put(self, name: str, form: Form) -> None:
        self._forms[name] = form
        if name.startswith("layer."):
            _, index, tensor = name.split(".")
            self._layers[int(index)][tensor] = form

    def _method_of(self, name: str) -> Nested:
        method = self._method if name.startswith("layer.") else self._table_method
        assert isinstance(method, Nested)
        return method

    def _tiles(self, kind: str) -> list[str]:
        return [name for name in self._forms if name.startswith(f"{kind}.")]

    def _count(self) -> int:
        held = [*self._vectors.values(), *(form.tensors() for form in self._forms.values())]
        return sum(t.nbytes for tensors in held for t in tensors.values()) + self._buffer.nbytes
