"""`loci.Memory`: the memory of `loci.run.memory` with this person's settings filled in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loci import config
from loci.models.late import default_embedder
from loci.run import memory as run_memory

if TYPE_CHECKING:
    from loci.core.ports import Clock, Embedder, Llm
    from loci.methods.recall.base import Recall


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
