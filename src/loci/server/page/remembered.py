"""One remembered thing on the page, with edit, undo and forget in place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any  # what a form sends

from loci.core.item import Hit, Item, Source, Turn
from loci.server.page.parts import button, focus, form, node, text_field
from loci.server.page.visit import Visit
from loci.store.base import Erased

SHOWN = 3  # messages shown under a memory
SIGNS = {"words": "words", "meaning": "meaning", "entities": "names", "time": "time"}


class Remembered:
    """Draws one item, turn or hit, and changes it in its place.

    Args:
        entry: what is shown.
        on_open: called with the id when a person wants to see all of it; None offers no such way.
    """

    def __init__(
        self,
        visit: Visit,
        entry: Item | Turn | Hit,
        *,
        on_open: Callable[[str], Any] | None = None,
    ) -> None:
        self._visit, self._entry, self._on_open = visit, entry, on_open
        self._user = visit.user
        self.place = node("article", "memory")
        self._draw()

    @property
    def _is_turn(self) -> bool:
        entry = self._entry
        return isinstance(entry, Turn) or (isinstance(entry, Hit) and entry.kind == "turn")

    @property
    def _text(self) -> str:
        return self._entry.content if isinstance(self._entry, Turn) else self._entry.text

    def _draw(self) -> None:
        self.place.clear()
        with self.place:
            node("p", "memory-text", self._text)
            with node("div", "memory-foot"):
                node("p", "muted small", described(self._entry))
                self._foot = node("div", "actions")
        self._actions()

    def _actions(self) -> None:
        short = self._text[:60]
        self._foot.clear()
        with self._foot:
            if self._on_open is not None:
                opens, id = self._on_open, self._entry.id
                button("Open", lambda: opens(id), kind="quiet", label=f"Open: {short}")
            if not self._is_turn:
                button("Edit", self._edit, kind="quiet", label=f"Edit: {short}")
                button("Undo", self._undo, kind="quiet", label=f"Undo the last change: {short}")
            button("Forget", self._doubt, kind="quiet", label=f"Forget: {short}")

    # -- edit ---------------------------------------------------------------------------------

    def _edit(self) -> None:
        self.place.clear()
        with self.place, form(self._save):
            field = text_field(
                "New text", "text", value=self._text, tag="textarea", rows="2", required=True
            )
            with node("div", "actions"):
                node("button", "button primary", "Save", type="submit")
                button("Cancel", self._draw, kind="quiet")
        focus(field)

    async def _save(self, given: dict[str, str]) -> None:
        memory, user, id = self._visit.memory, self._user, self._entry.id
        text = given.get("text", "")
        self._entry = await self._visit.ask(
            lambda: memory.edit(id, text, user=user, reason="on the page")
        )
        self._draw()
        self._visit.tell("Written anew; its history has the old text.")
        self._visit.changed()

    async def _undo(self) -> None:
        memory, user, id = self._visit.memory, self._user, self._entry.id
        await self._visit.ask(lambda: memory.undo(id, user=user))
        found = await self._visit.ask(lambda: memory.get(id, user=user))
        self._entry = found
        self._draw()
        is_gone = isinstance(found, Item) and not found.is_live
        self._visit.tell("Undone; it is no longer believed." if is_gone else "Undone.")
        self._visit.changed()

    # -- forget -------------------------------------------------------------------------------

    async def _doubt(self) -> None:
        """Say what would go, and ask."""
        would = await self._erased(dry_run=True)
        self._foot.clear()
        with self._foot, node("div", "doubt", role="group", aria_label="Forget this?"):
            node("p", "", f"Forget for good: {reach(would)}?")
            with node("div", "actions"):
                sure = button("Forget", self._forget, kind="danger", label="Forget it for good")
                button("Keep", self._actions, kind="quiet")
        focus(sure)

    async def _erased(self, *, dry_run: bool) -> Erased:
        visit, user, id = self._visit, self._user, self._entry.id
        return await visit.ask(
            lambda: visit.service.forget(visit.caller, id, user=user, dry_run=dry_run)
        )

    async def _forget(self) -> None:
        went = await self._erased(dry_run=False)
        self.place.clear()
        self.place.classes(add="gone")
        with self.place:
            node("p", "muted", f"Forgotten: {reach(went)}.")
            proof = "none of it is left in the files" if went.clean else "some of it is still there"
            node("p", "muted small", f"Looked for in the bytes of the store: {proof}.")
            for what in went.out_of_reach:
                node("p", "muted small", f"Out of reach: {what}")
        self._visit.changed()


def reach(erased: Erased) -> str:
    """Return in words what an erasure takes."""
    parts = []
    for count, one in ((len(erased.items), "memory"), (len(erased.turns), "message")):
        if count:
            many = "memories" if one == "memory" else "messages"
            parts.append(f"{count} {one if count == 1 else many}")
    if erased.cut:
        count = sum(map(len, erased.cut.values()))
        parts.append(f"{count} sentence{'' if count == 1 else 's'} of other messages")
    return ", ".join(parts) or "nothing"


def described(entry: Item | Turn | Hit) -> str:
    """Return in one line what kind of thing it is, from when, and why it was found."""
    if isinstance(entry, Turn):
        return f"{entry.name or entry.role} said, {day(entry.time)}"
    parts = [entry.kind] if entry.kind not in ("fact", "turn") else []
    if isinstance(entry, Item):
        if entry.recorded_at is not None:
            parts.append(f"learned {day(entry.recorded_at)}")
        if entry.made_by != "rules":
            parts.append(f"by {entry.made_by}")
        if not entry.is_live:
            parts.append("no longer believed")
        if entry.version > 1:
            parts.append(f"version {entry.version}")
        return " · ".join(parts)
    if entry.sources:
        parts.append(f"said {day(entry.sources[0].time)}")
    signs = sorted(entry.why.items(), key=lambda pair: -pair[1])[:2]
    found = ", ".join(SIGNS.get(name, name) for name, part in signs if part > 0)
    return " · ".join([*parts, *([f"found by {found}"] if found else [])])


def said(sources: tuple[Source, ...]) -> None:
    """Draw the messages that something rests on."""
    for source in sources[:SHOWN]:
        with node("blockquote", "said"):
            node("p", "", source.content)
            node("p", "muted small", f"{source.name or source.role}, {day(source.time)}")
    if len(sources) > SHOWN:
        node("p", "muted small", f"and {len(sources) - SHOWN} more messages")


def day(time: datetime) -> str:
    """Return a day as people write it, with the year."""
    return f"{time.day} {time:%B %Y}"
