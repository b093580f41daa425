"""The embedder of a benchmark: MiniLM where it is, each text embedded once for all rivals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loci.core.ports import Array, Embedder

_BATCH = 64


class Once:
    """An embedder that keeps every vector it made, so that rivals in one run share them."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.fingerprint = getattr(inner, "fingerprint", type(inner).__qualname__)
        self._known: dict[str, Array] = {}

    def encode(self, texts: Sequence[str]) -> Array:
        """Return float32 [texts, width]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        new.sort(key=len)  # texts of like length share a batch without much padding
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            self._known.update(zip(part, self.inner.encode(part), strict=True))
        if not texts:
            return np.asarray(self.inner.encode([]), np.float32)
        return np.stack([self._known[text] for text in texts]).astype(np.float32, copy=False)


def embedder(folder: Path) -> Embedder | None:
    """Return MiniLM from the models folder, or None where it was not pulled."""
    if not (folder / "minilm" / "model.safetensors").is_file():
        return None
    from loci.models.embed import MiniLM

    return Once(MiniLM(folder / "minilm"))
