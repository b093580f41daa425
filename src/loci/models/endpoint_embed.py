"""Any OpenAI-compatible server as an embedder: texts to unit vectors over HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any  # JSON values

from loci.errors import EndpointError
from loci.models.endpoint import Endpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BATCH = 64  # texts of one request; servers limit how many they take


class EndpointEmbedder(Endpoint):
    """Embeddings of a server. Satisfies `loci.core.ports.Embedder`.

    Args:
        url: the base, such as "http://localhost:11434/v1".
        model: the name the server knows.
        key: sent as a bearer token.
    """

    @property
    def fingerprint(self) -> str:
        """Names what made the vectors: the model and who runs it."""
        return f"{self.name}@{self.url}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [n, width], rows of length 1.

        Raises:
            EndpointError: if the server does not answer, or not with one vector a text.
        """
        import numpy as np

        rows: list[Any] = []
        for start in range(0, len(texts), _BATCH):
            part = list(texts[start : start + _BATCH])
            answer = self._post("embeddings", {"model": self.name, "input": part})
            rows += self._read_vectors(answer, len(part))
        if len({len(row) for row in rows}) > 1:
            raise EndpointError(
                f"{self.url} answered with vectors of different widths",
                value=sorted({len(row) for row in rows}),
                allowed="one width",
            )
        width = len(rows[0]) if rows else 0
        vectors = np.asarray(rows, np.float32).reshape(len(texts), width)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(length > 0, length, 1)).astype(np.float32)

    def _read_vectors(self, answer: Any, count: int) -> list[list[float]]:
        try:
            data = sorted(answer["data"], key=lambda one: one["index"])
            vectors = [[float(number) for number in one["embedding"]] for one in data]
        except (KeyError, TypeError, ValueError):
            vectors = []
        if len(vectors) != count or not all(vectors):
            raise EndpointError(
                f"{self.url} did not answer in the form of embeddings",
                value=self._shown(json.dumps(answer)),
                allowed=f'{{"data": [{{"index": 0, "embedding": [...]}}]}} for {count} texts',
                way_out="check that the server has an embedding model of this name",
            )
        return vectors
