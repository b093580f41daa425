"""TME on paper: a change hits one node, what depends on it goes stale, and there is a way back."""

from __future__ import annotations

import json

import pytest

from loci.core.agent import Job
from loci.errors import ParameterError
from loci.methods.recall._tme_read import Clarify, read
from loci.methods.recall._tme_tree import Tree
from loci.methods.recall.base import Tools
from loci.methods.recall.tme import Tme
from loci.models.scripted import ScriptedLlm
from loci.testing.agents import DictRecords
from loci.testing.plans import make_script, wordings
from loci.text.ladder import Ladder


def tree(*slots: str, **deps: str) -> Tree:
    made = Tree()
    for slot in slots:
        made.apply({"op": "create", "slot": slot})
    for slot, other in deps.items():
        made.apply({"op": "depend", "slot": slot, "on": other})
    return made


def test_a_change_makes_what_depends_on_it_stale_and_nothing_else() -> None:
    made = tree("city", "hotel", "tour", "budget", hotel="city", tour="hotel")
    for slot, value in (("city", "Graz"), ("hotel", "Ritz"), ("tour", "bus"), ("budget", "900")):
        made.apply({"op": "set", "slot": slot, "value": value})
    made.apply({"op": "set", "slot": "city", "value": "Linz"})
    state = made.state()
    assert [name for name, node in state.items() if node["stale"]] == ["hotel", "tour"]
    made.apply({"op": "set", "slot": "tour", "value": "walk"})
    assert [name for name, node in made.state().items() if node["stale"]] == ["hotel"]


def test_going_back_twice_goes_back_two_values() -> None:
    made = tree("city")
    for value in ("Graz", "Linz", "Wels"):
        made.apply({"op": "set", "slot": "city", "value": value})
    back = {"op": "rollback", "slot": "city"}
    made.apply(back)
    assert made.state()["city"]["value"] == "Linz"
    made.apply(back)
    assert made.state()["city"]["value"] == "Graz"
    with pytest.raises(ParameterError, match="had no value before"):
        made.apply(back)
    made.apply({"op": "rollback", "slot": "city", "to": "wels"})
    assert made.state()["city"]["value"] == "Wels"
    with pytest.raises(ParameterError, match="never had this value; got 'Rome'; allowed: 'Graz'"):
        made.apply({"op": "rollback", "slot": "city", "to": "Rome"})


def test_a_cycle_is_refused_and_named() -> None:
    made = tree("a", "b", "c", b="a", c="b")
    with pytest.raises(ParameterError, match="wait for each other; got 'a -> c -> b -> a'"):
        made.apply({"op": "depend", "slot": "a", "on": "c"})
    assert made.nodes["node/1"]["deps"] == []


def test_a_step_is_reused_in_another_task() -> None:
    made = tree("trip", "conference")
    made.apply({"op": "create", "slot": "hotel", "parent": "trip", "value": "the Ritz"})
    [op] = read("Use the same hotel for the conference.", made)  # type: ignore[misc]
    assert made.apply(op) == "conference / hotel as in trip / hotel"
    assert made.state()["conference / hotel"]["value"] == "the Ritz"
    made.apply({"op": "set", "slot": "trip / hotel", "value": "Casa Azul"})
    assert made.state()["conference / hotel"]["stale"]
    with pytest.raises(ParameterError, match="several tasks have this name"):
        made.key("hotel")
    assert isinstance(read("Cancel the hotel.", made), Clarify)


def test_the_prompt_is_the_active_path() -> None:
    made = tree("trip", "music")
    made.apply({"op": "create", "slot": "city", "parent": "trip", "value": "Graz"})
    made.apply({"op": "create", "slot": "hotel", "parent": "trip", "value": "Ritz"})
    made.apply({"op": "depend", "slot": "hotel", "on": "city"})
    key = made.key("hotel")
    text, left = Tme().prompt(made, key, "Book it.")
    assert text.splitlines() == [
        "Plan:",
        "trip: 2 of 2 done",
        "trip / city: Graz",
        "trip / hotel: Ritz",
        "Said: Book it.",
    ]
    assert left == []
    _, left = Tme().prompt(made, key, "Book it.", lambda text: len(text.split()), 13)
    assert left == ["trip / city"], "what is left out is told"


