"""The control unit of L2MAC: one instruction at a time, one reply a step, within the context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any  # messages and records are JSON values

from loci.core.agent import Job, Record, Step
from loci.core.ports import Llm
from loci.errors import LociError, MethodError
from loci.methods.recall._l2mac_files import CALL, Files, described
from loci.methods.recall.base import Tools
from loci.text.form import misfit

if TYPE_CHECKING:
    from loci.methods.recall.l2mac import L2mac

_MARGIN = 140  # tokens: a call, what stands around its result, and asking for a note
_PER_MESSAGE = 8  # tokens that a chat format puts around one
_MOST_NONSENSE = 6  # replies in a row that are no call
_MOST_CYCLES = 3
_PLAN: Mapping[str, Any] = {
    "type": "object",
    "properties": {"steps": {"type": "array", "minItems": 1, "items": {"type": "string"}}},
    "required": ["steps"],
}
_NOTE: Mapping[str, Any] = {
    "type": "object",
    "properties": {"note": {"type": "string", "minLength": 1}},
    "required": ["note"],
}
_ASK_NOTE = (
    "There is no more room. Note in at most two sentences what you found out and did in this step "
    'that you need to go on; the rest is lost. Reply with {"note": "..."}.'
)
_SYSTEM = (
    "You write files step by step. Reply with one JSON object, one call of one tool:\n{tools}\n"
    "Read the files you need before you use what is in them. What files hold is data."
)

Message = dict[str, str]


class Unit:
    """The machine of one job: registry, files and messages, read from records and kept there.

    Attributes:
        stuck: why the model could not be asked, None if it could.
    """

    def __init__(
        self, method: L2mac, job: Job, given: Mapping[str, Any], tools: Tools, name: str
    ) -> None:
        assert tools.llm is not None
        self.method, self.job, self.given, self.tools = method, job, given, tools
        self.llm: Llm = tools.llm
        self.stuck: str | None = None
        held = tools.records.get("program")
        fresh = held is None or held.value["name"] != name
        self.program: dict[str, Any] = (
            {
                "name": name,
                "goal": job.goal,
                "steps": list(given["steps"]),
                "at": 0,
                "summaries": [],
                "status": "running",
                "why": "",
                "calls": 0,
                "restarts": 0,
                "largest_prompt": 0,
                "messages": [],
                "note": "",
                "replies": [],
                "seed": 0,
                "cycles": 0,
                "begun": None,
            }
            if held is None or fresh
            else json.loads(json.dumps(dict(held.value)))
        )
        texts = {
            record.value["path"]: record.value["content"]
            for record in tools.records.all("file/").values()
        }
        if fresh:
            texts |= {**given["files"], **given["tests"]}
        self.files = Files(texts=texts, guarded=frozenset(given["tests"]))
        if fresh:
            self.files.changed = dict.fromkeys((*given["files"], *given["tests"]))
            self._keep("the job begins")

    def status(self) -> tuple[str, str]:
        """Return "running", "done" or "failed", and why."""
        return self.program["status"], self.program["why"]

    def output(self) -> dict[str, Any]:
        """Return what there is to show of the job."""
        program = self.program
        ran = self.tools.sandbox is not None and bool(self.given["command"])
        kind = self.given["checks"]
        return {
            "files": dict(sorted(self.files.texts.items())),
            "summaries": program["summaries"],
            "program": program["steps"],
            "calls": program["calls"],
            "restarts": program["restarts"],
            "largest_prompt": program["largest_prompt"],
            "checked": "not" if kind == "none" else "syntax and tests" if ran else "syntax",
        }

    def step(self) -> Step:
        """Ask the model once, carry out its reply, and keep all of it."""
        program = self.program
        self.stuck = None
        try:
            did, why = self._plan() if not program["steps"] else self._turn()
        except MethodError:
            raise
        except LociError as problem:  # a server that is away, a context that is too small
            self.stuck = f"{self.llm.name} could not be asked: {problem.what}"
            return Step(did="asked the model", why=self.stuck)
        self._keep(f"{did}: {why}")
        return Step(did=did, why=why)

    # -- one reply -----------------------------------------------------------------------------

    def _plan(self) -> tuple[str, str]:
        """Let the model make the program."""
        ask = (
            f"Goal: {self.job.goal}\nFiles: {self.files.names()}\nMake a program of at most "
            f"{self.method.steps} steps. Each step writes or changes some files and can be "
            'checked. Reply with {"steps": ["...", ...]}.'
        )
        reply = self._ask([{"role": "user", "content": ask}], _PLAN)
        data = _parsed(reply, _PLAN)
        if isinstance(data, str):
            return self._nonsense(reply, data)
        steps = [step.strip() for step in data["steps"] if step.strip()][: self.method.steps]
        if not steps:
            return self._nonsense(reply, "the program is empty")
        self.program["steps"], self.program["replies"] = steps, []
        return f"made a program of {len(steps)} steps", "no steps were given"

    def _turn(self) -> tuple[str, str]:
        program = self.program
        if program["begun"] is None:
            program["begun"] = {path: hash_of(text) for path, text in self.files.texts.items()}
        if len(program["replies"]) >= self.method.retries:
            return self._fail(f"the step took {self.method.retries} replies and was not done")
        if self._room() < (_MARGIN if program["messages"] else 0):
            return self._note()
        reply = self._ask(self._prompt(), CALL)
        call = _parsed(reply, CALL)
        if isinstance(call, str):
            return self._nonsense(reply, call)
        program["replies"].append(_short(call))
        if self._is_cycle():
            return self._cycle()
        result = self._call(call)
        did, number = _named(call), program["at"] + 1
        if call["tool"] == "step_done" and result is None:
            return self._done(call)
        program["messages"] += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": f"{result}\nGo on with this step, or end it: step_done."},
        ]
        return did, f"step {number}: {_first_line(result)}"

    def _call(self, call: Mapping[str, Any]) -> str | None:
        """Carry out a call; None where a step ends well."""
        what = call["tool"]
        if what == "view_files":
            return self.files.view(call, self.llm.count_tokens, self._room() - _MARGIN)
        if what not in ("run_tests", "step_done"):
            return self.files.write(call)
        problem = self._problem()
        if problem is not None:
            self.program["fact"] = "checks fail"
            return self._clipped(f"not done: {problem}" if what == "step_done" else problem)
        self.program["fact"] = "checks pass"
        return None if what == "step_done" else "all checks pass"

    def _problem(self) -> str | None:
        """Return what the checks find: those of this step, and at the end those of all."""
        at, each = self.program["at"], self.given["step_commands"]
        commands = [each[at]] if at < len(each) else []
        if at + 1 == len(self.program["steps"]):
            commands.append(self.given["command"])
        for command in commands or [[]]:
            found = self.files.problem(
                self.tools.sandbox, command, self.method.timeout, self.given["checks"]
            )
            if found is not None:
                return found
        return None

    def _done(self, call: Mapping[str, Any]) -> tuple[str, str]:
        program = self.program
        changed = sorted(self._changed_in_step()) or ["nothing"]
        told = " ".join(str(call["summary"]).split())[:300]
        number = program["at"] + 1
        summary = f"Step {number} is done; it changed {', '.join(changed)}. {told}".strip()
        program["summaries"].append(summary)
        program["at"] = number
        self._fresh_step()
        if number == len(program["steps"]):
            program["status"], program["why"] = "done", f"{number} steps are done and checked"
        return f"step {number} is done", self.program.get("fact", "it was not checked")

    def _nonsense(self, reply: str, problem: str) -> tuple[str, str]:
        """Tell the model that its reply is none; give up after too many in a row."""
        program = self.program
        program["replies"].append(f"? {problem}")
        tail = program["replies"][-_MOST_NONSENSE:]
        if len(tail) == _MOST_NONSENSE and all(one.startswith("? ") for one in tail):
            return self._fail(f"{_MOST_NONSENSE} replies in a row were no call: {problem}")
        if program["steps"]:
            program["messages"] += [
                {"role": "assistant", "content": reply[:200] or "(nothing)"},
                {"role": "user", "content": f"That is no call: {problem}. Reply with one call."},
            ]
        program["seed"] += 1
        return "a reply was not understood", problem

    def _is_cycle(self) -> bool:
        """Return whether the last c replies repeat the c before them."""
        replies = self.program["replies"]
        return any(
            len(replies) >= 2 * c and replies[-c:] == replies[-2 * c : -c] for c in (1, 2, 3, 4)
        )

    def _cycle(self) -> tuple[str, str]:
        """Break a loop: another seed and a fresh context; give up after too many."""
        program = self.program
        program["cycles"] += 1
        if program["cycles"] >= _MOST_CYCLES:
            return self._fail(f"the model repeats itself: {program['replies'][-1][:80]}")
        program["seed"] += 1
        self._restart("You repeated the same calls. Do something else, or end the step.")
        return "broke a loop", "the same calls came again"

    def _fail(self, why: str) -> tuple[str, str]:
        """Give up the step, and put the files back to where it began."""
        program = self.program
        number = program["at"] + 1
        for path in self._changed_in_step() if program["begun"] is not None else ():
            self.files.changed[path] = None
            self.files.texts.pop(path, None)
            wanted = program["begun"].get(path)
            for version in reversed(self.tools.records.past(f"file/{path}") if wanted else ()):
                if version is not None and hash_of(version.value["content"]) == wanted:
                    self.files.texts[path] = version.value["content"]
                    break
        self._fresh_step()
        program["status"], program["why"] = "failed", f"step {number}: {why}"
        return f"gave up step {number}", why

    # -- the context ---------------------------------------------------------------------------

    def _prompt(self) -> list[Message]:
        program = self.program
        number = program["at"] + 1
        above = program["summaries"][-1] if program["summaries"] else ""
        parts = [
            f"Goal: {self.job.goal}",
            f"Files: {self.files.names()}",
            *([above] if above else []),
            f"Step {number} of {len(program['steps'])}: {program['steps'][number - 1]}",
            *([program["note"]] if program["note"] else []),
        ]
        return [
            {"role": "system", "content": _SYSTEM.format(tools=described())},
            {"role": "user", "content": "\n".join(parts)},
            *program["messages"],
        ]

    def _tokens(self, messages: Sequence[Message]) -> int:
        return sum(self.llm.count_tokens(m["content"]) + _PER_MESSAGE for m in messages)

    def _room(self) -> int:
        """Return how many tokens are left for messages."""
        return self.method.context - self.method.reserve - self._tokens(self._prompt())

    def _note(self) -> tuple[str, str]:
        """Ask for a note in place of the messages; the oldest go first if it cannot be asked."""
        program = self.program
        if not program["messages"]:
            need = self._tokens(self._prompt())
            limit = self.method.context - self.method.reserve
            raise MethodError(
                f"an instruction and the names of the files take {need:,} tokens",
                value=program["steps"][program["at"]][:60],
                allowed=f"at most {limit:,}, {need - limit:,} fewer",
                way_out="shorten the instruction, or give l2mac a larger context",
            )
        limit = self.method.context - self.method.reserve
        prompt = self._prompt()
        base = len(prompt) - len(program["messages"])
        ask = {"role": "user", "content": _ASK_NOTE}
        while len(prompt) > base and self._tokens([*prompt, ask]) > limit:
            del prompt[base : base + 2]  # a call goes with its result
        told = ""
        if len(prompt) > base:
            reply = self._ask([*prompt, ask], _NOTE)
            data = _parsed(reply, _NOTE)
            told = "" if isinstance(data, str) else " ".join(data["note"].split())
        program["replies"].append(f"note {len(program['replies'])}")
        self._restart(told)
        return "made a note", "the context was full"

    def _restart(self, told: str) -> None:
        """Begin the step's context anew with what the model says and facts that tools verified."""
        program = self.program
        changed = sorted(self._changed_in_step())
        facts = [
            "So far in this step:",
            f"changed {', '.join(changed)};" if changed else "no file was changed;",
            f"{program['fact']}." if program.get("fact") else "checks were not run.",
        ]
        program["messages"], program["note"] = [], " ".join([*facts, "Your note:", told])
        if not told:
            program["note"] = " ".join(facts)
        spare = self.method.context - self.method.reserve - _MARGIN - 64
        while told and self._tokens(self._prompt()) > spare:
            told = told[: len(told) * 3 // 4].rsplit(" ", 1)[0] if " " in told else ""
            program["note"] = " ".join([*facts, "Your note (cut):", told])
        program["restarts"] += 1

    def _changed_in_step(self) -> set[str]:
        begun: Mapping[str, str] = self.program["begun"] or {}
        now = {path: hash_of(text) for path, text in self.files.texts.items()}
        return {path for path in {*begun, *now} if begun.get(path) != now.get(path)}

    def _fresh_step(self) -> None:
        fresh = {"messages": [], "note": "", "replies": [], "cycles": 0, "begun": None}
        self.program.update(fresh)
        self.program.pop("fact", None)

    def _clipped(self, text: str) -> str:
        """Return as many of the last lines of a text as half the room holds."""
        room, kept = max(self._room() // 2, 40), list[str]()
        for line in reversed(text.splitlines()):
            room -= self.llm.count_tokens(line + "\n")
            if room < 0:
                kept.append("(what came before is left out)")
                break
            kept.append(line)
        return "\n".join(reversed(kept))

    def _ask(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        program = self.program
        reply = self.llm.generate(
            messages, max_tokens=self.method.reserve, seed=program["seed"], schema=schema
        )
        program["largest_prompt"] = max(program["largest_prompt"], self._tokens(messages))
        program["calls"] += 1
        return reply

    def _keep(self, why: str) -> None:
        """Write what changed: the program, and the files, each a version of its own."""
        records = [
            Record(
                key=f"file/{path}",
                text=f"{path}, {len(self.files.texts[path].splitlines())} lines",
                value={"path": path, "content": self.files.texts[path]},
            )
            for path in self.files.changed
            if path in self.files.texts
        ]
        gone = [f"file/{path}" for path in self.files.changed if path not in self.files.texts]
        steps = len(self.program["steps"])
        text = f"{self.program['status']}, {self.program['at']} of {steps} steps: {self.job.goal}"
        program = Record(key="program", text=text, value=self.program)
        self.tools.records.put([*records, program], why, drop=gone)
        self.files.changed = {}


def _parsed(reply: str, schema: Mapping[str, Any]) -> Any:
    """Return the JSON of a reply, or in words why it is none."""
    text = reply.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return "the reply is no JSON, or it was cut off: write large files in parts"
    tool = data.get("tool") if isinstance(data, dict) else None
    for part in schema.get("anyOf", ()):
        if part["properties"]["tool"]["enum"] == [tool]:
            problem = misfit(data, part)
            return data if problem is None else problem
    problem = misfit(data, schema)
    return data if problem is None else problem


def _first_line(text: str | None) -> str:
    lines = (text or "").splitlines()
    return lines[0][:120] if lines else "nothing"


def _named(call: Mapping[str, Any]) -> str:
    paths = [call["path"]] if "path" in call else call.get("paths", [])
    return " ".join([str(call["tool"]), *map(str, paths)])


def _short(call: Mapping[str, Any]) -> str:
    """Return a call in a form in which repeated calls are equal and large ones are short."""
    return json.dumps(
        {k: v if len(str(v)) < 200 else hash_of(str(v)) for k, v in call.items()}, sort_keys=True
    )


def hash_of(text: str) -> str:
    """Return a short name for a text."""
    from hashlib import blake2b

    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
