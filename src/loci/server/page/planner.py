"""The section that plans: move a budget, and see at once what would fit and what it would cost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from typing import Any  # what a browser sends

from nicegui import ui

from loci.errors import BudgetError, LociError
from loci.plan.solve import Plan
from loci.server.page.budget import TIERS, shares_html
from loci.server.page.parts import Node, drawing, heading, html_id, node
from loci.server.page.visit import Visit
from loci.units import format_bytes

STEPS = 200  # of a slider; sizes grow by the same factor from step to step
LEAST = 16 << 20
CONTEXTS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def build(visit: Visit) -> None:
    """Draw the section."""
    service = visit.service
    heading("Plan", "Move a budget and see what would fit, how fast, and what it would cost.")
    now = service.batch.plan
    wanted: dict[str, Any] = {
        "dram": now.budget.dram or LEAST,
        "disk": now.budget.disk or 0,
        "context": now.workload.context,
    }
    sizes = _Sizes(most=max(16 * now.spec.elements(), 2 * wanted["dram"]))
    contexts = [n for n in CONTEXTS if n <= now.spec.max_context]
    busy = asyncio.Lock()
    number = 0
    with node("div", "card controls"):
        _slider(
            "Main memory",
            sizes.step_of(wanted["dram"]),
            STEPS,
            lambda step: move("dram", sizes.at(step)),
            lambda step: format_bytes(sizes.at(step)),
            format_bytes(wanted["dram"]),
        )
        _slider(
            "Weights from disk, at most",
            sizes.step_of(wanted["disk"]) if wanted["disk"] else 0,
            STEPS,
            lambda step: move("disk", 0 if step == 0 else sizes.at(step)),
            lambda step: "nothing" if step == 0 else format_bytes(sizes.at(step)),
            format_bytes(wanted["disk"]) if wanted["disk"] else "nothing",
        )
        nearest = min(range(len(contexts)), key=lambda at: abs(contexts[at] - wanted["context"]))
        _slider(
            "Context, prompt and answer together",
            nearest,
            len(contexts) - 1,
            lambda step: move("context", contexts[step]),
            lambda step: f"{contexts[step]:,} tokens",
            f"{wanted['context']:,} tokens",
        )
    words = drawing(classes="card plan-words")
    words.props["aria-live"] = "polite"
    bars = drawing(classes="stack")
    why = drawing()

    async def move(name: str, value: int) -> None:
        wanted[name] = value
        await plan()

    async def plan() -> None:
        nonlocal number
        number += 1
        mine = number
        async with busy:
            if mine != number:  # moved on meanwhile
                return
            try:
                found = await visit.ask(lambda: service.replan(**wanted))
            except BudgetError as error:
                words.set_content(_refused(error))
                bars.set_content("")
                why.set_content("")
                return
            except LociError as error:
                visit.failed(error)
                return
        words.set_content(_words(found, wanted))
        bars.set_content(_bars(found))
        why.set_content(_why(found))

    ui.timer(0, plan, once=True)


# -- private ----------------------------------------------------------------------------------


def _slider(
    label: str,
    at: int,
    most: int,
    moved: Callable[[int], Awaitable[None]],
    shown: Callable[[int], str],
    first: str,
) -> None:
    with node("div", "slider"):
        with node("div", "row-between"):
            named = node("label", "", label)
            value = node("output", "amount", first)
        made: Node = node("input", "range", type="range", min="0", max=str(most), step="1")
        made.props["defaultValue"] = str(at)
        made.props["aria-valuetext"] = first
        named.props["for"] = html_id(made)
        value.props["for"] = html_id(made)

        async def take(text: str) -> None:
            step = min(most, max(0, int(text)))
            value.set_text(shown(step))
            made.props["aria-valuetext"] = shown(step)
            made.update()
            await moved(step)

        made.on(
            "input",
            lambda event: take(str(event.args)),
            js_handler="(e) => emit(e.target.value)",
            throttle=0.1,
        )


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """The sizes of a slider: LEAST at the first step, `most` at the last, whole MiB between."""

    most: int

    def at(self, step: int) -> int:
        """Return the bytes at a step."""
        exact = LEAST * math.exp(math.log(self.most / LEAST) * step / STEPS)
        return round(exact / 2**20) * 2**20

    def step_of(self, nbytes: int) -> int:
        """Return the step next to some bytes."""
        share = math.log(max(nbytes, LEAST) / LEAST) / math.log(self.most / LEAST)
        return min(STEPS, round(STEPS * share))


def _words(plan: Plan, wanted: dict[str, Any]) -> str:
    first, *rest = str(plan).splitlines()
    lines = "".join(f"<li>{escape(line)}</li>" for line in rest)
    command = f"loci serve {plan.model} --dram {_plain(wanted['dram'])}"
    if wanted["disk"]:
        command += f" --disk {_plain(wanted['disk'])}"
    command += f" --context {wanted['context']}"
    return (
        f'<p class="lead"><span class="badge good">fits</span> {escape(first)}</p>'
        f"<ul class=facts>{lines}</ul>"
        f'<p class="muted small">To have it:</p><pre class="command" tabindex="0" '
        f'aria-label="The command for this plan">{escape(command)}</pre>'
    )


def _plain(nbytes: int) -> str:
    return f"{nbytes >> 20}MiB"


def _refused(error: BudgetError) -> str:
    ways = "".join(f"<li>{escape(way)}</li>" for way in error.way_out)
    return (
        f'<p class="lead"><span class="badge bad">does not fit</span> {escape(error.what)}</p>'
        f"<ul class=facts>{ways}</ul>"
    )


def _bars(plan: Plan) -> str:
    drawn = []
    for tier, limit in plan.budget.limits().items():
        kinds: dict[str, int] = {}
        for _, on, kind, nbytes in plan.parts:
            if on == tier:
                kinds[kind] = kinds.get(kind, 0) + nbytes
        if limit and kinds:
            drawn.append(shares_html(f"{TIERS.get(tier, tier)}, as planned", kinds, limit))
    return "".join(drawn)


def _why(plan: Plan) -> str:
    rows = [f"<li>{escape(line)}</li>" for line in (*plan.chosen, *plan.notes)]
    turned = "".join(
        f"<li><b>{escape(one.name)}</b>: {escape(one.why)} ({format_bytes(one.bytes)})</li>"
        for one in plan.turned_down[:8]
    )
    more = f"<h3>Turned down</h3><ul class=facts>{turned}</ul>" if turned else ""
    return (
        '<details class="card"><summary>Why this way</summary><h3>Chosen</h3>'
        f"<ul class=facts>{''.join(rows)}</ul>{more}</details>"
    )
