"""Names of people, pets, places and things: capitalised sequences, cleaned and normalised.

No model: a name is a run of capitalised words that is not there merely because a sentence begins,
or a name that is already known. Normal form is lower case without accents and without "'s".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from loci.text.stem import STOP_WORDS, fold

_NAME_WORD = r"[A-Z][\w&]*(?:['’\-][A-Za-z]\w*)*|[A-Z]\."
_RUN = re.compile(
    rf"\b(?:{_NAME_WORD})(?:(?:\s+|\s+(?:of|the|de|la|van|von|and)\s+)(?:{_NAME_WORD}))*"
)
_START = re.compile(r"(?:^|[.!?:;\n\"“(\-–—]\s*)$")
_QUOTED = re.compile(r"[\"“]([^\"”]{2,60})[\"”]")
_POSSESSIVE = re.compile(r"['’]s$")
_JOINERS = ("of", "the", "de", "la", "van", "von", "and")

# Words that begin sentences so often that a capital says nothing.
_PLAIN = """
    i hey hi hello thanks thank wow yes no yeah sure okay ok great good nice cool awesome amazing
    that's it's i'm i've i'll i'd what's let's there's he's she's they're we're you're don't didn't
    congrats congratulations absolutely definitely totally oh ah aw aww haha lol omg sounds looks
    glad sorry well so but and or not now then today tomorrow yesterday tonight last next this my
    your our his her their its the a an we you they he she it in on at for from with by to of as
    if when while where who what why how which since after before because although though maybe
    perhaps also just still even only another every some any all many most more much each both
    hope hoping love loved happy excited can could would should will may might must do does did
    have has had am is are was were been being go going got get keep take make made let please
    actually honestly anyway anyways speaking guess remember talk see look check here there
    finally recently lately earlier later soon once never always sometimes usually often
    monday tuesday wednesday thursday friday saturday sunday january february march april june
    july august september october november december mom dad mum god
"""
PLAIN = frozenset(_PLAIN.split()) | STOP_WORDS


def normalise(name: str) -> str:
    """Return a name in its normal form.

    >>> normalise("The Café's ")
    'cafe'
    """
    words = _POSSESSIVE.sub("", fold(name).strip(" .,!?\"'")).split()
    if len(words) > 1 and words[0] in ("the", "a", "an"):
        words = words[1:]
    return " ".join(words)


def names(text: str, known: Sequence[str] = ()) -> list[str]:
    """Return the names in a text as they are written, in order, without repeats.

    A single capitalised word that begins a sentence counts only if it is known or stands
    elsewhere in the text with a capital inside a sentence.

    >>> names("Yesterday Ada met Grace Hopper in New York. Nice!")
    ['Ada', 'Grace Hopper', 'New York']
    """
    if not any(map(str.isupper, text)):
        return _known_in(text, known, [])
    found: list[str] = []
    unsure: list[str] = []
    inside: set[str] = set()
    for match in _RUN.finditer(text):
        words = match.group().split()
        starts = _START.search(text, 0, match.start()) is not None
        while words and (_POSSESSIVE.sub("", words[0].lower()) in PLAIN or words[0] in _JOINERS):
            words, starts = words[1:], False
        while words and _POSSESSIVE.sub("", words[-1].lower()) in PLAIN:
            words = words[:-1]
        if not words:
            continue
        name = _POSSESSIVE.sub("", " ".join(words)).strip(".,'’-")
        if len(name) < 2 and not name.isupper():
            continue
        if starts and len(words) == 1 and not name.isupper():
            unsure.append(name)
        else:
            inside.add(name)
        found.append(name)
    sure = {fold(name) for name in known}
    kept = [n for n in found if n in inside or n not in unsure or fold(n) in sure]
    kept += list(_QUOTED.findall(text))
    return _known_in(text, known, list(dict.fromkeys(kept)))


def entities(text: str, known: Sequence[str] = ()) -> list[str]:
    """Return the normalised names in a text; parts of longer names stand beside the whole.

    >>> entities("Then Ada met Grace Hopper at Bletchley Park.")
    ['ada', 'grace hopper', 'grace', 'hopper', 'bletchley park', 'bletchley', 'park']
    """
    result: dict[str, None] = {}
    for name in names(text, known):
        whole = normalise(name)
        if not whole:
            continue
        result[whole] = None
        if " " in whole and len(whole.split()) <= 4:
            for part in whole.split():
                if part not in PLAIN and len(part) > 2:
                    result[part] = None
    return list(result)


def _known_in(text: str, known: Sequence[str], found: list[str]) -> list[str]:
    if known:
        folded = f" {re.sub(r'[^a-z0-9 ]+', ' ', fold(text).replace(chr(39) + 's', ' '))} "
        have = {fold(name) for name in found}
        found += [n for n in known if fold(n) not in have and f" {fold(n)} " in folded]
    return found
