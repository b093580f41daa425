"""Phones: does knowing where one is help to get through apps in which things go wrong?

Made-up phones (`testing.phone`) with screens that lead to each other, labels that mislead, taps
that do nothing or lead elsewhere, dialogs and a network that fails. The rival is reactive: it takes
the button that says most of what is wanted, any if none does, closes dialogs, remembers nothing;
the greedy one is the same and takes dialogs for screens like others.
Both have the same actions and meet faults of the same odds. `again` does the same tasks a second
time with what was learnt; two ablations leave out verification, and what earlier tasks learnt. With
--data the texts and apps of tasks come from files of phone tasks; where their screens lead is still
made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, cast  # figures are JSON values

from loci.bench.cards import Row
from loci.bench.stats import mean, paired_difference
from loci.bench.suite import Context
from loci.core.agent import Action, Job, Screen
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.recall._maple_fsm import Fsm, Want, closing, overlap, shows_of, touchable
from loci.methods.recall.base import Tools
from loci.methods.recall.maple import Maple
from loci.testing.agents import DictRecords
from loci.testing.phone import Errand, Faults, Phone, errands_of, perturbed

ABOUT = "find the way through apps in which things go wrong; made-up phones, task texts with --data"
KINDS = ("recall",)
METHODS = ("maple",)
DEFAULT = ("maple",)
FIRST_SEED = 1000  # phones below were looked at while the method was written
PHONES, QUICK_PHONES = 20, 2
ERRANDS = 10
MOST_ACTIONS = 60
WITHIN = 4  # actions in which a fault must be got over
NOISE = 0.2  # share of texts that differ when screens are matched
_OPTIONS = ("phones", "errands")

Act = Callable[[Phone, Errand], bool]


class Watched(Phone):
    """A phone that notes which actions bring the goal nearer, and whether faults are got over.

    Attributes:
        right: one entry for every action that met no fault: whether it came nearer.
        over: one entry for every fault: whether the goal was nearer than before it soon after.
    """

    def begin(self, errand: Errand) -> None:
        """Watch a task from now on."""
        self.left = list(errand.want)
        self.right: list[float] = []
        self.over: list[float] = []
        self._open: list[tuple[int, int]] = []  # (distance before the fault, actions left)

    def do(self, action: Action) -> None:
        """Carry out an action and look how far the goal is then."""
        before = self._far()
        super().do(action)
        while self.left and self.shows(self.left[0]):
            del self.left[0]
        after = self._far()
        still = []
        for far, rest in self._open:
            if after < far:
                self.over.append(1.0)
            elif rest == 1:
                self.over.append(0.0)
            else:
                still.append((far, rest - 1))
        self._open = still
        if self.was_hit:
            self._open.append((before, WITHIN))
        else:
            self.right.append(float(after < before))

    def end(self) -> None:
        """Count the faults that were never got over."""
        self.over += [0.0] * len(self._open)
        self._open = []

    def _far(self) -> int:
        return sum(self.distance(want) if n == 0 else 20 for n, want in enumerate(self.left))


def reactive(phone: Phone, errand: Errand, seed: int, *, closes: bool = True) -> bool:
    """Take what says most on every screen; return whether all was shown within the actions.

    Args:
        closes: whether it knows how to close a dialog; else that is a screen like any other.
    """
    dice = Random(f"reactive {seed}")
    wants = [Want(app, (title,)) for app, title in errand.want]
    while wants:
        screen = phone.look()
        if closing(screen) is None and wants[0].met_by(screen.app, shows_of(screen)):
            del wants[0]
            continue
        if phone.actions >= MOST_ACTIONS:
            return False
        phone.do(_reaction(screen, wants[0], dice, closes=closes))
    return True


def _reaction(screen: Screen, want: Want, dice: Random, *, closes: bool) -> Action:
    over = closing(screen)
    if over is not None and closes:
        return Action(kind="tap", target=over.text)
    if screen.app != want.app:
        return Action(kind="open", target=want.app)
    buttons = [e for e in touchable(screen) if not e.risky]
    most = max((overlap(e.text, want.words) for e in buttons), default=0.0)
    if most == 0.0 and dice.random() < 0.1:
        return Action(kind="back")
    best = [e for e in buttons if overlap(e.text, want.words) == most]
    return Action(kind="tap", target=dice.choice(best).text)


def run(context: Context) -> dict[str, Any]:
    """Return success, recovery, accuracy and actions of the method, its ablations and the rival."""
    for name in context.options:
        if name not in _OPTIONS:
            raise ParameterError("no such option", value=name, allowed=", ".join(_OPTIONS))
    (found,) = catalogue.parse_chain((context.methods or DEFAULT)[0], "recall")
    maple = cast(Maple, found)
    texts = errands_of(context.data) if context.data is not None else []
    phones = int(context.options.get("phones", QUICK_PHONES if context.quick else PHONES))
    each = int(context.options.get("errands", 4 if context.quick else ERRANDS))
    seeds = [FIRST_SEED + context.seed + n for n in range(phones)]
    table = _Table()
    for done, seed in enumerate(seeds):
        context.progress("phones", done, phones)
        errands = Phone(seed).errands(seed, each)
        _phone(table, maple, errands, seed, lambda seed=seed: Watched(seed))  # type: ignore[misc]
    result: dict[str, Any] = {
        "method": str(maple),
        "seeds": [seeds[0], seeds[-1]],
        "tasks": phones * each,
        **table.figures(),
        "matching": matching(seeds),
    }
    if texts:
        told = _Table()
        for done, errand in enumerate(texts):
            context.progress("task texts", done, len(texts))
            apps = list(dict.fromkeys([*(app for app, _ in errand.want), "Clock", "Files"]))

            def make(n: int = done, e: Errand = errand, a: Sequence[str] = apps) -> Watched:
                return Watched(n, apps=a, titles=e.want, screens=15 * len(a))

            _phone(told, maple, [errand], done, make)
        result["texts"] = {"tasks": len(texts), **told.figures()}
    return result


def matching(seeds: Sequence[int]) -> dict[str, float]:
    """Return pairwise precision, recall and F1 of states, for screens of which a share differs."""
    hits = given = wanted = 0
    for seed in seeds:
        phone = Phone(seed, faults=Faults(nothing=0, elsewhere=0, dialog=0, network=0))
        fsm = Fsm({})
        found: list[tuple[str, int]] = []
        for again in range(4):
            for page in range(len(phone.pages)):
                phone.at = page
                screen = phone.look()
                if again:
                    screen = perturbed(screen, NOISE, seed * 10_000 + page * 10 + again)
                found.append((fsm.observe(screen)[0].id, page))
        hits += _pairs([f"{state} {page}" for state, page in found])
        given += _pairs([state for state, _ in found])
        wanted += _pairs([str(page) for _, page in found])
    precision, recall = hits / max(given, 1), hits / max(wanted, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"precision": precision, "recall": recall, "f1": f1}


def card_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return success, recovery, accuracy and actions beside those of the reactive agent."""
    ways = result["ways"]
    names = {"reactive": "reactive", "greedy": "greedy"}
    names |= {"unverified": "not verified", "forgetful": "nothing kept"}
    metrics: dict[str, dict[str, Any]] = {}
    for what in ("success", "recovery", "accuracy", "actions"):
        metrics[what] = {
            "this": ways["maple"][what]["value"],
            "rivals": {name: ways[way][what]["value"] for way, name in names.items()},
        }
    metrics["actions_again"] = {
        "this": ways["again"]["actions"]["value"],
        "rivals": {
            "the first time": ways["maple"]["actions"]["value"],
            "nothing kept": ways["forgetful"]["actions"]["value"],
        },
    }
    metrics["matching_f1"] = {"this": result["matching"]["f1"]}
    told = result["texts"]["ways"] if "texts" in result else {}
    for what in ("success", "recovery", "accuracy", "actions"):
        if told and all(what in told[way] for way in ("maple", "reactive", "greedy")):
            metrics[f"{what}_of_task_texts"] = {
                "this": told["maple"][what]["value"],
                "rivals": {name: told[name][what]["value"] for name in ("reactive", "greedy")},
            }
    success = ways["maple"]["success"]
    return [
        Row(
            method=result["method"],
            kind="recall",
            metrics=metrics,
            interval={"success": (success["low"], success["high"])},
            seeds=tuple(result["seeds"]),
            ratio={
                "actions": ways["maple"]["actions"]["value"] / ways["reactive"]["actions"]["value"],
                "actions_again": ways["again"]["actions"]["value"]
                / ways["maple"]["actions"]["value"],
            },
        )
    ]


