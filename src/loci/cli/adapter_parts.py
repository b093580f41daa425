"""What the commands of `loci adapter` share: options, the shelf, names, who may, what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loci import config
from loci.cli.options import whose
from loci.cli.output import emit, note, plain, say
from loci.core.cube import Action, Caller, CubeHeader, MemoryKind, State, require
from loci.errors import MethodError, NotFoundError, ParameterError
from loci.units import format_bytes, nearest

if TYPE_CHECKING:
    from loci.memory import Memory
    from loci.models.pack import Pack
    from loci.store.shelf import Shelf

memory_option = click.option("--memory", "file", help="The memory; else the configured one.")
model_option = click.option("--model", help="Whose adapter; else the configured model.")
user_option = click.option("--user", help="Who asks; else the login name.")


def shelf_of(file: str | None) -> Shelf:
    from loci.run.shelves import beside

    found = beside(file if file is not None else config.load().memory_file)
    if found is None:
        raise _no_shelf()
    return found


def shelf_in(memory: Memory) -> Shelf:
    if memory.shelf is None:
        raise _no_shelf()
    return memory.shelf


def pack_of(model: str | None) -> Pack:
    from loci.models.load import resolve

    settings = config.load()
    return resolve(model if model is not None else settings.model, settings.models_dir)


def named(shelf: Shelf) -> dict[str, str]:
    """Return {name or id: id} of the adapters there are."""
    found: dict[str, str] = {}
    for header in shelf.headers(MemoryKind.PARAMETRIC, readable=True):
        found[header.id] = header.id
        if header.state is not State.RETIRED:
            found.setdefault(str(shelf.head(header.id).facts.get("name", header.id)), header.id)
    return found


def fresh(shelf: Shelf, name: str) -> str:
    """Return a name that no adapter has.

    Raises:
        ParameterError: if one has it.
    """
    if not name.strip() or name in named(shelf):
        raise ParameterError(
            "an adapter of this name is there" if name.strip() else "an adapter has a name",
            value=name,
            way_out=f"name another, or first: loci adapter drop {name}",
        )
    return name


def permitted(shelf: Shelf, name: str, action: Action, user: str | None) -> CubeHeader:
    """Return an adapter's header if this user may do that.

    Raises:
        NotFoundError: if there is none of this name.
        PolicyError: if they may not.
    """
    known = named(shelf)
    if name not in known:
        near = nearest(name, list(known))
        raise NotFoundError(
            "there is no adapter of this name",
            value=name,
            allowed=", ".join(known) or "none is kept",
            way_out=f"did you mean {near!r}?" if near else "loci adapter list",
        )
    header = shelf.header(known[name])
    require(Caller(user=whose(user)), header, action, shelf.clock.now())
    return header


def tell(shelf: Shelf, header: CubeHeader, as_json: bool) -> None:
    head = shelf.head(header.id)
    if as_json:
        emit({**plain(header), "bytes": head.nbytes, "facts": plain(head.facts)})
        return
    facts = head.facts
    say(f"{facts['name']}  {header.id}, rank {facts['rank']}, {format_bytes(head.nbytes)}")
    probe = facts.get("probe")
    if probe:
        say(
            f"answers {probe['answered']} of {probe['asked']} questions in words it was not taught "
            f"(without it {probe['base']}); changes other text by {probe['kl']:.4f} nats a token"
        )
    note(f'use it: loci run MODEL "..." --adapter {facts["name"]}')


# -- private ----------------------------------------------------------------------------------


def _no_shelf() -> MethodError:
    return MethodError(
        "adapters lie beside a memory in a file; this one is in a database server",
        way_out="keep them beside another: --memory FILE",
    )
