"""`loci memory`: why, what was changed, back and forth, at a date, for good, in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Loci


@pytest.fixture
def told(loci: Loci) -> Loci:
    """Return a command line whose memory knows where Ada lived and lives."""
    for text, time in (
        ("I live in Ghent.", "2024-01-01T10:00:00Z"),
        ("I moved to Rome. I'm allergic to walnuts.", "2025-01-01T10:00:00Z"),
    ):
        assert loci("memory", "add", text, "--time", time).code == 0
    return loci


def ids(loci: Loci, *more: str) -> dict[str, str]:
    return {i["text"].split()[-1]: i["id"] for i in loci("memory", "list", "--json", *more).json}


def test_show_says_why_it_was_recalled(told: Loci) -> None:
    id = ids(told)["Rome"]
    shown = told("memory", "show", id, "--query", "where does the user live?")
    assert shown.code == 0 and "answer 1 of" in shown.out and "score" in shown.out
    assert "I moved to Rome" in shown.out and "add rules" in shown.out
    told_json = told("memory", "show", id, "--query", "where is Rome?", "--json").json
    assert told_json["rank"] == 1 and told_json["hit"]["id"] == id and told_json["hit"]["why"]
    assert told_json["came_from"][0]["content"].startswith("I moved to Rome")
    assert [change["action"] for change in told_json["history"]] == ["add"]
    message = told("memory", "show", "t2", "--query", "where is Rome?")
    assert f"shown as {id}" in message.out
    lost = told("memory", "show", "t1", "--query", "zebra crossing")
    assert "not recalled" in lost.out


def test_at_a_date(told: Loci) -> None:
    then = ("--as-of", "2024-06-01T00:00:00Z")
    assert set(ids(told, *then)) == {"Ghent"}
    found = told("memory", "search", "where does the user live?", *then, "--json").json
    assert ["Ghent" in hit["text"] for hit in found["hits"]] == [True]
    ghent = ids(told, *then)["Ghent"]
    assert told("memory", "show", ghent, *then).code == 0
    now = told("memory", "show", ghent, "--as-of", "2025-06-01T00:00:00Z")
    assert now.code == 1 and "not so at that time" in now.err
    early = ("--known-at", "2020-01-01T00:00:00Z")
    assert told("memory", "list", *early, "--json").json == []
    assert told("memory", "show", ghent, *early).code == 1
    assert told("memory", "list", "--as-of", "the other day").code == 2


def test_the_log_shows_what_the_rules_did_and_undo_takes_it_back(told: Loci) -> None:
    log = told("memory", "log", "--by", "rules", "--json").json
    assert [change["action"] for change in log] == ["add", "add", "retire", "add"]
    assert log[0]["sources"] == ["t2"]
    shown = told("memory", "log")
    assert "retire" in shown.out and "[t2]" in shown.out
    assert told("memory", "undo", "t2").code == 0
    assert set(ids(told)) == {"Ghent"}
    assert told("memory", "undo", "t2").code == 1
    redone = told("memory", "redo", "t2", "--json").json
    assert {item["text"].split()[-1] for item in redone} == {"Ghent", "Rome", "walnuts"}
    assert set(ids(told)) == {"Rome", "walnuts"}
    assert (
        told("memory", "log", "--by", "person", "--limit", "1", "--json").json[0]["action"]
        == "redo"
    )
    assert told("memory", "redo", "i1").code == 1
    assert "something of ada" in told("memory", "log", "--user", "bob").err


def test_forget_shows_what_still_speaks_of_it(told: Loci) -> None:
    told("memory", "add", "No walnut cake for me", "--no-facts")
    id = ids(told)["walnuts"]
    dry = told("memory", "forget", id, "--dry-run")
    assert "would erase" in dry.out and "would cut out of t2" in dry.out
    assert "what still speaks of it: t3" in dry.out
    done = told("memory", "forget", id, "--mentions", "--yes", "--json").json
    assert done["clean"] and done["turns"] == ["t3"] and done["mentions"] == []
    assert done["cut"] == {"t2": ["I'm allergic to walnuts."]}
    assert told("memory", "search", "walnut", "--json").json["hits"] == []
    assert told("memory", "show", "t2").out.count("walnut") == 0


def test_forget_several_or_all(told: Loci, home: Path) -> None:
    told("memory", "add", "I live in Oslo.", "--user", "bob")
    both = ids(told)
    assert told("memory", "forget", both["Rome"], both["walnuts"], "--yes").code == 0
    assert set(ids(told)) == set()
    for wrong in (
        ("memory", "forget"),
        ("memory", "forget", "--all"),
        ("memory", "forget", "i1", "--all", "--user", "ada"),
        ("memory", "forget", "i1", "--session", "s"),
    ):
        assert told(*wrong).code == 2
    dry = told("memory", "forget", "--all", "--user", "ada", "--dry-run", "--json").json
    assert dry["turns"] == ["t1"] and not dry["done"]
    assert told("memory", "forget", "--all", "--user", "ada", "--yes", "--json").json["clean"]
    assert told("memory", "list", "--user", "ada", "--json").json == []
    assert told("memory", "list", "--user", "bob", "--json").json != []
    assert told("memory", "forget", "--all", "--user", "ada", "--yes").code == 1
    data = b"".join(file.read_bytes() for file in (home / "data").iterdir())
    assert b"Ghent" not in data and b"Oslo" in data


def test_filters_in_json_and_what_is_wrong_with_them(told: Loci) -> None:
    asked = ("--filter", '{"time": {">=": "2025-01-01"}}', "--json")
    assert set(ids(told, *asked[:2])) == {"Rome", "walnuts"}
    assert told("memory", "list", "--kind", "turn", *asked).json[0]["id"] == "t2"
    both = told("memory", "list", "--kind", "turn", "--where", "role=user", *asked).json
    assert len(both) == 1
    for wrong in ("{", "[]", '{"rolle": 1}', '{"role": {"~": 1}}'):
        done = told("memory", "list", "--filter", wrong)
        assert done.code == 2 and "FIELD: time, role" in done.err, wrong
    assert told("memory", "search", "x", "--where", "role").code == 2


def test_imports_of_mem0_and_langmem(loci: Loci, tmp_path: Path) -> None:
    mem0 = tmp_path / "mem0.json"
    mem0.write_text(json.dumps({"results": [{"id": "a", "memory": "Likes tea", "user_id": "kim"}]}))
    assert loci("memory", "import", str(mem0), "--json").json == {"new": 1, "users": ["kim"]}
    assert loci("memory", "import", str(mem0)).out.startswith("0 records new")
    store = tmp_path / "store.json"
    item = {"namespace": ["memories", "kim"], "key": "k", "value": {"content": "Keeps bees"}}
    store.write_text(json.dumps([item]))
    assert loci("memory", "import", str(store), "--user", "kim", "--json").json["new"] == 1
    assert len(loci("memory", "list", "--user", "kim", "--json").json) == 2
    nobody = tmp_path / "nobody.json"
    nobody.write_text('[{"id": "b", "memory": "x y"}]')
    done = loci("memory", "import", str(nobody))
    assert done.code == 2 and "--user NAME" in done.err
    log = loci("memory", "log", "--user", "kim", "--by", "mem0", "--json").json
    assert [change["action"] for change in log] == ["import"]
    assert loci("memory", "undo", log[0]["id"]).code == 0
    assert len(loci("memory", "list", "--user", "kim", "--json").json) == 1


def test_every_reading_command_prints_json(told: Loci) -> None:
    for command in (
        ("search", "Rome"),
        ("list",),
        ("show", "i1"),
        ("history", "i1"),
        ("log",),
        ("forget", "i1", "--dry-run"),
    ):
        done = told("memory", *command, "--json")
        assert done.code == 0, command
        json.loads(done.out)
