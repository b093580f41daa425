"""Clauses that speak of the speaker from elsewhere, as clauses that begin with "I" or "my"."""

from __future__ import annotations

import re
from functools import cache

from loci.text.wording import (
    Check,
    is_car,
    is_name,
    is_pet,
    is_place,
    pattern,
    source,
    ways,
)


@cache
def _roles() -> tuple[tuple[re.Pattern[str], re.Pattern[str], str, Check], ...]:
    """Return what a value is to somebody: behind "my", behind "a", the plain clause, its check."""
    many, found = source("<ADJECTIVES>"), []
    for way in ways("roles"):
        noun = way.ways.pattern
        again = noun.replace("?P<what", "?P<w")
        tail = (
            r"(?: (?:of all(?: \w+)?|for \w+(?: \w+)?|since .+|these days|now|nowadays|right now"
            r"|at the moment|ever))?$"
        )
        mine = (
            r"(?:(?:one of |among )?(?:my|our|the(?= family | new | latest )) "
            rf"{many}(?:family )?(?:{noun})"
            rf"|(?:an?|another) {many}(?:{again}) of (?:mine|ours)){tail}"
        )
        one = rf"an? {many}(?:{noun})$|another {many}(?:{again})$"
        found.append((re.compile(mine, re.I), re.compile(one, re.I), way.says, way.fits))
    return tuple(found)


def _role(words: str, value: str, owned: bool = True) -> str | None:
    """Return the plain clause where `words` are what a value is to the speaker: "my new home"."""
    value = _article(value)
    if "," in value:
        return None
    for mine, one, plain, check in _roles():
        match = (mine if owned else one).match(words)
        if match is None:
            continue
        if not check(value):
            continue
        what = next((g for n, g in match.groupdict().items() if n.startswith("w") and g), "")
        return plain.format(o=value, what=what.lower().replace("color", "colour"))
    if not owned:
        return None
    if pattern("home").match(words) and is_place(value):
        return f"I live in {value}"
    if pattern("beloved").match(words) and is_name(value):
        return f"my partner is {value}"
    best = pattern("best").match(words)
    if best is not None and re.search(r" (?:for|to|in)\b", words):
        return f"my favourite {best['what']} is {value}"
    such = pattern("such").match(words)
    if such is None:
        return None
    said = such["where"] or such["that"]
    if such["where"]:
        if re.search(r"\bwork\b", said):
            return f"{said} at {value}"
        return f"{said} in {value}"
    said = re.sub(r" (?:now|these days|nowadays|at the moment|right now)$", "", said)
    if pattern("most").match(said) and such["what"]:
        return (
            f"my favourite {such['what'].split()[-1].lower().replace('color', 'colour')} is {value}"
        )
    if re.search(r"\bcall home$", said, re.I):
        return f"I live in {value}"
    said = re.sub(
        r" (?:for a living|most|best|every day|all the time|in my (?:free|spare) time)$", "", said
    )
    if re.search(r"\bdo$", said):  # "what I do is work as a nurse"
        return f"I {value}" if re.match(r"(?:work|play|teach|drive)\b", value) else None
    return f"{said} {value}"


def _article(value: str) -> str:
    """Return a value without what leads to it: "being a nurse", "called Jonas"."""
    value = re.sub(
        r"^(?:called|named|being|as|that of|to be|in|to|at|playing) ",
        "",
        value.strip(" .,!"),
        flags=re.I,
    )
    return re.sub(
        r"(?: (?:now|too|as well|these days|nowadays|again|for now|at present))+$",
        "",
        value.strip(),
    )


def restated(clause: str) -> list[str]:
    """Return what a clause says of the speaker, as clauses that begin with "I" or "my".

    >>> restated("Orbex is no longer my employer")
    ['I no longer work at Orbex']
    >>> restated("it is Leeds that I live in"), restated("the city is large")
    (['I live in Leeds'], [])
    """
    clause = re.sub(r"\s*\b(?:any ?more|any longer)\b", "", clause).strip(" .,!;")
    we = re.match(r"we (?P<rest>.+), (?P<who>[^,]+) and (?:i|me)$", clause, re.I)
    if we is not None:
        clause = f"{we['who']} and I {we['rest']}"
    for shape in _SHAPES:
        found = shape(clause)
        if found is not None and found.lower() != clause.lower():
            return [found]
    return []


