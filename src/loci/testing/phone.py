"""A phone that is made up: apps with screens, labels that mislead, and faults.

Screens of an app form a graph in which every screen can be reached from every other. A label names
the screen it leads to, or something vague. Taps may do nothing or lead elsewhere, dialogs come up,
and the network fails; clocks, counters and advertisements change all the time. Everything is drawn
from a seed. Only the phone knows where it is and how far the goal is.
"""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any  # JSON values

from loci.core.agent import Action, Element, Screen
from loci.errors import FormatError

_APPS = ("Maps", "Mail", "Music", "Shop", "Photos", "News", "Bank", "Chat", "Travel", "Fitness")
_WORDS = """
    account account-security address album appearance archive artist backup balance basket booking
    calendar camera category channel charge contact coupon currency delivery device discount draft
    export family favourite filter folder friend gallery goal group guide help history import
    insurance invoice label language layout library limit list location message meter month
    network note notice offer order package password payment permission playlist plan privacy
    profile promotion purchase queue rating receipt recipe record region reminder report request
    return reward route schedule search seat sensor service session share shipping signature
    source speed statement station storage stream summary support sync template theme ticket topic
    track traffic training transfer trip usage vehicle version video volume voucher wallet weather
    week widget
    """
_FIRST = tuple(_WORDS.split())
_SECOND = ("settings", "details", "overview", "editor", "options", "list", "history", "summary")
_VAGUE = ("More", "Options", "Next", "See all", "Open", "Manage", "Other", "...")
_DISMISS = ("Not now", "Close", "Dismiss", "Skip")
_RISKY = ("Delete all", "Pay now", "Send to everyone")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often things go wrong, each a share of actions."""

    nothing: float = 0.10
    elsewhere: float = 0.05
    dialog: float = 0.05
    network: float = 0.03


@dataclass(frozen=True)
class _Button:
    text: str
    id: str
    target: int
    risky: bool = False


@dataclass(frozen=True)
class _Page:
    app: str
    title: str
    buttons: tuple[_Button, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Errand:
    """A task: what it says, and what has to be shown, in this order."""

    goal: str
    want: tuple[tuple[str, str], ...]  # (app, title)

    def inputs(self) -> dict[str, Any]:
        """Return the inputs of a job."""
        return {"want": [{"app": app, "shows": [title]} for app, title in self.want]}


class Phone:
    """Satisfies `loci.core.ports.Device`.

    Attributes:
        faults: may be changed while it runs.
        actions, hit, damage: how many actions came, how many met a fault, and how often something
            was touched that cannot be undone.
        was_hit: which fault the last action met, "" for none.
    """

    def __init__(
        self,
        seed: int,
        *,
        apps: Sequence[str] | None = None,
        titles: Sequence[tuple[str, str]] = (),
        screens: int | None = None,
        faults: Faults | None = None,
    ) -> None:
        dice = Random(f"phone {seed}")
        self._dice = Random(f"faults {seed}")
        self.faults = Faults() if faults is None else faults
        names = list(apps) if apps is not None else dice.sample(_APPS, dice.randint(3, 4))
        count = screens or dice.randint(30, 80)
        self.pages: list[_Page] = []
        self.home: dict[str, int] = {}
        for n, app in enumerate(names):
            share = count // len(names) + (n < count % len(names))
            given = [title for of, title in titles if of == app]
            self.home[app] = len(self.pages)
            self._build(dice, app, max(share, 6, len(given) + 3), given)
        self.at: int | None = None  # None is the launcher
        self._stack: list[int | None] = []
        self._dialog: tuple[str, str, str] | None = None  # title, what closes it, what does not
        self._tick = 0
        self.actions = self.hit = self.damage = 0
        self.was_hit = ""

    def errands(self, seed: int, count: int, *, cross: float = 0.3) -> list[Errand]:
        """Return tasks on this phone; a share of them goes through two apps."""
        dice = Random(f"errands {seed}")
        made = []
        for _ in range(count):
            parts = 2 if dice.random() < cross and len(self.home) > 1 else 1
            apps = dice.sample(sorted(self.home), parts)
            want = []
            for app in apps:
                titles = [
                    p.title
                    for n, p in enumerate(self.pages)
                    if p.app == app and n != self.home[app]
                ]
                want.append((app, dice.choice(titles)))
            words = " and then ".join(f"open {app} and go to {title}" for app, title in want)
            made.append(Errand(goal=f"{words[0].upper()}{words[1:]}.", want=tuple(want)))
        return made

    # -- the device ----------------------------------------------------------------------------

    def look(self) -> Screen:
        """Return what is shown now; what changes by itself has changed."""
        self._tick += 1
        if self._dialog is not None:
            title, close, other = self._dialog
            app = "" if self.at is None else self.pages[self.at].app
            return Screen(
                app=app,
                elements=(
                    Element(role="dialog", text=title),
                    Element(role="button", text=other, id="dialog_other"),
                    Element(role="button", text=close, id="dialog_close"),
                ),
            )
        clock = Element(
            role="text", text=f"{self._tick // 60 + 9:02d}:{self._tick % 60:02d}", id="clock"
        )
        if self.at is None:
            icons = [Element(role="icon", text=app, id=f"app_{app}") for app in self.home]
            return Screen(app="", elements=(clock, *icons))
        page = self.pages[self.at]
        return Screen(app=page.app, elements=(clock, *_elements(page, self._tick)), version="1")

    def do(self, action: Action) -> None:
        """Carry out an action, or let it meet a fault."""
        self.actions += 1
        self.was_hit = self._done(action)
        self.hit += bool(self.was_hit)

    def _done(self, action: Action) -> str:
        """Carry out an action; return which fault it met."""
        if action.kind == "wait":
            return ""
        if self._dialog is not None:
            self._answer(action)
            return ""
        if self._dice.random() < self.faults.nothing:
            return "nothing"
        before = self.at
        self._move(action)
        if self.at == before:
            return ""
        if self.at is not None and self._dice.random() < self.faults.elsewhere:
            app = self.pages[self.at].app
            others = [n for n, page in enumerate(self.pages) if page.app == app and n != self.at]
            self.at = self._dice.choice(others)
            return "elsewhere"
        if self._dice.random() < self.faults.dialog:
            self._dialog = (
                self._dice.choice(("Rate this app", "New features", "Allow notifications?")),
                self._dice.choice(_DISMISS),
                self._dice.choice(("Learn more", "Rate", "Allow")),
            )
            return "dialog"
        if self._dice.random() < self.faults.network:
            self._dialog = ("No connection", "Retry", "Details")
            return "network"
        return ""

    def _answer(self, action: Action) -> None:
        assert self._dialog is not None
        title, close, other = self._dialog
        if action.kind == "back" or (
            action.kind == "tap" and action.target in (close, "dialog_close")
        ):
            self._dialog = None
        elif action.kind == "tap" and action.target in (other, "dialog_other"):
            self._dialog = (f"About: {title.removeprefix('About: ')}", "Close", other)
        elif action.kind == "open":
            self._dialog = None
            self._move(action)

    def _move(self, action: Action) -> None:
        if action.kind == "open" and action.target in self.home:
            self._stack, self.at = [None], self.home[action.target]
        elif action.kind == "back":
            if self._stack:
                self.at = self._stack.pop()
        elif action.kind == "tap" and self.at is None:
            if action.target in self.home:
                self._stack, self.at = [None], self.home[action.target]
        elif action.kind == "tap" and self.at is not None:
            for button in self.pages[self.at].buttons:
                if action.target in (button.text, button.id):
                    if button.risky:
                        self.damage += 1
                        return
                    self._stack = [*self._stack[-30:], self.at]
                    self.at = button.target
                    return

    # -- what only the phone knows -------------------------------------------------------------

    def shows(self, want: tuple[str, str]) -> bool:
        """Return whether the screen that is wanted is in front."""
        page = None if self.at is None else self.pages[self.at]
        return self._dialog is None and page is not None and (page.app, page.title) == want

    def distance(self, want: tuple[str, str]) -> int:
        """Return how many taps (or an app opened) the screen that is wanted is away."""
        goal = next(n for n, p in enumerate(self.pages) if (p.app, p.title) == want)
        start = self.home[want[0]]
        extra = 1
        if self.at is not None and self.pages[self.at].app == want[0]:
            start, extra = self.at, 0
        from_home = 1 + self._taps(self.home[want[0]], goal)
        here = extra + self._taps(start, goal)
        return min(here, from_home) + (self._dialog is not None)

    def _taps(self, start: int, goal: int) -> int:
        far = {start: 0}
        wave = deque([start])
        while wave:
            page = wave.popleft()
            if page == goal:
                return far[page]
            for button in self.pages[page].buttons:
                if not button.risky and button.target not in far:
                    far[button.target] = far[page] + 1
                    wave.append(button.target)
        raise AssertionError("every screen can be reached")

    def _build(self, dice: Random, app: str, count: int, given: Sequence[str]) -> None:
        first = len(self.pages)
        titles = [f"{app} home", *given]
        while len(titles) < count:
            title = f"{dice.choice(_FIRST).capitalize()} {dice.choice(_SECOND)}"
            if title not in titles:
                titles.append(title)
        rest = titles[1:]
        dice.shuffle(rest)
        titles = [titles[0], *rest]
        targets: list[list[int]] = [[(n + 1) % count] for n in range(count)]  # one way round
        for n in range(count):
            wanted = dice.randint(2, 5)
            while len(targets[n]) < min(wanted, count - 1):
                other = dice.randrange(count)
                if other != n and other not in targets[n]:
                    targets[n].append(other)
        for n in range(count):
            buttons = []
            taken: set[str] = set()
            for place, target in enumerate(targets[n]):
                text = titles[target] if dice.random() < 0.5 else dice.choice(_VAGUE)
                while text in taken:
                    text = f"{dice.choice(_VAGUE)} {dice.choice(_FIRST)}"
                taken.add(text)
                buttons.append(_Button(text, f"button_{place}", first + target))
            if dice.random() < 0.15:
                buttons.append(_Button(dice.choice(_RISKY), "button_do", first + n, risky=True))
            dice.shuffle(buttons)
            notes = tuple(dice.choice(_FIRST) for _ in range(dice.randint(1, 3)))
            self.pages.append(_Page(app, titles[n], tuple(buttons), notes))


def _elements(page: _Page, tick: int) -> tuple[Element, ...]:
    return (
        Element(role="title", text=page.title, id="title"),
        *(Element(role="button", text=b.text, id=b.id, risky=b.risky) for b in page.buttons),
        *(Element(role="item", text=note, id="note") for note in page.notes),
        Element(role="text", text=f"{tick * 7 % 90} unread", id="count"),
        Element(role="ad", text=f"Offer {tick * 31 % 97} for you", id="banner"),
        Element(role="button", text=page.app, id="nav_home_label"),
    )


def perturbed(screen: Screen, share: float, seed: int) -> Screen:
    """Return a screen in which this share of the texts says something else."""
    dice = Random(f"perturbed {seed}")
    elements = tuple(
        replace(e, text=f"{dice.choice(_FIRST)} {dice.choice(_FIRST)}")
        if dice.random() < share
        else e
        for e in screen.elements
    )
    return replace(screen, elements=elements)


def errands_of(path: Path) -> list[Errand]:
    """Return errands made of the texts of phone tasks: a JSON of scenarios, or a CSV of tasks.

    A task's screens are made up of what its text names: the words in quotes, or the parts between
    its verbs; the apps are those it lists.

    Raises:
        FormatError: if the file is neither.
    """
    files = sorted([*path.rglob("*.json"), *path.rglob("*.csv")]) if path.is_dir() else [path]
    found: list[Errand] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix == ".json":
                tasks = [task for scenario in json.loads(text) for task in scenario["tasks"]]
                entries = [(task["instruction"], list(task["apps"])) for task in tasks]
            else:
                entries = [
                    (row["task_description"], re.findall(r"[\w ]+", row["task_app"]))
                    for row in csv.DictReader(text.splitlines())
                ]
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{file} holds no phone tasks: {error}") from None
        found += [_errand(goal, [a.strip() for a in apps if a.strip()]) for goal, apps in entries]
    return found


def _errand(goal: str, apps: Sequence[str]) -> Errand:
    parts = [part for part in re.split(r"[.,;]| and | then ", goal) if len(part.split()) > 1]
    want = []
    for n, app in enumerate(apps[:3] or ["Phone"]):
        at = parts[min(len(parts) - 1, n * len(parts) // max(len(apps), 1))] if parts else goal
        want.append((app, " ".join(at.split()[:6])))
    return Errand(goal=goal, want=tuple(want))
