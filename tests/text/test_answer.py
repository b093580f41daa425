"""The reader, over hits of one person."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from loci.core.item import Hit, Source
from loci.text.answer import answer

BEGIN = datetime(2026, 1, 5, 18, tzinfo=UTC)
SAID = (
    "I live in Ghent and I work at Studio Noord.",
    "I'm allergic to hazelnuts.",
    "I adopted a cat on Saturday! She's called Pixel.",
    "My sister Ines is a vet.",
    "I started bouldering yesterday.",
    "I moved to Antwerp last week.",
    "I'm vegan now.",
    "My boss Pieter gave me a plant because I finished the library drawings.",
    "I broke up with Tomas.",
)
HITS = [
    Hit(
        id=f"h{i}",
        text=text,
        score=1.0,
        kind="turn",
        sources=(
            Source(id=f"t{i}", content=text, time=BEGIN + timedelta(days=10 * i), name="Mara"),
        ),
    )
    for i, text in enumerate(SAID)
]
NOW = BEGIN + timedelta(days=100)


@pytest.mark.parametrize(
    ("question", "right"),
    [
        ("Where does Mara live now?", "Antwerp"),
        ("Where did Mara live before?", "Ghent"),
        ("What is Mara allergic to?", "hazelnuts"),
        ("What is the name of Mara's cat?", "Pixel"),
        ("What does Mara's sister do?", "a vet"),
        ("Who is Mara's sister?", "Ines"),
        ("When did Mara start bouldering?", "13 February 2026"),
        ("Does Mara eat cheese?", "No, Mara is vegan"),
        ("Where do I live?", "Antwerp"),
        ("Is Mara still with Tomas?", "No"),
        ("Where does Mara work?", "Studio Noord"),
    ],
)
def test_answers(question: str, right: str) -> None:
    given = answer(question, HITS, NOW)
    assert given.text.startswith(right)
    assert given.hits and set(given.hits) <= {h.id for h in HITS}
    assert given.why


def test_reasons_come_from_sentences() -> None:
    assert "library drawings" in answer("Why did Pieter give a plant?", HITS, NOW).text


def test_no_hits_no_answer() -> None:
    nothing = answer("Where does Mara live?", [], NOW)
    assert nothing.text == "" and nothing.confidence == 0.0


def test_a_guess_is_marked_as_one() -> None:
    assert answer("What did the mayor say about parking?", HITS, NOW).confidence < 0.5
