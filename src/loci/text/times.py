"""Times in words, resolved to spans: "last Tuesday", "two weeks ago", "in May", "since 2019".

Every span is half open, [start, end), in the zone of `now`, with the grain it was said in: "last
month" is a month, not a day. Weeks begin on Monday. Where words leave the direction open ("on
Friday", "in May"), the past is taken unless the sentence speaks of the future.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

Grain = Literal["instant", "day", "weekend", "week", "month", "season", "year"]
Relation = Literal["in", "since", "until", "before", "after", "for"]

MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
_FEASTS = {
    "new year's day": (1, 1),
    "valentine's day": (2, 14),
    "halloween": (10, 31),
    "christmas eve": (12, 24),
    "christmas": (12, 25),
    "xmas": (12, 25),
    "boxing day": (12, 26),
    "new year's eve": (12, 31),
}
_NUMBERS = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "couple": 2,
    "a couple of": 2,
    "a couple": 2,
    "couple of": 2,
    "three": 3,
    "few": 3,
    "a few": 3,
    "four": 4,
    "several": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "fifteen": 15,
    "twenty": 20,
    "thirty": 30,
}
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?"
    r"|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_ORDINALS = {
    word: number
    for number, word in enumerate(
        [
            "first",
            "second",
            "third",
            "fourth",
            "fifth",
            "sixth",
            "seventh",
            "eighth",
            "ninth",
            "tenth",
            "eleventh",
            "twelfth",
            "thirteenth",
            "fourteenth",
            "fifteenth",
            "sixteenth",
            "seventeenth",
            "eighteenth",
            "nineteenth",
            "twentieth",
            "twenty-first",
            "twenty-second",
            "twenty-third",
            "twenty-fourth",
            "twenty-fifth",
            "twenty-sixth",
            "twenty-seventh",
            "twenty-eighth",
            "twenty-ninth",
            "thirtieth",
            "thirty-first",
        ],
        1,
    )
}
_ORDINAL = "(?:" + "|".join(sorted(_ORDINALS, key=len, reverse=True)) + ")"
_LATE_ORDINAL = "(?:" + "|".join(sorted(list(_ORDINALS)[3:], key=len, reverse=True)) + ")"
_DAY = r"(?:mon|tues?|wed(?:nes)?|thurs?|fri|sat(?:ur)?|sun)(?:day)?s?\b"
_FULL_DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
_NTH = r"(?:[12]?\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?:19|20)\d\d"
_COUNT = (
    r"(?:\d+|a couple of|a couple|couple of|a few|several|an?|one|two|three|four"
    r"|five|six|seven"
    r"|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty)"
)
_UNIT = r"(?:minute|hour|day|night|week|weekend|fortnight|month|year|decade)s?"
_HINT = re.compile(
    (
        r"\b(?:today|tonight|tomorrow|yesterday|now|ago|last|next|this|past|coming"
        r"|previous|since"
        r"|before|after|until|till|eve|christmas|xmas|halloween|valentine's|boxing"
        r"|from now|later"
        rf"|for (?:the )?(?:past |last )?{_COUNT}|in {_COUNT} {_UNIT}|within|the {_NTH}"
        rf"|(?:the |on ){_ORDINAL}|{_ORDINAL} of"
        rf"|{_MONTH}|{_FULL_DAY}|{_YEAR}|summer|winter|spring|autumn|fall|the other day"
        r"|recently"
        r"|\d+[/-]\d+)"
    ),
    re.IGNORECASE,
)
_FUTURE = re.compile(
    (
        r"\b(?:will|'ll|won't|going to|gonna|plan(?:s|ning)?|planned|booked|reserved"
        r"|decided to"
        r"|registered|signed up|upcoming|appointment|deadline|due"
        r"|i'm (?:meeting|seeing|flying|leaving|starting|moving|visiting|taking|having"
        r"|going)"
        r"|we're (?:meeting|flying|leaving|moving|visiting|having|going)|can(?:'t"
        r"|not)?\b|shall|let's"
        r"|(?:^|\b(?:i|we|they) )(?:start|leave|fly|begin|launch|open|move|turn|retire"
        r"|arrive|return)\b"
        r"|\b(?:he|she|it) (?:starts|leaves|flies|begins|launches|opens|moves|turns"
        r"|retires|arrives"
        r"|returns)\b|looking forward|excited for|hope to"
        r"|hoping to|wants? to|remind|by)\b|’ll\b"
    ),
    re.IGNORECASE,
)
_FUTURE_SHORT = re.compile(r"(?:^|\s)(?:i|we|he|she|they|it)['’]ll\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time that words name.

    Attributes:
        text: the words.
        start, end: half open.
        grain: how exactly it was said.
        relation: "in" the span; "since", "after", "before", "until" it is already applied to start
            and end; "for" is a duration that ends now.
        at: where the words begin in the text.
        vague: "a few weeks ago", "recently".
    """

    text: str
    start: datetime
    end: datetime
    grain: Grain = "day"
    relation: Relation = "in"
    at: int = 0
    vague: bool = False

    def holds(self, time: datetime) -> bool:
        """Return whether a time lies in the span."""
        return self.start <= time < self.end

    def __str__(self) -> str:
        """Return the span as people write it: "8 May 2023", "May 2023", "2019"."""
        return describe(self)


