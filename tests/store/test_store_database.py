"""The file: how it is made, opened, migrated, shared and filled up."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memories import Plain

from loci.bench.suites.durability import kill_rounds
from loci.errors import BusyError, LociError, ParameterError, SchemaError, StorageError, StoreError
from loci.run.memory import Memory
from loci.store.database import VERSION
from loci.store.schema import sqlite_script
from loci.store.writes import check_audit

MIGRATIONS = Path(sys.modules[Memory.__module__].__file__ or "").parents[1] / "store/migrations"


def test_the_script_is_what_the_tables_say() -> None:
    assert (MIGRATIONS / "sqlite.sql").read_text("utf-8") == sqlite_script()


def test_files_are_for_their_owner_only(sqlite_memory: Memory) -> None:
    sqlite_memory.add("hello there", user="ada")
    for path in sqlite_memory.store.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_leaves_no_other_file_behind(sqlite_memory: Memory) -> None:
    sqlite_memory.add("hello there", user="ada")
    path = sqlite_memory.store.path
    sqlite_memory.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_add_and_lexical_search_load_no_torch_numpy_or_sqlalchemy(tmp_path: Path) -> None:
    code = f"""
import sys
import loci.bench.writers
from loci.run.memory import Memory
with Memory({str(tmp_path / "m.db")!r}) as memory:
    memory.add("I keep bees in Ghent", user="ada", infer=False)
    assert memory.search("bees", user="ada", mode="lexical")
for heavy in ("torch", "numpy", "sqlalchemy", "alembic", "transformers"):
    assert heavy not in sys.modules, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_refuses_a_schema_from_the_future(sqlite_memory: Memory) -> None:
    path = sqlite_memory.store.path
    sqlite_memory.close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    with pytest.raises(SchemaError, match="newer Loci"):
        Memory(path)


