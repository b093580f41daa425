"""MAPLE: a state machine of every app, learnt while it is used, that finds its way back.

L. Guo et al., "MAPLE: A Mobile Agent with Persistent Finite State Machines for Structured Task
Reasoning", 2025, arXiv:2505.23596 (later Agent-SAMA).

Screens become states with a beacon; what an action leads to becomes an edge with counts. Before an
action the next state is predicted, after it the screen is compared: as predicted, nothing happened,
or something else came. Dialogs are closed, what did nothing is tried again, a wrong turn is left on
the likeliest known way. A goal that was seen before is walked to directly, whichever task saw it:

    known goal:    likeliest path, by what edges did so far
    unknown goal:  the untried button that says most of what is wanted, here or on a near state

Differs from the paper: screens come as lists of elements, no vision; a plan is a list of screens
that must be shown; the policy for unknown screens is a rule unless a model is asked. Prompts of the
source are unpublished.
Not for: apps whose screens look alike and differ only in numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar  # inputs are JSON values

from loci.core.agent import Job, Outcome, Screen, Step
from loci.core.method import About, Frees, Kind, Param
from loci.errors import MethodError, ParameterError
from loci.methods.recall._maple_fsm import Want, read_screen, shows_of
from loci.methods.recall._maple_walk import Walk
from loci.methods.recall.base import Act, Tools, inputs_of

_QUOTED = re.compile(r"['\"“]([^'\"”]{2,60})['\"”]")


@dataclass(frozen=True, kw_only=True)
class Maple(Act):
    """Walks through apps by states it learnt, checks every step, and finds its way back."""

    about = About(
        name="maple",
        kind=Kind.RECALL,
        paper="arXiv:2505.23596",
        idea="a persistent state machine of every app: predict, verify, recover",
        frees=Frees.NOTHING,
        lossy=False,
        reconstruction="matching of screens, edge costs, exploration and recovery",
    )
    takes: ClassVar[Mapping[str, str]] = {
        "want": 'screens to reach, in order: [{"app": "Mail", "shows": ["Drafts"]}]; without it '
        "the words in quotes in the goal",
        "screen": "what is shown now, where no device is connected: the next action is returned",
        "confirm": "texts of risky buttons that may be touched",
    }
    example: ClassVar[Job] = Job(
        goal="Open Mail and go to the drafts.",
        inputs={"want": [{"app": "Mail", "shows": ["Drafts list"]}]},
    )

    conditions: Annotated[bool, Param(help="whether outcomes are verified", source="ablation")] = (
        True
    )
    patience: Annotated[int, Param(help="recoveries before a new plan", ge=1, source="n = 2")] = 2

    def act(self, job: Job, tools: Tools) -> Outcome:
        """Act on the device until the goal is shown, one action a step.

        The output has "reached", how many of the screens that were wanted have been shown; for a
        screen that was given instead of a device also the "action" to carry out next. Status
        "asks" then means: do it and give the next screen. It also means that something risky
        would have to be touched that was not confirmed.
        """
        wants, given, confirm = self._read(job)
        if given is None and tools.device is None:
            raise MethodError(
                "maple needs a device, or a screen",
                way_out=[
                    'give what is shown: inputs={"screen": {...}}',
                    "or memory.agent(device=)",
                ],
            )
        walk = Walk(self, job, wants, confirm, tools)
        steps: list[Step] = []
        while True:
            screen = given if given is not None else tools.device.look()  # type: ignore[union-attr]
            action, why = walk.step(screen)
            output: dict[str, Any] = {"reached": walk.run["at"], "wanted": len(wants)}
            if action is None:
                status: Any = walk.status
                return Outcome(status=status, why=why, output=output, steps=tuple(steps))
            steps.append(Step(did=str(action), why=why))
            if given is not None:
                told = {"kind": action.kind, "target": action.target, "text": action.text}
                asks = f"carry out the action and give the next screen: {why}"
                return Outcome(
                    status="asks", why=asks, output={**output, "action": told}, steps=tuple(steps)
                )
            tools.device.do(action)  # type: ignore[union-attr]
            if len(steps) >= job.max_steps and not self._is_there(walk, tools):
                why = f"{job.max_steps} actions were allowed; {walk.run['at']} screens reached"
                return Outcome(status="stopped", why=why, output=output, steps=tuple(steps))

    def _is_there(self, walk: Walk, tools: Tools) -> bool:
        """Return whether the last action of a job has shown the last screen."""
        screen = tools.device.look()  # type: ignore[union-attr]
        last = walk.run["at"] == len(walk.wants) - 1
        return last and walk.wants[-1].met_by(screen.app, shows_of(screen))

    def _read(self, job: Job) -> tuple[list[Want], Screen | None, frozenset[str]]:
        given = inputs_of(self, job)
        want, confirm = given.get("want"), given.get("confirm", [])
        if "want" in given and (
            not isinstance(want, list)
            or not want
            or not all(
                isinstance(one, dict)
                and set(one) <= {"app", "shows"}
                and isinstance(one.get("app", ""), str)
                and isinstance(one.get("shows"), list)
                and one["shows"]
                and all(isinstance(text, str) and text.strip() for text in one["shows"])
                for one in want
            )
        ):
            raise ParameterError(
                "maple.want is a list of screens",
                value=str(want)[:80],
                allowed='[{"app": "Mail", "shows": ["Drafts"]}, ...]',
            )
        if not isinstance(confirm, list) or not all(isinstance(text, str) for text in confirm):
            raise ParameterError("maple.confirm is a list of texts", value=str(confirm)[:80])
        wants = [Want(one.get("app", ""), tuple(one["shows"])) for one in want or ()]
        if not wants:
            wants = [Want("", (text,)) for text in _QUOTED.findall(job.goal)]
        if not wants:
            raise ParameterError(
                "the goal names no screen",
                value=job.goal,
                allowed="a text that is shown there, in quotes, or the input want",
            )
        screen = read_screen(given["screen"]) if "screen" in given else None
        return wants, screen, frozenset(confirm)
