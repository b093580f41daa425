"""The section of what is remembered: search, all of it, one with its history, links as a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any  # what a form sends

from nicegui import ui

from loci.core.item import Hit, Item, Turn
from loci.run.memory import Explained
from loci.server.graph import Graph, graph_of, layout
from loci.server.page.parts import (
    Node,
    button,
    choice,
    drawing,
    empty,
    form,
    heading,
    node,
    text_field,
)
from loci.server.page.remembered import Remembered, day, said
from loci.server.page.visit import Visit

KINDS = {
    "fact,note": "facts and notes",
    "turn": "messages",
    "relation,entity": "relations and names",
    "state": "state of agents",
}
PAGE = 40
WIDTH, HEIGHT, EDGE = 520, 380, 40
ACTIONS = {
    "add": "was learned",
    "revise": "was worded anew",
    "retire": "was no longer believed",
    "edit": "was edited",
    "link": "was linked",
    "undo": "a change was taken back",
    "redo": "a change was made again",
    "import": "was imported",
}


class Memories:
    """The browser of one user's memory."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._kinds = next(iter(KINDS))
        self._query = ""
        self._opened: str | None = None
        self._most = PAGE

    async def draw(self) -> None:
        """Draw the section."""
        visit = self._visit
        heading("Memory", "What is remembered, where it came from, and what became of it.")
        if not visit.has_memory:
            empty("This server has no memory. Start it with loci serve ... --memory FILE.")
            return
        with node("div", "card tools"):
            with form(self._find, "search wide"):
                text_field("Search by words or meaning", "query", type="search")
                node("button", "button primary", "Search", type="submit")
            choice("Show", KINDS, self._kinds, self._show_kinds)
            self._people = node("div", "people")
            with form(self._note, "search wide"):
                text_field("Something to remember", "text", required=True)
                node("button", "button", "Remember", type="submit")
        with node("div", "split"):
            self._list = node("div", "stack", aria_label="Memories")
            with node("div", "stack"):
                self._detail = node("div", "stack", aria_live="polite")
                with node("div", "card"):
                    node("h2", "", "How it hangs together")
                    self._graph = node("div")
        visit.on_memory.append(self._stale)
        visit.on_user.append(self._stale)
        self._is_stale = True

    async def shown(self) -> None:
        """Draw anew what may have changed since it was last shown."""
        if not self._visit.has_memory:
            return
        wanted, self._visit.wanted = self._visit.wanted, None
        if self._is_stale:
            await self._fill()
        if wanted is not None:
            await self._open(wanted)

    def _stale(self) -> None:
        self._is_stale = True

    async def _fill(self) -> None:
        visit = self._visit
        memory, user, kinds = visit.memory, visit.user, self._kinds.split(",")
        entries: Sequence[Item | Turn | Hit]
        if self._query:
            query = self._query
            found = await visit.ask(
                lambda: memory.search(query, user=user, kinds=kinds, limit=PAGE)
            )
            entries = found
        else:
            most = self._most + 1
            entries = await visit.ask(lambda: memory.list(user=user, kinds=kinds, limit=most))
        self._list.clear()
        with self._list:
            if self._query:
                with node("div", "row-between"):
                    node("p", "muted", f"{len(entries)} for “{self._query}”, best first")
                    button("Show all", self._all, kind="quiet")
            for entry in entries[: self._most]:
                Remembered(visit, entry, on_open=self._open)
            if not entries:
                empty("Nothing is remembered here yet." if not self._query else "Nothing fits.")
            if len(entries) > self._most:
                button("More", self._further)
        if self._is_stale:
            self._is_stale = False
            await self._draw_people()
            self._draw_graph(await visit.ask(lambda: graph_of(memory, user)))

    async def _draw_people(self) -> None:
        visit = self._visit
        self._people.clear()
        if visit.caller.user is not None:
            return
        known = await visit.ask(visit.memory.users)
        names = {name: name for name in sorted({*known, visit.user})}
        with self._people:
            choice("Whose", names, visit.user, self._choose)

    async def _choose(self, user: str) -> None:
        self._query, self._most, self._opened = "", PAGE, None
        self._detail.clear()
        self._visit.choose(user)
        await self._fill()

    async def _find(self, given: dict[str, str]) -> None:
        self._query = given.get("query", "").strip()
        await self._fill()

    async def _all(self) -> None:
        self._query = ""
        await self._fill()

    async def _further(self) -> None:
        self._most += PAGE
        await self._fill()

    async def _show_kinds(self, kinds: str) -> None:
        self._kinds = kinds if kinds in KINDS else next(iter(KINDS))
        await self._fill()

    async def _note(self, given: dict[str, str]) -> None:
        memory, user, text = self._visit.memory, self._visit.user, given.get("text", "")
        await self._visit.ask(lambda: memory.add(text, user=user))
        self._visit.tell("Remembered.")
        self._visit.changed()
        await self._fill()

    # -- one of them --------------------------------------------------------------------------

    async def _open(self, id: str) -> None:
        memory, user = self._visit.memory, self._visit.user
        found = await self._visit.ask(lambda: memory.explain(id, user=user))
        ends = {end for link in found.links for end in (link.source, link.target)} - {id}
        others = {}
        for end in ends:
            others[end] = await self._visit.ask(lambda end=end: memory.get(end, user=user))  # type: ignore[misc]
        self._opened = id
        self._detail.clear()
        with self._detail, node("div", "card detail") as card:
            node("h2", "", "One memory", tabindex="-1")
            Remembered(self._visit, found.about)
            if isinstance(found.about, Item):
                node("h3", "", "It rests on")
                said(found.sources)
                if not found.sources:
                    node("p", "muted", "a person's own words")
            self._draw_links(found, others)
            node("h3", "", "History" if isinstance(found.about, Item) else "What it led to")
            _history(found)
        ui.run_javascript(
            f"const c = document.getElementById('c{card.id}');"
            "c?.scrollIntoView({block: 'nearest'}); c?.querySelector('h2')?.focus();"
        )

    def _draw_links(self, found: Explained, others: dict[str, Any]) -> None:
        if not found.links:
            return
        node("h3", "", "Linked with")
        with node("ul", "links"):
            for link in found.links:
                end = link.target if link.source == found.about.id else link.source
                text = getattr(others.get(end), "text", end)
                with node("li"):
                    node("span", "muted", f"{link.relation}: ")
                    button(text, lambda end=end: self._open(end), kind="quiet")

    # -- all of them --------------------------------------------------------------------------

    def _draw_graph(self, graph: Graph) -> None:
        self._graph.clear()
        with self._graph:
            if len(graph.nodes) < 2:
                empty("A picture comes with the second memory.")
                return
            _picture(graph, self._open)
            drawing(
                '<ul class="legend"><li><span class="dot k-kv"></span>a memory</li>'
                '<li><span class="dot k-index"></span>a name that several share</li></ul>'
            )
            if graph.left_out:
                node("p", "muted small", f"{graph.left_out:,} older ones are not drawn.")


