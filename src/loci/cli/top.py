"""`loci top`: a server as it works, in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any  # JSON values, what rich draws

import click

from loci import config
from loci.cli.output import as_json_option, emit, say
from loci.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from loci.server.running import Running

WIDTH = 48  # cells of a bar
COLOURS = {
    "weights": "cyan",
    "kv": "dark_orange3",
    "work": "yellow4",
    "tokenizer": "medium_purple3",
    "index": "sea_green3",
    "adapter": "hot_pink3",
}
NAMES = {"kv": "conversations", "work": "work buffers", "index": "indexes", "adapter": "adapters"}
HOLDERS = 8
Json = dict[str, Any]


@click.command()
@click.argument("pid", type=int, required=False)
@click.option(
    "--every", "every_s", type=click.FloatRange(min=0.1), default=1.0, help="Seconds; else 1."
)
@click.option("--once", is_flag=True, help="Print how it stands now, and end.")
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a key of an admin, for a server that needs one.",
)
@as_json_option
def command(
    pid: int | None, every_s: float, once: bool, key_file: Path | None, as_json: bool
) -> None:
    """Watch the server with this process number, or the only one: bytes, requests, speed.

    Ctrl-C ends the watching, not the server. Where the output is no terminal it is printed once.
    """
    from loci.server.client import Client
    from loci.server.running import the_one

    server = the_one(config.load().cache_dir / "servers", pid)
    key = None if key_file is None else key_file.read_text(encoding="utf-8").strip()
    with Client(server, key) as client:

        def look() -> Json:
            return {"ledger": client.get("ledger"), "load": client.get("load")}

        if as_json:
            first = look()
            time.sleep(every_s)
            emit({"pid": server.pid, "url": server.url, **_told(look(), first, every_s)})
        elif once or not sys.stdout.isatty():
            first = look()
            time.sleep(min(every_s, 1.0))
            say(_text(_frame(server, _told(look(), first, min(every_s, 1.0)))))
        else:
            _watch(server, look, every_s)


# -- private ----------------------------------------------------------------------------------


def _watch(server: Running, look: Any, every_s: float) -> None:
    from rich.live import Live

    before, at_s = look(), time.monotonic()
    with Live(_frame(server, _told(before, before, every_s)), auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            now, now_s = look(), time.monotonic()
            live.update(_frame(server, _told(now, before, now_s - at_s)), refresh=True)
            before, at_s = now, now_s


def _told(now: Mapping[str, Any], before: Mapping[str, Any], passed_s: float) -> Json:
    """Return how it stands, with the speed since before."""
    made = now["load"]["made_tokens"] - before["load"]["made_tokens"]
    return {**now["load"], "tokens_per_s": made / passed_s, **now["ledger"]}


def _frame(server: Running, told: Mapping[str, Any]) -> Any:
    """Return the picture of a moment."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    up = format_seconds(time.time() - server.started_s)
    head = Text.assemble((told["model"], "bold"), f"  {server.url}  up {up}  pid {server.pid}")
    bars = [
        _bar(tier, facts)
        for tier, facts in told["tiers"].items()
        if facts["limit"] or facts["used"]
    ]
    counts = Table.grid(padding=(0, 3))
    counts.add_row(
        Text.assemble((f"{told['running']}", "bold"), f" of {told['rows']} running"),
        Text.assemble((f"{told['waiting']}", "bold"), " waiting"),
        Text.assemble((f"{told['refused']}", "bold"), " refused"),
        Text.assemble((f"{told['tokens_per_s']:.1f}", "bold"), " tokens/s"),
        f"step {format_seconds(told['step_s'])}",
    )
    counts.add_row(
        f"{told['made_tokens']:,} made",
        f"{told['prompt_tokens']:,} read",
        f"{told['reused_tokens']:,} not read again",
        f"{format_bytes(told['kept_bytes'])} kept"
        + (f", {format_bytes(told['swapped_bytes'])} put out" if told["swapped_bytes"] else ""),
        str(told["scheduler"]),
    )
    held = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name, justify in (("holder", "left"), ("kind", "left"), ("where", "left"), ("", "right")):
        held.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich's own words
    for row in told["held"][:HOLDERS]:
        kind = Text(NAMES.get(row["kind"], row["kind"]), style=COLOURS.get(row["kind"], "white"))
        held.add_row(row["owner"], kind, row["tier"], format_bytes(row["nbytes"]))
    if len(told["held"]) > HOLDERS:
        held.add_row(f"and {len(told['held']) - HOLDERS} more", "", "", "")
    return Group(head, "", *bars, "", counts, "", held)


def _bar(tier: str, facts: Mapping[str, Any]) -> Any:
    """Return a tier's bytes as a bar with the names of its parts."""
    from rich.text import Text

    limit, used = max(1, facts["limit"]), facts["used"]
    text = Text(f"{tier:<6}")
    cells = 0
    kinds = sorted(facts["by_kind"].items(), key=lambda pair: -pair[1])
    for kind, nbytes in kinds:
        wide = min(WIDTH - cells, max(1, round(WIDTH * nbytes / limit)) if nbytes else 0)
        text.append("\u2588" * wide, style=COLOURS.get(kind, "white"))
        cells += wide
    text.append("\u2591" * (WIDTH - cells), style="dim")
    text.append(f"  {format_bytes(used)} of {format_bytes(facts['limit'])}\n")
    text.append(" " * 6)
    for kind, nbytes in kinds:
        text.append("\u25a0 ", style=COLOURS.get(kind, "white"))
        text.append(f"{NAMES.get(kind, kind)} {format_bytes(nbytes)}   ")
    return text


def _text(frame: Any) -> str:
    """Return a picture as plain text."""
    from rich.console import Console

    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(frame)
    return captured.get().rstrip()
