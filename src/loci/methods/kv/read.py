"""The role Read: a history that does not fit is read into several small caches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from loci.core.cost import Cost
from loci.core.spec import ModelSpec, Workload
from loci.errors import FormatError
from loci.methods.kv.base import KVMethod, Select

if TYPE_CHECKING:
    from torch import Tensor

    from loci.core.ports import Artefact

# Shapes: E caches, n texts, w width of a vector.


class Reader(Protocol):
    """Reads tokens into caches that never hold more than they may, and puts them away."""

    spec: ModelSpec

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return vectors of length 1, float32 [n, w]."""
        ...

    def read(
        self,
        name: str,
        select: Select,
        ids: Sequence[int],
        tokens: int,
        artefact: Artefact | None = None,
    ) -> None:
        """Read `ids` block by block into an empty cache, and put it away under a name.

        Args:
            select: what says after each block which tokens stay.
            tokens: what each head of a layer keeps, on average.
            artefact: what was prepared for `select`, where it needs that.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheSet:
    """Caches of one history, and what they are found by.

    Attributes:
        centroids: [E, w], of length 1.
        names: of the caches, as the reader knows them.
        selects: what chose their tokens; who reads on into a cache goes on with it.
        segments: how many texts the history had.
        of_segment: the cache that each of them belongs to.
    """

    centroids: Tensor
    names: tuple[str, ...]
    selects: tuple[Select, ...]
    segments: int
    of_segment: tuple[int, ...] = field(default=())

    def facts(self) -> Mapping[str, object]:
        """Return what is no tensor, as JSON."""
        return {
            "names": list(self.names),
            "selects": [str(select) for select in self.selects],
            "segments": self.segments,
            "of_segment": list(self.of_segment),
        }

    def check(self) -> None:
        """Raise FormatError unless the parts fit together."""
        if not len(self.names) == len(self.selects) == self.centroids.shape[0] > 0:
            raise FormatError("a set of caches has parts of unequal number", value=len(self.names))


@dataclass(frozen=True, kw_only=True)
class Route:
    """Which cache answers a question.

    Attributes:
        cache: its number in the set; the nearest one also where it is too far.
        similarity: the question's to the cache's centroid, -1 to 1.
        is_far: it is like none of them, and should be answered from the text instead.
    """

    cache: int
    similarity: float
    is_far: bool = False


class Read(KVMethod):
    """Reads a history into caches under a budget, and finds the cache for a question."""

    def predict(self, spec: ModelSpec, load: Workload, budget_bytes: int) -> Cost:
        """Return the bytes of the one cache at work; those put away come on top."""
        return Cost(held={"dram": budget_bytes}, freed={}, loss=None)

    @abstractmethod
    def segments(self, history: Sequence[str]) -> list[str]:
        """Return the texts that a history is parted into."""

    @abstractmethod
    def read(
        self,
        reader: Reader,
        history: Sequence[str],
        tokens: int,
        artefact: Artefact | None = None,
    ) -> CacheSet:
        """Return caches of `tokens` each of the same history, which were put away by the reader.

        Args:
            history: utterances in the order they were said, "Ada: I moved to Oslo."
            artefact: what was prepared, for parameters that need it.

        Raises:
            ContextError: if the model cannot read so many tokens.
            ParameterError: if there is nothing to read.
        """

    @abstractmethod
    def route(self, question: Tensor, held: CacheSet) -> Route:
        """Return the cache for a question, whose vector [w] is of length 1."""
