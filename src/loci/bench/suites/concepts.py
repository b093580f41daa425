"""Concept memory: does what solved puzzles share help with the next ones, at an equal budget?

Worlds of grid puzzles (`testing.puzzles`) teach routines and examine compositions no lesson had.
The same search works with no memory, with whole programs (the most alike are tried first), and with
concepts, which are learnt from lessons alone or go on growing. `selection`
fills the memory with the lessons of other worlds too, and tries few concepts or all. With --data, a
file of ARC tasks is worked through in its order, with and without memory; there is no target there.

The part `lessons` asks the same of tasks in words: see `bench.lessons`. `part` picks one of both.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast  # grids and figures are JSON values

from loci.bench import lessons as in_words
from loci.bench.cards import Row
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context
from loci.core.agent import Job
from loci.errors import FormatError, ParameterError
from loci.methods import catalogue
from loci.methods.recall.arcmemo import ArcMemo
from loci.methods.recall.base import Tools
from loci.testing.agents import DictRecords
from loci.testing.puzzles import ALONE, ROUTINES, Puzzle, make_world

ABOUT = "do concepts of solved puzzles help with new ones at an equal budget? ARC with --data"
KINDS = ("recall",)
METHODS = ("arcmemo",)
DEFAULT = ("arcmemo",)
FIRST_SEED = 0  # worlds from 100 on were looked at while the search was tuned
WORLDS, QUICK_WORLDS = 5, 1
LESSONS, EXAMS = 30, 20
QUICK_LESSONS, QUICK_EXAMS = 9, 4
BUDGET, ARC_BUDGET = 4000, 1000  # nodes
ARC_TASKS = 200
OTHERS = 3  # worlds whose lessons fill the memory too
PARTS = ("puzzles", "lessons")
_OPTIONS = ("worlds", "lessons", "exams", "budget", "tasks", "arc_budget", "part", "meaning")


def run(context: Context) -> dict[str, Any]:
    """Return what is solved and what it takes, by each kind of memory on the same tasks."""
    for name in context.options:
        if name not in _OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(_OPTIONS))
    part = context.options.get("part", "")
    if part not in ("", *PARTS):
        raise ParameterError("no such part of this suite", value=part, allowed=", ".join(PARTS))
    (chosen,) = catalogue.parse_chain((context.methods or DEFAULT)[0], "recall")
    method = cast(ArcMemo, chosen)
    found: dict[str, Any] = {"method": str(method)}
    if part in ("", "lessons"):
        worlds = int(context.options.get("worlds", QUICK_WORLDS if context.quick else WORLDS))
        seeds = [in_words.FIRST_SEED + context.seed + n for n in range(worlds)]
        embedder = None
        if context.options.get("meaning") == "1":
            from loci.models.embed import MiniLM

            embedder = MiniLM(context.folder / "minilm")
        found["lessons"] = in_words.measure(
            method, seeds, quick=context.quick, embedder=embedder, progress=context.progress
        )
    return found if part == "lessons" else puzzles(method, found, context)


def puzzles(method: ArcMemo, found: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Return a result with what is solved of grid puzzles."""
    method = replace(method, budget=int(context.options.get("budget", BUDGET)))
    found = {**found, "method": str(method)}
    worlds = int(context.options.get("worlds", QUICK_WORLDS if context.quick else WORLDS))
    count = int(context.options.get("exams", QUICK_EXAMS if context.quick else EXAMS))
    seeds = [FIRST_SEED + context.seed + n for n in range(worlds)]
    tasks = None if context.data is None else read_arc(context.data)
    right: dict[str, list[float]] = defaultdict(list)
    nodes: dict[str, list[float]] = defaultdict(list)
    depths: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for done, seed in enumerate(seeds):
        lessons, exams = make_world(seed, _lessons(context), count, _routines(context))
        for name, (memory, learn) in _ways(method).items():
            context.progress(f"{name} memory", done, worlds)
            tools = Tools(records=DictRecords())
            _work(memory, lessons, tools, learn=True)
            for puzzle, told in zip(exams, _work(memory, exams, tools, learn=learn), strict=True):
                good = float(told["predictions"] == [puzzle.test[1].tolist()])
                right[name].append(good)
                nodes[name].append(float(told["nodes"]))
                depths[name][str(puzzle.depth)].append(good)
    result: dict[str, Any] = {
        **found,
        "seeds": seeds,
        "budget": method.budget,
        "exams": len(right["none"]),
        "solved": {name: mean(values).to_json() for name, values in right.items()},
        "nodes": {name: mean(values).to_json() for name, values in nodes.items()},
        "by_depth": {
            name: {depth: mean(v).value for depth, v in sorted(found.items())}
            for name, found in depths.items()
        },
        "over_none": paired_difference(right["continual"], right["none"]).to_json(),
        "over_instances": paired_difference(right["continual"], right["instances"]).to_json(),
        "selection": selection(method, seeds[0], count, context),
    }
    if tasks is not None:
        result["arc"] = arc(method, tasks, context)
    return result


