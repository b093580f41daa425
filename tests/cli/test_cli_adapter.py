"""`loci adapter`: trained and added, used by name, exported, dropped; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Loci
from torch import Generator

from loci.core.spec import ModelSpec
from loci.nn.patch import Patch
from loci.run import distil
from loci.run.peft import write_folder
from loci.run.trainer import MLP, Recipe
from loci.testing.models import tiny_pack

BUDGET = ("--dram", "16MiB", "--context", "384")
ASK = ("run", "small", "Where does Nora live?", *BUDGET, "--max-tokens", "8", "--json")


@pytest.fixture
def spec(home: Path) -> ModelSpec:
    with tiny_pack(home / "models" / "small", max_context=512) as pack:
        found = pack.spec
    with tiny_pack(home / "models" / "other", layers=1, max_context=512):
        pass
    (home / "data").mkdir()
    return found


def folder_of(home: Path, spec: ModelSpec, base: str | None = None, size: float = 0.5) -> Path:
    draw = Generator().manual_seed(0)
    shapes = spec.layer_linears()
    parts = {
        f"layer.{layer}.{name}": (
            size * torch.randn(shapes[name][0], 2, generator=draw),
            torch.randn(2, shapes[name][1], generator=draw),
        )
        for layer, name in ((0, "q_proj"), (1, "down_proj"))
    }
    write_folder(home / "theirs", Patch(parts), spec, base=base)
    return home / "theirs"


def test_a_folder_is_added_used_exported_and_dropped(
    loci: Loci, home: Path, spec: ModelSpec
) -> None:
    folder = folder_of(home, spec, base=spec.fingerprint)
    plain = loci(*ASK).json
    added = loci("adapter", "add", str(folder), "--model", "small", "--json")
    assert added.code == 0, added.err
    assert added.json["facts"]["name"] == "theirs" and added.json["fingerprint"] == spec.fingerprint
    shown = loci("adapter", "list")
    assert "theirs" in shown.out and added.json["id"] in shown.out
    used = loci(*ASK, "--adapter", "theirs")
    assert used.code == 0, used.err
    assert used.json["adapter"] == "theirs" and used.json["answer"] != plain["answer"]
    assert any(held["kind"] == "adapter" for held in used.json["held"])
    for other in (str(folder), added.json["id"]):
        assert loci(*ASK, "--adapter", other).json["answer"] == used.json["answer"]
    talk = loci("chat", "small", *BUDGET, "--max-tokens", "8", "--adapter", "theirs", stdin="Hi\n")
    assert talk.code == 0, talk.err
    out = loci("adapter", "export", "theirs", str(home / "out"), "--model", "small")
    assert out.code == 0, out.err
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (home / "out" / file).is_file()
    assert loci(*ASK, "--adapter", str(home / "out")).json["answer"] == used.json["answer"]
    assert loci("adapter", "drop", "theirs").code == 0
    assert loci("adapter", "list", "--json").json == []
    gone = loci(*ASK, "--adapter", "theirs")
    assert gone.code == 1 and "no adapter of this name" in gone.err


def test_what_does_not_belong_is_refused(loci: Loci, home: Path, spec: ModelSpec) -> None:
    other = loci("adapter", "add", str(folder_of(home, spec)), "--model", "other")
    assert other.code == 1 and "the model does not have" in other.err
    assert loci("adapter", "add", str(home / "theirs"), "--model", "small").code == 0
    again = loci("adapter", "add", str(home / "theirs"), "--model", "small")
    assert again.code == 2 and "is there" in again.err
    named = loci(*ASK, "--adapter", "thiers")
    assert named.code == 1 and "did you mean 'theirs'" in named.err
    wrong = loci("run", "other", "Hi", *BUDGET, "--adapter", "theirs")
    assert wrong.code == 1 and "another model" in wrong.err
    assert loci("adapter", "export", "theirs", str(home / "o"), "--model", "other").code == 1
    assert not (home / "o").exists()
    assert loci("adapter", "drop", "nobody").code == 1
    assert loci("adapter", "train", "x").code == 2
    assert loci("adapter", "add", str(home / "models"), "--model", "small").code == 1
    small = loci(*ASK[:3], "--dram", "1MiB", "--context", "384", "--adapter", "theirs")
    assert small.code in (0, 3)


def test_an_adapter_that_does_not_fit_the_budget_is_refused(
    loci: Loci, home: Path, spec: ModelSpec
) -> None:
    shapes = spec.layer_linears()
    wide = {
        "layer.0.gate_proj": (
            torch.ones(shapes["gate_proj"][0], 9000),
            torch.ones(9000, spec.hidden),
        )
    }
    write_folder(home / "wide", Patch(wide), spec)
    done = loci(*ASK[:3], "--dram", "4MiB", "--context", "384", "--adapter", str(home / "wide"))
    assert done.code == 3 and "adapter wide" in done.err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(linears=MLP, layers=(0, 29), rank=2, steps=2, batch=2, every=1, retain=0.0)
    monkeypatch.setattr(distil, "RECIPE", recipe)
    monkeypatch.setattr(distil, "MIN_STEPS", 2)
    monkeypatch.setattr(distil, "EPOCHS", 0)
    monkeypatch.setattr(distil, "TOKENS", 8)
    monkeypatch.setattr(distil, "JUDGED", 1)


def test_facts_become_an_adapter_that_forgetting_empties(
    loci: Loci, home: Path, spec: ModelSpec, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loci("memory", "add", "I live in Utrecht.", "--user", "ada").code == 0
    poor = loci("adapter", "train", "facts", "--user", "ada", "--model", "small")
    assert poor.code == 1 and "is not accepted" in poor.err
    assert loci("adapter", "list", "--json").json == []
    monkeypatch.setattr(distil, "ANSWERED", 0.0)
    monkeypatch.setattr(distil, "KL", 1e9)
    done = loci("adapter", "train", "facts", "--user", "ada", "--model", "small", "--json")
    assert done.code == 0, done.err
    assert done.json["policy"]["owner"] == "ada" and len(done.json["parents"]) == 1
    (item,) = done.json["parents"]
    assert done.json["facts"]["probe"]["asked"] == 2
    assert loci(*ASK, "--adapter", "facts", "--user", "ada").json["adapter"] == "facts"
    denied = loci(*ASK, "--adapter", "facts", "--user", "bob")
    assert denied.code == 1 and "may not be read" in denied.err
    named = loci("adapter", "train", "again", "--item", item, "--model", "small")
    assert named.code == 0, named.err
    other = loci("memory", "add", "I speak Finnish.", "--user", "ada", "--json").json
    assert other
    both = loci("adapter", "train", "both", "--user", "ada", "--model", "small", "--json").json
    (spoken,) = set(both["parents"]) - {item}
    fresh = loci("memory", "forget", spoken, "--retrain", "--yes", "--json").json
    assert fresh["retrained"] == [both["id"]] and fresh["retired"] == []
    shown = {one["id"]: one for one in loci("adapter", "list", "--json").json}
    assert shown[both["id"]]["parents"] == [item]
    report = loci("memory", "forget", item, "--yes", "--json").json
    assert sorted(report["retired"]) == sorted(
        one["id"] for one in loci("adapter", "list", "--json").json
    )
    empty = loci(*ASK, "--adapter", done.json["id"], "--user", "ada")
    assert empty.code == 1 and "holds no adapter" in empty.err
    bare = loci("adapter", "train", "none", "--user", "bob", "--model", "small")
    assert bare.code == 2 and "no facts about bob" in bare.err
