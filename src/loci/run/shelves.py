"""Where the cubes of a memory lie: on a shelf beside its file, and its audit with it."""

from __future__ import annotations

from pathlib import Path

from loci.core.ports import Clock
from loci.store.audit import Audit
from loci.store.shelf import KEEP_VERSIONS, Shelf


def file_of(url: str | Path) -> Path | None:
    """Return the file of a memory, None where it lies in a database server."""
    where = str(url)
    if "://" in where:
        scheme, _, rest = where.partition("://")
        if scheme != "sqlite":
            return None
        where = rest[1:] if rest.startswith("/") else rest
    return Path(where).expanduser()


def beside(
    url: str | Path,
    *,
    clock: Clock | None = None,
    audit: Audit | None = None,
    keep_versions: int = KEEP_VERSIONS,
) -> Shelf | None:
    """Return the shelf of a memory, whether or not anything lies on it yet.

    Args:
        audit: told of every change; else the one beside the memory, which the first cube begins.
        keep_versions: earlier versions of a cube that stay when a new one comes.

    Returns:
        None for a memory in a database server: there is no place beside it.
    """
    file = file_of(url)
    if file is None:
        return None
    if audit is None:
        audit = Audit(file.with_name(f"{file.name}.audit"), clock=clock)
    folder = file.with_name(f"{file.name}.cubes")
    return Shelf(folder, clock=clock, audit=audit, keep_versions=keep_versions)
