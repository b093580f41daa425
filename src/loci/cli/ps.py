"""`loci ps`: the servers that run on this machine."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any  # JSON values

import click

from loci import config
from loci.cli.output import as_json_option, emit, note, table
from loci.units import format_bytes, format_seconds

_PATIENCE_S = 2.0


@click.command()
@as_json_option
def command(as_json: bool) -> None:
    """List this person's servers: what they hold, and how much they have to do."""
    from loci.server.running import servers

    found = [
        {
            "pid": server.pid,
            "url": server.url,
            "model": server.model,
            "started": datetime.fromtimestamp(server.started_s, UTC).isoformat(timespec="seconds"),
            "up_s": round(time.time() - server.started_s, 1),
            "keyed": server.keyed,
            "beside": server.beside,
            **_asked(server.url),
        }
        for server in servers(config.load().cache_dir / "servers")
    ]
    if as_json:
        emit(found)
        return
    if not found:
        note("no server runs; start one with loci serve")
        return
    rows = [
        (
            row["pid"],
            row["url"],
            f"{row['model']} with {row['beside']}" if row["beside"] else row["model"],
            format_seconds(row["up_s"]),
            *(
                ("-", "-", "-")
                if row["dram"] is None
                else (
                    _memory(row),
                    row["running"],
                    row["waiting"],
                )
            ),
        )
        for row in found
    ]
    table(rows, ("pid", "url", "model", "up", "memory", "running", "waiting"), right=(0, 5, 6))


def _asked(url: str) -> dict[str, Any]:
    """Return what a server tells of itself; one with keys tells nothing to who has none."""
    import httpx

    try:
        with httpx.Client(base_url=url, timeout=_PATIENCE_S) as client:
            ledger, load = (client.get(f"/api/v1/{what}") for what in ("ledger", "load"))
            ledger.raise_for_status()
            load.raise_for_status()
            told = ledger.json()
            dram = told["tiers"]["dram"]
            counts = load.json()
    except (httpx.HTTPError, ValueError, KeyError):
        return {"dram": None, "running": None, "waiting": None, "replicas": None}
    held = {key: dram[key] for key in ("used", "limit", "by_kind")}
    replicas = {
        name: None if one is None else {key: one["tiers"]["dram"][key] for key in held}
        for name, one in told.get("replicas", {}).items()
    }
    return {
        "dram": held,
        "running": counts["running"],
        "waiting": counts["waiting"],
        "replicas": replicas or None,
    }


def _memory(row: dict[str, Any]) -> str:
    """Return who holds how much of what; of several replicas, each."""
    whole = f"{format_bytes(row['dram']['used'])} of {format_bytes(row['dram']['limit'])}"
    if row["replicas"] is None:
        return whole
    each = (
        "down" if one is None else format_bytes(one["used"]) for one in row["replicas"].values()
    )
    return f"{whole} ({' + '.join(each)})"
