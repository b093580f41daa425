"""`loci mcp`: the memory as a server that assistants speak to."""

from __future__ import annotations

from pathlib import Path

import click

from loci.cli.options import whose
from loci.cli.output import note

_PORT = 8765


@click.command()
@click.option("--file", "file", help="The memory; else the configured one. Made if it is new.")
@click.option("--user", help="Whose memory; else the login name.")
@click.option("--agent", help="Only what this agent was told.")
@click.option("--session", help="Only this conversation.")
@click.option("--tenant", default="local", help="Of a memory that several share; else local.")
@click.option("--lexical", is_flag=True, help="Search by words alone; loads no model.")
@click.option("--execute", is_flag=True, help="Let agents run the code they write, shut in.")
@click.option("--http", is_flag=True, help="Serve over HTTP instead of standard input and output.")
@click.option("--host", default="127.0.0.1", help="With --http; else only this machine.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=_PORT, help=f"With --http; else {_PORT}."
)
def command(
    file: str | None,
    user: str | None,
    agent: str | None,
    session: str | None,
    tenant: str,
    lexical: bool,
    execute: bool,
    http: bool,
    host: str,
    port: int,
) -> None:
    """Serve one person's memory to an assistant, over the Model Context Protocol.

    The tools are remember, recall, update, invalidate, forget, history, explain and export, and
    agent_act, agent_list, agent_show, agent_history, agent_undo and agent_redo for long tasks. All
    of them work in the scope given here; no call can name another. Over HTTP on an address that
    other machines reach, clients must send the key in LOCI_MCP_KEY as a bearer token.
    """
    import os

    from loci.mcp import server
    from loci.mcp.tools import Bound
    from loci.memory import Memory

    if not http and (host != "127.0.0.1" or port != _PORT):
        raise click.UsageError("--host and --port go with --http")
    who = whose(user)
    place = file if file is None or "://" in file else str(Path(file).expanduser())
    with Memory(place, tenant=tenant, embedder=None if lexical else "default") as memory:
        sandbox = None
        if execute:
            from loci.run.sandbox import Sandbox

            sandbox = Sandbox()
        bound = Bound(memory, user=who, agent=agent, session=session, sandbox=sandbox)
        if not http:
            note(f"serving the memory of {who} on standard input and output")
            server.run_stdio(bound)
            return
        key = os.environ.get("LOCI_MCP_KEY")
        app = server.make_app(bound, host=host, key=key)
        note(f"serving the memory of {who} on http://{host}:{port}{server.PATH}")
        server.run_http(app, host=host, port=port)
