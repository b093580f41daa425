"""What agents work with: jobs, outcomes, records of state, screens, and code that was run.

An agent keeps everything it knows in records, small JSON values under a key, outside of any prompt.
What a record held before is never lost, and an agent that was killed goes on from its records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal  # records and inputs are JSON values

Status = Literal["done", "failed", "asks", "stopped"]
"""Done; given up, with the reason; waits for an answer or a new input; out of steps or time."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One part of an agent's state.

    Attributes:
        key: its name inside the agent, such as "node/3"; what stands before "/" is its kind.
        text: one line that tells people what it is.
        value: JSON.
        links: (relation, key of another record); they are added, never taken away.
    """

    key: str
    text: str
    value: Mapping[str, Any]
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an agent is to do.

    Attributes:
        goal: in words.
        inputs: what the method's documentation says it takes, JSON values.
        max_steps: when to stop, whatever happens.
    """

    goal: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = 200


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing an agent did, and why."""

    did: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        output: JSON values; which ones, the method's documentation says.
        steps: what was done in this call, in order.
        why: the reason for the status, in one sentence.
    """

    status: Status
    why: str
    output: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of code that was run apart.

    Attributes:
        exit_code: None where it was killed.
        output: the end of what it printed, both streams together.
        why: why it was killed, "" where it ended by itself.
        files: {path: text} of the files it wrote or changed.
    """

    exit_code: int | None
    output: str
    why: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.exit_code == 0


@dataclass(frozen=True, kw_only=True)
class Element:
    """One thing on a screen: what it is, its name if it has one, its text.

    Attributes:
        role: "button", "text", "input", "item", "icon" or whatever the device calls it.
        risky: whether touching it does something that going back does not undo: send, pay, delete.
    """

    role: str
    text: str
    id: str = ""
    risky: bool = False


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What a device shows.

    Attributes:
        app: the app in front; "" for the launcher.
        place: the activity or URL, where the device tells it.
        version: of the app, where the device tells it.
    """

    app: str
    elements: tuple[Element, ...]
    place: str = ""
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Action:
    """One act on a device.

    Attributes:
        kind: "tap", "type", "back", "open" or "wait".
        target: the text (or id) of the element, or the app to open.
        text: what is typed.
    """

    kind: Literal["tap", "type", "back", "open", "wait"]
    target: str = ""
    text: str = ""

    def __str__(self) -> str:
        """Return the action in words.

        >>> str(Action(kind="type", target="Search", text="tea"))
        "type 'tea' into 'Search'"
        """
        if self.kind == "type":
            return f"type {self.text!r} into {self.target!r}"
        return f"{self.kind} {self.target!r}" if self.target else self.kind


def path_problem(path: object) -> str | None:
    """Return why a path is none inside a workspace, None if it is one.

    >>> path_problem("../secret")
    'leads outside the workspace'
    """
    if not isinstance(path, str) or not path.strip():
        return "is empty"
    if path.startswith(("/", "~")) or "\\" in path or ":" in path:
        return "is not relative"
    parts = path.split("/")
    if ".." in parts:
        return "leads outside the workspace"
    if any(part in ("", ".") or part != part.strip() for part in parts):
        return "has a part that is no name"
    if len(path) > 200 or any(ord(letter) < 32 for letter in path):
        return "is no name for a file"
    return None