def day_of(time: datetime) -> datetime:
    """Return the midnight at which the day of `time` begins."""
    return time.replace(hour=0, minute=0, second=0, microsecond=0)


def written(time: datetime) -> str:
    """Return a date as people write it.

    >>> written(datetime(2023, 5, 8))
    '8 May 2023'
    """
    return f"{time.day} {MONTHS[time.month - 1].capitalize()} {time.year}"


def describe(span: Span) -> str:
    """Return a span in absolute words, as exact as it was said and no more."""
    month = MONTHS[span.start.month - 1].capitalize()
    about = "around " if span.vague else ""
    if span.relation in ("before", "until"):
        return f"{span.relation} {written(span.end)}"
    if span.relation in ("since", "after"):
        exact = {"year": f"{span.start.year}", "month": f"{month} {span.start.year}"}
        return f"{span.relation} {exact.get(span.grain, written(span.start))}"
    if span.grain == "year":
        return f"{about}{span.start.year}"
    if span.grain == "month":
        return f"{about}{month} {span.start.year}"
    if span.grain == "season":
        name = next((s for s, m in _SEASONS.items() if m == span.start.month), "season")
        return f"{about}{name} {span.start.year}"
    if span.grain == "week":
        return f"{about}the week of {written(span.start)}"
    if span.grain == "weekend":
        return f"the weekend of {written(span.start)}"
    return about + written(span.start)


def shift_months(time: datetime, months: int) -> datetime:
    """Return the time `months` later; the day is cut to the month's length."""
    index = time.year * 12 + time.month - 1 + months
    year, month = divmod(index, 12)
    year = min(max(year, 1), 9998)
    first = time.replace(year=year, month=month + 1, day=1)
    length = (_next_month(first) - first).days
    return first.replace(day=min(time.day, length))


_FROM = re.compile(r"\b(?:from|starting|as of)\s+(?:the\s+)?$")
_WAS = re.compile(r"\b(?:did|was|were|had|took|went)\b[^,.;!?]*$")
_IS_ON = re.compile(
    r"(?:\b(?:is|are|be)|['’](?:s|re|ll be))(?: (?:now|still|actually|currently"
    r"|only|due|booked|set"
    r"|planned|scheduled|moved))*(?: (?:on|in|at|from|until|to|for))*(?: the)?\s*$"
)


