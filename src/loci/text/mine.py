"""Facts of clauses that begin with "my": what one has, likes best, whom one is related to."""

from __future__ import annotations

import re
from dataclasses import replace

from loci.core.item import Candidate, Turn
from loci.text.clause import NAME, clause_of, dated, trim
from loci.text.makers import appointment, as_list, birthday, booked, has
from loci.text.phrases import APPOINTMENTS, KIN, kin_of
from loci.text.speech import spoken
from loci.text.stem import fold

SAME_KIN = {
    "mum": "mother",
    "mom": "mother",
    "mama": "mother",
    "dad": "father",
    "papa": "father",
    "grandma": "grandmother",
    "granny": "grandmother",
    "grandpa": "grandfather",
}
KIN_SUBJECT = re.compile(
    (
        r"^(?:my|our)\s+(?P<adj>(?:(?:little|older|younger|big|twin|best|new|old"
        r"|oldest|youngest|eldest"
        r"|elder|late|dear|close|step|middle"
        rf"|ex)[\s-]+)*)(?P<noun>{'|'.join(sorted(KIN, key=len)[::-1])})"
        rf"(?:,?\s+(?P<name>(?-i:{NAME})),?)?(?P<poss>['’]s)?\s+(?P<rest>.+)$"
    ),
    re.IGNORECASE,
)

_MY: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), predicate)
    for pattern, predicate in (
        (r"^my (?:full |first |real |last )?name is (?P<o>.+)$", "name"),
        (r"^my nickname is (?P<o>.+)$", "address"),
        (r"^my friends call me (?P<o>.+)$", "address"),
        (r"^my birthday is (?:on )?(?:the )?(?P<o>.+)$", "birthday"),
        (
            (
                r"^my (?:all[- ]time |absolute |new )?favou?rite (?P<p>[\w -]{2,30}?) (?:is"
                r"|are|has to be)"
                r"(?: now| definitely| probably)? (?P<o>.+)$"
            ),
            "favourite",
        ),
        (
            r"^my (?:new |current )?(?:job|role|position|profession|title) is (?:as )?(?P<o>.+)$",
            "job",
        ),
        (r"^my (?:new |current )?(?:company|employer) is (?P<o>.+)$", "works_at"),
        (r"^my (?:hometown|home town) is (?P<o>.+)$", "from"),
        (r"^my (?:phone|mobile|telephone|cell)(?: number)? is (?P<o>.+)$", "phone"),
        (r"^my e-?mail(?: address)? is (?P<o>\S+)$", "email"),
        (r"^my (?:new )?(?:home )?address is (?:now )?(?P<o>.+)$", "attribute:address"),
        (r"^my (?:new )?(?:hobby|hobbies) (?:is|are) (?P<o>.+)$", "hobby"),
        (r"^my (?:new )?car is (?P<o>.+)$", "drives"),
        (r"^my (?:native language|mother tongue|first language) is (?P<o>.+)$", "speaks"),
        (r"^my major is (?P<o>.+)$", "studies"),
    )
)
_MY_DATE = re.compile(
    (
        rf"^(?:my|our) (?P<what>{APPOINTMENTS})(?: (?:with|to|from|for"
        r"|at) (?P<who>.+?))? "
        r"(?:is|has been|was|got)(?: now)?"
        r"(?: scheduled| booked| set| planned| moved| rescheduled| postponed| pushed"
        r"| changed|"
        r" shifted)?"
        r"(?: (?:back|up|forward|out))?(?: to| for| on| at)? (?P<o>.+)$"
    ),
    re.IGNORECASE,
)
_MY_CANCELLED = re.compile(
    (
        rf"^(?:my|our) (?P<what>{APPOINTMENTS})(?: with .+?)? (?:is|has been|was|got) "
        r"(?:cancell?ed|called off)"
    ),
    re.IGNORECASE,
)
_MY_ATTRIBUTE = re.compile(r"^my (?P<p>[a-z][a-z -]{2,25}?) (?:is|are) (?:now )?(?P<o>.+)$", re.I)
_MY_STOLEN = re.compile(
    (
        r"^(?:my|our) (?P<o>[\w' -]+?) (?:finally |just |sadly )?(?:(?:was|got"
        r"|has been|were) "
        r"(?:stolen|totalled|wrecked|destroyed|sold)|died|broke down|gave out"
        r"|fell apart)"
    ),
    re.IGNORECASE,
)
_GONE = re.compile(
    r"^(?:died|passed away|passed|ran away|is gone|has died|has passed away)\b", re.I
)
_IS_NAMED = re.compile(
    rf"^(?:is |are |was )?(?:named|called|name is|names are|is called|is named)\s+(?P<name>{NAME})"
)
_JUST_NAME = re.compile(rf"^is (?P<name>{NAME})$")


