"""A memory in PostgreSQL: one schema of a database, with pgvector for vectors.

    postgresql://user:password@host:5432/database?schema=loci

`schema` is ours and "loci" by default; whatever else libpq understands may stand in the URL. All
texts sort and compare by their bytes, as in SQLite. A server that was told to acknowledge commits
before they are on its disk (synchronous_commit = off) is told otherwise for our connection.

Writers of one memory take turns by an advisory lock, so that what a method read in its
transaction still holds when it writes, and the audit is one chain.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any  # whatever a column holds
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from loci.errors import (
    BusyError,
    LociError,
    ParameterError,
    SchemaError,
    StorageError,
    StoreError,
    missing_extra,
)
from loci.store.database import VERSION, Database, Field, Writer
from loci.store.postgres_vectors import PostgresVectors
from loci.store.postgres_words import PostgresWords
from loci.store.relational import RelationalStore

if TYPE_CHECKING:
    from psycopg import Connection

_LOCK = 0x4C6F6369  # "Loci": the first half of our advisory locks' numbers
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PATIENCE_S = 10  # to reach the server, unless the URL says otherwise

# PostgreSQL keeps no NUL in text: it and the sign that stands for it are written as pairs of
# noncharacters, which no text in earnest holds.
_SIGN, _NUL = "\ufdd0", "\ufdd1"

OUT_OF_REACH = (
    "the server's write-ahead log, its archive, and the log of statements if it keeps one",
    "replicas of the server and its backups",
    "blocks on disk of tables that were rewritten",
)


class PostgresStore(RelationalStore):
    """A store in one schema of a PostgreSQL database."""

    database: PostgresDatabase

    def __init__(self, url: str, *, busy_s: float = 10.0) -> None:
        database = PostgresDatabase(url, busy_s)
        super().__init__(database, PostgresVectors(database))


class PostgresDatabase(Database):
    """A connection to a server, made again when it was lost between two calls."""

    same = "IS NOT DISTINCT FROM"

    def __init__(self, url: str, busy_s: float) -> None:
        try:
            import pgvector  # noqa: F401
            import psycopg
        except ImportError as problem:
            raise missing_extra(problem.name or "psycopg", "postgres") from problem
        super().__init__(busy_s)
        self._lost = psycopg.OperationalError
        self._url, self._name, self.schema = read_url(url)
        self.words: PostgresWords = PostgresWords(self)
        self._depth, self._is_closed = 0, False
        self._raw = self._connect()
        self.connection: _Writer = _Writer(self)
        try:
            with self.told():
                self._prepare()
        except BaseException:
            self._raw.close()
            raise

    @property
    def name(self) -> str:
        """Return the URL without its password."""
        return self._name

    @property
    def raw(self) -> Connection[tuple[Any, ...]]:
        """Return psycopg's connection, alive unless we are inside a transaction."""
        if self._is_closed:
            raise StoreError("this memory is closed", value=self.name)
        if self._raw.closed and not self._depth:
            self._raw.close()
            self._raw = self._connect()
            self._find_names(self._raw)
        return self._raw

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """Run a transaction; errors undo all of it."""
        with self.lock, self.told():
            if self._depth:  # already inside one: it ends with the outer
                yield self.connection
                return
            raw = self.raw
            raw.execute("BEGIN")
            self._depth += 1
            try:
                raw.execute("SELECT pg_advisory_xact_lock(%s, %s)", self._turn)
                yield self.connection
                self._commit()
            except BaseException:
                if not raw.closed:
                    raw.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.lock, self.told():
            if not self._depth:
                try:
                    return self.run(sql, values).fetchall()
                except self._lost:
                    if not self._raw.closed:
                        raise  # else read once more, on a new connection
            return self.run(sql, values).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> _Rows:
        """Run one statement of ours, whose marks are `?`."""
        return _Rows(self.raw.execute(marked(sql), [_out(value) for value in values]))

    def next_seq(self, table: str, count: int = 1) -> int:
        """Return the first of the next numbers; a rollback gives them back."""
        row = self.run(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = CAST(CAST(meta.value AS BIGINT) + ? AS TEXT) RETURNING value",
            (f"numbers.{table}", str(count), count),
        ).fetchone()
        return int(row[0]) - count + 1

    def holds(self, column: str, *, folded: bool = False) -> str:
        """Return the condition that a column of text has `?` in it."""
        if not folded:
            return f"strpos({column}, ?) > 0"
        return f'strpos(lower({column} COLLATE "C"), lower(CAST(? AS TEXT) COLLATE "C")) > 0'

    def field(self, data: str, path: Sequence[str]) -> Field:
        """Return one field of JSON."""
        # jsonb takes no NUL; in JSON it is written \\u0000 behind an even number of backslashes.
        clean = (
            f"(CASE WHEN strpos({data}, '\\u0000') > 0 THEN regexp_replace({data}, "
            rf"'(?<!\\)((?:\\\\)*)\\u0000', '\1{_SIGN}{_NUL}', 'g') ELSE {data} END)::jsonb"
        )
        value = clean + "".join(f" -> '{part.replace(chr(39), chr(39) * 2)}'" for part in path)
        kind = f"jsonb_typeof({value})"
        return Field(
            any=f"nullif({value}, 'null'::jsonb)",
            text=f"(CASE {kind} WHEN 'string' THEN ({value}) #>> '{{}}' "
            f"WHEN 'array' THEN ({value})::text WHEN 'object' THEN ({value})::text END "
            'COLLATE "C")',
            number=f"(CASE {kind} WHEN 'number' THEN (({value}) #>> '{{}}')::numeric "
            f"WHEN 'boolean' THEN ({value})::boolean::int END)",
        )

    def scrub(self) -> list[str]:
        """Write every table anew, with its indexes: deleted rows stay in them until then."""
        from psycopg import errors

        left: list[str] = []
        said: list[str] = []
        with self.lock, self.told():
            raw = self.raw

            def hear(notice: Any) -> None:
                said.append(f"{notice.message_primary or ''} {notice.message_detail or ''}")

            raw.add_notice_handler(hear)
            try:
                for table in self._tables():
                    said.clear()
                    try:
                        raw.execute(f"VACUUM (FULL, VERBOSE) {table}".encode())
                    except errors.LockNotAvailable:
                        left.append(f"rows of {table}, which another session is using")
                        continue
                    kept = re.search(r"(\d+) dead row versions cannot be removed", " ".join(said))
                    if kept is not None and int(kept[1]):
                        left.append(f"rows of {table} that another session's transaction may see")
            finally:
                raw.remove_notice_handler(hear)
        return [f"{what}: run it again when that has ended" for what in left]

    def find(self, texts: Sequence[str]) -> dict[str, int]:
        """Return {table: in how many of its values one of these texts was found}."""
        found: dict[str, int] = {}
        for table in self._tables():
            sql = (
                "SELECT attname FROM pg_attribute WHERE attrelid = CAST(? AS regclass) "
                "AND attnum > 0 AND NOT attisdropped AND atttypid = 'text'::regtype"
            )
            columns = [f'"{name}"' for (name,) in self.rows(sql, (table,))]
            if not columns:
                continue
            parts = " + ".join(f"coalesce(strpos({c}, part), 0)::bool::int" for c in columns)
            sql = (
                f"SELECT coalesce(sum({parts}), 0) FROM {table}, unnest(CAST(? AS text[])) AS part"
            )
            found[table] = int(self.rows(sql, (list(texts),))[0][0])
        return found

    def damage(self) -> list[str]:
        """Return where full text and what it is made of do not agree."""
        found = []
        for layer, table in enumerate(("turns", "items")):
            lost = f"SELECT count(*) FROM {table} r FULL JOIN "
            lost += f"(SELECT seq FROM documents WHERE layer = {layer}) d ON d.seq = r.seq "
            lost += "WHERE r.seq IS NULL OR d.seq IS NULL"
            if self.rows(lost) != [(0,)]:
                found.append(f"the full text of {table} has more rows or less than they have")
            counted = f"SELECT documents, tokens FROM corpus WHERE layer = {layer}"
            real = f"SELECT count(*), sum(length) FROM documents WHERE layer = {layer}"
            if (self.rows(counted) or [(0, 0)]) != [tuple(n or 0 for n in self.rows(real)[0])]:
                found.append(f"the full text of {table} is counted wrongly")
            words = (
                f"SELECT count(*) FROM (SELECT id, documents FROM words WHERE layer = {layer}) w "
                "FULL JOIN (SELECT word, count(*) AS documents FROM postings "
                f"WHERE layer = {layer} GROUP BY word) p ON p.word = w.id "
                "WHERE w.documents IS DISTINCT FROM p.documents"
            )
            if self.rows(words) != [(0,)]:
                found.append(f"the words of {table} are counted wrongly")
        return found

    @property
    def out_of_reach(self) -> tuple[str, ...]:
        """Return what a server keeps where no client can erase it."""
        return OUT_OF_REACH

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        with self.lock:
            self._is_closed = True
            self._raw.close()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raise psycopg's errors as ours."""
        import psycopg

        try:
            yield
        except psycopg.Error as problem:
            raise self._ours(problem) from problem

    def another(self) -> Connection[tuple[Any, ...]]:
        """Return a second connection, for work that may take long; the caller closes it."""
        raw = self._connect()
        self._find_names(raw)
        return raw

    # -- private ------------------------------------------------------------------------------

    @property
    def _turn(self) -> tuple[int, int]:
        """Return the number of the lock of this memory's writers."""
        return _LOCK, zlib.crc32(self.schema.encode()) - 2**31

    def _tables(self) -> list[str]:
        """Return the memory's tables, sorted."""
        sql = (
            "SELECT relname FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = CAST(? AS regnamespace) ORDER BY relname"
        )
        return [str(name) for (name,) in self.rows(sql, (self.schema,))]

    def _connect(self) -> Connection[tuple[Any, ...]]:
        import psycopg

        try:
            raw = psycopg.connect(self._url, autocommit=True)
        except psycopg.OperationalError as problem:
            raise StoreError(
                f"the database cannot be reached: {str(problem).strip()}", value=self.name
            ) from problem
        except psycopg.ProgrammingError as problem:
            raise ParameterError(
                f"this URL cannot be read: {str(problem).strip()}",
                value=self.name,
                allowed="postgresql://user:password@host:5432/database?schema=loci",
            ) from problem
        raw.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('synchronous_commit', "
            "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
            "ELSE current_setting('synchronous_commit') END, false)",
            (f"{max(1, round(self.busy_s * 1000))}ms",),
        )
        return raw

    def _find_names(self, raw: Connection[tuple[Any, ...]]) -> None:
        """Make our tables known, and the type of vectors wherever the extension is installed."""
        from pgvector.psycopg import register_vector

        row = raw.execute(
            "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
            "WHERE e.extname = 'vector'"
        ).fetchone()
        places = dict.fromkeys((self.schema, *((str(row[0]),) if row else ())))
        path = ", ".join(f'"{place}"' for place in places)
        raw.execute("SELECT set_config('search_path', %s, false)", (path,))
        if row is not None:
            register_vector(raw)

    def _prepare(self) -> None:
        """Make the schema if it is not there; bring an older one here."""
        encoding = self._raw.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                "the database does not keep text as UTF-8",
                value=encoding,
                allowed="UTF8",
                way_out="CREATE DATABASE loci TEMPLATE template0 ENCODING 'UTF8'",
            )
        self._find_names(self._raw)
        if self._schema_version() is None:
            self._create()
        version = self._schema_version()
        if version is None:
            raise StoreError(
                "this schema has other tables, but no memory of Loci",
                value=self.schema,
                way_out="name another with ?schema=",
            )
        if version > VERSION:
            raise SchemaError(
                "this memory was written by a newer Loci",
                value=version,
                allowed=f"schema {VERSION} or older",
                way_out="pip install --upgrade loci",
            )
        if version < VERSION:
            self._migrate()

    def _schema_version(self) -> int | None:
        """Return the version of the tables, None if there are none of ours."""
        ours = self.rows("SELECT to_regclass(?) IS NULL", (f'"{self.schema}".meta',))[0][0]
        if ours:
            return None
        row = self.one("SELECT value FROM meta WHERE key = ?", ("schema",))
        return None if row is None else int(row[0])

    def _create(self) -> None:
        from psycopg import errors

        with self.write():  # whoever comes second finds it made
            has_schema = bool(
                self.rows("SELECT to_regnamespace(?) IS NOT NULL", (self.schema,))[0][0]
            )
            if has_schema and self._tables():
                return
            try:
                if not has_schema:
                    self._raw.execute(f'CREATE SCHEMA "{self.schema}"'.encode())
                if not self.rows("SELECT 1 FROM pg_extension WHERE extname = 'vector'"):
                    # Not into our schema: other memories of this database need it too.
                    self._raw.execute("CREATE EXTENSION vector SCHEMA public")
            except (errors.FeatureNotSupported, errors.UndefinedFile) as problem:
                raise StoreError(
                    "the server has no pgvector",
                    value=self.name,
                    way_out="install it beside the server: https://github.com/pgvector/pgvector",
                ) from problem
            except errors.InsufficientPrivilege as problem:
                raise StoreError(
                    f"this user may not make a memory here: {problem.diag.message_primary}",
                    value=self.name,
                    way_out=f'as an administrator: CREATE EXTENSION vector; CREATE SCHEMA "'
                    f'{self.schema}" AUTHORIZATION the_user',
                ) from problem
            self._find_names(self._raw)
            script = resources.files("loci.store").joinpath("migrations/postgres.sql")
            self._raw.execute(script.read_text("utf-8").encode())
            self.run("INSERT INTO meta (key, value) VALUES ('schema', ?)", (str(VERSION),))

    def _migrate(self) -> None:
        from loci.store.migrations import postgres_sql  # here: SQLAlchemy and Alembic
        from loci.store.schema import SAMPLED

        with self.write():
            now = self._schema_version() or VERSION  # another process may have been first
            self._raw.execute(postgres_sql(now, VERSION).encode())
            for table, column in self.rows(
                "SELECT relname, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
                "WHERE relkind = 'r' AND relnamespace = CAST(? AS regnamespace) AND attnum > 0 "
                "AND NOT attisdropped AND atttypid = 'text'::regtype "
                "AND coalesce(attstattarget, -1) <> 0 AND NOT attname = ANY(CAST(? AS text[]))",
                (self.schema, list(SAMPLED)),
            ):
                sql = f'ALTER TABLE {table} ALTER "{column}" SET STATISTICS 0'
                self._raw.execute(sql.encode())
            self.run("UPDATE meta SET value = ? WHERE key = 'schema'", (str(VERSION),))

    def _commit(self) -> None:
        import psycopg

        try:
            self._raw.execute("COMMIT")
        except psycopg.OperationalError as problem:
            if not self._raw.closed:
                raise
            raise StoreError(
                "the connection was lost while the last write was acknowledged",
                value=self.name,
                way_out="look whether it is there before you write it again",
            ) from problem

    def _ours(self, problem: Exception) -> LociError:
        from psycopg import Error, OperationalError, errors

        said = str(problem).strip().partition("\n")[0]
        if isinstance(problem, errors.LockNotAvailable):
            return BusyError(
                f"another session has been writing to the memory for more than {self.busy_s:g} s",
                value=self.name,
                way_out="try again when it has finished; nothing was changed",
            )
        if isinstance(problem, (errors.DiskFull, errors.IoError)):
            return StorageError(
                f"the server could not write: {said}; all acknowledged before is still there",
                value=self.name,
                way_out="free some space on the server and try again",
            )
        if isinstance(problem, errors.ProgramLimitExceeded):
            return ParameterError(
                f"PostgreSQL cannot index a name as long as this: {said}",
                allowed="names of entities of at most 2,000 bytes",
                way_out="shorten it; nothing was stored",
            )
        if isinstance(problem, errors.ReadOnlySqlTransaction):
            return StoreError("the server is read-only", value=self.name)
        assert isinstance(problem, Error)
        if isinstance(problem, OperationalError) and self._raw.closed:
            return StoreError(
                f"the connection to the database was lost: {said}",
                value=self.name,
                way_out="try again; what was not acknowledged was not stored",
            )
        return StoreError(f"the database cannot be used: {said}", value=self.name)


