"""Corrections in a conversation: what was said, and what holds instead.

"I said 2,400, it's actually 2,250"; "it isn't law, it's midwifery"; "we can't on the first. It's
the sixteenth now"; "they've moved it, it'll be on the 12th".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from loci.text.said import Mend, Said, Story
from loci.text.times import resolve

_TOLD = re.compile(
    (
        r"\b(?:(?:did|had) i (?:say|tell you|mention|write)|i(?:['’]d| had| have"
        r"|['’]ve)?(?: \w+ly)? (?:told "
        r"you|said|mentioned|wrote|thought|called it)|i(?: was|['’]d been"
        r"| had been) wrong (?:about|on)|i (?:got|had) (?:that|this"
        r"|it|the \w+) wrong|i (?:mixed up|misread|mistyped|misremembered|mixed)"
        r"|instead of)\b\s*"
        r"(?:that |it was |it is |it['’]s )?"
    ),
    re.IGNORECASE,
)
_MENDS = re.compile(
    (
        r"\b(?:actually|really|in fact|but|it['’]s|it is|it was|it['’]ll|she['’]s"
        r"|he['’]s|they['’]re|is|was|are)\b"
    ),
    re.I,
)
_YES_NOT = re.compile(
    r"^(?P<new>.+?)(?:,|\s+and)\s+(?:and\s+)?not\s+(?P<old>[^,.;!?]+)", re.IGNORECASE
)
_NOT_YES = re.compile(
    (
        r"\b(?:not|(?:is|was|are|were|do|does|did|have|has|ca|wo|could|would)n['’]t"
        r"|no longer|never|cannot)\s+"
        r"(?P<old>[^,.;!?]+?)\s*(?:[,;:–—-]+|\bbut\b|\.\s)\s*(?:but\s+)?"
        r"(?P<new>(?:it|he|she|they|we|i|that|the|in|on|at|now|rather|instead|just"
        r"|only|but)\b.+)"
    ),
    re.IGNORECASE,
)
_NO = re.compile(
    (
        r"(?P<old>[^,.;!?…]+)(?:\.{2,}|…|,|\?|\s[-–—])\s*(?:hm+,? )?(?:no|sorry|wait"
        r"|i mean|or rather|rather"
        r"|make that|correction|scratch that)\b[,:…. ]+(?P<new>[^.!?]+)"
    ),
    re.IGNORECASE,
)
_FROM_TO = re.compile(
    (
        r"\b(?:moved?|changed?|switched|shifted|postponed|pushed|rescheduled|brought"
        r"|put|gone|went)\b"
        r"[^.;!?]*?\bfrom\s+(?P<old>[^,.;!?]+?)\s+to\s+(?P<new>[^,.;!?]+)"
    ),
    re.IGNORECASE,
)
_MEANT = re.compile(
    (
        r"\b(?:(?:was|were|['’]d been|had been) (?:\w+ly )?(?:meant|supposed|going|due|planned"
        r"|planning|thinking|hoping|aiming|booked))"
        r"\b(?: (?:to be|of|for|about|on|to have|to))*\s+(?P<old>[^,;.!?]+?)"
        r"(?:\s*[,;–—]\s*(?:but|and)?|\s+but\b|[.!?]|$)\s*(?P<new>[^.!?]+)?"
    ),
    re.IGNORECASE,
)
_IS_NOT = re.compile(r"(?P<who>(?:it|he|she|that)['’]s) not (?:an? |the )?(?P<old>[A-Z]\w+)", re.I)
_VALUE = re.compile(r"\d|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day|\b[a-z]+(?:teen|ty)\b", re.I)
_DENIES = re.compile(
    (
        r"\b(?:not|\w+n['’]t|no longer|never|cannot|no|without|any ?more)\b|\b(?:['’]s"
        r"|is|are|was)\s+(?:off"
        r"|cancelled|canceled|over|out)\b|\bfell through\b|\bcalled off\b|\bdeferred\b"
        r"|\bgive up\b|\bgave up\b"
    ),
    re.IGNORECASE,
)
_SHIFTS = re.compile(
    (
        r"\b(?:mov(?:e|ed|ing)|push(?:ed|ing)?|postpon(?:e|ed|ing)|delay(?:ed|ing)?"
        r"|put (?:it )?off|chang(?:e|ed"
        r"|ing)|reschedul(?:e|ed|ing)|brought (?:it )?forward|bring (?:it )?forward"
        r"|shift(?:ed)?)\b"
    ),
    re.IGNORECASE,
)
_FOLLOWS = re.compile(
    (
        r"^(?:so |and |but |now |actually |anyway,? )*(?:it|that|we|i|he|she|they"
        r"|the \w+)(?:['’]\w+| is| was"
        r"| will be)?\b.*\b(?:now|instead|actually|after all|in the end)\b"
    ),
    re.IGNORECASE,
)


def mended(story: Story) -> None:
    """Find corrections, in order."""
    said = story.said
    for index, one in enumerate(said):
        text = _plain_numbers(one.text.replace("’", "'"))
        follows = index + 1 < len(said) and said[index + 1].source.id == one.source.id
        after = _plain_numbers(said[index + 1].text.replace("’", "'")) if follows else ""

        def mend(old: str, new: str, of: int, typed: bool = True, at: int = index) -> None:
            if old.strip() and new.strip():
                old = re.sub(r"\b(?:any ?more|any longer|either|at all)\b", "", old)
                story.mends.append(
                    Mend(old=old.strip(), new=new.strip(), at=at, of=of, typed=typed)
                )

        for told in _TOLD.finditer(text):
            rest = text[told.end() :]
            cut = re.search(
                (
                    r"\s*(?:,|;|\?|\s[-–—]|\bbut\b|\.\.\.|\band (?=(?:it|he|she|they|that)(?:'s"
                    r"|'re| is| was| are)))\s*"
                ),
                rest,
            )
            old = rest[: cut.start()] if cut else rest.rstrip(".!?")
            new = rest[cut.end() :] if cut else ""
            if new.strip(" .!?") and _MENDS.search(rest[cut.start() :] if cut else ""):
                mend(old, new, index, False)
            elif after and (
                text.rstrip().endswith("?") or _FOLLOWS.match(after) or _VALUE.search(old)
            ):
                mend(old, after, index + 1)
        if _SHIFTS.search(text):
            topic = f"{one.lead} {text}" if one.lead else text
            for later in _dated(said, index):
                mend(topic, _plain_numbers(said[later].text.replace("’", "'")), later, False)
        if one.lead and re.match(r"(?:no|nope|not (?:any ?more|quite))\b", text, re.I):
            mend(_plain_numbers(one.lead), text, index)
            if follows and not any(map(str.isdigit, text)):
                mend(_plain_numbers(one.lead), after, index + 1)
        for pattern in (_YES_NOT, _NOT_YES, _NO, _FROM_TO):
            for match in pattern.finditer(text):
                mend(match["old"], match["new"], index, pattern is _NO)
        if after and re.match(r"(?:no, )?not\b", text, re.I):
            mend(text, after, index + 1)
        if after and (_DENIES.search(text) or _MEANT.search(text)) and _FOLLOWS.match(after):
            mend(text, after, index + 1)
        for match in _MEANT.finditer(text):
            if match["new"]:
                mend(match["old"], match["new"], index)
        no = _IS_NOT.search(text)
        if after and no is not None and after.lower().startswith(no["who"].lower()):
            mend(no["old"], after, index + 1)


def _dated(said: Sequence[Said], index: int) -> list[int]:
    """Return which of a sentence and the three behind it name a time, exact days first."""
    found = []
    for place in range(index, min(index + 4, len(said))):
        one = said[place]
        if one.source.id != said[index].source.id:
            break
        spans = resolve(one.text, one.source.time)
        if spans:
            found.append((all(s.grain != "day" for s in spans), place))
    return [place for _, place in sorted(found)]


def _plain_numbers(text: str) -> str:
    """Return the text without commas inside numbers, which are no ends of clauses."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)
