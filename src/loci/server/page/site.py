"""The frame of the page: who may see it, its sections, light and dark, and where it hangs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any  # routes and requests

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from loci.errors import missing_extra
from loci.server.feed import Feed
from loci.server.page import sessions
from loci.server.service import Service

try:
    from nicegui import core, ui

    from loci.server.page import (
        budget,
        chat,
        events,
        memories,
        methods,
        planner,
    )
    from loci.server.page.parts import Node, button, drawing, node
    from loci.server.page.visit import Visit
except ImportError as problem:
    raise missing_extra(str(problem.name), "server") from problem

PATHS, FOLDERS = ("/", "/favicon.ico"), ("/_nicegui/", "/_nicegui_ws/")
TITLE = "Loci"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page; `build` draws it when it is first shown."""

    name: str
    title: str
    icon: str
    build: Callable[[Visit], Callable[[], Any] | None]
    is_admins: bool = False


# Strokes of 24 x 24 pictures.
SECTIONS = (
    Section(
        name="budget",
        title="Budget",
        icon="M4 20V10M10 20V4M16 20v-7M22 20H2",
        build=budget.build,
        is_admins=True,
    ),
    Section(
        name="plan",
        title="Plan",
        icon="M4 7h9M19 7h1M4 17h2M12 17h8M16 4v6M9 14v6",
        build=planner.build,
        is_admins=True,
    ),
    Section(name="chat", title="Chat", icon="M4 5h16v11H10l-5 4v-4H4z", build=chat.build),
    Section(
        name="memory",
        title="Memory",
        icon="M6 3h12v18l-6-4-6 4z",
        build=memories.build,
    ),
    Section(
        name="methods",
        title="Methods",
        icon="M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
        build=methods.build,
    ),
    Section(
        name="events",
        title="Events",
        icon="M3 12h4l3 8 4-16 3 8h4",
        build=events.build,
        is_admins=True,
    ),
)
# Before anything is drawn, so that nothing flashes.
_THEME = """
(() => {
  const kept = localStorage.getItem('loci-theme');
  const dark = kept ? kept === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
})();
addEventListener('hashchange', () => {
  scrollTo(0, 0);
  emitEvent('section', location.hash.slice(1));
});
"""
_TURN = """() => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === 'dark' ? 'light' : 'dark';
  localStorage.setItem('loci-theme', root.dataset.theme);
}"""


def mount(app: FastAPI, service: Service) -> None:
    """Hang the page into an application. One page a process: NiceGUI has one application."""
    feed = Feed(service.batch)
    app.state.feed = feed

    @ui.page("/", title=TITLE, response_timeout=20.0)
    async def index(request: Request) -> Response | None:
        caller = request.scope["state"]["caller"]
        if caller is None:
            return HTMLResponse(sessions.door(""), headers={"Cache-Control": "no-store"})
        await _frame(
            Visit(service=service, caller=caller, feed=feed, user=caller.user or service.user)
        )
        return None

    ui.run_with(
        app,
        title=TITLE,
        favicon=_FAVICON,
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    app.router.lifespan_context = _quiet(app.router.lifespan_context)
    mounted = app.routes[-1]
    mounted.app = _Only(core.app)  # type: ignore[attr-defined]  # what run_with just mounted


def _quiet(inner: Any) -> Any:
    """Return a lifespan that keeps still while NiceGUI looks for its server.

    It asks every object of the process for its class, and some of them warn at that.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = await stack.enter_async_context(inner(app))
            yield state

    return lifespan


class _Only:
    """Passes on what belongs to the page; the rest is not found, in the form of its protocol."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in PATHS or path.startswith(FOLDERS):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            raise HTTPException(404)


_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="7" fill="#1f5f68"/><path d="M9 7v18h14M15 7v11h8" fill="none" stroke="#f6f3ea" '
    'stroke-width="3" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)


async def _frame(visit: Visit) -> None:
    """Draw everything that all sections share, and the first of them."""
    css = (resources.files("loci.server.page") / "style.css").read_text(encoding="utf-8")
    ui.add_head_html(f"<style>{css}</style><script>{_THEME}</script>")
    ui.on_exception(visit.failed)
    sections = [one for one in SECTIONS if not one.is_admins or visit.caller.role == "admin"]
    links: dict[str, Node] = {}
    places: dict[str, Node] = {}
    shows: dict[str, Callable[[], Any] | None] = {}
    with node("div", "shell"):
        node("a", "skip", "Skip to the content", href="#content")
        with node("div", "side"):
            with node("div", "brand"):
                drawing(_FAVICON, "mark")
                with node("div"):
                    node("strong", "", TITLE)
                    node("span", "muted", visit.service.model)
            with node("nav", "nav", aria_label="Sections"):
                for one in sections:
                    with node("a", "nav-link", href=f"#{one.name}") as link:
                        drawing(_icon(one.icon), "icon")
                        node("span", "", one.title)
                    links[one.name] = link
            with node("div", "side-foot"):
                turn = button("Light / dark", lambda: None, kind="quiet")
                turn.on("click", js_handler=_TURN)
                if visit.service.keys is not None:
                    with node("form", "", method="post", action=sessions.LEAVE):
                        node("button", "button quiet", "Leave", type="submit")
        with node("main", "main", id="content", tabindex="-1"):
            for one in sections:
                places[one.name] = node("section", "section", aria_label=one.title)
                places[one.name].set_visibility(False)
    visit.draw_toast()

    async def show(name: str) -> None:
        chosen = next((one for one in sections if one.name == name), sections[0])
        visit.section = chosen.name
        for other, place in places.items():
            place.set_visibility(other == chosen.name)
            links[other].classes(
                add="here" if other == chosen.name else None,
                remove=None if other == chosen.name else "here",
            )
            links[other].props["aria-current"] = "page" if other == chosen.name else "false"
            links[other].update()
        with places[chosen.name]:
            if chosen.name not in shows:
                shows[chosen.name] = chosen.build(visit)
            shown = shows[chosen.name]
            found = None if shown is None else shown()
            if inspect.isawaitable(found):
                await found

    def go(name: str) -> None:
        ui.run_javascript(f"location.hash = {name!r}")

    visit.show = go
    ui.on("section", lambda event: show(str(event.args)))
    await show(sections[0].name)
    ui.timer(
        0.05,
        lambda: ui.run_javascript(
            "if (location.hash.length > 1) emitEvent('section', location.hash.slice(1))"
        ),
        once=True,
    )


def _icon(strokes: str) -> str:
    return (
        '<svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true" fill="none" '
        'stroke="currentColor" stroke-width="1.8" stroke-linecap="round" '
        f'stroke-linejoin="round"><path d="{strokes}"/></svg>'
    )
