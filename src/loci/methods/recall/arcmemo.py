"""ArcMemo: what solved puzzles share is kept as concepts, and new puzzles are tried with them.

M. Ho et al., "ArcMemo: Abstract Reasoning Composition with Lifelong LLM Memory", 2025,
arXiv:2509.04439.

A solution that was verified is taken apart; parts that several solutions share become routines with
holes (anti-unification), if they save more than they cost to write down. A new puzzle is looked at
for cues, the concepts whose cues fit and that helped before are selected, and the search tries them
before plain functions:

    relevance(c) = cosine(cues of c by rarity, features of the puzzle) * (1/2 + utility(c))
    utility(c)   = (wins + 1) / (tries + 2)

For tasks in words the concepts are lessons, a situation and a suggestion: see `_arc_lessons`.

Differs from the paper: a search over a small language of grid programs stands in for the model that
solves; abstraction is algorithmic, so nothing unverified is ever written; a model may be asked to
select, and to word lessons, where the paper's model writes them.
Not for: puzzles whose solution is no short chain of the language's functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar  # grids and JSON values

from loci.core.agent import Job, Outcome, Record, Step
from loci.core.method import About, Frees, Kind, Param
from loci.errors import ParameterError
from loci.methods.recall._arc_advice import act_on_words
from loci.methods.recall._arc_concepts import (
    Concept,
    features,
    learnt,
    rarity_of,
    relevance,
)
from loci.methods.recall._arc_dsl import Grid, Tree, from_json, run, to_json
from loci.methods.recall._arc_search import Found, moves_of, palette_of, solve
from loci.methods.recall._arc_tasks import TAKES, Puzzle, puzzles
from loci.methods.recall.base import Act, Tools, inputs_of
from loci.text.ladder import Refused, Task
from loci.text.quote import listed

MEMORIES = ("concepts", "instances", "none")
_PATIENCE = 50  # solved puzzles a concept may be tried for and never help, before it is left out


@dataclass(frozen=True, kw_only=True)
class ArcMemo(Act):
    """Solves grid puzzles and keeps what their solutions share."""

    about = About(
        name="arcmemo",
        kind=Kind.RECALL,
        paper="arXiv:2509.04439",
        idea="concepts abstracted from verified solutions, selected by cues for new puzzles",
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="a searching solver, anti-unification and cues in place of model calls",
    )
    takes: ClassVar[Mapping[str, str]] = {
        "tasks": 'puzzles: [{"id"?, "train": [{"input", "output"}], "test": [{"input"}]}]',
        "learn": "whether to write concepts from what is solved; true if not given",
        **TAKES,
    }
    example: ClassVar[Job] = Job(
        inputs={
            "tasks": [
                {
                    "id": f"example-{n}",
                    "train": [
                        {"input": [[c, 0, 0], [0, d, 0]], "output": [[0, 0, c], [0, d, 0]]},
                        {"input": [[c, d], [0, d]], "output": [[d, c], [d, 0]]},
                    ],
                    "test": [{"input": [[0, c], [d, 0]]}],
                }
                for n, (c, d) in enumerate([(1, 2), (3, 4)])
            ]
        },
    )

    budget: Annotated[int, Param(help="functions a search may apply", unit="nodes", ge=1)] = 2000
    memory: Annotated[str, Param(help="what is kept of solutions", choices=MEMORIES)] = "concepts"
    top: Annotated[int, Param(help="concepts selected, 0 for all", ge=0)] = 8
    share: Annotated[float, Param(help="odds given to concepts", ge=0.05, le=0.95)] = 0.4
    every: Annotated[int, Param(help="puzzles between two abstractions", ge=1, source="k")] = 10

    def act(self, job: Job, tools: Tools) -> Outcome:
        """Solve puzzles in their order, or learn from traces in words and give advice.

        Each puzzle is a step, and so is each abstraction, trace and advice. Of puzzles the output
        has for every puzzle "solved", "program", "predictions" for its test inputs,
        the "concepts" it was solved with and the "nodes" it took, and all "concepts" known now. Of
        words it has for every situation the "lessons" told and a "prompt", and all "lessons".
        """
        if TAKES.keys() & job.inputs.keys():
            if not TAKES.keys() >= inputs_of(self, job).keys():
                raise ParameterError("a job has puzzles or words, not both", value=[*job.inputs])
            return act_on_words(self, job, tools)
        given = inputs_of(self, job, ("tasks",))
        tasks = puzzles(given["tasks"])
        learn = given.get("learn", True)
        if not isinstance(learn, bool):
            raise ParameterError("arcmemo.learn is true or false", value=learn)
        for one in tasks:
            _known(one, tools)  # refuses another puzzle of the same id before anything is done
        steps: list[Step] = []
        due_after: list[Puzzle | None] = [*tasks, None]  # None: all puzzles were worked on
        for task in due_after:
            due = learn and self._since(tools) >= (self.every if task is not None else 1)
            if due and self.memory == "concepts":
                if len(steps) == job.max_steps:
                    return self._outcome("stopped", job, tasks, tools, steps)
                steps.append(self._learn(tools))
            if task is None or _known(task, tools) is not None:
                continue
            if len(steps) == job.max_steps:
                return self._outcome("stopped", job, tasks, tools, steps)
            steps.append(self._solve(task, tools))
        return self._outcome("done", job, tasks, tools, steps)

    # -- one puzzle ----------------------------------------------------------------------------

    def _solve(self, task: Puzzle, tools: Tools) -> Step:
        seen = features(task.pairs)
        concepts = self._selected(seen, tools)
        moves = moves_of(palette_of(task.pairs), concepts, self.share)
        found = solve(task.pairs, moves, self.budget, self._instances(seen, tools))
        predictions = [None if g is None else g.tolist() for g in _predicted(found, task)]
        value = {
            "id": task.id,
            "digest": task.digest,
            "solved": found.program is not None,
            "program": None if found.program is None else to_json(found.program),
            "text": "" if found.program is None else str(found.program),
            "features": sorted(seen),
            "concepts": list(found.concepts),
            "selected": [concept.name for concept, _ in concepts],
            "nodes": found.nodes,
            "predictions": predictions,
        }
        told = f"solved {task.id}: {value['text']}" if found.program else f"{task.id} not solved"
        how = f" with {', '.join(found.concepts)}" if found.concepts else ""
        why = f"{found.nodes} of {self.budget} nodes, {len(concepts)} concepts selected{how}"
        tried = [
            _record(
                replace(
                    concept,
                    tries=concept.tries + 1,
                    wins=concept.wins + (concept.name in found.concepts),
                )
            )
            for concept, _ in (concepts if found.program is not None else ())
        ]  # a puzzle that was not solved says nothing about a concept
        meta = _meta(self._since(tools) + 1)
        record = Record(key=f"task/{task.id}", text=told, value=value)
        tools.records.put([record, *tried, meta], f"{told}; {why}")
        return Step(did=told, why=why)

    def _selected(self, seen: frozenset[str], tools: Tools) -> list[tuple[Concept, float]]:
        """Return the concepts to try with their weights, the fittest first."""
        if self.memory != "concepts":
            return []
        useful = [c for c in _concepts(tools) if c.wins or c.tries < _PATIENCE]
        rarity = rarity_of(useful)
        scored = [(concept, relevance(concept, seen, rarity)) for concept in useful]
        scored = sorted(scored, key=lambda pair: (-pair[1], pair[0].name))
        if self.top == 0:
            return [(concept, max(weight, 0.05)) for concept, weight in scored]
        chosen, _ = tools.ladder.run(self._choice(seen, scored))
        return [(concept, max(weight, 0.05)) for concept, weight in chosen[: self.top]]

    def _choice(
        self, seen: frozenset[str], scored: Sequence[tuple[Concept, float]]
    ) -> Task[list[tuple[Concept, float]]]:
        """Return the task of selecting concepts: by relevance, or by a model that names them."""
        by_name = {concept.name: (concept, weight) for concept, weight in scored}

        def read(reply: Any) -> tuple[list[tuple[Concept, float]], list[Refused]]:
            named = dict.fromkeys(reply["names"])
            refused = [Refused("a concept that is not there", n) for n in named if n not in by_name]
            # What a model names first weighs most.
            known = [by_name[name][0] for name in named if name in by_name]
            return [(concept, 1.0 / (n + 1)) for n, concept in enumerate(known)], refused

        names = {"type": "array", "items": {"type": "string"}, "maxItems": max(self.top, 1)}
        return Task(
            name="select concepts",
            messages=(
                {
                    "role": "user",
                    "content": "Which routines may help to solve a grid puzzle with these "
                    f"features? Reply with names, best first, at most {self.top}.\n"
                    + listed("features", sorted(seen))
                    + "\n"
                    + listed("routines", [concept.described() for concept, _ in scored]),
                },
            ),
            schema={"type": "object", "properties": {"names": names}, "required": ["names"]},
            read=read,
            rules=lambda: list(scored),
        )

    def _instances(self, seen: frozenset[str], tools: Tools) -> list[Tree]:
        """Return whole programs to try first: those of the puzzles that looked most alike."""
        if self.memory != "instances":
            return []
        solved = [r.value for r in tools.records.all("task/").values() if r.value["solved"]]
        alike = sorted(
            solved,
            key=lambda v: -len(seen & set(v["features"])) / max(len(seen | set(v["features"])), 1),
        )
        return [from_json(value["program"]) for value in alike]

    # -- abstraction ---------------------------------------------------------------------------

    def _since(self, tools: Tools) -> int:
        record = tools.records.get("memory")
        return int(record.value["since"]) if record is not None else 0

    def _learn(self, tools: Tools) -> Step:
        """Write the concepts that all solved puzzles share by now."""
        solved = {
            str(r.value["id"]): (from_json(r.value["program"]), frozenset(r.value["features"]))
            for r in tools.records.all("task/").values()
            if r.value["solved"]
        }
        before = {concept.name: concept for concept in _concepts(tools)}
        now = {concept.name: concept for concept in learnt(before.values(), solved)}
        fresh = [name for name in now if name not in before]
        gone = [f"concept/{name}" for name in before if name not in now]
        changed = [_record(c) for name, c in now.items() if before.get(name) != c]
        did = f"abstracted {len(now)} concepts from {len(solved)} solutions"
        why = f"{len(fresh)} are new, {len(gone)} gave way to more general ones"
        tools.records.put([*changed, _meta(0)], f"{did}; {why}", drop=gone)
        return Step(did=did, why=why)

    def _outcome(
        self, status: Any, job: Job, tasks: Sequence[Puzzle], tools: Tools, steps: Sequence[Step]
    ) -> Outcome:
        results = {task.id: record.value for task in tasks if (record := _known(task, tools))}
        kept = ("solved", "text", "predictions", "concepts", "nodes")
        output = {
            "tasks": {id: {name: value[name] for name in kept} for id, value in results.items()},
            "concepts": [concept.described() for concept in _concepts(tools)],
        }
        count = sum(value["solved"] for value in results.values())
        why = f"{count} of {len(tasks)} puzzles solved"
        if status == "stopped":
            why = f"{job.max_steps} steps were allowed; {why} so far"
        return Outcome(status=status, why=why, output=output, steps=tuple(steps))


# -- private ----------------------------------------------------------------------------------


def _known(task: Puzzle, tools: Tools) -> Record | None:
    """Return the record of a puzzle that was worked on before; another of its id is refused."""
    record = tools.records.get(f"task/{task.id}")
    if record is not None and record.value["digest"] != task.digest:
        raise ParameterError(
            "another puzzle of this id was worked on before",
            value=task.id,
            way_out="give it an id of its own",
        )
    return record


def _predicted(found: Found, task: Puzzle) -> list[Grid | None]:
    if found.program is None:
        return [None for _ in task.tests]
    return [run(found.program, grid) for grid in task.tests]


def _concepts(tools: Tools) -> list[Concept]:
    return [Concept.from_json(r.value) for r in tools.records.all("concept/").values()]


def _record(concept: Concept) -> Record:
    return Record(key=f"concept/{concept.name}", text=concept.described(), value=concept.to_json())


def _meta(since: int) -> Record:
    return Record(key="memory", text=f"{since} puzzles since abstraction", value={"since": since})
