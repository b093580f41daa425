"""People who tell facts about themselves, to make memory of: development and test apart."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Half = Literal["development", "test"]

_NAMES = {
    "development": ("Nora", "Tobias", "Mirela", "Anders", "Yusuf", "Clara"),
    "test": ("Ingrid", "Marek", "Salome", "Bastian", "Leila", "Oskar"),
}
# A statement and its values, those for development first: both halves have different ones.
_TOPICS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "I live in {v}.",
        ("Utrecht", "Leeds", "Toulouse", "Graz", "Malmo", "Bilbao"),
        ("Porto", "Ghent", "Tampere", "Brno", "Cork", "Trieste"),
    ),
    (
        "I work at {v}.",
        ("Brightwater", "Halden Foods", "Orbex", "Lumen Press", "Castor Bank", "Nordlicht"),
        ("Velora", "Tamarind Films", "Quillon", "Baltic Rail", "Fernway", "Osprey Labs"),
    ),
    (
        "My favourite colour is {v}.",
        ("teal", "burgundy", "mustard", "olive", "lilac", "crimson"),
        ("turquoise", "maroon", "ochre", "indigo", "salmon", "beige"),
    ),
    (
        "I am allergic to {v}.",
        ("walnuts", "shellfish", "penicillin", "sesame", "latex", "celery"),
        ("peanuts", "pollen", "aspirin", "soy", "lupins", "kiwis"),
    ),
    (
        "I speak {v}.",
        ("Portuguese", "Finnish", "Korean", "Welsh", "Swahili", "Catalan"),
        ("Danish", "Urdu", "Basque", "Tagalog", "Estonian", "Maltese"),
    ),
    (
        "I work as {v}.",
        ("a nurse", "a carpenter", "a translator", "a baker", "an electrician", "a welder"),
        ("a beekeeper", "a pilot", "a tailor", "a surveyor", "an optician", "a florist"),
    ),
    (
        "I drive {v}.",
        ("a red Skoda", "a grey Volvo", "an old Fiat", "a white Kia", "a blue Saab", "a Lada"),
        ("a green Opel", "a Citroen", "an old Jeep", "a black Seat", "a yellow Mini", "a Tesla"),
    ),
    (
        "I have a {v}.",
        (
            "dog named Bruno",
            "cat named Miso",
            "rabbit named Fig",
            "parrot named Kiwi",
            "hamster named Pip",
            "cat named Loki",
        ),
        (
            "dog named Waldo",
            "cat named Saffron",
            "parrot named Zazu",
            "turtle named Olga",
            "dog named Biscuit",
            "rabbit named Clover",
        ),
    ),
    (
        "My birthday is on {v}.",
        ("March 3", "May 17", "July 21", "October 9", "January 30", "June 12"),
        ("April 4", "August 26", "February 11", "December 19", "September 8", "November 23"),
    ),
    (
        "I study {v}.",
        ("biology", "Latin", "geology", "law", "astronomy", "sculpture"),
        ("chemistry", "history", "oceanography", "logic", "economics", "weaving"),
    ),
    (
        "I am afraid of {v}.",
        ("spiders", "thunder", "heights", "snakes", "needles", "clowns"),
        ("moths", "lifts", "wasps", "deep water", "bats", "geese"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What somebody says of themselves."""

    name: str
    text: str


def tellings(count: int, seed: int = 0, half: Half = "test") -> list[Telling]:
    """Return statements of several people, each of one topic and value; four facts a person.

    Raises:
        ValueError: if there are not so many.
    """
    dice = random.Random(f"{seed} {half}")
    side = 1 if half == "development" else 2
    names = list(_NAMES[half])
    dice.shuffle(names)
    values = {topic[0]: dice.sample(topic[side], len(topic[side])) for topic in _TOPICS}
    found: list[Telling] = []
    for name in names:
        for form in dice.sample(sorted(values), 4):
            if len(found) < count:
                found.append(Telling(name=name, text=form.format(v=values[form].pop())))
    if len(found) < count:
        raise ValueError(f"there are {len(found)} facts; {count} were asked for")
    return found
