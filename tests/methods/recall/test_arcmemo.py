"""ArcMemo: what is common is found by hand, only what is verified is written, and it helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loci.core.agent import Job
from loci.errors import ParameterError
from loci.methods.recall._arc_concepts import (
    Concept,
    anti_unify,
    features,
    filled,
    learnt,
    rarity_of,
    relevance,
    routines,
)
from loci.methods.recall._arc_dsl import (
    FUNCTIONS,
    INPUT,
    Call,
    Tree,
    Var,
    chained,
    choices,
    from_json,
    instances,
    run,
    to_json,
)
from loci.methods.recall._arc_search import moves_of, palette_of, solve
from loci.methods.recall.arcmemo import ArcMemo
from loci.methods.recall.base import Tools
from loci.models.scripted import ScriptedLlm
from loci.testing.agents import DictRecords
from loci.testing.puzzles import make_world
from loci.text.ladder import Ladder


def program(*calls: tuple[Any, ...]) -> Tree:
    return chained([Call(name, (INPUT, *args)) for name, *args in calls])


def grid(*rows: str) -> Any:
    return np.array([[int(c) for c in row] for row in rows], np.int8)


def test_what_two_programs_share_has_holes_where_they_differ() -> None:
    a = program(("crop",), ("recolor", 1, 2), ("paint", 3))
    b = program(("crop",), ("recolor", 1, 4), ("paint", 5))
    shared = anti_unify(a, b)
    assert shared == program(("crop",), ("recolor", 1, Var(0, "new")), ("paint", Var(1, "new")))
    assert anti_unify(a, a) == a
    assert anti_unify(a, program(("crop",), ("recolor", 1, 2))) is None
    same = anti_unify(program(("paint", 1), ("border", 1)), program(("paint", 2), ("border", 2)))
    hole = Var(0, "new")
    assert same == Call("border", (Call("paint", (INPUT, hole)), hole)), "the same pair, one hole"


def test_a_concept_must_save_more_than_it_costs() -> None:
    cue = frozenset({"size same"})
    two = {str(n): (program(("crop",), ("paint", n)), cue) for n in (1, 2)}
    assert learnt([], two) == [], "2 calls used twice: 2 * 1 - (2 + 1) < 0"
    three = {**two, "3": (program(("crop",), ("paint", 3)), cue)}
    [concept] = learnt([], three)
    assert concept.saved == 2 * 2 - (2 + 1) and concept.cues == {"size same": 3}
    assert [str(tree) for tree in filled(concept, {"old": [1], "new": [7, 8]})] == [
        "paint(crop(input), 7)",
        "paint(crop(input), 8)",
    ]
    [again] = learnt([Concept(concept.tree, tries=4, wins=2)], three)
    assert (again.tries, again.wins) == (4, 2) and again.name == concept.name


def test_routines_of_a_program_are_its_parts_in_a_row() -> None:
    found = routines(program(("crop",), ("paint", 1), ("turn_left",)))
    assert [str(tree) for tree in found] == [
        "paint(crop(input), 1)",
        "turn_left(paint(crop(input), 1))",
        "turn_left(paint(input, 1))",
    ]


def test_functions_by_hand() -> None:
    box = grid("0000", "0110", "0100")
    assert run(program(("crop",)), box).tolist() == [[1, 1], [1, 0]]
    assert run(program(("fall_down",)), grid("12", "00")).tolist() == [[0, 0], [1, 2]]
    ring = grid("111", "101", "111")
    assert run(program(("fill_holes", 4)), ring).tolist() == [[1, 1, 1], [1, 4, 1], [1, 1, 1]]
    halves = grid("110", "000", "011")
    assert run(program(("both_rows", 5)), halves).tolist() == [[0, 5, 0]]
    assert run(program(("over_input", INPUT)), box).tolist() == box.tolist()
    shifted = program(("shift_right",), ("over_input", INPUT))
    assert run(shifted, grid("10", "00")).tolist() == [[1, 1], [0, 0]]
    assert run(program(("scale", 3), ("scale", 3), ("scale", 3)), grid("11", "11")) is None


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_is_total_and_leaves_its_grid_alone(name: str) -> None:
    dice = np.random.default_rng(0)
    palette = {"old": [1, 2], "new": [3], "count": [2]}
    for shape in ((1, 1), (1, 5), (6, 1), (3, 4), (8, 8)):
        for share in (0.0, 0.3, 1.0):
            one = ((dice.random(shape) < share) * dice.integers(1, 4, shape)).astype(np.int8)
            before = one.copy()
            args = [choices(kind, palette)[0] for kind in FUNCTIONS[name].types]
            made = run(Call(name, (INPUT, *args)), one)
            assert (one == before).all()
            assert made is None or (made.ndim == 2 and set(np.unique(made)) <= set(range(10)))


def test_trees_survive_json() -> None:
    tree = Call("recolor", (program(("over_input", INPUT)), Var(0, "old"), 3))
    assert from_json(to_json(tree)) == tree
    for call in instances({"old": [1], "new": [2], "count": [2]}):
        assert from_json(to_json(call)) == call


def test_the_search_finds_the_shortest_and_keeps_its_budget() -> None:
    pairs = [(grid("12", "00"), grid("00", "21")), (grid("300", "000"), grid("000", "003"))]
    moves = moves_of(palette_of(pairs))
    found = solve(pairs, moves, 4000)
    assert str(found.program) in ("turn_twice(input)", "fall_down(flip_columns(input))")
    assert found.nodes <= len(moves)
    impossible = [(grid("1"), grid("2")), (grid("1"), grid("3"))]
    for budget in (1, 10, 500):
        missed = solve(impossible, moves_of(palette_of(impossible)), budget)
        assert missed.program is None and missed.nodes <= budget


def test_cues_select_and_rare_ones_count_more() -> None:
    common, rare = frozenset({"same", "x"}), frozenset({"same", "y"})
    a = Concept(program(("crop",), ("paint", 1)), ("p",), {"same": 1, "x": 1})
    b = Concept(program(("crop",), ("paint", 2)), ("q",), {"same": 1, "y": 1})
    rarity = rarity_of([a, b])
    assert rarity["x"] > rarity["same"]
    assert relevance(a, common, rarity) > relevance(b, common, rarity)
    assert relevance(b, rare, rarity) > relevance(a, rare, rarity)
    better = Concept(a.tree, ("p",), a.cues, tries=4, wins=4)
    assert relevance(better, common, rarity) > relevance(a, common, rarity)
    assert "size same" in features([(grid("10"), grid("02"))])


def test_concepts_solve_what_the_budget_does_not_reach_without() -> None:
    lessons, exams = make_world(103, 12, 6, routines=3)
    right = {}
    for memory in ("none", "instances", "concepts"):
        method = ArcMemo(memory=memory, budget=4000)
        tools = Tools(records=DictRecords())
        tasks = [puzzle.to_json() for puzzle in (*lessons, *exams)]
        done = method.act(Job(inputs={"tasks": tasks}, max_steps=1000), tools)
        results = done.output["tasks"]
        right[memory] = sum(results[p.id]["predictions"] == [p.test[1].tolist()] for p in exams)
        assert bool(tools.records.all("concept/")) == (memory == "concepts")
    assert right["concepts"] >= right["none"] + 2 and right["concepts"] > right["instances"]


def test_nothing_unverified_is_written() -> None:
    lessons, _ = make_world(103, 9, 0, routines=3)
    tools = Tools(records=DictRecords())
    tasks = [puzzle.to_json() for puzzle in lessons]
    ArcMemo(budget=1500).act(Job(inputs={"tasks": tasks}, max_steps=1000), tools)
    solved = {r.value["id"]: r.value for r in tools.records.all("task/").values()}
    for record in tools.records.all("concept/").values():
        assert all(solved[id]["solved"] for id in record.value["used_in"])
    for puzzle in lessons:
        value = solved[puzzle.id]
        if value["solved"]:
            tree = from_json(value["program"])
            assert all((run(tree, a) == b).all() for a, b in puzzle.train)


def test_a_model_may_select_and_cannot_invent() -> None:
    lessons, exams = make_world(103, 9, 1, routines=3)
    tools = Tools(records=DictRecords())
    method = ArcMemo(budget=3000)
    method.act(Job(inputs={"tasks": [p.to_json() for p in lessons]}, max_steps=999), tools)
    name = next(iter(tools.records.all("concept/"))).removeprefix("concept/")
    ladder = Ladder("endpoint", ScriptedLlm([f'{{"names": ["{name}", "c0000dead"]}}']))
    chosen = Tools(records=tools.records, ladder=ladder)
    method.act(Job(inputs={"tasks": [exams[0].to_json()], "learn": False}), chosen)
    assert tools.records.get(f"task/{exams[0].id}").value["selected"] == [name]  # type: ignore[union-attr]
    assert ladder.steps[0].refused[0].text == "c0000dead"


GOOD = {"input": [[1, 0]], "output": [[0, 1]]}


@pytest.mark.parametrize(
    "tasks",
    [
        None,
        [],
        [{}],
        [{"train": []}],
        [{"train": [{"input": [[1]]}]}],
        [{"train": [{"input": [[1, 2], [3]], "output": [[1]]}]}],
        [{"train": [{"input": [[10]], "output": [[1]]}]}],
        [{"train": [{"input": [[1.0]], "output": [[1]]}]}],
        [{"train": [{"input": [[True]], "output": [[1]]}]}],
        [{"train": [{"input": [[0] * 31], "output": [[1]]}]}],
        [{"train": [GOOD], "test": [{"input": "x"}]}],
        [{"id": "a b", "train": [GOOD]}],
        [{"id": "a", "train": [GOOD]}, {"id": "a", "train": [GOOD]}],
    ],
)
def test_what_is_no_puzzle_is_refused(tasks: Any) -> None:
    tools = Tools(records=DictRecords())
    with pytest.raises(ParameterError):
        ArcMemo().act(Job(inputs={"tasks": tasks}), tools)
    assert not tools.records.all()


def test_another_puzzle_of_the_same_id_is_refused() -> None:
    tools = Tools(records=DictRecords())
    other = {"input": [[2, 0]], "output": [[0, 2]]}
    ArcMemo().act(Job(inputs={"tasks": [{"id": "a", "train": [GOOD]}]}), tools)
    again = ArcMemo().act(Job(inputs={"tasks": [{"id": "a", "train": [GOOD]}]}), tools)
    assert not again.steps and again.output["tasks"]["a"]["solved"]
    with pytest.raises(ParameterError, match="an id of its own"):
        ArcMemo().act(Job(inputs={"tasks": [{"id": "a", "train": [other]}]}), tools)
