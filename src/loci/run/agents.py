"""Agents on a memory: records in its store, with history, undo, and steps that survive a kill.

    with Memory("work.db") as memory:
        trip = memory.agent("tme", "trip", user="ada")
        trip.act("destination: Boston")
        trip.act("actually, make that Seattle")
        trip.undo()

Every record is an item of kind "state" of the memory; the steps of an agent are changes made by it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any  # JSON values

from loci.core.agent import Job, Outcome, Record
from loci.core.item import Item, Scope
from loci.errors import MethodError, NotFoundError, ParameterError, StoreError
from loci.methods import catalogue
from loci.methods.recall.base import Act, Tools, kept_record
from loci.store.base import Store
from loci.store.changes import Change
from loci.store.search import Asked
from loci.text.ladder import Ladder

if TYPE_CHECKING:
    from loci.core.ports import Clock, Device, Llm, Sandbox
    from loci.run.memory import Memory

STATE = "state"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ALL = 10**9


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One step of an agent: what it wrote at once, and why.

    Attributes:
        id: of the change that `undo` takes; the whole step goes with it.
        keys: of the records it wrote or dropped.
    """

    id: str
    at: datetime
    why: str
    keys: tuple[str, ...]
    undone: bool


@dataclass(frozen=True, kw_only=True)
class Known:
    """One agent of a memory: its method and name, how much it holds, when it last did something."""

    method: str
    name: str
    records: int
    last: datetime


class StoredRecords:
    """Satisfies `loci.core.ports.Records` with the items of one agent in a store."""

    def __init__(self, store: Store, scope: Scope, subject: str, clock: Clock) -> None:
        self._store, self._scope, self._subject, self._clock = store, scope, subject, clock
        self._items: dict[str, Item] = {}
        self.reload()

    def reload(self) -> None:
        """Read all records again, after somebody else wrote."""
        asked = {"subject": self._subject}
        items = _states(self._store, self._scope, self._clock, asked)
        self._items = {str(item.predicate): item for item in items}

    def get(self, key: str) -> Record | None:
        """Return the record of a key."""
        item = self._items.get(key)
        return None if item is None else _record(item)

    def all(self, prefix: str = "") -> Mapping[str, Record]:
        """Return the records whose keys begin like this, in the order they were first put."""
        return {key: _record(i) for key, i in self._items.items() if key.startswith(prefix)}

    def put(self, records: Sequence[Record], why: str, *, drop: Sequence[str] = ()) -> None:
        """Write records and drop others in one transaction."""
        now = self._clock.now()
        items = [self._item(kept_record(record)) for record in records]
        gone = [self._items[key] for key in dict.fromkeys(drop) if key in self._items]
        items += [replace(item, retired_at=now, valid_to=now) for item in gone]
        links = [(r.key, relation, target) for r in records for relation, target in r.links]
        if not items:
            return
        for item in self._store.write_state(self._scope, items, links, why, now):
            if item.is_live:
                self._items[str(item.predicate)] = item
            else:
                self._items.pop(str(item.predicate), None)

    def past(self, key: str) -> Sequence[Record | None]:
        """Return what a key held, oldest first, the present last."""
        made = self._store.recent(self._scope, _ALL, 0, self._subject)
        return [
            _record(change.after) if change.after.is_live else None
            for change in reversed(made)
            if change.after is not None
            and change.after.predicate == key
            and change.action != "link"
            and not change.undone
        ]

    def _item(self, record: Record) -> Item:
        known = self._items.get(record.key)
        item = known or Item(id="", text="", kind=STATE, made_by=self._subject)
        return replace(
            item,
            text=record.text,
            subject=self._subject,
            predicate=record.key,
            metadata={"value": dict(record.value)},
        )