class _Writer:
    """Statements of ours on psycopg's connection, inside a transaction."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> _Rows:
        """Run one statement."""
        return self._database.run(sql, values)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        """Run one statement for many rows, sent together."""
        if rows:
            with self._database.raw.cursor() as cursor:
                cursor.executemany(marked(sql), [[_out(value) for value in row] for row in rows])


class _Rows:
    """What a statement left; texts come back as they were given."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        """Return how many rows were written."""
        return int(self._cursor.rowcount)

    def fetchone(self) -> Any:
        """Return the next row, None at the end."""
        row = self._cursor.fetchone()
        return None if row is None else tuple(_in(value) for value in row)

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        return [tuple(_in(value) for value in row) for row in self._cursor.fetchall()]


def read_url(url: str) -> tuple[str, str, str]:
    """Return (the URL for libpq, the URL without password, our schema).

    Raises:
        ParameterError: if the schema's name is none.
    """
    parts = urlsplit(url)
    asked = parse_qsl(parts.query, keep_blank_values=True)
    schemas = [value for key, value in asked if key == "schema"] or ["loci"]
    schema = schemas[-1]
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ParameterError(
            "a schema has another name",
            value=schema,
            allowed="up to 63 of a-z, 0-9 and _, not beginning with a digit or pg_",
        )
    rest = [(key, value) for key, value in asked if key != "schema"]
    if not any(key == "connect_timeout" for key, _ in rest):
        rest.append(("connect_timeout", str(_PATIENCE_S)))
    query = urlencode(rest, quote_via=quote, safe="/")
    full = f"postgresql://{parts.netloc}{parts.path}?{query}"
    user, at, host = parts.netloc.rpartition("@")
    shown = urlencode([(k, v) for k, v in asked if k != "password"], quote_via=quote, safe="/")
    where = f"{user.partition(':')[0]}{at}{host}{parts.path}"
    return full, f"postgresql://{where}{f'?{shown}' if shown else ''}", schema


@lru_cache(maxsize=1024)
def marked(sql: str) -> bytes:
    """Return a statement with psycopg's marks instead of `?`, literals left alone."""

    def one(match: re.Match[str]) -> str:
        found = match[0]
        if found == "?":
            return "%s"
        return found.replace("%", "%%")

    return _MARK.sub(one, sql).encode()


_MARK = re.compile(r"'(?:[^']|'')*'|\?|%")


def _out(value: Any) -> Any:
    if isinstance(value, str):
        if _SIGN in value or "\0" in value:
            return value.replace(_SIGN, _SIGN + _SIGN).replace("\0", _SIGN + _NUL)
        return value
    return [_out(one) for one in value] if isinstance(value, list) else value


def _in(value: Any) -> Any:
    if isinstance(value, str) and _SIGN in value:
        return _PAIR.sub(lambda pair: "\0" if pair[0][1] == _NUL else _SIGN, value)
    return value


_PAIR = re.compile(f"{_SIGN}[{_SIGN}{_NUL}]")
