"""The section that shows who holds which bytes, and how much there is to do, as it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from nicegui import ui

from loci.core.ledger import Ledger
from loci.server.feed import Sample
from loci.server.page.parts import bar, drawing, heading, node, table
from loci.server.page.visit import Visit
from loci.units import format_bytes, format_seconds

KINDS = {
    "weights": "weights",
    "kv": "conversations",
    "work": "work buffers",
    "tokenizer": "tokenizer",
    "index": "indexes",
    "adapter": "adapters",
}
TIERS = {"gpu": "GPU memory", "dram": "Main memory", "disk": "Disk", "remote": "Elsewhere"}
EVERY_S = 0.4
WIDTH, HEIGHT = 600, 84  # of a line that shows what was
HOLDERS = 24


def build(visit: Visit) -> Callable[[], None]:
    """Draw the section."""
    heading("Budget", "Every byte Loci holds, by place and kind.")
    tiers = drawing(classes="stack")
    with node("h2", "", "Requests"):
        pass
    counts = drawing(classes="tiles")
    with node("div", "pair"):
        with node("div", "card"):
            node("h3", "", "Main memory, the last two minutes")
            held = drawing(classes="line")
        with node("div", "card"):
            node("h3", "", "Tokens a second")
            speed = drawing(classes="line")
    node("h2", "", "Who holds what")
    holders = drawing()
    seen = -1

    def draw(force: bool = False) -> None:
        nonlocal seen
        batch = visit.service.batch
        samples = visit.feed.samples()
        if visit.section != "budget":
            return
        counts.set_content(_counts(visit, samples))
        limit = batch.ledger.limit("dram")
        held.set_content(_line([one.used for one in samples], "bytes held", format_bytes, limit))
        speed.set_content(
            _line([one.tokens_per_s for one in samples], "tokens a second", lambda n: f"{n:.0f}")
        )
        if visit.feed.last != seen or force:  # nothing is held or given back without an event
            seen = visit.feed.last
            tiers.set_content(tiers_html(batch.ledger, batch.plan.budget.limits()))
            holders.set_content(_holders(batch.ledger))

    ui.timer(EVERY_S, draw)
    return lambda: draw(force=True)


def tiers_html(ledger: Ledger, limits: Mapping[str, int]) -> str:
    """Return a bar for each tier with what its parts stand for."""
    return "".join(_tier(ledger, tier, limit) for tier, limit in limits.items() if limit)


def shares_html(title: str, kinds: Mapping[str, int], limit: int, foot: str = "") -> str:
    """Return a bar of kinds inside a limit, with its legend."""
    used = sum(kinds.values())
    shown = sorted(
        kinds.items(), key=lambda pair: list(KINDS).index(pair[0]) if pair[0] in KINDS else 99
    )
    label = f"{title}: {format_bytes(used)} of {format_bytes(limit)} held"
    parts = bar([(kind, nbytes / limit) for kind, nbytes in shown], label)
    legend = "".join(
        f'<li><span class="dot k-{escape(kind)}"></span>{escape(KINDS.get(kind, kind))}'
        f"<b>{format_bytes(nbytes)}</b></li>"
        for kind, nbytes in shown
    )
    free = max(0, limit - used)
    legend += f'<li><span class="dot k-free"></span>free<b>{format_bytes(free)}</b></li>'
    return (
        f'<div class="card"><div class="row-between"><h3>{escape(title)}</h3>'
        f'<p class="amount"><b>{format_bytes(used)}</b> of {format_bytes(limit)}</p></div>'
        f'{parts}<ul class="legend">{legend}</ul>{foot}</div>'
    )


def _tier(ledger: Ledger, tier: str, limit: int) -> str:
    foot = f'<p class="muted small">at most {format_bytes(ledger.peak(tier))} so far</p>'
    return shares_html(TIERS.get(tier, tier), ledger.by_kind(tier), limit, foot)


def _counts(visit: Visit, samples: Sequence[Sample]) -> str:
    load = visit.service.batch.load()
    rate = samples[-1].tokens_per_s if samples else 0.0
    tiles = [
        (
            "running",
            str(load.running),
            f"{load.out} put out, {format_bytes(load.swapped_bytes)} elsewhere"
            if load.swapped_bytes
            else f"of {visit.service.batch.rows} together",
        ),
        ("waiting", str(load.waiting), f"{load.refused} had to come back"),
        (
            "tokens a second",
            f"{rate:.1f}",
            f"a step takes {format_seconds(load.step_s)}" if load.steps else "no step yet",
        ),
        ("kept for later", format_bytes(load.kept_bytes), "read before, not read again"),
        ("tokens made", f"{load.made_tokens:,}", f"{load.reused_tokens:,} not read again"),
    ]
    return "".join(
        f'<div class="tile"><span class="muted">{escape(name)}</span><b>{escape(value)}</b>'
        f'<span class="muted small">{escape(more)}</span></div>'
        for name, value, more in tiles
    )


def _line(
    values: Sequence[float], what: str, shown: Callable[[float], str], limit: float = 0.0
) -> str:
    """Return a small picture of how a number went, newest at the right, under its limit."""
    if len(values) < 2:
        return '<p class="muted small">measured from now on</p>'
    most = max(values)
    top = max(most, limit, 1e-9)
    step = WIDTH / (len(values) - 1)
    points = [
        f"{at * step:.1f},{HEIGHT - 6 - (HEIGHT - 12) * value / top:.1f}"
        for at, value in enumerate(values)
    ]
    label = f"{what}: now {shown(values[-1])}, at most {shown(most)}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label, quote=True)}">'
        f'<polygon class="area" points="0,{HEIGHT} {" ".join(points)} {WIDTH},{HEIGHT}"/>'
        f'<polyline class="stroke" points="{" ".join(points)}"/></svg>'
        f'<p class="muted small row-between"><span>now <b>{shown(values[-1])}</b></span>'
        f"<span>at most {shown(most)}</span></p>"
    )


def _holders(ledger: Ledger) -> str:
    held = ledger.table()
    rows = [
        (
            escape(str(row["owner"])),
            (
                f'<span class="dot k-{escape(str(row["kind"]))}"></span>'
                f"{escape(KINDS.get(str(row['kind']), str(row['kind'])))}"
            ),
            escape(str(row["tier"])),
            format_bytes(int(row["nbytes"])),
        )
        for row in held[:HOLDERS]
    ]
    more = len(held) - HOLDERS
    text = table(("holder", "kind", "where", "bytes"), rows, "Who holds what", right=(3,))
    return text + (f'<p class="muted small">and {more} more</p>' if more > 0 else "")
