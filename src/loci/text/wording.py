"""Many ways of saying a thing brought to one, so that few rules read them all.

English has two places where the same is said differently. One is the verb: "has a weakness for",
"cannot resist" and "is partial to" are "love". The other is who stands first: "my employer is
Orbex", "Orbex is where I work", "Orbex employs me" and "it's Orbex that I work for" are "I work at
Orbex". Here stand the tables of both, read from `wording.toml` when first needed, and the verbs;
clauses are in `restate`, sentences in `straight`. What a value names - a language, a pet, a car, a
trade - decides between readings of one wording.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any  # a table of TOML

from loci.text.clause import NAME, PLACE
from loci.text.entities import PLAIN
from loci.text.phrases import DIETS, GAME, HEALTH, JOBS, LANGUAGE, PETS, PRONOUNS
from loci.text.verbs import CAR

LONGEST = 240
"""Characters of a sentence that is read for its wording."""

Check = Callable[[str], bool]

_PET = re.compile(rf"\b(?:{'|'.join(sorted(PETS, key=len, reverse=True))})\b", re.I)
_JOB_END = re.compile(r"(?:ist|ian|eer|man|woman|yst|ologist|grapher|ector|ager|oper)$", re.I)


def is_pet(value: str) -> bool:
    """Whether words name an animal one keeps: "a dog named Rex"."""
    return re.match(r"(?:an?|another|two|three|our|my)\s", value, re.I) is not None and (
        _PET.search(value) is not None
    )


def is_car(value: str) -> bool:
    """Whether words name a car: "an old Fiat"."""
    return re.match(r"(?:an?|another|my|our|the)\s", value, re.I) is not None and (
        CAR.search(re.sub(r"\b(?:car|truck|van)\b", "", value)) is not None
    )


def is_trade(value: str) -> bool:
    """Whether words name what somebody works as: "a nurse"."""
    words = re.split(
        (
            r"\s+(?:at|for|in|with|by|now|until|these|of|last|this|since|today|yesterday"
            r"|again)\b"
        ),
        value,
    )[0].split()
    return bool(words) and (
        words[-1].lower().strip(".,!") in JOBS or _JOB_END.search(words[-1]) is not None
    )


def is_language(value: str) -> bool:
    """Whether words name a language."""
    return re.match(LANGUAGE, value) is not None


def is_game(value: str) -> bool:
    """Whether words end in a sport, a game or an instrument: "the clarinet"."""
    return re.search(rf"\b{GAME}$", value.strip(), re.I) is not None


def is_name(value: str) -> bool:
    """Whether words begin with somebody's name."""
    found = re.match(NAME, value)
    return found is not None and found.group().split()[0].lower() not in PLAIN | PRONOUNS


def is_place(value: str) -> bool:
    """Whether words begin with the name of a place or a firm."""
    return re.match(rf"(?:the )?{PLACE}", value) is not None


def _is_bare(value: str) -> bool:
    return re.match(r"(?:an?|my|our|two|three|some|that|this|how|it)\b", value, re.I) is None


def _is_dish(value: str) -> bool:
    lead = (
        r"(?:that|this|an?|it|dinner|lunch|breakfast|your|his|her|their|everything|what"
        r"|the|life|which)\b"
    )
    return re.match(lead, value, re.I) is None


def _is_named(value: str) -> bool:
    states = (
        r"(?:gone|over|back|bad|worse|better|severe|mild|acting|terrible|awful|under"
        r"|not|no|so|very|getting)\b"
    )
    return re.match(states, value, re.I) is None


CHECKS: dict[str, Check] = {
    "any": bool,
    "pet": is_pet,
    "car": is_car,
    "trade": is_trade,
    "language": is_language,
    "game": is_game,
    "named": _is_named,
    "diet": lambda value: DIETS.match(value) is not None,
    "health": lambda value: HEALTH.search(value) is not None,
    "name": is_name,
    "place": is_place,
    "bare": _is_bare,
    "dish": _is_dish,
    "article": lambda value: re.match(r"(?:an?|the) ", value, re.I) is not None,
    "whole": lambda value: " as a " not in value,
    "my language": lambda value: re.match(rf"my {LANGUAGE}$", value) is not None,
    "being trade": lambda value: (
        re.match("being an? ", value, re.I) is not None and is_trade(value)
    ),
}


