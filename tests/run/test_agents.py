"""Agents on a memory: records in the store, undone by steps, and alive after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loci.core.agent import Record
from loci.errors import BusyError, MethodError, NotFoundError, ParameterError, StoreError
from loci.methods.recall.tme import Tme
from loci.run.agents import Agent, acting, known, method_of
from loci.run.memory import Memory
from loci.testing.agents import Killed, Mortal, tools_for

Place = Callable[[str], str]


@pytest.fixture
def memory(place: Place) -> Iterator[Memory]:
    with Memory(place("work.db")) as opened:
        yield opened


def values(agent: Agent) -> dict[str, object]:
    return {name: node["value"] for name, node in agent.act(inputs=LOOK).output["state"].items()}


LOOK = {"about": "hotel"}


def test_a_step_is_undone_as_one_and_redone(memory: Memory) -> None:
    trip = memory.agent("tme", "trip", user="ada")
    trip.act("destination: Boston\nhotel: the Ritz\nThe hotel depends on the destination.")
    before = trip.act(inputs=LOOK).output["state"]
    trip.act("Actually, make the destination Seattle.")
    after = trip.act(inputs=LOOK).output["state"]
    assert after["hotel"]["stale"] and not before["hotel"]["stale"]
    [step] = trip.undo()
    assert {"node/1", "node/2", "tree"} <= set(step.keys), "two nodes changed in one step"
    assert trip.act(inputs=LOOK).output["state"] == before
    trip.redo()
    assert trip.act(inputs=LOOK).output["state"] == after
    assert [s.undone for s in trip.history()] == [False] * 4
    trip.undo(2)
    with pytest.raises(StoreError, match="fewer steps to undo"):
        trip.undo(3)
    trip.act("hotel: Casa Azul")
    with pytest.raises(StoreError, match="fewer steps to redo"):
        trip.redo()
    assert memory.check_integrity() == []


def test_another_process_sees_what_was_put(memory: Memory, place: Place) -> None:
    memory.agent("tme", "trip", user="ada").act("hotel: the Ritz")
    with Memory(place("work.db")) as other:
        assert values(other.agent("tme", "trip", user="ada")) == {"hotel": "the Ritz"}
        assert other.agent("tme", "trip", user="bob").records.all() == {}


def test_two_who_act_at_once_do_not_write_over_each_other(memory: Memory) -> None:
    first = memory.agent("tme", "trip", user="ada")
    first.act("hotel: the Ritz")
    second = memory.agent("tme", "trip", user="ada")
    first.act("Change the hotel to Casa Azul.")
    with pytest.raises(BusyError, match="since it was read"):
        second.act("Remove the hotel.")
    second.records.reload()
    second.act("Remove the hotel.")
    with pytest.raises(BusyError):
        memory_twin = memory.agent("tme", "new", user="ada")
        memory.agent("tme", "new", user="ada").act("a: b")
        memory_twin.act("a: c")


def test_places_are_strangers(memory: Memory) -> None:
    plain = memory.agent("tme", "trip", user="ada")
    cook = memory.agent("tme", "trip", user="ada", agent="cook")
    plain.act("hotel: the Ritz")
    cook.act("hotel: Casa Azul")
    assert values(plain) == {"hotel": "the Ritz"} and values(cook) == {"hotel": "Casa Azul"}
    assert len(plain.history()) == len(cook.history()) == 1
    assert [(k.method, k.name) for k in known(memory, user="ada")] == [("tme", "trip")]
    assert [k.records for k in known(memory, user="ada", agent="cook")] == [3]


def test_records_are_items_that_can_be_looked_at_and_forgotten(memory: Memory) -> None:
    trip = memory.agent("tme", "trip", user="ada")
    trip.act("hotel: the Zanzibar Palace")
    items = memory.list(user="ada", kinds="state")
    assert "hotel: the Zanzibar Palace" in [item.text for item in items]
    assert memory.list(user="ada") == [] and memory.search("Zanzibar", user="ada") == []
    erased = memory.forget([item.id for item in items], user="ada")
    assert erased.clean
    again = memory.agent("tme", "trip", user="ada")
    assert again.records.all() == {} and again.history() == []


def test_explain_tells_why_each_version_came(memory: Memory) -> None:
    trip = memory.agent("tme", "trip", user="ada")
    trip.act("hotel: the Ritz\nChange the hotel to Casa Azul.")
    whys = [step.why for step in trip.explain("node/1")]
    assert "the Ritz" in whys[0] and "Change the hotel to Casa Azul." in whys[1]
    assert [r and r.value["value"] for r in trip.records.past("node/1")] == [
        "the Ritz",
        "Casa Azul",
    ]
    with pytest.raises(NotFoundError, match="node/1"):
        trip.explain("node/7")


def test_what_is_dropped_comes_back(memory: Memory) -> None:
    trip = memory.agent("tme", "trip", user="ada")
    trip.act("hotel: the Ritz")
    assert trip.drop() == 3 and trip.records.all() == {} and known(memory, user="ada") == []
    trip.undo()
    assert values(trip) == {"hotel": "the Ritz"}


def test_a_record_must_be_one(memory: Memory) -> None:
    records = memory.agent("tme", "trip", user="ada").records
    for bad in (
        Record(key="a b", text="x", value={}),
        Record(key="", text="x", value={}),
        Record(key="a", text="x", value={"v": float("nan")}),
        Record(key="a", text="x", value={"v": "x" * 600_000}),
        Record(key="a", text="x", value={}, links=(("of", "nobody"),)),
    ):
        with pytest.raises(ParameterError):
            records.put([bad], "try")
    assert memory.agent("tme", "trip", user="ada").records.all() == {}


def test_bad_names_and_methods_are_refused(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="an agent's name"):
        memory.agent("tme", "../x", user="ada")
    with pytest.raises(MethodError, match="it does no jobs"):
        memory.agent("mem0", "x", user="ada")
    with pytest.raises(ParameterError, match="max_steps"):
        memory.agent("tme", "x", user="ada").act("a: b", max_steps=0)
    with pytest.raises(ParameterError, match="JSON"):
        memory.agent(Tme(), "x", user="ada").act("a: b", {"plan": object()})
    with pytest.raises(MethodError, match="keeps no memories"):
        Memory(tmp_path / "other.db", recall="tme")
    assert "tme" in acting()


_WORK = """
import sys, time
from loci.run.memory import Memory
with Memory(sys.argv[1]) as memory:
    trip = memory.agent("tme", "trip", user="ada")
    print("ready", flush=True)
    trip.act("\\n".join(f"slot{n}: value{n}" for n in range(150)), max_steps=1000)