def resolve(text: str, now: datetime, anchor: datetime | None = None) -> list[Span]:
    """Return the times a text names, in order, none inside another.

    `anchor` is a date just spoken of: "the sixteenth" is then that of its month.

    >>> now = datetime(2023, 5, 8, 13, 0)
    >>> [str(span) for span in resolve("I ran last Tuesday and again two days ago", now)]
    ['2 May 2023', '6 May 2023']
    >>> str(resolve("in March 2021", now)[0])
    'March 2021'
    """
    if _HINT.search(text) is None:
        return []
    low = text.lower().replace("’", "'")
    ahead = _FUTURE.search(low) is not None or _FUTURE_SHORT.search(low) is not None
    found: list[tuple[int, int, Span]] = []
    for pattern, rule in _RULES:
        for match in pattern.finditer(low):
            if any(a < match.end() and match.start() < b for a, b, _ in found):
                continue
            span: Span | None
            try:
                beside = _beside(match, found) if rule is _nth else None
                if beside is not None:
                    span = beside
                elif rule is _nth and anchor is not None:
                    span = _nth(match, day_of(anchor).replace(day=1), True)
                else:
                    gone = _WAS.search(low, max(0, match.start() - 40), match.start()) is not None
                    is_on = _IS_ON.search(low, max(0, match.start() - 40), match.start())
                    begins = match.group().startswith("from ") or (
                        _FROM.search(low, max(0, match.start() - 16), match.start()) is not None
                    )
                    coming = (ahead and not gone) or is_on is not None or begins
                    span = rule(match, now, coming)
            except (ValueError, OverflowError):  # no such date: 31 February, the year 12000
                continue
            if span is not None:
                found.append((match.start(), match.end(), span))
    spans = []
    for start, end, span in sorted(found, key=lambda entry: entry[0]):
        spans.append(_related(low, text, start, end, span, now))
    return spans


def _beside(match: re.Match[str], found: list[tuple[int, int, Span]]) -> Span | None:
    """Return "the 22nd" in the month of a day that the same text names with its month."""
    days = [entry for entry in found if entry[2].grain == "day" and entry[0] != match.start()]
    days = [(a, b, s) for a, b, s in days if re.search(_MONTH, match.string[a:b])]
    if not days:
        return None
    at, _, near = min(days, key=lambda entry: abs(entry[0] - match.start()))
    first = near.start.replace(day=1)
    number = _digits(match["day"])
    after = at < match.start() and number < near.start.day and _BACK.search(match.string) is None
    return _nth(match, shift_months(first, 1) if after else first, True)


_BACK = re.compile(r"\b(?:earlier|forward|sooner|before)\b")


def shift_of(count: int, unit: str, now: datetime, sign: int, vague: bool = False) -> Span:
    """Return the span that lies `count` units before (sign -1) or after (+1) `now`."""
    unit = unit.rstrip("s")
    if unit in ("minute", "hour"):
        delta = timedelta(**{unit + "s": count})
        point = now + sign * delta
        return _span(point, point + timedelta(hours=1), "instant", vague)
    if unit in ("day", "night"):
        return _day(now + sign * timedelta(days=count), vague)
    if unit == "fortnight":
        count, unit = 2 * count, "week"
    if unit == "week":
        point = now + sign * timedelta(weeks=count)
        if count == 1 or sign > 0:
            return replace(_day(point, vague), grain="week", end=day_of(point) + timedelta(days=7))
        return _week(point, vague)
    if unit == "weekend":
        return _weekend(now + sign * timedelta(weeks=count), vague)
    if unit == "month":
        return _month(shift_months(now, sign * count), vague)
    years = 10 * count if unit == "decade" else count
    return _year(now.year + sign * years, now, vague)


# -- one function a form; each takes the match, now, and whether the sentence looks ahead ----------

_Rule = Callable[["re.Match[str]", datetime, bool], "Span | None"]


def _span(start: datetime, end: datetime, grain: Grain, vague: bool = False) -> Span:
    return Span(text="", start=start, end=end, grain=grain, vague=vague)


def _day(time: datetime, vague: bool = False) -> Span:
    start = day_of(time)
    return _span(start, start + timedelta(days=1), "day", vague)


