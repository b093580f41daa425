"""What methods need from outside, as Protocols; `run` supplies the real things.

Tensors are torch tensors; they are typed here as Any because core knows the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from loci.core.agent import Action, Ran, Record, Screen
from loci.core.spec import ModelSpec

Tensor = Any
Array = Any  # numpy


class Clock(Protocol):
    """Time as an argument."""

    def now(self) -> datetime:
        """Return the time with its zone."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Text to unit vectors. Only `encode` is required of strangers' embedders."""

    def encode(self, texts: Sequence[str]) -> Array:
        """Return float32 [n, width], rows of length 1."""
        ...


@runtime_checkable
class Llm(Protocol):
    """A language model for memory operations: local, an endpoint, or scripted."""

    name: str

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the reply; `schema` asks for JSON of that form."""
        ...

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the text takes."""
        ...


class StoreView(Protocol):
    """What a recall method may read: items of one scope, and search over them."""

    def neighbours(self, text: str, limit: int) -> Sequence[Any]:
        """Return the live items most like `text`, best first."""
        ...

    def by_slot(self, subject: str, predicate: str) -> Sequence[Any]:
        """Return live items about the same subject and predicate."""
        ...


class Prefiller(Protocol):
    """Runs tokens through the model against a KV store, block by block."""

    def prefill(self, ids: Sequence[int]) -> None:
        """Append tokens; no logits are computed."""
        ...

    def probe(self, ids: Sequence[int]) -> Iterator[Any]:
        """Run tokens against the store without appending; yield what each layer saw (`Seen`)."""
        ...


class BlockReader(Protocol):
    """Named blocks of tensors on a tier."""

    def names(self) -> Sequence[str]:
        """Return the blocks in the order of execution."""
        ...

    def nbytes(self, name: str) -> int:
        """Return the stored bytes of a block, padding excluded."""
        ...

    def read(self, name: str, into: Tensor | None = None) -> Mapping[str, Tensor]:
        """Return the block's tensors, read into `into` (uint8) where given."""
        ...


class Workspace(Protocol):
    """Scratch memory under the ledger."""

    def take(self, name: str, shape: Sequence[int], dtype: Any) -> Tensor:
        """Return a tensor of that shape, reused under the same name."""
        ...


class Sandbox(Protocol):
    """Runs Python code that is not ours: no network, no other program, limits on time and bytes."""

    def run(self, files: Mapping[str, str], command: Sequence[str], timeout_s: float) -> Ran:
        """Return exit code, output and files.

        Args:
            files: {relative path: text}, all that the code finds in its folder.
            command: ("FILE.py", arguments...) or ("-m", MODULE, arguments...).
        """
        ...


class Device(Protocol):
    """Something with screens, such as a phone."""

    def look(self) -> Screen:
        """Return what is shown now."""
        ...

    def do(self, action: Action) -> None:
        """Carry out an action; what came of it is seen by looking."""
        ...


class Records(Protocol):
    """The state of one agent. What `put` returned for is kept, whatever happens afterwards."""

    def get(self, key: str) -> Record | None:
        """Return the record of a key, None if there is none or it was dropped."""
        ...

    def all(self, prefix: str = "") -> Mapping[str, Record]:
        """Return the records whose keys begin like this, in the order they were first put."""
        ...

    def put(self, records: Sequence[Record], why: str, *, drop: Sequence[str] = ()) -> None:
        """Write records and drop others, all together: one step of the history, undone as one.

        Raises:
            ParameterError: if a key or a value cannot be kept.
            BusyError: if somebody else changed one of them since it was read; nothing is written.
        """
        ...

    def past(self, key: str) -> Sequence[Record | None]:
        """Return what a key held, oldest first, the present last; None where it was dropped."""
        ...


class Group(Protocol):
    """Workers that reduce and broadcast together."""

    rank: int
    world: int

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        ...

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Return the tensor of rank `source`."""
        ...


class Artefact(Protocol):
    """Something prepared for one model: tensors and facts, refused on mismatch."""

    @property
    def method(self) -> str:
        """The method, with its parameters."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the model it was made for."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was found out."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON values beside it."""
        ...


class Lab(Protocol):
    """What `prepare` works with: a model taken apart, calibration text, a place for results."""

    spec: ModelSpec

    def texts(self) -> Sequence[str]:
        """Return texts to look at the model with."""
        ...

    def activations(self, texts: Sequence[str], taps: Sequence[str]) -> AbstractContextManager[Any]:
        """Run texts and collect what the taps see."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Return the tokens of a text."""
        ...

    def attention(self, ids: Sequence[int], last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, by layer, what the last tokens give to all, [H, last, T], and values [K, T, D]."""
        ...

    def weights(self, name: str) -> Tensor:
        """Return one weight in float32, shape [out, in]."""
        ...

    def folder(self) -> Path:
        """Return where the artefact may be written."""
        ...

    def artefact(
        self, method: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
    ) -> Artefact:
        """Return tensors and facts as what was prepared by a method for this model."""
        ...