@dataclass(frozen=True)
class Way:
    """A wording, the plain one, what the value must be, and when it is one: see `wording.toml`."""

    ways: re.Pattern[str]
    says: str
    fits: Check
    when: str = ""
    over: str = ""
    joint: str = ""


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(files("loci.text").joinpath("wording.toml").read_text(encoding="utf-8"))


@cache
def _words() -> dict[str, str]:
    """Return what stands for a word in capitals, the longest first."""
    fixed = {
        "PLACE": PLACE,
        "NAME": NAME,
        "LANGUAGE": f"(?-i:{LANGUAGE})",
        "GAMES": GAME,
        "DIETS": re.sub(r"\?P<\w+>", "?:", DIETS.pattern.removeprefix("^")),
        "PETS": "|".join(sorted(PETS, key=len, reverse=True)),
    }
    return fixed | {name: _joined(told) for name, told in _tables()["words"].items()}


def _joined(text: str) -> str:
    """Return a pattern without the line ends of its table."""
    return re.sub(r"(?:^|\n)\s*", "", text)


@cache
def source(text: str) -> str:
    """Return a pattern of the table with its words filled in, names told by their capitals."""
    text = _joined(text)
    while (filled := re.sub(r"<([A-Z]{2,})>", lambda m: _words()[m[1]], text)) != text:
        text = filled
    return re.sub(r"(?<!-i:)\[A-Z\]", "(?-i:[A-Z])", text)


@cache
def pattern(name: str) -> re.Pattern[str]:
    """Return a single pattern of the table by its name."""
    return re.compile(source(_tables()["patterns"][name]), re.IGNORECASE)


@cache
def ways(name: str, form: str = "{}") -> tuple[Way, ...]:
    """Return the ways of one table, each pattern put into `form`."""
    return tuple(
        Way(
            re.compile(form.replace("{}", source(entry["ways"])), re.IGNORECASE),
            entry.get("says", ""),
            CHECKS[entry.get("of", "any")],
            entry.get("when", ""),
            entry.get("over", ""),
            entry.get("joint", ""),
        )
        for entry in _tables()[name]
    )


_DONE = {
    "stop": "stopped",
    "give": "gave",
    "quit": "quit",
    "take": "took",
    "leave": "left",
    "move": "moved",
    "sell": "sold",
    "end": "ended",
    "split": "split",
    "separate": "separated",
    "drop": "dropped",
    "learn": "learned",
    "break": "broke",
    "become": "became",
    "start": "started",
    "buy": "bought",
    "adopt": "adopted",
    "switch": "switched",
    "resign": "resigned",
    "speak": "speak",
    "call": "called",
}


def verb_phrase(rest: str, negative: bool, ended: bool) -> tuple[str, bool, bool]:
    """Return a verb phrase in plain words, whether it is denied, and whether it is said to be over.

    >>> verb_phrase("have a weakness for rye bread", False, False)
    ('love rye bread', False, False)
    >>> verb_phrase("can get enough of rye bread", True, False)
    ('love rye bread', False, False)
    """
    if len(rest) > LONGEST:
        return rest, negative, ended
    done = pattern("decided").match(rest)
    if done is not None and not negative and done["verb"].lower() in _DONE:
        rest = _DONE[done["verb"].lower()] + rest[done.end() :]
    whole, comma, _ = rest.partition(", ")
    forms = (rest, whole) if comma else (rest,)
    for way, form in ((way, form) for form in forms for way in ways("verbs", "(?:{})$")):
        need, plain = way.when, way.says
        if (need == "denied" and (ended or not negative)) or (need == "ended" and not ended):
            continue
        match = way.ways.match(form)
        if match is None or not way.fits(match["o"]):
            continue
        if need:
            negative = ended = False
        if plain.startswith("no longer "):
            if negative and not ended:  # "I have not forgotten my Welsh"
                return plain.removeprefix("no longer ").format(o=match["o"]), False, False
            return plain.removeprefix("no longer ").format(o=match["o"]), True, True
        return plain.format(o=match["o"]), negative, ended
    return rest, negative, ended
