"""Code bases: does a control unit write more than fits a context, and does checking mend it?

The model is `testing.programmer`, which knows only what a prompt shows and makes up names of its
functions, so what it wrote earlier must be read again or remembered. `control` compares small
contexts with one that holds everything, file by file; the rival is one conversation, whose oldest
messages go when it is full. `repair` compares checks with none for a programmer that errs. Modules
are judged by tests that were given, in a sandbox. No data and no language model needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast  # figures are JSON values

from loci.bench.cards import Row
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context
from loci.core.agent import Job, Outcome
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.recall._l2mac_files import CALL, Files
from loci.methods.recall._l2mac_unit import _parsed as parsed
from loci.methods.recall.base import Tools
from loci.methods.recall.l2mac import L2mac
from loci.run.sandbox import Sandbox
from loci.testing.agents import DictRecords
from loci.testing.programmer import Programmer, make_job

ABOUT = "write code bases larger than the context; a scripted programmer, tests in a sandbox"
KINDS = ("recall",)
METHODS = ("l2mac",)
DEFAULT = ("l2mac",)
LIMITS = ((768, 160), (1024, 256), (2048, 400), (4096, 700))  # tokens: context, reserve
RIVAL_AT = 2048
SCRIPTS, QUICK_SCRIPTS = 200, 6
JUDGED, QUICK_JUDGED = 60, 3
BUGS = 0.5
_OPTIONS = ("scripts", "judged")


def run(context: Context) -> dict[str, Any]:
    """Return figures of the method and of one conversation on the same jobs."""
    for name in context.options:
        if name not in _OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(_OPTIONS))
    (found,) = catalogue.parse_chain((context.methods or DEFAULT)[0], "recall")
    method = cast(L2mac, found)
    count = int(context.options.get("scripts", QUICK_SCRIPTS if context.quick else SCRIPTS))
    judged = int(context.options.get("judged", QUICK_JUDGED if context.quick else JUDGED))
    seeds = range(context.seed, context.seed + count)
    return {
        "method": str(method),
        "seeds": [seeds[0], seeds[-1]],
        "scripts": count,
        "judged": judged,
        "control": {
            str(limit): control(replace(method, context=limit, reserve=reserve), seeds, context)
            for limit, reserve in LIMITS
        },
        "packages": packages(method, seeds[:judged], context),
        "repair": repair(method, seeds[:judged], context),
    }


def control(method: L2mac, seeds: Sequence[int], context: Context) -> dict[str, Any]:
    """Return how often files equal those of a context that holds everything, and what it took."""
    same, over, restarts, calls = [], [], [], []
    for done, seed in enumerate(seeds):
        context.progress(f"contexts of {method.context}", done, len(seeds))
        job = make_job(seed)
        whole = _work(replace(method, context=10**6, reserve=10**5, retries=100), job, seed)
        small = _work(replace(method, retries=100), job, seed)
        same.append(float(small.output["files"] == whole.output["files"]))
        over.append(small.output["largest_prompt"] / (method.context - method.reserve))
        restarts.append(float(small.output["restarts"]))
        calls.append(small.output["calls"] / whole.output["calls"])
    return {
        "same_files": mean(same).to_json(),
        "fullest_prompt": max(over),
        "restarts": mean(restarts).to_json(),
        "most_restarts": max(restarts),
        "calls_over_whole": mean(calls).to_json(),
    }


def packages(method: L2mac, seeds: Sequence[int], context: Context) -> dict[str, Any]:
    """Return which modules pass their tests, by the method and in one conversation."""
    limit, reserve = next(pair for pair in LIMITS if pair[0] == RIVAL_AT)
    ours: list[float] = []
    theirs: list[float] = []
    whole: dict[str, list[float]] = {"this": [], "rival": []}
    for done, seed in enumerate(seeds):
        context.progress("packages", done, len(seeds))
        job = make_job(seed, modules=10)
        mine = _work(replace(method, context=limit, reserve=reserve, retries=100), job, seed)
        talk = conversation(job, Programmer(seed), limit, reserve)
        for files, passed, name in (
            (mine.output["files"], ours, "this"),
            (talk, theirs, "rival"),
        ):
            good = _passing(files, job)
            passed += good
            whole[name].append(float(all(good)))
    return {
        "context": limit,
        "modules_right": {"this": mean(ours).to_json(), "rival": mean(theirs).to_json()},
        "packages_right": {name: mean(values).to_json() for name, values in whole.items()},
        "difference": paired_difference(ours, theirs).to_json(),
    }


def repair(method: L2mac, seeds: Sequence[int], context: Context) -> dict[str, Any]:
    """Return packages that pass all tests, written by one who errs, checked and not checked."""
    right: dict[str, list[float]] = {"checked": [], "not checked": []}
    for done, seed in enumerate(seeds):
        context.progress("repairs", done, len(seeds))
        job = make_job(seed, modules=5)
        blind = replace(job, inputs={**job.inputs, "checks": "none"})
        for name, one in (("checked", job), ("not checked", blind)):
            work = _work(method, one, seed, bugs=BUGS, sandbox=Sandbox())
            right[name].append(float(all(_passing(work.output["files"], job))))
    return {name: mean(values).to_json() for name, values in right.items()}


def conversation(job: Job, llm: Programmer, limit: int, reserve: int) -> dict[str, str]:
    """Return the files that one conversation writes, whose oldest messages go when it is full.

    It may write and end steps; there is no reading back: what it wrote stands in the conversation,
    as long as it does.
    """
    steps = job.inputs["steps"]
    files = Files(texts=dict(job.inputs["tests"]), guarded=frozenset(job.inputs["tests"]))
    talk: list[dict[str, str]] = []
    for number, step in enumerate(steps, 1):
        talk.append({"role": "user", "content": f"Step {number} of {len(steps)}: {step}"})
        for _ in range(30):
            head = [{"role": "user", "content": f"Goal: {job.goal}"}]
            while sum(llm.count_tokens(m["content"]) for m in talk) > limit - reserve - 50:
                del talk[0]
            call = parsed(llm.generate([*head, *talk], max_tokens=reserve), CALL)
            if isinstance(call, str) or call["tool"] == "step_done":
                break
            if call["tool"] == "view_files":
                result = "there is no reading back in one conversation"
            else:
                result = files.write(call)
            talk.append({"role": "assistant", "content": json.dumps(call)})
            talk.append({"role": "user", "content": result})
            talk.append({"role": "user", "content": f"Step {number} of {len(steps)}: {step}"})
    return files.texts


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return files that are the same, prompts within bounds, modules and packages that pass."""
    metrics: dict[str, dict[str, Any]] = {}
    for limit, found in result["control"].items():
        metrics[f"same_files_at_{limit}"] = {"this": found["same_files"]["value"]}
        metrics[f"fullest_prompt_at_{limit}"] = {"this": found["fullest_prompt"]}
    made, mended = result["packages"], result["repair"]
    for what in ("modules_right", "packages_right"):
        metrics[what] = {
            "this": made[what]["this"]["value"],
            "rivals": {"one conversation": made[what]["rival"]["value"]},
        }
    metrics["packages_right_of_one_who_errs"] = {
        "this": mended["checked"]["value"],
        "rivals": {"not checked": mended["not checked"]["value"]},
    }
    intervals = {
        "modules_right": made["modules_right"]["this"],
        "packages_right": made["packages_right"]["this"],
        "packages_right_of_one_who_errs": mended["checked"],
    }
    return [
        Row(
            method=result["method"],
            kind="recall",
            metrics=metrics,
            interval={name: (found["low"], found["high"]) for name, found in intervals.items()},
            seeds=tuple(result["seeds"]),
        )
    ]


# -- private ----------------------------------------------------------------------------------


def _work(
    method: L2mac, job: Job, seed: int, *, bugs: float = 0.0, sandbox: Sandbox | None = None
) -> Outcome:
    tools = Tools(records=DictRecords(), llm=Programmer(seed, bugs=bugs), sandbox=sandbox)
    return method.act(job, tools)


def _passing(files: Mapping[str, str], job: Job) -> list[float]:
    """Return for each module whether the test that was given for it passes, in one run."""
    count = len(job.inputs["steps"])
    judge = (
        "import runpy\n"
        f"for n in range({count}):\n"
        "    try:\n"
        "        runpy.run_path(f'check_m{n}.py')\n"
        "        print('right')\n"
        "    except BaseException:\n"
        "        print('wrong')\n"
    )
    ran = Sandbox().run({**files, **job.inputs["tests"], "judge.py": judge}, ["judge.py"], 60)
    told = ran.output.split()
    return [float(word == "right") for word in told] if len(told) == count else [0.0] * count
