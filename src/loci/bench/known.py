"""Short beginnings that a small model goes on with, and what a person would say next.

What a change of a model's weights must leave alone is measured on them. Common knowledge, written
for this; each is right when the first token of the answer comes first.
"""

from __future__ import annotations

_CAPITALS = (
    "France Paris, Germany Berlin, Spain Madrid, Portugal Lisbon, Austria Vienna, Greece Athens, "
    "Poland Warsaw, Hungary Budapest, Norway Oslo, Sweden Stockholm, Finland Helsinki, "
    "Denmark Copenhagen, Ireland Dublin, Belgium Brussels, Russia Moscow, Ukraine Kiev, "
    "Turkey Ankara, Egypt Cairo, Kenya Nairobi, Ethiopia Addis, Nigeria Abuja, Ghana Accra, "
    "Morocco Rabat, Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut, Japan Tokyo, "
    "China Beijing, Thailand Bangkok, Vietnam Hanoi, Nepal Kathmandu, Cuba Havana, Peru Lima, "
    "Chile Santiago, Ecuador Quito, Colombia Bogota, Venezuela Caracas, Argentina Buenos, "
    "Mexico Mexico, Canada Ottawa, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade"
)
_OPPOSITES = (
    "hot cold, big small, up down, left right, day night, good bad, black white, young old, "
    "rich poor, fast slow, happy sad, high low, open closed, full empty, hard soft, wet dry, "
    "strong weak, early late, light dark, true false, long short, thick thin, near far, loud quiet"
)
_LANGUAGES = (
    "France French, Germany German, Spain Spanish, Portugal Portuguese, Greece Greek, "
    "Poland Polish, Hungary Hungarian, Norway Norwegian, Sweden Swedish, Finland Finnish, "
    "Denmark Danish, Russia Russian, Turkey Turkish, Iran Persian, Japan Japanese, China Chinese, "
    "Thailand Thai, Vietnam Vietnamese, Mexico Spanish, Brazil Portuguese"
)
_PLACES = (
    "Egypt Africa, Kenya Africa, Nigeria Africa, Japan Asia, China Asia, Thailand Asia, "
    "Vietnam Asia, India Asia, France Europe, Spain Europe, Poland Europe, Norway Europe, "
    "Peru South, Chile South, Brazil South, Argentina South, Canada North, Ghana Africa"
)
_ROWS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
    "one two three four five six seven eight nine ten",
    "first second third fourth fifth sixth seventh eighth",
)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(one.split()[0], one.split()[1]) for one in text.split(", ")]


def known() -> list[tuple[str, str]]:
    """Return (beginning, next word) of all.

    >>> known()[0]
    ('The capital of France is', 'Paris')
    """
    found = [(f"The capital of {a} is", b) for a, b in _pairs(_CAPITALS)]
    found += [(f"The opposite of {a} is", b) for a, b in _pairs(_OPPOSITES)]
    found += [(f"The people of {a} speak", b) for a, b in _pairs(_LANGUAGES)]
    found += [(f"{a} is a country in", b) for a, b in _pairs(_PLACES)]
    for row in _ROWS:
        words = row.split()
        for at in range(3, len(words)):
            found.append((f"{', '.join(words[at - 3 : at])},", words[at]))
    return found
