"""The default embedder, loaded (and torch with it) when the first text comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any  # arrays, whose library is what is put off

EMBEDDER = "minilm"


class LateEmbedder:
    """The embedder in a folder, loaded (and torch with it) at the first text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: Any = None  # a MiniLM, whose import is what is put off

    @property
    def fingerprint(self) -> str:
        """Names what made the vectors."""
        return str(self._embedder().fingerprint)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return int(self._embedder().nbytes)

    def encode(self, texts: Sequence[str]) -> Any:
        """Return float32 [n, width], rows of length 1."""
        return self._embedder().encode(texts)

    def _embedder(self) -> Any:
        if self._loaded is None:
            from loci.models.embed import MiniLM

            self._loaded = MiniLM(self._folder)
        return self._loaded


def default_embedder(models_dir: Path) -> LateEmbedder | None:
    """Return the default embedder if it was pulled."""
    folder = models_dir / EMBEDDER
    return LateEmbedder(folder) if (folder / "model.safetensors").is_file() else None
