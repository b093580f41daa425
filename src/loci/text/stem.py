"""Words, stems and stop words of English, the keys of every lexical index.

Stems are Porter2 ("english" of the Snowball project), cached: a conversation uses few thousand
words. Numbers stay as they are. Accents are folded, so that "cafe" finds "café".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CLITIC = re.compile(r"['’](?:s|ll|re|ve|d|m)$")

_STOP = """
    a about above after again against all also am an and any are aren't as at be because been
    before being below between both but by can can't cannot could couldn't did didn't do does
    doesn't doing don't down during each few for from further had hadn't has hasn't have haven't
    having he her here hers herself him himself his how i if in into is isn't it its itself just
    let me more most my myself no nor not of off on once only or other our ours ourselves out over
    own please same shall she should shouldn't so some such than that the their theirs them
    themselves then there these they this those through to too under until up upon us very was
    wasn't we were weren't what when where which while who whom whose why will with won't would
    wouldn't you your yours yourself yourselves yeah yes yep oh ok okay um uh hmm well really
    gonna got get im ive dont thats youre
    """
STOP_WORDS = frozenset(_STOP.split())


def fold(text: str) -> str:
    """Return the text in lower case without accents.

    >>> fold("Zoë's CAFÉ")
    "zoe's cafe"
    """
    if text.isascii():
        return text.lower()
    parts = unicodedata.normalize("NFKD", text.replace("’", "'"))
    return "".join(c for c in parts if not unicodedata.combining(c)).lower()


def tokens(text: str) -> list[str]:
    """Return the words of a text, lower case; "Ada's" becomes "ada", "don't" stays.

    >>> tokens("Ada's dog won't eat.")
    ['ada', 'dog', "won't", 'eat']
    """
    return [_CLITIC.sub("", word) for word in _WORD.findall(fold(text))]


_SPELLINGS = """
colour color, colours color, favourite favorite, favourites favorite, neighbour neighbor,
neighbours neighbor, flavour flavor, behaviour behavior, humour humor, theatre theater,
centre center, grey gray, mum mom, organise organize, organised organize, travelling travel,
jewellery jewelry, tyre tire, pyjamas pajamas, yoghurt yogurt, doughnut donut, programme program
"""
_SPELLING = dict(pair.split() for pair in _SPELLINGS.split(","))


@cache
def _stemmer() -> Callable[[str], str]:
    import snowballstemmer  # here: the package loads thirty languages

    stem_word: Callable[[str], str] = snowballstemmer.stemmer("english").stemWord
    return stem_word


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return the stem of one lower-case word.

    >>> stem("allergies"), stem("allergic")
    ('allergi', 'allerg')
    """
    word = _SPELLING.get(word, word)
    if len(word) < 3 or not word.isascii() or word.isdigit():
        return word
    return _stemmer()(word)


def stems(text: str) -> list[str]:
    """Return the stems of the words that carry meaning, in order, repeats kept.

    >>> stems("Where does Ada's sister live?")
    ['ada', 'sister', 'live']
    """
    return [stem(word) for word in tokens(text) if word not in STOP_WORDS]
