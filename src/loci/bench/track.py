"""Agents that answer questions about a world with tools, and what their calls tell about them.

After MEMTRACK (arXiv:2510.01353); formulas and agents are a reconstruction, as the paper's are not
public. No model takes part: an agent understands every record it has read, and nothing else, so
what it gets wrong is what it was not shown, or what its way of reading makes of contradictions.

    correctness = exact answers / questions
    efficiency  = |fewest events that suffice| / max(|events read|, the same), over a world
    redundancy  = 1 - |different events returned| / |events returned|, over a world
    entropy     = entropy of the platforms called / log 4
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from loci.errors import ParameterError
from loci.testing.worldtrack import PLATFORMS, Answer, Event, Question, World, deciding
from loci.units import nearest

Reading = Literal["authority", "latest", "first"]
LIMIT = 8  # events a search returns
CALLS = 4  # calls an agent may make for one question
_NOTHING_SAID = ("unknown", "open", "none")  # what follows from records that are not there
_AWAY = {"timeout": "fs"}  # the platform whose record of an attribute may be outdated


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a tool: its name, its arguments, the ids it returned, the question it was for."""

    tool: str
    args: tuple[str, ...]
    ids: tuple[str, ...]
    question: int


class Subject(Protocol):
    """A memory under test."""

    def add(self, event: Event) -> None:
        """Remember an event; events come in the order in which they are seen."""
        ...

    def search(self, question: Question, limit: int) -> Sequence[str]:
        """Return ids of remembered events that answer the question, best first."""
        ...


class Env:
    """The platforms of a world as they are when a question is asked, and a log of every call."""

    def __init__(self, world: World, memory: Subject | None = None) -> None:
        self.world, self.memory = world, memory
        self.log: list[Call] = []
        self.number = 0
        self._visible: list[Event] = []
        self._tools: dict[str, Callable[..., list[Event]]] = {
            "chat.search": self._chat_search,
            "chat.read": lambda channel: self._of("chat", channel)[-LIMIT:][::-1],
            "tracker.get": lambda ticket: self._of("tracker", ticket),
            "tracker.list": self._tracker_list,
            "tracker.find": self._tracker_find,
            "git.log": lambda: self._of("git")[-LIMIT:][::-1],
            "git.show": lambda ref: self._of("git", ref),
            "git.grep": lambda word: [e for e in self._of("git", None, "fs") if _has(e, word)],
            "fs.read": lambda path: self._of("fs", path)[-1:],
        }

    def tools(self) -> tuple[str, ...]:
        """Return the names of all tools."""
        mine = ("memory.add", "memory.search") if self.memory is not None else ()
        return (*self._tools, *mine)

    def ask(self, number: int) -> None:
        """Move to the time at which a question is asked."""
        self.number, now = number, self.world.questions[number].asked
        seen = [event for event in self.world.events if event.seen <= now]
        self._visible = sorted(seen, key=lambda event: (event.at, event.id))

    def call(self, tool: str, *args: str) -> list[Event]:
        """Call a tool of a platform and return what it shows, logged.

        Raises:
            ParameterError: if there is no such tool; the nearest is suggested.
        """
        if tool not in self._tools:
            near = nearest(tool, self.tools())
            raise ParameterError(
                "no platform has this tool",
                value=tool,
                allowed=", ".join(self.tools()),
                way_out=f"did you mean {near!r}?" if near else (),
            )
        return self._logged(tool, args, self._tools[tool](*args))

    def search(self, question: Question, limit: int = LIMIT) -> list[Event]:
        """Search the memory, logged."""
        if self.memory is None:
            raise ParameterError("this agent has no memory", allowed=", ".join(self.tools()))
        ids = self.memory.search(question, limit)
        return self._logged("memory.search", (question.text,), [self.world.by_id[id] for id in ids])

    def visible(self) -> list[Event]:
        """Return all that can be seen when the question is asked, in order of time."""
        return list(self._visible)

    def _of(self, platform: str, ref: str | None = None, *more: str) -> list[Event]:
        places = (platform, *more)
        return [e for e in self._visible if e.platform in places and ref in (None, e.ref)]

    def _chat_search(self, *words: str) -> list[Event]:
        found = [e for e in self._of("chat") if all(_has(e, word) for word in words)]
        return found[-LIMIT:][::-1]

    def _tracker_list(self, service: str) -> list[Event]:
        tickets = {
            effect.entity
            for event in self._of("tracker")
            for effect in event.effects
            if (effect.attribute, effect.value) == ("service", service)
        }
        return [e for e in self._of("tracker") if e.ref in tickets and e.kind == "created"]

    def _tracker_find(self, attribute: str, value: str) -> list[Event]:
        """Return the records that give tickets this value of a field now, as the tracker knows."""
        theirs = self._of("tracker")
        tickets = sorted({event.ref for event in theirs})
        settled = [deciding(theirs, ticket, attribute) for ticket in tickets]
        return [found[0] for found in settled if found is not None and found[1] == value]

    def _logged(self, tool: str, args: Sequence[str], events: Sequence[Event]) -> list[Event]:
        ids = tuple(event.id for event in events)
        self.log.append(Call(tool=tool, args=tuple(args), ids=ids, question=self.number))
        return list(events)


