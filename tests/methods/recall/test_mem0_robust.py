"""Mem0 on memories of other shapes: journals, crowds, no names, few turns and many."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from loci.core.item import Turn
from loci.methods.recall.base import Query
from loci.methods.recall.mem0 import Mem0
from loci.testing.chats import make_chat
from loci.testing.recall import DictView, told
from loci.text.question import scaled, take_apart
from loci.text.stem import stems

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def remember(*turns: Turn, size: int = 50) -> DictView:
    view = DictView()
    for start in range(0, len(turns), size):
        view.remember(turns[start : start + size], Mem0())
    return view


def find(view: DictView, text: str, limit: int = 10) -> list[str]:
    hits = Mem0().find(Query(text=text, limit=limit), view)
    assert len({hit.sources[0].id for hit in hits}) == len(hits)
    assert all(hit.score == hit.score for hit in hits), "no score is nan"
    return [hit.sources[0].content for hit in hits]


def test_a_journal_of_one_person() -> None:
    lines = ("Rain all day.", "I planted tulips by the shed.", "Slept badly.", "Tea with my aunt.")
    view = remember(*told(*lines))
    # Everybody asked about spoke every turn, so that must not decide anything.
    assert find(view, "What did Ada plant?")[0] == lines[1]
    assert find(view, "What did I plant?")[0] == lines[1]
    assert find(view, "planted")[0] == lines[1]


def test_a_crowd_tells_apart_those_who_are_named() -> None:
    names = ("Ana", "Bram", "Chidi", "Dunja", "Emre")
    turns = [
        replace(turn, id=f"{name}{turn.id}", name=name, position=at)
        for at, name in enumerate(names)
        for turn in told(f"I got a new bike for my birthday, number {at}.")
    ]
    view = remember(*turns)
    assert find(view, "What did Chidi get?")[0].endswith("number 2.")
    two = find(view, "What did Bram and Dunja get for their birthdays?")
    assert {text[-2] for text in two[:2]} == {"1", "3"}
    assert len(find(view, "Who got a bike?")) == 5
    everybody = find(view, "Did Ana, Bram, Chidi, Dunja and Emre get bikes?")
    assert len(everybody) == 5


def test_a_user_without_a_name_asks_about_themselves() -> None:
    begin = NOW - timedelta(days=3)
    lines = (
        ("user", "I'm allergic to sesame, what can I cook tonight?"),
        ("assistant", "Many people are allergic to sesame; a tomato soup is safe for your dinner."),
        ("user", "Thanks! My sister Lena is coming over."),
        ("assistant", "How lovely. Does Lena like soup?"),
    )
    turns = [
        Turn(id=f"t{at}", role=role, content=text, session="s", position=at,
             time=begin + timedelta(minutes=at))
        for at, (role, text) in enumerate(lines)
    ]  # fmt: skip
    view = remember(*turns)
    assert view.speakers() == []
    for question in (
        "What am I allergic to?",
        "What is the user allergic to?",
        "my sesame allergy",
    ):
        assert find(view, question)[0] == lines[0][1], question
    assert lines[2][1] in find(view, "Who is my sister?")[:2]


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("What will Ada do?", ("Ada",)),
        ("What did Will say?", ("Will",)),
        ("what did will say?", ("Will",)),
        ("When may we meet?", ()),
        ("What did May and Ada plan?", ("Ada", "May")),
        ("Where does Ada's mother live?", ("Ada",)),
        ("where does ada live", ("Ada",)),
        ("Adaptors, where are they?", ()),
    ],
)
def test_names_that_are_words_too(question: str, named: tuple[str, ...]) -> None:
    parts = take_apart(question, ["Ada", "Will", "May", "Grace Hope"], NOW)
    assert set(parts.speakers) == set(named)


@pytest.mark.parametrize(
    ("question", "me", "when"),
    [
        ("What am I allergic to?", True, False),
        ("where do i live", True, False),
        ("my allergies", True, False),
        ("What is the user's job?", True, False),
        ("Tell me about the garden.", False, False),
        ("I see.", False, False),
        ("What did Ada say to me?", False, False),
        ("When did I move?", True, True),
        ("What year was it?", False, True),
        ("How long ago was that?", False, True),
        ("What happened when it rained?", False, False),
    ],
)
def test_who_asks_and_for_what(question: str, me: bool, when: bool) -> None:
    parts = take_apart(question, ["Ada"], NOW)
    assert (parts.me, parts.when) == (me, when)


def test_ten_turns_and_two_thousand() -> None:
    short = [turn for session in make_chat(3, sessions=1).sessions for turn in session][:10]
    view = remember(*short)
    assert find(view, short[6].content, limit=20)[0] == short[6].content
    dice = random.Random(0)
    words = [f"word{n}" for n in range(300)]
    long = [
        turn
        for at in range(2000)
        for turn in [
            Turn(id=f"t{at}", role="user", name=("Ada", "Bob")[at % 2], session="one",
                 content=" ".join(dice.choices(words, k=9)) + ".", position=at,
                 time=NOW + timedelta(minutes=at))
        ]
    ]  # fmt: skip
    long[1203] = replace(long[1203], content="I left my umbrella on the night ferry.")
    view = DictView()
    view.add_turns(long)
    assert find(view, "Where did Bob leave his umbrella?")[0] == long[1203].content


@pytest.mark.parametrize("form", ["friends", "assistant", "unnamed"])
def test_every_form_of_talk_is_found_again(form: str) -> None:
    ours = plain = 0
    for seed in range(3):
        chat = make_chat(seed, sessions=6, form=form)  # type: ignore[arg-type]
        view = DictView()
        for session in chat.sessions:
            view.remember(session, Mem0())
        for asked in chat.questions:
            best = [id for id, _ in view.search_words(stems(asked.text), 10, "turn")]
            plain += not set(asked.evidence).isdisjoint(best)
            told_by = {view.turn(id).content for id in asked.evidence}
            ours += not told_by.isdisjoint(find(view, asked.text))
    assert ours >= 1.2 * plain, "by words alone, beside plain BM25"


def test_values_that_are_equal_but_for_rounding_tell_nothing_apart() -> None:
    assert scaled({"a": 3.7743, "b": 3.7743 + 1e-15}, ["a", "b"], 1.0) == {"a": 0.0, "b": 0.0}
    assert scaled({"a": 0.0, "b": 0.0}, ["a", "b"], 1.0) == {"a": 0.0, "b": 0.0}
    assert scaled({"a": 1.0, "b": 3.0}, ["a", "b"], 2.0) == {"a": -2.0, "b": 2.0}
    assert scaled({}, ["a"], 1.0) == {} == scaled({"a": 1.0}, [], 1.0)


def test_odd_turns_break_nothing() -> None:
    turns = told("?", "??? !!!", "." * 5000, "no end " * 3000, "what?\n\nnothing.\nwhy?")
    view = remember(*turns)
    for text in ("?", "what", "When?", "I", "Ada", "no end"):
        find(view, text)
