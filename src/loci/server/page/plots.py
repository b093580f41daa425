"""Pictures of what a card measured: a method beside its rivals, one bar each."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any  # what a card holds

from loci.core.card import Measurement

MOST = 10  # bars of one picture
LESS_IS_BETTER = ("kl", "loss", "error", "bytes", "_s", "seconds", "wait", "perplexity", "ppl")


def pictures(measurement: Measurement, name: str) -> str:
    """Return a picture for each metric of a measurement that compares numbers."""
    drawn = [
        _bars(metric, values, measurement.interval.get(metric), name)
        for metric, values in measurement.metrics.items()
    ]
    return '<div class="plots">' + "".join(drawn) + "</div>" if any(drawn) else ""


def _bars(
    metric: str, values: Mapping[str, Any], interval: tuple[float, float] | None, name: str
) -> str:
    rows = [(name, values.get("this"), "this")]
    if "full" in values:
        rows.append(("full model", values["full"], "full"))
    rivals = values.get("rivals", {})
    rows += [(str(rival), value, "rival") for rival, value in rivals.items()]
    known = [
        (who, float(value), kind) for who, value, kind in rows if isinstance(value, (int, float))
    ]
    if len(known) < 2 or not all(value >= 0 for _, value, _ in known):  # NaN is not
        return ""
    first, *others = known
    left_out = max(0, len(others) + 1 - MOST)
    shown = [first, *others[: MOST - 1]]
    top = max(value for _, value, _ in shown) or 1.0
    lines = "".join(
        f'<div class="plot-row {kind}"><span class="who">{escape(who)}</span>'
        f'<span class="track"><span style="width:{100 * value / top:.2f}%"></span></span>'
        f"<b>{value:.4g}</b></div>"
        for who, value, kind in shown
    )
    better = "less is better" if any(word in metric for word in LESS_IS_BETTER) else ""
    notes = [better, f"{left_out} more" if left_out else ""]
    if interval is not None:
        notes.insert(0, f"95 %: {interval[0]:.4g} to {interval[1]:.4g}")
    told = "; ".join(note for note in notes if note)
    spoken = ", ".join(f"{who} {value:.4g}" for who, value, _ in shown)
    return (
        f'<figure class="plot"><figcaption>{escape(metric)} '
        f'<span class="muted small">{escape(told)}</span></figcaption>'
        f'<div role="img" aria-label="{escape(f"{metric}: {spoken}", quote=True)}">{lines}</div>'
        "</figure>"
    )
