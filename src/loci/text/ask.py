"""A question taken apart: what kind of answer it wants, about whom, and of which time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loci.text.entities import names
from loci.text.kinds import has_kinds
from loci.text.lemmas import keys, lemma
from loci.text.people import People, is_kin, kin_word
from loci.text.phrases import kin_of
from loci.text.stem import fold, tokens
from loci.text.times import Span, resolve

_LEAD = re.compile(
    r"^(?:(?:and|so|but|then|ok|okay|hey|please|now|also)\W+|(?:can"
    r"|could) you (?:tell me|remind me)\W+"
    r"|(?:tell|remind) me(?: again)?\W+|do you (?:know|remember|recall)\W+"
    r"|what do you (?:know|think)"
    r" about\W+)+"
)
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "relation",
            (
                r"\bhow (?:is|are|was) .+ related\b|\bwhat (?:is|are|was) .+ relation(?:ship)?"
                r" (?:to|with)\b|\bin what way .+ related\b"
            ),
        ),
        (
            "weekday",
            (
                r"\b(?:what|which) days?(?: of the week)?\b(?!.*\b(?:date|moved|birthday)\b)"
                r"|\bon (?:what|which) days?\b"
            ),
        ),
        (
            "clock",
            (
                r"\b(?:at )?what time\b(?!.*\b(?:run|ran|finish|marathon|race|beat|goal"
                r"|target)\b)"
                r"|\bwhat hour\b"
            ),
        ),
        (
            "money",
            (
                r"\bhow much\b(?=.*\b(?:cost|costs|pay|pays|paid|price|rent|fee|spend|spent"
                r"|charge"
                r"|charges|charged|worth|earn|earns|owe|owed|quote|quoted|want|wanted|ask|sell"
                r"|sold"
                r"|lend|lent|ticket|tickets|budget|money|is|was|are|were|did)\b)"
                r"|\b(?:what|which) (?:was|is|were|are|did) (?:the )?(?:\w+ )?(?:price|cost"
                r"|rent|fee"
                r"|budget)\b|\bwhat (?:does|did|do|will|would) .+ (?:cost|pay)\b"
            ),
        ),
        ("age", r"\bhow old\b|\bwhat age\b|\bat what age\b"),
        (
            "duration",
            (
                r"\bwhat (?:is|was) (?:his|her|my|their|the|[\w-]+'s) (?:\w+ )?time"
                r" (?:in|at|for|on)\b"
                r"|\bhow long\b|\bhow many (?:years|months|weeks|days|hours|minutes|nights)\b"
                r"|\bwhat time (?:does|did|do|is|was|will)\b|\bhow fast\b"
            ),
        ),
        ("often", r"\bhow often\b|\bhow (?:frequently|regularly)\b"),
        ("distance", r"\bhow far\b|\bhow many (?:kilomet|miles|met)\w*\b"),
        ("count", r"\bhow many\b|\bhow much\b|\bhow (?:tall|big|heavy|large|high)\b"),
        (
            "when",
            (
                r"\bwhen\b|\b(?:what|which|to what|to which|on what|on which) (?:date|day"
                r"|month|year)\b"
                r"|\bsince when\b|\buntil when\b|\b(?:what|which) (?:is|was) the date\b"
            ),
        ),
        (
            "where",
            (
                r"\bwhere\b|\b(?:what|which) (?:city|country|town|place|state|village|region"
                r"|island"
                r"|neighbou?rhood|area|part of|school|college|university|hospital|company|firm"
                r"|restaurant|club|church|museum|hotel|airport|office)\b|\bin (?:what"
                r"|which) (?:city|country|town)\b"
            ),
        ),
        ("reason", r"\bwhy\b|\bhow come\b|\bwhat (?:was|is) the reason\b|\bwhat made\b"),
        (
            "name",
            (
                r"\b(?:what|which) (?:is|was|are|were) (?:the )?(?:\w+ )?names?\b|\bwhat(?:'s"
                r"| is| was| are| were)"
                r" .+ (?:called|named)\b|\bwhat (?:did|does|do|has|have) .+ (?:name|named|call"
                r"|called)\b"
                r"|\bwhat (?:will|would|should) .+ (?:be )?(?:called|named)\b|\bthe name of\b"
                r"|\bnamed what\b|\bwhat's .+ name\b|\bwhose name\b|\bwhat names?\b"
            ),
        ),
        (
            "job",
            (
                r"\bwhat (?:does|do|did) .+ (?:do|does)(?: now| for a living| for work"
                r"| professionally)"
                r"*\W*$|\bwhat .*\b(?:job|profession|occupation|career|position|line of work"
                r"|role|trade)\b"
                r"|\bwhat did .+ do before\b"
                r"|\bwhich (?:job|profession|position)\b|\bwhat (?:does|did) .+ work as\b"
            ),
        ),
        ("who", r"\b(?:who|whom|whose)\b|\bwhich (?:friend|person|people|woman|man|colleague)s?\b"),
        (
            "means",
            (
                r"\bhow (?:does|do|did|will|is|are) .+ (?:get|go|travel|commute|come)(?:ting"
                r"|ing)?\b"
                r"(?=.*\b(?:to|there|from|home|around|work)\b)"
            ),
        ),
    )
)
_YES_NO = re.compile(
    r"^(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|am"
    r"|isn't|aren't"
    r"|doesn't|didn't|hasn't|haven't|can't|won't)\b"
)
_FOCUS = re.compile(
    r"\b(?:what|which|whose|how many|how much)(?: (?:kind|sort|type|breed|brand"
    r"|make|model|name|style"
    r"|colou?r|genre|part|number|amount|of|an?|the|new|other|two|three|first|last"
    r"|current|next))*"
    r" (?P<noun>(?!(?:did|does|do|is|was|are|were|will|would|has|have|had|can"
    r"|could|should|must|may"
    r"|might|shall)\b)[a-z][a-z'-]+(?: (?!(?:did|does|do|is|was|are|were|will"
    r"|would|has|have|had|can"
    r"|could|should|must)\b)[a-z][a-z'-]+)?)"
)
_OPENS = re.compile(r"^(?:(?:with|from|to|for|by|at|in|on|of) )?(who|whom|whose|where|when|why)\b")
_OPENED = {"whom": "who", "whose": "who", "why": "reason"}
_COLOUR = re.compile(r"\b(?:what|which) colou?rs?\b|\bcolou?r of\b|\bwhat colou?r\b")
_FOCUS_KINDS = {
    "instrument": "instrument",
    "instruments": "instrument",
    "language": "language",
    "languages": "language",
    "month": "month",
    "diet": "diet",
}
_FIRST = re.compile(
    r"\b(?:at first|originally|initially|to begin with|in the beginning"
    r"|first (?:want|wanted|plan"
    r"|planned|think|thought|say|said|choose|chose|live|lived|work|worked|study"
    r"|studied|book|booked)"
    r"|first job|first home|first (?:name|date)d?)\b"
)
_PAST = re.compile(
    r"\bused? to\b|\b(?:previous(?:ly)?|former(?:ly)?|originally|earlier"
    r"|in the past|no longer|until"
    r"|old (?:job|boss|car|house|flat|home|company|employer|apartment)|ex|prior)\b"
    r"|\bbefore\b"
)
_LIVED = re.compile(
    r"\b(?:where|who|what|which) (?:did|was|were)\b.*\b(?:live|work|job|drive|date)\b"
)
_NOW = re.compile(
    r"\b(?:now|current(?:ly)?|these days|nowadays|at the moment|still|today|latest"
    r"|right now|finally"
    r"|in the end|eventually|at present|moved to|changed to)\b"
)
_OF_TIME = re.compile(
    r"\b(?:in the end|at first|at the moment|these days|right now|to begin with"
    r"|at present|so far"
    r"|for a living|of the week)\b"
)
_SHIFTED = re.compile(r"\b(?:moved|changed|postponed|rescheduled|shifted|pushed|brought)\b")
_DONE = re.compile(r"\b(?:did|was|were|had|has .+ (?:been|bought|made))\b")
_AHEAD = re.compile(r"\b(?:will|going to|is .+ing|are .+ing|does|do|is|are|plan|due)\b")
_NEGATED = re.compile(
    r"\b(?:not|never|cannot|stop|stopped|quit|give up|given up|gave up|without)\b|n't\b"
)
_NEGATIVE = re.compile(
    r"\b(?:not|never|n't|cannot|avoid|avoids|allergic|intolerant|dislike|dislikes"
    r"|hate|hates|stop"
    r"|stopped|quit|give up|given up|gave up|refuse|without)\b|n't\b"
)
# Which slots a question asks for, by its own words.
_SLOTS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), tuple(slots.split()))
    for pattern, slots in (
        (r"\b(?:live|lives|(?<!for a )living|lived|reside|based)\b(?! with)", "lives_in"),
        (r"\b(?:moved?|moving|relocat\w+)\b", "lives_in"),
        (
            (
                r"\b(?:where|city|town|country|village)\b.*\b(?:works?|working|worked|job"
                r"|employed)\b|\b(?:company|employer)\b"
                r"|\bwho .* work(?:s|ed|ing)? for\b"
            ),
            "works_at",
        ),
        (
            (
                r"\bwhat .*\b(?:job|profession|occupation|living|career)\b|\bwhat (?:does|do"
                r"|did) \S+(?: \S+)?"
                r" (?:do|work as)\b|\bwork as\b"
            ),
            "job",
        ),
        (r"\ballerg", "allergic_to"),
        (
            (
                r"\b(?:boyfriend|girlfriend|husband|wife|partner|spouse|fianc|married|engaged"
                r"|dating|date|seeing"
                r"|together|relationship)"
            ),
            "partner",
        ),
        (r"\bbirthday\b|\bborn\b", "birthday"),
        (r"\bhow old\b|\bage\b", "age"),
        (
            r"\b(?:hometown|originally from|comes? from|grew up|grow up)\b|\bwhere .* from\b",
            "from",
        ),
        (r"\b(?:drive|drives|drove|car)\b", "drives owns"),
        (r"\bpets?\b|\b(?:dog|cat|animal)s?\b", "pet"),
        (r"\b(?:kid|child|son|daughter)(?:s|ren)?\b", "child"),
        (r"\b(?:sister|brother|sibling)s?\b", "sibling"),
        (
            r"\b(?:diet|vegan|vegetarian|eat|eats|eating)\b",
            "diet avoids allergic_to likes dislikes",
        ),
        (r"\b(?:drink|drinks)\b", "drinks likes"),
        (r"\b(?:like|likes|love|loves|enjoy|enjoys|fond)\b", "likes dislikes"),
        (r"\b(?:dislike|dislikes|hate|hates|stand)\b", "dislikes"),
        (r"\b(?:hobby|hobbies|play|plays|sport|free time)\b", "hobby"),
        (r"\b(?:speak|speaks|languages?)\b", "speaks learning"),
        (r"\b(?:learn|learns|learning)\b", "learning"),
        (r"\b(?:study|studies|studying|major|degree)\b", "studies"),
        (r"\b(?:afraid|fear|fears|scared)\b", "fears"),
        (r"\b(?:plan|plans|planning|going to|intend|hope)\b", "plan"),
        (r"\bwhat .*\b(?:own|owns|have|has|got)\b", "owns"),
        (r"\b(?:called|nickname)\b", "address name"),
        (r"\b(?:prefer|prefers)\b", "prefers likes"),
        (r"\b(?:volunteer)", "volunteers_at"),
    )
)
_FAVOURITE = re.compile(r"\bfavou?rite (?P<what>[\w-]+)")
_OF_MONEY = [
    "earn",
    "salary",
    "wage",
    "wages",
    "money",
    "month",
    "week",
    "year",
    "hour",
    "night",
    "price",
    "cost",
    "pay",
    "spend",
    "charge",
    "worth",
    "much",
]
_IGNORED = frozenset(
    lemma(w)
    for w in [
        "kind",
        "sort",
        "type",
        "name",
        "call",
        "now",
        "current",
        "day",
        "week",
        "date",
        "time",
        "how",
        "many",
        "much",
        "one",
        "thing",
        "go",
        "do",
        "make",
        "use",
        "currently",
        "finally",
        "previous",
        "previously",
        "former",
        "originally",
        "still",
        "eventually",
        "first",
        "days",
        "nowadays",
        "today",
        "moment",
        "book",
        "called",
        "which",
        "what",
        "long",
        "old",
        "booked",
        "must",
        "have",
        "new",
    ]
)


@dataclass(frozen=True)
class Person:
    """Somebody a question is about: folded names that mean them, and how they are related."""

    names: frozenset[str]
    kin: str = ""  # "sister" when asked as "Ada's sister"
    owner: str = ""
    weight: float = 1.0  # less for "Ada" in "Ada's sister Ines"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question taken apart.

    Attributes:
        kind: "who", "where", "when", "weekday", "money", "count", "yesno", "what" and others.
        focus: stems of the noun after what, which or how many: {"recip"}.
        words: lemmas to look for; names of people and words of form are left out.
        people: whom it is about, the owner of a relation before the relative.
        mode: "now", "past", "first", or "event" for what happened once.
        explicit: whether it says "now" or the like.
        slots: predicates of facts that would answer it.
        negative: whether it asks for what is not done, liked or wanted; `negated` where it says
            so by "not" and not by a word such as "allergic".
    """

    text: str
    low: str
    kind: str
    focus: frozenset[str]
    noun: str
    words: frozenset[str]
    people: tuple[Person, ...]
    mode: str
    explicit: bool
    slots: tuple[str, ...]
    negative: bool
    negated: bool
    ahead: bool
    spans: tuple[Span, ...]

    @property
    def several(self) -> bool:
        """Whether more than one answer is asked for: "What books has she read?"."""
        plural = self.noun.endswith("s") and not self.noun.endswith(("ss", "us", "is"))
        plural = plural or self.noun in ("children", "people", "kids")
        return plural and self.kind not in ("count", "money", "age", "duration", "weekday")

    @property
    def main(self) -> frozenset[str]:
        """All names of the one it is about first of all: the first who is no mere owner."""
        whole = [p for p in self.people if p.weight > 0.5] or list(self.people)
        return whole[0].names if whole else frozenset()

    @property
    def apart(self) -> bool:
        """Whether the one it is about is asked for themselves, and not for what is theirs."""
        return any(p.weight == 1.0 and p.names == self.main for p in self.people)

    @property
    def about(self) -> frozenset[str]:
        """All names of all the people asked about."""
        return frozenset(name for person in self.people for name in person.names)


