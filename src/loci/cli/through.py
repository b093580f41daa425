"""Whether a command uses a server that runs already, and what it says about that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci import config
from loci.cli.options import BUDGET_NAMES
from loci.cli.output import note

if TYPE_CHECKING:
    from loci.server.client import Client

server_option = click.option(
    "--server/--no-server",
    "may_use_server",
    default=True,
    help="Use a running server of this model, where no budget and no memory is named; else never.",
)


def client_of(
    model: str, given: Mapping[str, Any], *, may_use: bool, own: str | None = None
) -> Client | None:
    """Return a client of a running server that can do what is asked, or None.

    Args:
        given: what click parsed, budget included.
        own: what else wants a session of its own, such as "--memory"; None for nothing.
    """
    folder = config.load().cache_dir / "servers"
    if not may_use or not folder.is_dir():
        return None
    from loci.server.client import Client, serving

    server = serving(folder, model)
    if server is None:
        return None
    named = [f"--{name.replace('_', '-')}" for name in BUDGET_NAMES if given[name] is not None]
    if own is not None:
        named.append(own)
    if named:
        note(f"{model} is served on {server.url}; {', '.join(named)} loads it here all the same")
        return None
    note(f"using the server on {server.url}; --no-server loads the model here")
    return Client(server)


def plain_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tokens are chosen, as the server is told; it refuses what cannot be."""
    values = {name: given[name] for name in ("temperature", "top_p", "top_k", "seed")}
    return values | {"temperature": values["temperature"] or 0.0}