# -- reading ---------------------------------------------------------------------------------------


def understood(question: Question, read: Sequence[Event], reading: Reading) -> Answer:
    """Return the answer that follows from the events read, in this order; "unknown" if none does.

    A record that calls the entity by another name counts only when the record that tells both names
    are one has been read too.
    """
    names = _names(question.called, read)
    entity = question.entity
    if question.kind in ("list", "owned"):
        return _listed(question, read, names, reading)
    mine = [_of_entity(event, names, entity) for event in read]
    if question.kind == "stale":
        platform = _AWAY.get(question.attribute, "tracker")
        true = _settled(mine, entity, question, reading)
        shown = _settled([e for e in mine if e.platform == platform], entity, question, reading)
        if true is None:
            return "unknown"
        return platform if shown is not None and shown[1] != true[1] else "none"
    settled = _settled(mine, entity, question, reading)
    if settled is None:
        opened = question.attribute == "status" and any(
            event.alias is not None and event.alias[1] in names for event in read
        )
        return "open" if opened else "unknown"
    if question.kind == "who":
        return settled[0].actor
    if question.kind == "why":
        return settled[0].reason or "unknown"
    return settled[1]


def _settled(
    events: Sequence[Event], entity: str, question: Question, reading: Reading
) -> tuple[Event, str] | None:
    if reading == "authority":
        return deciding(events, entity, question.attribute, question.at)
    told = [
        (event, effect.value)
        for event in events
        for effect in event.effects
        if (effect.entity, effect.attribute) == (entity, question.attribute)
        if effect.value is not None and (question.at is None or event.at <= question.at)
    ]
    if not told:
        return None
    return told[0] if reading == "first" else max(told, key=lambda pair: (pair[0].at, pair[0].id))


def _listed(question: Question, read: Sequence[Event], names: set[str], reading: Reading) -> Answer:
    """Return the entities that fit: open tickets of a service, or tickets a person owns."""
    found = []
    tickets = {
        effect.entity
        for event in read
        for effect in event.effects
        if question.kind == "owned" or (effect.attribute == "service" and effect.value in names)
    }
    for ticket in sorted(tickets):
        mine = [_of_entity(event, _names(ticket, read), ticket) for event in read]
        settled = _settled(mine, ticket, question, reading)
        value = None if settled is None else settled[1]
        if value == (None if question.kind == "list" else question.entity):
            found.append(ticket)
    return tuple(found) or "unknown"


def _names(called: str, read: Iterable[Event]) -> set[str]:
    """Return every name of a thing that the records read tell to be one with `called`."""
    pairs = [event.alias for event in read if event.alias is not None]
    names, grown = {called}, True
    while grown:
        more = {name for pair in pairs if names & set(pair) for name in pair} - names
        names, grown = names | more, bool(more)
    return names


def _of_entity(event: Event, names: set[str], entity: str) -> Event:
    """Return the event with only what it says, by a known name, of this entity."""
    mine = tuple(e for e in event.effects if e.called in names and e.entity == entity)
    return event if mine == event.effects else replace(event, effects=mine)


# -- agents ----------------------------------------------------------------------------------------

Agent = Callable[[Env, Question], tuple[list[Event], Reading]]


def oracle(env: Env, question: Question) -> tuple[list[Event], Reading]:
    """Read just what suffices, and nothing twice: what the harness must give full marks."""
    read = [env.world.by_id[id] for id in question.evidence]
    before = {id for call in env.log for id in call.ids}
    env._logged("oracle", (question.text,), [e for e in read if e.id not in before])
    return read, "authority"


def recency(env: Env, question: Question) -> tuple[list[Event], Reading]:
    """Read everything and believe the last word."""
    return env._logged("log", (), env.visible()), "latest"


def platforms(env: Env, question: Question) -> tuple[list[Event], Reading]:
    """Ask the platforms anew for every question: an agent without a memory."""
    read: list[Event] = []
    _look_up(env, question, read, CALLS)
    return read, "authority"


def remembering(env: Env, question: Question) -> tuple[list[Event], Reading]:
    """Ask the memory, and once more under another name that the first answer tells."""
    read = env.search(question)
    _other_name(env, question, read)
    return read, "authority"


def nearest_first(env: Env, question: Question) -> tuple[list[Event], Reading]:
    """Believe the most similar memory: what a plain vector store makes of contradictions."""
    return env.search(question), "first"


def memory_first(env: Env, question: Question) -> tuple[list[Event], Reading]:
    """Ask the memory first, then the platforms if it has no answer; remember what they show."""
    read = env.search(question)
    _other_name(env, question, read)
    spent = sum(call.question == env.number for call in env.log)
    if understood(question, read, "authority") in _NOTHING_SAID:
        known = {event.id for event in read}
        found: list[Event] = []
        _look_up(env, question, found, CALLS - spent)
        new = {event.id: event for event in found if event.id not in known}
        for event in sorted(new.values(), key=lambda e: (e.seen, e.id)):
            assert env.memory is not None
            env.memory.add(event)
        read += new.values()
    return read, "authority"


