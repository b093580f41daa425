"""What a clause tells when no grammar fits it: words that go with a slot, and a value of its kind.

"My Portuguese helped me today" holds a language and "my"; "we finally made the move to Graz" a
place and "move to". Who speaks must stand in the clause, and nothing that makes it somebody else's,
a wish or a sight: "I saw an old Fiat" tells of nobody's car.
"""

from __future__ import annotations

import re

from loci.text.clause import NAME, PLACE
from loci.text.entities import PLAIN
from loci.text.phrases import GAME, JOBS, LANGUAGE, PARTNERS, PETS, PRONOUNS
from loci.text.verbs import CAR
from loci.text.wording import source

LONGEST = 22  # words of a clause that is read this way
_ME = re.compile(r"\b(?:i|me|my|we|us|our|mine|ours|myself)\b", re.I)
_OTHERS = re.compile(
    (
        r"\b(?:he|she|they|his|her|their|your|you|if|wish|would|could|might|want"
        r"|wanted|hope|hoping|plan|planning|"
        r"dream|dreamt|dreaming|maybe|perhaps|thinking about|thinking of|considering"
        r"|almost|nearly|wonder|saw|"
        r"seen|watched|visited|visiting|visit|trip|holiday|vacation|tour|flight"
        r"|conference|"
        r"tickets?|concert|recital|festival|museum|offer|viewing|viewed|for sale"
        r"|auction|movie|film|book|song|story|restaurant"
        r"|recipe|food|friend's|neighbour's"
        r"|neighbor's|sister's|brother's|rented|rental|test drive|"
        r"hate|cannot|never|when i was|as a child|as a kid|learn|learning|studying"
        r"|passed"
        r"|going to|will)\b"
    ),
    re.I,
)
_OVER = re.compile(
    (
        r"\b(?:no longer|any ?more|any longer|over|stop|stopped|quit|gave up|give up"
        r"|given up|gone|done with|finished with|left|leaving|leave|"
        r"ended|ending|end|ex|sold|lost|behind me|goodbye|farewell|broke up|split"
        r"|separated|dumped|outgrown|outgrew|cured|used to|once|"
        r"disappeared|vanished|went away|history|fired|sacked|laid off|let me go"
        r"|resigned|retired|away from|out of my life|not speak)\b"
    ),
    re.I,
)
_SURELY_NOT_OVER = re.compile(
    r"\bnot (?:gone|forgotten|left|stopped|changed|over|lost|given up|moved|sold)\b", re.I
)

