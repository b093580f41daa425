"""Agents over MCP: the same work as from Python, in one scope, explained and undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.core.agent import Action
from loci.errors import LociError, ParameterError, StoreError
from loci.mcp.tools import Bound
from loci.run.memory import Memory
from loci.run.sandbox import Sandbox
from loci.testing.phone import Faults, Phone
from loci.testing.programmer import Programmer, make_job

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


def test_a_code_base_is_written_and_its_tests_are_run(tmp_path: Path) -> None:
    job = make_job(4, modules=3, notes=0)
    with Memory(tmp_path / "m.db") as memory:
        bound = Bound(memory, user="ada", llm=Programmer(4), sandbox=Sandbox())
        call = {"method": "l2mac", "name": "code", "goal": job.goal, "inputs": dict(job.inputs)}
        stopped = bound.call("agent_act", {**call, "max_steps": 3})
        assert stopped["status"] == "stopped"
        done = bound.call("agent_act", call)
        assert done["status"] == "done" and done["output"]["checked"] == "syntax and tests"
        assert {"m0.py", "m1.py", "m2.py"} <= set(done["output"]["files"])
        with pytest.raises(LociError, match="none was given"):
            Bound(memory, user="ada").call("agent_act", {**call, "name": "other"})


def test_a_phone_is_driven_from_outside_screen_by_screen(tmp_path: Path) -> None:
    calm = Faults(nothing=0, elsewhere=0, dialog=0, network=0)
    phone = Phone(3, screens=30, faults=calm)
    [errand] = phone.errands(1, 1, cross=0.0)
    with Memory(tmp_path / "m.db") as memory:
        bound = Bound(memory, user="ada")
        call = {"method": "maple", "name": "phone", "goal": errand.goal}
        for _ in range(80):
            shown = phone.look()
            elements = [
                {"role": e.role, "text": e.text, "id": e.id, "risky": e.risky}
                for e in shown.elements
            ]
            screen = {"app": shown.app, "version": shown.version, "elements": elements}
            inputs = {**errand.inputs(), "screen": screen}
            done = bound.call("agent_act", {**call, "inputs": inputs})
            if done["status"] != "asks":
                break
            phone.do(Action(**done["output"]["action"]))
        assert done["status"] == "done" and phone.shows(errand.want[0])


def test_puzzles_teach_over_mcp(tmp_path: Path) -> None:
    flip = [{"input": [[1, 0]], "output": [[0, 1]]}]
    tasks = [{"id": "a", "train": flip, "test": [{"input": [[2, 0, 0]]}]}]
    with Memory(tmp_path / "m.db") as memory:
        bound = Bound(memory, user="ada")
        call = {"method": "arcmemo", "name": "grids", "inputs": {"tasks": tasks}}
        done = bound.call("agent_act", call)
        assert done["output"]["tasks"]["a"]["predictions"] == [[[0, 0, 2]]]
