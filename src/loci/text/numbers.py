"""Numbers in words and digits, as people write amounts, counts, ages and durations."""

from __future__ import annotations

import re

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "k": 1000, "grand": 1000}
_VALUES: dict[str, float] = {
    **{word: number for number, word in enumerate(_UNITS)},
    **{word: 10 * number for number, word in enumerate(_TENS, 2)},
    "dozen": 12,
    "half": 0.5,
    "couple": 2,
    "pair": 2,
}
_WORD = "|".join(sorted([*_UNITS, *_TENS], key=len, reverse=True))
_SCALE = "hundred|thousand|million"
_WORDS = (
    rf"(?:(?:half a|a) dozen|a (?:couple|pair)(?= of)|an? (?:{_SCALE})"
    rf"|(?:{_WORD})(?:[- ](?:{_WORD}))?)"
    rf"(?: (?:{_WORD})(?:[- ](?:{_WORD}))?){{0,2}}(?:[ -](?:{_SCALE}))*(?:(?: and)?"
    rf" (?:(?:{_WORD})(?:[- ](?:{_WORD}))?)(?: (?:{_SCALE}))?)*"
    rf"(?: and a (?:half|quarter)(?: (?:{_SCALE}))?)?"
)
_DIGITS = r"\d+(?:[,.  ]\d{3})*(?:[.,]\d{1,2})?(?:\s?(?:k|thousand|million)\b)?"
PATTERN = rf"(?:{_DIGITS}|\b{_WORDS}\b)"
NUMBER = re.compile(rf"(?<![\w£$€.,]){PATTERN}(?![\w])", re.IGNORECASE)


def value_of(text: str) -> float | None:
    """Return what a number is worth, or None where there is none.

    >>> value_of("£2,250"), value_of("ninety-six"), value_of("two hundred and fifty euros")
    (2250.0, 96.0, 250.0)
    >>> value_of("four and a half hours"), value_of("half a dozen"), value_of("green")
    (4.5, 6.0, None)
    """
    low = text.lower()
    digits = re.search(r"\d+(?:[,.  ]\d{3})*(?:[.,]\d{1,2})?", low)
    if digits is not None:
        whole = re.sub(r"[,.  ](?=\d{3}(?!\d))", "", digits.group()).replace(",", ".")
        scale = re.match(r"\s?(k|thousand|million)\b", low[digits.end() :])
        return float(whole) * (_SCALES[scale[1]] if scale else 1)
    words = re.findall(r"[a-z]+", low)
    if "half" in words and "dozen" in words:
        return 6.0
    spoken = _spoken(words)
    if spoken is not None:
        return spoken
    total, current, seen = 0.0, 0.0, False
    for place, word in enumerate(words):
        if word in _SCALES and word != "k":
            scale_ = _SCALES[word]
            current = max(current, 1.0) * scale_
            if scale_ > 100:
                total, current = total + current, 0.0
            seen = True
        elif word in _VALUES:
            if word == "half" and not (seen or words[place + 1 : place + 2] == ["a"]):
                continue
            current, seen = current + _VALUES[word], True
        elif seen and word not in ("and", "a"):
            break
    return total + current if seen else None


def _spoken(words: list[str]) -> float | None:
    """Return "nineteen eighty-four" as 1984 and "three nine fifty" as 3950, digits as said."""
    parts: list[int] = []
    for word in words:
        value = _VALUES.get(word)
        if value is None or value != int(value) or word in ("dozen", "couple", "pair"):
            break
        if parts and parts[-1] % 10 == 0 and 20 <= parts[-1] < 100 and 0 < value < 10:
            parts[-1] += int(value)
        else:
            parts.append(int(value))
    whole = len(words) > len(parts) and words[len(parts)] in _SCALES
    if len(parts) == 2 and 10 < parts[0] < 100 and 0 < parts[1] < 10 and not whole:
        return 1000.0 * parts[0] + 100.0 * parts[1]  # "thirteen two" is 13,200
    if whole or len(parts) < 2 or (len(parts) == 2 and parts[0] < 13):
        return None
    return float("".join(map(str, parts)))
