"""Stretches of a sentence that can answer a kind of question: amounts, days, places, jobs, names.

Every finder returns the stretch, a key under which two stretches are the same answer, and how
surely it is of the kind: 1 for "£2,250" asked as an amount, less for a bare "2,250".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime

from loci.text.entities import PLAIN, normalise
from loci.text.numbers import NUMBER, PATTERN, value_of
from loci.text.phrases import JOBS, KIN, words
from loci.text.stem import fold, stem, stems
from loci.text.times import MONTHS, Span, describe, resolve


@dataclass(frozen=True)
class Found:
    """One stretch: where, the words of the answer, what it is the same as, and how sure."""

    start: int
    end: int
    text: str
    key: Hashable
    fit: float


_MONEY = re.compile(
    (
        rf"(?:(?P<sign>[£$€]\s?){PATTERN}|{PATTERN}\s?(?P<unit>euros?|pounds?|dollars?"
        r"|quid|bucks|cents?"
        r"|pence|francs|kroner?|kronor|zloty|rupees|yen|grand|€|£|eur\b|usd\b|gbp\b))"
        r"(?P<per>(?: (?:a|an|per|each|every)\b(?: (?:day|night|week|month|year|hour"
        r"|person|piece"
        r"|word|head))?)?)"
    ),
    re.IGNORECASE,
)
_PER = re.compile(r" (?:(?:an?|per|each|every) (?:day|night|week|month|year|hour)|each)\b", re.I)
_COSTS = re.compile(
    (
        r"\b(?:took|charged|down to|up to|comes? to|came to|in total|altogether|cost"
        r"|price|pay|paid|worth|rent|fee|charge|quote|quoted|bought|sold|spent|owe"
        r"|owed"
        r"|lent|lend|wants?|wanted|asking|budget|for|salary|earn|accept(?:ed|s)?|agreed(?: on)?)\b"
    ),
    re.IGNORECASE,
)
_IS_BEFORE = re.compile(r"(?:\b(?:is|was|at)|['’]s)\s*$")
_NOT_MONEY = re.compile(
    (
        r"^\s*(?:%|percent|per cent|kilos?|kg|km|kilometres?|kilometers?|miles?"
        r"|metres?|meters?|people"
        r"|guests|pages|years?|months?|weeks?|days?|hours?|minutes?|seconds?|degrees"
        r"|o'clock|am\b|pm\b"
        r"|times|over \d)"
    ),
    re.IGNORECASE,
)
_UNIT_OF_TIME = r"(?:seconds?|minutes?|hours?|days?|nights?|weeks?|months?|years?|decades?)"
_DURATION = re.compile(
    (
        rf"(?:{PATTERN}|\ban?\b|\bhalf an?|\b(?:three[- ])?quarters? of an|\ba few"
        r"|\bseveral)"
        rf"(?:[- ](?:full|whole|long|more|entire))?[- ]{_UNIT_OF_TIME}\b"
        rf"(?:(?: and|,) (?:a half\b|{PATTERN} {_UNIT_OF_TIME}\b))*"
    ),
    re.IGNORECASE,
)
_DISTANCE = re.compile(
    (
        rf"{PATTERN}\s?(?:km|kilomet(?:er|re)s?|miles?|met(?:er|re)s?|centimet(?:er"
        r"|re)s?|cm|feet|foot"
        r"|inch(?:es)?|steps)\b"
    ),
    re.IGNORECASE,
)
_AGE = re.compile(
    (
        r"(?:\b(?P<is>(?:is|am|are|was|['’]s|['’]m|turn(?:s|ed|ing)?|aged?|of"
        r"|years old)) (?:now |only "
        r"|actually |just |nearly |almost "
        rf"|turning )*)?(?P<n>{PATTERN})(?P<old>[- ]years?[- ]olds?"
        r"| years? of age)?"
    ),
    re.IGNORECASE,
)
_CLOCK = re.compile(
    (
        r"\b(?:(?:half|quarter|(?:five|ten|twenty)(?: minutes)?) (?:past|to) \w+"
        r"|\d{1,2}(?:[:.]\d\d)\s?(?:am|pm|a\.m\.|p\.m\.)?|\d{1,2}\s?(?:am|pm|a\.m\."
        r"|p\.m\.|o'clock)"
        r"|(?P<at>at|from|before|until|by) (?P<hour>\d{1,2}|one|two|three|four|five"
        r"|six|seven|eight"
        r"|nine|ten|eleven|twelve)(?= (?:in the|at night|sharp|on)|\s*(?:[,.;!?)]|$"
        r"|and\b|when\b|so\b"
        r"|with\b))(?: in the (?:morning|afternoon|evening)| at night)?|noon"
        r"|midnight)\b"
    ),
    re.IGNORECASE,
)
_DAY_NAME = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
_WEEKDAY = re.compile(
    (
        rf"\b{_DAY_NAME}(?:(?:, | and |, and | or ){_DAY_NAME})*(?: (?:morning"
        r"|afternoon|evening|night)"
        r"s?)?\b"
    ),
    re.IGNORECASE,
)
_MONTH = re.compile(rf"\b(?:{'|'.join(MONTHS)})\b", re.IGNORECASE)
_COLOUR = re.compile(
    (
        r"\b(?:(?:dark|light|pale|bright|deep|sky|navy|forest|bottle|royal|off|baby"
        r"|lime|olive)[- ])*"
        r"(?:red|blue|green|yellow|orange|purple|violet|pink|brown|black|white|gr[ea]y"
        r"|beige|cream"
        r"|turquoise|teal|maroon|burgundy|crimson|scarlet|navy|lilac|lavender|magenta"
        r"|indigo|gold"
        r"|golden|silver|ginger|mustard|olive|coral|mint|copper)\b"
        r"(?: (?:and|with an?) (?:\w+ )?\w+)?"
    ),
    re.IGNORECASE,
)
_INSTRUMENT = re.compile(
    (
        r"\b(?:(?:acoustic|electric|bass|classical|double|french|grand) )*(?:piano"
        r"|guitar|violin|viola"
        r"|cello|bass|flute|clarinet|oboe|bassoon|trumpet|trombone|saxophone|horn|tuba"
        r"|harp|drums?"
        r"|ukulele|banjo|mandolin|accordion|harmonica|recorder|organ|keyboard|sitar"
        r"|bagpipes|lute"
        r"|percussion|fiddle|synth(?:esi[sz]er)?)\b"
    ),
    re.IGNORECASE,
)
_LANGUAGE = re.compile(
    r"\b(?:English|French|German|Spanish|Italian|Portuguese|Dutch|Flemish|Swedish"
    r"|Norwegian|Danish"
    r"|Finnish|Icelandic|Polish|Czech|Slovak|Hungarian|Romanian|Bulgarian|Greek"
    r"|Turkish|Russian"
    r"|Ukrainian|Serbian|Croatian|Slovene|Slovenian|Estonian|Latvian|Lithuanian"
    r"|Arabic|Hebrew"
    r"|Persian|Farsi|Hindi|Urdu|Bengali|Punjabi|Tamil|Chinese|Mandarin|Cantonese"
    r"|Japanese|Korean"
    r"|Vietnamese|Thai|Indonesian|Malay|Tagalog|Swahili|Yoruba|Zulu|Afrikaans"
    r"|Welsh|Irish|Gaelic"
    r"|Scottish|Catalan|Basque|Latin|Esperanto)\b"
)
_PLACE = re.compile(
    r"\b(?P<by>in|at|to|from|near|into|around|outside|towards|through|across"
    r"|over in|down in|up in"
    r"|for|of|lives?|on)\s+(?P<name>(?:the\s+)?(?:(?:rue|avenue|boulevard|quai"
    r"|place|via|piazza|calle|plaza|rua|praça)"
    r"\s+(?:(?:de|des|du|del|della|di|da|do)\s+)?(?:la\s+)?)?(?:(?:central"
    r"|downtown|north|south|east|west|northern"
    r"|southern|eastern|western)\s+)?"
    r"[A-ZÀ-Þ][\w'’.-]*(?:(?:\s+(?:of\s+(?:the\s+)?|the\s+|de\s+|la\s+|upon\s+"
    r"|am\s+|an\s+der\s+)?"
    r"|,\s)[A-ZÀ-Þ][\w'’.-]*)*)"
)
_PLACE_FIT = {
    "in": 1.0,
    "near": 0.9,
    "to": 0.9,
    "from": 0.8,
    "at": 0.8,
    "into": 0.9,
    "of": 0.3,
    "for": 0.4,
    "on": 0.5,
}
_NAME_WORD = r"(?:(?:Mr|Mrs|Ms|Dr|St)\.\s)?[A-ZÀ-Þ](?:[\w-]|['’](?!(?:s|ll|d|re|ve|m)\b)\w)*\w"
_NAME = rf"{_NAME_WORD}(?:\s+(?:(?:of|de|van|von|the)\s+)?{_NAME_WORD})*"
_PERSON = re.compile(rf"(?<![\w]){_NAME}")
_KIN_PHRASE = re.compile(
    (
        r"\b(?:my|his|her|their|our|your|the neighbour's|a|an"
        r"|another)\s+(?:[a-z-]+\s){0,2}?"
        rf"(?:{'|'.join(sorted(KIN, key=len, reverse=True))}|niece|nephew|student"
        r"|stranger|man|woman"
        r"|girl|guy|lady|driver|owner)s?\b(?:['’]s \w+)?"
    ),
)
_BY_TRADE = re.compile(
    r"(?<=from |with )(?:the"
    rf"|an?) (?:[a-z]+ )?(?:{'|'.join(sorted(JOBS, key=len, reverse=True))})\b"
    r"|(?<=to |by )(?:the"
    rf"|an?) (?:[a-z]+ )?(?:{'|'.join(sorted(JOBS, key=len, reverse=True))})\b"
)
_JOB_HEAD = "|".join(sorted(JOBS, key=len, reverse=True))
_JOB = re.compile(
    r"(?<!['’])\b(?:(?:an?|the|as|senior|junior|freelance|part-time|full-time"
    r"|retired|trained)\s+)*"
    rf"(?P<job>(?:[a-z-]+\s){{0,2}}?(?:{_JOB_HEAD}|physio|gp|nurse|pharmacist"
    r"|cardiologist|surveyor"
    r"|[a-z]+ologist|[a-z]+grapher|firefighter|boatbuilder|beekeeper|bricklayer"
    r"|roofer|welder"
    r"|politician|optician|technician|electrician|dietician|magician|midwife"
    r"|civil servant))\b"
    r"(?: (?:at|for|with|in) (?:an? |the )?[\w'’-]+(?: [A-Z][\w'’-]*)*)?"
)
_BEING = re.compile(
    r"(?:\b(?:is|am|are|was|were|be|been|being|become|became|as|works|worked|[Ii]"
    r"|he|she|work)|['’](?:s|m"
    r"|re|d be))\s+(?:(?:still|now|also|actually|really|only|just|once|a|an|the"
    r"|retrained|trained)\s+)*$"
)
_AGENT = re.compile(
    r"\b(?P<art>an?|our|the|my|their|his"
    r"|her) (?:[a-z-]+ ){0,2}?(?P<job>[a-z]{3,}(?:er|or|ist|ian))\b"
)
_NO_AGENT = words(
    "other another brother sister mother father daughter lover number member winner "
    "killer monster corner dinner summer winter letter paper water weather matter order "
    "power river computer user former later latter better bigger smaller younger older "
    "elder longer color major error favor harbor floor door mirror neighbor motor visitor "
    "error list christian flower tower shower saver buyer owner stranger newcomer "
    "beginner loser"
)
_JOB_DOES = re.compile(
    r"\b(?P<job>(?:teach(?:es|ing)?|taught|buil(?:ds?|t|ding)|repairs?|repairing"
    r"|makes?|designs?"
    r"|designing|sells?|selling|driv(?:e|es|ing)(?= (?:an? )?(?:taxi|bus|train"
    r"|tram|lorr|truck|cab))|farms?|farming|translates?|translating|writes?"
    r"|keeps|runs?|running|works? (?:as|with)|working (?:as|with))\s+"
    r"(?:an? |the )?[\w'’-]+(?: [\w'’-]+){0,4})"
)
_DIET = re.compile(
    (
        r"\b(?:vegan|vegetarian|pescatarian|pescetarian|flexitarian|omnivore|keto"
        r"|halal|kosher"
        r"|lactose[- ](?:free|intolerant)|gluten[- ]free|dairy[- ]free|paleo|carnivore"
        r"|fish|meat)\b"
    ),
    re.IGNORECASE,
)
_MEANS = re.compile(
    r"\b(?:[Bb]y|[Oo]n|with|take|takes|took|taking|ride|rides|rode|riding|drive"
    r"|drives|walk(?:s|ing)?|"
    r"cycle[sd]?|cycling|on foot)\b(?: (?:an? |the |my |his |her )?(?!(?:the way"
    r"|then|now|myself)\b)"
    r"[\w'’-]+(?: (?:bike|bicycle|train|bus|tram|car|ferry))?)?"
)
_MEANS_HEAD = re.compile(
    (
        r"\b(?:bike|bicycle|train|bus|tram|car|ferry|foot|walk\w*|cycl\w+|metro|tube"
        r"|subway|taxi|boat"
        r"|scooter|motorbike|motorcycle|plane|lift|van|horse|skis?|the \d+)\b"
    ),
    re.IGNORECASE,
)
_LISTS: dict[str, re.Pattern[str]] = {
    "colour": _COLOUR,
    "instrument": _INSTRUMENT,
    "language": _LANGUAGE,
    "month": _MONTH,
    "diet": _DIET,
}


def money(text: str, priced: bool = False) -> list[Found]:
    """Return amounts; a bare number counts where something costs, or `priced` says so."""
    found = []
    for match in _MONEY.finditer(text):
        shown = match.group().strip()
        if (per := _PER.match(text, match.end())) and not match["per"]:
            shown += per.group()
        small = match["unit"] is not None and match["unit"].lower() in ("cent", "cents", "pence")
        value = value_of(shown)
        if value is None:
            continue
        value = value / 100 if small else value
        found.append(Found(match.start(), match.end(), shown, ("number", value), 1.0))
    taken = [(f.start, f.end) for f in found]
    likely = priced or _COSTS.search(text) is not None
    for match in NUMBER.finditer(text):
        value = value_of(match.group())
        inside = any(a <= match.start() < b for a, b in taken)
        if inside or value is None or value < 5 or _NOT_MONEY.match(text, match.end()):
            continue
        after = re.match(r"\s+[a-z]+", text[match.end() :])
        per = _PER.match(text, match.end())
        noun = (
            after is not None
            and per is None
            and after.group().strip()
            not in (
                "for",
                "in",
                "at",
                "by",
                "and",
                "but",
                "from",
                "to",
                "because",
                "now",
                "instead",
                "i",
                "it",
                "which",
                "so",
                "warm",
                "return",
                "altogether",
                "total",
                "off",
                "more",
                "less",
            )
        )
        year = "," not in match.group() and 1900 <= value <= 2100
        is_one = _IS_BEFORE.search(text, 0, match.start()) is not None and value >= 100
        told = likely or per or is_one
        fit = (0.9 if priced or per else 0.55) if told and not noun else -0.8
        fit = min(fit, -0.8) if year else fit
        shown = match.group() + (per.group() if per else "")
        found.append(Found(match.start(), match.end(), shown, ("number", value), fit))
    return sorted(found, key=lambda f: f.start)


def count(text: str, nouns: frozenset[str]) -> list[Found]:
    """Return numbers that count one of the nouns (as stems); a bare number may, others may not."""
    found = []
    for match in NUMBER.finditer(text):
        value = value_of(match.group())
        if value is None:
            continue
        after = [
            stem(w) for w in re.findall(r"[a-z'-]+", fold(text[match.end() : match.end() + 40]))
        ]
        before = [stem(w) for w in re.findall(r"[a-z'-]+", fold(text[: match.start()]))][-1:]
        stands_before = re.match(r"\s+[a-z]", text[match.end() :]) is None
        if nouns & set(after[:3]):
            place = next(i for i, w in enumerate(after[:3]) if w in nouns)
            tail = re.match(rf"(?:\s+\S+){{{place + 1}}}", text[match.end() :])
            shown = match.group() + (tail.group() if tail else "")
            end = match.end() + (tail.end() if tail else 0)
            found.append(Found(match.start(), end, shown.strip(" .,!?"), ("number", value), 1.0))
        elif stands_before or nouns & set(before):
            fit = 0.1 if match.group().isdigit() and 1900 <= value <= 2100 else 0.5
            found.append(Found(match.start(), match.end(), match.group(), ("number", value), fit))
        elif after[:2] and after[0] == "of" and after[1] in ("them", "us", "these", "those"):
            found.append(Found(match.start(), match.end(), match.group(), ("number", value), 0.6))
    return found


def duration(text: str) -> list[Found]:
    """Return lengths of time."""
    return [
        Found(m.start(), m.end(), m.group(), ("duration", fold(m.group())), 1.0)
        for m in _DURATION.finditer(text)
    ]


def distance(text: str) -> list[Found]:
    """Return lengths in space."""
    return [
        Found(m.start(), m.end(), m.group(), ("number", value_of(m.group())), 1.0)
        for m in _DISTANCE.finditer(text)
    ]


def age(text: str) -> list[Found]:
    """Return numbers of years that someone has lived."""
    found = []
    for match in _AGE.finditer(text):
        value = value_of(match["n"])
        if value is None or not 0 < value < 125:
            continue
        fit = 1.0 if match["old"] else 0.6 if match["is"] else 0.0
        turns = (match["is"] or "").lower().startswith(("turn", "aged"))
        tail = re.match(r"\s+[a-z]+", text[match.end("n") :])
        if (
            not match["old"]
            and tail
            and tail.group().strip()
            not in (
                "and",
                "in",
                "now",
                "this",
                "next",
                "last",
                "on",
                "years",
                "today",
                "but",
                "when",
                "who",
            )
        ):
            fit = 0.0
        fit = max(fit, 0.9) if turns and fit else fit
        if fit:
            start = match.start("n")
            shown = text[start : match.end()]
            found.append(Found(start, match.end(), shown, ("number", value), fit))
    return found


def clock(text: str) -> list[Found]:
    """Return times of the day."""
    found = []
    for match in _CLOCK.finditer(text):
        start = match.start("hour") if match["at"] else match.start()
        shown = text[start : match.end()]
        found.append(Found(start, match.end(), shown, ("clock", fold(shown)), 1.0))
    return found


def weekday(text: str) -> list[Found]:
    """Return days of the week; several in a row are one answer."""
    found = []
    for match in _WEEKDAY.finditer(text):
        days = tuple(re.findall(r"mon|tue|wed|thu|fri|sat|sun", match.group().lower()))
        before = text[: match.start()].lower()
        often = re.search(r"days\b", match.group().lower()) or re.search(r"\bevery\s*$", before)
        fit = 1.0 if often else 0.3
        found.append(Found(match.start(), match.end(), match.group(), ("weekday", days), fit))
    return found


def date(
    text: str, said: datetime, *, lead: str = "", anchor: datetime | None = None
) -> list[Found]:
    """Return dates made absolute.

    `lead` is what was asked just before, `anchor` a date just spoken of.
    """
    spans = resolve(text, said, anchor)
    if lead and re.search(r"\bwhen(?:['’]s| is| are| will|['’]ll| do| does)\b", lead, re.I):
        lead = f"It will be {lead}"  # what is asked about lies ahead
    if lead and spans:
        shift = len(lead) + 1
        spans = [
            Span(
                text=s.text,
                start=s.start,
                end=s.end,
                grain=s.grain,
                relation=s.relation,
                at=s.at - shift,
                vague=s.vague,
            )
            for s in resolve(f"{lead} {text}", said, anchor)
            if s.at >= shift
        ] or spans
    exact = {"day": 1.0, "instant": 0.8, "weekend": 0.9, "week": 0.85, "month": 0.8, "year": 0.65}
    found = []
    for span in spans:
        fit = exact.get(span.grain, 0.8)
        if span.relation in ("before", "until", "after", "for"):
            fit *= 0.5
        if re.fullmatch(r"now|today|recently|the other day", span.text.lower()):
            fit *= 0.7
        key = ("date", span.start.date(), span.grain)
        found.append(Found(span.at, span.at + len(span.text), describe(span), key, fit))
    return found


def place(text: str) -> list[Found]:
    """Return names behind prepositions of place."""
    found = []
    for match in _PLACE.finditer(text):
        name = re.sub(r"['’]s?$", "", match["name"].rstrip(".,'’"))
        start = match.start("name")
        while "," in name and _is_time(name.split(",")[0].split()[0]):
            start += name.index(",") + 2
            name = name.partition(", ")[2]
        words = name.split()
        if not words or _is_time(words[0]) or (len(words) == 1 and fold(name) in PLAIN):
            continue
        if _LANGUAGE.fullmatch(name):
            continue
        fit = _PLACE_FIT.get(match["by"], 0.7)
        found.append(Found(start, start + len(name), name, ("name", normalise(name)), fit))
    return found


_ORDERS = ("Tell", "Ask", "Give", "Call", "Poor", "Dear", "Little", "Old", "Kiss", "Thank", "Say")


def named(text: str) -> list[Found]:
    """Return runs of capitalised words, whatever they name; a lone first word is less sure."""
    found = []
    for match in _PERSON.finditer(text):
        words = match.group().split()
        offset = match.start()
        while words and (fold(re.sub(r"['’].*", "", words[0])) in PLAIN or _is_time(words[0])):
            offset += len(words[0]) + 1
            words = words[1:]
        while words and (words[-1].islower() or _is_time(words[-1]) or fold(words[-1]) in PLAIN):
            words = words[:-1]
        if not words or _LANGUAGE.fullmatch(words[0]):
            continue
        if len(words) > 1 and offset == match.start() and words[0] in _ORDERS:
            offset += len(words[0]) + 1
            words = words[1:]
        name = re.sub(r"['’]s?$", "", " ".join(words))
        first = not text[: match.start()].strip(" \"'“(") and offset == match.start()
        fit = 0.7 if first and len(words) == 1 else 1.0
        found.append(Found(offset, offset + len(name), name, ("name", normalise(name)), fit))
    return found


def _is_time(word: str) -> bool:
    low = fold(word)
    return low in MONTHS or bool(_WEEKDAY.fullmatch(low)) or low in ("christmas", "easter", "new")


def kin_phrases(text: str) -> list[Found]:
    """Return "my cousin", "a student": people who are not named."""
    return [
        Found(m.start(), m.end(), m.group(), ("phrase", tuple(stems(m.group()))), 0.35)
        for pattern in (_KIN_PHRASE, _BY_TRADE)
        for m in pattern.finditer(text)
    ]


def job(text: str) -> list[Found]:
    """Return occupations, by their nouns or by what is done for a living."""
    found = []
    for match in _JOB.finditer(text):
        shown = match.group()
        key = ("phrase", tuple(stems(match["job"])))
        before = text[: match.start()]
        is_one = _BEING.search(before) is not None or shown.lower().startswith("as ")
        article = re.match(r"an?\b", shown) is not None
        fit = 1.0 if is_one else 0.45 if article else 0.15
        found.append(Found(match.start(), match.end(), shown, key, fit))
    for match in _AGENT.finditer(text):
        before = text[: match.start()]
        if match["job"] in _NO_AGENT or any(
            f.start < match.end() and match.start() < f.end for f in found
        ):
            continue
        if _BEING.search(before) or re.search(r"[A-Z][\w-]*, $", before):
            key = ("phrase", tuple(stems(match["job"])))
            fit = 0.75 if match["art"] in ("a", "an") else 0.6
            found.append(Found(match.start(), match.end(), match.group(), key, fit))
    for match in _JOB_DOES.finditer(text):
        if any(f.start < match.end() and match.start() < f.end for f in found):
            continue
        shown = match.group()
        living = re.search(
            r"\b(?:years?|living|job|retired|career|life)\b[^,;]*$", text[: match.start()]
        )
        fit = 0.8 if living or re.match(r"teach|taught|work", shown) else 0.35
        found.append(Found(match.start(), match.end(), shown, ("phrase", tuple(stems(shown))), fit))
    return sorted(found, key=lambda f: f.start)


def means(text: str) -> list[Found]:
    """Return how one gets somewhere."""
    found = []
    for match in _MEANS.finditer(text):
        if _MEANS_HEAD.search(match.group()):
            shown = match.group()
            found.append(
                Found(match.start(), match.end(), shown, ("phrase", tuple(stems(shown))), 1.0)
            )
    return found


def listed(kind: str, text: str) -> list[Found]:
    """Return colours, instruments, languages, months or diets."""
    return [
        Found(m.start(), m.end(), m.group(), (kind, tuple(stems(m.group()))), 1.0)
        for m in _LISTS[kind].finditer(text)
    ]


LISTED = frozenset(_LISTS)
FINDERS: dict[str, Callable[[str], list[Found]]] = {
    "money": money,
    "duration": duration,
    "distance": distance,
    "age": age,
    "clock": clock,
    "weekday": weekday,
    "where": place,
    "job": job,
    "means": means,
}
