"""Small parts that all sections are built of: plain HTML elements with names for screen readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any  # what a browser sends

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.html import Html
from nicegui.elements.mixins.text_element import TextElement

Handler = Callable[..., Any]
_SENDS = "(e) => { e.preventDefault(); emit(Object.fromEntries(new FormData(e.target))); }"
_VALUE = "(e) => emit(e.target.value)"
_CHECKED = "(e) => emit(e.target.checked)"


class Node(TextElement):
    """One element of HTML with a text that may change."""

    def __init__(self, tag: str, text: str = "") -> None:
        super().__init__(tag=tag, text=text)


def node(tag: str, classes: str = "", text: str = "", **attributes: Any) -> Node:
    """Return an element; `aria_label` is written aria-label, `for_` is written for."""
    made = Node(tag, text)
    if classes:
        made.classes(classes)
    for name, value in attributes.items():
        if value is not None:
            made.props[name.rstrip("_").replace("_", "-")] = value
    return made


def html_id(element: Element) -> str:
    """Return the id that an element has in the browser."""
    return f"c{element.id}"


def drawing(content: str = "", classes: str = "") -> Html:
    """Return a place for HTML that this program wrote; texts in it must be escaped."""
    made = ui.html(content, sanitize=False)
    return made.classes(classes) if classes else made


def button(
    text: str, on_click: Handler, *, kind: str = "plain", label: str | None = None, **more: Any
) -> Node:
    """Return a button.

    Args:
        kind: "plain", "primary", "danger" or "quiet".
        label: what a screen reader says where the text alone does not tell.
    """
    made = node("button", f"button {kind}", text, type="button", aria_label=label, **more)
    made.on("click", lambda: on_click(), args=[])
    return made


def form(on_submit: Handler, classes: str = "form") -> Node:
    """Return a form; the handler is given {name: value} of its fields."""
    made = node("form", classes)
    made.on("submit", lambda event: on_submit(event.args), js_handler=_SENDS)
    return made


def text_field(
    label: str,
    name: str,
    *,
    value: str = "",
    on_input: Handler | None = None,
    hint: str = "",
    hidden_label: bool = False,
    tag: str = "input",
    **more: Any,
) -> Node:
    """Return a field for text with its label before it."""
    with node("div", "field"):
        named = node("label", "sr" if hidden_label else "", label)
        given = {"placeholder": hint or None, "name": name, "autocomplete": "off", **more}
        made = node(tag, "input", **given)
        made.props["defaultValue"] = value
        named.props["for"] = html_id(made)
    if on_input is not None:
        made.on("input", lambda event: on_input(event.args), js_handler=_VALUE, throttle=0.2)
    return made


def choice(
    label: str, options: Mapping[str, str], value: str, on_change: Handler, **more: Any
) -> Node:
    """Return a native list of choices, {value: what is shown}."""
    with node("div", "field"):
        named = node("label", "", label)
        with node("select", "input", **more) as made:
            for key, shown in options.items():
                node("option", "", shown, value=key, selected=True if key == value else None)
        named.props["for"] = html_id(made)
    made.on("change", lambda event: on_change(event.args), js_handler=_VALUE)
    return made


def switch(label: str, value: bool, on_change: Handler, **more: Any) -> Node:
    """Return a box to tick with its label behind it."""
    with node("label", "switch"):
        made = node("input", "", type="checkbox", **more)
        made.props["defaultChecked"] = value
        node("span", "", label)
    made.on("change", lambda event: on_change(event.args), js_handler=_CHECKED)
    return made


def set_value(element: Element, text: str) -> None:
    """Write into a field; what a person typed is replaced."""
    ui.run_javascript(
        f"const e = document.getElementById({json.dumps(html_id(element))});"
        f"if (e) e.value = {json.dumps(text)};"
    )


def focus(element: Element) -> None:
    """Put the focus on an element once it is there."""
    ui.run_javascript(
        f"setTimeout(() => document.getElementById({json.dumps(html_id(element))})?.focus(), 30)"
    )


def heading(text: str, about: str = "") -> None:
    """Write the heading of a section, and one line about it."""
    with node("header", "section-head"):
        node("h1", "", text)
        if about:
            node("p", "muted", about)


def empty(text: str) -> Node:
    """Return what is shown where there is nothing to show."""
    return node("p", "empty", text)


def bar(shares: Sequence[tuple[str, float]], label: str) -> str:
    """Return a bar of parts; each is (kind, share of the whole) and the rest stays free."""
    parts = "".join(
        f'<span class="seg k-{escape(kind)}" style="width:{100 * max(0.0, share):.3f}%"></span>'
        for kind, share in shares
    )
    return f'<div class="bar" role="img" aria-label="{escape(label, quote=True)}">{parts}</div>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], label: str, right: Sequence[int] = ()
) -> str:
    """Return a table that scrolls by itself where it is too wide; cells are HTML already."""

    def cell(tag: str, at: int, text: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{' class=num' if at in right else ''}>{text}</{tag}>"

    top = "".join(cell("th", at, escape(name)) for at, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", at, text) for at, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    name = escape(label, quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
