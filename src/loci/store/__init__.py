"""Where text memory lives: turns, items, links, history, audit, vectors; SQLite by default.

`open_store` is the way in. Nothing here loads torch; numpy only when vectors are used, SQLAlchemy
and Alembic only to migrate an older file.
"""

from __future__ import annotations

from pathlib import Path

from loci.errors import ParameterError
from loci.store.base import Store


def open_store(url: str | Path, *, busy_s: float = 10.0) -> Store:
    """Return the store of a path, or of a URL such as "sqlite:///ada.db".

    Raises:
        ParameterError: if the URL names a database Loci cannot use.
    """
    from loci.store.sqlite import SqliteStore

    where = str(url)
    if "://" in where:
        scheme, _, rest = where.partition("://")
        if scheme != "sqlite":
            raise ParameterError(
                "this kind of memory is not supported",
                value=where,
                allowed="a path like ada.db, or sqlite:///ada.db",
            )
        where = rest[1:] if rest.startswith("/") else rest
    if not where or where == ":memory:":
        raise ParameterError("a memory needs a file", value=str(url), allowed="a path like ada.db")
    return SqliteStore(Path(where), busy_s=busy_s)


__all__ = ["Store", "open_store"]