def _best(clause: str) -> str | None:
    """ "Of all colours I like teal best"."""
    match = pattern("best_of").match(clause) or pattern("of_all").match(clause)
    if match is None:
        return None
    what = match["what"].lower().replace("color", "colour")
    return f"my favourite {what} is {match['o']}"


def _pair(clause: str) -> str | None:
    """ "Jonas and I are an item", "it is over between Jonas and me", "walnuts and I do not mix"."""
    match = pattern("pair").match(clause)
    if match is None:
        return None
    who = next(g for g in (match["a"], match["b"], match["c"], match["d"]) if g)
    rest = match["e"] or match["rest"] or ""
    if pattern("bad_mix").search(rest):
        return f"I am allergic to {who}" if "allerg" in clause.lower() else None
    if (
        match["e"]
        or pattern("apart").search(rest)
        or (match["c"] and re.search(source("<GONE>"), rest))
    ):
        if not is_name(who):
            return f"I gave up {who}"
        unsure = re.search(r"\b(?:done|over|through|history|finished|no more)\b", rest)
        return f"I {'parted ways' if unsure else 'broke up'} with {who}"
    are = r"(?:are|have been|were|got|will be|still|started|began|fell|live|make)\b"
    if (
        re.match(are, rest)
        and pattern("joined").search(rest)
        and is_name(who)
        and not re.search(r"\bnot\b", rest)
    ):
        return f"my partner is {who}"
    return None


def _cleft(clause: str) -> str | None:
    """ "It is Leeds that I live in"."""
    match = pattern("cleft").match(clause)
    if match is None or len(match["o"].split()) > 5:
        return None
    if re.search(r"\bcall home$", match["rest"]):
        return f"I live in {match['o']}"
    return f"{match['rest']} {match['o']}"


def _label(clause: str) -> str | None:
    """ "My occupation: a nurse"."""
    match = pattern("label").match(clause)
    if match is None:
        return None
    told = re.match(r"(?:i am|i play|i have) (?P<o>(?:an?|the) .+)", match["y"], re.I)
    value = told["o"] if told else match["y"]
    return (
        _role(match["x"], value)
        or _role(match["x"], value, owned=False)
        or _role(re.sub(r"^(?:and |a |the )*(?:new|next) ", "my ", match["x"], flags=re.I), value)
    )


def _short(clause: str) -> str | None:
    """Set phrases: "no more chess for me"."""
    for way in ways("short"):
        match = way.ways.match(clause)
        if match is not None and way.fits(match["o"]):
            told = {**match.groupdict(), "o": _article(match["o"])}
            return way.says.format(**told)
    return None


def _beside(clause: str) -> str | None:
    """ "My partner, Jonas, says hi" and "Jonas, my partner, says hi"."""
    match = pattern("beside").search(clause)
    if match is None:
        return None
    role, value = (match["b"], _last(match["a"])) if match["a"] else (match["c"], match["d"])
    return _role(role[:1].lower() + role[1:], value)


def _last(value: str) -> str:
    """Return what stands last in words that lead to it: "I washed my car", "with Jonas"."""
    value = value.rsplit(":", 1)[-1].strip()
    match = re.search(r"\b(?:with|called|named|for|met|bought|got|saw) (?P<o>\S.*)$", value)
    return match["o"] if match else value


def _having(clause: str) -> str | None:
    """ "I have a new hobby: chess"."""
    match = pattern("have_role").match(clause)
    if match is None:
        return None
    role = match["role"]
    owned = re.match(r"(?:my|our) ", role, re.I) is not None
    if re.match(r"(?:some|a new love|love)", role, re.I):
        return f"{'my partner is' if is_name(match['o']) else 'I love'} {match['o']}"
    return _role(role, match["o"], owned)


def _noun(clause: str) -> str | None:
    """ "My allergy to walnuts is gone", "my job at Orbex keeps me busy"."""
    match = pattern("nouns").match(clause)
    if match is None:
        return None
    for way in ways("nouns", "(?:{})$"):
        if way.ways.match(match["noun"]) and re.fullmatch(way.joint, match["by"], re.I):
            value = match["o"]
            if not way.fits(value) or re.match(r"(?:my|our|this|that|it|you)\b", value, re.I):
                continue
            rest = (match["rest"] or "").strip()
            gone = re.fullmatch(
                source("<GONE>")
                + (
                    r"(?: (?:now|for good|at last|by itself|after .+|in .+|last .+|today"
                    r"|yesterday))?"
                ),
                rest,
                re.I,
            )
            if gone is not None or re.match(r"(?:is|has) no longer\b|is not\b", rest, re.I):
                return way.over.format(o=value)
            if re.match(r"(?:old|former|first|previous|childhood) ", clause.split(" ", 1)[1]):
                return None
            if match["noun"].lower() in ("time", "days", "day", "life", "thing") and not rest:
                return None
            return way.says.format(o=value)
    return None