def build(visit: Visit) -> Callable[[], Any]:
    """Draw the section."""
    memories = Memories(visit)
    is_drawn = False

    async def shown() -> None:
        nonlocal is_drawn
        if not is_drawn:
            is_drawn = True
            await memories.draw()
        await memories.shown()

    return shown


# -- private ----------------------------------------------------------------------------------


def _history(found: Explained) -> None:
    with node("ol", "history"):
        for change in found.history:
            with node("li", "undone" if change.undone else ""):
                what = ACTIONS.get(change.action, change.action)
                node("p", "", f"{day(change.at)}: {what}, by {change.made_by}")
                after = None if change.after is None else change.after.text
                if after is not None:
                    node("p", "muted", f"“{after}”")
                if change.reason:
                    node("p", "muted small", change.reason)
        if not found.history:
            node("li", "muted", "nothing")


def _picture(graph: Graph, opens: Callable[[str], Any]) -> Node:
    """Draw the graph; its memories can be opened by mouse and by key."""
    places = {
        id: (EDGE + x * (WIDTH - 2 * EDGE), EDGE + y * (HEIGHT - 2 * EDGE))
        for id, (x, y) in layout(graph).items()
    }
    degree = {one.id: 0 for one in graph.nodes}
    for edge in graph.edges:
        degree[edge.source] += 1
        degree[edge.target] += 1
    label = f"{len(graph.nodes)} memories and names, {len(graph.edges)} links"
    with node(
        "svg", "graph", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="group", aria_label=label
    ) as svg:
        for edge in graph.edges:
            (x1, y1), (x2, y2) = places[edge.source], places[edge.target]
            classes = "edge faint" if edge.relation == "names" else "edge"
            with node("line", classes, x1=x1, y1=y1, x2=x2, y2=y2):
                node("title", "", edge.relation)
        for one in graph.nodes:
            x, y = places[one.id]
            size = 6 + min(8, 1.5 * math.sqrt(degree[one.id]))
            if one.kind == "name":
                with node("g", "spot name", transform=f"translate({x:.1f},{y:.1f})"):
                    node("circle", "", r=size)
                    node("text", "", one.label, y=-size - 5, text_anchor="middle")
                continue
            with node(
                "g",
                "spot",
                transform=f"translate({x:.1f},{y:.1f})",
                tabindex="0",
                role="button",
                aria_label=f"Open: {one.label[:80]}",
            ) as spot:
                node("circle", "", r=size)
                node("title", "", one.label)
            spot.on("click", lambda id=one.id: opens(id), args=[])
            spot.on("keydown.enter", lambda id=one.id: opens(id), args=[])
    return svg
