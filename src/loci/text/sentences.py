"""Sentences and clauses of informal English: where one statement ends and the next begins.

A full stop ends a sentence unless it belongs to "Mr." or to an initial; three dots end one only
before a capital, so that "twelve... no, eleven" stays together.
"""

from __future__ import annotations

import re

_END = re.compile(r"(?P<mark>[.!?…]+)[\"”'’)\]]*(?=\s|$)|\n+")
_SHORT = re.compile(
    r"(?:^|[\s(\"“])(?:mr|mrs|ms|mx|dr|prof|st|sr|jr|vs|etc|approx|dept|e\.g|i\.e|[a-hj-z])$", re.I
)
_WHO = (
    r"(?:i|we|you|he|she|it|they|this|that|there|now|then|my|our|your|his|her|its"
    r"|their|no|not)"
    r"(?:['’]\w+)?\b"
)
_JOINT = re.compile(
    (
        r"\s*(?:[;:(]|\s[-–—]+\s|—|\.{3}|…"
        r"|,?\s+(?:but|because|although|though|whereas)\s+|,\s+(?:which|who|where"
        r"|while|then)\s+"
        rf"|,?\s+so\s+(?=\S+\s)|,?\s+and\s+(?=(?i:{_WHO}))|,\s+and\s+(?=\S+\s+\S+\s+\S)"
        rf"|,\s+(?=(?i:so|but|actually|sorry|except|{_WHO})))\s*"
    ),
)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, in order, each with its closing mark.

    >>> sentences("Mr. Rogiers came. Twelve... no, eleven years! Fine")
    ['Mr. Rogiers came.', 'Twelve... no, eleven years!', 'Fine']
    """
    found: list[str] = []
    start = 0
    for match in _END.finditer(text):
        mark = match["mark"]
        if mark == "." and _SHORT.search(text[start : match.start()]):
            continue
        if mark is not None and mark[:2] in ("..", "…"):
            after = text[match.end() :].lstrip()
            if after and not after[0].isupper():
                continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if any(map(str.isalnum, sentence))]


def clauses(sentence: str) -> list[tuple[int, int]]:
    """Return the (start, end) of the clauses of a sentence; together they cover its words.

    >>> text = "I'd bought green, so now she's blue."
    >>> [text[a:b] for a, b in clauses(text)]
    ["I'd bought green", "now she's blue."]
    """
    bounds: list[tuple[int, int]] = []
    start = 0
    for match in _JOINT.finditer(sentence):
        if match.start() > start:
            bounds.append((start, match.start()))
        start = match.end()
    if start < len(sentence):
        bounds.append((start, len(sentence)))
    return bounds or [(0, len(sentence))]
