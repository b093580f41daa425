"""L2MAC: a program of steps, each in a fresh context, over files read and written precisely.

S. Holt, M. R. Luyten, M. van der Schaar, "L2MAC: Large Language Model Automatic Computer for
Extensive Code Generation", ICLR 2024, arXiv:2310.02003.

A stored-program machine around a model: the registry holds the instructions, the store holds the
files, and the control unit shows the model one instruction, the names of the files and a summary
of the step before, never more. The model asks for the files it needs. A step ends when checks
pass; if its messages outgrow the context they are replaced by a note and by facts that tools
verified, and the step goes on:

    prompt = goal + instruction + names of files + summary + messages since the last note
    tokens(prompt) + reserve <= context, always

Differs from the paper: one call a reply, as JSON; lines can be read, replaced and appended, so no
file is too large; tests that were given cannot be changed; a step that fails leaves no files.
Not for: models that cannot keep to JSON and are not held to a schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, ClassVar  # inputs and messages are JSON values

from loci.core.agent import Job, Outcome, Step, path_problem
from loci.core.method import About, Frees, Kind, Need, Param
from loci.errors import MethodError, ParameterError
from loci.methods.recall._l2mac_unit import Unit
from loci.methods.recall.base import Act, Tools, inputs_of

CHECKS = ("python", "none")
_WRITE = (
    "Write {}: entry function with a name of your own that returns {}; value() returns the same."
)


@dataclass(frozen=True, kw_only=True)
class L2mac(Act):
    """Writes more than a context holds, step by step, checked after every step."""

    about = About(
        name="l2mac",
        kind=Kind.RECALL,
        paper="arXiv:2310.02003",
        idea="each step in a fresh context over files that a control unit reads and writes",
        needs=(Need.LLM,),
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="calls as JSON held to a schema; notes joined by facts that tools verified",
    )
    takes: ClassVar[Mapping[str, str]] = {
        "steps": "instructions, one a step; without them the model makes the program",
        "files": "files to begin with: {path: text}",
        "tests": "files that the model may read and not change: {path: text}",
        "command": 'what runs the tests in the sandbox, such as ["-m", "unittest", "-q"]',
        "step_commands": "the same for each step, as it ends: [[...], ...]",
        "checks": "python (the default) or none",
    }
    example: ClassVar[Job] = Job(
        goal="A small package of prices.",
        inputs={
            "steps": [
                _WRITE.format("rate.py", "3"),
                _WRITE.format("total.py", "4 plus what the entry function of rate.py returns"),
            ],
            "tests": {"test_total.py": "import total\n\nassert total.value() == 7\n"},
            "command": ["test_total.py"],
        },
    )

    context: Annotated[int, Param(help="of the model", unit="tokens", ge=256)] = 4096
    reserve: Annotated[
        int, Param(help="kept free for a reply", unit="tokens", ge=64, source="control unit")
    ] = 700
    retries: Annotated[int, Param(help="replies a step may take", ge=1, source="code")] = 30
    steps: Annotated[int, Param(help="most steps of a program the model makes", ge=1)] = 10
    timeout: Annotated[float, Param(help="of a run of the tests", unit="s", ge=0.1)] = 60.0

    def act(self, job: Job, tools: Tools) -> Outcome:
        """Write files step by step; every reply of the model is a step of the history.

        The output has "files", "summaries" of the steps, and what it took: "calls", "restarts"
        of a context, "largest_prompt" in tokens, and "checked", how far the files were checked.
        """
        given = self._read(job)
        if tools.llm is None:
            raise MethodError(
                "l2mac asks a language model and none was given",
                way_out=[
                    "loci config set endpoint http://localhost:11434/v1 and endpoint_model",
                    "or memory.agent(..., llm=...)",
                ],
            )
        text = json.dumps([job.goal, job.inputs], sort_keys=True)
        name = blake2b(text.encode(), digest_size=8).hexdigest()
        unit = Unit(self, job, given, tools, name)
        steps: list[Step] = []
        status, why = unit.status()
        while status == "running":
            if len(steps) == job.max_steps:
                return self._outcome(unit, "stopped", f"{job.max_steps} steps were allowed", steps)
            step = unit.step()
            status, why = unit.status()
            steps.append(step)
            if unit.stuck is not None:
                return self._outcome(unit, "stopped", unit.stuck, steps)
        return self._outcome(unit, "done" if status == "done" else "failed", why, steps)

    def _outcome(self, unit: Unit, status: Any, why: str, steps: list[Step]) -> Outcome:
        return Outcome(status=status, why=why, output=unit.output(), steps=tuple(steps))

    def _read(self, job: Job) -> dict[str, Any]:
        """Return the inputs, checked."""
        given = dict(inputs_of(self, job))
        if self.reserve >= self.context:
            raise ParameterError(
                "l2mac.reserve must be < l2mac.context", value=(self.reserve, self.context)
            )
        for name in ("steps", "command"):
            value = given.setdefault(name, [])
            if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
                raise ParameterError(f"l2mac.{name} is a list of texts", value=str(value)[:80])
        each = given.setdefault("step_commands", [])
        if not isinstance(each, list) or not all(
            isinstance(one, list) and all(isinstance(v, str) and v for v in one) for one in each
        ):
            raise ParameterError("l2mac.step_commands is a list of commands", value=str(each)[:80])
        for name in ("files", "tests"):
            value = given.setdefault(name, {})
            if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
                raise ParameterError(f"l2mac.{name} is {{path: text}}", value=str(value)[:80])
            for path in value:
                problem = path_problem(path) or ("has a space" if " " in path else None)
                if problem is not None:
                    raise ParameterError(
                        f"a path of l2mac.{name} {problem}",
                        value=path,
                        allowed="a relative path such as app/main.py",
                    )
        if given.setdefault("checks", CHECKS[0]) not in CHECKS:
            raise ParameterError("unknown check", value=given["checks"], allowed=", ".join(CHECKS))
        if not job.goal.strip():
            raise ParameterError("l2mac needs a goal", value=job.goal)
        return given
