"""TME: a tree of tasks outside the prompt, changed by what is said, read along one path.

Y. Ye, "Task Memory Engine: A Structured Memory Framework with Graph-Aware Extensions for Multi-Step
LLM Agent Tasks", 2025, arXiv:2504.08525; follow-up arXiv:2505.19436.

Each task is a node: name, value, status, parent, what it depends on, and every value it had. An
instruction is read as operations on nodes; whatever depends on a changed node becomes stale, and
nothing is deleted. The prompt for a node holds the active path alone:

    prompt(n) = ancestors of n, root first + needs(n), each after its own needs + n + what was said

so it grows with the depth of the tree and not with the length of the conversation.

Differs from the paper: rules read instructions unless a model is asked for; a node keeps its
identity when its value changes; going back follows the versions of a value; mutual dependency is
refused with the cycle. The source of the first version is unpublished in part.
Not for: instructions that name no task and no value, such as "surprise me".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, ClassVar  # inputs and operations are JSON values

from loci.core.agent import Job, Outcome, Record, Step
from loci.core.method import About, Frees, Kind, Param
from loci.errors import ParameterError
from loci.methods.recall._tme_ask import asked_of_a_model
from loci.methods.recall._tme_read import Clarify, Op, is_about_the_past, read
from loci.methods.recall._tme_tree import OPS, Tree, line
from loci.methods.recall.base import Act, Tools, inputs_of

_META = "tree"


@dataclass(frozen=True, kw_only=True)
class Tme(Act):
    """Reads instructions into a task tree and makes prompts of its active path."""

    about = About(
        name="tme",
        kind=Kind.RECALL,
        paper="arXiv:2504.08525",
        idea="a tree of tasks outside the prompt; only the active path is shown",
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="rules that read instructions; versions, staleness and going back",
    )
    takes: ClassVar[Mapping[str, str]] = {
        "plan": 'tasks to begin with: [{"slot": "hotel", "parent"?, "after"?: [names], "type"?: '
        '"text", "number" or a list of choices, "aliases"?: [names]}]',
        "ops": f'operations instead of words: [{{"op": {" | ".join(OPS)}, "slot": ..., ...}}]',
        "turn": "number of the first instruction, so that one told twice is done once",
        "about": "the task to make the prompt for; else the one spoken of last",
        "tokens": "most tokens of that prompt",
    }
    example: ClassVar[Job] = Job(
        goal="destination: Boston\nhotel: the Ritz\nThe hotel depends on the destination.\n"
        "Actually, make the destination Seattle.\nGo back to Boston for the destination.\n"
        "What is the destination?",
        inputs={"plan": [{"slot": "destination"}, {"slot": "hotel"}], "turn": 1},
    )

    tokens: Annotated[int, Param(help="most tokens of a prompt", unit="tokens", ge=32)] = 1024

    def act(self, job: Job, tools: Tools) -> Outcome:
        """Carry out the instructions of a goal, one a line, each a step of the history.

        The output has "state", "did", "answers", the "prompt" of the active path with what was
        "left_out" of it, and "asks" where an instruction was not clear; that one and those after
        it are not carried out then.
        """
        units = _units(self, job)
        records = tools.records
        meta = dict((records.get(_META) or Record(key=_META, text="", value={})).value)
        tree = Tree.of({k: r.value for k, r in records.all("node/").items()}, meta.get("turn", 0))
        name = blake2b(json.dumps([job.goal, job.inputs]).encode(), digest_size=8).hexdigest()
        first = _first(job, meta, name, len(units))
        begun = {"name": name, "first": first, "count": len(units)}
        steps: list[Step] = []
        asks = why = None
        for number, unit in enumerate(units, first):
            if number <= tree.turn:
                continue  # done before
            if len(steps) == job.max_steps:
                why = f"{job.max_steps} steps were allowed"
                break
            tree.turn, tree.changed = number, {}
            fresh = Tree.of(tree.nodes, number)
            try:
                did, answers, meta["focus"] = _carry_out(unit, fresh, meta.get("focus"), tools)
            except _Unclear as unclear:
                asks, tree.turn = str(unclear), number - 1
                break
            tree = fresh
            text = did if unit[0] == "plan" else f"{did} ({unit[1]})"
            meta = {**meta, "turn": number, "job": begun}
            _keep(tools, tree, meta, {"said": unit[1], "did": did, "answers": answers}, text)
            steps.append(Step(did=did, why=f"{unit[0]}: {unit[1]}"))
        output = self._output(job, tools, tree, meta, begun)
        if asks is not None:
            return Outcome(
                status="asks", why=asks, output={**output, "asks": asks}, steps=tuple(steps)
            )
        if why is not None:
            return Outcome(status="stopped", why=why, output=output, steps=tuple(steps))
        count = len(units)
        why = f"{count} instruction{'' if count == 1 else 's'} carried out"
        return Outcome(status="done", why=why, output=output, steps=tuple(steps))

    def prompt(
        self, tree: Tree, key: str, said: str = "", count: Any = None, tokens: int | None = None
    ) -> tuple[str, list[str]]:
        """Return the prompt for a node and what was left out of it for want of tokens.

        Args:
            count: counts tokens of a text; words and a third if not given.
        """
        limit = self.tokens if tokens is None else tokens
        counted = count or _about
        above = [one for one in tree.path(key) if one != key]
        needs = [one for one in tree.needs(key) if one not in above]
        own = [line(tree, key)]
        if is_about_the_past(said) and (earlier := tree.before(key)) is not None:
            own.append(f"{tree.full_name(key)} before: {earlier}")
        left: list[str] = []
        while True:
            lines = [line(tree, one) for one in (*above, *needs)]
            text = "\n".join(["Plan:", *lines, *own, *([f"Said: {said}"] if said else [])])
            if counted(text) <= limit or not (needs or above):
                return text, left
            gone = needs.pop(0) if needs else above.pop(0)
            left.append(tree.full_name(gone))

    def _output(
        self,
        job: Job,
        tools: Tools,
        tree: Tree,
        meta: Mapping[str, Any],
        begun: Mapping[str, Any],
    ) -> dict[str, Any]:
        turns = [tools.records.get(f"turn/{n}") for n in range(begun["first"], tree.turn + 1)]
        kept = [turn.value for turn in turns if turn is not None]
        output: dict[str, Any] = {
            "turn": tree.turn,
            "did": [turn["did"] for turn in kept],
            "answers": [answer for turn in kept for answer in turn["answers"]],
            "state": tree.state(),
        }
        about = job.inputs.get("about")
        key = tree.key(about) if about is not None else meta.get("focus")
        if key in tree.nodes:
            count = tools.llm.count_tokens if tools.llm is not None else None
            said = str(kept[-1]["said"]) if kept else ""
            text, left = self.prompt(tree, key, said, count, job.inputs.get("tokens"))
            output |= {"prompt": text, "left_out": left}
        return output


# -- private ----------------------------------------------------------------------------------

Unit = tuple[str, Any]


class _Unclear(Exception):
    """What has to be asked before an instruction can be carried out."""


def _units(method: Tme, job: Job) -> list[Unit]:
    """Return what a job asks for, one entry a turn: the plan, operations, lines of the goal."""
    given = inputs_of(method, job)
    plan, ops, turn = given.get("plan", []), given.get("ops", []), given.get("turn", 1)
    for name, value in (("plan", plan), ("ops", ops)):
        if not isinstance(value, list) or not all(
            isinstance(one, dict) and isinstance(one.get("slot"), str) for one in value
        ):
            raise ParameterError(
                f"tme.{name} is a list of objects with a slot", value=str(value)[:80]
            )
    for name, least in (("turn", 1), ("tokens", 32)):
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(f"tme.{name} is a whole number of at least {least}", value=value)
        if name == "turn" and value > 10**8:
            raise ParameterError("tme.turn is at most 100,000,000", value=turn)
    if not isinstance(given.get("about", ""), str):
        raise ParameterError("tme.about is the name of a task", value=given["about"])
    rehearsal = Tree()
    if plan:
        for entry in plan:
            rehearsal.apply({"op": "create", **entry})
    lines = [text.strip() for text in job.goal.splitlines() if text.strip()]
    units: list[Unit] = [("plan", plan)] if plan else []
    units += [("op", op) for op in ops]
    units += [("say", text) for text in lines]
    if not units and given.get("about") is None:
        raise ParameterError("there is nothing to do: no goal, plan or ops", value=job.goal)
    return units


def _first(job: Job, meta: Mapping[str, Any], name: str, count: int) -> int:
    """Return the number of a job's first turn: that of an unfinished one if it is the same."""
    if "turn" in job.inputs:
        return int(job.inputs["turn"])
    begun, turn = meta.get("job"), meta.get("turn", 0)
    if begun and begun["name"] == name and turn < begun["first"] + begun["count"] - 1:
        return int(begun["first"])
    return int(turn) + 1


