"""The state machines of MAPLE: screens as states, actions as edges, and ways through them.

A state is what stays of a screen: its elements without clocks, counters and advertisements. Another
screen is the same state if enough of their elements are the same:

    alike(a, b) = |a & b| / |a | b|           over (role, id, text without numbers)
    same        = alike >= 0.4, or the same beacon (title) and alike >= 0.2

An edge counts what came of an action: which states it led to, and how often nothing happened. The
way to a goal is the one that most likely succeeds:

    p(edge) = (n_ok + 1) / (n + 2),   cost = 1 - log p(edge)
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any  # JSON values

from loci.core.agent import Action, Element, Screen
from loci.errors import ParameterError
from loci.text.stem import STOP_WORDS, fold, stems

ALIKE, ALIKE_WITH_BEACON = 0.4, 0.2  # tuned on made-up phones of seeds 0 to 7
LAUNCHER = "launcher"
_CHANGES = ("text", "ad", "clock", "status")  # roles whose text comes and goes
_NUMBER = re.compile(r"\d+")
_CLOSES = re.compile(
    r"^(x|ok|okay|close|dismiss|cancel|not now|no thanks|no|skip|later|maybe later|deny|got it|"
    r"retry|try again|continue|ignore|back)$"
)


@dataclass
class State:
    """One screen as it is known.

    Attributes:
        edges: {action as text: {"action", "to": {state: times}, "nothing": times}}.
        visits: how often it was entered.
    """

    id: str
    app: str
    place: str
    version: str
    beacon: str
    keys: frozenset[str]
    shows: frozenset[str]
    buttons: tuple[Mapping[str, Any], ...]
    edges: dict[str, dict[str, Any]] = field(default_factory=dict)
    visits: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {
            "app": self.app,
            "place": self.place,
            "version": self.version,
            "beacon": self.beacon,
            "keys": sorted(self.keys),
            "shows": sorted(self.shows),
            "buttons": [dict(button) for button in self.buttons],
            "edges": self.edges,
            "visits": self.visits,
        }

    @classmethod
    def from_json(cls, id: str, value: Mapping[str, Any]) -> State:
        """Return the state that `to_json` wrote."""
        return cls(
            id=id,
            app=value["app"],
            place=value["place"],
            version=value["version"],
            beacon=value["beacon"],
            keys=frozenset(value["keys"]),
            shows=frozenset(value["shows"]),
            buttons=tuple(value["buttons"]),
            edges={text: dict(edge) for text, edge in value["edges"].items()},
            visits=value["visits"],
        )


@dataclass(frozen=True)
class Want:
    """What has to be shown: all of these texts, in this app (any if "")."""

    app: str
    shows: tuple[str, ...]

    def met_by(self, app: str, shows: frozenset[str]) -> bool:
        """Return whether a screen shows it."""
        if self.app and fold(self.app) != fold(app):
            return False
        return all(any(fold(text) in one for one in shows) for text in self.shows)

    @property
    def words(self) -> frozenset[str]:
        """The stems of what is wanted."""
        return frozenset(s for text in self.shows for s in stems(text) if s not in STOP_WORDS)


class Fsm:
    """All states known, of all apps, and what an observation changed.

    Attributes:
        changed: ids of states changed since this was made.
    """

    def __init__(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        self.states = {id: State.from_json(id, value) for id, value in states.items()}
        self.changed: dict[str, None] = {}

    # -- knowing where one is ------------------------------------------------------------------

    def match(self, screen: Screen) -> State | None:
        """Return the known state that a screen shows, None if it is new."""
        keys, beacon = keys_of(screen), beacon_of(screen)
        best, most = None, 0.0
        for state in self.states.values():
            if (state.app, state.place, state.version) != (
                screen.app,
                screen.place,
                screen.version,
            ):
                continue
            both = len(keys & state.keys) / max(len(keys | state.keys), 1)
            titled = bool(beacon) and beacon == state.beacon
            enough = ALIKE_WITH_BEACON if titled else ALIKE
            score = both + 0.5 * titled
            if both >= enough and score > most:
                best, most = state, score
        return best

    def observe(self, screen: Screen) -> tuple[State, bool]:
        """Return the state of a screen, made if it is new, and whether it was known.

        Raises:
            ParameterError: if nothing is on the screen.
        """
        if not screen.elements:
            raise ParameterError(
                "a screen without elements cannot be known again", value=screen.app
            )
        state = self.match(screen)
        if state is not None:
            state.visits += 1
            self.changed[state.id] = None
            return state, True
        keys, beacon = keys_of(screen), beacon_of(screen)
        text = "\n".join([screen.app, screen.place, screen.version, *sorted(keys)])
        name = blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()
        state = State(
            id=LAUNCHER if not screen.app and not beacon else name,
            app=screen.app,
            place=screen.place,
            version=screen.version,
            beacon=beacon,
            keys=keys,
            shows=shows_of(screen),
            buttons=tuple(
                {"text": e.text, "id": e.id, "risky": e.risky} for e in touchable(screen)
            ),
            visits=1,
        )
        self.states[state.id] = state
        self.changed[state.id] = None
        return state, False

    # -- learning what actions do --------------------------------------------------------------

    def edge(self, state: State, action: Action) -> dict[str, Any]:
        """Return what is known of an action in a state, made if nothing is."""
        fresh = {"action": _action_json(action), "to": {}, "nothing": 0}
        return state.edges.setdefault(str(action), fresh)

    def record(self, state: State, action: Action, to: State | None) -> None:
        """Count what came of an action: the state it led to, or None for nothing."""
        edge = self.edge(state, action)
        if to is not None:
            edge["to"][to.id] = edge["to"].get(to.id, 0) + 1
            known = sum(edge["to"].values()) + edge["nothing"]
            if known >= 10:  # what hardly ever comes of it is no way to go
                edge["to"] = {id: n for id, n in edge["to"].items() if n / known >= 0.1}
        else:
            edge["nothing"] += 1
        self.changed[state.id] = None

    # -- ways ----------------------------------------------------------------------------------

    def ways(self, state: State) -> list[tuple[Action, str, float]]:
        """Return the actions that lead on from a state, where to, and how likely."""
        found = []
        for edge in state.edges.values():
            total = sum(edge["to"].values()) + edge["nothing"]
            for id, times in edge["to"].items():
                if id in self.states:
                    found.append((_action_of(edge["action"]), id, (times + 1) / (total + 2)))
        return found

    def path(
        self,
        start: State,
        goals: Mapping[str, float] | set[str],
        apps: Mapping[str, Mapping[str, int]],
        back: str | None = None,
        blocked: frozenset[str] = frozenset(),
    ) -> list[tuple[Action, str]]:
        """Return the likeliest way to one of these states, [] if none is known or it is there.

        Args:
            goals: states, or states with what it costs to end there.
            apps: {app: {state: how often opening the app led there}}; it is opened from anywhere.
            back: the state that going back leads to.
            blocked: steps not to take, as "STATE ACTION".
        """
        ends = dict.fromkeys(goals, 0.0) if isinstance(goals, set) else dict(goals)
        best: dict[str, float] = {start.id: 0.0}
        came: dict[str, tuple[str, Action]] = {}
        heap = [(0.0, start.id)]
        found, cheapest = None, math.inf
        while heap:
            cost, id = heapq.heappop(heap)
            if cost > best.get(id, math.inf) or cost >= cheapest:
                continue
            if id in ends and cost + ends[id] < cheapest:
                found, cheapest = id, cost + ends[id]
            ways = self.ways(self.states[id])
            if id == start.id:
                if back in self.states and back != start.id:
                    ways.append((Action(kind="back"), str(back), 0.8))
                for app, led in apps.items():
                    first = usual(led)
                    if first in self.states and first != start.id:
                        likely = (led[first] + 1) / (sum(led.values()) + 2)
                        ways.append((Action(kind="open", target=app), first, likely))
            for action, to, likely in ways:
                if f"{id} {action}" in blocked:
                    continue
                dearer = cost + 1.0 - math.log(likely)
                if dearer < best.get(to, math.inf):
                    best[to] = dearer
                    came[to] = (id, action)
                    heapq.heappush(heap, (dearer, to))
        steps: list[tuple[Action, str]] = []
        while found is not None and found != start.id:
            before, action = came[found]
            steps.insert(0, (action, found))
            found = before
        return steps

    def untried(self, state: State) -> list[Mapping[str, Any]]:
        """Return the buttons of a state that were never tried, or only without effect, once."""
        found = []
        for button in state.buttons:
            edge = state.edges.get(str(tap(button)))
            if button["risky"]:
                continue
            if edge is None or (not edge["to"] and edge["nothing"] < 2):
                found.append(button)
        return found


def usual(led: Mapping[str, int]) -> str:
    """Return the state that an app most often opens with, "" if it was never opened."""
    return max(led, key=lambda id: (led[id], id)) if led else ""


def tap(button: Mapping[str, Any]) -> Action:
    """Return the action of touching a button."""
    return Action(kind="tap", target=str(button["text"] or button["id"]))


def touchable(screen: Screen) -> list[Element]:
    """Return what can be touched on a screen."""
    return [e for e in screen.elements if e.role in ("button", "icon", "link", "tab")]


def closing(screen: Screen) -> Element | None:
    """Return what closes the dialog that lies over a screen, None if there is no dialog."""
    if not any(e.role == "dialog" for e in screen.elements):
        return None
    buttons = touchable(screen)
    fits = [e for e in buttons if _CLOSES.match(fold(e.text).strip())]
    return fits[0] if fits else buttons[-1] if buttons else Element(role="button", text="")


def beacon_of(screen: Screen) -> str:
    """Return the short name of a screen: its title, without numbers."""
    for element in screen.elements:
        if element.role in ("title", "dialog"):
            return _masked(element.text)
    return ""


def keys_of(screen: Screen) -> frozenset[str]:
    """Return what stays of a screen: its elements, without what changes by itself."""
    return frozenset(
        f"{e.role}|{e.id}|{_masked(e.text)}" for e in screen.elements if e.role not in _CHANGES
    )


def shows_of(screen: Screen) -> frozenset[str]:
    """Return the texts that tell where one is: titles, items and text, no buttons."""
    wanted = [e for e in screen.elements if e.role not in ("button", "icon", "link", "tab", "ad")]
    return frozenset(fold(e.text) for e in wanted if e.text and e.role not in ("clock", "status"))


def _masked(text: str) -> str:
    return _NUMBER.sub("#", fold(text)).strip()


def _action_json(action: Action) -> dict[str, str]:
    return {"kind": action.kind, "target": action.target, "text": action.text}


def _action_of(value: Mapping[str, str]) -> Action:
    kind: Any = value["kind"]
    return Action(kind=kind, target=value["target"], text=value["text"])


def read_screen(given: object) -> Screen:
    """Return a screen that came as JSON.

    Raises:
        ParameterError: if it is none.
    """
    form = '{"app": "Mail", "elements": [{"role": "button", "text": "Send", "id"?, "risky"?}]}'
    if not isinstance(given, dict) or not isinstance(given.get("elements"), list):
        raise ParameterError("this is no screen", value=str(given)[:80], allowed=form)
    for name in given:
        if name not in ("app", "elements", "place", "version"):
            raise ParameterError("a screen has no such part", value=name, allowed=form)
    parts = {name: given.get(name, "") for name in ("app", "place", "version")}
    if not all(isinstance(part, str) for part in parts.values()):
        raise ParameterError("app, place and version of a screen are texts", value=str(parts)[:80])
    elements: list[Element] = []
    for one in given["elements"]:
        good = (
            isinstance(one, dict)
            and set(one) <= {"role", "text", "id", "risky"}
            and all(isinstance(one.get(name, ""), str) for name in ("role", "text", "id"))
            and isinstance(one.get("risky", False), bool)
        )
        if not good or not one.get("role"):
            raise ParameterError(
                "this is no element of a screen", value=str(one)[:80], allowed=form
            )
        elements.append(
            Element(
                role=one["role"],
                text=one.get("text", ""),
                id=one.get("id", ""),
                risky=one.get("risky", False),
            )
        )
    if not elements:
        raise ParameterError("a screen without elements cannot be known again", allowed=form)
    return Screen(elements=tuple(elements), **parts)


def overlap(text: str, words: frozenset[str]) -> float:
    """Return which share of the wanted words a text has."""
    return len(words & set(stems(text))) / len(words) if words else 0.0


def best_button(buttons: Sequence[Mapping[str, Any]], words: frozenset[str]) -> Mapping[str, Any]:
    """Return the button whose text says most of what is wanted, the first of equals."""
    return max(buttons, key=lambda button: overlap(str(button["text"]), words))