def ask(text: str, people: People, speakers: Sequence[str], now: datetime) -> Question:
    """Take a question apart, given who speaks and who is known to them."""
    low = re.sub(r"[“”\"]", "", fold(text).replace("’", "'")).strip()
    low = _LEAD.sub("", low).rstrip(" ?.!")
    opens = _OPENS.match(low)
    kind = _OPENED.get(opens[1], opens[1]) if opens else ""
    kind = kind or next((name for name, pattern in _KINDS if pattern.search(low)), "")
    if not kind or (kind in ("when", "where", "who") and _YES_NO.match(low)):
        kind = "yesno" if _YES_NO.match(low) else kind or "what"
    focus_match = _FOCUS.search(low)
    noun = focus_match["noun"] if focus_match else ""
    first = noun.split()[0] if noun else ""
    liked = _FAVOURITE.search(low)
    if kind == "what" and not first and liked is not None and has_kinds(liked["what"]):
        first = liked["what"]
    if kind == "what" and has_kinds(first):
        kind = "kind"
    if kind == "what" and first in _FOCUS_KINDS:
        kind = _FOCUS_KINDS[first]
    elif _COLOUR.search(low) and kind in ("what", "yesno"):
        kind = "colour"
    elif kind == "what" and kin_of(first) not in (None, "pet"):
        kind = "who"
    found = _people(text, low, people, speakers)
    called = [name for p in found for name in p.names if "'s " not in name]
    drop = {lemma(part) for name in called for part in tokens(name)}
    drop |= {lemma(p.kin) for p in found if p.kin}
    main = low.partition(" before ")[0] if _PAST.search(low) else low
    main = _OF_TIME.sub(" ", main)
    words = {w for w in keys(main) if w not in drop and w not in _IGNORED}
    if kind == "money":
        words -= {lemma(w) for w in _OF_MONEY}
    if kind == "job":
        words -= {
            lemma(w)
            for w in ("job", "work", "living", "profession", "occupation", "career", "trade")
        }
    slots = [slot for pattern, names_ in _SLOTS if pattern.search(low) for slot in names_]
    if favourite := _FAVOURITE.search(low):
        slots.insert(0, f"favourite:{favourite['what'].replace('color', 'colour')}")
    return Question(
        text=text,
        low=low,
        kind=kind,
        focus=frozenset(keys(noun.split()[0] if kind == "count" and noun else noun)) - _IGNORED,
        noun=first,
        words=frozenset(words),
        people=tuple(found),
        mode=_mode(low, kind),
        explicit=_NOW.search(low) is not None,
        slots=tuple(dict.fromkeys(slots)),
        negative=_NEGATIVE.search(low) is not None,
        negated=_NEGATED.search(low) is not None,
        ahead=_AHEAD.search(low) is not None and not re.search(r"\b(?:did|was|were|had)\b", low),
        spans=tuple(s for s in resolve(text, now) if s.relation != "for"),
    )


