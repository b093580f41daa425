"""Sentences made plain statements: questions one answers oneself, leads, "if you ask me", "it"."""

from __future__ import annotations

import re

from loci.text.phrases import CONTRACTED, CONTRACTIONS
from loci.text.wording import LONGEST, pattern, ways

_ONCE = re.compile(
    (
        r"^i (?:once |used to )?(?P<verb>loved?|liked?|enjoyed?|adored?|played?"
        r"|lived?|worked?) (?P<o>.+?),? "
        r"(?:but )?(?:no longer|not (?:now|any ?more|any longer|these days))$"
    ),
    re.I,
)
_NOW = {
    "love": "love",
    "like": "like",
    "enjoye": "enjoy",
    "enjoy": "enjoy",
    "adore": "love",
    "playe": "play",
    "play": "play",
    "live": "live",
    "worke": "work",
    "work": "work",
}
_NAMED_SO = re.compile(
    (
        r"^(?P<have>(?:i|we) have (?:got )?an? [\w ]+?), (?:and )?(?:her|his|its) "
        r"name is (?P<name>(?-i:[A-Z])[\w-]+)"
    ),
    re.I,
)
_AS_BEFORE = re.compile(
    (
        r"^i do not (?P<verb>like|love|enjoy|play|eat|drink) (?P<o>.+?) (?:like|as "
        r"much as|the way|as) (?:i used to|before|i did)$"
    ),
    re.I,
)
_RATHER = re.compile(
    r"^(?P<x>my [\w ]+?) is not [^,]+, (?:but |it is |but it is |it has to be )(?P<o>[^,]+)$", re.I
)
_ONE_THING = re.compile(
    (
        r"^if there is (?:one|any|a single) [a-z]+ (?:that )?i (?P<verb>love|like"
        r"|adore|enjoy|play|speak|drive)"
        r"(?: most| above all)?,? (?:then )?(?:it is|that is|it has to be|it would "
        r"be) (?P<o>.+)$"
    ),
    re.I,
)
_NO_WISH = ("i'd", "couldn't")  # expanded they would read as one


def straight(said: list[str]) -> list[str]:
    """Return the sentences of one message as plain statements where they are told in another way.

    >>> straight(["My favourite colour?", "Teal."]), straight(["If I had to pick a colour: teal."])
    (['My favourite colour: Teal.'], ['my colour: teal.'])
    >>> straight(["I can't eat walnuts, I'm allergic."])
    ['I am allergic to walnuts.']
    """
    found: list[str] = []
    waiting = ""
    for sentence in said:
        if waiting:
            sentence, waiting = _answered(waiting, sentence), ""
        elif len(said) > 1 and sentence is not said[-1] and pattern("fragment").match(sentence):
            waiting = sentence
            continue
        found.append(_straight(sentence))
    return [*found, waiting] if waiting else found


def _answered(asked: str, told: str) -> str:
    """Join "Goat cheese?" and "I love it."."""
    thing = asked.rstrip("? ")
    if re.match(r"(?:not any ?more|no longer|no more|never again|over)\b", told, re.I):
        return f"No more {thing}."
    it = re.search(r"\b(?:it|them|that)\b(?=[\s.!,]|$)", told)
    if it is not None and re.match(r"(?:i|we)\b", told, re.I):
        named = thing[1:] != thing[1:].lower()
        thing = thing if named else thing[:1].lower() + thing[1:]
        return f"{told[: it.start()]}{thing}{told[it.end() :]}"
    if re.match(
        r"(?:i|we|my|the|you|he|she|they|there|when|if)\b", told, re.I
    ) and not _LABELLED.match(asked):
        return told
    return f"{thing}: {told}" if len(told.split()) <= 8 else told


def _expanded(match: re.Match[str]) -> str:
    """Expand what stays no wish when it is: "I'd" and "couldn't" stay."""
    said = match.group().lower()
    return match.group() if said in _NO_WISH else CONTRACTIONS[said]


_LABELLED = re.compile(r"(?:my|our|and my|the) ", re.I)


def _straight(sentence: str) -> str:
    end = sentence[-1:] if sentence[-1:] in ".!?" else ""
    if len(sentence) > LONGEST:
        return sentence
    body = sentence.rstrip(" .!?")
    body = CONTRACTED.sub(_expanded, body)
    lead = pattern("says_so").match(body)
    if lead is not None:
        if end == "?" and not re.match(r"(?:did|have) i\b", body, re.I):
            return sentence
        body, end = body[lead.end() :], "." if end == "?" else end
    elif end == "?":
        return sentence
    low = body.lower()
    if "allergy" in low:
        body = pattern("x_allergy").sub(lambda m: f"{m['det']} {m['adj']}allergy to {m['o']}", body)
    about = pattern("about").match(body)
    if about is not None:
        body = f"{about['rest']} {about['what']}"
    there = pattern("there_now").match(body)
    if there is not None:
        what = "live in" if there["verb"].lower().startswith("live") else "work at"
        return f"I {what} {there['o']} now."
    if " if " in f" {low}":
        asked = pattern("if_asked").search(body)
        if asked is not None:
            topic = re.sub(r"^\s*(?:an?|my|the|your) ", "", asked["what"].strip(), flags=re.I)
            joint = f"my {topic}: " if topic and asked.start() == 0 else ""
            body = (body[: asked.start()] + joint + body[asked.end() :]).strip()
            low = body.lower()
    if "could " in low or "would " in low or "i'd " in low:
        body = pattern("could").sub(r"I love \g<o>", body)
        body = re.sub(r"\bcould kill\b", "can kill", body)
    if "would " in low and "favo" in low:
        body = re.sub(r"\bwould (?:have to )?be\b", "is", body)
    if "'d be" in low and "favo" in low:
        body = re.sub(r"'d be\b", " is", body)
    if "allerg" in low and not pattern("names_it").search(body):
        first = re.split(
            r"\s*(?:[,.;:–—]|\s-\s|\bbecause\b|\bsince\b|\bas i\b|\bdue to\b|\bon account of\b)\s*",
            body,
            maxsplit=1,
        )[0]
        for way in ways("avoided"):
            match = way.ways.match(first.replace("’", "'"))
            if match is not None:
                again = "again" in match.groupdict() and match["again"]
                return f"I am {'no longer ' if again else ''}allergic to {match['o']}."
    body = _NAMED_SO.sub(r"\g<have> named \g<name>", body)
    as_before = _AS_BEFORE.match(body)
    if as_before is not None:
        return f"I no longer {as_before['verb']} {as_before['o']}."
    rather = _RATHER.match(body)
    if rather is not None:
        return f"{rather['x']} is {rather['o']}."
    once = _ONCE.match(body)
    if once is not None:
        return f"I no longer {_NOW[once['verb'].lower().rstrip('d')]} {once['o']}."
    one = _ONE_THING.match(body)
    if one is not None:
        return f"I {one['verb']} {one['o']}."
    loves = pattern("loves_it").match(body)
    if loves is not None:
        thing = pattern("had").match(loves["a"]) or pattern("just_thing").match(loves["a"])
        if thing is not None:
            return f"I love {thing['o'][:1].lower() + thing['o'][1:]}."
    if low.endswith(("favourite colour", "favorite color")) and (
        colour := pattern("in_colour").search(body)
    ):
        return f"my favourite colour is {colour['o']}."
    return body + end
