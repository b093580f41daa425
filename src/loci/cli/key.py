"""`loci key`: who may ask a server."""

from __future__ import annotations

from pathlib import Path

import click

from loci.cli.app import Group
from loci.cli.output import as_json_option, emit, note, say, table

_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group(cls=Group)
def command() -> None:
    """Make, list and drop the keys of a server; the file holds their hashes alone."""


@command.command()
@_FILE
@click.option("--tenant", default="local", help="Whose memory it reaches; else local.")
@click.option("--user", help="The only user it may name; else any of the tenant.")
@click.option(
    "--role",
    type=click.Choice(["user", "admin"]),
    default="user",
    help="An admin also sees budget, events and metrics.",
)
@as_json_option
def add(file: Path, tenant: str, user: str | None, role: str, as_json: bool) -> None:
    """Make a key and print it, this once."""
    from loci.server import keys

    secret = keys.add(file, tenant=tenant, role=role, user=user)
    if as_json:
        emit({"key": secret, "id": secret.split("-")[1], "tenant": tenant, "role": role})
        return
    say(secret)
    note(f"it is shown this once; {file} holds its hash")


@command.command("list")
@_FILE
@as_json_option
def listed(file: Path, as_json: bool) -> None:
    """List the keys of a file, without what would open anything."""
    from loci.server import keys

    found = [
        {"id": key.id, "tenant": key.tenant, "role": key.role, "user": key.user}
        for key in keys.load(file).values()
    ]
    if as_json:
        emit(found)
    else:
        rows = [(key["id"], key["tenant"], key["role"], key["user"] or "any") for key in found]
        table(rows, ("id", "tenant", "role", "user"))


@command.command()
@_FILE
@click.argument("id")
@as_json_option
def drop(file: Path, id: str, as_json: bool) -> None:
    """Take a key out of the file; a running server refuses it from then on."""
    from loci.server import keys

    keys.drop(file, id)
    if as_json:
        emit({"dropped": id})
    else:
        say(f"dropped {id}")
