"""The file store of L2MAC: what a model may do to files, and how they are checked."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any  # calls are JSON values

from loci.core.agent import Ran, path_problem
from loci.core.ports import Sandbox

MOST_FILES, MOST_BYTES = 200, 200_000

_PATH = {"type": "string", "minLength": 1, "maxLength": 200}
_PATHS = {"type": "array", "items": _PATH, "minItems": 1, "maxItems": 20}
_TEXT = {"type": "string"}
_LINE = {"type": "integer"}
TOOLS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "view_files": ("read files, or lines of one", {"paths": _PATHS, "from": _LINE, "to": _LINE}),
    "write_file": ("write a whole file, new or over the old", {"path": _PATH, "content": _TEXT}),
    "append_file": ("add to the end of a file", {"path": _PATH, "content": _TEXT}),
    "replace_lines": (
        "put text in place of lines of a file",
        {"path": _PATH, "from": _LINE, "to": _LINE, "content": _TEXT},
    ),
    "delete_files": ("delete files", {"paths": _PATHS}),
    "run_tests": ("check all files and run the tests", {}),
    "step_done": ("end this step; it is checked first", {"summary": _TEXT}),
}
_OPTIONAL = ("from", "to")

CALL: Mapping[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"tool": {"enum": [name]}, **parts},
            "required": [
                "tool",
                *(p for p in parts if p not in _OPTIONAL or name == "replace_lines"),
            ],
        }
        for name, (_, parts) in TOOLS.items()
    ]
}
"""The form of a model's reply: one call of one tool."""


def described() -> str:
    """Return the tools as a model is told about them."""
    lines = []
    for name, (does, parts) in TOOLS.items():
        form = json.dumps({"tool": name, **{part: _shape(part) for part in parts}})
        lines.append(f"{form}  {does}")
    return "\n".join(lines)


def _shape(part: str) -> object:
    shapes = {"path": "a.py", "paths": ["a.py"], "content": "..", "summary": ".."}
    return shapes.get(part, 1)


@dataclass
class Files:
    """Files of a workspace, and what a step did to them.

    Attributes:
        guarded: paths that only the person may change, such as the tests that were given.
        changed: what was written or deleted since this was made.
    """

    texts: dict[str, str]
    guarded: frozenset[str] = frozenset()
    changed: dict[str, None] = field(default_factory=dict)

    def names(self) -> str:
        """Return the names of all files with their sizes in lines."""
        lines = [f"{path} ({_lines(text)} lines)" for path, text in sorted(self.texts.items())]
        return ", ".join(lines) or "none yet"

    def view(self, call: Mapping[str, Any], count: Callable[[str], int], tokens: int) -> str:
        """Return what files hold, as many lines as fit; what is left out is said."""
        found: list[str] = []
        room = tokens
        for path in call["paths"]:
            if path not in self.texts:
                found.append(f"there is no file {path}")
                continue
            lines = self.texts[path].splitlines()
            first = min(max(int(call.get("from", 1)), 1), max(len(lines), 1))
            last = min(max(int(call.get("to", len(lines))), first), len(lines))
            shown: list[str] = []
            for line in lines[first - 1 : last]:
                cost = count(line + "\n")
                if cost > room:
                    break
                room -= cost
                shown.append(line)
            end = first - 1 + len(shown)
            head = f"--- {path}, lines {first} to {end} of {len(lines)}"
            if end < last:
                head += f" (no room for more: view it from line {end + 1})"
            found.append("\n".join([head, *shown]))
        return "\n".join(found)

    def write(self, call: Mapping[str, Any]) -> str:
        """Carry out a call that changes files; return what came of it."""
        what = call["tool"]
        if what == "delete_files":
            return "; ".join(self._delete(path) for path in call["paths"])
        path, content = call["path"], call["content"]
        problem = self._refused(path)
        if problem is not None:
            return problem
        before = self.texts.get(path, "")
        if what == "append_file":
            glue = "" if not before or before.endswith("\n") else "\n"
            content = before + glue + content
        elif what == "replace_lines":
            lines = before.splitlines()
            first, last = int(call["from"]), int(call["to"])
            if not 1 <= first <= last <= len(lines):
                return f"{path} has lines 1 to {len(lines)}; got {first} to {last}"
            content = "\n".join([*lines[: first - 1], *content.splitlines(), *lines[last:], ""])
        size = len(content.encode("utf-8", "replace"))
        if size > MOST_BYTES or (path not in self.texts and len(self.texts) >= MOST_FILES):
            return f"refused: at most {MOST_FILES} files of {MOST_BYTES:,} bytes"
        self.texts[path] = content
        self.changed[path] = None
        return f"wrote {path}, {_lines(content)} lines"

    def _delete(self, path: str) -> str:
        problem = self._refused(path)
        if problem is not None:
            return problem
        if self.texts.pop(path, None) is None:
            return f"there is no file {path}"
        self.changed[path] = None
        return f"deleted {path}"

    def _refused(self, path: str) -> str | None:
        problem = path_problem(path)
        if problem is not None:
            return f"refused: the path {path!r} {problem}; take a relative path such as app/main.py"
        if " " in path:
            return f"refused: the path {path!r} has a space"
        if path in self.guarded:
            return f"refused: {path} was given by the person and stays as it is"
        return None

    def problem(
        self, sandbox: Sandbox | None, command: list[str], timeout_s: float, kind: str
    ) -> str | None:
        """Return what is wrong with the files, None if nothing is.

        Python must parse, JSON must be JSON; then the tests run in the sandbox, if there is one.
        """
        if kind == "none":
            return None
        for path, text in sorted(self.texts.items()):
            found = _form(path, text)
            if found is not None:
                return found
        if sandbox is None or not command:
            return None
        ran = sandbox.run(self.texts, command, timeout_s)
        return None if ran.is_good else _told(ran)


def _form(path: str, text: str) -> str | None:
    if path.endswith(".py"):
        try:
            ast.parse(text)
        except SyntaxError as error:
            return f"{path}, line {error.lineno}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"{path} cannot be read as Python: {error}"
    if path.endswith(".json"):
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"{path} is no JSON: {error}"
    return None


def _told(ran: Ran) -> str:
    lines = ran.output.strip().splitlines()[-25:]
    how = ran.why or f"exit code {ran.exit_code}"
    return "\n".join([f"the tests failed ({how}):", *(line[:200] for line in lines)])


def _lines(text: str) -> int:
    return len(text.splitlines())
