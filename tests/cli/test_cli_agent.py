"""`loci agent` from the command line: act, look, explain, undo; bad input and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Loci


def test_a_plan_from_the_command_line(loci: Loci) -> None:
    plan = json.dumps([{"slot": "hotel"}, {"slot": "budget", "type": "number"}])
    done = loci("agent", "act", "tme", "trip", "hotel: the Ritz", "--set", f"plan={plan}")
    assert done.code == 0 and "done: 2 instructions carried out" in done.out
    asked = loci("agent", "act", "tme", "trip", "Set the budget to lots.", "--json")
    assert asked.code == 0 and asked.json["status"] == "asks" and "number" in asked.json["why"]
    assert loci("agent", "list", "--json").json[0]["name"] == "trip"
    steps = loci("agent", "history", "tme", "trip", "--json").json
    assert [step["undone"] for step in steps] == [False, False]
    assert "made" in loci("agent", "explain", "tme", "trip", "node/1").out or steps
    assert loci("agent", "undo", "tme", "trip").code == 0
    shown = loci("agent", "show", "tme", "trip", "--json").json
    assert shown["node/1"]["value"] is None
    assert loci("agent", "redo", "tme", "trip").code == 0
    assert "node/1  hotel: the Ritz" in loci("agent", "show", "tme", "trip").out
    assert loci("agent", "drop", "tme", "trip").out == "dropped 5 records\n"
    assert loci("agent", "list", "--json").json == []


def test_the_same_words_as_in_python(loci: Loci, home: Path) -> None:
    from loci.run.memory import Memory

    loci("agent", "act", "tme", "trip", "hotel: the Ritz")
    with Memory(home / "data" / "memory.db") as memory:
        node = memory.agent("tme", "trip", user="ada").records.get("node/1")
        assert node is not None and node.value["value"] == "the Ritz"


def test_bad_input_is_told_and_nothing_is_made(loci: Loci, home: Path) -> None:
    assert loci("agent", "show", "tme", "trip").code == 1  # there is no memory yet
    for arguments, code, told in (
        (("tme", "trip"), 2, "nothing to do"),
        (("tme", "trip", "x", "--set", "plans=[]"), 2, "did you mean 'plan'"),
        (("tme", "trip", "x", "--set", "plan=[1]"), 2, "list of objects"),
        (("tme", "../trip", "x"), 2, "an agent's name is a word"),
        (("mem0", "trip", "x"), 1, "it does no jobs"),
        (("tmee", "trip", "x"), 2, "did you mean 'tme'"),
        (("tme", "trip", "x", "--set", "plan"), 2, "KEY=VALUE"),
    ):
        done = loci("agent", "act", *arguments)
        assert done.code == code and told in done.err, (arguments, done)
    cycle = json.dumps([{"op": "depend", "slot": "a", "on": "a"}])
    loci("agent", "act", "tme", "trip", "a: 1")
    done = loci("agent", "act", "tme", "trip", "--set", f"ops={cycle}")
    assert done.code == 2 and "wait for each other" in done.err and "a -> a" in done.err
    wrong = home / "x.json"
    wrong.write_text("[")
    assert "is not JSON" in loci("agent", "act", "tme", "trip", "--input", str(wrong)).err
    stopped = loci("agent", "act", "tme", "long", "a: 1\nb: 2\nc: 3", "--max-steps", "2")
    assert stopped.code == 1 and "stopped: 2 steps were allowed" in stopped.out
    rest = loci("agent", "act", "tme", "long", "a: 1\nb: 2\nc: 3")
    assert rest.code == 0 and rest.err.count("made") == 1


def test_takes_shows_an_example_that_runs(loci: Loci, home: Path) -> None:
    methods = [entry["name"] for entry in loci("agent", "list", "--methods", "--json").json]
    assert "tme" in methods
    for name in methods:
        found = loci("agent", "takes", name, "--json").json
        assert found["example"] and set(found["example"]["inputs"]) <= set(found["takes"])
    example = loci("agent", "takes", "tme", "--json").json["example"]
    file = home / "inputs.json"
    file.write_text(json.dumps(example["inputs"]))
    done = loci("agent", "act", "tme", "x", example["goal"], "--input", str(file), "--json")
    assert done.json["status"] == "done"
