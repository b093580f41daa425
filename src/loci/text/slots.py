"""The slots that facts fill: how each reads as a sentence, how many values it holds, who asks it.

A predicate may carry a parameter behind a colon: "favourite:colour", "appointment:dentist".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from loci.text.stem import stems


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One kind of fact.

    Attributes:
        sentence: the fact in words; {S} is who, {O} the value, {P} the parameter.
        past: the same when it no longer holds.
        many: whether it holds several values at once.
        cues: words of questions that ask for it.
        asks: "who", "where", "when", "number" or "what".
        state: whether it lasts; an event does not, so it never ends.
    """

    sentence: str
    past: str
    many: bool
    cues: tuple[str, ...]
    asks: str = "what"
    state: bool = True


def _slot(
    sentence: str, past: str, many: bool, cues: str, asks: str = "what", state: bool = True
) -> Slot:
    return Slot(
        sentence=sentence,
        past=past,
        many=many,
        cues=tuple(dict.fromkeys(stems(cues))),
        asks=asks,
        state=state,
    )


SLOTS: dict[str, Slot] = {
    "name": _slot("{S}'s name is {O}", "{S}'s name was {O}", False, "name surname"),
    "address": _slot(
        "{S} wants to be called {O}",
        "{S} wanted to be called {O}",
        False,
        "called call nickname address prefer",
    ),
    "age": _slot("{S} is {O} years old", "{S} was {O} years old", False, "old age", "number"),
    "birthday": _slot(
        "{S}'s birthday is {O}", "{S}'s birthday was {O}", False, "birthday born", "when"
    ),
    "lives_in": _slot(
        "{S} lives in {O}",
        "{S} lived in {O}",
        False,
        "live lives living lived home city town country place based reside moved move location",
        "where",
    ),
    "from": _slot(
        "{S} is from {O}", "{S} was from {O}", False, "from hometown grew grow origin born", "where"
    ),
    "works_at": _slot(
        "{S} works at {O}",
        "{S} worked at {O}",
        False,
        "work works working company employer job workplace office firm",
        "where",
    ),
    "job": _slot(
        "{S} works as {O}",
        "{S} worked as {O}",
        False,
        "job work profession occupation living career role title position",
    ),
    "partner": _slot(
        "{S}'s {P} is {O}",
        "{S}'s {P} was {O}",
        False,
        (
            "partner husband wife boyfriend girlfriend spouse married dating fiance"
            " fiancee "
            "relationship seeing together couple break broke split"
        ),
        "who",
    ),
    "with": _slot("{S} is with {O}", "{S} was with {O}", True, ""),
    "child": _slot(
        "{S} has {O}", "{S} had {O}", True, "child children kid kids son daughter baby twins", "who"
    ),
    "sibling": _slot(
        "{S} has {O}", "{S} had {O}", True, "sibling siblings brother sister brothers", "who"
    ),
    "relative": _slot(
        "{S} has {O}",
        "{S} had {O}",
        True,
        (
            "mother mom mum father dad parent parents aunt uncle cousin grandmother"
            " grandfather "
            "grandma grandpa niece nephew family"
        ),
        "who",
    ),
    "boss": _slot("{S} has {O}", "{S} had {O}", False, "boss manager", "who"),
    "friend": _slot(
        "{S} has {O}",
        "{S} had {O}",
        True,
        "friend friends colleague roommate neighbour neighbor flatmate coach teacher",
        "who",
    ),
    "pet": _slot(
        "{S} has {O}",
        "{S} had {O}",
        True,
        "pet pets dog cat puppy kitten rabbit hamster parrot animal animals horse fish",
    ),
    "allergic_to": _slot(
        "{S} is allergic to {O}",
        "{S} was allergic to {O}",
        True,
        "allergic allergy allergies avoid eat",
    ),
    "diet": _slot("{S} is {O}", "{S} was {O}", False, "diet vegetarian vegan eat food eating"),
    "avoids": _slot("{S} does not eat {O}", "{S} did not eat {O}", True, "eat diet food avoid"),
    "drinks": _slot("{S} drinks {O}", "{S} drank {O}", True, "drink drinks beverage"),
    "likes": _slot("{S} likes {O}", "{S} liked {O}", True, "like likes love enjoy fan interest"),
    "dislikes": _slot(
        "{S} dislikes {O}", "{S} disliked {O}", True, "dislike hate hates stand avoid like"
    ),
    "fears": _slot("{S} is afraid of {O}", "{S} was afraid of {O}", True, "afraid scared fear"),
    "favourite": _slot(
        "{S}'s favourite {P} is {O}",
        "{S}'s favourite {P} was {O}",
        False,
        "favourite favorite best like",
    ),
    "prefers": _slot("{S} prefers {O}", "{S} preferred {O}", True, "prefer prefers preference"),
    "hobby": _slot(
        "{S} does {O}",
        "{S} did {O}",
        True,
        "hobby hobbies pastime play plays instrument sport free time activity activities fun",
    ),
    "owns": _slot("{S} has {O}", "{S} had {O}", True, "own owns have possess bought buy"),
    "drives": _slot("{S} drives {O}", "{S} drove {O}", False, "drive drives car vehicle"),
    "plan": _slot(
        "{S} plans to {O}",
        "{S} planned to {O}",
        True,
        "plan plans planning going want goal hope",
        "what",
    ),
    "appointment": _slot(
        "{S} has a {P} on {O}",
        "{S} had a {P} on {O}",
        False,
        "appointment meeting exam interview flight date scheduled checkup",
        "when",
    ),
    "did": _slot("{S} {O}", "{S} {O}", True, "", "what", False),
    "doing": _slot("{S} is {O}", "{S} was {O}", True, "working project doing"),
    "health": _slot(
        "{S} has {O}",
        "{S} had {O}",
        True,
        "health condition illness sick injury hurt disease diagnosed medical",
    ),
    "speaks": _slot("{S} speaks {O}", "{S} spoke {O}", True, "speak language languages fluent"),
    "learning": _slot(
        "{S} is learning {O}", "{S} was learning {O}", True, "learn learning studying language"
    ),
    "studies": _slot(
        "{S} studies {O}", "{S} studied {O}", False, "study studies major degree subject"
    ),
    "studies_at": _slot(
        "{S} studies at {O}",
        "{S} studied at {O}",
        False,
        "study school university college",
        "where",
    ),
    "volunteers_at": _slot(
        "{S} volunteers at {O}", "{S} volunteered at {O}", True, "volunteer volunteers charity"
    ),
    "member_of": _slot(
        "{S} is a member of {O}", "{S} was a member of {O}", True, "member club team group belong"
    ),
    "thinks": _slot("{S} thinks {O}", "{S} thought {O}", True, "think thinks opinion believe"),
    "routine": _slot(
        "{S} {O}", "{S} used to {O}", True, "often every routine usually day week morning"
    ),
    "email": _slot("{S}'s email is {O}", "{S}'s email was {O}", False, "email mail address"),
    "phone": _slot(
        "{S}'s phone number is {O}", "{S}'s phone number was {O}", False, "phone number telephone"
    ),
    "attribute": _slot("{S}'s {P} is {O}", "{S}'s {P} was {O}", False, ""),
}


