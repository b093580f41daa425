"""`loci memory` from the first word to the last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from command_line import Loci

from loci.testing.models import tiny_pack


@pytest.fixture
def remembered(loci: Loci) -> Loci:
    """Return a command line whose memory knows two things of Ada."""
    assert (
        loci("memory", "add", "I'm allergic to nuts.", "--time", "2026-05-01T10:00:00Z").code == 0
    )
    assert loci("memory", "add", "I live in Berlin.", "--time", "2026-05-02T10:00:00Z").code == 0
    return loci


def id_of(loci: Loci, word: str) -> str:
    return next(i["id"] for i in loci("memory", "list", "--json").json if word in i["text"])


def test_says_whose_memory_on_stderr(loci: Loci) -> None:
    done = loci("memory", "add", "I like tea.")
    assert done.code == 0
    assert "user ada" in done.err and "user ada" not in done.out
    assert "user ada" not in loci("memory", "list", "--user", "bob").err


def test_the_file_is_made_by_adding_and_only_the_owner_reads_it(loci: Loci, home: Path) -> None:
    done = loci("memory", "list")
    assert done.code == 1
    assert "there is no memory in" in done.err
    assert loci("memory", "add", "I like tea.").code == 0
    assert (home / "data" / "memory.db").stat().st_mode & 0o777 == 0o600


def test_finds_what_was_said_with_its_source(remembered: Loci) -> None:
    found = remembered("memory", "search", "allergic to what", "--json").json
    assert "nuts" in found["hits"][0]["text"]
    assert any("nuts" in s["content"] for s in found["hits"][0]["sources"])
    assert found["pending"] == 0
    shown = remembered("memory", "search", "allergic", "--lexical")
    assert "nuts" in shown.out
    assert remembered("memory", "search", "xylophone", "--lexical").out == ""


def test_other_users_see_nothing(remembered: Loci) -> None:
    assert remembered("memory", "list", "--user", "bob", "--json").json == []
    found = remembered("memory", "search", "nuts", "--user", "bob", "--json").json
    assert found["hits"] == []


def test_text_comes_from_a_pipe_or_a_file(loci: Loci, tmp_path: Path) -> None:
    assert loci("memory", "add", stdin="I like tea.\n").code == 0
    messages = [{"role": "user", "name": "Ada", "content": "I have a cat.", "metadata": {"n": 1}}]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(messages))
    added = loci("memory", "add", "--messages", str(file), "--session", "s1", "--json").json
    assert added["turns"][0]["metadata"] == {"n": 1}
    assert added["turns"][0]["session"] == "s1"
    piped = loci("memory", "add", "--messages", "-", stdin=json.dumps(messages))
    assert piped.code == 0
    assert len(loci("memory", "list", "--kind", "turn", "--json").json) == 3


def test_nothing_to_remember_is_wrong_usage(loci: Loci, tmp_path: Path) -> None:
    assert loci("memory", "add").code == 2
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    done = loci("memory", "add", "--messages", str(bad))
    assert done.code == 2 and "is not JSON" in done.err
    assert loci("memory", "add", "x", "--time", "yesterday-ish").code == 2


def test_a_note_stays_as_it_is(loci: Loci) -> None:
    done = loci("memory", "add", "The wifi is called barn.", "--as-note", "--json")
    [item] = done.json["items"]
    assert (item["kind"], item["text"]) == ("note", "The wifi is called barn.")


def test_edit_history_undo_retire(remembered: Loci) -> None:
    id = id_of(remembered, "nuts")
    edited = remembered(
        "memory", "edit", id, "Allergic to hazelnuts", "--reason", "asked", "--json"
    )
    assert edited.json["text"] == "Allergic to hazelnuts"
    changes = remembered("memory", "history", id, "--json").json
    assert [c["action"] for c in changes] == ["add", "edit"]
    assert changes[1]["reason"] == "asked"
    assert "hazelnuts" in remembered("memory", "history", id).out
    assert "nuts" in remembered("memory", "undo", id).out
    assert "hazelnuts" not in remembered("memory", "show", id).out
    assert remembered("memory", "retire", id, "--json").json["retired_at"] is not None
    assert id not in {i["id"] for i in remembered("memory", "list", "--json").json}
    assert remembered("memory", "undo", id).code == 0
    assert id in {i["id"] for i in remembered("memory", "list", "--json").json}


def test_forgetting_shows_first_and_then_erases(remembered: Loci) -> None:
    id = id_of(remembered, "nuts")
    would = remembered("memory", "forget", id, "--dry-run", "--json").json
    assert would["done"] is False
    assert any("nuts" in text for text in would["texts"])
    assert remembered("memory", "show", id).code == 0
    done = remembered("memory", "forget", id)
    assert done.code == 0
    assert "erased:" in done.out and "never" in done.out and "out of reach" in done.out
    assert remembered("memory", "show", id).code == 1
    assert remembered("memory", "search", "nuts", "--json").json["hits"] == []


def test_an_id_of_another_user_is_refused_when_a_user_is_named(remembered: Loci) -> None:
    id = id_of(remembered, "nuts")
    assert remembered("memory", "show", id, "--user", "bob").code == 1
    assert remembered("memory", "forget", id, "--user", "bob").code == 1
    assert remembered("memory", "show", id, "--user", "ada").code == 0


def test_export_and_import_bring_everything_back(remembered: Loci, tmp_path: Path) -> None:
    out = tmp_path / "ada.jsonl"
    count = remembered("memory", "export", str(out), "--json").json["records"]
    assert count == remembered("memory", "export", str(out), "--json").json["records"] > 0
    other = str(tmp_path / "other.db")
    assert remembered("memory", "import", str(out), "--file", other, "--json").json["new"] == count
    assert remembered("memory", "import", str(out), "--file", other, "--json").json["new"] == 0
    before = {i["text"] for i in remembered("memory", "list", "--json").json}
    after = {i["text"] for i in remembered("memory", "list", "--file", other, "--json").json}
    assert before == after


def test_an_unknown_id_says_what_to_do(remembered: Loci) -> None:
    done = remembered("memory", "show", "i999")
    assert done.code == 1
    assert "loci memory list" in done.err


def test_a_past_time_shows_what_held_then(remembered: Loci) -> None:
    listed = remembered("memory", "list", "--as-of", "2026-05-01T12:00:00Z", "--json").json
    assert any("nuts" in i["text"] for i in listed)
    assert not any("Berlin" in i["text"] for i in listed)


def test_adding_and_searching_by_words_load_no_torch(home: Path) -> None:
    code = (
        "import sys\nfrom loci.cli import main\n"
        "assert main(['memory', 'add', 'I like tea.']) == 0\n"
        "assert main(['memory', 'search', 'tea', '--lexical']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=60, env=os.environ
    )


REPLIES = {
    "Draw lasting facts": {"facts": [{"text": "The user likes tea", "sources": [1]}]},
    "choose one operation": {"1": {"operation": "ADD", "memory": None}},
}


@pytest.fixture
def server(loci: Loci) -> Iterator[list[str]]:
    """Configure an endpoint that knows two answers; yields the keys it was shown."""
    keys: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            keys.append(self.headers["Authorization"])
            found = [reply for text, reply in REPLIES.items() if text in body]
            reply = json.dumps(found[0]) if found else "no idea"
            answer = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/v1"
        for key, value in (("endpoint", url), ("endpoint_model", "big"), ("endpoint_key", "s3c")):
            assert loci("config", "set", key, value).code == 0
        yield keys
        running.shutdown()


def test_an_endpoint_keeps_the_memory_and_its_cost_is_shown(loci: Loci, server: list[str]) -> None:
    added = loci("memory", "add", "I like tea.", "--backend", "endpoint")
    assert added.code == 0 and "The user likes tea" in added.out
    assert "draw facts by endpoint, asked big once" in added.err
    assert server == ["Bearer s3c"] * 2
    id = id_of(loci, "tea")
    assert "decide by endpoint" in loci("memory", "show", id).out
    assert "decide by endpoint" in loci("memory", "history", id).out
    steps = loci("memory", "history", id, "--json").json[0]["steps"]
    assert [(step["rung"], step["calls"], step["refused"]) for step in steps] == [
        ("endpoint", 1, [])
    ] * 2
    assert loci("memory", "show", id, "--json").json["steps"] == steps


def test_a_key_is_shown_nowhere(loci: Loci, server: list[str], home: Path) -> None:
    for command in (("show",), ("show", "--json"), ("get", "endpoint_key")):
        done = loci("config", *command)
        assert "s3c" not in done.out + done.err and "***" in done.out
    assert (home / "config.toml").stat().st_mode & 0o777 == 0o600


def test_an_endpoint_that_knows_nothing_stores_nothing_unless_rules_may(
    loci: Loci, server: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REPLIES, "choose one operation", {"1": {"operation": "ADD"}})
    failed = loci("memory", "add", "I like tea.", "--backend", "endpoint")
    assert failed.code == 1 and "could not decide" in failed.err and "fall" in failed.err
    assert loci("memory", "list", "--kind", "turn", "--json").json == []
    monkeypatch.setenv("LOCI_BACKEND", "endpoint")
    done = loci("memory", "add", "I like tea.", "--fall-back")
    assert done.code == 0 and "decide by rules" in done.err and "refused: endpoint: " in done.err


def test_a_back_end_without_its_settings_says_which(loci: Loci) -> None:
    done = loci("memory", "add", "I like tea.", "--backend", "endpoint")
    assert done.code == 2 and "loci config set endpoint" in done.err
    assert loci("memory", "add", "I like tea.", "--recall", "a_men").code == 2
    assert loci("config", "set", "backend", "magic").code == 2


def test_the_small_model_of_this_machine_is_asked_and_closed(loci: Loci, home: Path) -> None:
    tiny_pack(home / "models" / "tiny", max_context=8192).close()
    assert loci("config", "set", "model", "tiny").code == 0
    assert loci("config", "set", "dram", "64MiB").code == 0
    done = loci("memory", "add", "I live in Graz.", "--backend", "slm", "--json")
    # Random weights say nothing true: what they write has the form, and is refused.
    assert done.code == 0 and done.json["items"] == [] and len(done.json["turns"]) == 1
    [step] = done.json["steps"]
    assert (step["rung"], step["model"], step["calls"]) == ("slm", "tiny", 1)


def test_notes_and_graphs_are_kept_by_name(loci: Loci) -> None:
    assert loci("memory", "add", "My cat Miso fell off the balcony.", "--recall", "a_mem").code == 0
    [note] = loci("memory", "list", "--json").json
    assert note["kind"] == "note" and "miso" in note["gloss"]["keywords"]
    assert "miso" in loci("memory", "show", note["id"]).out
    assert loci("memory", "add", "I live in Graz.", "--recall", "mem0_graph").code == 0
    [relation] = loci("memory", "list", "--kind", "relation", "--json").json
    assert relation["object"] == "graz"
    found = loci("memory", "search", "balcony", "--recall", "a_mem", "--json").json["hits"]
    assert found[0]["kind"] == "note"


def test_the_store_is_looked_after(remembered: Loci, home: Path) -> None:
    import sqlite3

    done = remembered("memory", "check")
    assert (done.code, done.out) == (0, "") and "whole" in done.err
    assert remembered("memory", "check", "--json").json == {"problems": []}
    done = remembered("memory", "index")
    assert done.code == 1 and "loci pull minilm" in done.err
    with sqlite3.connect(home / "data" / "memory.db") as db:
        db.execute("DELETE FROM pending")
    db.close()
    done = remembered("memory", "check")
    assert done.code == 1 and "neither embedded nor waiting" in done.out
