"""The section of published methods: each with its claim, what was measured, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any  # what a form sends

from nicegui import ui

from loci.core.card import Card, Measurement, Verdict, load_card
from loci.core.method import Kind, Method
from loci.methods import catalogue
from loci.server.page.parts import choice, drawing, empty, heading, node, table, text_field
from loci.server.page.plots import pictures
from loci.server.page.visit import Visit
from loci.units import format_bytes

TITLES = {
    Kind.KV: "KV cache",
    Kind.QUANT: "Weights",
    Kind.OFFLOAD: "Placement over tiers",
    Kind.RECALL: "Text memory",
    Kind.ARCH: "Architectures",
    Kind.TRAIN: "Training",
    Kind.SCHED: "Scheduling",
    Kind.COST: "Cost models",
}
BADGES = {Verdict.REPRODUCED: "good", Verdict.IN_PART: "part", Verdict.NOT_REPRODUCED: "bad"}
Entry = tuple[type[Method], Card | None]


class Methods:
    """The list of methods, and one of them."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._kind = self._text = ""
        self._entries: list[Entry] = []

    async def draw(self) -> None:
        """Draw the section."""
        heading("Methods", "Published methods, what each claims, and what was measured here.")
        self._entries = await self._visit.ask(_all)
        kinds = {"": "all kinds"} | {
            kind.value: TITLES[kind]
            for kind in Kind
            if any(method.about.kind is kind for method, _ in self._entries)
        }
        with node("div", "card tools"):
            text_field("Find", "find", on_input=self._find, type="search")
            choice("Kind", kinds, "", self._of_kind)
        with node("div", "split"):
            self._list = node("div", "stack tight")
            self._detail = node("div", "stack", aria_live="polite")
        self._fill()
        with self._detail:
            empty("Choose a method to see its card.")

    def _find(self, text: str) -> None:
        self._text = text.strip().lower()
        self._fill()

    def _of_kind(self, kind: str) -> None:
        self._kind = kind
        self._fill()

    def _fill(self) -> None:
        self._list.clear()
        kind = None
        with self._list:
            for method, card in self._entries:
                about = method.about
                words = f"{about.name} {about.idea} {about.paper}".lower()
                if (self._kind and about.kind.value != self._kind) or self._text not in words:
                    continue
                if about.kind is not kind:
                    kind = about.kind
                    node("h2", "kind-title", TITLES[kind])
                entry = (method, card)
                with node("button", "method-row", type="button") as row:
                    with node("span", "row-between"):
                        node("b", "", about.name)
                        _badge(card)
                    node("span", "muted small", about.idea)
                row.on("click", lambda entry=entry: self._open(entry), args=[])
            if kind is None:
                empty("No method fits.")

    def _open(self, entry: Entry) -> None:
        method, card = entry
        about = method.about
        self._detail.clear()
        with self._detail, node("div", "card detail") as place:
            with node("div", "row-between"):
                node("h2", "", about.name, tabindex="-1")
                _badge(card)
            node("p", "", about.idea)
            node("p", "muted small", f"{TITLES[about.kind]} · {about.paper}")
            if about.reconstruction:
                node("p", "muted small", f"Our own reconstruction: {about.reconstruction}")
            if card is None:
                empty("It has no card yet.")
            else:
                drawing(card_html(card))
        ui.run_javascript(
            f"const c = document.getElementById('c{place.id}');"
            "c?.scrollIntoView({block: 'nearest'}); c?.querySelector('h2')?.focus();"
        )


def build(visit: Visit) -> Callable[[], Any]:
    """Draw the section."""
    methods = Methods(visit)
    is_drawn = False

    async def shown() -> None:
        nonlocal is_drawn
        if not is_drawn:
            is_drawn = True
            await methods.draw()

    return shown


def card_html(card: Card) -> str:
    """Return a card: claim, verdict, and each measurement with its pictures."""
    parts = [
        "<h3>What its paper says</h3>",
        (
            f'<blockquote class="said"><p>{escape(card.claim)}</p>'
            f'<p class="muted small">{escape(card.claim_where)}</p></blockquote>'
        ),
        "<h3>Our verdict</h3>",
        f"<p>{escape(card.verdict)}: {escape(card.because)}.</p>",
    ]
    for at, one in enumerate(card.measurements):
        shown = " open" if at == 0 else ""
        parts.append(
            f'<details class="measured"{shown}><summary>{escape(one.suite)} on '
            f"{escape(one.model)}</summary>{_measured(one, card.method)}</details>"
        )
    return "".join(parts)


# -- private ----------------------------------------------------------------------------------


def _all() -> list[Entry]:
    return [
        (method, load_card(method.about.kind, method.about.name))
        for method in catalogue.all_methods(None)
    ]


def _badge(card: Card | None) -> None:
    if card is None:
        node("span", "badge", "no card")
    else:
        node("span", f"badge {BADGES[card.verdict]}", str(card.verdict))


def _measured(one: Measurement, name: str) -> str:
    settings = ", ".join(f"{key} = {value}" for key, value in one.parameters.items())
    rows = [
        (
            escape(what),
            f"{format_bytes(nbytes)}" if isinstance(nbytes, int) else escape(str(nbytes)),
        )
        for what, nbytes in one.bytes.items()
    ]
    held = table(("bytes", ""), rows, f"Bytes of {name} in {one.suite}", right=(1,)) if rows else ""
    machine = one.machine.get("name", "")
    foot = f"{machine}; {one.date}, commit {one.commit}"
    given = f'<p class="muted small">with {escape(settings)}</p>' if settings else ""
    return (
        f"{given}{pictures(one, name)}{held}"
        f'<p class="muted small">{escape(foot)}</p>'
        f'<pre class="command" tabindex="0" aria-label="How it was measured">'
        f"{escape(one.command)}</pre>"
    )
