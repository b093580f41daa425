"""`loci stop`: end a server, its requests first."""

from __future__ import annotations

from dataclasses import asdict

import click

from loci import config
from loci.cli.output import as_json_option, emit, say


@click.command()
@click.argument("pid", type=int, required=False)
@click.option("--patience", "patience_s", type=float, default=60.0, help="Seconds to wait for it.")
@as_json_option
def command(pid: int | None, patience_s: float, as_json: bool) -> None:
    """End the server with this process number, or the only one; requests that run end first."""
    from loci.server.running import stop

    ended = stop(config.load().cache_dir / "servers", pid, patience_s=patience_s)
    if as_json:
        emit(asdict(ended))
    else:
        say(f"stopped {ended.model} on {ended.url}")
