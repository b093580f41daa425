"""What every conversation of a server begins with: cubes, the first of them with its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # messages are JSON values

from loci.core.clock import SystemClock
from loci.core.cube import Action, Caller, CubeHeader, MemoryKind, require
from loci.core.ports import Clock
from loci.errors import (
    ContextError,
    FormatError,
    MethodError,
    ParameterError,
    StorageError,
    StoreError,
)
from loci.run.batch import Batch
from loci.run.cubes import attach, form_of, text_in
from loci.store import cube_file
from loci.store.shelf import Shelf


class Beginning:
    """Cubes as the prefix of every conversation; their texts are told, one's keys are lent.

    What the first cube's keys and values say is what reading its text would give, bit for bit, so
    answers are the same where they had to make room and the text is read again.

    Args:
        cubes: ids on the shelf, or files.
        batch: the engine that answers.
        caller: who serves; the policies of the cubes decide.
        shares: others are answered too, so the cubes must be this caller's to share.

    Raises:
        PolicyError: if a cube may not be read, or not be shared.
        ParameterError: if one holds no text, or is an adapter.
        MethodError: if the engine's cache is not exact, and a cube brings keys and values.
        FingerprintError: if those are of another model, adapter, kind of number or template.
        ContextError: if the texts leave no room for a question.
    """

    def __init__(
        self,
        cubes: Sequence[str | Path],
        *,
        batch: Batch,
        shelf: Shelf | None,
        caller: Caller,
        shares: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._batch, self._clock = batch, clock or SystemClock()
        self._caller = caller
        self._actions = (Action.READ, Action.SHARE) if shares else (Action.READ,)
        self._attached = attach(cubes, shelf, caller=caller, clock=self._clock)
        self._ids: list[int] = []
        self._version: int | None = None
        for header in self.headers:
            self._permit(header)
        self._check_room()
        if self.headers and self.headers[0].kind is MemoryKind.ACTIVATION:
            if batch.stores.chain:
                raise MethodError(
                    f"keys and values of cube {self.headers[0].id} are exact; this plan's cache "
                    "is not",
                    value=batch.plan.kv,
                    way_out=f'serve with --kv "", or use its text: loci cube demote '
                    f"{self.headers[0].id}",
                )
            form = form_of(batch.plan, batch.spec, batch.adapters.reader)
            self._ids = self._attached.check(form, batch.tokenizer)
            self._version = cube_file.read_header(self._attached.paths[0]).version
        self.notes = list(self._attached.notes)

    @property
    def headers(self) -> Sequence[CubeHeader]:
        """The headers of the cubes, in the order in which their texts stand."""
        return self._attached.headers

    def told(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return messages with the cubes before them.

        Raises:
            StoreError: if a cube is gone, or tells something else than when the server began.
            PolicyError: if its time is over.
        """
        for path, text, header in zip(
            self._attached.paths, self._attached.texts, self.headers, strict=True
        ):
            _check_same(path, text, header.id)
            self._permit(header)
        return self._attached.told(self._batch.tokenizer, messages)

    def lend(self, scope: str) -> None:
        """See to it that requests of a scope find the first cube read.

        Where it was demoted, or made anew, since the server began, its text is read.
        """
        path = self._attached.paths[0]
        if self._ids and cube_file.read_header(path).version == self._version:
            self._batch.lend(path, self._ids, scope=scope)

    # -- private ------------------------------------------------------------------------------

    def _permit(self, header: CubeHeader) -> None:
        for action in self._actions:
            require(self._caller, header, action, self._clock.now())

    def _check_room(self) -> None:
        plan = self._batch.plan
        tokens = len(
            self._batch.tokenizer.chat(
                self._attached.told(self._batch.tokenizer, [{"role": "user", "content": ""}])
            )
        )
        context = plan.workload.context
        if tokens >= context - min(plan.workload.new_tokens, context // 2):
            raise ContextError(
                f"the cubes have {tokens:,} tokens; the plan's context holds {context:,}, of which "
                "a question and its answer need some",
                way_out=f"serve with --context {2 * tokens}, or with fewer cubes",
            )


def _check_same(path: Path, text: str, id: str) -> None:
    try:
        is_same = text_in(path) == text
    except (FormatError, ParameterError, StorageError):  # gone, emptied or damaged
        is_same = False
    if not is_same:
        raise StoreError(
            "a cube that every conversation here begins with is gone, or tells something else now",
            value=id,
            allowed="the cube as it was when the server began",
            way_out="start the server again, with the cube as it is now or without it",
        )
