"""The tables of a memory, in SQLAlchemy Core: the one description every database is made from.

Instants are whole microseconds since 1970 (UTC). Ids that people see are made of the row's number:
"t12" is a turn, "i7" an item, "c9" a change; numbers are never used twice, also after erasure.

This module is imported to migrate and to write `migrations/sqlite.sql`; a store that is up to date
opens without SQLAlchemy (0.3 s of imports).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

metadata = MetaData()

Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

Table(
    "owners",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("user", Text, nullable=False),
    UniqueConstraint("tenant", "user"),
    sqlite_autoincrement=True,
)

turns = Table(
    "turns",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("owner", Integer, nullable=False),
    Column("agent", Text),
    Column("session", Text),
    Column("position", Integer, nullable=False),  # inside the session, from 0
    Column("role", Text, nullable=False),
    Column("name", Text),
    Column("content", Text, nullable=False),
    Column("said_at", BigInteger, nullable=False),
    Column("offset_s", Integer, nullable=False),  # of the zone it was said in, seconds from UTC
    Column("zone_assumed", Integer, nullable=False),
    Column("metadata", Text),  # JSON, NULL for none
    Column("recorded_at", BigInteger, nullable=False),
    Column("origin", Text),  # its id where it was imported from
    sqlite_autoincrement=True,
)
Index("turns_place", turns.c.owner, turns.c.session, turns.c.position)
Index("turns_said", turns.c.owner, turns.c.said_at)
Index(
    "turns_origin",
    turns.c.owner,
    turns.c.origin,
    unique=True,
    sqlite_where=turns.c.origin.is_not(None),
    postgresql_where=turns.c.origin.is_not(None),
)

items = Table(
    "items",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("owner", Integer, nullable=False),
    Column("agent", Text),
    Column("session", Text),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("subject", Text),
    Column("predicate", Text),
    Column("object", Text),
    Column("entities", Text),  # JSON list, NULL for none
    Column("valid_from", BigInteger),
    Column("valid_to", BigInteger),
    Column("recorded_at", BigInteger, nullable=False),
    Column("retired_at", BigInteger),
    Column("made_by", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("metadata", Text),
    Column("origin", Text),
    Column("gloss", Text),  # JSON, NULL for none
    sqlite_autoincrement=True,
)
Index("items_slot", items.c.owner, items.c.subject, items.c.predicate)
Index(
    "items_origin",
    items.c.owner,
    items.c.origin,
    unique=True,
    sqlite_where=items.c.origin.is_not(None),
    postgresql_where=items.c.origin.is_not(None),
)

item_sources = Table(
    "item_sources",
    metadata,
    Column("item", Integer, primary_key=True),
    Column("turn", Integer, primary_key=True),
    sqlite_with_rowid=False,
)
Index("item_sources_turn", item_sources.c.turn)

item_entities = Table(
    "item_entities",
    metadata,
    Column("owner", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("item", Integer, primary_key=True),
    sqlite_with_rowid=False,
)

speakers = Table(
    "speakers",
    metadata,
    Column("owner", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    sqlite_with_rowid=False,
)

links = Table(
    "links",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("owner", Integer, nullable=False),
    Column("source", Integer, nullable=False),
    Column("relation", Text, nullable=False),
    Column("target", Integer, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("weight", Float, nullable=False, server_default="1.0"),
    UniqueConstraint("source", "relation", "target"),
    sqlite_autoincrement=True,
)
Index("links_target", links.c.target)

changes = Table(
    "changes",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("owner", Integer, nullable=False),
    Column("item", Integer, nullable=False),
    Column("batch", Integer, nullable=False),  # the first change of what was done together
    Column("action", Text, nullable=False),
    Column("before", Text),  # JSON of the item, NULL where there was none
    Column("after", Text),
    Column("made_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("undone_by", Integer),
    Column("sources", Text),  # JSON list of the turns that led to it, NULL for none
    Column("ladder", Integer),  # what was asked of models for it, NULL for nothing
    sqlite_autoincrement=True,
)
Index("changes_item", changes.c.item)
Index("changes_batch", changes.c.batch)

ladders = Table(
    "ladders",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("owner", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("steps", Text, nullable=False),  # JSON; a reason can quote a reply
    sqlite_autoincrement=True,
)

Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("owner", Integer, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),  # ids, never text
    Column("digest", LargeBinary, nullable=False),  # of this row and the digest before it
    sqlite_autoincrement=True,
)

Table(
    "pending",
    metadata,
    Column("kind", Integer, primary_key=True, autoincrement=False),  # 0 turn, 1 item
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("owner", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# SQLite alone: vectors are rows of a file, and full text is FTS5's.

sqlite_metadata = MetaData()

vectors = Table(
    "vectors",
    sqlite_metadata,
    Column("row", Integer, primary_key=True, autoincrement=False),  # in the file of vectors
    Column("kind", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("owner", Integer, nullable=False),
)
Index("vectors_of", vectors.c.kind, vectors.c.seq, unique=True)

# The words of turns and items as stems. `key` holds whose they are, so that a search touches the
# rows of one owner only; its weight in BM25 is 0.
SQLITE_FULL_TEXT = (
    "CREATE VIRTUAL TABLE turn_words USING fts5(key, words)",
    "CREATE VIRTUAL TABLE item_words USING fts5(key, words)",
)


# PostgreSQL alone: vectors are pgvector's, and full text is four tables of ours, because its own
# ranks otherwise than FTS5.

postgres_metadata = MetaData()

words = Table(
    "words",
    postgres_metadata,
    Column("id", BigInteger, primary_key=True),
    Column("layer", SmallInteger, nullable=False),  # 0 turn, 1 item
    Column("word", Text, nullable=False),
    Column("documents", Integer, nullable=False),  # that have it
    UniqueConstraint("layer", "word"),
)

Table(
    "postings",
    postgres_metadata,
    Column("layer", SmallInteger, primary_key=True, autoincrement=False),
    Column("word", BigInteger, primary_key=True, autoincrement=False),
    Column("owner", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("length", Integer, nullable=False),  # of the document, as in `documents`
    Column("places", postgresql.ARRAY(Integer), nullable=False),
)

Table(
    "documents",
    postgres_metadata,
    Column("layer", SmallInteger, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("owner", Integer, nullable=False),
    Column("marks", Integer, nullable=False),  # words that say whose it is
    Column("length", Integer, nullable=False),  # words, and those
    Column("words", Text, nullable=False),
)

Table(
    "corpus",
    postgres_metadata,
    Column("layer", SmallInteger, primary_key=True, autoincrement=False),
    Column("documents", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

POSTGRES_VECTORS = (
    (
        "CREATE TABLE vectors ( kind INTEGER, seq INTEGER, owner INTEGER NOT NULL, "
        "embedding vector NOT NULL, PRIMARY KEY (kind, seq) )"
    ),
    "CREATE INDEX vectors_owner ON vectors (owner, kind)",
)

# ANALYZE keeps samples of columns in the catalogue, where forgetting cannot reach: it is told to
# keep none of text, but of these, which hold no one's words.
SAMPLED = ("action", "key", "kind", "made_by", "relation", "role", "tenant")


def sqlite_script() -> str:
    """Return the SQL that makes an empty SQLite memory; `migrations/sqlite.sql` is this text."""
    dialect = sqlite.dialect()
    parts = [*_made(metadata, dialect), *_made(sqlite_metadata, dialect), *SQLITE_FULL_TEXT]
    return _script("sqlite", parts)


def postgres_script() -> str:
    """Return the SQL that makes an empty schema of PostgreSQL; `migrations/postgres.sql`.

    Texts sort and compare by their bytes, as in SQLite.
    """
    dialect = postgresql.dialect()
    parts = [*_made(metadata, dialect), *_made(postgres_metadata, dialect)]
    parts = [_TEXT.sub('TEXT COLLATE "C"', part) for part in parts]
    parts += POSTGRES_VECTORS
    for table in (*metadata.sorted_tables, *postgres_metadata.sorted_tables):
        parts += [
            f'ALTER TABLE {table.name} ALTER "{column.name}" SET STATISTICS 0'
            for column in table.columns
            if isinstance(column.type, Text) and column.name not in SAMPLED
        ]
    return _script("postgres", parts)


_TEXT = re.compile(r"\bTEXT\b")


def _made(tables: MetaData, dialect: Dialect) -> list[str]:
    parts = []
    for table in tables.sorted_tables:
        parts.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            parts.append(str(CreateIndex(index).compile(dialect=dialect)).strip())
    return parts


def _script(name: str, parts: Sequence[str]) -> str:
    lines = [" ".join(part.split()) for part in parts]
    return f"-- Written by loci.store.schema.{name}_script().\n" + ";\n".join(lines) + ";\n"
