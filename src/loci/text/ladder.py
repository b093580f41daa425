"""Back ends that draw facts: rules, a small local model, or an endpoint; one validator for all.

A rung is asked only when it is named. If its reply does not validate, or it fails, the next rung
below is used when `fall_back` says so; which rung answered, what it cost and why another did not
are in the result. Rules never fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal  # a model's reply is whatever JSON can hold

from loci.core.item import Candidate, Turn
from loci.core.ports import Llm
from loci.errors import EndpointError, ModelError, ParameterError
from loci.text.entities import entities
from loci.text.extract import extract
from loci.text.slots import SLOTS, slot_of
from loci.text.stem import fold, stems

Rung = Literal["rules", "slm", "endpoint"]
RUNGS: tuple[Rung, ...] = ("rules", "slm", "endpoint")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "sources": {"type": "array", "items": {"type": "integer"}},
                    "subject": {"type": "string"},
                    "predicate": {"type": "string"},
                    "object": {"type": "string"},
                    "ends": {"type": "boolean"},
                },
                "required": ["text", "sources"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["facts"],
    "additionalProperties": False,
}
_INSTRUCTION = (
    "Extract lasting facts about the people who speak from the numbered messages. Write each as a "
    "short sentence in the third person that stands alone, name the messages it comes from by "
    "their numbers, and use only words the messages support. Set ends to true when something is "
    'said to be over. Answer with JSON: {"facts": [{"text": "...", "sources": [1]}]}. When there '
    'is nothing to remember, answer {"facts": []}.'
)
_KEYS = frozenset(SCHEMA["properties"]["facts"]["items"]["properties"])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one extraction cost: calls of a model and tokens in and out."""

    calls: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The facts, which rung gave them, what it cost, and what was turned down on the way."""

    facts: tuple[Candidate, ...]
    rung: Rung
    cost: Cost = Cost()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Draw facts with one rung.

    Args:
        rung: "rules", or a model as "slm" (local) or "endpoint".
        fall_back: whether a failing model gives way to rules; otherwise it is an error.
        grounded: share of a fact's content words that its turns must contain.
    """

    rung: Rung = "rules"
    fall_back: bool = False
    grounded: float = 0.6
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.rung not in RUNGS:
            raise ParameterError("unknown rung", value=self.rung, allowed=", ".join(RUNGS))

    def extract(
        self, turns: Sequence[Turn], context: Sequence[Turn] = (), llm: Llm | None = None
    ) -> Extraction:
        """Return facts of `turns`; `context` came before and yields no facts itself.

        Raises:
            ModelError: a model is asked for and there is none, or its reply is not valid and
                `fall_back` is off.
        """
        if self.rung == "rules":
            return Extraction(facts=tuple(extract(turns, context)), rung="rules")
        if llm is None:
            raise ModelError(
                f"the rung {self.rung} needs a language model and none was given",
                way_out="pass one, or use the rung rules",
            )
        messages = prompt(turns, context)
        asked = sum(llm.count_tokens(message["content"]) for message in messages)
        try:
            reply = llm.generate(messages, max_tokens=self.max_tokens, seed=0, schema=SCHEMA)
        except (EndpointError, ModelError) as problem:
            return self._below(turns, context, Cost(calls=1, prompt_tokens=asked), problem.what)
        cost = Cost(calls=1, prompt_tokens=asked, reply_tokens=llm.count_tokens(reply))
        try:
            facts, refused = validate(reply, turns, self.grounded)
        except ParameterError as problem:
            return self._below(turns, context, cost, problem.what)
        return Extraction(facts=tuple(facts), rung=self.rung, cost=cost, refused=tuple(refused))

    def _below(
        self, turns: Sequence[Turn], context: Sequence[Turn], cost: Cost, why: str
    ) -> Extraction:
        if not self.fall_back:
            raise ModelError(
                f"the rung {self.rung} gave no valid facts: {why}",
                way_out="allow falling back to rules, or use another model",
            )
        return Extraction(
            facts=tuple(extract(turns, context)),
            rung="rules",
            cost=cost,
            refused=(f"{self.rung}: {why}",),
        )