def _equal(clause: str) -> str | None:
    """ "My employer is Orbex", "Orbex is where I work", "teal used to be my favourite colour"."""
    match = pattern("equals").match(clause)
    if match is None:
        return None
    x, y = match["x"], match["y"]
    if re.match(
        r"(?:what|where|the \w+ (?:that |which )?(?:i|we)) ", x, re.I
    ):  # its own "is" may come first
        again = re.match(
            rf"^(?P<x>.+) (?P<is>is|has been) {source('<ALSO>')}(?P<y>.+)$", clause, re.I
        )
        if again is not None:
            x, y = again["x"], again["y"]
    over = match["over"] is not None
    inside = re.match(r"in (?P<o>.+)", y)
    if inside is not None and re.match(
        (
            rf"(?:my|our) {source('<ADJECTIVES>')}(?:place|flat|house|home|apartment|room"
            r"|studio|address|life)$"
        ),
        x,
        re.I,
    ):
        found: str | None = f"I live in {inside['o']}"
        if not is_place(inside["o"]):
            return None
    elif re.match(r"(?:at|with) ", y) and re.match(
        rf"(?:my|our) {source('<ADJECTIVES>')}(?:job|office|desk|work|workplace)$", x, re.I
    ):
        found = f"I work at {y.split(' ', 1)[1]}"
        if not is_place(y.split(" ", 1)[1]):
            return None
    elif re.match(r"to ", y) and re.match(rf"my {source('<ADJECTIVES>')}allergy$", x, re.I):
        found = f"I am allergic to {y[3:]}"
    elif re.match(r"(?:my|an?) ex\b(?:$| now|-)", y) and is_name(x):
        return f"I broke up with {x}"
    else:
        found = _role(y, x) or _role(x, y)
    if found is None or not over:
        return found
    return _ended(found)


def _ended(plain: str) -> str:
    """Return a plain clause as one that no longer holds."""
    for begins, becomes in (
        ("my partner is ", "I broke up with "),
        ("my hobby is ", "I gave up "),
        ("I love ", "I gave up "),
        ("I am ", "I am no longer "),
        ("I ", "I no longer "),
    ):
        if plain.startswith(begins):
            return becomes + plain.removeprefix(begins)
    return plain.replace(" is ", " is no longer ", 1)


def _there(clause: str) -> str | None:
    """ "There is a hamster named Pip at home"."""
    match = pattern("there").match(clause)
    if match is None:
        return None
    value = match["o"]
    if is_pet(value) and re.search(
        r"\b(?:me|my|us|our|here|home)\b|^there (?:is|are) now", clause, re.I
    ):
        return f"I have {value}"
    if is_car(value) and re.search(r"\b(?:my|our)\b", clause):
        return f"I drive {value}"
    return None


def _doing(clause: str) -> str | None:
    """ "Orbex employs me", "walnuts give me hives"."""
    if re.match(r"(?:i|we|he|she|it|they|this|that|there)\b", clause, re.I):
        return None
    for way in ways("things", f"^(?P<o>.+?) {source('<ALSO>')}(?:{{}})"):
        match = way.ways.match(clause)
        if match is None:
            continue
        value = re.sub(rf"^(?i:my|our) (?:\w+ )?{source('<PARTNER>')},? (?=[A-Z])", "", match["o"])
        if len(value.split()) <= 6 and way.fits(value):
            value = re.sub(r"^(?:my|being) ", "", value)
            return way.says.format(o=value)
    return None


def _animal(clause: str) -> str | None:
    """ "A cat named Miso woke me up": whoever lives with somebody is theirs."""
    match = pattern("animal").match(clause)
    if match is None or not re.search(r"\b(?:named|called) ", match["o"]):
        return None
    if re.search(r"\b(?:me|my|us|our|home|family|household)\b", match["rest"], re.I):
        return f"I have {match['o']}"
    return None


_SHAPES = (
    _animal,
    _best,
    _pair,
    _cleft,
    _label,
    _short,
    _beside,
    _having,
    _noun,
    _equal,
    _there,
    _doing,
)