def _week(time: datetime, vague: bool = False) -> Span:
    start = day_of(time) - timedelta(days=time.weekday())
    return _span(start, start + timedelta(days=7), "week", vague)


def _weekend(time: datetime, vague: bool = False) -> Span:
    saturday = day_of(time) + timedelta(days=5 - time.weekday())
    return _span(saturday, saturday + timedelta(days=2), "weekend", vague)


def _next_month(time: datetime) -> datetime:
    first = day_of(time).replace(day=1)
    if first.month == 12:
        return first.replace(year=first.year + 1, month=1)
    return first.replace(month=first.month + 1)


def _month(time: datetime, vague: bool = False) -> Span:
    return _span(day_of(time).replace(day=1), _next_month(time), "month", vague)


def _year(year: int, now: datetime, vague: bool = False) -> Span:
    start = day_of(now).replace(year=year, month=1, day=1)
    return _span(start, start.replace(year=year + 1), "year", vague)


def _season(name: str, year: int, now: datetime) -> Span:
    start = day_of(now).replace(year=year, month=_SEASONS[name], day=1)
    return _span(start, shift_months(start, 3), "season")


def month_number(name: str) -> int:
    """Return 1 for "jan", "January" and so on."""
    short = name.strip(" .").lower()[:3]
    return next(i for i, month in enumerate(MONTHS, 1) if month.startswith(short))


def _day_number(name: str) -> int:
    return next(i for i, day in enumerate(_DAYS) if day.startswith(name.strip(" .").lower()[:3]))


def _digits(text: str) -> int:
    return _ORDINALS.get(text) or int(re.sub(r"\D", "", text))


def _count(text: str) -> int:
    return int(text) if text.isdigit() else _NUMBERS[text]


def _is_vague(text: str) -> bool:
    return "few" in text or "couple" in text or "several" in text


def _date(now: datetime, year: int, month: int, day: int) -> Span:
    return _day(day_of(now).replace(year=year, month=month, day=day))


