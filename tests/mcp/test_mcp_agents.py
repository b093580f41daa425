"""Agents over MCP: the same work as from Python, in one scope, explained and undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.errors import LociError, ParameterError, StoreError
from loci.mcp.tools import Bound
from loci.run.memory import Memory

WORK = {"method": "tme", "name": "trip"}


def test_a_plan_is_made_changed_explained_and_taken_back(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        ada, bob = Bound(memory, user="ada"), Bound(memory, user="bob")
        ada.call("agent_act", {**WORK, "goal": "hotel: the Ritz"})
        done = ada.call("agent_act", {**WORK, "goal": "Change the hotel to Casa Azul."})
        assert done["status"] == "done" and done["steps"][0]["why"].startswith("say: Change")
        assert done["output"]["state"]["hotel"]["value"] == "Casa Azul"
        listed = ada.call("agent_list", {})
        assert listed["agents"][0]["name"] == "trip"
        assert "tme" in [entry["method"] for entry in listed["methods"]]
        why = ada.call("agent_history", {**WORK, "key": "node/1"})["steps"]
        assert len(why) == 2 and "Casa Azul" in why[1]["why"]
        ada.call("agent_undo", WORK)
        shown = ada.call("agent_show", {**WORK, "key": "node/"})
        assert shown["records"]["node/1"]["value"] == "the Ritz"
        ada.call("agent_redo", WORK)
        shown = ada.call("agent_show", {**WORK, "key": "node/"})
        assert shown["records"]["node/1"]["value"] == "Casa Azul"
        assert bob.call("agent_show", WORK) == {"records": {}}
        assert bob.call("agent_list", {})["agents"] == []
        same = memory.agent("tme", "trip", user="ada")
        assert same.records.all("node/")["node/1"].value["value"] == "Casa Azul"


def test_bad_calls_are_errors_with_a_way_out(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        bound = Bound(memory, user="ada")
        for arguments in (
            {**WORK, "inputs": {"plans": []}},
            {**WORK, "inputs": [1]},
            {**WORK, "max_steps": 0},
            {"method": "tmee", "name": "x"},
            {"method": "mem0", "name": "x"},
            {"method": "tme", "name": "no name"},
        ):
            with pytest.raises(LociError):
                bound.call("agent_act", arguments)
        with pytest.raises(ParameterError, match="whose memory"):
            bound.call("agent_act", {**WORK, "user": "bob"})
        with pytest.raises(StoreError, match="fewer steps"):
            bound.call("agent_undo", WORK)
