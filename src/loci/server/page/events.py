"""The section of what happens: the same stream that log, metrics and tests read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from html import escape

from nicegui import ui

from loci.server.feed import Seen
from loci.server.page.parts import choice, drawing, heading, node, switch, table
from loci.server.page.visit import Visit
from loci.units import format_bytes

EVERY_S = 0.5
SHOWN = 80
PREFIXES = {
    "": "everything",
    "run.": "requests",
    "ledger.": "bytes taken and given back",
    "weights.": "weights read",
}


def build(visit: Visit) -> Callable[[], None]:
    """Draw the section."""
    prefix, is_live, seen = "", True, -1
    heading("Events", "What happens, as it happens; newest first.")
    with node("div", "card tools"):

        def choose(value: str) -> None:
            nonlocal prefix
            prefix = value if value in PREFIXES else ""
            draw(force=True)

        def live(value: bool) -> None:
            nonlocal is_live
            is_live = bool(value)

        choice("Show", PREFIXES, "", choose)
        switch("Live", True, live)
    rows = drawing()

    def draw(force: bool = False) -> None:
        nonlocal seen
        is_old = not is_live or visit.feed.last == seen or visit.section != "events"
        if is_old and not force:
            return
        seen = visit.feed.last
        rows.set_content(_rows(visit.feed.since(0, prefix)))

    ui.timer(EVERY_S, draw)
    return lambda: draw(force=True)


def _rows(seen: list[Seen]) -> str:
    newest = seen[-SHOWN:][::-1]
    if not newest:
        return '<p class="empty">Nothing happened yet.</p>'
    cells = [
        (
            time.strftime("%H:%M:%S", time.localtime(one.at_s)),
            f"<code>{escape(one.event.name)}</code>",
            f"<code>{escape(_plain(one))}</code>",
        )
        for one in newest
    ]
    return table(("time", "event", "what"), cells, "Events")


def _plain(one: Seen) -> str:
    parts = []
    for name, value in one.event.data.items():
        if name == "nbytes":
            parts.append(format_bytes(value))
            continue
        text = f"{value:.3g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        parts.append(f"{name} {text.strip(chr(34))}")
    return ", ".join(parts)
