"""Where a forgotten text could hide: each of these places is tried."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from memories import Hashing, Plain

from loci.core.clock import ManualClock
from loci.core.item import Add, Candidate, Gloss, Link, Retire, Revise
from loci.errors import NotFoundError, ParameterError
from loci.run.memory import Memory
from loci.store.messages import drafts
from loci.store.scan import count
from loci.text.ladder import Refused, Step

SECRET = "I'm allergic to walnuts"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Memory]:
    """Return a memory in a file: these attacks read its bytes."""
    clock = ManualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))
    with Memory(tmp_path / "ada.db", recall=Plain(), clock=clock) as opened:
        yield opened


def say(memory: Memory, text: str, *, user: str = "ada", role: str = "user", **more: object) -> str:
    message = {"role": role, "name": "Ada" if role == "user" else "Bot", "content": text, **more}
    return memory.add([message], user=user, session="s").turns[0].id


def edits(memory: Memory, *given: object) -> None:
    """Write edits as a method would, on account of a new message."""
    made = drafts("and so on", now=memory.clock.now(), assumed=UTC)
    memory.store.add(memory._scope("ada"), made, lambda *_: list(given), memory.clock.now())  # type: ignore[arg-type]


def bytes_with(folder: Path, word: str) -> list[str]:
    """Return the files that hold a word, whatever its case, in UTF-8 or UTF-16."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes().lower()
        if any(word.lower().encode(code) in data for code in ("utf-8", "utf-16-le", "utf-16-be")):
            found.append(path.name)
    return found


def folder(memory: Memory) -> Path:
    return memory.store.path.parent  # type: ignore[attr-defined]


def terms(memory: Memory) -> set[str]:
    """Return every term that the index of words holds, though segments pack their beginnings."""
    db = sqlite3.connect(memory.store.path)  # type: ignore[attr-defined]
    found = set()
    for table in ("turn_words", "item_words"):
        db.execute(f"CREATE VIRTUAL TABLE temp.v_{table} USING fts5vocab(main, '{table}', 'row')")
        found |= {str(term) for (term,) in db.execute(f"SELECT term FROM temp.v_{table}")}
    db.close()
    return found


def test_the_index_of_words_keeps_no_term(file: Memory) -> None:
    say(file, f"{SECRET}. We went to Ghent.")
    assert "walnut" in terms(file)
    file.forget("i1")
    assert "walnut" not in terms(file) and "ghent" in terms(file)
    shadow = sqlite3.connect(file.store.path)  # type: ignore[attr-defined]
    tables = shadow.execute("SELECT name FROM sqlite_master WHERE name LIKE '%_words_%'").fetchall()
    assert len(tables) == 10
    for (table,) in tables:
        for row in shadow.execute(f"SELECT * FROM {table}"):
            assert not any("walnut" in str(value) or b"walnut" in _raw(value) for value in row)
    shadow.close()