_COLOUR_WORDS = source("<COLOURS>")
_PROPER = PLACE.replace("[A-Z]", "(?-i:[A-Z])")
_WHO = NAME.replace("[A-Z]", "(?-i:[A-Z])")
_HOME = re.compile(
    (
        r"\b(?:live[sd]?|living|home|house|flat|apartment|address|move[ds]?|moving"
        r"|relocat\w+|settled|resident|local|postcode|"
        r"neighbourhood|transferred|find me|visit me|write to me|keys|boxes|my "
        r"(?:new )?(?:city|town)|residence|reside|rent|unpacked|landed)\b"
    ),
    re.I,
)
_AT_HOME = re.compile(
    (
        r"(?:\bmov\w+ (?:over |back |house,? |up |down |here |out |on )?(?:in)?to"
        r"|\b(?:in|into|for|away from|is|called|here in|of|a|:|hello|am|leave|left"
        rf"|swapped .+ for|(?:relocated|transferred|back) to)) (?P<o>{_PROPER})"
    ),
    re.I,
)
_FIRST_PLACE = re.compile(
    rf"^(?P<o>{_PROPER})(?:,| (?:is|it is|has|remains|became|keeps|feels|now))", re.I
)
_WORK = re.compile(
    (
        r"\b(?:work(?:s|ed|ing)?|job|employ\w*|company|firm|payroll|salary|wages"
        r"|contract|hired|desk|office|boss|colleagues|shift|"
        r"accounting|sales|marketing|engineering|notice|team|staff|first day|first "
        r"week|last day|resign\w*|pays me|new role|position|ship|career)\b"
    ),
    re.I,
)
_AT_WORK = re.compile(
    rf"\b(?:at|for|with|by|to|from|on|is|of|join(?:ed)?|left|called|:) (?P<o>{_PROPER})(?:'s)?",
    re.I,
)
_LOVE = re.compile(
    (
        rf"\b(?:{'|'.join(sorted(PARTNERS, key=len, reverse=True))}|dating|couple"
        r"|relationship|married|engaged|(?:am|are|been|got|still) together|in love|love of my life|"
        r"going strong|an item|single|divorced?|wedding|anniversary)\b"
    ),
    re.I,
)
_ANY_NAME = re.compile(_WHO)
_SPEAKING = re.compile(
    (
        r"\b(?:speak\w*|spoke|spoken|languages?|fluent\w*|chat|talk\w*"
        r"|conversation\w*|express|converse|understand|read|write|tongue|native"
        r"|bilingual|"
        r"vocabulary|accent|grammar|forgotten|keep up|mastered|learn(?:ed|t)?|learn"
        r"|phone|customers|tourists?|grew up|brought up|raised)\b"
    ),
    re.I,
)
_MY_LANGUAGE = re.compile(rf"\bmy (?:\w+ )?(?:(?-i:{LANGUAGE}))", re.I)
_LANGUAGE = re.compile(LANGUAGE)
_AS_TRADE = re.compile(
    (
        r"\b(?:as|being|am(?: now)?(?: a \w+ \w+:)?|been|become|became|:|with me) "
        r"(?P<o>(?:an?|the) (?:[\w-]+ ){0,2}?(?P<noun>[a-z-]+))\b"
    ),
    re.I,
)
_WORKING = re.compile(
    (
        r"\b(?:work\w*|job|shifts?|hired|employed|career|trade|profession|living"
        r"|trained|retrained|qualified|promoted|degree|course|school|"
        r"apprenticeship|days|life|title|card|badge|colleagues|clients|patients)\b"
        r"|\bam (?:now )?an? "
    ),
    re.I,
)
_A_CAR = re.compile(
    rf"\b(?P<o>(?:an?|another) (?:[\w-]+ ){{0,3}}?{CAR.pattern[2:]}(?: (?-i:[A-Z]\w+))?)", re.I
)
_A_PET = re.compile(
    (
        r"\b(?P<o>(?:an?|another) (?:[\w-]+ "
        rf"){{0,3}}?(?:{'|'.join(sorted(PETS, key=len, reverse=True))}) (?:named"
        r"|called) (?-i:[A-Z])[\w-]*)"
    ),
    re.I,
)
_GAME = re.compile(rf"\b{GAME}\b", re.I)
_PLAYING = re.compile(
    (
        r"\b(?:play\w*|practi[cs]\w+|club|team|lessons?|training|match(?:es)?|game"
        r"|tournament|hobby|hobbies|evenings?|weekends?|every|week|weekly|fun"
        r"|relax\w*|unwind\w*|hours|pastime|free time|spare time|regularly|often|band"
        r"|orchestra|fit|sane|partner|opponent|sundays?|saturdays?|mondays?"
        r"|tuesdays?|wednesdays?|thursdays?|fridays?|days|hooked|passion)\b"
    ),
    re.I,
)
_HUES = re.compile(rf"\b{_COLOUR_WORDS}\b", re.I)
_COLOUR = re.compile(
    (
        r"\b(?:favou?rite|best|most|dearest|one and only|to any|to every|above|beats?"
        r"|number one|top)\b"
    ),
    re.I,
)
_ALLERGY = re.compile(r"\ballerg(?:y|ic|ies)\b", re.I)
_ALLERGIC_TO = (
    re.compile(
        (
            r"\b(?:allergic(?: \w+)?|allergy(?: \w+)?|reactions?) to (?P<o>(?!it\b|them\b"
            r"|that\b|this\b|be\b)[\w' -]+?)(?: (?:as|so|and|now|again|too|that|when"
            r"|because|was|is|has|like|treated|which|after|since|for|from|in|on|at|these"
            r"|today|this|last)\b.*|[,.;:!?].*)?$"
        ),
        re.I,
    ),
    re.compile(
        r"\b(?:add(?:ed)?|put|write|wrote) (?P<o>[\w' -]+?) (?:to|on|onto|down)\b.*\ballerg", re.I
    ),
    re.compile(
        (
            r"^(?P<o>[\w' -]{3,30}?) (?:has |have |is |are |now |just |also )*(?:joined"
            r"|on|among|added|part of|one of|tops|makes|gives|causes|gave"
            r"|caused)\b.*\ballerg"
        ),
        re.I,
    ),
    re.compile(
        (
            r"\b(?:avoid|skip|without|no|stay away from|keep away from|steer clear of|eat"
            r"|touch|have) (?P<o>(?!an? )[\w' -]+?)(?:,| because| since| as| due| for| on"
            r"| out| \().*\ballerg"
        ),
        re.I,
    ),
    re.compile(
        (
            r"\ballerg(?:y|ies) (?:\w+ )?(?:is|are|includes?|:|to|called) (?P<o>(?!gone"
            r"|over|to\b|not\b|no\b|bad|back)[\w' -]+)$"
        ),
        re.I,
    ),
    re.compile(r"\ballerg(?:y|ies): (?P<o>[\w' -]+)$", re.I),
    re.compile(r"^(?P<o>[\w' -]{3,30}?) (?:is|are) .*\ballerg", re.I),
)


def guessed(clause: str) -> str | None:
    """Return what a clause tells by its cues, as a plain clause, or None.

    >>> guessed("My Portuguese helped me today"), guessed("We finally made the move to Graz")
    ('I speak Portuguese', 'I moved to Graz')
    >>> guessed("We saw an old Fiat on the road") is None
    True
    """
    own = _ME.search(clause) or re.match(r"(?:an?other|a new|new|latest) allergy\b", clause, re.I)
    if len(clause.split()) > LONGEST or own is None:
        return None
    over = _OVER.search(clause) is not None and _SURELY_NOT_OVER.search(clause) is None
    foreign = _OTHERS.search(clause) is not None
    found = _allergy(clause, over) or _colour(clause, over)
    if found is not None or foreign:
        return found
    for read in (_game, _language, _pet, _car, _trade, _partner, _work, _home):
        found = read(clause, over)
        if found is not None:
            return found
    return None


