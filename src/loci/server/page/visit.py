"""One open page: who looks at it, whose memory it shows, and how it says that something failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from nicegui import ui

from loci.errors import LociError
from loci.run.memory import Memory
from loci.server.feed import Feed
from loci.server.keys import Caller
from loci.server.page.parts import Node, button, node
from loci.server.refusals import Refusal
from loci.server.service import Service

Result = TypeVar("Result")
TOLD_S = 8.0
_log = logging.getLogger("loci.server")


@dataclass(kw_only=True)
class Visit:
    """What every section is given.

    Attributes:
        user: whose memory is shown.
        on_user: called when another user is chosen.
        on_memory: called when something was remembered, changed or forgotten.
        show: goes to a section by its name.
        section: the one that is shown.
        wanted: the memory that section is to open next.
    """

    service: Service
    caller: Caller
    feed: Feed
    user: str
    on_user: list[Callable[[], None]] = field(default_factory=list)
    on_memory: list[Callable[[], None]] = field(default_factory=list)
    show: Callable[[str], None] = lambda name: None
    section: str = ""
    wanted: str | None = None

    def __post_init__(self) -> None:
        self._toast: Node | None = None
        self._told = 0

    @property
    def has_memory(self) -> bool:
        """Whether this server remembers at all."""
        return self.service.open_memory is not None

    @property
    def memory(self) -> Memory:
        """The memory of the caller's tenant."""
        return self.service.memory(self.caller.tenant)

    async def ask(self, job: Callable[[], Result]) -> Result:
        """Do what takes time in a thread."""
        return await asyncio.to_thread(job)

    def choose(self, user: str) -> None:
        """Show another user's memory."""
        self.user = self.service.whose(self.caller, user)
        for tell in self.on_user:
            tell()

    def changed(self) -> None:
        """Tell the sections that what is remembered has changed."""
        for tell in self.on_memory:
            tell()

    # -- what is told -------------------------------------------------------------------------

    def draw_toast(self) -> None:
        """Make the place where things are told."""
        with node("div", "toast", role="status", aria_live="polite") as place:
            place.set_visibility(False)
            self._toast = place

    def tell(self, text: str, kind: str = "fine") -> None:
        """Say something at the foot of the page, for a while."""
        place = self._toast
        if place is None:
            return
        self._told += 1
        number = self._told
        place.clear()
        place.classes(remove="fine bad", add=kind)
        with place:
            node("span", "", text)
            button("Close", lambda: place.set_visibility(False), kind="quiet")
        place.set_visibility(True)

        def hide() -> None:
            if self._told == number:
                place.set_visibility(False)

        if kind == "fine":
            with place:
                ui.timer(TOLD_S, hide, once=True)

    def failed(self, error: Exception) -> None:
        """Say what went wrong; what nobody foresaw is logged, and told without details."""
        if isinstance(error, Refusal):
            self.tell(error.message, "bad")
        elif isinstance(error, LociError):
            self.tell(str(error), "bad")
        else:
            _log.error("the page failed", exc_info=error)
            self.tell("internal error; the server's log has more", "bad")
