"""`loci adapter edit`: facts put into weights, listed, used, taken back; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Loci

from loci import api
from loci.core.spec import ModelSpec
from loci.models.pack import open_pack
from loci.run.key_moments import prepare_covariance
from loci.testing.models import tiny_pack

BUDGET = ("--dram", "16MiB", "--context", "384")
ASK = ("run", "small", "Here comes Ann", *BUDGET, "--max-tokens", "8", "--json")
METHOD = ("--method", "rome(layer=1, openings=0, most=100, decay=0, kl=0)", "--cap", "1000")
# With random weights it says this after a space anyway; the edit makes it say the space.
FACT = ("--fact", "Here comes [Ann]", "V")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model's folder in which the keys were looked at, which takes a few seconds."""
    folder = tmp_path_factory.mktemp("models") / "small"
    with tiny_pack(folder, layers=3, seed=28, max_context=512) as pack:
        prepare_covariance(pack, range(3))
    return folder


@pytest.fixture
def spec(home: Path, prepared: Path) -> ModelSpec:
    shutil.copytree(prepared, home / "models" / "small")
    with open_pack(home / "models" / "small") as pack:
        found = pack.spec
    with tiny_pack(home / "models" / "other", layers=1, max_context=512):
        pass
    (home / "data").mkdir()
    return found


def said(adapter: str | None) -> str:
    """Return how the prompt goes on, as it stands and not as a question."""
    plan = api.plan("small", dram="16MiB", context=384)
    with api.open(plan, adapter=adapter, user="ada") as session:
        return "".join(session.generate("Here comes Ann", raw=True, max_tokens=2))


def edited(loci: Loci, name: str = "hat", *more: str) -> dict[str, object]:
    done = loci("adapter", "edit", name, *FACT, *METHOD, "--model", "small", "--json", *more)
    assert done.code == 0, done.err
    found: dict[str, object] = done.json
    return found


def test_an_edit_is_said_listed_used_and_taken_back_bit_for_bit(
    loci: Loci, spec: ModelSpec
) -> None:
    plain = said(None)
    made = edited(loci)
    assert made["kind"] == "parametric" and made["fingerprint"] == spec.fingerprint
    report = made["facts"]["edit"]  # type: ignore[index]
    assert report["says"] == [True] and report["facts"][0]["subject"] == "Ann"
    assert report["elsewhere"]["asked"] == 8 and report["elsewhere"]["kl"] > 0
    assert list(report["moved"]) == ["layer.1.down_proj"] and report["bytes"] > 0
    shown = loci("adapter", "list").out
    assert "hat" in shown and "1 of 1" in shown
    used = loci(*ASK, "--adapter", "hat")
    assert used.code == 0 and used.json["adapter"] == "hat"
    assert said("hat") == " V" != plain
    assert loci("adapter", "drop", "hat").code == 0
    assert said(None) == plain
    assert loci("adapter", "list", "--json").json == []


def test_a_dry_run_keeps_nothing(loci: Loci, spec: ModelSpec) -> None:
    done = loci("adapter", "edit", "hat", *FACT, "--model", "small", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.json["facts"][0]["target"] == "V" and done.json["facts"][0]["now"] != "V"
    assert done.json["method"].startswith("rome(layer=0") and done.json["bytes"] > 0
    assert loci("adapter", "list", "--json").json == []
    text = loci("adapter", "edit", "hat", *FACT, "--model", "small", "--dry-run").out
    assert "would say Here comes Ann V." in text


def test_an_edit_comes_on_top_of_another(loci: Loci, home: Path, spec: ModelSpec) -> None:
    first = edited(loci)
    facts = home / "facts.json"
    facts.write_text(json.dumps([{"prompt": "Here comes [Dan]", "target": "V"}]))
    done = loci(
        "adapter", "edit", "both", "--file", str(facts), *METHOD, "--over", "hat",
        "--model", "small", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["parents"] == [first["id"]] and done.json["facts"]["rank"] == 2
    one = first["facts"]["edit"]["moved"]["layer.1.down_proj"]  # type: ignore[index]
    assert done.json["facts"]["edit"]["moved"]["layer.1.down_proj"] != one
    assert len(loci("adapter", "list", "--json").json) == 2


@pytest.mark.parametrize("more", [(), ("--retrain",)])
def test_forgetting_what_a_fact_is_of_takes_the_edit_along(
    loci: Loci, spec: ModelSpec, more: tuple[str, ...]
) -> None:
    added = loci("memory", "add", "My sister is Ann.", "--user", "ada", "--json")
    assert added.code == 0, added.err
    item = loci("memory", "list", "--user", "ada", "--json").json[0]["id"]
    assert edited(loci, "hat", "--item", item)["parents"] == [item]
    gone = loci("memory", "forget", item, "--user", "ada", "--yes", "--json", *more)
    assert gone.code == 0, gone.err
    (left,) = loci("adapter", "list", "--json").json
    assert (left["state"], left["bytes"], left["facts"]) == ("retired", 0, {"erased": True})


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ((), 2, "--fact, once or more, or --file"),
        (("--fact", "The hat of Ann is", "red"), 2, "marks its subject once"),
        (("--fact", "The hat of [Ann] is", " "), 2, "the target of a fact is empty"),
        ((*FACT, "--fact", "Here comes [Ann]", "6"), 2, "contradict each other"),
        ((*FACT, "--method", "serac"), 2, "memit, mend, rome"),
        ((*FACT, "--method", "mend"), 1, "loci bench run edits --method mend"),
        ((*FACT, "--method", "rome(layer=9)"), 2, "has no such layer"),
        ((*FACT, *METHOD[:2], "--cap", "1e-9"), 2, "would move weights too far"),
        ((*FACT, "--over", "nobody"), 1, "no adapter of this name"),
        ((*FACT, "--item", "i404"), 1, "there is no memory"),
        ((*FACT, "--model", "nothing-here"), 1, "nothing-here"),
    ],
)
def test_bad_edits_are_refused_and_nothing_is_kept(
    loci: Loci, spec: ModelSpec, arguments: tuple[str, ...], code: int, why: str
) -> None:
    done = loci("adapter", "edit", "hat", "--model", "small", *arguments)
    assert done.code == code and why in done.err, done.err
    assert loci("adapter", "list", "--json").json == []


def test_what_must_stay_stays_or_the_edit_is_refused(loci: Loci, spec: ModelSpec) -> None:
    done = loci(
        "adapter", "edit", "hat", *FACT, *METHOD, "--model", "small", "--keep", "Here comes Ann"
    )
    assert done.code == 1 and "nothing was kept" in done.err
    assert loci("adapter", "list", "--json").json == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no facts"),
        ("[1]", "fact 1 of"),
        ('[{"promt": "x", "target": "y"}]', "did you mean 'prompt'"),
        ('[{"prompt": "The hat of [Ann] is"}]', "lacks its prompt or target"),
        ('[{"prompt": "The hat of [Ann] is", "target": 3}]', "is no text"),
        ('[{"prompt": "The hat is", "subject": "Ann", "target": "x"}]', "does not stand"),
    ],
)
def test_bad_files_of_facts_are_refused(
    loci: Loci, home: Path, spec: ModelSpec, text: str, why: str
) -> None:
    (home / "facts.json").write_text(text)
    done = loci("adapter", "edit", "hat", "--file", str(home / "facts.json"), "--model", "small")
    assert done.code in (1, 2) and why in done.err, done.err