def _other_name(env: Env, question: Question, read: list[Event]) -> None:
    others = sorted(_names(question.called, read) - {question.called})
    for name in others[:1]:
        text = question.text.replace(question.called, name)
        more = env.search(replace(question, text=text, called=name))
        read += [event for event in more if event not in read]


def _look_up(env: Env, question: Question, read: list[Event], calls: int) -> None:
    """Make the calls that fit the question, each at most once, until `calls` are spent."""
    name = question.called
    service = f"config/{question.entity}.toml"
    plans: dict[str, list[tuple[str, ...]]] = {
        "author": [("git.show", name)],
        "implemented_by": [("git.grep", name)],
        "status": [("git.grep", name), ("tracker.get", name)],
        "timeout": [("chat.search", name), ("fs.read", service), ("git.grep", name)],
        "database": [("chat.search", name)],
        "lead": [("tracker.get", name), ("chat.search", name)],
    }
    plan = plans.get(question.attribute, [("tracker.get", name), ("chat.search", name)])
    if question.kind == "list":
        plan = [("tracker.list", name), ("git.log",)]
    elif question.kind == "owned":
        plan = [("tracker.find", "owner", name), ("chat.search", "owner", name)]
    for tool, *args in plan[:calls]:
        read += [event for event in env.call(tool, *args) if event not in read]
    left = calls - len(plan[:calls])
    for other in sorted(_names(name, read) - {name})[: max(left, 0)]:
        words = other.removeprefix("the ").removesuffix(" ticket")
        read += [event for event in env.call("chat.search", words) if event not in read]


# -- running and scoring ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one agent did in one world."""

    world: World
    log: tuple[Call, ...]
    answers: tuple[Answer, ...]


def work(world: World, agent: Agent, memory: Subject | None = None, *, auto: bool = True) -> Run:
    """Let an agent answer the questions of a world in order.

    Args:
        auto: whether the memory is given every event as it is seen; else it holds only what the
            agent writes.
    """
    env = Env(world, memory)
    waiting = world.arrivals()
    answers: list[Answer] = []
    for number, question in enumerate(world.questions):
        env.ask(number)
        while waiting and waiting[0].seen <= question.asked:
            event = waiting.pop(0)
            if memory is not None and auto:
                memory.add(event)
        mine = filled(question, answers)
        read, reading = agent(env, mine)
        answers.append(understood(mine, read, reading))
    return Run(world=world, log=tuple(env.log), answers=tuple(answers))


def filled(question: Question, answers: Sequence[Answer]) -> Question:
    """Return a follow-up with the agent's own earlier answer in it, right or wrong."""
    if question.follows is None:
        return question
    before = answers[question.follows]
    name = ", ".join(before) if isinstance(before, tuple) else before
    return replace(
        question,
        text=_said(question).replace("{}", name),
        entity=question.entity.replace("{}", name),
        called=question.called.replace("{}", name),
    )


def _said(question: Question) -> str:
    """Return a follow-up with what it is about, as an agent that follows the talk would ask it."""
    if "{}" in question.text:
        return question.text
    about = (
        "" if question.called in question.text else f" ({question.attribute} of {question.called})"
    )
    return question.text + about


def score(run: Run) -> dict[str, float]:
    """Return the figures of one run; shares of nothing are left out."""
    pairs = list(zip(run.world.questions, run.answers, strict=True))
    right = [float(given == question.answer) for question, given in pairs]
    returned = [id for call in run.log for id in call.ids]
    read = set(returned)
    fewest = {id for question in run.world.questions for id in question.evidence}
    firsts = [r for (q, _), r in zip(pairs, right, strict=True) if q.depth == 0]
    follow = [r for (q, _), r in zip(pairs, right, strict=True) if q.depth > 0]
    disputed = [r for (q, _), r in zip(pairs, right, strict=True) if q.conflict]
    stale = [float(given in q.outdated) for q, given in pairs if q.outdated]
    used = Counter(name for call in run.log if (name := call.tool.split(".")[0]) in PLATFORMS)
    words = sum(len(run.world.by_id[id].text.split()) for id in returned)
    figures = {
        "correctness": _mean(right),
        "efficiency": len(fewest) / max(len(read), len(fewest), 1),
        "redundancy": 1 - len(read) / len(returned) if returned else 0.0,
        "conflict": _mean(disputed),
        "stale": _mean(stale),
        "decay": _mean(firsts) - _mean(follow) if firsts and follow else math.nan,
        "entropy": _entropy(used),
        "calls": len(run.log) / len(pairs),
        "words": words / len(pairs),
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _entropy(counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    shares = [count / total for count in counts.values()] if total else []
    return -sum(p * math.log(p) for p in shares) / math.log(len(PLATFORMS))


def _has(event: Event, word: str) -> bool:
    """Return whether a record has a word; "T-7" is not in "T-77"."""
    text, word = f" {event.text} ".lower(), word.lower()
    place = text.find(word)
    while place >= 0:
        end = place + len(word)
        if not text[place - 1].isalnum() and not (text[end].isalnum() or text[end] == "-"):
            return True
        place = text.find(word, place + 1)
    return False
