"""Back ends for every operation of a memory: rules, a small local model, or an endpoint.

A `Task` is one operation: what a model is asked, the form of its answer, the one validator, and the
rules that do the same without a model. A `Ladder` carries tasks out with the back end it was told
to use. A model that fails gives way to the rules only if `fall_back` says so; which rung answered,
what it cost and why another did not are in `steps`. Rules never fail and cost nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar  # a reply is whatever JSON can hold

from loci.core.ports import Llm
from loci.errors import LociError, ModelError, ParameterError
from loci.text.form import misfit

Rung = Literal["rules", "slm", "endpoint"]
RUNGS: tuple[Rung, ...] = ("rules", "slm", "endpoint")
Value = TypeVar("Value")


class Refused(NamedTuple):
    """Something a model said that was not taken: why, and what it was.

    Only the reason is stored with the edits: what was said may have to be forgotten.
    """

    why: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.why}: {self.text}" if self.text else self.why


@dataclass(frozen=True, kw_only=True)
class Step:
    """One task carried out: by which rung, at what cost, and what was turned down on the way."""

    task: str
    rung: Rung = "rules"
    model: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    refused: tuple[Refused, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the step as JSON values, without what was remembered."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "refused": [refused.why for refused in self.refused]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Step:
        """Return the step that `record` wrote."""
        return cls(**{**record, "refused": tuple(Refused(str(why)) for why in record["refused"])})

    def __str__(self) -> str:
        """Return the step in a few words for people."""
        text = f"{self.task} by {self.rung}"
        if self.calls:
            tokens = f"{self.prompt_tokens:,} + {self.reply_tokens:,} tokens"
            times = "once" if self.calls == 1 else f"{self.calls} times"
            text += f", asked {self.model or 'a model'} {times}, {tokens}"
        whys = dict.fromkeys(refused.why for refused in self.refused)
        return text + (f"; refused: {'; '.join(whys)}" if whys else "")


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Value]):
    """One operation, whoever carries it out.

    Attributes:
        name: as steps and errors call it.
        messages: ask a model; what people said stands in them as data.
        schema: the form of the reply.
        read: makes the value of a reply that has the form, and says what of it was refused.
        rules: makes the value without a model.
        max_tokens: of the reply.
    """

    name: str
    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    read: Callable[[Any], tuple[Value, Sequence[Refused]]]
    rules: Callable[[], Value]
    max_tokens: int = 512


class Ladder:
    """Carries out the tasks of one write.

    Args:
        rung: "rules", or a model as "slm" (local) or "endpoint".
        llm: the model of that rung.
        fall_back: whether a model that fails gives way to rules; otherwise it is an error.

    Attributes:
        steps: what was done so far.
    """

    def __init__(
        self, rung: Rung = "rules", llm: Llm | None = None, *, fall_back: bool = False
    ) -> None:
        if rung not in RUNGS:
            raise ParameterError("unknown back end", value=rung, allowed=", ".join(RUNGS))
        self.rung, self.llm, self.fall_back = rung, llm, fall_back
        self.steps: list[Step] = []

    def run(self, task: Task[Value]) -> tuple[Value, Rung]:
        """Return what the task asked for, and which rung gave it.

        Raises:
            ModelError: a model is asked for and there is none, or it fails, or its reply is not
                valid, and `fall_back` is off.
        """
        if self.rung == "rules":
            self.steps.append(Step(task=task.name))
            return task.rules(), "rules"
        if self.llm is None:
            raise ModelError(
                f"the back end {self.rung} needs a language model and none was given",
                way_out="give one, or use the back end rules",
            )
        llm = self.llm
        asked = answered = 0
        try:
            asked = sum(llm.count_tokens(message["content"]) for message in task.messages)
            reply = llm.generate(
                task.messages, max_tokens=task.max_tokens, seed=0, schema=task.schema
            )
            answered = llm.count_tokens(reply)
            value, refused = task.read(parse(reply, task.schema))
        except LociError as problem:
            return self._below(task, asked, answered, problem), "rules"
        self._step(task, self.rung, asked, answered, refused)
        return value, self.rung

    def refuse(self, refused: Sequence[Refused]) -> None:
        """Write down with the last step what was turned down after it."""
        last = self.steps[-1]
        self.steps[-1] = replace(last, refused=(*last.refused, *refused))

    def _below(self, task: Task[Value], asked: int, answered: int, problem: LociError) -> Value:
        why = problem.what
        if not self.fall_back:
            raise ModelError(
                f"the back end {self.rung} could not {task.name}: {why}",
                value=problem.value,
                allowed=problem.allowed,
                way_out=[
                    *problem.way_out,
                    "nothing was stored; add it with infer=False to keep what was said",
                    "or allow falling back to rules (fall_back=True), or use another model",
                ],
            )
        self._step(task, "rules", asked, answered, [Refused(f"{self.rung}: {why}")])
        return task.rules()

    def _step(
        self, task: Task[Any], rung: Rung, asked: int, answered: int, refused: Sequence[Refused]
    ) -> None:
        assert self.llm is not None
        self.steps.append(
            Step(
                task=task.name,
                rung=rung,
                model=self.llm.name,
                calls=1,
                prompt_tokens=asked,
                reply_tokens=answered,
                refused=tuple(refused),
            )
        )


def parse(reply: str, schema: Mapping[str, Any]) -> Any:
    """Return the JSON of a reply that has the form of `schema`; a code fence around it is fine.

    Raises:
        ParameterError: if it is no JSON, or of another form.
    """
    fenced = re.match(r"[^{\[]*```(?:json)?\s*(.*?)\s*```\s*$", reply, re.DOTALL)
    try:
        data = json.loads(fenced[1] if fenced else reply)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair cannot be stored
    except (ValueError, RecursionError):
        raise ParameterError("the reply is no JSON", value=reply[:80]) from None
    problem = misfit(data, schema)
    if problem is not None:
        raise ParameterError(f"the reply has another form: {problem}", value=reply[:80])
    return data
