"""Facts that several rules make: what one has, what is booked for a day, a birthday."""

from __future__ import annotations

import re
from dataclasses import replace

from loci.core.item import Candidate
from loci.text.clause import COUNTED, Clause, trim
from loci.text.stem import fold
from loci.text.times import describe


def has(clause: Clause, slot: str, label: str, name: str | None) -> Candidate | None:
    article = "an " if label[:1] in "aeiou" else "a "
    article = "" if COUNTED.match(label) else article
    value = f"{article}{label}" + (f" named {name}" if name else "")
    made = clause.fact(slot, value, keep_time=True, ends=False)
    return made and replace(made, object=fold(f"{label} {name}" if name else label))


def as_list(made: Candidate | None) -> list[Candidate]:
    return [made] if made is not None else []


def appointment(what: str) -> str:
    words = [
        w for w in fold(what).split() if w not in ("a", "an", "the", "my", "our", "new", "next")
    ]
    return "appointment:" + " ".join(words)


def booked(clause: Clause, what: str, who: str | None, when: str) -> Candidate | None:
    if not clause.spans or clause.spans[0].end < clause.turn.time:
        return None
    span = clause.spans[0]
    date = describe(span)
    hour = re.search(
        r"\b(?:at )?(\d{1,2}(?::\d\d)? ?(?:am|pm|a\.m\.|p\.m\.|o'clock)|\d{1,2}:\d\d|noon)",
        clause.rest,
        re.IGNORECASE,
    )
    value = date + (f" at {hour[1]}" if hour else "")
    predicate = appointment(what)
    noun = predicate.partition(":")[2]
    owner = f"{clause.subject} has {'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
    if who:
        owner += f" with {trim(who)}"
    joint = "on" if span.grain == "day" else "in"
    made = clause.fact(predicate, value, text=f"{owner} {joint} {value}", keep_time=True)
    return made and replace(made, valid_from=clause.turn.time)


def birthday(clause: Clause, value: str) -> Candidate | None:
    if not clause.spans:
        return None
    named = re.search(
        r"(?:[A-Z][a-z]+ \d{1,2}(?:st|nd|rd|th)?|\d{1,2}(?:st|nd|rd|th)? (?:of )?[A-Z][a-z]+)",
        value,
    )
    span = clause.spans[0]
    exact = named.group() if named else re.sub(r" \d{4}$", "", describe(span))
    made = clause.fact("birthday", exact, keep_time=True)
    return made and replace(made, valid_from=clause.turn.time)
