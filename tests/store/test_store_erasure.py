"""Forgetting, down to the bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from memories import Hashing, Plain

from loci.errors import NotFoundError
from loci.run.memory import Memory
from loci.store.lineage import split

SECRET = "I'm allergic to walnuts"


def say(memory: Memory, text: str, user: str = "ada") -> None:
    message = {"name": "Ada", "content": text, "metadata": {"said": text}}
    memory.add([message], user=user, session="s")


def nothing_left(memory: Memory, *words: str) -> bool:
    """Return whether no file of the store, or no value of any of its tables, has the words."""
    path = getattr(memory.store, "path", None)
    if path is None:
        return not any(memory.store.database.find(words).values())  # type: ignore[attr-defined]
    return not any(
        word.encode() in file.read_bytes().lower()
        for file in path.parent.iterdir()
        for word in words
    )


def test_a_forgotten_fact_leaves_no_byte(memory: Memory) -> None:
    memory.embedder = Hashing()
    say(memory, f"{SECRET}. We went to Ghent.")
    say(memory, "Nice weather today")
    memory.search("walnuts", user="ada")
    memory.edit("i1", "Ada avoids walnuts at all times")
    memory.edit("i1", "Ada and walnuts do not mix")
    report = memory.forget("i1")
    assert report.items == ("i1",) and report.turns == ()
    assert report.cut == {"t1": (f"{SECRET}.",)}
    assert report.clean
    assert set(report.found) >= {"ada.db", "ada.db.vec"} or set(report.found) >= {"turns", "words"}
    assert nothing_left(memory, "walnut")
    turn = memory.get("t1")
    assert turn.content == "We went to Ghent." and turn.metadata == {}  # type: ignore[union-attr]
    assert memory.search("walnuts", user="ada", mode="lexical") == []
    assert memory.search("Ghent", user="ada")[0].id == "t1"
    assert any("backups" in words for words in report.out_of_reach)
    with pytest.raises(NotFoundError):
        memory.get("i1")
    memory.add("a new turn", user="ada")
    assert memory.note("new", user="ada").id == "i2", "numbers are not used twice"


def test_a_turn_that_cannot_be_cut_goes_whole(memory: Memory) -> None:
    say(memory, SECRET)
    report = memory.forget("i1")
    assert report.turns == ("t1",) and not report.cut and report.clean
    assert nothing_left(memory, "walnut", "allerg")
    assert memory.counts(user="ada") == {"turns": 0, "items": 0, "retired": 0}


def test_a_dry_run_shows_the_same_and_touches_nothing(memory: Memory) -> None:
    say(memory, f"{SECRET}. We went to Ghent.")
    dry = memory.forget("i1", dry_run=True)
    assert not dry.done and not dry.clean
    assert memory.get("i1") and SECRET in memory.get("t1").content  # type: ignore[union-attr]
    wet = memory.forget("i1")
    assert (dry.items, dry.turns, dry.cut, dry.texts) == (wet.items, wet.turns, wet.cut, wet.texts)


def test_the_same_sentence_said_again_goes_too(memory: Memory) -> None:
    say(memory, f"{SECRET}.")
    memory.add(f"As I said: {SECRET}. Bye.", user="ada", infer=False)
    say(memory, f"{SECRET}.", user="bob")
    report = memory.forget("i1")
    assert report.turns == ("t1",) and report.cut == {"t2": (f"As I said: {SECRET}.",)}
    assert report.elsewhere and not report.clean, "another user's words stay, and are counted"
    assert memory.search("walnuts", user="bob") and not memory.search("walnuts", user="ada")


def test_forgetting_a_turn_takes_its_facts(memory: Memory) -> None:
    say(memory, SECRET)
    assert memory.forget("t1").items == ("i1",)
    assert nothing_left(memory, "walnut")


def test_what_was_derived_goes_and_what_was_not_stays(memory: Memory) -> None:
    from loci.core.item import Link

    say(memory, f"{SECRET}. I live in Ghent.")
    note = memory.note("No nut cake for Ada because of walnuts", user="ada")
    link = Link(source=note.id, relation="derived_from", target="i2")
    now = memory.clock.now()
    with memory.store.database.write():  # type: ignore[attr-defined]
        from loci.store.changes import Ledgered

        scope = memory._scope("ada")
        Ledgered(memory.store.database, 1, scope, now).apply([link])  # type: ignore[attr-defined]
    items = {item.id: item.text for item in memory.list(user="ada")}  # type: ignore[union-attr]
    assert items["i2"] == "Ada is allergic to walnuts"
    report = memory.forget("i2")
    assert set(report.items) == {"i2", note.id} and report.clean
    assert memory.get("i1").text == "Ada lives in Ghent"  # type: ignore[union-attr]
    assert memory.get("t1").content == "I live in Ghent."  # type: ignore[union-attr]


def test_old_values_that_were_superseded_stay(memory: Memory) -> None:
    say(memory, "I live in Ghent.")
    say(memory, "I moved to Rome.")
    report = memory.forget("i2")
    assert report.items == ("i2",) and report.turns == ("t2",)
    assert memory.get("i1")


def test_many_rows_around_it_are_untouched(memory: Memory) -> None:
    memory.embedder = Hashing()
    memory.add([f"plain message number {n}" for n in range(300)], user="ada", session="s")
    say(memory, SECRET)
    memory.search("plain", user="ada")

    def found() -> list[str]:
        asked = memory.search("message number 17", user="ada", kinds="turn", mode="lexical")
        return [hit.id for hit in asked]

    before = found()
    assert memory.forget("i1").clean and nothing_left(memory, "walnut")
    assert found() == before and before[0] == "t18"
    assert memory.counts(user="ada")["turns"] == 300
    assert memory.store.check_integrity() == []


def test_another_reader_is_named_as_out_of_reach(place: Callable[[str], str]) -> None:
    memory = Memory(place("m.db"), recall=Plain(), busy_s=0.05)
    say(memory, SECRET)
    other = Memory(place("m.db"), recall=Plain())
    reader = other.store.database.connection  # type: ignore[attr-defined]
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ" if "://" in place("") else "BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchone()
    report = memory.forget("i1")
    assert any("run it again when" in words for words in report.out_of_reach)
    reader.execute("COMMIT")
    memory.forget(memory.note("another", user="ada").id)
    assert nothing_left(memory, "walnut")
    other.close()
    memory.close()


def test_the_word_of_a_speaker_goes_with_the_last_turn(memory: Memory) -> None:
    memory.add([{"name": "Xanthippe", "content": "hello there"}], user="ada")
    memory.forget("t1")
    assert nothing_left(memory, "xanthippe")


def test_sentences_joined_are_the_text() -> None:
    for text in ["One. Two! Three?", "a\nb\n\nc", "... what?! no", "", "no end", ".", "x.\n"]:
        assert "".join(split(text)) == text