def _mode(low: str, kind: str) -> str:
    if _FIRST.search(low):
        return "first"
    if _PAST.search(low) and not re.search(r"\bbefore (?:bed|breakfast|dinner|lunch|sleep)", low):
        return "past"
    if _NOW.search(low) or (kind in ("when", "weekday", "clock") and _SHIFTED.search(low)):
        return "now"
    if _LIVED.search(low) and " after " not in low and kind in ("where", "what", "job", "who"):
        return "past"
    return "event" if _DONE.search(low) else "now"


def _people(text: str, low: str, people: People, speakers: Sequence[str]) -> list[Person]:
    """Return whom a question names; "Ada's sister's dog" is followed step by step."""
    words = tokens(text)
    found: list[Person] = []
    seen: set[str] = set()
    users = [s for s in speakers if s not in ("assistant", "loci")] or list(speakers)
    named = [s for s in users if s.split() and s.split()[0] in words]
    known = sorted({r.name for r in people.relations if "'s " not in r.name}, key=len, reverse=True)
    joined = f" {' '.join(words)} "
    for name in [*named, *known, *(fold(n) for n in names(text))]:
        short = name.split()[-1] if name in known else name.split()[0]
        hit = f" {name} " in joined or (f" {short} " in joined and name in known and len(short) > 2)
        if (hit or name in named) and name not in seen and short not in seen:
            found.append(Person(frozenset({name, name.split()[0]})))
            seen.update((name, name.split()[0], short))
    if not found and re.search(r"\b(?:i|my|me|mine|we|our)\b", low) and users:
        found.append(Person(frozenset({users[0], users[0].split()[0]})))
    place = {name: joined.find(f" {min(p.names, key=len)} ") for p in found for name in p.names}
    found.sort(key=lambda p: min(place.get(n, 999) for n in p.names))
    result = list(found)
    for match in re.finditer(r"\b(?P<owner>[\w-]+)'s? (?:\w+ ){0,2}?(?P<kin>[\w-]+)\b", low):
        rest = low[match.end("owner") :].removeprefix("'").removeprefix("s").split()[:3]
        nouns = [re.sub(r"'s?$", "", word) for word in rest]
        kin = next((w for w in nouns if kin_of(w) or is_kin([kin_word(w)])), "")
        owner = next((p for p in found if match["owner"] in p.names), None)
        if owner is None or not kin or any(p.kin == kin_word(kin) for p in result):
            continue
        key = max(owner.names, key=len)
        relatives = people.named(key, kin)
        names_ = {f"{key}'s {kin_word(kin)}", *(r.name for r in relatives)}
        names_ |= {r.name.split()[0] for r in relatives if "'s " not in r.name}
        if any(p.names & {r.name for r in relatives} for p in found):
            continue
        if not kin_of(kin) and all("'s " in r.name for r in relatives):
            continue  # a thing without a name is a word to look for
        result.insert(
            result.index(owner) + 1, Person(frozenset(names_), kin=kin_word(kin), owner=key)
        )
    owners = {p.owner for p in result if p.owner}
    return [
        replace(p, weight=0.25)
        if not p.kin and (p.names & owners or _owns(p, result, words, low) or _aside(p, low))
        else replace(p, weight=0.6)
        if not p.kin and any(re.search(rf"\b{re.escape(n)}'s? [a-z]", low) for n in p.names)
        else p
        for p in result
    ]


def _aside(person: Person, low: str) -> bool:
    """Whether a person stands only in a clause of time: "... before she moved to Delft"."""
    main = re.split(r"\b(?:before|after|when|while|until|since)\b", low)[0]
    return bool(main.strip()) and not any(
        re.search(rf"\b{re.escape(n)}\b", main) for n in person.names
    )


def _owns(person: Person, all_: Sequence[Person], words: Sequence[str], low: str) -> bool:
    """Whether a person is named only to tell whose somebody is: "Ada's friend Ines"."""
    others = {n for p in all_ if p is not person for n in p.names if "'s " not in n}
    if not others:
        return False
    name = "|".join(re.escape(n) for n in person.names if "'s " not in n)
    other = "|".join(re.escape(n) for n in sorted(others, key=len, reverse=True))
    return re.search(rf"\b(?:{name})'s? (?:[\w-]+ ){{1,3}}(?:{other})\b", low) is not None
