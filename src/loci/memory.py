"""`loci.Memory`: the memory of `loci.run.memory` with this person's settings filled in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from loci import config
from loci.errors import ConfigError, ParameterError
from loci.models.late import default_embedder
from loci.run import memory as run_memory
from loci.run.audited import beside
from loci.run.llm import LateLlm, LocalLlm
from loci.run.threads import AsyncFace, in_thread

if TYPE_CHECKING:
    from loci.core.ports import Clock, Embedder, Llm
    from loci.methods.recall.base import Recall
    from loci.run.engine import Session
    from loci.store.audit import Audit
    from loci.text.ladder import Rung

SLM_CONTEXT = 4096
"""Tokens of instruction, messages and reply together, where the configuration names none."""


class Memory(run_memory.Memory):
    """A memory in a file; of one tenant, of any number of users.

    Args:
        url: a path or a URL; None takes the configured memory file.
        embedder: any object with `encode(texts)`; "default" is MiniLM where it was pulled, loaded
            when a search first needs it; None searches by words.
        recall: the method that keeps the memory, or its name; None takes the configured one.
        backend: "rules", "slm" or "endpoint"; None takes the configured one, or where none is
            configured "slm" for a method with experts (memlora), which are then asked.
        llm: the model of that back end; if not given, the configured model, opened when it is first
            asked, or the configured endpoint.
        fall_back: whether a model that fails gives way to rules; None takes the configuration's.
        tz: zone of times that come without one; None takes the configured zone.
        audit: "beside" goes on with the audit beside the file, if one was begun there.

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
        recall: Recall | str | None = None,
        backend: Rung | None = None,
        llm: Llm | None = None,
        fall_back: bool | None = None,
        clock: Clock | None = None,
        tz: str | None = None,
        tenant: str = "local",
        extract: bool = True,
        busy_s: float = 10.0,
        audit: Audit | Literal["beside"] | None = "beside",
    ) -> None:
        settings = config.load()
        if url is None:
            url = settings.memory_file
            if "://" not in url:
                Path(url).expanduser().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        needs = _needs_experts(recall if recall is not None else settings.recall)
        chosen: Rung = backend if backend is not None else cast("Rung", settings.backend)
        if needs and backend is None and settings.sources["backend"] == "default":
            chosen = "slm"
        self._opened = _model(chosen, settings, experts=needs) if llm is None else None
        super().__init__(
            url,
            embedder=default_embedder(settings.models_dir) if embedder == "default" else embedder,
            recall=recall if recall is not None else settings.recall,
            backend=chosen,
            llm=llm if llm is not None else self._opened,
            fall_back=fall_back if fall_back is not None else settings.fall_back,
            clock=clock,
            tz=tz if tz is not None else settings.timezone,
            tenant=tenant,
            extract=extract,
            busy_s=busy_s,
            audit=beside(url, clock=clock) if audit == "beside" else audit,
        )

    def close(self) -> None:
        """Close the file, and give back what a model of the configuration holds."""
        super().close()
        if isinstance(self._opened, LateLlm):
            self._opened.close()


def _needs_experts(recall: Recall | str) -> bool:
    """Return whether a method has experts beside a model, made by `loci methods prepare`."""
    from loci.core.method import Need
    from loci.methods import catalogue

    method = catalogue.find(recall, "recall") if isinstance(recall, str) else recall
    return Need.ARTEFACT in method.about.needs


def _model(backend: str, settings: config.Config, *, experts: bool) -> Llm | None:
    """Return the configured model of a back end, not opened yet; with its experts if they are."""
    if backend == "endpoint":
        from loci.models.endpoint import Endpoint

        for name in ("endpoint", "endpoint_model"):
            if getattr(settings, name) is None:
                raise ConfigError(
                    f"the back end endpoint needs {name}",
                    way_out=f"loci config set {name} ..., or pass llm=",
                )
        url, model = settings.endpoint or "", settings.endpoint_model or ""
        return Endpoint(url, model, settings.endpoint_key)
    if backend != "slm":
        return None

    def opens() -> Session:
        from loci.plan import plan
        from loci.run import engine

        solved = plan(
            settings.model,
            dram=settings.dram,
            gpu=settings.gpu,
            disk=settings.disk,
            process=settings.process,
            context=settings.context or SLM_CONTEXT,
            folder=settings.models_dir,
            cache=settings.cache_dir,
        )
        return engine.open(solved, folder=settings.models_dir)

    if experts:
        from loci.run.experts import late_experts

        return late_experts(settings.model, settings.models_dir, opens)
    return LateLlm(settings.model, lambda: LocalLlm(opens()))


class AsyncMemory(AsyncFace):
    """`Memory` for programs with an event loop: the same arguments, and each method is awaited.

    Takes what `Memory` takes, or an open `Memory`. Threads do the work; when an await returns, the
    work is done.

    >>> import asyncio, loci, pathlib, tempfile
    >>> async def remember(folder):
    ...     async with loci.AsyncMemory(pathlib.Path(folder, "ada.db"), embedder=None) as memory:
    ...         await memory.add("I'm allergic to nuts", user="ada")
    ...         return await memory.search("allergic to what?", user="ada", limit=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hits = asyncio.run(remember(folder))
    >>> "nuts" in hits[0].text
    True
    """

    inner: run_memory.Memory

    def __init__(self, url: str | Path | run_memory.Memory | None = None, **settings: Any) -> None:
        opened = isinstance(url, run_memory.Memory)
        self.inner = url if isinstance(url, run_memory.Memory) else Memory(url, **settings)
        if opened and settings:
            raise ParameterError("an open memory has its settings", value=sorted(settings))

    add = in_thread(run_memory.Memory.add)
    add_many = in_thread(run_memory.Memory.add_many)
    note = in_thread(run_memory.Memory.note)
    search = in_thread(run_memory.Memory.search)
    answer = in_thread(run_memory.Memory.answer)
    explain = in_thread(run_memory.Memory.explain)
    get = in_thread(run_memory.Memory.get)
    list = in_thread(run_memory.Memory.list)
    owner_of = in_thread(run_memory.Memory.owner_of)
    users = in_thread(run_memory.Memory.users)
    counts = in_thread(run_memory.Memory.counts)
    edit = in_thread(run_memory.Memory.edit)
    retire = in_thread(run_memory.Memory.retire)
    links = in_thread(run_memory.Memory.links)
    history = in_thread(run_memory.Memory.history)
    changes = in_thread(run_memory.Memory.changes)
    undo = in_thread(run_memory.Memory.undo)
    redo = in_thread(run_memory.Memory.redo)
    forget = in_thread(run_memory.Memory.forget)
    forget_all = in_thread(run_memory.Memory.forget_all)
    export = in_thread(run_memory.Memory.export)
    import_ = in_thread(run_memory.Memory.import_)
    agent = in_thread(run_memory.Memory.agent)
    embed_beside = in_thread(run_memory.Memory.embed_beside)
    wait = in_thread(run_memory.Memory.wait)
    reembed = in_thread(run_memory.Memory.reembed)
    check_integrity = in_thread(run_memory.Memory.check_integrity)
