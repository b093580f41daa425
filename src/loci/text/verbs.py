"""What the verbs of a clause tell: one function for each kind of statement."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from loci.core.item import Candidate
from loci.text.clause import (
    ANY,
    CALLED,
    NAME,
    PLACE,
    Clause,
    dated,
    statement,
    third_person,
    trim,
)
from loci.text.entities import PLAIN
from loci.text.makers import booked, has
from loci.text.phrases import APPOINTMENTS, HEALTH, JOBS, VAGUE, kin_of
from loci.text.times import describe

Made = Candidate | list[Candidate | None] | None
Rule = Callable[[Clause, "re.Match[str]"], Made]


def take(predicate: str, *, ends: bool | None = None) -> Rule:
    def rule(clause: Clause, match: re.Match[str]) -> Made:
        return clause.fact(predicate, match["o"], ends=ends)

    return rule


def each(predicate: str) -> Rule:
    """One fact for each part of a list: "nuts, eggs and shellfish"."""

    def rule(clause: Clause, match: re.Match[str]) -> Made:
        parts = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", listed(clause.timeless(match["o"])))
        return [clause.fact(predicate, part) for part in parts if part]

    return rule


def listed(value: str) -> str:
    """Return a list without what follows it: at most three words a part."""
    parts = re.split(r"(\s*,\s*(?:and\s+)?|\s+and\s+)", value)
    kept = parts[0]
    for joint, part in zip(parts[1::2], parts[2::2], strict=True):
        if len(part.split()) > 3 or re.match(
            r"(?:i|it|we|my|have|am|will|also|that|so)\b", part, re.I
        ):
            break
        kept += joint + part
    return kept


def ending(predicate: str) -> Rule:
    return take(predicate, ends=True)


def was(predicate: str) -> Rule:
    """The fact held once: kept as past, and ends what the store still believes."""

    def rule(clause: Clause, match: re.Match[str]) -> Made:
        return clause.fact(predicate, match["o"], ends=True, past=True)

    return rule


def age(clause: Clause, match: re.Match[str]) -> Made:
    if not 0 < int(match["o"]) < 120:
        return None
    facts: list[Candidate | None] = [clause.fact("age", match["o"])]
    if match.groupdict().get("p"):
        facts.append(clause.fact("partner:spouse", match["p"], keep_time=True))
    return facts


def no_more(clause: Clause, match: re.Match[str]) -> Made:
    """ "I am not running anymore": whatever slot it stood in."""
    if not clause.ended:
        return None
    value = match["o"]
    text = f"{clause.subject} is no longer {trim(value)}"
    return ends_any(clause, value, ("hobby", "doing", "routine", "likes", "learning"), text)


def taste(clause: Clause, match: re.Match[str]) -> Made:
    value = match["o"]
    if re.match(
        r"^(?:it|that|this|them|you|your|how|what|when|the idea|to see|to hear)\b", value, re.I
    ):
        return None
    if clause.negative:
        text = f"{clause.subject} does not like {trim(value)}"
        if clause.ended:
            return clause.fact("likes", value, ends=True, text=text + " anymore")
        return clause.fact("dislikes", value, ends=False, text=text)
    verb = match["v"].lower()
    most = re.match(r"^(?P<a>.+?)\s+(?:more than|over|rather than|to)\s+(?P<b>.+)$", value)
    if verb == "prefer":
        kept = most["a"] if most else value
        text = f"{clause.subject} prefers {trim(value)}"
        return clause.fact("prefers", kept, text=text)
    known = {"love": "loves", "adore": "adores", "enjoy": "enjoys"}.get(verb, "likes")
    return clause.fact(
        "likes", value, text=f"{clause.subject} {known} {trim(clause.timeless(value))}"
    )


def hate(clause: Clause, match: re.Match[str]) -> Made:
    if re.match(r"^(?:it|that|this|them|to|when|how)\b", match["o"], re.I):
        return None
    if clause.negative and match["v"].lower() != "can stand":
        return clause.fact("dislikes", match["o"], ends=True)
    return clause.fact("dislikes", match["o"], ends=False)


def job(clause: Clause, match: re.Match[str]) -> Made:
    value = clause.timeless(match["o"])
    at = re.match(rf"^(?P<job>.+?) (?:at|for|in|with) (?:the )?(?P<place>{PLACE})", value)
    title = trim(at["job"] if at else value)
    if re.match(
        (
            r"(?:very |really |such a )?(?:great|good|wonderful|terrible|amazing|bad"
            r"|awful|decent)\b"
        ),
        title,
    ):
        return None  # a great cook need not be one by trade
    title = re.split(r"\s+(?:and|by|who|these|at|for)\s", title)[0]
    if title.split()[-1].lower() not in JOBS and not re.search(
        r"(?:ist|ian|eer|man|woman|yst|ologist|grapher|ector|ager|oper)$", title.lower()
    ):
        return None
    article = "an" if title[:1].lower() in "aeiou" else "a"
    facts: list[Candidate | None] = [clause.fact("job", f"{article} {title}")]
    if at is not None:
        where = (
            "lives_in"
            if re.search(rf" in (?:the )?{re.escape(at['place'])}", value)
            else "works_at"
        )
        facts.append(clause.fact(where, at["place"]))
    return facts


def employed(clause: Clause, match: re.Match[str]) -> Made:
    value = clause.timeless(match["o"])
    both = re.match(
        r"^(?:(?P<job>(?!(?:at|for|with)\b).+?) )?(?:at|for|with) (?P<place>.+)$", value
    )
    facts: list[Candidate | None] = []
    if value.lower().startswith("as "):
        both = re.match(r"^as (?P<job>.+?)(?: (?:at|for|with|in) (?P<place>.+))?$", value, re.I)
    if both is None:
        return None
    if both["job"] and both["job"].lower() not in (
        "as",
        "remotely",
        "full time",
        "part time",
        "out",
    ):
        job = re.sub(r"^as ", "", both["job"])
        if job.split()[-1].lower() in JOBS or value.lower().startswith("as "):
            facts.append(clause.fact("job", _with_article(job)))
    if both["place"]:
        place = re.sub(r" as (?P<job>.+)$", "", both["place"])
        job_after = re.search(r" as (?P<job>.+)$", both["place"])
        if job_after:
            facts.append(clause.fact("job", _with_article(job_after["job"])))
        if not re.match(
            r"^(?:home|night|the moment|least|a living|myself|free|years|weekends)\b", place, re.I
        ):
            facts.append(clause.fact("works_at", place))
    return facts or None


def _with_article(job: str) -> str:
    """Return "a coordinator" for "coordinator"; names of offices and plurals stay."""
    if not job[:1].islower() or re.match(r"(?:an?|the|my|our|head|chief|lead)\b", job):
        return job
    return f"{'an' if job[0] in 'aeiou' else 'a'} {job}"


def have(clause: Clause, match: re.Match[str]) -> Made:
    value = match["o"]
    called = CALLED.search(value)
    head = trim(clause.timeless(value[: called.start()] if called else value))
    words = re.split(r"\s+(?:from|with|of|in|at|for|that|on|to)\s+", head)[0].split()
    if not words:
        return None
    noun = words[-1].lower()
    slot = kin_of(noun)
    if slot is not None:
        head = " ".join(words)
    count = re.match(r"^(?:a|an|one|two|three|four|five|six|\d+|another|some|no)\b", value, re.I)
    if slot is not None and (count or called):
        name = called["name"] if called else None
        if clause.negative:
            return clause.fact(slot, f"{noun} {name}" if name else noun, ends=True)
        label = re.sub(r"^(?:a|an|one|another) ", "", head, flags=re.I)
        if slot == "partner":
            if name is None:
                return None
            return clause.fact("partner:" + noun, name, keep_time=True)
        facts: list[Candidate | None] = []
        names: list[str | None] = [name] if name else [None]
        if name and called:
            more = re.match(rf"\s*(?:,|and|&)\s*(?P<more>{NAME})", value[called.end() :])
            if more:
                names.append(more["more"])
        listed = re.search(rf"[,:] (?P<list>{NAME}(?:(?:,| and|, and| &) {NAME})*)$", value)
        if listed is not None and called is None:
            names = list(re.split(r", and |, | and | & ", listed["list"]))
        for one in names:
            if re.match(r"^(?:two|three|four|five|six|\d+)\b", label, re.I) and one is not None:
                label_one = noun[:-1] if noun.endswith("s") else noun
                label_one = "child" if noun == "children" else label_one
                facts.append(has(clause, slot, label_one, one))
            elif re.match(r"^(?:two|three|four|five|six|\d+)\b", label, re.I):
                facts.append(clause.fact(slot, label, ends=False, keep_time=True))
            else:
                facts.append(has(clause, slot, label, one))
        return facts
    on_day = re.match(
        (
            rf"^(?:an? |another |my )?(?P<what>{APPOINTMENTS})(?: with (?P<who>(?:(?:the|my"
            r"|a|an"
            r"|dr\.?) )?[\w.'-]+))?(?=\s|$)"
        ),
        value,
        re.IGNORECASE,
    )
    if on_day is not None and clause.spans:
        who = on_day["who"]
        if who is None and (w := re.search(r" with (.+?)(?: on | at | next | this |$)", value)):
            who = clause.timeless(w[1])
        made = booked(clause, on_day["what"], who, value)
        if made is not None:
            return made
    if on_day is not None:
        return None  # of no day that can be told
    allergy = re.match(
        (
            r"^(?:an? )?(?:(?:severe|bad|serious|mild) )?(?:(?P<a>[\w ]+?) )?allerg(?:y"
            r"|ies)"
            r"(?: to (?P<b>.+))?$"
        ),
        trim(value),
        re.I,
    )
    if allergy is not None and (allergy["b"] or allergy["a"]):
        return clause.fact("allergic_to", allergy["b"] or allergy["a"])
    if HEALTH.search(head):
        return clause.fact("health", head)
    if clause.negative:
        return clause.fact("owns", value, ends=True) if clause.ended else None
    if re.match(r"^(?:a|an|my own|two|three|four|five|\d+)\s", value, re.I) and len(words) <= 6:
        if noun in VAGUE or re.match(
            r"^a (?:lot|few|bit|great|good|nice|blast|hard|bad|feeling)\b", value
        ):
            return None
        return clause.fact("owns", statement(value).split(",")[0])
    return None


def bought(clause: Clause, match: re.Match[str]) -> Made:
    value = match["o"]
    if not re.match(
        r"^(?:myself )?(?:a|an|another|some|two|three|my first|my own|the|\d+|new)\s", value, re.I
    ):
        return None
    value = re.sub(r"^myself ", "", value)
    if clause.leans(statement(value)) or (match["v"].lower() == "got" and value[:4] == "the "):
        return None
    called = CALLED.search(value)
    head = trim(clause.timeless(value[: called.start()] if called else value))
    first = re.split(r"\s+(?:from|with|of|in|at|for|that|on|to)\s+", head)[0]
    noun = first.split()[-1].lower() if first else ""
    slot = kin_of(noun)
    facts: list[Candidate | None] = []
    if slot == "pet":
        label = re.sub(r"^(?:a|an|another|the|my first) ", "", head, flags=re.I)
        facts.append(has(clause, "pet", label, called["name"] if called else None))
        return facts
    if match["v"].lower() == "got" and (noun in VAGUE or noun in ("job", "promotion", "offer")):
        return None
    said = match["v"].lower()
    verb = said if said in ("got", "adopted", "rescued") else "bought"
    owned = re.sub(r"^(?:my first|my own|the|new|another) ", "a ", head, flags=re.I)
    predicate = "drives" if CAR.search(first) else "owns"
    facts.append(clause.fact(predicate, owned, text=clause.told(f"{verb} {value}")))
    return facts


def lost(clause: Clause, match: re.Match[str]) -> Made:
    value = re.sub(r"^(?:my|our|the|a|an)\s+", "", trim(clause.timeless(match["o"])), flags=re.I)
    words = value.split()
    if not words:
        return None
    if words[0].lower() in ("job", "position"):
        return [gone(clause, "works_at"), gone(clause, "job")]
    slot = kin_of(words[0]) or kin_of(words[-1])
    predicate = slot or ("drives" if words[-1].lower() == "car" else "owns")
    text = clause.told()
    facts = [clause.fact(predicate, value, ends=True, text=text)]
    if predicate == "drives":
        facts.append(clause.fact("owns", value, ends=True, text=text))
    return facts


def gone(clause: Clause, predicate: str) -> Candidate | None:
    """End whatever value a single-valued slot has."""
    text = clause.told()
    return clause.fact(predicate, ANY, ends=True, text=text)


def left(clause: Clause, match: re.Match[str]) -> Made:
    value = trim(clause.timeless(match["o"]))
    at = re.match(
        (
            r"^(?:my |the )?(?:old |current )?(?:job|role|position|work|post)(?: (?:at"
            r"|with|as)"
            r" (?P<p>.+))?$"
        ),
        value,
        re.I,
    )
    if at is not None:
        return [gone(clause, "works_at"), gone(clause, "job")]
    if re.match(r"^\w+ing\b", value):
        return stopped(clause, match)
    if value.lower() in ("the city", "the country", "home", "town") or match["v"].lower() == "left":
        if re.match(rf"^(?:my )?(?:the )?(?P<p>{PLACE})$", value):
            return clause.fact("works_at", value, ends=True)
        return None
    return [clause.fact(p, value, ends=True) for p in ("hobby", "likes", "doing")]


_SCHOOL = "(?:school|college|university|uni|sixth form|nursery|kindergarten|academy)"
CAR = re.compile(
    (
        r"\b(?:car|truck|van|suv|tesla|toyota|honda|ford|bmw|kia|volvo|skoda|fiat|audi"
        r"|vw|volkswagen"
        r"|mercedes|nissan|mazda|renault|hyundai|subaru|jeep|lexus|porsche|citroen"
        r"|opel|chevrolet)\b"
    ),
    re.IGNORECASE,
)
DRINK = re.compile(r"^(?:coffee|tea|alcohol|beer|wine|soda|milk|espresso|decaf|juice|cola)\b", re.I)


def ends_any(
    clause: Clause, value: str, slots: tuple[str, ...], text: str | None
) -> list[Candidate | None]:
    """End a value in whichever of these slots it stands; of a slot unsure, no past is told."""
    made = [clause.fact(slot, value, ends=True, text=text) for slot in slots]
    return [made[0], *(fact and replace(fact, valid_to=None) for fact in made[1:])]


def stopped(clause: Clause, match: re.Match[str]) -> Made:
    value = trim(clause.timeless(match["o"]))
    words = value.split(" ", 1)
    verb, rest = words[0].lower(), words[1] if len(words) > 1 else ""
    text = clause.told() or f"{clause.subject} stopped {value}"
    if verb == "eating" and rest:
        return [
            clause.fact("avoids", rest, ends=False, text=text),
            clause.fact("likes", rest, ends=True, text=text),
        ]
    if verb == "drinking" and rest:
        return ends_any(clause, rest, ("drinks", "likes"), text)
    if verb in ("working",):
        return [gone(clause, "works_at"), gone(clause, "job")]
    if verb == "being" and rest:
        return clause.fact("diet", re.sub(r"^an? ", "", rest), ends=True, text=text)
    if verb == "living":
        return gone(clause, "lives_in")
    if verb in ("learning", "studying"):
        return [clause.fact(p, rest or ANY, ends=True, text=text) for p in ("learning", "studies")]
    if DRINK.match(value):
        return ends_any(clause, value, ("drinks", "likes"), text)
    return ends_any(clause, value, ("hobby", "likes", "routine", "doing"), text)


def hobby(clause: Clause, match: re.Match[str]) -> Made:
    value = trim(clause.timeless(match["o"]))
    verb = match["v"].lower()
    if verb.startswith("play") and re.match(r"^(?:with|a (?:role|part)|it)\b", value, re.I):
        return None
    doing = {"play": "playing", "collect": "collecting", "played": "playing"}.get(verb, verb)
    shown = {"play": "plays", "collect": "collects"}.get(verb, f"does {verb}")
    if clause.negative:
        return [
            clause.fact(
                p, f"{doing} {value}", ends=True, text=f"{clause.subject} no longer {shown} {value}"
            )
            for p in ("hobby", "likes")
        ]
    return clause.fact("hobby", f"{doing} {value}", text=f"{clause.subject} {shown} {value}")


def began(clause: Clause, match: re.Match[str]) -> Made:
    value = trim(clause.timeless(match["o"])) or match["o"]
    value = re.sub(r"\s*,\s*as\b", " as", clause.timeless(match["o"])).strip(" ,")
    value = value if " as " in f" {value}" else trim(value)
    words = value.split(" ", 1)
    verb, rest = words[0].lower(), words[1] if len(words) > 1 else ""
    text = clause.told()
    job = re.match(
        r"^(?:working|work|a (?:new )?(?:job|position|role)|my new job)(?:,? (?P<o>.+))?$",
        value,
        re.I,
    )
    if job is not None:
        if job["o"]:
            inner = re.match(r"(?P<o>.+)", job["o"])
            assert inner is not None
            return employed(clause, inner)
        return None
    if re.match(r"^(?:at|as|for|with)\b", value, re.I):
        school = re.match(rf"at (?P<o>.*\b{_SCHOOL}\b.*)$", value, re.I)
        if school is not None:
            return clause.fact("studies_at", school["o"])
        inner = re.match(r"(?P<o>.+)", value)
        assert inner is not None
        return employed(clause, inner)
    if verb in ("learning", "studying") and rest:
        return clause.fact("learning", rest)
    if verb in ("dating", "seeing") and rest:
        return clause.fact("partner", rest)
    if verb == "eating" and rest:
        return [clause.fact("avoids", rest, ends=True), clause.fact("likes", rest, text=text)]
    if verb == "drinking" and rest:
        return clause.fact("drinks", rest)
    if verb.endswith("ing") or re.match(
        r"^(?:yoga|pilates|piano|guitar|golf|tennis|\w+ (?:classes|lessons))", value, re.I
    ):
        return clause.fact("hobby", value, text=text)
    return clause.fact("did", statement(clause.rest), text=text, keep_time=True) if text else None


def plan(clause: Clause, match: re.Match[str]) -> Made:
    """What is wanted or intended, if it is worth remembering and says so by itself."""
    value = statement(match["o"])
    if clause.negative:
        return clause.fact("plan", value, ends=True)
    verb = match.group().split(" ", 1)[0].lower()
    means_to = match.group()[: match.start("o") - match.start()].rstrip().endswith((" to", "will"))
    if value.lower().startswith("not ") or clause.leans(value) or _IDLE.match(value):
        return None
    body = third_person(value)
    if not means_to:
        thing = re.match(r"(?:an?|some|more|new|another)\s(?:\S+\s?){1,6}$", body)
        if verb not in ("want", "plan") or thing is None or not _lasts(clause):
            return None
        how = "wants" if verb == "want" else "plans"
        text = f"{clause.subject} {how} {dated(body, clause)}"
        return _from_now(clause, clause.fact("plan", body, keep_time=True, text=text))
    soon = not _lasts(clause)
    if len(body.split()) < 2 or not body[0].islower() or re.match(r"(?:an?|the|some)\b", body):
        return None
    if verb in ("will", "am") and (soon or not (clause.spans or _WEIGHTY.match(body))):
        return None
    text = f"{clause.subject} plans to {dated(body, clause)}"
    return _from_now(clause, clause.fact("plan", body, keep_time=True, text=text))


# What one says one will do, and means nothing to be remembered by it.
_IDLE = re.compile(
    (
        r"(?:be|say|tell|know|thank|see you|keep|try|check|think|hear|let|get back"
        r"|need|remember|have"
        r"|go now|miss|show|ask|look|pretend|wait|write|text|call|send)\b(?! a\b)"
    ),
    re.IGNORECASE,
)
_WEIGHTY = re.compile(
    (
        r"(?:move|marry|get married|start|leave|visit|travel|fly|open|retire|study"
        r"|join|adopt|buy|sell"
        r"|build|learn|become|train|run|quit|apply|go to|take over|return)\b"
    ),
    re.IGNORECASE,
)


def _lasts(clause: Clause) -> bool:
    """Whether a wish reaches beyond the day on which it is told."""
    return not any((span.end - clause.turn.time).days < 1 for span in clause.spans)


def _from_now(clause: Clause, made: Candidate | None) -> Candidate | None:
    return made and replace(made, valid_from=clause.turn.time)


def appointment_with(clause: Clause, match: re.Match[str]) -> Made:
    value = match["o"]
    if not clause.spans or clause.spans[0].end <= clause.turn.time:
        return None
    who = trim(clause.timeless(value))
    body = f"{match['v'].lower()} {value}"
    made = clause.fact("plan", who, text=clause.told(f"is {body}"))
    return made and replace(made, valid_from=clause.turn.time)


def seeing(clause: Clause, match: re.Match[str]) -> Made:
    """ "I'm seeing Tom" tells of a partner; "I'm seeing the doctor" does not."""
    someone = r"(?:(?:a \w+|someone|somebody)(?: new)? (?:named|called) )?"
    named = re.match(rf"{someone}(?P<name>{NAME})", match["o"])
    if named is None or clause.spans:
        return None
    return clause.fact("partner:partner", named["name"], keep_time=True)


_CLUB = re.compile(
    (
        r"\b(?:club|choir|team|society|church|gym|association|union|party|group|band"
        r"|committee|board|rotary|scouts?|army|navy"
        r"|force|orchestra|league|class|course|crew|squad|network|community|centre"
        r"|center|guild|council|army|reserve|facebook|instagram"
        r"|twitter|reddit|discord|zoom|linkedin)\b"
    ),
    re.I,
)


def joined(clause: Clause, match: re.Match[str]) -> Made:
    """A firm by its name, with or without a post; a club, a choir or a cause."""
    firm = re.match(PLACE, match["o"])
    if match["j"]:
        return [clause.fact("works_at", match["o"]), clause.fact("job", match["j"])]
    text = clause.told("joined " + match["o"])
    if firm is not None and _CLUB.search(match["o"]) is None and not clause.negative:
        return clause.fact("works_at", firm.group(), text=text)
    return clause.fact("member_of", match["o"], text=text)


def together(clause: Clause, match: re.Match[str]) -> Made:
    """A partner by name; over when it is denied."""
    named = re.match(NAME, match["o"])
    if named is None:
        return None
    if clause.negative:
        return clause.fact("partner", named.group(), ends=True, text=clause.told())
    return clause.fact("partner:partner", named.group(), keep_time=True)


def beside(clause: Clause, match: re.Match[str]) -> Made:
    """ "I'm still with Orbex", "I left Jonas": the store knows what each is to whom."""
    named = re.match(PLACE, match["o"])
    if named is None:
        return None
    if clause.negative:
        slots = ("partner", "works_at", "lives_in", "hobby", "likes")
        text = f"{clause.subject} is no longer with {named.group()}"
        return ends_any(clause, named.group(), slots, text)
    return clause.fact("with", named.group(), ends=False)


def moving(clause: Clause, match: re.Match[str]) -> Made:
    """A move that lies ahead: a plan, until it is told that one lives there."""
    place = re.match(PLACE, statement(clause.timeless(match["o"])))
    if place is None or clause.negative:
        return None
    text = clause.told(clause.rest.replace("am moving", "is moving", 1))
    return _from_now(clause, clause.fact("plan", f"move to {place.group()}", text=text))


def married(clause: Clause, match: re.Match[str]) -> Made:
    how = match["how"].lower()
    noun = {"married": "spouse", "engaged": "fiance"}.get(how, "partner")
    who = match["o"]
    if who:
        return clause.fact(
            f"partner:{noun}",
            who,
            text=f"{clause.subject} is {how} to {trim(clause.timeless(who))}"
            if how in ("married", "engaged")
            else None,
        )
    return clause.fact("partner:status", how, text=f"{clause.subject} is {how}")


def split_up(clause: Clause, match: re.Match[str]) -> Made:
    text = clause.told()
    return clause.fact("partner", match["o"] or ANY, ends=True, text=text)


def think(clause: Clause, match: re.Match[str]) -> Made:
    value = match["o"]
    if (
        clause.negative
        or len(value.split()) < 3
        or re.match(r"^(?:i|it|so|that|about|of|you|we)\b", value, re.I)
    ):
        return None
    return clause.fact("thinks", value, keep_time=True)


def is_named(clause: Clause, match: re.Match[str]) -> Made:
    """What someone is: a name, a job, a state."""
    value = trim(clause.timeless(match["o"]))
    if re.fullmatch(NAME, value) and value.split()[0].lower() not in PLAIN and not clause.negative:
        return clause.fact("name", value) if len(value.split()) <= 2 else None
    return None


def doing(clause: Clause, match: re.Match[str]) -> Made:
    if re.match(
        (
            r"^(?:going|trying|thinking|looking forward|feeling|getting|doing|having"
            r"|saying|being"
            r"|coming|hoping|kidding|wondering|loving|enjoying)\b"
        ),
        match["o"],
        re.I,
    ):
        return None
    if clause.negative:
        return clause.fact("doing", match["o"], ends=True)
    return clause.fact("doing", match["o"])


def swapped(clause: Clause, match: re.Match[str]) -> Made:
    """One thing ends and another begins in the same slot; which slot is left to the store."""
    text = clause.told()
    old = re.sub(r"^(?:my|our|his|her|their|the)\s+", "", match["a"])
    slot = "drives" if CAR.search(match["a"]) else "hobby"
    slot = "drinks" if DRINK.match(old) else slot
    ends = [clause.fact(p, old, ends=True, text=text) for p in dict.fromkeys((slot, "owns"))]
    return [*ends, clause.fact(slot, match["o"], ends=False, text=text)]


def routine(clause: Clause, match: re.Match[str]) -> Made:
    verb = match["v"].lower()
    shown = {"go": "goes", "wake": "wakes", "do": "does"}.get(verb, verb + "s")
    if re.search(r"\b(?:to|for|with|in|at|\w+ing)\b", match["o"]) is None and verb == "go":
        return None
    text = f"{clause.subject} {shown} {trim(third_person(match['o']))}"
    if clause.negative:
        return clause.fact("routine", f"{verb} {match['o']}", ends=True)
    return clause.fact("routine", f"{verb} {match['o']}", text=text, keep_time=True)


def eat(clause: Clause, match: re.Match[str]) -> Made:
    value = match["o"]
    if clause.negative:
        return [
            clause.fact(
                "avoids", value, ends=False, text=f"{clause.subject} does not eat {trim(value)}"
            ),
        ]
    if re.match(r"^(?:again|meat again)", value):
        return None
    again = re.match(r"^(?P<o>.+?) (?:again|now)$", value)
    if again:
        return [clause.fact("avoids", again["o"], ends=True), clause.fact("diet", ANY, ends=True)]
    return None


def drink(clause: Clause, match: re.Match[str]) -> Made:
    if clause.negative:
        return [
            clause.fact(
                p,
                match["o"],
                ends=True,
                text=f"{clause.subject} does not drink {trim(match['o'])}",
            )
            for p in ("drinks", "likes")
        ]
    value = re.sub(
        r"^(?:way )?(?:too much|a lot of|lots of|plenty of|mostly|only)\s+", "", match["o"]
    )
    return clause.fact("drinks", value)


def born(clause: Clause, match: re.Match[str]) -> Made:
    place = re.search(rf"\bin (?P<o>{PLACE})", match["o"])
    facts: list[Candidate | None] = []
    if place and not re.match(r"^(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)", place["o"]):
        made = clause.fact("from", place["o"])
        facts.append(made and replace(made, valid_from=clause.turn.time))
    if clause.spans:
        when = clause.spans[0]
        made = clause.fact("birthday", describe(when), keep_time=True)
        facts.append(made and replace(made, valid_from=clause.turn.time))
    return facts


def hurt(clause: Clause, match: re.Match[str]) -> Made:
    return clause.fact("health", f"{match['v']} {match['o']}", text=clause.told())


def lives(clause: Clause, match: re.Match[str]) -> Made:
    """Where one lives."""
    inner = re.match(rf"^(?:a|an|the|our|my) .+? in (?P<place>{PLACE})", match["o"])
    return _at_home(clause, inner["place"] if inner else match["o"])


def moved(clause: Clause, match: re.Match[str]) -> Made:
    """Where one has moved."""
    place = clause.timeless(match["o"])
    place = re.sub(
        r"^(?:a new (?:place|flat|apartment|house) in|a (?:flat|house|apartment) in) ", "", place
    )
    if re.match(
        r"^(?:a|an|my|our|the) (?:new |bigger |smaller )?(?:house|place|flat|apartment|home)\b",
        place,
        re.I,
    ):
        return None
    return _at_home(clause, place)


def _at_home(clause: Clause, place: str) -> Candidate | None:
    """A home is a place by name, or a thing with an article; not somebody's, and nothing more."""
    place = statement(place)
    named = re.match(rf"(?:the )?{PLACE}", place)
    if re.search(r"['’]s\b", place) or not (named or re.match(r"(?:an?|the)\s", place)):
        return None
    place = re.split(r"\s+and\s+(?=[a-z])", place)[0]
    return clause.fact("lives_in", place)