def mine(
    clause: str, speaker: str, turn: Turn, named: str | None
) -> tuple[list[Candidate], str | None]:
    clause = clause.rstrip(" .!")
    whole = clause_of(speaker, clause, clause, turn)
    cancelled = _MY_CANCELLED.match(clause)
    if cancelled is not None:
        made = whole.fact(
            appointment(cancelled["what"]),
            "cancelled",
            ends=True,
            text=(f"{speaker}'s {cancelled['what']} was cancelled"),
        )
        return [made] if made else [], named
    if whole.spans:
        on_day = _MY_DATE.match(clause)
        if on_day is not None:
            return as_list(booked(whole, on_day["what"], on_day["who"], on_day["o"])), named
    kin = KIN_SUBJECT.match(clause)
    if kin is not None:
        return _kin(kin, speaker, turn)
    stolen = _MY_STOLEN.match(clause)
    if stolen is not None:
        text = f"{speaker}'s {dated(clause[3:].strip(), whole)}"
        gone = [whole.fact(p, stolen["o"], ends=True, text=text) for p in ("owns", "drives")]
        return [fact for fact in gone if fact is not None], named
    for pattern, predicate in _MY:
        match = pattern.match(clause)
        if match is None:
            continue
        value = re.sub(r"^(?:now|definitely|probably|still|actually) ", "", match["o"])
        negative = value.lower().startswith(("not ", "no longer "))
        value = re.sub(r"^(?:not|no longer) ", "", value, flags=re.I)
        if predicate == "favourite":
            predicate = f"favourite:{match['p'].lower().replace('color', 'colour')}"
        if predicate == "birthday":
            return as_list(birthday(whole, value)), named
        if predicate == "drives":
            value = value if re.match(r"an? ", value) else f"a {value}"
        return as_list(whole.fact(predicate, value, ends=negative)), named
    attribute = _MY_ATTRIBUTE.match(clause)
    if attribute is not None and len(attribute["o"].split()) <= 6:
        noun = attribute["p"].lower()
        value = attribute["o"]
        if noun.split()[-1] not in ("guess", "point", "thing", "goal", "day", "life", "plan"):
            negative = value.lower().startswith(("not ", "no longer "))
            if not negative:
                return as_list(whole.fact(f"attribute:{noun}", value)), named
    return [], named


def _kin(match: re.Match[str], speaker: str, turn: Turn) -> tuple[list[Candidate], str | None]:
    """Facts about the people and animals one has."""
    noun = match["noun"].lower()
    noun = SAME_KIN.get(noun, noun)
    adjective = " ".join(re.findall(r"[a-z]+", match["adj"].lower()))
    rest, slot = match["rest"], kin_of(noun) or "friend"
    if adjective.startswith("ex"):
        noun = f"ex-{noun}"
    label = f"{adjective} {noun}".strip() if not noun.startswith("ex-") else noun
    name = match["name"]
    given = None
    if rest.startswith("name is ") or match["poss"] is None:
        given = _IS_NAMED.match(rest) or (_JUST_NAME.match(rest) if not name else None)
        if given is not None:
            name, rest = re.sub(r"['’]s$", "", given["name"]), ""
    facts: list[Candidate | None] = []
    here = clause_of(speaker, rest, rest, turn)
    if _GONE.match(rest):
        ended = here.fact(
            slot if slot != "partner" else f"partner:{noun}",
            name or noun,
            ends=True,
            text=f"{speaker}'s {label}{' ' + name if name else ''} {trim(rest)}",
        )
        return as_list(ended), name
    if match["poss"] and not name:
        name_of = re.match(
            r"^(?:birthday|name|favou?rite .+?|job) (?:is|are) (?P<o>.+)$", rest, re.I
        )
        if name_of is None:
            return [], None
        who = f"{speaker}'s {label}"
        return mine(f"my {rest}", who, turn, None)[0], who
    if name:
        if slot == "partner":
            facts.append(here.fact(f"partner:{noun}", name, keep_time=True, ends=False))
        elif match["poss"] is None or given is not None:
            facts.append(has(here, slot, label, name))
        else:
            return mine(f"my {rest}", name, turn, None)[0], name
    subject = f"{speaker}'s {label}" + (f" {name}" if name else "")
    if rest:
        facts += spoken(subject, rest, turn)
        if name:  # one key for the person, however named
            facts = [
                replace(f, subject=fold(f"{speaker}'s {noun}"))
                if f and f.subject == fold(subject)
                else f
                for f in facts
            ]
        else:
            facts = [
                replace(f, subject=fold(f"{speaker}'s {noun}"))
                if f and f.subject == fold(subject)
                else f
                for f in facts
            ]
    return [f for f in facts if f is not None], name or subject