@pytest.mark.parametrize("words", ["canonical", "written"])
def test_scripts_end_in_the_state_of_the_simulator(words: str) -> None:
    for seed in range(40):
        script = make_script(seed, words=words)  # type: ignore[arg-type]
        goal = "\n".join(said.text for said in script.turns)
        plan = [{"slot": slot} for slot in script.slots]
        tools = Tools(records=DictRecords())
        done = Tme().act(Job(goal=goal, inputs={"plan": plan}), tools)
        assert done.status == "done", (seed, done.why)
        state = {
            name: (node["value"] and node["value"].lower(), node["status"], node["stale"])
            for name, node in done.output["state"].items()
        }
        wanted = {n: (v and v.lower(), s, st) for n, (v, s, st) in script.state.items()}
        assert state == wanted, seed


def test_the_halves_of_the_wordings_are_apart() -> None:
    for kind in ("set", "change", "rollback", "remove", "restore"):
        written, held = set(wordings(kind, "written")), set(wordings(kind, "held_out"))
        assert written and held and not written & held
        assert not (written | held) & set(wordings(kind, "canonical"))


def test_the_same_instruction_told_twice_is_done_once() -> None:
    tools = Tools(records=DictRecords())
    for _ in range(2):
        Tme().act(Job(goal="city: Graz\ncity: Linz\nRevert the city.", inputs={"turn": 1}), tools)
    node = tools.records.get("node/1")
    assert node is not None and len(node.value["versions"]) == 3


def test_what_is_not_clear_is_asked_and_changes_nothing() -> None:
    tools = Tools(records=DictRecords())
    Tme().act(Job(goal="city: Graz"), tools)
    before = tools.records.all()
    for text in ("Do something nice.", "Revert the city.", "The city depends on the city."):
        asked = Tme().act(Job(goal=text), tools)
        assert asked.status == "asks" and asked.output["asks"], text
        assert tools.records.all() == before, text


def test_values_keep_their_type() -> None:
    plan = [{"slot": "budget", "type": "number"}, {"slot": "class", "type": ["first", "second"]}]
    tools = Tools(records=DictRecords())
    Tme().act(Job(inputs={"plan": plan}), tools)
    assert Tme().act(Job(goal="Set the budget to a lot."), tools).status == "asks"
    assert Tme().act(Job(goal="Set the class to third."), tools).status == "asks"
    done = Tme().act(Job(goal="budget: 900 euros\nclass: First"), tools)
    assert done.output["state"]["class"]["value"] == "first"


@pytest.mark.parametrize(
    "op",
    [
        {"op": "explode", "slot": "city"},
        {"op": "set", "slot": "city"},
        {"op": "set", "slot": "citty", "value": "x"},
        {"op": "set", "slot": "city", "value": "x", "when": "now"},
        {"op": "create", "slot": "city"},
        {"op": "create", "slot": "a/b"},
        {"op": "create", "slot": "x", "type": "colour"},
        {"op": "depend", "slot": "city", "on": "moon"},
        {"op": "set", "slot": "city", "value": ["x"]},
    ],
)
def test_bad_operations_are_refused(op: dict[str, object]) -> None:
    tools = Tools(records=DictRecords())
    Tme().act(Job(goal="city: Graz"), tools)
    before = tools.records.all()
    with pytest.raises(ParameterError):
        Tme().act(Job(inputs={"ops": [op]}), tools)
    assert tools.records.all() == before


def test_a_model_reads_what_rules_cannot_and_is_checked() -> None:
    said = "Ugh, Graz is out, Linz it is"
    good = {"ops": [{"op": "set", "slot": "city", "value": "Linz", "on": None}]}
    made_up = {"ops": [{"op": "set", "slot": "city", "value": "Rome", "on": None}]}
    unknown = {"ops": [{"op": "remove", "slot": "moon", "value": None, "on": None}]}
    for reply, status in ((good, "done"), (made_up, "asks"), (unknown, "asks")):
        records = DictRecords()
        Tme().act(Job(goal="city: Graz"), Tools(records=records))
        ladder = Ladder("endpoint", ScriptedLlm([json.dumps(reply)]))
        done = Tme().act(Job(goal=said), Tools(records=records, ladder=ladder))
        assert done.status == status
        assert done.output["state"]["city"]["value"] == ("Linz" if status == "done" else "Graz")
        assert bool(ladder.steps[0].refused) == (status == "asks")
