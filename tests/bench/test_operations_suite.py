"""Operations on facts: the halves of the wordings, and what a memory looks like afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from loci.bench import suite
from loci.bench.suite import Context
from loci.bench.suites import operations
from loci.core.item import Edit, Hit, Item, Turn
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.methods.recall.mem0 import Mem0
from loci.testing.recall import DictView
from loci.text.dialogue import Half, make_dialogue, turns_of, wordings


class _Deaf(Recall):
    """Remembers no fact and finds nothing."""

    about = Mem0.about

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        return []

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        return []


def test_the_halves_share_no_wording_and_are_drawn_by_the_seed() -> None:
    written, held_out = set(wordings("written")), set(wordings("held_out"))
    assert not written & held_out and written | held_out == set(wordings("both"))
    assert abs(len(written) - len(held_out)) <= 44, "one more at most in each of 44 lists"
    assert wordings("written", split=1) != wordings("written", split=2)
    assert wordings("written", split=1) == wordings("written", split=1)
    assert set(wordings("plain")) | set(wordings("more")) == set(wordings("both"))


@pytest.mark.parametrize("half", ["plain", "more", "written", "held_out"])
def test_a_dialogue_uses_the_wordings_of_its_half_alone(half: Half) -> None:
    dialogue = make_dialogue(4, half=half)
    assert dialogue == make_dialogue(4, half=half)
    content = {turn.id: turn.content for turn in turns_of(dialogue)}
    for wanted in dialogue.expected:
        if wanted.operation != "none":
            told = [text.format(v=wanted.value) for text in wordings(half)]
            assert content[wanted.turn] in {text[:1].upper() + text[1:] for text in told}


def test_facts_that_say_the_same_are_counted() -> None:
    one = Item(id="1", text="Ada lives in Graz", subject="ada", predicate="lives_in", object="graz")
    same = replace(one, id="2", text="Graz is where Ada has a flat")
    words = replace(one, id="3", text="Lives Ada in Graz?", object=None)
    other = replace(one, id="4", text="Ada lives in Rome", object="rome")
    assert operations.duplicates([one, other]) == 0
    assert operations.duplicates([one, same, words, other]) == 2


def test_a_message_that_is_not_found_is_told() -> None:
    dialogue = make_dialogue(1, sessions=2)
    view = DictView()
    for session in dialogue.sessions:
        view.remember(session, Mem0())
    assert operations.unreachable(dialogue, view, Mem0()) == []
    turns = turns_of(dialogue)
    assert len(operations.unreachable(dialogue, view, _Deaf())) == len(turns)
    assert len(operations.unreachable(dialogue, DictView(), Mem0())) == len(turns)


def test_the_suite_reports_every_half(tmp_path: Path) -> None:
    result = suite.find("operations").run(
        Context(folder=tmp_path, options={"dialogues": "2"}, methods=("mem0",))
    )
    figures = result["methods"]["mem0"]
    assert figures["f1"]["macro"] >= 0.85 and figures["live_duplicates"] == 0
    assert figures["turns_lost"] == 0 and figures["live_outdated"] == 0
    assert figures["held_out"]["f1"]["macro"] >= 0.85
    assert figures["held_out"]["live_duplicates"] == 0
    for half in ("written", "held_out", "more"):
        assert 0.0 < figures[half]["f1"]["macro"] <= 1.0
        assert figures[half]["turns"] == figures["turns"]
