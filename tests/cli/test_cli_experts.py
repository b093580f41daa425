"""A memory kept by experts, from the command line and in a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Loci

from loci.cli import serve
from loci.methods.recall.memlora import EXPERTS
from loci.testing.models import tiny_pack


@pytest.fixture(autouse=True)
def small(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pack(home / "models" / "small").close()
    monkeypatch.setenv("LOCI_MODEL", "small")
    monkeypatch.setenv("LOCI_DRAM", "64MiB")
    monkeypatch.setenv("LOCI_CONTEXT", "512")


def test_missing_experts_are_named_with_what_makes_them(loci: Loci) -> None:
    failed = loci("memory", "add", "I live in Graz.", "--recall", "memlora")
    assert failed.code == 1
    assert "has no expert of a memory" in failed.err and "'extract'" in failed.err
    assert "loci methods prepare memlora --model small" in failed.err
    assert "allowed:" in failed.err and "nothing was stored" in failed.err
    assert loci("memory", "list", "--kind", "turn", "--json").json == []
    plain = loci("memory", "add", "I live in Graz.", "--recall", "memlora", "--fall-back", "--json")
    (step, *_) = plain.json["steps"]
    assert step["rung"] == "rules" and "no expert" in step["refused"][0]


def test_experts_are_made_once_tried_and_asked(loci: Loci) -> None:
    refused = loci("methods", "prepare", "memlora", "--weights", "1MiB")
    assert refused.code == 2 and "pack no weights" in refused.err
    prepare = ("methods", "prepare", "memlora", "--train", "2")
    made = loci(*prepare, "--json")
    assert made.code == 0, made.err
    experts = made.json["experts"]
    assert set(experts) == set(EXPERTS)
    for one in experts.values():
        assert Path(one["path"]).is_file() and 0 <= one["right"] <= one["tried"] > 0
    assert made.json["bytes"] == sum(one["bytes"] for one in experts.values())
    assert loci(*prepare, "--json").json == made.json
    assert loci(*prepare).out.count("with people and wordings it was not taught") == 3

    told = ("memory", "add", "I live in Graz.", "--json")
    asked = loci(*told, "--recall", "memlora")
    assert asked.code == 0, asked.err
    (step, *_) = asked.json["steps"]
    assert (step["task"], step["rung"], step["model"]) == ("draw facts", "slm", "small")
    by_rules = loci(*told, "--recall", "memlora", "--backend", "rules").json
    assert [item["text"] for item in by_rules["items"]] == ["The user lives in Graz"]
    assert loci("config", "set", "recall", "memlora").code == 0
    again = loci("memory", "add", "I live in Graz, still.", "--json").json
    assert again["steps"][0]["rung"] == "slm"
    shown = loci("methods", "memlora", "--json")
    assert "artefact" in json.loads(shown.out)["needs"]


def test_a_server_asks_them_where_the_configuration_says_so(loci: Loci, home: Path) -> None:
    assert loci("methods", "prepare", "memlora", "--train", "1").code == 0
    assert loci("config", "set", "recall", "memlora").code == 0
    opens = serve._opener(str(home / "served.db"))
    with opens("local", None) as memory:
        added = memory.add("I live in Graz.", user="ada")
    assert [(step.rung, step.model) for step in added.steps[:1]] == [("slm", "small")]
