"""Checks that every method that acts must pass, and records in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any  # JSON values

from loci.core.agent import Outcome, Record
from loci.core.method import Need
from loci.core.ports import Records
from loci.errors import MethodError, ParameterError
from loci.methods.recall.base import Act, Tools, kept_record


class DictRecords:
    """Satisfies `loci.core.ports.Records` in memory.

    Attributes:
        whys: the reason of every step so far.
    """

    def __init__(self) -> None:
        self._now: dict[str, Record] = {}
        self._past: dict[str, list[Record | None]] = {}
        self.whys: list[str] = []

    def get(self, key: str) -> Record | None:
        """Return the record of a key."""
        return self._now.get(key)

    def all(self, prefix: str = "") -> Mapping[str, Record]:
        """Return the records whose keys begin like this."""
        return {key: record for key, record in self._now.items() if key.startswith(prefix)}

    def put(self, records: Sequence[Record], why: str, *, drop: Sequence[str] = ()) -> None:
        """Write records and drop others."""
        fresh = [kept_record(record) for record in records]
        keys = {*self._now, *(record.key for record in fresh)}
        for record in fresh:
            for _, target in record.links:
                if target not in keys:
                    raise ParameterError("a link ends at a record that is not there", value=target)
        for record in fresh:
            kept = replace(record, links=())
            self._now[record.key] = kept
            self._past.setdefault(record.key, []).append(kept)
        for key in dict.fromkeys(drop):
            if self._now.pop(key, None) is not None:
                self._past[key].append(None)
        self.whys.append(why)

    def past(self, key: str) -> Sequence[Record | None]:
        """Return what a key held, oldest first."""
        return list(self._past.get(key, ()))

    def values(self) -> dict[str, Any]:
        """Return {key: value} of all records."""
        return {key: dict(record.value) for key, record in self._now.items()}


class Killed(Exception):
    """What stands for a process that ended in the middle."""


class Mortal:
    """Records of a process that dies at its nth write: before it, or as soon as it is written."""

    def __init__(self, inner: Records, at: int, *, after: bool) -> None:
        self.inner, self.left, self.after = inner, at, after
        self.get, self.all, self.past = inner.get, inner.all, inner.past

    def put(self, records: Sequence[Record], why: str, *, drop: Sequence[str] = ()) -> None:
        """Write, unless the time has come."""
        self.left -= 1
        if self.left <= 0 and not self.after:
            raise Killed
        self.inner.put(records, why, drop=drop)
        if self.left <= 0:
            raise Killed


Make = Callable[[], Tools]
"""Makes fresh tools with the same beginnings: a new device, a new model, empty records."""


def does_its_example(method: Act, make: Make) -> None:
    """The example is done; every step and the end have a reason; the same again in a new place."""
    tools = make()
    outcome = method.act(method.example, tools)
    assert outcome.status == "done", outcome.why
    assert outcome.why.strip() and outcome.steps
    assert all(step.did.strip() and step.why.strip() for step in outcome.steps)
    assert isinstance(tools.records, DictRecords) and all(w.strip() for w in tools.records.whys)
    again = make()
    assert method.act(method.example, again) == outcome
    assert isinstance(again.records, DictRecords)
    assert again.records.values() == tools.records.values()


def goes_on_where_it_was_killed(method: Act, make: Make) -> None:
    """Killed at any write, it ends as if nothing had happened, and does no finished step again."""
    whole = make()
    wanted = method.act(method.example, whole)
    assert isinstance(whole.records, DictRecords)
    writes = len(whole.records.whys)
    assert writes > 0, "nothing was kept"
    for at in range(1, writes + 1):
        for after in (False, True):
            tools = make()
            records = tools.records
            assert isinstance(records, DictRecords)
            try:
                method.act(method.example, replace(tools, records=Mortal(records, at, after=after)))
            except Killed:
                pass
            else:
                raise AssertionError("it should have been killed")
            done = len(records.whys)
            outcome = method.act(method.example, tools)
            assert outcome.status == wanted.status, (at, after, outcome.why)
            assert outcome.output == wanted.output, (at, after)
            if tools.device is not None:
                continue  # what the world has been through is not undone: only the end is alike
            assert records.values() == whole.records.values(), (at, after)
            assert len(records.whys) - done <= writes - done + 1, "finished steps were done again"


def ends_within_its_steps(method: Act, make: Make) -> None:
    """With one step it stops or is done, says why, and goes on when it is called again."""
    tools = make()
    outcome = Outcome(status="stopped", why="not begun")
    for _ in range(200):
        outcome = method.act(replace(method.example, max_steps=1), tools)
        assert outcome.why.strip()
        if outcome.status != "stopped":
            break
    assert outcome.status == "done", outcome.why


def refuses_what_it_cannot_read(method: Act, make: Make) -> None:
    """An unknown input, and inputs of the wrong type, are errors; nothing is kept."""
    example = method.example
    bad = [replace(example, inputs={**example.inputs, "nonsense": 1})]
    for name in method.takes:
        for value in (float(10**9), {"a": [1]}, [{}, 3], None):
            given = example.inputs.get(name)
            if not isinstance(given, type(value)):
                bad.append(replace(example, inputs={**example.inputs, name: value}))
    for job in bad:
        tools = make()
        try:
            method.act(job, tools)
        except ParameterError as problem:
            assert str(problem)
        else:
            raise AssertionError(f"not refused: {job.inputs}")
        assert not tools.records.all(), "something was kept of a job that was refused"


def misses_its_tools(method: Act, make: Make) -> None:
    """Without the tools it needs it says which one is missing, or does without."""
    tools = replace(make(), llm=None, sandbox=None, device=None, embedder=None)
    try:
        method.act(method.example, tools)
    except MethodError as problem:
        assert problem.way_out


CONFORMANCE_ACT = (
    does_its_example,
    goes_on_where_it_was_killed,
    ends_within_its_steps,
    refuses_what_it_cannot_read,
    misses_its_tools,
)


def tools_for(method: Act) -> Tools:
    """Return what a method that acts needs for its example, made anew."""
    from loci.testing.phone import Faults, Phone
    from loci.testing.programmer import Programmer

    needs = method.about.needs
    calm = Faults(nothing=0.0, elsewhere=0.0, dialog=0.0, network=0.0)
    titles = [("Mail", "Drafts list")]
    phone = Phone(4, apps=("Mail", "Music"), titles=titles, screens=16, faults=calm)
    return Tools(
        records=DictRecords(),
        llm=Programmer() if Need.LLM in needs else None,
        device=phone if "screen" in method.takes else None,
    )