def selection(method: ArcMemo, seed: int, count: int, context: Context) -> dict[str, Any]:
    """Return what it takes to try few of many concepts, and all of them."""
    lessons, exams = make_world(seed, _lessons(context), count, _routines(context))
    found: dict[str, Any] = {}
    for name, memory in (("selected", method), ("all", replace(method, top=0))):
        context.progress("selection", len(found), 2)
        tools = Tools(records=DictRecords())
        for other in range(OTHERS if not context.quick else 1):
            alone = ALONE * _routines(context)
            others, _ = make_world(seed + 50 + other, alone, 0, _routines(context))
            _work(method, others, tools, learn=True)
        _work(method, lessons, tools, learn=True)
        concepts = len(tools.records.all("concept/"))
        began = time.process_time()
        results = _work(memory, exams, tools, learn=False)
        seconds = time.process_time() - began
        right = [
            float(r["predictions"] == [p.test[1].tolist()])
            for p, r in zip(exams, results, strict=True)
        ]
        found[name] = {
            "solved": mean(right).value,
            "nodes": mean([float(r["nodes"]) for r in results]).value,
            "cpu_s": seconds,
            "concepts": concepts,
        }
    found["time_ratio"] = found["selected"]["cpu_s"] / max(found["all"]["cpu_s"], 1e-9)
    found["nodes_ratio"] = found["selected"]["nodes"] / max(found["all"]["nodes"], 1.0)
    return found


def arc(method: ArcMemo, given: list[dict[str, Any]], context: Context) -> dict[str, Any]:
    """Return how many ARC tasks of a file are solved, in its order, without and with memory."""
    most = int(context.options.get("tasks", 10 if context.quick else ARC_TASKS))
    budget = int(context.options.get("arc_budget", ARC_BUDGET))
    tasks = given[:most]
    found: dict[str, Any] = {"tasks": len(tasks), "budget": budget}
    for name in ("none", "concepts"):
        memory = replace(method, memory=name, budget=budget)
        tools = Tools(records=DictRecords())
        solved = []
        for number, task in enumerate(tasks):
            context.progress(f"ARC, {name}", number, len(tasks))
            plain = {**task, "test": [{"input": one["input"]} for one in task["test"]]}
            job = Job(inputs={"tasks": [plain]}, max_steps=10**6)
            result = memory.act(job, tools).output["tasks"][task["id"]]
            wanted = [one["output"] for one in task["test"]]
            solved.append(float(result["predictions"] == wanted))
        found[name] = {"solved": int(sum(solved)), "share": mean(solved).to_json()}
        found[name]["known"] = len(tools.records.all("concept/"))
    return found


def read_arc(path: Path) -> list[dict[str, Any]]:
    """Return the tasks of a file of JSON lines, gzipped or not, or of the one in a folder.

    Raises:
        FormatError: if a line is no task.
    """
    if path.is_dir():
        files = sorted([*path.rglob("*arc*.jsonl"), *path.rglob("*arc*.jsonl.gz")])
        if len(files) != 1:
            raise FormatError(
                f"{path} must hold one file of ARC tasks", value=[f.name for f in files]
            )
        path = files[0]
    opener: Any = gzip.open if path.suffix == ".gz" else open
    tasks = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                task = json.loads(line)
                tasks.append({"id": task["id"], "train": task["train"], "test": task["test"]})
            except (ValueError, KeyError, TypeError) as error:
                raise FormatError(f"line {number} of {path} is no ARC task: {error}") from None
    return tasks


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return puzzles solved and nodes taken, and tickets solved, by each kind of memory."""
    rows: list[Row] = []
    if "lessons" in result:
        told = result["lessons"]
        success = told["success"][in_words.OWN]
        rows.append(
            Row(
                method=told["method"],
                kind="recall",
                part="lessons",
                metrics=in_words.metrics(told),
                interval={"success": (success["low"], success["high"])},
                seeds=tuple(told["seeds"]),
            )
        )
    return [*rows, _of_puzzles(result)] if "solved" in result else rows


def _of_puzzles(result: Mapping[str, Any]) -> Row:
    solved, nodes = result["solved"], result["nodes"]
    rivals = ("none", "instances", "fixed")
    chosen = result["selection"]
    metrics: dict[str, dict[str, Any]] = {
        "solved": {
            "this": solved["continual"]["value"],
            "rivals": {name: solved[name]["value"] for name in rivals},
        },
        "nodes": {
            "this": nodes["continual"]["value"],
            "rivals": {name: nodes[name]["value"] for name in rivals},
        },
        "nodes_when_selecting": {
            "this": chosen["selected"]["nodes"],
            "rivals": {"all concepts": chosen["all"]["nodes"]},
        },
        "solved_when_selecting": {
            "this": chosen["selected"]["solved"],
            "rivals": {"all concepts": chosen["all"]["solved"]},
        },
    }
    if "arc" in result:
        arc = result["arc"]
        metrics["arc_tasks_solved"] = {
            "this": arc["concepts"]["solved"],
            "rivals": {"none": arc["none"]["solved"]},
        }
    interval = (solved["continual"]["low"], solved["continual"]["high"])
    return Row(
        method=result["method"],
        kind="recall",
        metrics=metrics,
        interval={"solved": interval},
        seeds=tuple(result["seeds"]),
        ratio={"time_when_selecting": chosen["time_ratio"]},
    )


# -- private ----------------------------------------------------------------------------------


def _lessons(context: Context) -> int:
    return int(context.options.get("lessons", QUICK_LESSONS if context.quick else LESSONS))


def _routines(context: Context) -> int:
    return 3 if context.quick else ROUTINES


def _ways(method: ArcMemo) -> dict[str, tuple[ArcMemo, bool]]:
    """Return {name: (method, whether it learns from exams)}."""
    return {
        "none": (replace(method, memory="none"), False),
        "instances": (replace(method, memory="instances"), True),
        "fixed": (method, False),
        "continual": (method, True),
    }


def _work(
    method: ArcMemo, puzzles: Sequence[Puzzle], tools: Tools, *, learn: bool
) -> list[Mapping[str, Any]]:
    if not puzzles:
        return []
    tasks = [puzzle.to_json() for puzzle in puzzles]
    job = Job(inputs={"tasks": tasks, "learn": learn}, max_steps=10**6)
    results = method.act(job, tools).output["tasks"]
    return [results[puzzle.id] for puzzle in puzzles]
