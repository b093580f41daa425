"""Books: written by rules and a model, and judged by what they tell of people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from loci.bench.suites import book
from loci.errors import MethodError
from loci.methods.recall.l2mac import L2mac
from loci.testing.novelist import NAMES, TRAITS, make_story, opening, told


class Parrot:
    """Tells what the prompt shows of somebody, or the first value there is."""

    name = "parrot"

    def __init__(self) -> None:
        self.prompts: list[int] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def generate(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        shown = "\n".join(message["content"] for message in messages)
        self.prompts.append(self.count_tokens(shown))
        begins = re.findall(r'begins with these words: "(.*?)"', shown)[-1]
        known = re.search(rf"^{re.escape(begins)} (\w+)\.$", shown, re.MULTILINE)
        name = next(name for name in NAMES if name in begins)
        trait = next(trait for trait in TRAITS if opening(name, trait) == begins)
        value = known[1] if known else TRAITS[trait][1][0]
        return f"{begins} {value}, " + "and so the day went on " * 12


def test_the_control_unit_reads_what_one_conversation_forgets() -> None:
    story = make_story(3, chapters=9)
    method = L2mac(context=640, reserve=120, retries=60)
    mine = book.written(method, story, Parrot())
    theirs = book.conversation(story, Parrot(), 640, 120)
    wanted = [pair for chapter in story.chapters for pair in chapter]
    assert len(mine) == len(theirs) == len(wanted)
    ours, rival = book.judge([story], [mine]), book.judge([story], [theirs])
    assert ours["right"]["value"] == 1 and ours["contradicted_per_1000_words"] == 0
    assert rival["right"]["value"] < 0.8 and rival["contradicted_per_1000_words"] > 0
    assert book.conversation(story, Parrot(), 10**6, 120) != theirs  # with room it forgets nothing


def test_a_book_that_cannot_be_finished_says_why() -> None:
    method = L2mac(context=420, reserve=120, retries=5)  # a file has no room in it
    with pytest.raises(MethodError, match="not finished: step 1"):
        book.written(method, make_story(3, chapters=2), Parrot())


def test_no_prompt_is_over_the_limit() -> None:
    story, llm = make_story(4, chapters=3), Parrot()
    book.conversation(story, llm, 300, 100)
    assert max(llm.prompts) <= 200


def test_the_first_value_decides() -> None:
    assert told("Anna works as a Doctor, not a baker.", "doctor", "job") == "right"
    assert told("Anna works as a baker, then as a doctor.", "doctor", "job") == "wrong"
    assert told("Anna works at night.", "doctor", "job") == "unclear"
    assert told("She lives in Parisian style.", "Paris", "city") == "right"


def test_stories_are_drawn_from_their_seed() -> None:
    assert make_story(1) == make_story(1) != make_story(2)
    story = make_story(5, chapters=12)
    assert len(story.chapters) == 12
    assert all(len(set(chapter)) == 6 for chapter in story.chapters)