def _iso(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    return _date(now, int(match["y"]), int(match["m"]), int(match["d"]))


def _slashed(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    first, second, year = int(match["a"]), int(match["b"]), int(match["y"])
    year += 2000 if year < 100 else 0
    month, day = (second, first) if first > 12 else (first, second)
    return _date(now, year, month, day)


def _month_day(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    month, day = month_number(match["month"]), _digits(match["day"] or match["word"])
    if match["year"]:
        return _date(now, int(match["year"]), month, day)
    if match["rel"]:
        step = {"last": -1, "this": 0, "next": 1}[match["rel"]]
        return _date(now, now.year + step, month, day)
    best = [
        _date(now, year, month, day)
        for year in (now.year - 1, now.year, now.year + 1)
        if not (month == 2 and day == 29 and year % 4)
    ]
    open_ = _PAST_TENSE.search(match.string) is None
    return _nearest(best, now, ahead, open_)


_PAST_TENSE = re.compile(
    r"\b(?:was|were|had|did|went|got|came|left|took|made|met|saw|said|told|began"
    r"|bought|sold|ran|won"
    r"|gave|flew|drove|[a-z]{2,}ed)\b"
)


def _nearest(options: list[Span], now: datetime, ahead: bool, open_: bool = False) -> Span:
    today = day_of(now)
    after = next((span for span in options if span.end > today), options[-1])
    before = next((span for span in reversed(options) if span.start <= now), options[0])
    if ahead or (open_ and (now - before.start) * 0.6 > (after.start - now) > timedelta(0)):
        return after  # in no tense, a day two weeks ahead is meant, not one a year ago
    return before


def _month_year(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    return _month(
        day_of(now).replace(year=int(match["year"]), month=month_number(match["m"]), day=1)
    )


def _month_alone(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    number, which = month_number(match["m"]), match["which"] or ""
    base = day_of(now).replace(day=1, month=number)
    options = [_month(base.replace(year=now.year + k)) for k in (-1, 0, 1)]
    if which in ("last", "this past", "past", "previous"):
        return (
            next(s for s in reversed(options) if s.end <= now)
            if options[0].end <= now
            else options[0]
        )
    if which in ("next", "this coming", "coming"):
        return next(s for s in options if s.start > now)
    if which == "this":
        return options[1]
    return _nearest(options, now, ahead)


def _season_named(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    name = match["season"]
    if match["year"]:
        return _season(name, int(match["year"]), now)
    options = [_season(name, now.year + k, now) for k in (-2, -1, 0, 1)]
    which = match["which"] or ""
    if which == "next" or (ahead and which not in ("last", "past")):
        return next((s for s in options if s.start > now), options[-1])
    if which == "last":
        return next(s for s in reversed(options) if s.end <= now)
    return _nearest(options, now, ahead)


def _feast(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    month, day = _FEASTS[match["feast"]]
    which = match["which"] or ""
    if match["year"]:
        return _date(now, int(match["year"]), month, day)
    options = [_date(now, now.year + k, month, day) for k in (-1, 0, 1)]
    return _nearest(options, now, (ahead or which in ("next", "this")) and which != "last")


def _fixed(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    word = match.group()
    if "day before" in word:
        return _day(now - timedelta(days=2))
    if "day after" in word:
        return _day(now + timedelta(days=2))
    if "yesterday" in word or word == "last night":
        return _day(now - timedelta(days=1))
    if "tomorrow" in word:
        return _day(now + timedelta(days=1))
    if word in ("the other day", "recently"):
        week = now - timedelta(days=7)
        return _span(day_of(week), day_of(now), "week", True)
    return _day(now)


def _ago(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    return shift_of(_count(match["n"]), match["unit"], now, -1, _is_vague(match["n"]))


def _within(match: re.Match[str], now: datetime, ahead: bool) -> Span | None:
    if not ahead and match["unit"].rstrip("s") in ("minute", "hour"):
        return None  # "in 58 minutes" is how long it took
    return shift_of(_count(match["n"]), match["unit"], now, 1, _is_vague(match["n"]))


def _for(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    span = shift_of(_count(match["n"]), match["unit"], now, -1, True)
    start = span.start if span.grain in ("year", "month", "instant") else day_of(span.start)
    return replace(span, start=start, end=max(now, start), relation="for", vague=True)


def _which_unit(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    which, unit = match["which"], match["unit"]
    step = {"next": 1, "coming": 1, "this coming": 1, "this": 0}.get(which, -1)
    if unit == "week":
        return _week(now + timedelta(weeks=step))
    if unit == "weekend":
        if step == -1 and now.weekday() == 6:
            return _weekend(now - timedelta(weeks=1))
        back = 0 if step == -1 and now.weekday() == 6 else step
        return _weekend(now + timedelta(weeks=back))
    if unit == "month":
        return _month(shift_months(now, step))
    return _year(now.year + step, now)


_EVERY = re.compile(rf"\b(?:every|each)\s+(?:{_DAY}(?:,| and| or)?\s+)*(?:and\s+)?$")


def _weekday(match: re.Match[str], now: datetime, ahead: bool) -> Span | None:
    which, target = match["which"] or "", _day_number(match["day"])
    if match.group().endswith("s") or _EVERY.search(match.string, 0, match.start()):
        return None  # a habit, not a day
    back = (now.weekday() - target) % 7
    if which in ("last", "this past", "past", "previous"):
        return _day(now - timedelta(days=back or 7))
    if which == "next":
        # The one in the next calendar week: "next Friday" said on a Monday is not four days away.
        return _day(now + timedelta(days=7 - now.weekday() + target))
    if which in ("this", "coming", "this coming") or ahead:
        return _day(now + timedelta(days=(-back) % 7))
    return _day(now - timedelta(days=back))


def _weeks_before(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    """Take "a week ago last Wednesday" as the Wednesday before the last one."""
    back = (now.weekday() - _day_number(match["day"])) % 7 or 7
    return _day(now - timedelta(days=back, weeks=_count(match["n"])))


def _weeks_after(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    """Take "a week from tomorrow" or "two weeks from Friday" as that day and the weeks after it."""
    rest = match["rest"]
    if rest in ("today", "now", "tomorrow"):
        first = now + timedelta(days=rest == "tomorrow")
    else:
        first = now + timedelta(days=(_day_number(rest) - now.weekday()) % 7)
    days = 7 if match["unit"].startswith("week") else 1
    return _day(first + timedelta(days=days * _count(match["n"])))


def _before_last(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    """Take "Tuesday before last" as the Tuesday a week before the last one."""
    unit = match["unit"]
    if unit == "week":
        return _week(now - timedelta(weeks=2))
    if unit == "weekend":
        return _weekend(now - timedelta(weeks=2))
    if unit == "month":
        return _month(shift_months(now, -2))
    if unit == "year":
        return _year(now.year - 2, now)
    back = (now.weekday() - _day_number(unit)) % 7 or 7
    return _day(now - timedelta(days=back + 7))


def _nth(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    day = _digits(match["day"])
    options = []
    for step in (-1, 0, 1):
        first = shift_months(now.replace(day=1), step)
        if day <= (_next_month(first) - day_of(first)).days:
            options.append(_day(first.replace(day=day)))
    return _nearest(options, now, ahead)


def _year_alone(match: re.Match[str], now: datetime, ahead: bool) -> Span:
    return _year(int(match["year"]), now)


def _before_date(match: re.Match[str], now: datetime, ahead: bool) -> Span | None:
    inner = resolve(match["rest"], now)
    if not inner:
        return None
    anchor, unit = inner[0], match["unit"]
    step = -1 if match["side"] == "before" else 1
    if unit in ("week", "weekend"):
        maker = _week if unit == "week" else _weekend
        if unit == "weekend" and step == -1:
            day = anchor.start - timedelta(days=(anchor.start.weekday() - 5) % 7 or 7)
            return maker(day)
        return maker(anchor.start + timedelta(weeks=step))
    if unit == "day":
        return _day(anchor.start + timedelta(days=step))
    if unit == "month":
        return _month(shift_months(anchor.start, step))
    if unit == "year":
        return _year(anchor.start.year + step, now)
    target = _day_number(unit)
    back = (anchor.start.weekday() - target) % 7 or 7
    return (
        _day(anchor.start - timedelta(days=back))
        if step == -1
        else _day(anchor.start + timedelta(days=(target - anchor.start.weekday()) % 7 or 7))
    )


def _part(match: re.Match[str], now: datetime, ahead: bool) -> Span | None:
    inner = resolve("in " + match["rest"], now)
    if not inner:
        return None
    span = inner[0]
    third = (span.end - span.start) / 3
    part = match["part"]
    if part in ("early", "the beginning of", "the start of"):
        return replace(span, end=day_of(span.start + third), vague=True)
    if part in ("mid", "mid-", "the middle of"):
        return replace(
            span, start=day_of(span.start + third), end=day_of(span.end - third), vague=True
        )
    return replace(span, start=day_of(span.end - third), vague=True)


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_WHICH = r"(?:(?P<which>last|next|this past|this coming|this|past|coming|previous)\s+)"
_ABSOLUTE = (
    rf"(?:{_NTH}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?"
    rf"|{_MONTH}\s+{_NTH}(?:,?\s+{_YEAR})?"
    rf"|\d{{4}}-\d\d-\d\d)"
)
_RULES: tuple[tuple[re.Pattern[str], _Rule], ...] = tuple(
    (_compiled(pattern), rule)
    for pattern, rule in (
        (
            (
                rf"\bthe (?P<unit>week|weekend|day|month|year|{_FULL_DAY}) (?P<side>before"
                r"|after) "
                rf"(?P<rest>{_ABSOLUTE})"
            ),
            _before_date,
        ),
        (r"\b(?P<y>(?:19|20)\d\d)-(?P<m>\d\d)-(?P<d>\d\d)\b", _iso),
        (r"\b(?P<a>\d{1,2})/(?P<b>\d{1,2})/(?P<y>\d{4}|\d\d)\b", _slashed),
        (
            (
                rf"\b(?:(?:{_DAY}),?\s+)?(?:the\s+)?(?:(?P<day>{_NTH})\s+(?:of\s+)?"
                rf"|(?P<word>{_ORDINAL})\s+of\s+)(?P<month>{_MONTH})"
                rf"(?:,?\s+(?:(?P<year>{_YEAR})|(?P<rel>last|this|next) year))?\b"
            ),
            _month_day,
        ),
        (
            (
                rf"\b(?:(?:{_DAY}),?\s+)?(?P<month>{_MONTH})\s+"
                rf"(?:(?:the\s+)?(?P<day>{_NTH})|the\s+(?P<word>{_ORDINAL}))\b(?!\s*%)"
                rf"(?:,?\s+(?:(?P<year>{_YEAR})|(?P<rel>last|this|next) year)\b)?"
            ),
            _month_day,
        ),
        (
            (
                r"\b(?P<part>early|late|mid-?|the (?:beginning|start|middle|end) of)[\s-]*"
                rf"(?P<rest>(?:(?:last|next|this)\s+)?(?:{_MONTH}|month|year|summer|winter"
                r"|spring"
                rf"|autumn)(?:\s+{_YEAR})?)"
            ),
            _part,
        ),
        (rf"\b(?P<m>{_MONTH}),?\s+(?:of\s+)?(?P<year>{_YEAR})\b", _month_year),
        (
            rf"\b(?P<n>{_COUNT}) weeks? ago,? (?:last |on |this past )?(?P<day>{_FULL_DAY})",
            _weeks_before,
        ),
        (
            (
                rf"\b(?P<n>{_COUNT}) (?P<unit>weeks?|days?) (?:from|after) "
                rf"(?P<rest>tomorrow|today|now|{_FULL_DAY})"
            ),
            _weeks_after,
        ),
        (
            (
                r"\b(?:the day before yesterday|the day after tomorrow|yesterday(?: morning|"
                r" afternoon"
                r"| evening| night)?|last night|today|tonight|this (?:morning|afternoon"
                r"|evening)"
                r"|tomorrow(?: morning| afternoon| evening| night)?|the other day|recently)\b"
            ),
            _fixed,
        ),
        (
            (
                rf"\b(?:about |around |over |almost )?(?P<n>{_COUNT}) (?P<unit>{_UNIT}) "
                r"(?:ago|back|earlier)\b"
            ),
            _ago,
        ),
        (
            (
                rf"\b(?:in|within)(?: about| around)? (?P<n>{_COUNT}) (?P<unit>{_UNIT})(?:'s?"
                r" time)?\b"
                r"(?! (?:of|since))"
            ),
            _within,
        ),
        (rf"\b(?P<n>{_COUNT}) (?P<unit>{_UNIT}) (?:from now|later)\b", _within),
        (
            (
                r"\bfor (?:about |around |over |almost |nearly |at least )?(?:the )?(?:past "
                r"|last )?"
                rf"(?P<n>{_COUNT}) (?P<unit>{_UNIT})\b(?: now)?"
            ),
            _for,
        ),
        (rf"\b(?:the )?(?:past|last) (?P<n>few|{_COUNT}) (?P<unit>{_UNIT})\b", _for),
        (rf"\b{_WHICH}(?P<unit>weekend|week|month|year)\b", _which_unit),
        (
            (
                rf"\b{_WHICH}?(?P<season>spring|summer|autumn|fall|winter)(?: of)?"
                rf"(?:,? (?P<year>{_YEAR}))\b"
            ),
            _season_named,
        ),
        (
            (
                r"\b(?:in |during |over |since )?(?:the )?(?P<which>last|next|this past"
                r"|this)\s+"
                r"(?P<season>spring|summer|autumn|fall|winter)\b(?P<year>$^)?"
            ),
            _season_named,
        ),
        (
            (
                r"\b(?:in |during |over |since )(?:the )?(?P<which>$^)?(?P<season>spring"
                r"|summer|autumn"
                r"|winter)\b(?P<year>$^)?"
            ),
            _season_named,
        ),
        (
            (
                rf"\b{_WHICH}?(?P<feast>new year's (?:day|eve)|valentine's day|halloween"
                r"|christmas eve"
                rf"|christmas|xmas|boxing day)(?:,? (?P<year>{_YEAR}))?\b"
            ),
            _feast,
        ),
        (rf"\b(?:the )?(?P<unit>{_FULL_DAY}|week|weekend|month|year) before last\b", _before_last),
        (rf"\b{_WHICH}?(?P<day>{_FULL_DAY})(?:s\b)?", _weekday),
        (
            (
                r"\b(?:(?:in|since|by|until|till|of|before|after|from|during|every|around|for"
                r"|to)\s+)?"
                r"(?P<which>last|next|this past|this)?\s*\b"
                r"(?P<m>january|february|april|june|july|august|september|october|november"
                r"|december"
                r"|(?:(?<=in )|(?<=since )|(?<=by )|(?<=last )|(?<=next )|(?<=this )"
                r"|(?<=until )"
                r"|(?<=before )|(?<=after )|(?<=during )|(?<=around )|(?<=of )|(?<=from ))"
                r"(?:march|may))\b"
            ),
            _month_alone,
        ),
        (
            (
                r"\b(?:in|since|by|until|till|before|after|during|from|around|of"
                rf"|year)\s+(?P<year>{_YEAR})\b"
            ),
            _year_alone,
        ),
        (
            rf"\b(?P<year>{_YEAR})\b(?!\s*(?:steps|people|dollars|miles|km|points|words))",
            _year_alone,
        ),
        (
            (
                r"\b(?:on )?the (?P<day>(?:[12]?\d|3[01])(?:st|nd|rd|th))\b"
                r"(?! (?:time|grade|floor|place|one|birthday|anniversary|century|street"
                r"|avenue))"
            ),
            _nth,
        ),
        (
            (
                rf"\b(?:on )?the (?P<day>{_LATE_ORDINAL})\b(?=\s*(?:[,.;:!?)]|$|(?:at|and|now"
                r"|instead|with|for|when|because|so|though|but)\b))"
            ),
            _nth,
        ),
    )
)
_LEAD = re.compile(
    r"(?P<lead>since|before|prior to|until|till|after|from)\s+(?:about\s+|around\s+)?(?:the\s+)?$"
)
_INSIDE = re.compile(r"^(?P<lead>since|before|until|till|after|from)\s+")
_TO = re.compile(r"\s+(?:to|till|until|through)\b|\s*[-–]\s*\d")
_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9998, 1, 1, tzinfo=UTC)


def _related(low: str, text: str, start: int, end: int, span: Span, now: datetime) -> Span:
    """Apply "since", "before", "after" and "until" to a span."""
    words = text[start:end].strip()
    lead = _LEAD.search(low, 0, start) or _INSIDE.match(low[start:end])
    placed = replace(span, text=words, at=start)
    if lead is None or span.relation == "for":
        return placed
    word = lead["lead"]
    zone = now.tzinfo
    if word == "from" and _TO.match(low, end):
        return placed  # from one day to another: a stretch that begins on this day
    if word == "from" and span.start > now:
        return placed
    if word in ("since", "from"):
        past = span.start <= now
        return replace(placed, end=max(now, span.end) if past else span.end, relation="since")
    if word in ("before", "prior to"):
        return replace(placed, start=_FIRST.replace(tzinfo=zone), end=span.start, relation="before")
    if word in ("until", "till"):
        return replace(placed, start=_FIRST.replace(tzinfo=zone), end=span.end, relation="until")
    return replace(placed, start=span.end, end=_LAST.replace(tzinfo=zone), relation="after")
