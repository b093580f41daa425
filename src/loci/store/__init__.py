"""Where text memory lives: turns, items, links, history, audit, vectors; SQLite by default.

`open_store` is the way in. Nothing here loads torch; numpy only when vectors are used, SQLAlchemy
and Alembic only to migrate an older file.
"""

from __future__ import annotations

from pathlib import Path

from loci.errors import ParameterError
from loci.store.base import Store


def open_store(url: str | Path, *, busy_s: float = 10.0) -> Store:
    """Return the store of a path, or of a URL: sqlite:///ada.db, postgresql://host/db?schema=loci.

    Raises:
        ParameterError: if the URL names a database Loci cannot use.
        MissingExtraError: if the packages for PostgreSQL are not installed.
    """
    where = str(url)
    if "://" in where:
        scheme, _, rest = where.partition("://")
        if scheme in ("postgresql", "postgres"):
            from loci.store.postgres import PostgresStore

            return PostgresStore(where, busy_s=busy_s)
        if scheme != "sqlite":
            raise ParameterError(
                "this kind of memory is not supported",
                value=f"{scheme}://",
                allowed="a path like ada.db, sqlite:///ada.db, or postgresql://host/database",
            )
        where = rest[1:] if rest.startswith("/") else rest
    from loci.store.sqlite import SqliteStore

    if not where or where == ":memory:":
        raise ParameterError("a memory needs a file", value=str(url), allowed="a path like ada.db")
    return SqliteStore(Path(where), busy_s=busy_s)


__all__ = ["Store", "open_store"]
