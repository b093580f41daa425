"""Facts as questions."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files

import pytest

from loci.core.item import Item
from loci.text.quiz import JUDGED, LOOKED, quizzes
from loci.text.slots import SLOTS


def fact(text: str, subject: str, predicate: str, object: str, id: str = "i1") -> Item:
    return Item(id=id, text=text, subject=subject, predicate=predicate, object=object)


def test_a_fact_is_asked_in_many_words_and_judged_in_others() -> None:
    (quiz,) = quizzes([fact("Nora lives in Utrecht", "nora", "lives_in", "utrecht")])
    assert quiz.learn[0] == "Where does Nora live?" and "What is Nora's home town?" not in quiz.look
    assert (quiz.answer, quiz.objects, quiz.items) == (
        "Nora lives in Utrecht.",
        ("Utrecht",),
        ("i1",),
    )
    assert len(quiz.judge) == JUDGED and len(quiz.look) == LOOKED
    assert not set(quiz.judge) & {*quiz.learn, *quiz.look}
    assert quiz.is_answered("In UTRECHT, I think.") and not quiz.is_answered("In Utrechtse Heuvel")
    assert quiz.strange("Kim", judged=True)[0] == "Which city is Kim living in now?"


def test_the_user_asks_about_themselves() -> None:
    (quiz,) = quizzes([fact("The user drives a red Skoda", "the user", "drives", "a red skoda")])
    assert (
        quiz.learn[0] == "What car do I drive?" and quiz.judge[0] == "Do you know what car I have?"
    )
    assert quiz.is_answered("You drive the red Skoda.")
    assert quiz.strange("Kim")[0] == "What car does Kim drive?"
    (kin,) = quizzes(
        [fact("The user's sister Ines lives in Delft", "the user's sister", "lives_in", "delft")]
    )
    assert kin.learn[0] == "Where does my sister live?"


def test_facts_of_one_slot_are_answered_together() -> None:
    both = [
        fact("Nora speaks Finnish", "nora", "speaks", "finnish", "i1"),
        fact("Nora studies law", "nora", "studies", "law", "i2"),
        fact("Nora speaks Welsh", "nora", "speaks", "welsh", "i3"),
    ]
    first, second = quizzes(both)
    assert first.items == ("i1", "i3") and first.answer == "Nora speaks Finnish. Nora speaks Welsh."
    assert first.is_answered("Welsh and Finnish") and not first.is_answered("Welsh")
    assert second.items == ("i2",)


@pytest.mark.parametrize(
    "item, question, value",
    [
        (
            fact(
                "The user's wifi password is swordfish",
                "the user",
                "attribute:wifi password",
                "swordfish",
            ),
            "What is my wifi password?",
            "swordfish",
        ),
        (
            fact("Nora's favourite colour is teal", "nora", "favourite:colour", "teal"),
            "What is Nora's favourite colour?",
            "teal",
        ),
        (
            fact("Nora has a dog named Bruno", "nora", "pet", "dog bruno"),
            "What pet does Nora have?",
            "Bruno",
        ),
        (
            Item(id="i1", text="The gate code of the cabin is 4471", kind="note"),
            "Complete this: The gate code of the cabin ...",
            "is 4471",
        ),
        (Item(id="i1", text="Beware", kind="note"), "Complete this: Beware ...", "Beware"),
    ],
)
def test_whatever_is_remembered_can_be_asked(item: Item, question: str, value: str) -> None:
    (quiz,) = quizzes([item])
    assert quiz.learn[0] == question and quiz.objects == (value,)


def test_every_list_has_enough_wordings_of_a_slot_there_is() -> None:
    table = tomllib.loads(files("loci.text").joinpath("quiz.toml").read_text(encoding="utf-8"))
    assert set(table) - {""} <= set(SLOTS)
    for name, forms in table.items():
        assert len(set(forms)) == len(forms) >= JUDGED + LOOKED + 4, name
        for form in forms:
            assert set(re.findall(r"\{(\w+)\}", form)) <= {
                "s",
                "ps",
                "p",
                "do",
                "is",
                "has",
                "stem",
            }