def _raw(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def test_a_killed_process_leaves_the_rest_to_the_next(
    file: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(file, SECRET)
    database = file.store.database  # type: ignore[attr-defined]
    monkeypatch.setattr(type(database), "scrub", _killed)
    with pytest.raises(KeyboardInterrupt):
        file.forget("i1")
    monkeypatch.undo()
    assert bytes_with(folder(file), "walnut"), "the rows are gone, their bytes are not"
    with pytest.raises(NotFoundError):
        file.get("i1")
    Memory(file.store.path, recall=Plain()).close()  # type: ignore[attr-defined]
    assert not bytes_with(folder(file), "walnut")
    assert database.meta("erasure.unfinished") is None


def _killed(self: object) -> list[str]:
    raise KeyboardInterrupt


def test_what_a_reader_held_up_is_finished_by_who_opens_next(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m.db", recall=Plain(), busy_s=0.05)
    say(memory, SECRET)
    reader = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT content FROM turns").fetchall()
    report = memory.forget("i1")
    assert any("another process" in words for words in report.out_of_reach)
    reader.execute("COMMIT")
    Memory(tmp_path / "m.db", recall=Plain()).close()
    reader.close()
    memory.close()
    assert not bytes_with(tmp_path, "walnut")


def test_vectors_are_overwritten(file: Memory) -> None:
    file.embedder = Hashing(width=16)
    say(file, SECRET)
    say(file, "Nice weather today")
    file.wait()
    path = folder(file) / "ada.db.vec"
    before = path.read_bytes()
    rows = file.store.database.rows("SELECT row FROM vectors ORDER BY row")  # type: ignore[attr-defined]
    assert len(rows) == 3
    file.forget("i1")
    after = path.read_bytes()
    assert len(after) == len(before)
    kept = {row for (row,) in file.store.database.rows("SELECT row FROM vectors")}  # type: ignore[attr-defined]
    for (row,) in rows:
        piece = after[64 + 64 * row : 128 + 64 * row]
        assert (piece == bytes(64)) == (row not in kept)


def test_a_text_over_many_pages_goes_and_would_be_found_in_pieces(file: Memory) -> None:
    chapters = " ".join(f"walnut chapter {n} of {n * 7919 % 1000} tells more" for n in range(3000))
    turn = say(file, f"I keep a diary, {chapters}")
    report = file.forget(turn)
    assert report.clean and not bytes_with(folder(file), "walnut chapter")
    from loci.store.traces import forms_of

    forms, perhaps, _ = forms_of([chapters], [])
    torn = folder(file) / "torn"
    pages = [chapters[at : at + 4000].encode() for at in range(0, len(chapters), 4000)]
    torn.write_bytes(b"\0\0\0\7".join(pages))
    assert count(torn, [form.encode() for form in forms]) == 0, "no page holds it whole"
    assert count(torn, [form.encode() for form in perhaps]) > 30


def test_metadata_that_tells_it_goes_and_the_rest_stays(file: Memory) -> None:
    tags = {"topic": "walnut", "why": [SECRET, "because"], "n": 3, "deep": {"allergen": "Walnuts"}}
    turn = say(file, f"{SECRET}. We went to Ghent.", metadata=tags)
    other = say(file, "Fine!", role="assistant", metadata={"in_reply_to": SECRET, "id": 7})
    note = file.note("shopping list", user="ada", metadata={"seen": f"{SECRET}.", "page": 2})
    file.edit(note.id, "long shopping list", reason=f"she said: {SECRET}")
    assert file.forget("i1").clean
    assert file.get(turn).metadata == {"why": ["because"], "n": 3, "deep": {}}
    assert file.get(other).metadata == {"id": 7}
    assert file.get(note.id).metadata == {"page": 2}
    assert [change.reason for change in file.history(note.id)] == ["", ""]
    assert file.undo(note.id)[0].metadata == {"page": 2}
    assert not bytes_with(folder(file), "walnut")


def test_said_again_in_capitals_without_a_stop_and_inside_another_sentence(file: Memory) -> None:
    say(file, SECRET)
    file.add("IM ALLERGIC TO WALNUTS!!! bye", user="ada", infer=False)
    file.add("I’m allergic, to walnuts", user="ada", infer=False)
    file.add("As I said, i'm allergic to walnuts, you know. Rain again.", user="ada", infer=False)
    file.add("My brother is allergic to walnuts", user="ada", infer=False)
    report = file.forget("i1")
    left = {t.id: t.content for t in file.list(user="ada", kinds="turn")}  # type: ignore[union-attr]
    assert left["t4"] == "Rain again."
    assert "t1" not in left and "t3" not in left
    assert left["t5"] == "My brother is allergic to walnuts", "another one's allergy"
    assert "t5" in report.mentions


def test_what_only_speaks_of_it_is_named_and_goes_when_asked(file: Memory) -> None:
    say(file, f"{SECRET}. We went to Ghent.")
    say(file, "Got it, no walnuts. Anything else?", role="assistant")
    note = file.note("No walnut cake for Ada", user="ada")
    dry = file.forget("i1", dry_run=True)
    assert set(dry.mentions) == {"t2", note.id}
    would = file.forget("i1", dry_run=True, mentions=True)
    assert set(would.items) == {"i1", note.id} and would.mentions == ()
    assert would.cut == {"t1": (f"{SECRET}.",), "t2": ("Got it, no walnuts.",)}
    report = file.forget("i1", mentions=True)
    assert (report.items, report.turns, report.cut) == (would.items, would.turns, would.cut)
    assert report.clean and not bytes_with(folder(file), "walnut")
    assert file.get("t2").content == "Anything else?"  # type: ignore[union-attr]


def test_the_message_that_ended_a_fact_goes_with_it(file: Memory) -> None:
    say(file, f"{SECRET}.")
    made = drafts("I can eat walnuts again. The sun is out.", now=file.clock.now(), assumed=UTC)

    def ends(turns: object, view: object) -> list[object]:
        return [Retire(id="i1", at=file.clock.now(), sources=("t2",), reason="said to be over")]

    file.store.add(file._scope("ada"), made, ends, file.clock.now())  # type: ignore[arg-type]
    report = file.forget("i1")
    assert report.turns == ("t1",) and report.cut == {"t2": ("I can eat walnuts again.",)}
    assert not bytes_with(folder(file), "walnut")


def test_a_message_that_ended_it_in_other_words_stays(file: Memory) -> None:
    say(file, "I live in Ghent.")
    say(file, "I moved to Rome.")
    report = file.forget("i1")
    assert report.items == ("i1",) and report.turns == ("t1",)
    assert file.get("i2").text == "Ada lives in Rome"  # type: ignore[union-attr]


def test_another_fact_of_the_same_sentence_is_not_lost(file: Memory) -> None:
    say(file, "I live in Ghent and I'm allergic to walnuts")
    facts = {item.text: item.id for item in file.list(user="ada")}  # type: ignore[union-attr]
    report = file.forget(facts["Ada is allergic to walnuts"])
    assert report.turns == ("t1",) and report.clean
    assert [item.text for item in file.list(user="ada")] == ["Ada lives in Ghent"]  # type: ignore[union-attr]
    assert not bytes_with(folder(file), "walnut")
    assert file.undo(facts["Ada lives in Ghent"]) and file.redo(facts["Ada lives in Ghent"])


def test_older_versions_and_what_was_merged_into_them(file: Memory) -> None:
    say(file, f"{SECRET}. We went to Ghent.")
    richer = Candidate(text="Ada is allergic to walnuts and pecans", sources=("t1",), subject="ada")
    edits(file, Revise(id="i1", candidate=richer))
    file.edit("i1", "Ada avoids nuts")
    report = file.forget("i1")
    assert report.clean and "Ada is allergic to walnuts and pecans" in report.texts
    assert not bytes_with(folder(file), "walnut") and not bytes_with(folder(file), "pecan")


def test_what_was_written_in_the_margin_of_another_note_goes(file: Memory) -> None:
    say(file, SECRET)
    gloss = Gloss(
        keywords=("walnut", "cake"), context="Ada cannot eat walnuts", sources=("t1", "t2")
    )
    edits(file, Add(candidate=Candidate(text="the cake of May", sources=("t2",), gloss=gloss)))
    edits(file, Link(source="i2", relation="near", target="i1"))
    assert file.search("walnuts", user="ada", kinds="fact")
    assert file.forget("i1").clean
    cake = file.get("i2")
    assert cake.text == "the cake of May" and cake.gloss is None  # type: ignore[union-attr]
    assert not file.search("walnuts", user="ada")
    assert not bytes_with(folder(file), "walnut")


def test_entities_and_names_go_with_the_last_that_has_them(file: Memory) -> None:
    say(file, f"{SECRET}.")
    assert file.store.database.rows("SELECT 1 FROM item_entities WHERE name = 'walnuts'")  # type: ignore[attr-defined]
    file.forget("i1")
    for table in ("item_entities", "speakers", "links", "changes", "pending", "vectors"):
        assert not file.store.database.rows(f"SELECT * FROM {table}"), table  # type: ignore[attr-defined]


def test_the_audit_tells_ids_and_never_text(file: Memory) -> None:
    say(file, SECRET)
    file.export(folder(file) / "out.jsonl")
    report = file.forget("i1")
    subjects = [s for (s,) in file.store.database.rows("SELECT subject FROM audit")]  # type: ignore[attr-defined]
    assert subjects == ["t1-t1 items 1", "3 records", "i1 t1"]
    assert any("the export of 2026-06-01 12:00 UTC (3 records)" in s for s in report.out_of_reach)


def test_copies_beside_the_file_are_looked_into(file: Memory) -> None:
    say(file, SECRET)
    path = file.store.path  # type: ignore[attr-defined]
    file.store.database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[attr-defined]
    shutil.copy(path, path.with_name("ada.db.bak"))
    (folder(file) / "ada.db-journal").write_text(f"a journal of a crash: {SECRET}")
    (folder(file) / "other.txt").write_text(SECRET)
    report = file.forget("i1")
    assert report.beside.keys() == {"ada.db.bak"} and report.beside["ada.db.bak"] > 1
    assert report.found["ada.db-journal"] > 0 and not report.clean


def test_short_secrets_are_erased_and_the_report_is_honest(file: Memory) -> None:
    pin, word = file.note("4711", user="ada"), file.note("hunter2", user="ada")
    report = file.forget([pin.id, word.id])
    assert report.too_short == ("4711",)
    assert report.clean and not bytes_with(folder(file), "hunter2")


def test_a_word_that_stands_elsewhere_by_right_is_no_leak(file: Memory) -> None:
    note = file.note("bicycles", user="ada")
    file.note("Bob sells bicycles", user="bob")
    report = file.forget(note.id)
    assert report.clean and report.elsewhere == 1


def test_forgetting_all_of_a_user(file: Memory) -> None:
    file.embedder = Hashing()
    for n in range(60):
        say(file, f"walnut number {n * 7919 % 1000} was counted on day {n}")
    say(file, SECRET)
    file.note("walnuts!", user="ada", metadata={"k": "walnut metadata"})
    say(file, "I live in Ghent", user="bob")
    file.wait()
    dry = file.forget_all(user="ada", dry_run=True)
    assert len(dry.turns) == 61 and not dry.done and file.counts(user="ada")["turns"] == 61
    report = file.forget_all(user="ada")
    assert report.clean and report.turns == dry.turns and report.items == dry.items
    assert file.users() == ["bob"] and file.search("Ghent", user="bob")
    assert not bytes_with(folder(file), "walnut")
    with pytest.raises(NotFoundError):
        file.get("t1")
    say(file, "hello again")
    assert [t.content for t in file.list(user="ada", kinds="turn")] == ["hello again"]  # type: ignore[union-attr]


def test_forgetting_a_session_or_an_agent(file: Memory) -> None:
    file.add([{"name": "Ada", "content": SECRET}], user="ada", session="s1", agent="a")
    file.add([{"name": "Ada", "content": "I live in Ghent"}], user="ada", session="s2", agent="b")
    report = file.forget_all(user="ada", session="s1")
    assert report.turns == ("t1",) and report.items == ("i1",) and report.clean
    assert not bytes_with(folder(file), "walnut")
    assert file.forget_all(user="ada", agent="b").turns == ("t2",)


def test_ids_of_nobody_and_of_several_users_are_refused(file: Memory) -> None:
    say(file, SECRET)
    say(file, SECRET, user="bob")
    for wrong in ([], "", 7, ["i1", 2]):
        with pytest.raises((ParameterError, NotFoundError)):
            file.forget(wrong)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="several users"):
        file.forget(["i1", "i2"])
    with pytest.raises(NotFoundError):
        file.forget(["i1", "i9"])
    assert file.get("i1"), "nothing half forgotten"


def test_why_a_reply_was_refused(file: Memory) -> None:
    """A model may put what was said where a name belongs, and the refusal quotes the name."""

    def tell(text: str, *edits: object) -> None:
        step = Step(task="extract", calls=1, refused=(Refused(f"{text} was not asked for"),))
        made = drafts(text, now=file.clock.now(), assumed=UTC)
        scope = file._scope("ada")
        file.store.add(scope, made, lambda *_: list(edits), file.clock.now(), steps=[step])  # type: ignore[arg-type]
        file.clock.advance(1)  # type: ignore[attr-defined]

    tell("walnut soup", Add(candidate=Candidate(text="soup of walnut", sources=("t1",))))
    tell("walnut bread with rye")
    tell("rye again", Add(candidate=Candidate(text="likes rye", sources=("t3",))))
    again = Candidate(text="likes rye most", sources=("t4",))
    tell("walnut: enough", Revise(id="i2", candidate=again))
    assert len(bytes_with(folder(file), "walnut")) > 0
    for id in ("t1", "t2", "t4"):
        assert file.forget(id).clean
    assert not bytes_with(folder(file), "walnut")
    change = next(one for one in file.history("i2") if one.action == "add")
    assert change.steps[0].refused[0].why == "rye again was not asked for"


def test_every_table_is_known_to_forgetting(file: Memory) -> None:
    """A new table must be thought of: add it to the erasure, and then here."""
    names = {str(n) for (n,) in file.store.database.rows("SELECT name FROM sqlite_master")}  # type: ignore[attr-defined]
    tables = {n for n in names if not n.startswith(("sqlite_", "turn_words", "item_words"))}
    indexes = {
        str(n)
        for (n,) in file.store.database.rows(  # type: ignore[attr-defined]
            "SELECT name FROM sqlite_master WHERE type = 'index'"
        )
    }
    assert tables - indexes == {
        *("audit", "changes", "item_entities", "item_sources", "items", "ladders", "links"),
        *("meta", "owners", "pending", "speakers", "turns", "vectors"),
    }


@pytest.mark.parametrize("many", [1, 40])
def test_counting_in_bytes(tmp_path: Path, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from loci.store import scan

    monkeypatch.setattr(scan, "_CHUNK", 7)
    path = tmp_path / "x"
    path.write_bytes(b"abcabcab" + b"\xc3\xa9" * 5 + b"needle" + b"aaaa")
    wanted = [b"abc", b"needle", b"aa", "é".encode()]
    patterns = [*wanted, *(b"never %d" % n for n in range(many))]
    assert count(path, patterns) == 2 + 1 + 3 + 5
    assert count(path, []) == 0 and count(path, [b""]) == 0
