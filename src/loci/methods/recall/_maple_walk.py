"""One job of MAPLE under way: what was expected of the last action, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any  # records are JSON values

from loci.core.agent import Action, Job, Record, Screen
from loci.methods.recall._maple_fsm import (
    Fsm,
    State,
    Want,
    best_button,
    closing,
    overlap,
    shows_of,
    tap,
    usual,
)
from loci.methods.recall.base import Tools
from loci.text.ladder import Task
from loci.text.quote import AS_DATA, listed

if TYPE_CHECKING:
    from loci.methods.recall.maple import Maple


class Walk:
    """One job under way: what was expected of the last action, and what to do next.

    Attributes:
        run: what is kept of it in the records.
        status: how it ended, once no action is left.
    """

    def __init__(
        self,
        method: Maple,
        job: Job,
        wants: Sequence[Want],
        confirm: frozenset[str],
        tools: Tools,
    ) -> None:
        self.method, self.wants, self.confirm, self.tools = method, wants, confirm, tools
        states = tools.records.all("state/")
        self.fsm = Fsm({key.removeprefix("state/"): r.value for key, r in states.items()})
        asked = [job.goal, [[w.app, list(w.shows)] for w in wants]]
        name = blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()
        held = tools.records.get("run")
        apps = dict(held.value["apps"]) if held is not None else {}
        fresh = {"name": name, "at": 0, "expect": None, "tried": {}, "ended": False}
        fresh |= {"trail": [], "rounds": 0}
        going_on = held is not None and held.value["name"] == name and not held.value["ended"]
        self.run: dict[str, Any] = (
            json.loads(json.dumps(dict(held.value))) if going_on and held else fresh
        )
        self.run["apps"] = apps
        self.status = "done"

    def step(self, screen: Screen) -> tuple[Action | None, str]:
        """Take in a screen; return the next action and why, or None and why it ends."""
        over = closing(screen)
        if over is not None and self.method.conditions:
            # What was expected still is: the screen below is compared once the dialog is gone.
            action = Action(kind="tap", target=over.text) if over.text else Action(kind="back")
            return self._next(action, None, "a dialog lies over the screen; it is closed")
        state, known = self.fsm.observe(screen)
        verdict = self._verify(state)
        while self.run["at"] < len(self.wants):
            if not self.wants[self.run["at"]].met_by(screen.app, shows_of(screen)):
                break
            self.run |= {"at": self.run["at"] + 1, "tried": {}, "rounds": 0}
        if self.run["at"] == len(self.wants):
            count = len(self.wants)
            why = f"{count} screen{'' if count == 1 else 's'} reached; {verdict}"
            self.run |= {"ended": True, "expect": None}
            self._keep(why)
            return None, why
        chosen, expect, why = self._choose(state, screen)
        if chosen is None:
            self.run["ended"] = self.status == "failed"
            self._keep(why)
            return None, why
        here = f"at {state.beacon or state.id}{'' if known else ', new'}"
        return self._next(chosen, (state, expect), f"{here}; {verdict}; {why}")

    def _next(
        self, action: Action, known: tuple[State, str | None] | None, why: str
    ) -> tuple[Action, str]:
        if known is not None:
            state, expect = known
            self.run["expect"] = {
                "from": state.id,
                "action": {"kind": action.kind, "target": action.target, "text": action.text},
                "to": expect,
            }
            here = self.run["tried"]
            here[f"{state.id} {action}"] = here.get(f"{state.id} {action}", 0) + 1
        self._keep(f"{action}: {why}")
        return action, why

    # -- what came of the last action ----------------------------------------------------------

    def _verify(self, state: State) -> str:
        """Compare the state with the one predicted, and learn from what came."""
        expect, self.run["expect"] = self.run["expect"], None
        before = self.fsm.states.get(expect["from"]) if expect is not None else None
        if expect is None or before is None:
            return "begun"
        action = Action(**expect["action"])
        if action.kind == "open":  # the same from everywhere, so it is no edge of a state
            led = self.run["apps"].setdefault(action.target, {})
            led[state.id] = led.get(state.id, 0) + (state.id != before.id or not led)
            self.run["trail"] = []
            return f"{action} led here" if state.id != before.id else f"{action} did nothing"
        if action.kind == "back":  # where it leads depends on how one came, so it is no edge either
            if state.id == before.id:
                return "going back did nothing"
            self.run["trail"] = self.run["trail"][:-1]
            return "went back"
        if not self.method.conditions:
            edge = self.fsm.edge(before, action)  # the last time counts, whatever it was
            edge["to"] = {state.id: 1}
            self.fsm.changed[before.id] = None
            return f"{action} led here"
        if state.id == before.id:
            self.fsm.record(before, action, None)
            return f"{action} did nothing"
        self.fsm.record(before, action, state)
        self.run["trail"] = [*self.run["trail"][-20:], before.id]
        if expect["to"] is None or expect["to"] == state.id:
            return f"{action} led here" + (" as predicted" if expect["to"] else "")
        return f"{action} led elsewhere than predicted"

    # -- what to do next -----------------------------------------------------------------------

    def _choose(self, state: State, screen: Screen) -> tuple[Action | None, str | None, str]:
        """Return the next action, the state it should lead to, and why."""
        want = self.wants[self.run["at"]]
        goals = {id for id, one in self.fsm.states.items() if want.met_by(one.app, one.shows)}
        behind = self.run["trail"][-1] if self.run["trail"] else None
        most = 2 + self.method.patience
        blocked = frozenset(step for step, times in self.run["tried"].items() if times >= most)
        path = self.fsm.path(state, goals, self.run["apps"], behind, blocked)
        if path:
            action, to = path[0]
            return action, to, f"{len(path)} known steps to {_named(want)}"
        if want.app and screen.app != want.app:
            first = usual(self.run["apps"].get(want.app, {})) or None
            return Action(kind="open", target=want.app), first, f"{want.app} is another app"
        risky = [
            b
            for b in state.buttons
            if b["risky"] and overlap(str(b["text"]), want.words) and b["text"] in self.confirm
        ]
        untried = [b for b in (*risky, *self.fsm.untried(state)) if self._fresh(state, tap(b))]
        if untried:
            button = self._pick(untried, want)
            return tap(button), None, f"untried, and looking for {_named(want)}"
        # Elsewhere: the nearest state with something untried; what says more is worth a longer way.
        open_ends: dict[str, float] = {}
        for id, one in self.fsm.states.items():
            rest = self.fsm.untried(one) if (not want.app or one.app == want.app) else []
            if id != state.id and rest:
                said = max(overlap(str(b["text"]), want.words) for b in rest)
                open_ends[id] = 3.0 * (1.0 - said)
        path = self.fsm.path(state, open_ends, self.run["apps"], behind, blocked)
        if path:
            return path[0][0], path[0][1], "on the way to something untried"
        refused = [b["text"] for b in state.buttons if b["risky"] and b["text"] not in self.confirm]
        opens = (Action(kind="open", target=app) for app in self._apps(want))
        for action in (Action(kind="back"), *opens):
            if self._fresh(state, action):
                return action, None, "nothing else is left here"
        if self.run["rounds"] < self.method.patience:  # faults may be over: begin again
            self.run |= {"tried": {}, "rounds": self.run["rounds"] + 1}
            return Action(kind="back"), None, "all was tried; once more from the beginning"
        if refused:
            self.status = "asks"
            return None, None, f"only risky buttons are left: {', '.join(refused)}; confirm one"
        self.status = "failed"
        return None, None, f"every way was tried, and {_named(want)} was never shown"

    def _apps(self, want: Want) -> list[str]:
        return [want.app] if want.app else list(self.run["apps"])

    def _fresh(self, state: State, action: Action) -> bool:
        """Return whether an action was not tried too often from a state in this job."""
        most = 2 + self.method.patience
        return bool(self.run["tried"].get(f"{state.id} {action}", 0) < most)

    def _pick(self, buttons: Sequence[Mapping[str, Any]], want: Want) -> Mapping[str, Any]:
        """Return a button: the one that says most, or the one a model names."""
        texts = [str(button["text"]) for button in buttons]
        task: Task[int] = Task(
            name="choose a button",
            messages=(
                {
                    "role": "user",
                    "content": f"Which button leads to {_named(want)}? Reply with its number.\n"
                    f"{AS_DATA}\n" + listed("buttons", [f"{n}: {t}" for n, t in enumerate(texts)]),
                },
            ),
            schema={
                "type": "object",
                "properties": {
                    "number": {"type": "integer", "minimum": 0, "maximum": len(texts) - 1}
                },
                "required": ["number"],
            },
            read=lambda reply: (int(reply["number"]), ()),
            rules=lambda: buttons.index(best_button(buttons, want.words)),
        )
        return buttons[self.tools.ladder.run(task)[0]]

    def _keep(self, why: str) -> None:
        """Write the states that changed and where the job is."""
        states = [self.fsm.states[id] for id in self.fsm.changed]
        records = [
            Record(
                key=f"state/{state.id}",
                text=f"{state.app or 'launcher'}: {state.beacon or state.id}",
                value=state.to_json(),
            )
            for state in states
        ]
        text = f"{self.run['at']} of {len(self.wants)} screens reached"
        self.tools.records.put([*records, Record(key="run", text=text, value=self.run)], why)
        self.fsm.changed = {}


def _named(want: Want) -> str:
    return ", ".join(map(repr, want.shows)) + (f" in {want.app}" if want.app else "")