def slot_of(predicate: str) -> Slot:
    """Return the slot of a predicate; its parameter is left aside."""
    return SLOTS.get(predicate.partition(":")[0], SLOTS["did"])


def sentence_of(subject: str, predicate: str, value: str, *, past: bool = False) -> str:
    """Return a fact as a sentence.

    >>> sentence_of("Ada", "favourite:colour", "green")
    "Ada's favourite colour is green"
    """
    name, _, parameter = predicate.partition(":")
    slot = SLOTS[name]
    form = slot.past if past else slot.sentence
    return form.replace("{S}", subject).replace("{P}", parameter or name).replace("{O}", value)


@cache
def _by_cue() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, slot in SLOTS.items():
        for cue in slot.cues:
            found.setdefault(cue, []).append(name)
    return {cue: tuple(names) for cue, names in found.items()}


def asked_for(words: Iterable[str], limit: int = 3) -> list[tuple[str, int]]:
    """Return the predicates that a question's stems ask for, with how many cues each has.

    >>> [name for name, _ in asked_for(stems("Which pets does she have?"))]
    ['pet']
    """
    votes = Counter(name for word in set(words) for name in _by_cue().get(word, ()))
    best = max(votes.values(), default=0)
    return [(name, n) for name, n in votes.most_common(limit) if n == best]