class Agent:
    """A method that acts, with its records in a memory.

    Args:
        method: of `loci methods`, such as "tme" or "l2mac(retries=5)".
        name: of the piece of work; the records of different names know nothing of each other.
        agent, session: as in `Memory.add`: whose of the user's records they are.
        llm: the model it asks; the memory's if not given.
        sandbox: runs code; without one no code is run.
    """

    def __init__(
        self,
        memory: Memory,
        method: str | Act,
        name: str,
        *,
        user: str,
        agent: str | None = None,
        session: str | None = None,
        llm: Llm | None = None,
        sandbox: Sandbox | None = None,
        device: Device | None = None,
    ) -> None:
        self.memory, self.method = memory, method_of(method)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ParameterError(
                "an agent's name is a word", value=name, allowed="letters, digits, _ . - (64)"
            )
        self.name = name
        self.scope = memory._scope(user, agent, session)
        self.subject = _subject(self.method.about.name, name, self.scope)
        self.records = StoredRecords(memory.store, self.scope, self.subject, memory.clock)
        self._llm = llm if llm is not None else memory.llm
        self._sandbox, self._device = sandbox, device

    def act(
        self,
        goal: str = "",
        inputs: Mapping[str, Any] | None = None,
        *,
        max_steps: int = 200,
    ) -> Outcome:
        """Do a job, or go on with it where its records say it was left.

        Args:
            inputs: see `takes` of the method, or `loci agent takes METHOD`.

        Raises:
            ParameterError: if the method cannot read the job.
            MethodError: if it needs a model, a sandbox or a device that was not given.
            BusyError: if another process acts for the same agent at this moment.
        """
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise ParameterError("max_steps is a whole number of at least 1", value=max_steps)
        job = Job(goal=_text(goal), inputs=_json(inputs or {}), max_steps=max_steps)
        memory = self.memory
        tools = Tools(
            records=self.records,
            llm=self._llm,
            embedder=memory.embedder,
            sandbox=self._sandbox,
            device=self._device,
            ladder=Ladder(memory.backend, self._llm, fall_back=memory.fall_back),
        )
        return self.method.act(job, tools)

    def history(self) -> list[Taken]:
        """Return the steps, oldest first; undone ones say so."""
        taken: dict[str, list[Change]] = {}
        for change in reversed(self._changes()):
            taken.setdefault(change.batch, []).append(change)
        return [_taken(together) for together in taken.values()]

    def explain(self, key: str) -> list[Taken]:
        """Return the steps that wrote a record, oldest first, each with its reason.

        Raises:
            NotFoundError: if no step ever wrote it.
        """
        found = [step for step in self.history() if key in step.keys]
        if not found:
            known = dict.fromkeys(key for step in self.history() for key in step.keys)
            raise NotFoundError(
                f"{self.subject} has no record of this key",
                value=key,
                allowed=", ".join(list(known)[:20]) or "none yet",
            )
        return found

    def undo(self, steps: int = 1) -> list[Taken]:
        """Take back the last steps, newest first; what was done together goes together.

        Raises:
            StoreError: if there are not so many steps to take back; then none is.
        """
        standing = [step for step in self.history() if not step.undone]
        return self._each(standing[::-1], steps, "undo")

    def redo(self, steps: int = 1) -> list[Taken]:
        """Do again what was undone last; a step made since closes that way."""
        history = self.history()
        last = max((n for n, step in enumerate(history) if not step.undone), default=-1)
        return self._each(history[last + 1 :], steps, "redo")

    def drop(self) -> int:
        """Forget the work but keep its history: all records go, and `undo` brings them back."""
        keys = list(self.records.all())
        self.records.put([], "dropped by a person", drop=keys)
        return len(keys)

    def _each(self, among: Sequence[Taken], steps: int, what: str) -> list[Taken]:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ParameterError("steps is a whole number of at least 1", value=steps)
        if len(among) < steps:
            raise StoreError(
                f"{self.subject} has fewer steps to {what}", value=steps, allowed=str(len(among))
            )
        store, now = self.memory.store, self.memory.clock.now()
        with store.together():
            for step in among[:steps]:
                (store.undo if what == "undo" else store.redo)(self.scope, step.id, now)
        self.records.reload()
        return [replace(step, undone=what == "undo") for step in among[:steps]]

    def _changes(self) -> list[Change]:
        """Return the changes of this agent's records, newest first; undoing is none of them."""
        return self.memory.store.recent(self.scope, _ALL, 0, self.subject)


def known(
    memory: Memory, *, user: str, agent: str | None = None, session: str | None = None
) -> list[Known]:
    """Return the agents that have records in a memory, the last to act first."""
    scope = memory._scope(user, agent, session)
    held: dict[str, list[Item]] = {}
    for item in _states(memory.store, scope, memory.clock, {}):
        held.setdefault(str(item.subject), []).append(item)
    found = []
    for subject, items in held.items():
        method, _, rest = subject.partition("/")
        name = rest.partition(" ")[0]
        if subject != _subject(method, name, scope):
            continue  # of another agent or session
        last = memory.store.recent(scope, 1, 0, subject)
        at = last[0].at if last else memory.clock.now()
        found.append(Known(method=method, name=name, records=len(items), last=at))
    return sorted(found, key=lambda one: (one.last, one.name), reverse=True)


# -- private ----------------------------------------------------------------------------------


def _subject(method: str, name: str, scope: Scope) -> str:
    """Return what the items of an agent are about, and whom their changes are made by.

    Records of one place (an agent, a session) are strangers to those of another.
    """
    place = {"agent": scope.agent, "session": scope.session}
    told = [f" {what}={json.dumps(value)}" for what, value in place.items() if value is not None]
    return f"{method}/{name}{''.join(told)}"


def _states(store: Store, scope: Scope, clock: Clock, asked: Mapping[str, Any]) -> list[Item]:
    """Return live items of state, oldest first."""
    view = store.view(scope, clock.now(), asked=Asked(filters=dict(asked)))
    return [*view.items(view.listed("item", _ALL, kinds=(STATE,))).values()][::-1]


def _record(item: Item) -> Record:
    value = item.metadata.get("value", {})
    return Record(key=str(item.predicate), text=item.text, value=value)


def _taken(together: Sequence[Change]) -> Taken:
    first = together[0]
    keys = [str(c.after.predicate) for c in together if c.after is not None and c.action != "link"]
    return Taken(
        id=first.id,
        at=first.at,
        why=first.reason,
        keys=tuple(dict.fromkeys(keys)),
        undone=all(change.undone for change in together),
    )


def method_of(method: str | Act) -> Act:
    """Return a method that acts, by its name.

    Raises:
        MethodError: if it is one that keeps memories.
    """
    found = catalogue.find(method, "recall") if isinstance(method, str) else method
    if not isinstance(found, Act):
        raise MethodError(
            "this method keeps memories; it does no jobs",
            value=str(found),
            allowed=", ".join(acting()),
            way_out="loci agent list --methods shows those that do",
        )
    return found


def acting() -> list[str]:
    """Return the names of the methods that act."""
    names = catalogue.names("recall")
    return [name for name in names if issubclass(catalogue.method_class(name, "recall"), Act)]


def _text(goal: object) -> str:
    from loci.core.utf8 import plain_text

    if not isinstance(goal, str):
        raise ParameterError("a goal is a text", value=goal)
    return plain_text(goal, "the goal")


def _json(inputs: object) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        raise ParameterError("inputs are an object of JSON", value=inputs)
    try:
        return dict(json.loads(json.dumps(dict(inputs), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as problem:
        raise ParameterError(
            f"inputs are JSON values: {problem}", value=repr(inputs)[:80]
        ) from None