def _carry_out(
    unit: Unit, tree: Tree, focus: str | None, tools: Tools
) -> tuple[str, list[str], str | None]:
    """Apply one unit; return what it did, answers to what it asked, and the task spoken of."""
    kind, what = unit
    try:
        if kind == "plan":
            known = [entry for entry in what if not tree.keys(entry["slot"])]
            for entry in known:
                tree.apply({"op": "create", **entry})
            return f"planned {', '.join(entry['slot'] for entry in what)}", [], focus
        ops: Sequence[Op] = [what] if kind == "op" else _read(what, tree, focus, tools)
        did = [tree.apply(op) for op in ops]
    except ParameterError as problem:
        if kind == "op":
            raise
        raise _Unclear(str(problem)) from None
    answers = [tree.answer(op) for op in ops if op["op"] == "check"]
    spoken = [key for op in ops for key in tree.keys(str(op["slot"]))[:1]]
    return "; ".join(did) or "nothing to do", answers, spoken[0] if spoken else focus


def _read(text: str, tree: Tree, focus: str | None, tools: Tools) -> Sequence[Op]:
    found, _ = tools.ladder.run(asked_of_a_model(text, tree, lambda: read(text, tree, focus)))
    if isinstance(found, Clarify):
        raise _Unclear(found.question)
    return found


def _keep(
    tools: Tools, tree: Tree, meta: Mapping[str, Any], turn: Mapping[str, Any], why: str
) -> None:
    nodes = [
        Record(key=key, text=line(tree, key), value=tree.nodes[key], links=_links(tree.nodes[key]))
        for key in tree.changed
    ]
    said = turn["said"] if isinstance(turn["said"], str) else json.dumps(turn["said"])
    told = Record(key=f"turn/{tree.turn}", text=f"{said}: {turn['did']}", value=turn)
    top = Record(key=_META, text=f"{len(tree.nodes)} tasks after turn {tree.turn}", value=meta)
    tools.records.put([*nodes, told, top], why)


def _links(node: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    parent = node["parent"]
    above = [] if parent is None else [("part_of", str(parent))]
    return (*above, *(("depends_on", str(other)) for other in node["deps"]))


def _about(text: str) -> int:
    return -(-len(text.split()) * 4 // 3)
