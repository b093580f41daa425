"""`loci govern`: a change from its file to its certificate, in processes of its own each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Loci

from loci.nn.patch import Patch
from loci.run.greedy import Greedy
from loci.run.peft import write_folder
from loci.testing.models import tiny_pack

CHANGE = """
id = "{id}"
subject = "office"
owner = "ada"
evidence = ["mail-7"]
probes = "probes.jsonl"
{what}
[policy]
canary = [0.5, 1.0]
step_n = 5
[[policy.threshold]]
metric = "right"
op = ">="
value = {value}
"""
EDIT = """
user = "team"
[[edit]]
id = "{item}"
text = "Our office is in Oslo."
"""


@pytest.fixture
def office(home: Path, loci: Loci) -> str:
    """Return the id of what a memory knows of an office, with probes beside it."""
    (home / "data").mkdir()
    added = loci(
        "memory", "add", "Our office is in Ghent.", "--user", "team", "--as-note", "--json"
    )
    assert added.code == 0, added.err
    lines = [{"ask": f"where is the office? {n}", "expect": "oslo"} for n in range(40)]
    (home / "probes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found: str = loci("memory", "list", "--user", "team", "--json").json[0]["id"]
    return found


def write(home: Path, what: str, id: str = "move", value: float = 0.8) -> str:
    path = home / f"{id}.toml"
    path.write_text(CHANGE.format(id=id, what=what, value=value))
    return str(path)


def knows(loci: Loci) -> str:
    found: str = loci("memory", "list", "--user", "team", "--json").json[0]["text"]
    return found


def watch(loci: Loci, file: str, value: str = "1") -> list[str]:
    """Observe until the stage or the step changes for good; return the stages seen."""
    stages = []
    for number in range(60):
        done = loci("govern", "observe", file, "--key", f"r{number}", "--value", value, "--json")
        assert done.code == 0, done.err
        stages.append(done.json["stage"])
        if done.json["ready"] or stages[-1] != "canary":
            break
    return stages


def test_a_change_goes_from_its_file_to_its_certificate(
    loci: Loci, home: Path, office: str
) -> None:
    file = write(home, EDIT.format(item=office))
    assert loci("govern", "propose", file, "--json").json["stage"] == "draft"
    admitted = loci("govern", "admit", file)
    assert admitted.code == 0 and "right 1.000 of 40" in admitted.out
    assert knows(loci) == "Our office is in Ghent."
    assert loci("govern", "canary", file, "--json").json["share"] == 0.5
    seen: dict[str, set[str]] = {}
    for number in range(20):
        found = loci(
            "govern", "ask", file, "where is the office?", "--key", f"r{number}", "--json"
        ).json
        seen.setdefault(found["arm"], set()).add(found["answer"])
    assert seen == {"old": {"Our office is in Ghent."}, "new": {"Our office is in Oslo."}}
    early = loci("govern", "release", "move")
    assert early.code == 2 and "has not been watched to the end" in early.err
    assert set(watch(loci, file)) == {"canary"}
    assert "ready to be released" in loci("govern", "status", "move").out
    assert loci("govern", "release", "move").code == 0
    assert knows(loci) == "Our office is in Oslo."
    (row,) = loci("govern", "status", "--json").json
    assert (row["stage"], row["share"], row["samples"][0]["n"]) == ("released", 1.0, 40)
    out = home / "certificate.json"
    assert loci("govern", "certificate", "move", "--out", str(out)).code == 0
    assert loci("govern", "verify", str(out), "--change", file, "--json").json["verified"]
    told = json.loads(out.read_text())
    told["stage"] = "draft"
    out.write_text(json.dumps(told))
    assert "was altered" in loci("govern", "verify", str(out)).err
    back = loci("govern", "rollback", file, "--why", "the lease fell through", "--json")
    assert back.json["stage"] == "rolled_back" and knows(loci) == "Our office is in Ghent."
    assert "fell through" in loci("govern", "status", "move").out
    assert loci("memory", "audit", "--verify").code == 0


def test_what_harms_is_taken_back_by_itself(loci: Loci, home: Path, office: str) -> None:
    file = write(home, EDIT.format(item=office))
    for step in ("propose", "admit", "canary"):
        assert loci("govern", step, file).code == 0
    for number in range(40):  # the old version does well
        arm = loci("govern", "ask", file, "where?", "--key", f"r{number}", "--json").json["arm"]
        done = loci(
            "govern", "observe", file, "--key", f"r{number}", "--value",
            "1" if arm == "old" else "0", "--json",
        )  # fmt: skip
        if done.json["stage"] != "canary":
            break
    assert done.json["stage"] == "rolled_back" and knows(loci) == "Our office is in Ghent."


def test_a_change_below_its_bar_stays_a_draft(loci: Loci, home: Path, office: str) -> None:
    file = write(home, EDIT.format(item=office).replace("Oslo", "Lima"))
    assert loci("govern", "propose", file).code == 0
    refused = loci("govern", "admit", file)
    assert refused.code == 1 and "fail" in refused.out
    assert loci("govern", "status", "--json").json[0]["stage"] == "draft"
    assert loci("govern", "revoke", file).code == 0


@pytest.mark.parametrize("part", ["text", "value = 0.8", "probes"])
def test_what_was_registered_cannot_be_changed(
    loci: Loci, home: Path, office: str, part: str
) -> None:
    file = write(home, EDIT.format(item=office))
    assert loci("govern", "propose", file).code == 0
    if part == "probes":
        with (home / "probes.jsonl").open("a") as probes:
            probes.write('\n{"ask": "?", "expect": "oslo"}')
    else:
        own = Path(file).read_text()
        Path(file).write_text(own.replace("Oslo", "Rome").replace("value = 0.8", "value = 0.1"))
    done = loci("govern", "admit", file)
    assert done.code == 1 and ("proposed with" in done.err or "registered one" in done.err)


def test_an_adapter_comes_and_goes_back(loci: Loci, home: Path) -> None:
    (home / "data").mkdir()
    with tiny_pack(home / "models" / "tiny", max_context=512) as pack:
        shapes = pack.spec.layer_linears()["down_proj"]
        draw = torch.Generator().manual_seed(0)
        patch = Patch(
            {
                "layer.0.down_proj": (
                    torch.randn(shapes[0], 2, generator=draw),
                    torch.randn(2, shapes[1], generator=draw),
                )
            }
        )
        write_folder(home / "theirs", patch, pack.spec, base=pack.spec.fingerprint)
        with Greedy(pack, context=256) as greedy:
            asked = greedy.tokenizer.chat([{"role": "user", "content": "Who?"}])
            greedy.use(patch)
            said = greedy.tokenizer.decode(greedy.answer(asked, 32))
    words = said.strip()[:1] or said[:1]
    lines = [{"ask": "Who?", "expect": [words]} for _ in range(30)]
    (home / "probes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    file = write(home, '[adapter]\nname = "hat"\nfile = "theirs"\n')
    for step in ("propose", "admit", "canary"):
        done = loci("govern", step, file, "--model", "tiny")
        assert done.code == 0, done.err + done.out
    (row,) = loci("adapter", "list", "--json").json
    assert (row["id"], row["facts"]["name"]) == ("adapter-move", "hat")
    answers = {}
    for number in range(12):
        found = loci(
            "govern", "ask", file, "Who?", "--key", f"r{number}", "--model", "tiny", "--json"
        ).json
        answers[found["arm"]] = found["answer"]
    assert answers["new"] == said != answers["old"]
    assert loci("govern", "rollback", file, "--model", "tiny").code == 0
    assert loci("adapter", "list", "--json").json == []
    made = loci("govern", "certificate", "move")
    (home / "c.json").write_text(made.out)
    assert (
        loci("govern", "verify", str(home / "c.json"), "--change", file, "--model", "tiny").code
        == 0
    )


def test_a_cube_of_text_comes_over_another(loci: Loci, home: Path) -> None:
    (home / "data").mkdir()
    tiny_pack(home / "models" / "tiny", max_context=512).close()
    made = loci("cube", "promote", "--text", "Old.", "--as-text", "--json").json
    saved = home / "new.cube"
    assert loci("cube", "save", made["id"], str(saved)).code == 0
    from loci.store import cube_file

    header, payload = cube_file.read(saved)
    cube_file.write(saved, header, cube_file.Payload(texts={"text": "New."}, facts=payload.facts))
    lines = [{"ask": "Who?", "expect": ["x"]} for _ in range(30)]
    (home / "probes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    file = write(home, '[cube]\nfile = "new.cube"\n', value=-1.0)
    for step in ("propose", "admit", "canary"):
        done = loci("govern", step, file, "--model", "tiny")
        assert done.code == 0, done.err + done.out
    assert "New." in loci("cube", "show", made["id"]).out
    assert loci("govern", "rollback", file, "--model", "tiny").code == 0
    assert "Old." in loci("cube", "show", made["id"]).out


@pytest.mark.parametrize(
    ("what", "change", "why"),
    [
        ("", "", "does not say one thing to change"),
        (EDIT + '[cube]\nfile = "x"', "", "does not say one thing to change"),
        (EDIT.replace("text =", "txt ="), "", "did you mean 'text'"),
        (EDIT.replace("id =", "kind = 'retire'\nid ="), "", "retire with id"),
        (EDIT, "step_n=>stepn", "did you mean 'step_n'"),
        (EDIT, "step_n = 5=>step_n = 'five'", "is of another kind"),
        (EDIT, "step_n = 5=>step_n = 1", "policy.step_n is not usable"),
        (EDIT, 'op = ">="=>op = ">"', "is not usable"),
        (EDIT, 'metric = "right"=>metric = "fresh"', "has no probes for what"),
        (EDIT, "probes.jsonl=>none.jsonl", "no such file of probes"),
        (EDIT, 'owner = "ada"=>', "lacks owner"),
        (EDIT, "[policy]=>[[policy]", "is no TOML"),
        ("[cube]\nfile = 3", "", "is no text"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    loci: Loci, home: Path, office: str, what: str, change: str, why: str
) -> None:
    file = write(home, what.replace("{item}", office))
    if change:
        old, _, new = change.partition("=>")
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new))
    done = loci("govern", "propose", file)
    assert done.code in (1, 2) and why in done.err, done.err
    assert loci("govern", "status", "--json").json == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1 is no JSON"),
        ("3", "is no table"),
        ('{"ask": "x"}', "expects no words"),
        ('{"ask": "", "expect": "y"}', "ask is no text"),
        ('{"ask": "x", "expekt": "y"}', "did you mean 'expect'"),
        ("", "holds no probes"),
    ],
)
def test_bad_probes_are_refused(loci: Loci, home: Path, office: str, line: str, why: str) -> None:
    file = write(home, EDIT.format(item=office))
    (home / "probes.jsonl").write_text(line)
    done = loci("govern", "propose", file)
    assert done.code == 1 and why in done.err, done.err


def test_unknown_changes_and_files_are_refused(loci: Loci, home: Path, office: str) -> None:
    file = write(home, EDIT.format(item=office))
    assert loci("govern", "status", "--json").json == []
    assert not (home / "data" / "memory.db.gov").exists()
    assert "no change of this id" in loci("govern", "admit", file).err
    assert "no change of this id" in loci("govern", "status", "move").err
    assert loci("govern", "propose", file).code == 0
    assert "there is a change of this id" in loci("govern", "propose", file).err
    assert "was not measured" in loci("govern", "certificate", "move").err
    (home / "c.json").write_text("{}")
    assert "is no certificate" in loci("govern", "verify", str(home / "c.json")).err
    lost = loci("govern", "status", "--memory", "postgresql://nowhere/db")
    assert lost.code == 1 and "beside a memory in a file" in lost.err
