"""`loci cube`: text in, keys and values out, back, moved, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Loci

from loci.testing.models import tiny_pack

TEXT = "Ada lives in Graz. Her cat is called Miro."
SIZES = {"layers": 2, "hidden": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
BUDGET = ("--dram", "16MiB", "--context", "384")


@pytest.fixture
def small(home: Path, loci: Loci) -> Loci:
    """Return a command line with a model named small."""
    tiny_pack(home / "models" / "small", **SIZES).close()
    (home / "data").mkdir()
    return loci


def made(loci: Loci, *more: str) -> str:
    done = loci("cube", "promote", "--text", TEXT, "--as-text", "--json", *more)
    assert done.code == 0, done.err
    return str(done.json["id"])


def promote(loci: Loci, *more: str) -> dict[str, object]:
    done = loci("cube", "promote", *more, "--model", "small", *BUDGET, "--json")
    assert done.code == 0, done.err
    return dict(done.json)


def test_promotes_a_text_and_begins_with_it(small: Loci, home: Path) -> None:
    (home / "note.txt").write_text(TEXT)
    found = promote(small, "--file", str(home / "note.txt"))
    assert (found["kind"], found["policy"]["owner"]) == ("activation", "ada")  # type: ignore[index]
    assert isinstance(found["tokens"], int) and found["tokens"] > len(TEXT)
    id = str(found["id"])
    ask = ("run", "small", "Where?", *BUDGET, "--max-tokens", "4", "--json", "--cube", id)
    quick = small(*ask)
    assert quick.code == 0, quick.err
    assert quick.json["tokens"]["reused"] > len(TEXT)
    back = small("cube", "demote", id)
    assert back.code == 0 and f"{id}: plaintext" in back.out
    slow = small(*ask).json
    assert (slow["answer"], slow["tokens"]["reused"]) == (quick.json["answer"], 0)
    again = small("cube", "promote", id, "--model", "small", *BUDGET)
    assert f"{id}: {found['tokens']} tokens read in" in again.out
    talk = small("chat", "small", *BUDGET, "--max-tokens", "4", "--cube", id, stdin="Where?\n")
    assert talk.code == 0, talk.err
    assert quick.json["answer"].strip() in talk.out


def test_lists_and_shows(small: Loci) -> None:
    assert small("cube", "list", "--json").json == {"cubes": [], "unreadable": {}, "bytes": 0}
    id = made(small, "--reader", "bob", "--ttl", "3600", "--sensitivity", "private")
    listed = small("cube", "list")
    assert id in listed.out and "plaintext" in listed.out
    assert small("cube", "list", "--kind", "activation", "--json").json["cubes"] == []
    shown = small("cube", "show", id)
    assert TEXT in shown.out and "read by bob, private" in shown.out
    told = small("cube", "show", id, "--json").json
    assert (told["texts"], told["versions"]) == ({"text": TEXT}, [1])


def test_memories_become_a_cube_and_forgetting_takes_it(small: Loci) -> None:
    small("memory", "add", "I live in Graz.")
    small("memory", "add", "My locker code is quince-4417.")
    found = small("cube", "promote", "--user", "ada", "--as-text", "--json").json
    item = small("memory", "list", "--json").json[0]["id"]
    one = small("cube", "promote", "--item", item, "--as-text", "--json").json
    assert item in found["parents"] and item in one["parents"]
    dry = small("memory", "forget", item, "--dry-run")
    assert found["id"] in dry.out and one["id"] in dry.out
    gone = small("memory", "forget", item, "--yes", "--json").json
    assert set(gone["cubes"]) == {found["id"], one["id"]} and gone["clean"]
    assert small("cube", "list", "--json").json["cubes"] == []
    assert small("memory", "audit", "--verify").code == 0


def test_states_by_hand(small: Loci) -> None:
    id = made(small)
    assert small("cube", "pin", id, "--json").json["policy"]["pinned"] is True
    assert small("cube", "pin", id, "--off", "--json").json["policy"]["pinned"] is False
    assert small("cube", "archive", id, "--json").json["state"] == "archived"
    assert small("cube", "archive", id, "--off", "--json").json["state"] == "active"
    assert small("cube", "freeze", id, "--json").json["state"] == "frozen"
    for refused in (("drop", id), ("archive", id), ("pin", id), ("freeze", id)):
        done = small("cube", *refused)
        assert done.code != 0 and "frozen" in done.err, refused
    assert small("cube", "freeze", id, "--off", "--user", "bob").code == 1
    assert small("cube", "freeze", id, "--off", "--json").json["state"] == "active"
    assert "is gone" in small("cube", "drop", id).out
    lost = small("cube", "show", id)
    assert lost.code == 1 and "there is no such cube" in lost.err


def test_goes_back_to_a_version(small: Loci) -> None:
    id = str(promote(small, "--text", TEXT)["id"])
    assert small("cube", "show", id, "--json").json["versions"] == [1, 2]
    back = small("cube", "rollback", id, "--to", "1", "--json").json
    assert (back["kind"], back["version"]) == ("plaintext", 3)
    assert small("cube", "rollback", id, "--to", "9").code == 1


def test_keeps_no_more_versions_than_it_is_told(small: Loci) -> None:
    id = str(promote(small, "--text", TEXT)["id"])
    for number in (1, 1, 2):
        done = small("cube", "rollback", id, "--to", str(number), "--keep-versions", "9", "--json")
    assert done.json["version"] == 5
    told = small("cube", "demote", id, "--keep-versions", "2")
    assert told.code == 0, told.err
    assert all(f"version {number} of {id} was dropped" in told.err for number in (1, 2))
    would = small("cube", "prune", id, "--keep-versions", "1", "--dry-run", "--json").json
    assert [one["version"] for one in would] == [3]
    assert f"dropped version 3 of {id}" in small("cube", "prune", "--keep-versions", "1").out
    assert small("cube", "show", id, "--json").json["versions"] == [4, 6]
    assert "nothing to drop" in small("cube", "prune", "--keep-versions", "1").err
    assert small("cube", "prune", "--keep-versions", "0").code == 2
    assert small("cube", "prune", id, "--user", "bob").code == 1
    assert small("memory", "audit", "--verify").code == 0


def test_forks_and_merges(small: Loci) -> None:
    id = made(small)
    fork = small("cube", "fork", id, "branch", "--json").json
    assert (fork["id"], fork["parents"]) == ("branch", [id])
    merged = small("cube", "merge", id, "branch", "--base", id, "--json")
    assert merged.code == 0 and merged.json["id"] == id
    keys = str(promote(small, "--text", TEXT)["id"])
    refused = small("cube", "merge", keys, keys, "--base", keys)
    assert refused.code == 1 and "never merged" in refused.err
    assert small("cube", "merge", id, "branch", "--base", f"{id}@77").code == 1


def test_moves_to_another_memory(small: Loci, home: Path) -> None:
    id = str(promote(small, "--text", TEXT)["id"])
    gift = str(home / "gift.cube")
    assert small("cube", "save", id, gift).code == 0
    other = ("--memory", str(home / "other.db"))
    assert small("cube", "load", gift, *other, "--json").json["id"] == id
    ask = ("run", "small", "Where?", *BUDGET, "--max-tokens", "2", "--json", "--cube")
    assert small(*ask, gift).json["tokens"]["reused"] > len(TEXT)
    assert small("cube", "load", gift, *other).code == 2  # it is there already
    tiny_pack(home / "models" / "twin", seed=1, **SIZES).close()
    third = ("--memory", str(home / "third.db"))
    refused = small("cube", "load", gift, "--model", "twin", *third)
    assert refused.code == 1 and "made for another model" in refused.err
    used = small("run", "twin", "Where?", *BUDGET, "--cube", gift)
    assert used.code == 1 and "FingerprintError" in used.err
    data = bytearray(Path(gift).read_bytes())
    data[-9] ^= 4
    Path(gift).write_bytes(data)
    cut = small("cube", "load", gift, *third)
    assert cut.code == 1 and "is damaged: the t" in cut.err
    assert small("cube", "list", *third, "--json").json["cubes"] == []


def test_ids_of_another_memory_are_not_taken_for_ours(small: Loci, home: Path) -> None:
    small("memory", "add", "I live in Graz.")
    id = small("cube", "promote", "--user", "ada", "--as-text", "--json").json["id"]
    gift, other = str(home / "gift.cube"), str(home / "other.db")
    small("cube", "save", id, gift)
    small("memory", "add", "I like jam.", "--file", other)
    loaded = small("cube", "load", gift, "--memory", other, "--json").json
    assert [parent.partition(":")[2] for parent in loaded["parents"]] == ["i1", "t1"]
    assert small("memory", "forget", "i1", "--yes", "--file", other, "--json").json["cubes"] == []
    small("cube", "save", id, str(home / "back.cube"), "--memory", other)
    small("cube", "drop", id)
    back = small("cube", "load", str(home / "back.cube"), "--json").json
    assert back["parents"] == ["i1", "t1"]
    assert small("memory", "forget", "i1", "--yes", "--json").json["cubes"] == [id]


def test_what_does_not_fit_leaves_nothing(small: Loci) -> None:
    long = small("cube", "promote", "--text", TEXT * 20, "--model", "small", *BUDGET)
    assert long.code == 3 and "BudgetError" in long.err and "context" in long.err
    full = small("cube", "promote", "--text", TEXT, "--limit", "2KiB", "--model", "small", *BUDGET)
    assert full.code == 3 and "short" in full.err
    assert small("cube", "list", "--json").json["cubes"] == []


def test_who_may_not_and_what_is_over_is_refused(small: Loci) -> None:
    id = made(small)
    for command in (("show", id), ("demote", id), ("drop", id), ("save", id, "x.cube")):
        done = small("cube", *command, "--user", "bob")
        assert done.code == 1 and "PolicyError" in done.err, command
    tax = made(small, "--purpose", "tax")
    assert "another purpose" in small("run", "small", "Hi", *BUDGET, "--cube", tax).err
    ask = ("run", "small", "Hi", *BUDGET, "--max-tokens", "1", "--cube", tax, "--purpose", "tax")
    assert small(*ask).code == 0
    assert small("cube", "show", tax).code == 1
    assert TEXT in small("cube", "show", tax, "--purpose", "tax").out
    over = made(small, "--ttl", "0.000001")
    assert "expired" in small("run", "small", "Hi", *BUDGET, "--cube", over).err
    assert small("cube", "drop", over).code == 0
    assert small("cube", "promote", "--text", TEXT, "--ttl", "0", "--as-text").code == 2


def test_an_unreadable_cube_is_named_and_dropped(small: Loci, home: Path) -> None:
    id = made(small)
    path = home / "data" / "memory.db.cubes" / f"{id}.cube"
    path.write_bytes(path.read_bytes()[:50])
    listed = small("cube", "list")
    assert listed.code == 0 and f"{id} cannot be read" in listed.err
    assert small("cube", "show", id).code == 1
    assert small("cube", "drop", id).code == 0
    assert small("cube", "list").err == ""


def test_the_schedule_acts_when_it_is_asked(small: Loci) -> None:
    over = made(small, "--ttl", "0.000001")
    dry = small("cube", "tick", "--dry-run")
    assert dry.code == 0 and f"would expire {over}" in dry.out
    assert small("cube", "tick", "--json").json == [{"do": "expire", "id": over}]
    assert "nothing is due" in small("cube", "tick").err
    fit = small("cube", "tick", "--limit", "1MiB", "--model", "small", *BUDGET, "--json")
    assert fit.code == 0 and fit.json == []


@pytest.mark.parametrize(
    "wrong", [(), ("--text", "a", "--item", "i1"), ("cube-1", "--text", "a"), ("cube-00",)]
)
def test_promote_takes_one_thing(small: Loci, wrong: tuple[str, ...]) -> None:
    done = small("cube", "promote", *wrong, "--as-text")
    assert done.code in (1, 2)
    assert small("cube", "list", "--json").json["cubes"] == []