def _allergy(clause: str, over: bool) -> str | None:
    if _ALLERGY.search(clause) is None or clause.rstrip().endswith("?"):
        return None
    for pattern in _ALLERGIC_TO:
        match = pattern.search(clause)
        if match is None or _ME.search(match["o"]) or len(match["o"].split()) > 4:
            continue
        return f"I am {'no longer ' if over else ''}allergic to {match['o'].strip()}"
    return None


def _colour(clause: str, over: bool) -> str | None:
    if not re.search(r"\bcolou?rs?\b", clause, re.I) or _COLOUR.search(clause) is None:
        return None
    hues = list(dict.fromkeys(m.group().lower() for m in _HUES.finditer(clause)))
    if len(hues) != 1:
        return None
    ended = over and re.search(r"\b(?:no longer|any ?more|used to|not)\b", clause, re.I) is not None
    return f"my favourite colour is {'no longer ' if ended else ''}{hues[0]}"


def _game(clause: str, over: bool) -> str | None:
    match = _GAME.search(clause)
    if (
        match is None
        or not (over or _PLAYING.search(clause))
        or re.search(r"\bwatch", clause, re.I)
    ):
        return None
    if over and re.search(
        r"\b(?:week|season|tournament|match|game|lesson)\b.* over\b", clause, re.I
    ):
        over = False
    return f"I gave up {match.group()}" if over else f"I play {match.group()}"


def _language(clause: str, over: bool) -> str | None:
    match = _LANGUAGE.search(clause)
    if match is None or not (_MY_LANGUAGE.search(clause) or _SPEAKING.search(clause)):
        return None
    return f"I {'no longer ' if over else ''}speak {match.group()}"


def _pet(clause: str, over: bool) -> str | None:
    match = _A_PET.search(clause)
    if match is None:
        return None
    return f"I {'no longer ' if over else ''}have {match['o']}"


def _car(clause: str, over: bool) -> str | None:
    match = _A_CAR.search(clause)
    if match is None or re.search(
        r"\b(?:behind|hit|passed|followed|like|love|nice|advert|hire|hired)\b", clause, re.I
    ):
        return None
    over = over and re.search("sold|rid|scrap|no longer|gone|more", clause) is not None
    return f"I {'no longer ' if over else ''}drive {match['o']}"


def _trade(clause: str, over: bool) -> str | None:
    if _WORKING.search(clause) is None:
        return None
    for match in _AS_TRADE.finditer(clause):
        if match["noun"].lower() in JOBS and match["noun"].lower() not in (
            "student",
            "owner",
            "head",
            "lead",
            "model",
            "guide",
            "author",
            "carer",
        ):
            return f"I {'no longer ' if over else ''}work as {match['o']}"
    return None


def _partner(clause: str, over: bool) -> str | None:
    if _LOVE.search(clause) is None or not re.search(r"\b(?:i|me|my|we)\b", clause, re.I):
        return None
    found = [m.group() for m in _ANY_NAME.finditer(clause) if _is_somebody(m.group())]
    if len(found) != 1 or not re.search(
        (
            rf"\b(?:my (?:\w+ )?(?:{'|'.join(PARTNERS)})|{re.escape(found[0])} and (?:i"
            rf"|me)|(?:i|we) .*(?:with|to) {re.escape(found[0])}|my life)\b"
        ),
        clause,
        re.I,
    ):
        return None
    return f"I broke up with {found[0]}" if over else f"my partner is {found[0]}"


def _is_somebody(name: str) -> bool:
    first = name.split()[0].lower().strip(".,")
    return (
        first not in PLAIN
        and first.rstrip("s") not in PLAIN
        and first not in PRONOUNS
        and not _LANGUAGE.match(name)
    )


def _work(clause: str, over: bool) -> str | None:
    if _WORK.search(clause) is None:
        return None
    match = _AT_WORK.search(clause) or _FIRST_PLACE.match(clause)
    if match is None or not _is_somebody(match["o"]):
        return None
    place = re.sub(r"'s$", "", match["o"])
    if over and re.search(r"\b(?:week|day|month|shift|school)\b.* over\b", clause, re.I):
        over = re.search(r"\blast\b|days", clause, re.I) is not None
    return f"I {'no longer ' if over else ''}work at {place}"


def _home(clause: str, over: bool) -> str | None:
    if _HOME.search(clause) is None:
        return None
    match = _AT_HOME.search(clause) or _FIRST_PLACE.match(clause)
    if match is None or not _is_somebody(match["o"]):
        return None
    if over and not re.search(
        r"\b(?:no longer|any ?more|away from|left|leave|leaving|used to|goodbye|farewell|out of)\b",
        clause,
        re.I,
    ):
        over = False
    moved = (
        re.search(r"\b(?:mov\w+|relocat\w+|transferred)\b", clause, re.I) is not None and not over
    )
    return f"I {'no longer live in' if over else 'moved to' if moved else 'live in'} {match['o']}"