# -- private ----------------------------------------------------------------------------------


class _Table:
    """What each way of working did, task by task."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, way: str, phone: Watched, *, good: bool) -> None:
        """Note how a task ended."""
        phone.end()
        mine = self.values[way]
        mine["success"].append(float(good))
        mine["actions"].append(float(phone.actions))
        mine["recovery"] += phone.over
        mine["accuracy"] += phone.right
        mine["damage"].append(float(phone.damage))

    def figures(self) -> dict[str, Any]:
        """Return means with intervals, and the difference to the rival."""
        ours, theirs = self.values["maple"], self.values["reactive"]
        return {
            "ways": {
                way: {what: mean(values).to_json() for what, values in mine.items() if values}
                for way, mine in self.values.items()
            },
            "over_reactive": paired_difference(ours["success"], theirs["success"]).to_json(),
        }


def _phone(
    table: _Table, maple: Maple, errands: Sequence[Errand], seed: int, make: Callable[[], Watched]
) -> None:
    """Do the errands of one phone in every way, one after the other as a person would."""
    kept: dict[str, DictRecords] = {"maple": DictRecords(), "unverified": DictRecords()}
    blind = replace(maple, conditions=False)
    for way in ("greedy", "reactive", "maple", "again", "forgetful", "unverified"):
        for number, errand in enumerate(errands):
            phone = make()
            # The same faults for everybody on the same task; other ones when it is done again.
            phone._dice = Random(f"{seed} {number} {way == 'again'}")
            phone.begin(errand)
            if way in ("greedy", "reactive"):
                good = reactive(phone, errand, seed * 100 + number, closes=way == "reactive")
                table.add(way, phone, good=good)
                continue
            records = kept.get("maple" if way == "again" else way, DictRecords())
            job = Job(goal=errand.goal, inputs=errand.inputs(), max_steps=MOST_ACTIONS)
            method = blind if way == "unverified" else maple
            done = method.act(job, Tools(records=records, device=phone))
            if done.status == "stopped":  # the next task begins with what was learnt, not with this
                run = records.get("run")
                assert run is not None
                records.put([replace(run, value={**run.value, "ended": True})], "given up")
            table.add(way, phone, good=done.status == "done" and not phone.left)


def _pairs(names: Sequence[str]) -> int:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return sum(n * (n - 1) // 2 for n in counts.values())
