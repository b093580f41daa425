"""What the commands of `loci cube` share: options, the shelf, who may, what is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any  # click hands keyword arguments through

import click

from loci import api, config
from loci.cli.options import make_plan, whose
from loci.cli.output import emit, note, progress, say
from loci.core.cube import Action, Caller, CubeHeader, MemoryKind, require
from loci.errors import MethodError
from loci.units import format_bytes

if TYPE_CHECKING:
    from loci.run.engine import Session
    from loci.store.shelf import Dropped, Shelf

_CONTEXT = 8192  # tokens, where nobody names a context: room for a long text and a question

memory_option = click.option("--memory", "file", help="The memory; else the configured one.")
keep_option = click.option(
    "--keep-versions",
    "keep",
    type=click.IntRange(1),
    help="Earlier versions that stay; else 8. Older ones are overwritten.",
)
as_user_option = click.option("--user", help="Who asks; else the login name.")


def exact_for(cubes: Sequence[str], file: str | None, given: dict[str, Any]) -> None:
    """Ask for an exact cache where a cube brings keys and values and nobody named another."""
    from loci.store.cube_file import read_header

    for cube in cubes:
        is_file = "/" in cube or cube.endswith((".cube", ".safetensors"))
        path = Path(cube) if is_file else shelf_of(file).path(cube)
        if read_header(path).kind is MemoryKind.ACTIVATION and given["kv"] is None:
            given["kv"] = ""


def shelf_of(file: str | None, keep: int | None = None) -> Shelf:
    """Return the shelf beside a memory, which need not be there yet.

    Args:
        keep: earlier versions of a cube that stay; None takes the shelf's own number.
    """
    from loci.run.shelves import beside
    from loci.store.shelf import KEEP_VERSIONS

    where = file if file is not None else config.load().memory_file
    found = beside(where, keep_versions=KEEP_VERSIONS if keep is None else keep)
    if found is None:
        raise MethodError(
            "a memory in a database server has no shelf beside it",
            value=where,
            way_out="keep cubes beside a memory in a file",
        )
    return found


def permitted(
    shelf: Shelf, id: str, action: Action, user: str | None, purpose: str | None = None
) -> CubeHeader:
    """Return the header of a cube with which this user may do something."""
    header = shelf.header(id)
    require(Caller(user=whose(user), purpose=purpose), header, action, shelf.clock.now())
    return header


@contextmanager
def reading(
    model: str | None, given: dict[str, Any]
) -> Iterator[tuple[Session, Callable[[str, int, int], None]]]:
    """Lend a session with an exact cache and room for a long text, and its progress."""
    given["kv"] = "" if given["kv"] is None else given["kv"]
    given["context"] = given["context"] or _CONTEXT
    plan = make_plan(model or config.load().model, None, given)
    with progress() as report, api.open(plan, progress=report) as session:
        yield session, report


def tell_dropped(gone: Sequence[Dropped]) -> None:
    """Say on stderr which earlier versions gave way to a new one."""
    for one in gone:
        note(f"version {one.version} of {one.id} was dropped, {format_bytes(one.nbytes)}")


def tell(header: CubeHeader, as_json: bool, shelf: Shelf | None = None) -> None:
    """Print what a command made of a cube, and what gave way on the shelf."""
    tell_dropped(shelf.dropped if shelf is not None else ())
    if as_json:
        emit(header)
    else:
        say(f"{header.id}: {header.kind}, {header.state}, version {header.version}")