def test_refuses_other_databases_and_other_files(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (a)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="no memory of Loci"):
        Memory(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("dear diary, " * 100)
    with pytest.raises(StoreError, match="no memory of Loci"):
        Memory(tmp_path / "text.db")
    with pytest.raises(StoreError, match="no such folder"):
        Memory(tmp_path / "missing" / "m.db")
    with pytest.raises(ParameterError, match="not supported"):
        Memory("mysql://user:secret@host/db")
    with pytest.raises(ParameterError, match="needs a file"):
        Memory(":memory:")


def test_an_empty_file_becomes_a_memory(tmp_path: Path) -> None:
    (tmp_path / "m.db").touch()
    with Memory(f"sqlite:///{tmp_path / 'm.db'}") as memory:
        memory.add("hello", user="ada", infer=False)
        assert memory.counts(user="ada")["turns"] == 1


def version_1(path: Path) -> None:
    """Make a file as the first schema had it: no origins, no table of speakers."""
    script = sqlite_script()
    younger = ("_origin", "TABLE speakers", "TABLE ladders")
    lines = [line for line in script.splitlines() if not any(word in line for word in younger)]
    script = "\n".join(lines)
    for column in (
        ", origin TEXT",
        ", gloss TEXT",
        ", sources TEXT",
        ", ladder INTEGER",
        ", weight FLOAT DEFAULT '1.0' NOT NULL",
    ):
        assert column in script
        script = script.replace(column, "")
    db = sqlite3.connect(path)
    db.executescript(script)
    db.execute("INSERT INTO owners (tenant, user) VALUES ('local', 'ada')")
    db.execute(
        "INSERT INTO turns (owner, session, position, role, name, content, said_at, offset_s, "
        "zone_assumed, recorded_at) VALUES (1, 's', 0, 'user', 'Ada', 'old bees', 0, 0, 0, 0)"
    )
    db.execute("INSERT INTO turn_words (rowid, key, words) VALUES (1, 'o1', 'old bee')")
    db.execute("INSERT INTO pending VALUES (0, 1, 1)")
    db.execute("PRAGMA application_id=1282368361")
    db.execute("PRAGMA user_version=1")
    db.commit()
    db.close()


def test_migrates_the_first_schema(tmp_path: Path) -> None:
    version_1(tmp_path / "m.db")
    with Memory(tmp_path / "m.db", recall=Plain()) as memory:
        memory.add("new bees", user="ada")
        assert {hit.text for hit in memory.search("bees", user="ada")} == {"old bees", "new bees"}
        assert memory.store.view(memory._scope("ada"), memory.clock.now()).speakers() == ["Ada"]
        path = memory.store.path

    def shape(path: Path) -> set[tuple[str, ...]]:
        db = sqlite3.connect(path)
        columns = {
            (table, *map(str, column[1:3]))
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for column in db.execute(f"PRAGMA table_info({table})")
        }
        indexes = db.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
        db.close()
        return columns | set(indexes)

    Memory(tmp_path / "new.db").close()
    assert shape(path) == shape(tmp_path / "new.db")


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loci.store import migrations

    version_1(tmp_path / "m.db")

    def fails(op: object) -> None:
        migrations._to_2(op)  # type: ignore[arg-type]
        raise RuntimeError("in the middle")

    monkeypatch.setitem(migrations.STEPS, 2, fails)
    with pytest.raises(RuntimeError):
        Memory(tmp_path / "m.db")
    monkeypatch.undo()
    with Memory(tmp_path / "m.db", recall=Plain()) as memory:
        assert memory.search("bees", user="ada")


@pytest.mark.slow
@pytest.mark.parametrize(("database", "rounds"), [("sqlite", 40), ("postgres", 12)])
def test_what_was_acknowledged_survives_kill_9(
    database: str, rounds: int, quick_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each round two writers are killed; what they acknowledged must be there, and all whole."""
    where = str(quick_path / "m.db")
    if database == "postgres":
        where = request.getfixturevalue("postgres_place")("killed")
    survived = kill_rounds(where, rounds)
    assert survived.acknowledged >= 2 * rounds
    assert survived.lost == [] and survived.problems == []


def test_two_processes_write_at_once(place: Callable[[str], str]) -> None:
    code = """
import sys
from loci.run.memory import Memory
with Memory(sys.argv[1]) as memory:
    for number in range(50):
        memory.add(f"{sys.argv[2]} number {number}", user="ada", session=sys.argv[2], infer=False)
"""
    path = place("m.db")
    Memory(path).close()
    started = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "ab"]
    assert [process.wait(60) for process in started] == [0, 0]
    with Memory(path) as memory:
        assert memory.counts(user="ada")["turns"] == 100
        for name in "ab":
            turns = memory.list(user="ada", session=name, kinds="turn", limit=100)
            assert [turn.position for turn in turns] == list(range(49, -1, -1))
        assert check_audit(memory.store.database) == 0


def test_threads_share_a_memory(memory: Memory) -> None:
    def work(name: str) -> None:
        for number in range(30):
            memory.add(f"{name} {number}", user=name)
            assert memory.search(f"{number}", user=name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [memory.counts(user=name)["turns"] for name in ("a", "b", "c")] == [30, 30, 30]


def test_a_writer_that_waits_too_long_is_told(memory: Memory, place: Callable[[str], str]) -> None:
    memory.add("first", user="ada")
    other = Memory(place("ada.db"), busy_s=0.05)
    with memory.store.database.write():
        with pytest.raises(BusyError, match=r"more than 0\.05 s"):
            other.add("second", user="ada", infer=False)
        assert other.counts(user="ada")["turns"] == 1, "reading goes on"
    other.add("second", user="ada", infer=False)
    other.close()


def test_a_full_disk_loses_nothing(sqlite_memory: Memory) -> None:
    memory = sqlite_memory
    memory.add("kept words", user="ada")
    database = memory.store.database
    pages = database.rows("PRAGMA page_count")[0][0]
    database.connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(StorageError, match="full"):
        for number in range(1000):
            memory.add(f"lost {number} " + "word" * 500, user="ada")
    before = memory.counts(user="ada")
    database.connection.execute("PRAGMA max_page_count=100000")
    memory.add("room again", user="ada")
    assert memory.counts(user="ada")["turns"] == before["turns"] + 1
    assert memory.search("kept", user="ada")
    assert database.rows("PRAGMA integrity_check") == [("ok",)]


def test_an_error_in_the_method_stores_nothing(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no idea")

    monkeypatch.setattr(Plain, "revise", fails)
    with pytest.raises(RuntimeError):
        memory.add("I live in Ghent", user="ada")
    assert memory.users() == []


def test_a_closed_memory_says_so(memory: Memory) -> None:
    memory.close()
    memory.close()
    with pytest.raises(StoreError, match="closed"):
        memory.add("x", user="ada")


def test_the_audit_notices_a_change(memory: Memory) -> None:
    memory.add("one", user="ada")
    memory.add("two", user="ada")
    database = memory.store.database
    assert check_audit(database) == 0
    with database.write() as db:
        db.execute("UPDATE audit SET subject = 't9' WHERE seq = 1")
    assert check_audit(database) == 1
    assert memory.store.check_integrity() == ["the audit does not follow from row 1 on"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DELETE FROM turns WHERE seq = 1", "sources that are not there"),
        ("DELETE FROM turns WHERE seq = 1", "full text of turns"),
        ("DELETE FROM pending", "turns neither embedded nor waiting"),
        ("DELETE FROM changes", "items without a history"),
        ("DELETE FROM owners", "turns or items of nobody"),
        ("UPDATE turns SET position = 0", "a session twice"),
    ],
)
def test_integrity_sees_what_is_half_there(memory: Memory, damage: str, words: str) -> None:
    memory.add([{"name": "Ada", "content": "I live in Ghent"}, "two"], user="ada", session="s")
    assert memory.store.check_integrity() == []
    with memory.store.database.write() as db:  # type: ignore[attr-defined]
        db.execute(damage)
    assert any(words in problem for problem in memory.store.check_integrity())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(min_size=1, max_size=200), metadata=st.dictionaries(st.text(), st.integers()))
def test_any_text_comes_back_or_is_refused(
    memory: Memory, text: str, metadata: dict[str, int]
) -> None:
    try:
        added = memory.add([{"content": text, "metadata": metadata}], user="ada")
    except LociError:
        assert not text.strip() or any("\ud800" <= c <= "\udfff" for c in text + "".join(metadata))
        return
    turn = memory.get(added.turns[0].id)
    assert (turn.content, turn.metadata) == (text, metadata)  # type: ignore[union-attr]
    memory.search(text, user="ada")