"""


def test_a_killed_process_goes_on_where_it_was(quick_path: Path) -> None:
    file = str(quick_path / "work.db")
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK, file], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for _ in range(600):
        time.sleep(0.05)
        with Memory(file) as memory:
            if len(memory.agent("tme", "trip", user="ada").records.all("turn/")) > 2:
                break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Memory(file) as memory:
        trip = memory.agent("tme", "trip", user="ada")
        meta = trip.records.get("tree")
        done = 0 if meta is None else meta.value["turn"]
        assert done == len(trip.records.all("turn/")) and 0 < done < 150
        goal = "\n".join(f"slot{n}: value{n}" for n in range(150))
        outcome = trip.act(goal, max_steps=1000)
        assert outcome.status == "done" and len(outcome.steps) == 150 - done
        assert len(outcome.output["state"]) == 150 and memory.check_integrity() == []


def tools_of(name: str) -> dict[str, object]:
    """Return what a method needs beside its records."""
    tools = tools_for(method_of(name))
    return {"llm": tools.llm, "device": tools.device}


@pytest.mark.parametrize("name", acting())
def test_every_method_goes_on_from_the_store_and_can_be_taken_back(
    name: str, quick_path: Path
) -> None:
    """Its example is killed in the middle, another process finishes it, and undo empties it."""
    file, method, tools = quick_path / "work.db", method_of(name), tools_of(name)
    example = method.example
    with Memory(file) as memory:
        agent = memory.agent(method, "job", user="ada", **tools)  # type: ignore[arg-type]
        agent.records = Mortal(agent.records, 2, after=True)  # type: ignore[assignment]
        with pytest.raises(Killed):
            agent.act(example.goal, example.inputs)
    with Memory(file) as memory:
        agent = memory.agent(method, "job", user="ada", **tools)  # type: ignore[arg-type]
        assert len(agent.history()) == 2
        assert agent.act(example.goal, example.inputs).status == "done"
        values = {key: record.value for key, record in agent.records.all().items()}
        steps = agent.history()
        assert all(step.why and step.keys for step in steps)
        agent.undo(len(steps))
        assert agent.records.all() == {} and memory.check_integrity() == []
        agent.redo(len(steps))
        assert {key: record.value for key, record in agent.records.all().items()} == values


def test_work_is_taken_along_with_an_export(tmp_path: Path) -> None:
    with Memory(tmp_path / "one.db") as memory:
        memory.agent("tme", "trip", user="ada").act("hotel: the Ritz\nChange the hotel to Azul.")
        memory.export(tmp_path / "ada.jsonl", user="ada")
    with Memory(tmp_path / "two.db") as memory:
        memory.import_(tmp_path / "ada.jsonl")
        trip = memory.agent("tme", "trip", user="ada")
        assert values(trip) == {"hotel": "Azul"}
        assert trip.act("Go back to the previous hotel.").output["state"]["hotel"]["value"] == (
            "the Ritz"
        )
