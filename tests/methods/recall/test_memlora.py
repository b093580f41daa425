"""MemLoRA: conformance, then what is particular: short prompts, experts by stage, ids as shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from loci.core.item import Add, Retire, Revise
from loci.errors import EndpointError, ModelError
from loci.methods.recall.base import Recall
from loci.methods.recall.mem0 import Mem0
from loci.methods.recall.memlora import EXTRACT, UPDATE, MemLora, choosing, extracting, related
from loci.testing.recall import CONFORMANCE, DictView, told
from loci.text.form import misfit
from loci.text.ladder import Ladder
from loci.text.tasks import drawing


class Experts:
    """Answers as each expert should, and remembers who was asked."""

    name = "experts"

    def __init__(self, replies: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        self._replies = {name: list(found) for name, found in replies.items()}
        self.asked: list[tuple[str, str]] = []
        self.fails: str | None = None

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        (message,) = messages
        if message["expert"] == self.fails:
            raise EndpointError("it did not answer")
        self.asked.append((message["expert"], message["content"]))
        reply = self._replies[message["expert"]].pop(0)
        assert schema is not None and misfit(reply, schema) is None
        return json.dumps(reply)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


@pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: str(check.__name__))
def test_conforms(check: Callable[[Recall], None]) -> None:
    check(MemLora())


def test_by_rules_it_is_mem0() -> None:
    views = (DictView(), DictView())
    for text in ("I live in Graz.", "I moved to Leeds.", "I play chess."):
        for view, method in zip(views, (MemLora(), Mem0()), strict=True):
            view.remember(told(text), method)
    assert [i.text for i in views[0].all_items()] == [i.text for i in views[1].all_items()]


def test_each_stage_is_asked_of_its_expert_in_few_words() -> None:
    llm = Experts(
        {
            EXTRACT: [{"facts": ["Ada lives in Graz"]}, {"facts": ["Ada lives in Leeds"]}],
            UPDATE: [{"is": "changed"}],
        }
    )
    view = DictView()
    for text in ("I live in Graz.", "I moved, I live in Leeds now."):
        turns = told(text)
        edits = view.remember(turns, MemLora(), Ladder("slm", llm))
    assert [name for name, _ in llm.asked] == [EXTRACT, EXTRACT, UPDATE]
    assert llm.asked[-1][1] == "Known: Ada lives in Graz\nNew: Ada lives in Leeds"
    (edit,) = edits
    assert isinstance(edit, Retire) and edit.superseded_by is not None
    assert [item.is_live for item in view.all_items()] == [False, True]
    long = drawing(turns, small=True).messages
    short = extracting(turns).messages
    words = [sum(len(m["content"].split()) for m in asked) for asked in (short, long)]
    assert words[0] < 0.25 * words[1]


def test_what_nobody_said_is_refused() -> None:
    llm = Experts(
        {
            EXTRACT: [{"facts": ["Ada lives in Paris", "Ada lives in Graz"]}],
            UPDATE: [],
        }
    )
    ladder = Ladder("slm", llm)
    (edit,) = DictView().remember(told("I live in Graz."), MemLora(), ladder)
    assert isinstance(edit, Add) and edit.candidate.text == "Ada lives in Graz"
    assert "a name nobody said" in str(ladder.steps[0])


def test_memories_are_compared_best_first_until_one_is_no_other_matter() -> None:
    llm = Experts(
        {
            EXTRACT: [
                {"facts": ["Ada likes chess"]},
                {"facts": ["Ada plays chess"]},
                {"facts": ["Ada no longer plays chess"]},
            ],
            UPDATE: [{"is": "other"}, {"is": "ended"}],
        }
    )
    view = DictView()
    for text in ("I like chess.", "I play chess.", "I gave up chess."):
        edits = view.remember(told(text), MemLora(), Ladder("slm", llm))
    shown = [text for name, text in llm.asked if name == UPDATE]
    assert shown == [
        "Known: Ada likes chess\nNew: Ada plays chess",
        "Known: Ada plays chess\nNew: Ada no longer plays chess",
    ]
    (edit,) = edits
    assert isinstance(edit, Retire) and edit.superseded_by is None
    assert [item.text for item in view.all_items() if item.is_live] == ["Ada likes chess"]


def test_what_is_known_word_for_word_is_not_asked_about() -> None:
    said = {"facts": ["Ada plays chess"]}
    llm = Experts({EXTRACT: [said, said], UPDATE: []})
    view = DictView()
    for text in ("I play chess.", "I play chess on Sundays."):
        (edit,) = view.remember(told(text), MemLora(), Ladder("slm", llm))
    assert isinstance(edit, Revise) and edit.reason == "said again"
    assert [item.text for item in view.all_items()] == ["Ada plays chess"]


def test_memories_of_others_are_not_shown() -> None:
    llm = Experts({EXTRACT: [{"facts": ["Ada lives in Graz"]}, {"facts": ["Tom lives in Graz"]}]})
    view = DictView()
    for name in ("Ada", "Tom"):
        turn = replace(told("I live in Graz.")[0], id=name, name=name)
        (edit,) = view.remember([turn], MemLora(), Ladder("slm", llm))
        assert isinstance(edit, Add)


def test_only_what_has_ended_can_end_a_memory() -> None:
    assert misfit({"is": "ended"}, related(ends=True)) is None
    assert misfit({"is": "changed"}, related(ends=False)) is None
    assert misfit({"is": "changed"}, related(ends=True)) is not None
    assert misfit({"is": "ended"}, related(ends=False)) is not None


def test_rules_take_a_fact_over_where_its_expert_fails() -> None:
    llm = Experts(
        {
            EXTRACT: [{"facts": ["Ada lives in Graz"]}, {"facts": ["Ada lives in Leeds"]}],
            UPDATE: [{"is": "changed"}],
        }
    )
    view = DictView()
    view.remember(told("I live in Graz."), MemLora(), Ladder("slm", llm))
    llm.fails = UPDATE
    ladder = Ladder("slm", llm, fall_back=True)
    (edit,) = view.remember(told("I moved, I live in Leeds now."), MemLora(), ladder)
    assert isinstance(edit, Retire) and edit.superseded_by is not None
    assert [step.rung for step in ladder.steps] == ["slm", "rules"]
    with pytest.raises(ModelError, match="could not compare"):
        choosing(Ladder("slm", llm), [edit.superseded_by], view.all_items()[:1], lambda fact: [])
