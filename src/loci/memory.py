"""`loci.Memory`: the memory of `loci.run.memory` with this person's settings filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loci import config
from loci.run import memory as run_memory

if TYPE_CHECKING:
    from loci.core.ports import Clock, Embedder, Llm
    from loci.methods.recall.base import Recall

EMBEDDER = "minilm"


class Memory(run_memory.Memory):
    """A memory in a file; of one tenant, of any number of users.

    Args:
        url: a path or a URL; None takes the configured memory file.
        embedder: any object with `encode(texts)`; "default" is MiniLM where it was pulled, loaded
            when a search first needs it; None searches by words.
        tz: zone of times that come without one; None takes the configured zone.

    >>> import loci, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with loci.Memory(pathlib.Path(folder, "ada.db"), embedder=None) as memory:
    ...         _ = memory.add("I'm allergic to nuts", user="ada")
    ...         hits = memory.search("allergic to what?", user="ada", limit=1)
    >>> "nuts" in hits[0].text
    True
    """

    def __init__(
        self,
        url: str | Path | None = None,
        *,
        embedder: Embedder | Literal["default"] | None = "default",
        recall: Recall | None = None,
        llm: Llm | None = None,
        clock: Clock | None = None,
        tz: str | None = None,
        tenant: str = "local",
        extract: bool = True,
        busy_s: float = 10.0,
    ) -> None:
        settings = config.load()
        if url is None:
            url = settings.memory_file
            if "://" not in url:
                Path(url).expanduser().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().__init__(
            url,
            embedder=default_embedder(settings.models_dir) if embedder == "default" else embedder,
            recall=recall,
            llm=llm,
            clock=clock,
            tz=tz if tz is not None else settings.timezone,
            tenant=tenant,
            extract=extract,
            busy_s=busy_s,
        )


class LateEmbedder:
    """The embedder in a folder, loaded (and torch with it) at the first text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: Any = None  # a MiniLM, whose import is what is put off

    @property
    def fingerprint(self) -> str:
        """Names what made the vectors."""
        return str(self._embedder().fingerprint)

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
