"""Numbered steps from one schema to the next, written with Alembic's operations.

Step n brings a memory from version n - 1 to n. All steps run in one transaction: a memory is
migrated, or as it was. PostgreSQL gets the SQL that Alembic writes for a step, so a step asks the
database nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from loci.errors import SchemaError


def _to_2(op: Operations) -> None:
    """Remember where imported rows came from, and who spoke."""
    for table in ("turns", "items"):
        op.add_column(table, sa.Column("origin", sa.Text))
        op.create_index(
            f"{table}_origin",
            table,
            ["owner", "origin"],
            unique=True,
            sqlite_where=sa.text("origin IS NOT NULL"),
            postgresql_where=sa.text("origin IS NOT NULL"),
        )
    op.create_table(
        "speakers",
        sa.Column("owner", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO speakers (owner, name) "
        "SELECT DISTINCT owner, name FROM turns WHERE name IS NOT NULL"
    )


def _to_3(op: Operations) -> None:
    """Keep glosses of notes, weights of links, sources of changes, and what was asked of models."""
    op.add_column("items", sa.Column("gloss", sa.Text))
    weight = sa.Column("weight", sa.Float, nullable=False, server_default="1.0")
    op.add_column("links", weight)
    op.add_column("changes", sa.Column("sources", sa.Text))
    op.add_column("changes", sa.Column("ladder", sa.Integer))
    op.create_table(
        "ladders",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("owner", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("steps", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )


STEPS: dict[int, Callable[[Operations], None]] = {2: _to_2, 3: _to_3}


def migrate(path: Path, version: int, busy_s: float) -> None:
    """Bring a SQLite memory to `version`.

    Raises:
        SchemaError: if the file is of a version that has no step.
    """
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=sa.pool.NullPool,
        connect_args={"timeout": busy_s, "isolation_level": None},
    )
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver would not lock before writing
        try:
            now = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
            op = Operations(MigrationContext.configure(connection))
            for step in range(now + 1, version + 1):
                if step not in STEPS:
                    raise SchemaError(
                        "this memory's schema is unknown", value=now, allowed=f"1 to {version}"
                    )
                STEPS[step](op)
            connection.exec_driver_sql(f"PRAGMA user_version={version}")
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
    engine.dispose()


def postgres_sql(now: int, version: int) -> str:
    """Return the SQL that brings the tables of a PostgreSQL memory from one version to another.

    Raises:
        SchemaError: if a step is missing.
    """
    written = StringIO()
    options = {"as_sql": True, "output_buffer": written}
    op = Operations(MigrationContext.configure(dialect_name="postgresql", opts=options))
    for step in range(now + 1, version + 1):
        if step not in STEPS:
            raise SchemaError(
                "this memory's schema is unknown", value=now, allowed=f"1 to {version}"
            )
        STEPS[step](op)
    return re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', written.getvalue())