def prompt(turns: Sequence[Turn], context: Sequence[Turn] = ()) -> list[dict[str, str]]:
    """Return the messages that ask a model for facts; turns are numbered, ids stay here."""
    lines = [f"(before) {t.name or t.role}: {t.content}" for t in context[-10:]]
    lines += [
        f"[{number}] {t.time:%Y-%m-%d} {t.name or t.role}: {t.content}"
        for number, t in enumerate(turns, 1)
    ]
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": "\n".join(lines)},
    ]


def validate(
    reply: str, turns: Sequence[Turn], grounded: float = 0.6
) -> tuple[list[Candidate], list[str]]:
    """Return the valid facts of a reply and, in words, why others were refused.

    A fact's sources must exist and its content words must stand in them; numbers and names must
    all stand there.

    Raises:
        ParameterError: if the reply is not the agreed JSON.
    """
    try:
        data = json.loads(_json_of(reply))
    except ValueError:
        raise ParameterError("the reply is no JSON", value=reply[:80]) from None
    if not isinstance(data, dict) or not isinstance(data.get("facts"), list):
        raise ParameterError("the reply has no list of facts", value=reply[:80])
    good: list[Candidate] = []
    refused: list[str] = []
    for entry in data["facts"]:
        made = _one(entry, turns, grounded)
        if isinstance(made, str):
            refused.append(made)
        else:
            good.append(made)
    return good, refused


def _json_of(reply: str) -> str:
    fenced = re.search(r"```(?:json)?\s*(.*?)```", reply, re.DOTALL)
    return (fenced[1] if fenced else reply).strip()


def _one(entry: object, turns: Sequence[Turn], grounded: float) -> Candidate | str:
    if not isinstance(entry, dict) or set(entry) - _KEYS:
        return f"not of the agreed form: {str(entry)[:60]}"
    text, numbers = entry.get("text"), entry.get("sources")
    if not isinstance(text, str) or not 3 <= len(text.strip()) <= 400:
        return f"no usable text: {str(text)[:60]}"
    if not isinstance(numbers, list) or not numbers:
        return f"no sources: {text}"
    if any(
        not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= len(turns) for n in numbers
    ):
        return f"a source that does not exist: {text}"
    sources = [turns[n - 1] for n in dict.fromkeys(numbers)]
    said = " ".join(f"{t.name or ''} {t.content} {t.time:%d %B %Y}" for t in sources)
    have, words = set(stems(said)), stems(text)
    missing = [word for word in words if word not in have]
    if any(
        word.isdigit() and word.lstrip("0") not in {h.lstrip("0") for h in have} for word in missing
    ):
        return f"a number nobody said: {text}"
    names = [n for n in entities(f"x {text}") if not set(stems(n)) <= have]
    if names:
        return f"a name nobody said ({names[0]}): {text}"
    if words and 1 - len(missing) / len(words) < grounded:
        return f"not grounded in its messages: {text}"
    for key in ("subject", "predicate", "object"):
        if not isinstance(entry.get(key, ""), str):
            return f"{key} is not text: {text}"
    predicate = str(entry.get("predicate") or "").lower() or None
    known = predicate is not None and predicate.partition(":")[0] in SLOTS
    who = str(entry.get("subject") or sources[0].name or "the user")
    ends = entry.get("ends", False)
    if not isinstance(ends, bool):
        return f"ends is not true or false: {text}"
    return Candidate(
        text=text.strip(),
        sources=tuple(t.id for t in sources),
        subject=fold(who),
        predicate=predicate if known else "did",
        object=fold(str(entry.get("object") or text.strip())),
        entities=tuple(dict.fromkeys((fold(who), *entities(f"x {text}")))),
        valid_from=sources[-1].time,
        valid_to=sources[-1].time if ends else None,
        ends=ends,
        many=slot_of(predicate or "did").many,
    )
