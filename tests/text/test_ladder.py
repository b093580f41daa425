"""Back ends of extraction and the validator they share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from loci.core.item import Turn
from loci.errors import EndpointError, ModelError, ParameterError
from loci.text.ladder import Ladder, prompt, validate

TURNS = [
    Turn(
        id="t1",
        role="user",
        name="Ada",
        content="I live in Graz and my sister Lena has 2 cats.",
        time=datetime(2026, 3, 1, tzinfo=UTC),
    )
]


class Scripted:
    """A model that says one thing."""

    name = "scripted"

    def __init__(self, reply: str | Exception) -> None:
        self.reply = reply

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def reply(*facts: dict[str, object]) -> str:
    return json.dumps({"facts": list(facts)})


def test_rules_need_no_model() -> None:
    result = Ladder().extract(TURNS)
    assert result.rung == "rules" and result.cost.calls == 0
    assert "Ada lives in Graz" in [f.text for f in result.facts]


def test_a_valid_reply_is_taken_with_its_cost() -> None:
    good = reply({"text": "Ada lives in Graz", "sources": [1], "predicate": "lives_in"})
    result = Ladder(rung="slm").extract(TURNS, llm=Scripted(good))
    assert result.rung == "slm" and result.cost.calls == 1 and result.cost.reply_tokens > 0
    (fact,) = result.facts
    assert fact.sources == ("t1",) and not fact.many


@pytest.mark.parametrize(
    ("fact", "why"),
    [
        ({"text": "Ada lives in Graz", "sources": [2]}, "a source that does not exist"),
        ({"text": "Ada lives in Graz", "sources": []}, "no sources"),
        ({"text": "Lena has 3 cats", "sources": [1]}, "a number nobody said"),
        ({"text": "Then Ada met Bob in Graz", "sources": [1]}, "a name nobody said"),
        ({"text": "everyone enjoys sailing boats", "sources": [1]}, "not grounded"),
        ({"text": "Ada lives in Graz", "sources": [1], "mood": "x"}, "not of the agreed form"),
        ({"text": 3, "sources": [1]}, "no usable text"),
    ],
)
def test_what_nobody_said_is_refused(fact: dict[str, object], why: str) -> None:
    good, refused = validate(reply(fact), TURNS)
    assert good == [] and refused[0].startswith(why)


def test_no_json_is_an_error() -> None:
    with pytest.raises(ParameterError, match="no JSON"):
        validate("I think Ada lives in Graz", TURNS)


def test_falls_back_only_when_told_and_says_so() -> None:
    with pytest.raises(ModelError, match="no valid facts"):
        Ladder(rung="slm").extract(TURNS, llm=Scripted("nonsense"))
    result = Ladder(rung="slm", fall_back=True).extract(TURNS, llm=Scripted("nonsense"))
    assert result.rung == "rules" and result.facts and "slm" in result.refused[0]
    down = Scripted(EndpointError("no answer"))
    assert Ladder(rung="endpoint", fall_back=True).extract(TURNS, llm=down).rung == "rules"


def test_a_model_must_be_given() -> None:
    with pytest.raises(ModelError, match="needs a language model"):
        Ladder(rung="endpoint").extract(TURNS)
    with pytest.raises(ParameterError, match="unknown rung"):
        Ladder(rung="magic")  # type: ignore[arg-type]


def test_the_prompt_shows_numbers_not_ids() -> None:
    text = prompt(TURNS)[1]["content"]
    assert "[1]" in text and "t1" not in text
