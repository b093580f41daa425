"""A language model of a few rules that writes small Python modules, to try what is around a model.

It knows only what a prompt shows. Every module has an entry function whose name it makes up, so a
module that uses another can be written only by who sees that one, or remembers it. With `bugs` it
errs the first time and mends what it is told of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import Any  # a JSON schema

from loci.core.agent import Job

_STEP = re.compile(r"Step \d+ of \d+: (.*)")
_WRITE = re.compile(
    r"Write (\S+): entry function with a name of your own that returns (\d+)(.*?); value\(\) "
    r"returns the same\.(?: Put (\d+) lines of notes)?"
)
_USES = re.compile(r"the entry function of (\S+?) returns")
_ENTRY = re.compile(r"def (entry_\w+)\(")
_VIEW = re.compile(r"^--- (\S+), lines (\d+) to (\d+) of (\d+)(?: \(no room.*?line (\d+)\))?$")


class Programmer:
    """Satisfies `loci.core.ports.Llm`.

    Args:
        bugs: share of modules that are wrong at first: half of them do not parse, half return
            another number.

    Attributes:
        calls: how often it was asked.
    """

    name = "programmer"

    def __init__(self, seed: int = 0, *, bugs: float = 0.0) -> None:
        self.seed, self.bugs, self.calls = seed, bugs, 0

    def count_tokens(self, text: str) -> int:
        """Return a quarter of the letters."""
        return len(text) // 4 + 1

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the next call for the step that stands last in the messages."""
        self.calls += 1
        reply = json.dumps(self._next(messages, max_tokens))
        most = 4 * max_tokens
        return reply if len(reply) <= most else reply[:most]  # as a model that is cut off

    def _next(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> dict[str, Any]:
        told = [str(message["content"]) for message in messages]
        if 'Reply with {"note"' in told[-1]:
            return self._remember(messages)
        steps = [match for text in told for match in _STEP.findall(text)]
        task = _WRITE.search(steps[-1]) if steps else None
        if task is None:
            return {"tool": "step_done", "summary": "There is nothing I know to do."}
        path, number, rest, notes = task[1], int(task[2]), task[3], int(task[4] or 0)
        needs = _USES.findall(rest)
        seen, more = seen_in(messages)
        names = {need: _ENTRY.search("\n".join(seen.get(need, ()))) for need in needs}
        here = told[-1]
        lines = sizes_in(told)
        wrong = "not done:" in here or "the tests failed" in here or "checks fail" in here
        missing = [need for need, name in names.items() if name is None]
        wrote = bool(re.search(rf"wrote {re.escape(path)}, (\d+) lines", "\n".join(told)))
        if missing and not (wrote and not wrong and lines.get(path)):
            need = missing[0]
            if need in lines:
                return {"tool": "view_files", "paths": [need], "from": more.get(need, 1)} | (
                    {} if need in more else {"to": 10**6}
                )
        text = self._module(path, number, [m[1] if m else "entry" for m in names.values()], needs)
        text = _noted(text, notes)
        if not wrong and self._errs(path) and not self._mended(told, path):
            text = self._broken(text, path)
        return self._write(path, text, lines.get(path, 0), wrong, max_tokens)

    def _remember(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Return a note on what the messages show, and what an older note said."""
        seen, more = seen_in(messages)
        parts = []
        for path, lines in seen.items():
            name = _ENTRY.search("\n".join(lines))
            if name is not None:
                parts.append(f"{path} has {name[1]};")
            elif path in more:
                parts.append(f"{path} is read up to line {more[path]};")
        return {"note": " ".join(parts) or "nothing yet"}

    def _write(
        self, path: str, text: str, have: int, wrong: bool, max_tokens: int
    ) -> dict[str, Any]:
        whole = text.splitlines()
        room = int(2.4 * max_tokens)  # letters that fit a reply with its quoting
        start = 0 if wrong or have > len(whole) else have
        if start >= len(whole):
            return {"tool": "step_done", "summary": f"{path} is written."}
        part: list[str] = []
        for line in whole[start:]:
            if part and sum(map(len, part)) + len(line) + 8 * len(part) > room:
                break
            part.append(line)
        content = "\n".join(part) + "\n"
        tool = "append_file" if start else "write_file"
        return {"tool": tool, "path": path, "content": content}

    def _module(self, path: str, number: int, names: list[str], needs: list[str]) -> str:
        entry = f"entry_{self._mark(path)}"
        imports = [
            f"from {need.removesuffix('.py').replace('/', '.')} import {name}"
            for need, name in zip(needs, names, strict=True)
        ]
        total = " + ".join([str(number), *(f"{name}()" for name in names)])
        return "\n".join(
            [
                *imports,
                "",
                f"def {entry}():",
                f"    return {total}",
                "",
                "def value():",
                f"    return {entry}()",
                "",
            ]
        )

    def _errs(self, path: str) -> bool:
        return Random(f"{self.seed} {path} errs").random() < self.bugs

    def _mended(self, told: Sequence[str], path: str) -> bool:
        """Return whether something went wrong in this step before: then it is careful."""
        return any("not done:" in text or "checks fail" in text for text in told)

    def _broken(self, text: str, path: str) -> str:
        if Random(f"{self.seed} {path} how").random() < 0.5:
            return text.replace("def value():", "def value(:")
        return re.sub(r"return (\d+)", lambda m: f"return {int(m[1]) + 1}", text, count=1)

    def _mark(self, path: str) -> str:
        return blake2b(f"{self.seed} {path}".encode(), digest_size=3).hexdigest()


def make_job(seed: int, *, modules: int | None = None, notes: int | None = None) -> Job:
    """Return a job of several modules that use each other, with a test for each.

    Args:
        notes: lines of notes in a module, drawn up to 30 if not given.
    """
    dice = Random(f"modules {seed}")
    count = dice.randint(3, 8) if modules is None else modules
    steps: list[str] = []
    values: list[int] = []
    for n in range(count):
        uses = sorted(dice.sample(range(n), min(n, dice.choice((0, 1, 1, 2)))))
        number = dice.randint(1, 99)
        values.append(number + sum(values[u] for u in uses))
        plus = "".join(f" plus what the entry function of m{u}.py returns" for u in uses)
        many = dice.choice((0, 0, 6, 15, 30)) if notes is None else notes
        tail = f" Put {many} lines of notes before it." if many else ""
        steps.append(
            f"Write m{n}.py: entry function with a name of your own that returns "
            f"{number}{plus}; value() returns the same.{tail}"
        )
    tests = {
        f"check_m{n}.py": f"import m{n}\n\nassert m{n}.value() == {value}, 'm{n} is wrong'\n"
        for n, value in enumerate(values)
    }
    tests["check_all.py"] = "".join(f"import check_m{n}\n" for n in range(count))
    return Job(
        goal=f"A package of {count} modules.",
        inputs={
            "steps": steps,
            "tests": tests,
            "command": ["check_all.py"],
            "step_commands": [[f"check_m{n}.py"] for n in range(count)],
        },
        max_steps=10_000,
    )


def _noted(text: str, notes: int) -> str:
    lines = [f"# Note {n}: this line says nothing that the program needs." for n in range(notes)]
    return "\n".join([*lines, text])


def seen_in(messages: Sequence[Mapping[str, str]]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return {path: lines} that messages show, by views and by what was written, and from which
    line a file goes on that was shown in part."""
    seen: dict[str, list[str]] = {}
    more: dict[str, int] = {}
    for message in messages:
        text = str(message["content"])
        for path, name in re.findall(r"(\S+) has (entry_\w+);", text):
            seen.setdefault(path, []).append(f"def {name}():")
        for path, line in re.findall(r"(\S+) is read up to line (\d+);", text):
            more[path] = int(line)
            seen.setdefault(path, [])
        if message["role"] == "assistant":
            try:
                call = json.loads(text)
            except ValueError:
                continue
            if call.get("tool") in ("write_file", "append_file"):
                seen.setdefault(call["path"], []).extend(call["content"].splitlines())
            continue
        path = None
        for line in text.splitlines():
            head = _VIEW.match(line)
            if head:
                path = head[1]
                more.pop(path, None)
                if head[5]:
                    more[path] = int(head[5])
            elif path is not None:
                seen.setdefault(path, []).append(line)
    return seen, more


def sizes_in(told: Sequence[str]) -> dict[str, int]:
    """Return {path: lines} as the prompt lists the files, or as results said since."""
    sizes: dict[str, int] = {}
    for text in told:
        for listing in re.findall(r"^Files: (.*)$", text, re.MULTILINE):
            sizes |= {path: int(n) for path, n in re.findall(r"(\S+) \((\d+) lines\)", listing)}
    for text in told:
        for path, n in re.findall(r"wrote (\S+), (\d+) lines", text):
            sizes[path] = int(n)
    return sizes
