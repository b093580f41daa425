"""Jobs in words: traces to learn from, situations to be advised on, and what came of advice.

Each is a step. A trace that was not verified is noted and taught to nobody. Advice is kept with the
reason for every lesson told, until the lessons change; what came of it goes to the lessons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any  # JSON values

from loci.core.agent import Job, Outcome, Record, Step
from loci.errors import MethodError, ParameterError
from loci.methods.recall._arc_lessons import (
    Advice,
    Lesson,
    Trace,
    founded,
    habits_of,
    learnt,
    ranked,
    rarity_of,
    rendered,
    told,
)
from loci.methods.recall._arc_tasks import Asked, read_words
from loci.text.ladder import Refused, Task
from loci.text.quote import AS_DATA, listed

if TYPE_CHECKING:
    from loci.methods.recall.arcmemo import ArcMemo
    from loci.methods.recall.base import Tools

_META = "lessons"


def act_on_words(method: ArcMemo, job: Job, tools: Tools) -> Outcome:
    """Take in outcomes, then traces, then give advice; each is a step that is done once."""
    asked = read_words(job.inputs)
    if asked.meaning and tools.embedder is None:
        raise MethodError(
            "likeness of meaning needs an embedder and none was given",
            way_out="give one, or leave out meaning",
        )
    memory = _Memory(method, tools, asked)
    memory.check()
    steps: list[Step] = []
    for due in memory.due():
        if len(steps) == job.max_steps:
            return memory.outcome("stopped", f"{job.max_steps} steps were allowed", steps)
        steps.append(due())
    return memory.outcome("done", "all outcomes, traces and situations are dealt with", steps)


class _Memory:
    """The lessons of one agent during a call."""

    def __init__(self, method: ArcMemo, tools: Tools, asked: Asked) -> None:
        self.method, self.tools, self.asked = method, tools, asked
        self.records = tools.records
        self.lessons = {
            key.removeprefix("lesson/"): Lesson.from_json(key.removeprefix("lesson/"), r.value)
            for key, r in self.records.all("lesson/").items()
        }
        meta = self.records.get(_META)
        self.version = 0 if meta is None else int(meta.value["version"])

    def check(self) -> None:
        """Refuse what contradicts the records before anything is done."""
        for trace in self.asked.traces:
            known = self.records.get(f"trace/{trace.id}")
            if known is not None and known.value["digest"] != trace.digest:
                raise _other("trace", trace.id)
        for id, text in self.asked.situations:
            known = self.records.get(f"advice/{id}")
            if known is not None and known.value["text"] != text:
                raise _other("situation", id)
        for outcome in self.asked.outcomes:
            self._followed(outcome)

    def due(self) -> Iterator[Callable[[], Step]]:
        """Yield what is not done yet, in order."""
        for outcome in self.asked.outcomes:
            advice, lesson = self._followed(outcome)
            if lesson not in advice.value["outcomes"]:
                yield partial(self._feed_back, outcome)
        for trace in self.asked.traces:
            if self.records.get(f"trace/{trace.id}") is None:
                yield partial(self._learn, trace)
        for id, text in self.asked.situations:
            known = self.records.get(f"advice/{id}")
            if known is None or known.value["version"] != self.version:
                yield partial(self._advise, id, text)

    # -- outcomes ------------------------------------------------------------------------------

    def _followed(self, outcome: Mapping[str, Any]) -> tuple[Record, str]:
        id = outcome["situation"]
        advice = self.records.get(f"advice/{id}")
        names = [] if advice is None else [one["lesson"] for one in advice.value["told"]]
        lesson = outcome.get("lesson", names[0] if names else None)
        if advice is None or lesson not in names:
            raise ParameterError(
                "no such advice was given",
                value=f"{id}: {lesson}",
                allowed=", ".join(names) or "outcomes of situations with advice",
                way_out="ask for advice first; outcomes name its situation",
            )
        known = advice.value["outcomes"].get(lesson)
        if known is not None and known != outcome["success"]:
            raise ParameterError(
                "another outcome of this advice is known",
                value=f"{id}: {lesson}",
                way_out="undo the step that told it",
            )
        return advice, str(lesson)

    def _feed_back(self, outcome: Mapping[str, Any]) -> Step:
        advice, name = self._followed(outcome)
        good = bool(outcome["success"])
        value = {**advice.value, "outcomes": {**advice.value["outcomes"], name: good}}
        written = [replace(advice, value=value), self._meta()]
        did = f"{name} {'helped' if good else 'did not help'} in {outcome['situation']}"
        old = self.lessons.get(self._heir(name))
        if old is None:
            why = "it is no lesson any more"
        else:
            now = replace(old, tries=old.tries + 1, wins=old.wins + good)
            self.lessons[now.name] = now
            written.append(_record(now))
            why = f"{now.wins} of {now.tries} tries helped, utility {now.utility:.2f}"
            why += "; it is pruned" if now.is_pruned and not old.is_pruned else ""
        return self._done(written, did, why)

    def _heir(self, name: str) -> str:
        """Return the lesson that a lesson went into, or itself."""
        if name in self.lessons:
            return name
        for past in reversed(self.records.past(f"lesson/{name}")):
            if past is not None:
                first = past.value["used_in"][0]
                homes = (n for n, lesson in self.lessons.items() if first in lesson.used_in)
                return next(homes, name)
        return name

    # -- traces --------------------------------------------------------------------------------

    def _learn(self, trace: Trace) -> Step:
        value: dict[str, Any] = {
            "digest": trace.digest,
            "verified": trace.verified,
            "situation": trace.situation,
            "steps": list(trace.steps),
        }
        record = Record(key=f"trace/{trace.id}", text=f"trace {trace.id}", value=value)
        if not trace.verified:
            did = f"noted trace {trace.id}"
            return self._done([record], did, "it was not verified, so no lesson is made of it")
        if self.method.memory != "concepts":
            return self._done([record, self._meta()], f"kept trace {trace.id}", "it was verified")
        now, gone = learnt(list(self.lessons.values()), trace)
        old = self.lessons.get(now.name)
        now = self._worded(now, old)
        for lesson in gone:
            del self.lessons[lesson.name]
        self.lessons[now.name] = now
        did = f"trace {trace.id} {'founds' if old is None else 'joins'} lesson {now.name}"
        why = "no lesson is like it" if old is None else f"{len(now.used_in)} traces share it"
        if old is not None and str(now.template) != str(old.template):
            why += f", it became more general: {str(now.template)!r}"
        why += "".join(f"; {lesson.name} went into it" for lesson in gone)
        drop = [f"lesson/{lesson.name}" for lesson in gone]
        return self._done([record, _record(now), self._meta()], did, why, drop)

    def _worded(self, now: Lesson, old: Lesson | None) -> Lesson:
        """Return the lesson with its situation in a model's words, where a model is asked."""
        if old is not None and old.template == now.template and old.wording:
            return replace(now, wording=old.wording)
        wording, _ = self.tools.ladder.run(
            Task(
                name="word a lesson",
                messages=(
                    {
                        "role": "user",
                        "content": f"{AS_DATA}\nSay in one short sentence what these situations "
                        "have in common, without names and numbers.\n"
                        + listed("situations", [one.situation for one in now.members[-5:]])
                        + "\nThe same helped in all of them:\n"
                        + listed("steps", str(now.template).split("\n")),
                    },
                ),
                schema={
                    "type": "object",
                    "properties": {"situation": {"type": "string"}},
                    "required": ["situation"],
                },
                read=_wording,
                rules=str,
            )
        )
        return replace(now, wording=wording)

    # -- advice --------------------------------------------------------------------------------

    def _advise(self, id: str, text: str) -> Step:
        chosen, left = self._told(text)
        value = {
            "text": text,
            "version": self.version,
            "told": [one.to_json() for one in chosen],
            "prompt": rendered(chosen),
            "outcomes": {},
        }
        names = ", ".join(one.lesson for one in chosen)
        did = f"advised on {id}: {names or 'no lesson fits'}"
        why = f"{chosen[0].lesson} {chosen[0].why}" if chosen else "no lesson is like it"
        why += f"; {left} more did not fit the prompt" if left else ""
        record = Record(key=f"advice/{id}", text=did, value=value)
        return self._done([record], did, why)

    def _told(self, text: str) -> tuple[list[Advice], int]:
        """Return the advice on a situation, best first, and how much was left out for tokens."""
        if self.method.memory == "instances":
            lessons = self._alone()
        else:
            lessons = list(self.lessons.values())
        rarity = rarity_of(lessons)
        # A trace alone is adapted by what it shows itself.
        habits = {} if self.method.memory == "instances" else habits_of(lessons)
        embedder = self.tools.embedder if self.asked.meaning else None
        if self.method.memory == "none":
            scored: list[tuple[float, Lesson]] = []
        elif self.method.memory == "instances":
            scored = ranked(lessons, text, rarity, embedder)
        elif self.method.top == 0:  # every lesson, as it was written: no selection, no pruning
            scored = [(0.0, lesson) for lesson in lessons]
        else:
            scored = ranked(lessons, text, rarity, embedder)
            scored = self._selected(text, scored)
        found: dict[str, Advice] = {}
        for score, lesson in scored:
            advice = told(lesson, text, rarity, habits, score)
            if advice is not None:
                found.setdefault(advice.suggestion, advice)  # the same twice is told once
        wanted = list(found.values())[: self.asked.limit]
        fit = wanted
        while fit and self._tokens(rendered(fit)) > self.asked.tokens:
            fit = fit[:-1]
        return fit, len(wanted) - len(fit)

    def _selected(
        self, text: str, scored: list[tuple[float, Lesson]]
    ) -> list[tuple[float, Lesson]]:
        """Return the lessons to tell: the most relevant, or those that a model names."""
        if not scored:
            return scored
        by_name = {lesson.name: (score, lesson) for score, lesson in scored}

        def read(reply: Any) -> tuple[list[tuple[float, Lesson]], list[Refused]]:
            named = dict.fromkeys(reply["names"])
            refused = [Refused("a lesson that is not there", n) for n in named if n not in by_name]
            return [by_name[name] for name in named if name in by_name], refused

        names = {"type": "array", "items": {"type": "string"}, "maxItems": self.asked.limit}
        chosen, _ = self.tools.ladder.run(
            Task(
                name="select lessons",
                messages=(
                    {
                        "role": "user",
                        "content": f"{AS_DATA}\nWhich lessons fit the situation? Reply with their "
                        f"names, best first, at most {self.asked.limit}; none if none fits.\n"
                        + listed("situation", [text])
                        + "\n"
                        + listed("lessons", [lesson.described() for _, lesson in scored]),
                    },
                ),
                schema={"type": "object", "properties": {"names": names}, "required": ["names"]},
                read=read,
                rules=lambda: scored,
            )
        )
        return chosen

    def _alone(self) -> list[Lesson]:
        """Return every verified trace as a lesson of its own."""
        return [
            founded(Trace(key, v["situation"], tuple(v["steps"]), True, v["digest"]))
            for key, v in ((k, r.value) for k, r in self.records.all("trace/").items())
            if v["verified"]
        ]

    def _tokens(self, text: str) -> int:
        return len(text.split()) if self.tools.llm is None else self.tools.llm.count_tokens(text)

    # -- records -------------------------------------------------------------------------------

    def _meta(self) -> Record:
        self.version += 1
        text = f"lessons changed {self.version} times"
        return Record(key=_META, text=text, value={"version": self.version})

    def _done(
        self, records: Sequence[Record], did: str, why: str, drop: Sequence[str] = ()
    ) -> Step:
        self.records.put(records, f"{did}; {why}", drop=drop)
        return Step(did=did, why=why)

    def outcome(self, status: Any, why: str, steps: Sequence[Step]) -> Outcome:
        advice = {}
        for id, _ in self.asked.situations:
            known = self.records.get(f"advice/{id}")
            if known is not None:
                advice[id] = {"lessons": known.value["told"], "prompt": known.value["prompt"]}
        output = {
            "advice": advice,
            "lessons": [lesson.described() for lesson in self.lessons.values()],
        }
        return Outcome(status=status, why=why, output=output, steps=tuple(steps))


def _other(what: str, id: str) -> ParameterError:
    return ParameterError(
        f"another {what} of this id is known", value=id, way_out="give it an id of its own"
    )


def _wording(reply: Any) -> tuple[str, list[Refused]]:
    text = " ".join(str(reply["situation"]).split())
    if not text or len(text) > 200:
        return "", [Refused("a wording has 1 to 200 letters", text[:80])]
    return text, []


def _record(lesson: Lesson) -> Record:
    return Record(key=f"lesson/{lesson.name}", text=lesson.described(), value=lesson.to_json())
