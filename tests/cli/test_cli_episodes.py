"""`loci chat --episodes`: a long text in several small caches, over a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Loci

from loci.models import late
from loci.testing.kv_reads import Subjects, history
from loci.testing.models import tiny_pack

KV = ("--kv", "epicache(episodes=3, medoids=1, utterances=2)")


@pytest.fixture
def tiny(loci: Loci, home: Path, monkeypatch: pytest.MonkeyPatch) -> Loci:
    """Return a command line with a tiny model, and an embedder that knows three subjects."""
    tiny_pack(home / "models" / "tiny", max_context=2048).close()
    monkeypatch.setattr(late, "default_embedder", lambda folder: Subjects())
    (home / "talk.txt").write_text("\n".join(history(6, 2)) + "\n\n", encoding="utf-8")
    return loci


def test_a_question_is_answered_from_its_episode(tiny: Loci, home: Path) -> None:
    read = ("--read", str(home / "talk.txt"), "--episodes", "24")
    lines = ("which river?", "", "which river?", "and the weather?")
    asked = "\n".join([*lines, "/say Ada: the violin is old.", "which bread?", "/exit", "no"])
    done = tiny("chat", "tiny", *read, *KV, "--dram", "64MiB", "--max-tokens", "3", stdin=asked)
    assert done.code == 0, done.err
    said = done.err.splitlines()
    told = [line for line in said if line.startswith(("read ", "episode", "like no", "noted"))]
    assert told[0].startswith(f"read {home / 'talk.txt'} into 3 episodes, ")
    river, again, weather, added, bread = told[1:]
    assert river == again and river.startswith("episode ") and "of 3 (1.00)" in river
    assert weather.startswith("like no episode (0.00)") and added == "noted"
    assert bread.startswith("episode ") and bread != river
    answers = done.out.split("\n")
    assert len(answers) == 5 and answers[0] == answers[1], "a question leaves nothing behind"


def test_what_does_not_go_together_is_refused(tiny: Loci, home: Path) -> None:
    read = ("--read", str(home / "talk.txt"))
    for options, said in (
        (("--episodes", "24"), "episodes are those of a text"),
        ((*read, "--episodes", "24", "--memory", "x.db"), "--memory"),
        ((*read, "--episodes", "24", "--weights", "1MiB"), "--weights"),
        ((*read, "--episodes", "24", "--temperature", "1"), "--temperature"),
        ((*read, "--episodes", "24", "--kv", "snapkv"), "a method that reads a history"),
        ((*read, "--episodes", "24", "--kv", "1MiB"), "a method that reads a history"),
        ((*read, "--episodes", "8k"), "no longer than one episode's cache"),
    ):
        done = tiny("chat", "tiny", *options, stdin="which river?\n")
        assert done.code != 0 and said in done.err and not done.out, (options, done.err)


def test_what_does_not_fit_is_refused_and_a_bad_line_is_not_the_end(tiny: Loci, home: Path) -> None:
    read = ("--read", str(home / "talk.txt"), "--episodes", "24", *KV)
    done = tiny("chat", "tiny", *read, "--dram", "1KiB", stdin="which river?\n")
    assert done.code == 3 and done.err.startswith("BudgetError")
    lines = "/say\n" + "river " * 600 + "\nwhich river?\n"
    done = tiny("chat", "tiny", *read, "--max-tokens", "2", stdin=lines)
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert "nothing was said" in done.err and "ContextError" in done.err


def test_without_an_embedder_it_says_what_is_missing(
    tiny: Loci, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "default_embedder", lambda folder: None)
    done = tiny("chat", "tiny", "--read", str(home / "talk.txt"), "--episodes", "24")
    assert done.code == 1 and "loci pull minilm" in done.err
