"""Suites of methods that act: they run, they compare with a rival, and they know their method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loci.bench import suite
from loci.bench.suite import Context
from loci.errors import FormatError, ParameterError
from loci.run.agents import acting


def quick(name: str, folder: Path, **options: str) -> dict[str, object]:
    context = Context(folder=folder, quick=True, options=options)
    return suite.run(name, context)


def test_each_method_that_acts_has_a_suite_of_its_own() -> None:
    for name in acting():
        [only], method = suite.chosen(name)
        assert method == name and name in suite.find(only).METHODS  # type: ignore[attr-defined]
    for other in ("mem0", "a_mem"):
        names, _ = suite.chosen(other)
        assert "operations" in names
        assert not any(hasattr(suite.find(one), "METHODS") for one in names)


def test_codebase(tmp_path: Path) -> None:
    result = quick("codebase", tmp_path, scripts="3", judged="2")
    for found in result["control"].values():  # type: ignore[attr-defined]
        assert found["same_files"]["value"] == 1.0 and found["fullest_prompt"] <= 1.0
    packages = result["packages"]["modules_right"]  # type: ignore[index]
    assert packages["this"]["value"] == 1.0 > packages["rival"]["value"]
    assert result["repair"]["checked"]["value"] == 1.0  # type: ignore[index]
    [row] = suite.find("codebase").card_rows(result)
    assert row.method == "l2mac" and row.metrics["modules_right"]["this"] == 1.0


@pytest.mark.model
def test_planning(models_folder: Path) -> None:
    result = quick("planning", models_folder, scripts="10")
    words = result["words"]
    assert words["canonical"]["state"]["value"] == 1.0  # type: ignore[index]
    assert words["canonical"]["table_state"]["value"] < 1.0  # type: ignore[index]
    assert result["tokens"]["20"]["ratio"] < 0.5  # type: ignore[index]
    [row] = suite.find("planning").card_rows(result)
    assert row.metrics["state_right_canonical"]["this"] == 1.0


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    for name in acting():
        [only], _ = suite.chosen(name)
        with pytest.raises(ParameterError, match="no such option"):
            quick(only, tmp_path, nonsense="1")


def test_concepts(tmp_path: Path) -> None:
    tasks = tmp_path / "small_arc.jsonl"
    flip = {"train": [{"input": [[1, 0]], "output": [[0, 1]]}], "test": [flipped([[2, 0]])]}
    tasks.write_text("\n".join(json.dumps({"id": f"t{n}", **flip}) for n in range(3)))
    options = {"arc_budget": "200", "part": "puzzles"}
    context = Context(folder=tmp_path, quick=True, data=tasks, options=options)
    result = suite.run("concepts", context)
    assert result["arc"]["none"]["solved"] == result["arc"]["concepts"]["solved"] == 3
    assert result["solved"]["continual"]["value"] >= result["solved"]["none"]["value"] + 0.25
    [row] = suite.find("concepts").card_rows(result)
    assert row.metrics["arc_tasks_solved"]["this"] == 3
    tasks.write_text('{"id": 1}')
    with pytest.raises(FormatError, match="line 1"):
        suite.run("concepts", context)


def test_concepts_in_words(tmp_path: Path) -> None:
    result = quick("concepts", tmp_path, part="lessons")
    assert "solved" not in result, "the puzzles were left out"
    found = result["lessons"]
    success = {name: told["value"] for name, told in found["success"].items()}  # type: ignore[index]
    assert success["lessons"] >= success["none"] + 0.25
    assert success["verbatim"] == 0, "names of exams stand in no trace"
    assert found["lessons_of_unverified_traces"] == 0  # type: ignore[index]
    [row] = suite.find("concepts").card_rows(result)
    assert row.part == "lessons" and row.metrics["success"]["this"] == success["lessons"]
    with pytest.raises(ParameterError, match="no such part"):
        quick("concepts", tmp_path, part="words")


def flipped(grid: list[list[int]]) -> dict[str, list[list[int]]]:
    return {"input": grid, "output": [row[::-1] for row in grid]}


def test_phone(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.csv"
    tasks.write_text("task_app,task_description\nmail,Open the drafts\nmaps,Find a bakery nearby\n")
    context = Context(
        folder=tmp_path, quick=True, data=tasks, options={"phones": "3", "errands": "4"}
    )
    result = suite.run("phone", context)
    ways = result["ways"]
    assert ways["maple"]["success"]["value"] >= ways["reactive"]["success"]["value"]
    assert ways["maple"]["actions"]["value"] < ways["reactive"]["actions"]["value"]
    assert ways["maple"]["damage"]["value"] == 0 and result["matching"]["f1"] > 0.9
    assert result["texts"]["tasks"] == 2
    [row] = suite.find("phone").card_rows(result)
    assert row.metrics["success"]["this"] == ways["maple"]["success"]["value"]
    tasks.write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="no phone tasks"):
        suite.run("phone", context)
