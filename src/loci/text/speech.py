"""The facts of "subject, verb and the rest": the verb is brought to its base form and looked up."""

from __future__ import annotations

import re
from dataclasses import replace

from loci.core.item import Candidate, Turn
from loci.text.clause import Clause, clause_of, statement, third_person, told_by
from loci.text.phrases import ADVERBS, BASE, DULL, PARTICIPLE, PAST, PERFECT
from loci.text.verb_table import RULES
from loci.text.wording import verb_phrase

_ENDED = re.compile(r"\b(?:no longer|any ?more|any longer)\b", re.IGNORECASE)
_THING = re.compile(
    (
        r"\s+(?:an?|two|three|four|five|six|\d+|some|another|no|my own|several"
        r"|many)\s|\s+[a-z]+$"
    ),
    re.I,
)
_NOT = re.compile(r"^(?:do not|does not|did not|cannot|could not|am not|have not|never)\b\s*", re.I)


def spoken(subject: str, rest: str, turn: Turn, *, teller: str | None = None) -> list[Candidate]:
    """Return the facts of "subject rest", `rest` beginning with a verb."""
    ended = _ENDED.search(rest) is not None
    if ended:
        rest = _ENDED.sub("", rest)
    words: list[str] = []
    for place, word in enumerate(rest.split()):
        if place > 4 or word.lower().strip(",") not in ADVERBS:
            words.append(word)
        elif word.endswith(",") and words:
            words[-1] += ","
    if not words:
        return []
    head = words[0].lower()
    if head in BASE:
        words[0] = BASE[head]
    rest = " ".join(words).rstrip(" .!,")
    negative = False
    cut = _NOT.match(rest)
    if cut is not None:
        negative = True
        began = cut.group().lower().split()[0]
        rest = rest[cut.end() :]
        if began in ("am", "have"):
            rest = f"{began} {rest}"
        elif began == "cannot":
            rest = f"can {rest}"
    have_been = re.match(r"^have (?:been (?P<ing>\w+ing)|(?P<part>\w+))\b", rest)
    if have_been is not None:
        verb = (have_been["ing"] or have_been["part"]).lower()
        if verb == "got" and _THING.match(rest, have_been.end()):
            rest = "have" + rest[have_been.end() :]
        elif verb in PARTICIPLE and verb != "had":
            rest = PARTICIPLE[verb] + rest[have_been.end() :]
        elif have_been["ing"]:
            rest = f"am {verb}" + rest[have_been.end() :]
        elif verb.endswith("ed") or verb in PAST or verb in PERFECT:
            rest = PERFECT.get(verb, verb) + rest[have_been.end() :]
        elif verb == "been":
            rest = "am" + rest[have_been.end() :]
    said = rest
    rest, negative, ended = verb_phrase(rest, negative or ended, ended)
    clause = replace(
        clause_of(subject, rest, said, turn),
        ended=ended,
        negative=negative or ended,
        said=said if said != rest else "",
        other=teller is not None,
    )
    verb = rest.split(" ", 1)[0].lower() if rest else ""
    if verb == "used" and rest.startswith("used to ") and not negative:
        past = _past(subject, rest[8:], turn, teller)
        if past:
            return past
    for pattern, rule in RULES.get(verb, ()):
        match = pattern.match(rest)
        if match is not None:
            made = rule(clause, match)
            if made is not None:
                facts = made if isinstance(made, list) else [made]
                return [fact for fact in facts if fact is not None]
    if teller is not None:
        clause = replace(clause, rest=told_by(clause.rest, teller))
    if not negative and (verb in PAST or (verb.endswith("ed") and len(verb) > 4)):
        return _event(clause, verb)
    return []


def _past(subject: str, rest: str, turn: Turn, teller: str | None) -> list[Candidate]:
    """Return what "used to" tells: it held once, and ends what the store still believes."""
    now = re.sub(r"^be\b", "am", rest)
    found = spoken(subject, f"no longer {now}", turn, teller=teller)
    if any(not fact.ends or fact.predicate == "did" for fact in found):
        return []
    first = [replace(fact, valid_from=None, valid_to=turn.time) for fact in found[:1]]
    return [*first, *found[1:]]


def _event(clause: Clause, verb: str) -> list[Candidate]:
    """Keep what was done, in the third person and with its date."""
    words = statement(clause.rest)
    text = clause.told()
    if verb in DULL or len(words.split()) < 3 or text is None:
        return []
    made = clause.fact("did", third_person(words), text=text, keep_time=True)
    return [made] if made else []
