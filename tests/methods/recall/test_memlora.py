"""MemLoRA: conformance, then what is particular: short prompts, experts by stage, ids as shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from loci.core.item import Add, Retire
from loci.methods.recall.base import Recall
from loci.methods.recall.mem0 import Mem0
from loci.methods.recall.memlora import EXTRACT, UPDATE, MemLora, event_of, extracting, updating
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
            UPDATE: [{"event": "ADD", "id": None}, {"event": "UPDATE", "id": 1}],
        }
    )
    view = DictView()
    for text in ("I live in Graz.", "I moved, I live in Leeds now."):
        turns = told(text)
        edits = view.remember(turns, MemLora(), Ladder("slm", llm))
    assert [name for name, _ in llm.asked] == [EXTRACT, UPDATE, EXTRACT, UPDATE]
    assert llm.asked[-1][1] == "Known:\n1. Ada lives in Graz\nNew: Ada lives in Leeds"
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
            UPDATE: [{"event": "ADD", "id": None}],
        }
    )
    ladder = Ladder("slm", llm)
    (edit,) = DictView().remember(told("I live in Graz."), MemLora(), ladder)
    assert isinstance(edit, Add) and edit.candidate.text == "Ada lives in Graz"
    assert "a name nobody said" in str(ladder.steps[0])


def test_only_numbers_that_were_shown_can_be_named() -> None:
    assert misfit({"event": "UPDATE", "id": 2}, event_of(2)) is None
    for wrong in ({"event": "UPDATE", "id": 3}, {"event": "UPDATE", "id": 0}):
        assert misfit(wrong, event_of(2)) is not None
    assert misfit({"event": "DELETE", "id": 1}, event_of(0)) is not None
    assert misfit({"event": "FORGET", "id": None}, event_of(1)) is not None
    turns = told("I live in Graz.")
    (fact,) = Ladder().run(drawing(turns))[0]
    task = updating([fact], [], lambda one: [])
    edits, refused = task.read({"event": "UPDATE", "id": None})
    assert isinstance(edits[0], Add) and "no memory was named" in str(refused[0])
