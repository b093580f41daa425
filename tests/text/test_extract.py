"""Facts from single turns, and from turns that lean on others."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from loci.core.item import Candidate, Turn
from loci.text.extract import extract

NOW = datetime(2023, 5, 8, 13, 0, tzinfo=UTC)


def facts(*lines: str, roles: str = "") -> list[Candidate]:
    turns = [
        Turn(
            id=f"t{i}",
            role={"a": "assistant"}.get(roles[i] if roles else "u", "user"),
            name="Ada" if not roles or roles[i] == "u" else None,
            content=line,
            time=NOW,
            session="s",
            position=i,
        )
        for i, line in enumerate(lines)
    ]
    return extract(turns)


@pytest.mark.parametrize(
    ("said", "texts"),
    [
        ("I'm allergic to nuts and eggs", ["Ada is allergic to nuts", "Ada is allergic to eggs"]),
        ("I live in Paris with my wife", ["Ada lives in Paris"]),
        ("We moved to Berlin last month", ["Ada lives in Berlin"]),
        ("My name is Ada and I'm 34 years old", ["Ada is 34 years old"]),
        ("I work at Google as an engineer", ["Ada works as an engineer", "Ada works at Google"]),
        ("My favorite food is sushi now", ["Ada's favourite food is sushi"]),
        ("My dog's name is Bella", ["Ada has a dog named Bella"]),
        ("I have two kids, Mia and Tom", ["Ada has a kid named Mia", "Ada has a kid named Tom"]),
        ("I'm vegetarian", ["Ada is vegetarian"]),
        ("I don't like mushrooms", ["Ada does not like mushrooms"]),
        ("I can't stand loud music", ["Ada dislikes loud music"]),
        ("Please call me Addy", ["Ada wants to be called Addy"]),
        ("My husband is called Peter", ["Ada's husband is Peter"]),
        ("I bought a red bike yesterday", ["Ada bought a red bike on 7 May 2023"]),
        ("I graduated from MIT in 2015", ["Ada graduated from MIT in 2015"]),
        ("I'm learning Japanese", ["Ada is learning Japanese"]),
        ("I prefer tea over coffee", ["Ada prefers tea over coffee"]),
        ("My birthday is on March 14th", ["Ada's birthday is March 14th"]),
        ("Last Friday I won a medal at the fair", ["Ada won a medal at the fair on 5 May 2023"]),
        (
            "I have a dentist appointment on Tuesday at 3pm",
            ["Ada has a dentist appointment on 9 May 2023 at 3pm"],
        ),
    ],
)
def test_states(said: str, texts: list[str]) -> None:
    found = facts(said)
    assert [c.text for c in found] == texts
    assert not any(c.ends for c in found)
    assert all(c.sources == ("t0",) for c in found)


@pytest.mark.parametrize(
    ("said", "predicate", "value"),
    [
        ("I no longer work at Siemens", "works_at", "siemens"),
        ("I don't live in Paris anymore", "lives_in", "paris"),
        ("I quit my job last week", "works_at", "*"),
        ("I handed in my notice this morning", "works_at", "*"),
        ("We broke up", "partner", "*"),
        ("Tom and I broke up", "partner", "tom"),
        ("I sold my car", "drives", "car"),
        ("My bike was stolen yesterday", "owns", "bike"),
        ("I stopped playing the violin", "hobby", "playing the violin"),
        ("I'm not allergic to cats anymore", "allergic_to", "cats"),
        ("My cat Tigger died last week", "pet", "tigger"),
        ("I used to live in London", "lives_in", "london"),
    ],
)
def test_endings(said: str, predicate: str, value: str) -> None:
    assert (predicate, value) in [(c.predicate, c.object) for c in facts(said) if c.ends]


@pytest.mark.parametrize(
    "said",
    [
        "Do you live in Rome?",
        "If I lived in Paris I'd be happy",
        "I wish I had a dog",
        "I would love to have a garden",
        "Maybe I'll move to Spain",
        "Thanks, that sounds great!",
        "```\nI live in Rome\n```",
        "",
    ],
)
def test_nothing_is_told(said: str) -> None:
    assert facts(said) == []


def test_assistants_tell_nothing_unless_confirmed() -> None:
    assert facts("You live in Rome.", roles="a") == []
    (fact,) = facts("So you live in Rome, right?", "Yes, exactly.", roles="au")
    assert fact.text == "Ada lives in Rome"
    assert set(fact.sources) == {"t0", "t1"}


def test_a_correction_ends_one_value_and_tells_another() -> None:
    found = facts("I work at Siemens", "Sorry, I meant Bosch, not Siemens.")
    assert [(c.object, c.ends) for c in found] == [
        ("siemens", False),
        ("siemens", True),
        ("bosch", False),
    ]


def test_pronouns_reach_back() -> None:
    found = facts("My sister Lena visited me.", "She's a vet and she lives in Porto.")
    assert ("lena", "job", "a vet") in [(c.subject, c.predicate, c.object) for c in found]
    assert ("lena", "lives_in", "porto") in [(c.subject, c.predicate, c.object) for c in found]


def test_a_pet_is_named_a_sentence_later() -> None:
    texts = [c.text for c in facts("I adopted a cat on Saturday! She's called Pixel.")]
    assert "Ada has a cat named Pixel" in texts


def test_relatives_are_subjects_of_their_own() -> None:
    found = facts("My brother Jon works as a chef")
    assert [(c.subject, c.text) for c in found] == [
        ("ada", "Ada has a brother named Jon"),
        ("ada's brother", "Ada's brother Jon works as a chef"),
    ]


def test_dates_set_when_it_holds() -> None:
    (fact,) = facts("We moved to Berlin last month")
    assert fact.valid_from == datetime(2023, 4, 1, tzinfo=UTC)
