"""Made-up questions in several wordings, to learn which ask for the same: no data is needed.

Each relation has wordings that end where the answer begins, and subjects to ask about. Two wordings
of one relation about one subject ask for the same; another subject or another relation does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

_PEOPLE = (
    "Anna Weber", "Tom Baker", "Maria Lopez", "Kenji Sato", "Nina Petrova", "Omar Haddad",
    "Lucy Chen", "Paul Martin", "Sofia Rossi", "Ben Carter", "Ines Duarte", "Raj Patel",
    "my sister", "my neighbour", "the new doctor", "our teacher",
)  # fmt: skip
_PLACES = (
    "Springfield", "the old harbour", "Lake Como", "Zanzibar", "Nepal", "Tunisia", "Estonia",
    "Malta", "Quito", "Dresden", "Nagoya", "Bergen", "Cardiff", "Tasmania", "Bolivia",
)  # fmt: skip
_THINGS = (
    "the blue bicycle", "the kitchen radio", "my laptop", "the garden gate", "the red kite",
    "The Silent Sea", "Winter Songs", "the town museum", "Acme Tools", "Northwind Foods",
    "a penguin", "the oak tree", "granite", "copper wire", "a violin",
)  # fmt: skip

_RELATIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("{} works at", "The employer of {} is", "{} has a job with"), _PEOPLE),
    (("{} lives in", "The home of {} is in", "If you visit {}, you travel to"), _PEOPLE),
    (("{} was born in the year", "The year of birth of {} is", "{} came into the world in"),
     _PEOPLE),
    (("{} is married to", "The spouse of {} is", "The wedding of {} was with"), _PEOPLE),
    (("The favourite food of {} is", "{} loves to eat", "What {} likes best on the plate is"),
     _PEOPLE),
    (("{} plays the", "The instrument of {} is the", "In the band, {} is on the"), _PEOPLE),
    (("The mother tongue of {} is", "{} speaks", "At home {} talks in"), _PEOPLE),
    (("The occupation of {} is", "{} is by trade a", "{} earns a living as a"), _PEOPLE),
    (("{} lies on the continent of", "The continent of {} is", "{} is a part of"), _PLACES),
    (("The mayor of {} is", "{} is governed by", "The head of the council of {} is"), _PLACES),
    (("The population of {} is", "The number of people in {} is", "{} is inhabited by"), _PLACES),
    (("The river that runs through {} is the", "{} lies on the river", "In {} boats go on the"),
     _PLACES),
    (("In {} people speak", "The language of {} is", "Signs in {} are written in"), _PLACES),
    (("{} is located in the country of", "{} belongs to the country of", "{} can be found in"),
     _PLACES),
    (("In {} people pay with the", "The money of {} is the", "Prices in {} are given in"), _PLACES),
    (("The colour of {} is", "{} is painted", "To the eye, {} looks"), _THINGS),
    (("{} was made by", "The maker of {} is", "The one who created {} is"), _THINGS),
    (("{} weighs", "The weight of {} is", "On a scale, {} comes to"), _THINGS),
    (("{} is kept in the", "The place of {} is the", "You find {} in the"), _THINGS),
    (("The price of {} is", "{} costs", "To buy {} you need"), _THINGS),
    (("{} was first seen in the year", "The year of {} is", "{} dates from"), _THINGS),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two questions, and whether they ask for the same."""

    left: str
    right: str
    same: bool


def pairs(seed: int = 0, subjects: int = 8) -> list[Pair]:
    """Return pairs of questions: for every three wordings of one subject, as many that differ.

    Those that differ share the relation, or the subject, or (one in four) neither.
    """
    return list(_pairs(random.Random(seed), subjects))


def _pairs(chance: random.Random, subjects: int) -> Iterator[Pair]:
    for number, (wordings, known) in enumerate(_RELATIONS):
        for subject in chance.sample(known, min(subjects, len(known))):
            own = [wording.replace("{}", subject) for wording in wordings]
            for left, right in ((0, 1), (0, 2), (1, 2)):
                yield Pair(own[left], own[right], True)
            for other in chance.sample([name for name in known if name != subject], 2):
                yield Pair(own[0], chance.choice(wordings).replace("{}", other), False)
            siblings = [
                words
                for index, (words, names) in enumerate(_RELATIONS)
                if names is known and index != number
            ]
            for words in chance.sample(siblings, 2):
                yield Pair(own[0], chance.choice(words).replace("{}", subject), False)
            words, names = chance.choice(_RELATIONS)
            if words is not wordings:
                yield Pair(own[0], chance.choice(words).replace("{}", chance.choice(names)), False)
