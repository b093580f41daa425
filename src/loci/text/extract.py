"""Facts from dialogue by rules: who, which slot, what value, since when, or that it has ended.

A turn is cut into sentences and clauses; questions, hypotheticals and code are dropped. A clause
is brought into one form - a subject, then a verb in its base form - and the verb selects the rules.
"I" is the speaker; "my sister Lena" and "Lena" are subjects of their own. What no slot fits but
tells of something done is kept as an event with its date made absolute. Assistants' turns yield
nothing, except what the person then confirms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loci.core.item import Candidate, Turn
from loci.text.entities import PLAIN, entities
from loci.text.phrases import (
    ADVERBS,
    APPOINTMENTS,
    BASE,
    CONTRACTED,
    CONTRACTIONS,
    DIETS,
    DULL,
    FILLERS,
    HEALTH,
    HYPOTHETICAL,
    JOBS,
    KIN,
    PARTICIPLE,
    PAST,
    VAGUE,
    kin_of,
)
from loci.text.slots import sentence_of, slot_of
from loci.text.stem import STOP_WORDS, fold
from loci.text.times import Span, describe, resolve

ANY = "*"  # the value of an ending that names none: whatever the slot holds

_SENTENCE = re.compile(r"[^.!?\n]+(?:\.(?=\S)[^.!?\n]+)*[.!?]*")
_CLAUSE = re.compile(
    r"\s*(?:;|\s[-–—]+\s|,?\s+but\s+|,?\s+and\s+(?=(?:i|we|my|our|he|she|they)(?:'\w+)?\s)"
    r"|,\s*(?=(?:i|my|our|we|her name|his name|its name|she's|he's|she is|he is)(?:'\w+)?\s)"
    r"|,?\s+so\s+(?=(?:i|we|my)(?:'\w+)?\s)"
    r"|,?\s+and\s+(?=(?:moved|started|quit|bought|got|adopted|joined|sold|became|switched|broke|left"
    r"|am|work|live|love|hate|changed|found|took|began)\s)"
    r"|,?\s+because\s+|,?\s+(?:although|though|(?<!a )while)\s+)\s*",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|$)|`[^`]*`|https?://\S+|\[shares a picture:[^\]]*\]", re.DOTALL)
_ENDED = re.compile(r"\b(?:no longer|any ?more|any longer)\b", re.IGNORECASE)
_NOT = re.compile(r"^(?:do not|does not|did not|cannot|could not|am not|have not|never)\b\s*", re.I)
_TAG = re.compile(
    r",?\s*(?:(?:did|have|had) i (?:tell|told|mention)[^?,]*|you know|remember|right|isn't it"
    r"|can you believe (?:it|that)|how cool is that|crazy,? huh|huh)\?$",
    re.IGNORECASE,
)
_AS_KNOWN = re.compile(r",?\s*\bas (?:you (?:already )?know|i said|i mentioned)\b,?", re.IGNORECASE)
_ASIDE = re.compile(r"^[^:.,]{3,40}:\s+(?=(?:i|my|we|our)\b)", re.IGNORECASE)
_CONFIRM = re.compile(
    r"^(?:yes|yeah|yep|yup|exactly|correct|right|that(?:'s| is) (?:right|correct|true)|indeed)\b",
    re.IGNORECASE,
)
_MEANT = re.compile(
    r"(?:^|\b)(?:i meant(?: to say)?|i mean|(?:actually|sorry|correction|wait|oops)\W+(?:no\W+)?"
    r"(?:it|that|he|she)(?:'s| is| was)(?: actually| really)?|make that|scratch that\W+"
    r"(?:it(?:'s| is))?)\s+(?P<new>[^,.;!?]+?)(?:\s*,?\s*(?:and )?not\s+(?P<old>[^,.;!?]+))?"
    r"\s*(?:[,.;!?]|$)",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"(?:\s*(?:,|\(|\s[-–—]+\s)|\s+(?:because|but|which|who|since|so that|so i|when|where|while"
    r"|after|before|until|although|though|as well|too|these days|nowadays|right now|at the moment"
    r"|any ?more|now|lately|again|together|and (?:i|we|my|it|she|he|they|am|have|love|really)\b"
    r"|with (?:my|our|a|an|two|three)|for (?:my|our)|instead|so far|by the way|though|for"
    r" (?:some time|a (?:while|long time|bit)|many|ages|years)\b|and that"
    r"|originally|by trade|in the end|a while (?:ago|back)|after all|if you|you know|to be"
    r" honest|btw|thank god|thankfully|actually|haha|lol)\b).*$",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^(?:on|in|at|for|since|from|by|this|the|every|around|about)\s*$", re.I)
_PLACE = r"(?:[A-Z][\w'’.-]*)(?:[ ,]+(?:[A-Z][\w'’.-]*|(?:de|la|of|the|upon)\b))*"
_NAME = r"[A-Z][\w'’-]*(?:\s+[A-Z][\w'’-]*){0,2}"
_COUNTED = re.compile(r"(?:two|three|four|five|six|seven|eight|several|many|\d+)\b", re.I)
_CALLED = re.compile(rf"\b(?:named|called|whose name is|by the name of)\s+(?P<name>{_NAME})")
_SAME_KIN = {
    "mum": "mother",
    "mom": "mother",
    "mama": "mother",
    "dad": "father",
    "papa": "father",
    "grandma": "grandmother",
    "granny": "grandmother",
    "grandpa": "grandfather",
}
_BARE_KIN = re.compile(r"^(?=(?:Mum|Mom|Dad|Grandma|Grandpa|Granny)\b)")
_KIN_WITH_NAME = re.compile(
    rf"\b(?i:my|our)\s+(?:[a-z-]+\s+){{0,2}}?(?P<noun>{'|'.join(sorted(KIN, key=len)[::-1])}),?\s+"
    rf"(?P<name>[A-Z][\w'-]*)"
)
_HANDED = re.compile(
    r"^(?P<head>\w+ (?:gave|bought|told|showed|got|sent|visited|met|took|called)) (?:her|him)\b"
)
_PRONOUN_FIRST = re.compile(r"\W*(?:(?:well|so|and|yes|yeah|oh|no)\W+)*(?:he|she)\b", re.I)
_MENTION = re.compile(
    rf"\b(?:a|an|my|our|another)\s+(?:[\w-]+\s+){{0,2}}?({'|'.join(sorted(KIN, key=len)[::-1])})\b",
    re.IGNORECASE,
)
_IS_CALLED = re.compile(
    rf"^(?i:(?:and\s+)?(?:(?:he|she|it|they)(?:'s| is| are)\s+(?:called|named)"
    rf"|(?:his|her|its|their)\s+name(?:'s| is)|(?:i|we)\s+(?:called|named)\s+(?:him|her|it)))"
    rf"\s+(?P<name>{_NAME})"
)
_TOGETHER = re.compile(
    r"^we (?:are|have been) (?:(?:now|officially|already) )?(?:dating|together|a couple|seeing each"
    r"|in a relationship|going out)\b"
)
_BARE = frozenset(
    [
        "am",
        "moved",
        "got",
        "bought",
        "started",
        "quit",
        "adopted",
        "sold",
        "went",
        "joined",
        "became",
        "switched",
        "broke",
        "left",
        "work",
        "live",
        "love",
        "hate",
        "changed",
        "found",
        "took",
        "began",
        "just",
        "finally",
    ]
)
_WITH = re.compile(rf"^(?P<name>{_NAME}) and I (?P<rest>.+)$")
_KIN_SUBJECT = re.compile(
    rf"^(?:my|our)\s+(?P<adj>(?:(?:little|older|younger|big|twin|best|new|old|oldest|youngest|eldest"
    rf"|elder|late|dear|close|step|middle"
    rf"|ex)[\s-]+)*)(?P<noun>{'|'.join(sorted(KIN, key=len)[::-1])})"
    rf"(?:,?\s+(?P<name>(?-i:{_NAME})),?)?(?P<poss>['’]s)?\s+(?P<rest>.+)$",
    re.IGNORECASE,
)
_NAMED_SUBJECT = re.compile(rf"^(?P<name>{_NAME})\s+(?P<rest>.+)$")


@dataclass(frozen=True)
class _Clause:
    """What rules see: who, the words from the verb on, and the circumstances."""

    subject: str
    rest: str
    turn: Turn
    spans: tuple[Span, ...]
    ended: bool = False
    negative: bool = False

    def fact(
        self,
        predicate: str,
        value: str,
        *,
        text: str | None = None,
        ends: bool | None = None,
        many: bool | None = None,
        keep_time: bool = False,
        past: bool = False,
    ) -> Candidate | None:
        value = value if keep_time else _trim(self._timeless(value))
        value = value.strip(" .,!?;:'\"")
        if predicate.startswith("partner"):
            value = re.sub(r"^an? \w+ (?:named|called) (?=[A-Z])", "", value)
        if not value or value.lower() in STOP_WORDS or fold(value) == fold(self.subject):
            return None
        slot = slot_of(predicate)
        over = (self.ended or self.negative) if ends is None else ends
        words = text or sentence_of(self.subject, predicate, value, past=over or past)
        start, end = self.turn.time, None
        if self.spans:
            span = self.spans[0]
            if span.relation in ("in", "since", "for"):
                start = min(span.start, self.turn.time)
            if over:
                end = start
        return Candidate(
            text=words[:1].upper() + words[1:],
            sources=(self.turn.id,),
            subject=fold(self.subject),
            predicate=predicate,
            object=fold(value),
            entities=tuple(dict.fromkeys((fold(self.subject), *entities(f"x {value}")))),
            valid_from=start if not past else None,
            valid_to=self.turn.time if past else end,
            ends=over,
            many=slot.many if many is None else many,
        )

    def _timeless(self, value: str) -> str:
        for span in self.spans:
            place = value.lower().find(span.text.lower())
            if place >= 0:
                before = re.sub(
                    r"\b(?:on|in|at|since|for|from|by|around|about)\s*$", "", value[:place].rstrip()
                )
                value = f"{before.rstrip()} {value[place + len(span.text) :].lstrip()}".strip()
        return value


def extract(turns: Sequence[Turn], context: Sequence[Turn] = ()) -> list[Candidate]:
    """Return the facts that `turns` state, in order; `context` are the turns before them."""
    found: list[Candidate] = []
    before = list(context)
    for turn in turns:
        for candidate in _of_turn(turn, before, found):
            if not any(
                (c.text, c.ends, c.sources) == (candidate.text, candidate.ends, candidate.sources)
                for c in found
            ):
                found.append(candidate)
        before.append(turn)
    return found


def _of_turn(turn: Turn, before: Sequence[Turn], earlier: Sequence[Candidate]) -> list[Candidate]:
    if turn.role not in ("user", "human"):
        return []
    speaker = turn.name or "The user"
    text = _CODE.sub(" ", turn.content)
    found: list[Candidate] = []
    if before and before[-1].role == "assistant" and _CONFIRM.match(text.strip()):
        found += _confirmed(turn, before[-1], speaker)
    fixed = _correction(text, turn, before, earlier, speaker)
    found += fixed
    last_named = _named_before(turn, before) if _PRONOUN_FIRST.match(text) else None
    mentioned: tuple[str, str] | None = None
    for match in _SENTENCE.finditer(text.replace("’", "'")):
        sentence = _TAG.sub(".", match.group().strip())
        sentence = _AS_KNOWN.sub("", _ASIDE.sub("", sentence))
        if len(sentence) < 5 or sentence.endswith("?") or HYPOTHETICAL.search(sentence):
            continue
        if fixed and _MEANT.search(sentence):
            continue
        both = _WITH.match(FILLERS.sub("", sentence))
        if both is not None:  # "Tom and I broke up": the speaker's fact, with Tom
            last_named, rest = both["name"], both["rest"].rstrip(" .!")
            sentence = f"I {rest} with {last_named}" if len(rest.split()) < 4 else f"I {rest}"
        follows: str | None = None
        for part in _CLAUSE.split(sentence):
            told = _IS_CALLED.match(part.strip())
            if told is not None and mentioned is not None:
                slot, label = mentioned
                clause = _clause_of(speaker, part, part, turn)
                found += _list(_has(clause, slot, label, told["name"]))
                last_named = told["name"]
                continue
            before_named = last_named
            new, last_named = _of_clause(part, speaker, turn, last_named, follows)
            if re.match(r"\W*(?:\w+\W+){0,3}?(?:i|we)\b", part, re.I):
                follows = speaker
            elif last_named != before_named or re.match(r"(?:he|she)\b", part, re.I):
                follows = last_named
            found += new
            for seen in _KIN_WITH_NAME.finditer(part):
                name = re.sub(r"'s$", "", seen["name"])
                noun = _SAME_KIN.get(seen["noun"], seen["noun"])
                slot_seen = kin_of(noun) or "friend"
                if any(name.lower() in (c.object or "") for c in new) or seen["noun"] == "pet":
                    continue
                clause = _clause_of(speaker, part, part, turn)
                if slot_seen == "partner":
                    found += _list(clause.fact(f"partner:{noun}", name, keep_time=True))
                else:
                    found += _list(_has(clause, slot_seen, noun, name))
            kin = _MENTION.findall(part)
            if kin and (slot_found := kin_of(kin[-1])) not in (None, "partner"):
                mentioned = (str(slot_found), kin[-1].lower())
    return found


def _named_before(turn: Turn, before: Sequence[Turn]) -> str | None:
    """Return whom the speaker named last, in the two turns before."""
    mine = [t for t in before[-4:] if (t.name, t.role) == (turn.name, turn.role)]
    for said in reversed(mine[-2:]):
        for sentence in reversed(_SENTENCE.findall(said.content)):
            words = FILLERS.sub("", sentence.strip())
            kin = _KIN_SUBJECT.match(words)
            if kin is not None and kin["name"] and kin["name"][0].isupper():
                return str(kin["name"].split()[0])
            named = _NAMED_SUBJECT.match(words)
            if named is not None and _is_subject(named["name"], named["rest"]):
                return str(named["name"])
    return None


def _is_subject(name: str, rest: str) -> bool:
    verb = rest.split(" ", 1)[0].lower()
    known = verb in BASE or verb in PAST or verb in _RULES or verb.endswith("ed")
    return known and name.split()[0].lower() not in PLAIN and fold(name) != "i"


def _confirmed(turn: Turn, asked: Turn, speaker: str) -> list[Candidate]:
    """Turn "So you live in Rome?" followed by "Yes" into a fact of the speaker."""
    sentences = _SENTENCE.findall(asked.content.replace("’", "'"))
    last = sentences[-1].strip() if sentences else ""
    told = re.match(
        r"^(?:so|then|and|ah|oh|i see|got it|if i remember|just to confirm)?[\s,:]*"
        r"(?P<rest>(?:you|your)\b.+?)(?:,?\s*(?:right|correct|yes|is that right|don't you"
        r"|aren't you))?[.?!]*$",
        last,
        re.IGNORECASE,
    )
    if told is None:
        return []
    words = re.sub(r"\byou're\b|\byou are\b", "I am", told["rest"], flags=re.I)
    words = re.sub(r"\byour\b", "my", re.sub(r"\byou\b", "I", words, flags=re.I), flags=re.I)
    facts, _ = _of_clause(words, speaker, turn, None)
    return [replace(fact, sources=(turn.id, asked.id)) for fact in facts]


def _correction(
    text: str, turn: Turn, before: Sequence[Turn], earlier: Sequence[Candidate], speaker: str
) -> list[Candidate]:
    """Turn "sorry, I meant Thursday, not Tuesday" into the end of one fact and another fact."""
    match = _MEANT.search(text.replace("’", "'"))
    if match is None:
        return []
    new = match["new"].strip()
    old = (match["old"] or "").strip()
    mine = [t for t in before[-6:] if (t.name, t.role) == (turn.name, turn.role)]
    for said in reversed(mine[-2:]):
        stated = [c for c in earlier if c.sources[0] == said.id] or extract([said])
        for fact in reversed(stated):
            value = fact.object or ""
            if old and fold(old) not in fact.text.lower():
                continue
            if not old and len(stated) > 1 and fact is not stated[-1]:
                continue
            wrong = old or value
            position = fold(fact.text).find(fold(wrong))
            if position < 0:
                continue
            words = fact.text[:position] + new + fact.text[position + len(wrong) :]
            fresh = fold(new) if not old else value.replace(fold(old), fold(new))
            return [
                replace(fact, ends=True, sources=(turn.id,), many=True),
                replace(
                    fact,
                    text=words,
                    object=fresh,
                    sources=(turn.id,),
                    entities=tuple(dict.fromkeys((fold(speaker), *entities(f"x {new}")))),
                ),
            ]
    return []


def _of_clause(
    part: str, speaker: str, turn: Turn, named: str | None, follows: str | None = None
) -> tuple[list[Candidate], str | None]:
    clause = FILLERS.sub("", part.strip()).strip()
    if len(clause) < 4:
        return [], named
    clause = CONTRACTED.sub(lambda m: CONTRACTIONS[m.group().lower()], clause)
    clause = _BARE_KIN.sub("my ", clause)
    if named:
        clause = _HANDED.sub(rf"\g<head> {named}", clause)
    low = clause.lower()
    found: list[Candidate] = []
    if low.startswith(("call me ", "please call me ", "you can call me ", "just call me ")):
        value = clause.lower().index("call me ") + 8
        made = _clause_of(speaker, clause, clause, turn).fact("address", clause[value:])
        return [made] if made else [], named
    first = low.split(" ", 1)[0]
    lead = _time_lead(clause, turn.time) if first not in ("i", "we", "my", "our") else None
    if lead is not None:
        clause, spans_text = lead
        low, first = clause.lower(), clause.lower().split(" ", 1)[0]
        clause = f"{clause} {spans_text}"
    if first in ("my", "our"):
        return _mine(clause, speaker, turn, named)
    if first == "we" and named and _TOGETHER.match(low):
        made = _clause_of(speaker, clause, clause, turn).fact(
            "partner:partner", named, keep_time=True
        )
        return _list(made), named
    if first in ("i", "we") and " " in clause:
        return _spoken(speaker, clause.split(" ", 1)[1], turn), named
    if first in ("he", "she") and named and " " in clause:
        return _spoken(named, clause.split(" ", 1)[1], turn), named
    named_match = _NAMED_SUBJECT.match(clause)
    if named_match is not None and _is_subject(named_match["name"], named_match["rest"]):
        name = named_match["name"]
        return _spoken(name, named_match["rest"], turn, teller=speaker), name
    if first in _BARE and not follows:
        found = _spoken(speaker, clause, turn)
    elif first in _BARE and follows is not None:
        teller = speaker if follows != speaker else None
        found = _spoken(follows, clause, turn, teller=teller)
    return found, named


def _time_lead(clause: str, now: datetime) -> tuple[str, str] | None:
    """Move a leading time to the end: "Last week I moved" becomes "I moved last week"."""
    match = re.match(r"^(?P<lead>[^,]{3,40}?),?\s+(?P<rest>(?:i|we|my|our)\s.+)$", clause, re.I)
    if match is None:
        return None
    if resolve(match["lead"], now):
        return match["rest"].rstrip(" .!"), match["lead"]
    return match["rest"], ""


def _clause_of(subject: str, rest: str, whole: str, turn: Turn) -> _Clause:
    return _Clause(subject, rest, turn, tuple(resolve(whole, turn.time)))


def _spoken(subject: str, rest: str, turn: Turn, *, teller: str | None = None) -> list[Candidate]:
    """Return the facts of "subject rest", `rest` beginning with a verb."""
    ended = _ENDED.search(rest) is not None
    if ended:
        rest = _ENDED.sub("", rest)
    words = [w for i, w in enumerate(rest.split()) if i > 4 or w.lower().strip(",") not in ADVERBS]
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
        if verb in PARTICIPLE and verb != "had":
            rest = PARTICIPLE[verb] + rest[have_been.end() :]
        elif have_been["ing"]:
            rest = f"am {verb}" + rest[have_been.end() :]
        elif verb.endswith("ed") or verb in PAST:
            rest = verb + rest[have_been.end() :]
        elif verb == "been":
            rest = "am" + rest[have_been.end() :]
    clause = replace(_clause_of(subject, rest, rest, turn), ended=ended, negative=negative or ended)
    verb = rest.split(" ", 1)[0].lower() if rest else ""
    for pattern, rule in _RULES.get(verb, ()):
        match = pattern.match(rest)
        if match is not None:
            made = rule(clause, match)
            if made is not None:
                facts = made if isinstance(made, list) else [made]
                return [fact for fact in facts if fact is not None]
    if teller is not None:
        clause = replace(clause, rest=_told_by(clause.rest, teller))
    if not negative and (verb in PAST or (verb.endswith("ed") and len(verb) > 4)):
        return _event(clause, verb)
    return []


def _event(clause: _Clause, verb: str) -> list[Candidate]:
    """Keep what was done, in the third person and with its date."""
    words = clause.rest.split()
    if verb in DULL or len(words) < 3:
        return []
    body = _third_person(clause.rest, clause.subject)
    made = clause.fact("did", body, text=f"{clause.subject} {_dated(body, clause)}", keep_time=True)
    return [made] if made else []


def _dated(body: str, clause: _Clause) -> str:
    """Replace the first relative time by the date it means, or put the date behind."""
    for span in clause.spans:
        place = body.lower().find(span.text.lower())
        if place < 0 or describe(span).lower() in body.lower():
            continue
        said = re.sub(r"^(?:in|on|since|during|over|around|by|at|about)\s+", "", span.text.lower())
        lead = re.sub(
            r"\b(?:on|in|at|since|for|around|by|from|until|before|after)\s*$",
            "",
            body[:place].rstrip(),
        ).rstrip()
        after = body[place + len(span.text) :]
        joint = {"day": "on ", "month": "in ", "year": "in ", "season": "in "}.get(
            span.grain, "in "
        )
        if span.relation == "for":
            return body
        if span.relation in ("since", "before", "after", "until") or span.vague or not said:
            joint = ""
        if span.grain == "weekend":
            joint = "on "
        return f"{lead} {joint}{describe(span)}{after}".strip()
    return body


def _told_by(text: str, teller: str) -> str:
    text = re.sub(r"\bmy\b", f"{teller}'s", text, flags=re.I)
    return re.sub(r"\b(?:me|us)\b", teller, text, flags=re.I)


_PRONOUNS = {
    "my": "their",
    "our": "their",
    "me": "them",
    "myself": "themselves",
    "us": "them",
    "i": "they",
    "we": "they",
    "mine": "theirs",
    "am": "are",
}
_PRONOUN = re.compile(r"\b(?:my|our|me|myself|us|i|we|mine|am)\b", re.IGNORECASE)


def _third_person(text: str, subject: str) -> str:
    return _PRONOUN.sub(lambda m: _PRONOUNS[m.group().lower()], text)


def _trim(value: str) -> str:
    return _TAIL.sub("", value).strip(" .,!?;:'\"")


# -- "my ..." --------------------------------------------------------------------------------------

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
    rf"^(?:my|our) (?P<what>{APPOINTMENTS})(?: (?:with|to|from|for|at) (?P<who>.+?))? "
    r"(?:is|has been|was|got)(?: now)?"
    r"(?: scheduled| booked| set| planned| moved| rescheduled| postponed| pushed| changed|"
    r" shifted)?"
    r"(?: (?:back|up|forward|out))?(?: to| for| on| at)? (?P<o>.+)$",
    re.IGNORECASE,
)
_MY_CANCELLED = re.compile(
    rf"^(?:my|our) (?P<what>{APPOINTMENTS})(?: with .+?)? (?:is|has been|was|got) "
    r"(?:cancell?ed|called off)",
    re.IGNORECASE,
)
_MY_ATTRIBUTE = re.compile(r"^my (?P<p>[a-z][a-z -]{2,25}?) (?:is|are) (?:now )?(?P<o>.+)$", re.I)
_MY_STOLEN = re.compile(
    r"^(?:my|our) (?P<o>[\w' -]+?) (?:finally |just |sadly )?(?:(?:was|got|has been|were) "
    r"(?:stolen|totalled|wrecked|destroyed|sold)|died|broke down|gave out|fell apart)",
    re.IGNORECASE,
)
_GONE = re.compile(
    r"^(?:died|passed away|passed|ran away|is gone|has died|has passed away)\b", re.I
)
_IS_NAMED = re.compile(
    rf"^(?:is |are |was )?(?:named|called|name is|names are|is called|is named)\s+(?P<name>{_NAME})"
)
_JUST_NAME = re.compile(rf"^is (?P<name>{_NAME})$")


def _mine(
    clause: str, speaker: str, turn: Turn, named: str | None
) -> tuple[list[Candidate], str | None]:
    clause = clause.rstrip(" .!")
    whole = _clause_of(speaker, clause, clause, turn)
    cancelled = _MY_CANCELLED.match(clause)
    if cancelled is not None:
        made = whole.fact(
            _appointment(cancelled["what"]),
            "cancelled",
            ends=True,
            text=(f"{speaker}'s {cancelled['what']} was cancelled"),
        )
        return [made] if made else [], named
    if whole.spans:
        dated = _MY_DATE.match(clause)
        if dated is not None:
            return _list(_booked(whole, dated["what"], dated["who"], dated["o"])), named
    kin = _KIN_SUBJECT.match(clause)
    if kin is not None:
        return _kin(kin, speaker, turn)
    stolen = _MY_STOLEN.match(clause)
    if stolen is not None:
        text = f"{speaker}'s {_dated(clause[3:].strip(), whole)}"
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
            return _list(_birthday(whole, value)), named
        if predicate == "drives":
            value = value if re.match(r"an? ", value) else f"a {value}"
        return _list(whole.fact(predicate, value, ends=negative)), named
    attribute = _MY_ATTRIBUTE.match(clause)
    if attribute is not None and len(attribute["o"].split()) <= 6:
        noun = attribute["p"].lower()
        value = attribute["o"]
        if noun.split()[-1] not in ("guess", "point", "thing", "goal", "day", "life", "plan"):
            negative = value.lower().startswith(("not ", "no longer "))
            if not negative:
                return _list(whole.fact(f"attribute:{noun}", value)), named
    return [], named


def _kin(match: re.Match[str], speaker: str, turn: Turn) -> tuple[list[Candidate], str | None]:
    """Facts about the people and animals one has."""
    noun = match["noun"].lower()
    noun = _SAME_KIN.get(noun, noun)
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
    here = _clause_of(speaker, rest, rest, turn)
    if _GONE.match(rest):
        ended = here.fact(
            slot if slot != "partner" else f"partner:{noun}",
            name or noun,
            ends=True,
            text=f"{speaker}'s {label}{' ' + name if name else ''} {_trim(rest)}",
        )
        return _list(ended), name
    if match["poss"] and not name:
        name_of = re.match(
            r"^(?:birthday|name|favou?rite .+?|job) (?:is|are) (?P<o>.+)$", rest, re.I
        )
        if name_of is None:
            return [], None
        who = f"{speaker}'s {label}"
        return _mine(f"my {rest}", who, turn, None)[0], who
    if name:
        if slot == "partner":
            facts.append(here.fact(f"partner:{noun}", name, keep_time=True, ends=False))
        elif match["poss"] is None or given is not None:
            facts.append(_has(here, slot, label, name))
        else:
            return _mine(f"my {rest}", name, turn, None)[0], name
    subject = f"{speaker}'s {label}" + (f" {name}" if name else "")
    if rest:
        facts += _spoken(subject, rest, turn)
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


def _has(clause: _Clause, slot: str, label: str, name: str | None) -> Candidate | None:
    article = "an " if label[:1] in "aeiou" else "a "
    article = "" if _COUNTED.match(label) else article
    value = f"{article}{label}" + (f" named {name}" if name else "")
    made = clause.fact(slot, value, keep_time=True, ends=False)
    return made and replace(made, object=fold(f"{label} {name}" if name else label))


def _list(made: Candidate | None) -> list[Candidate]:
    return [made] if made is not None else []


def _appointment(what: str) -> str:
    words = [
        w for w in fold(what).split() if w not in ("a", "an", "the", "my", "our", "new", "next")
    ]
    return "appointment:" + " ".join(words)


def _booked(clause: _Clause, what: str, who: str | None, when: str) -> Candidate | None:
    if not clause.spans or clause.spans[0].end < clause.turn.time:
        return None
    span = clause.spans[0]
    date = describe(span)
    hour = re.search(
        r"\b(?:at )?(\d{1,2}(?::\d\d)? ?(?:am|pm|a\.m\.|p\.m\.|o'clock)|\d{1,2}:\d\d|noon)",
        clause.rest,
        re.IGNORECASE,
    )
    value = date + (f" at {hour[1]}" if hour else "")
    predicate = _appointment(what)
    noun = predicate.partition(":")[2]
    owner = f"{clause.subject} has {'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
    if who:
        owner += f" with {_trim(who)}"
    joint = "on" if span.grain == "day" else "in"
    made = clause.fact(predicate, value, text=f"{owner} {joint} {value}", keep_time=True)
    return made and replace(made, valid_from=clause.turn.time)


def _birthday(clause: _Clause, value: str) -> Candidate | None:
    if not clause.spans:
        return None
    named = re.search(
        r"(?:[A-Z][a-z]+ \d{1,2}(?:st|nd|rd|th)?|\d{1,2}(?:st|nd|rd|th)? (?:of )?[A-Z][a-z]+)",
        value,
    )
    span = clause.spans[0]
    exact = named.group() if named else re.sub(r" \d{4}$", "", describe(span))
    made = clause.fact("birthday", exact, keep_time=True)
    return made and replace(made, valid_from=clause.turn.time)


# -- rules by verb ---------------------------------------------------------------------------------

_Made = Candidate | list[Candidate | None] | None
_Rule = Callable[[_Clause, "re.Match[str]"], _Made]


def _take(predicate: str, *, ends: bool | None = None) -> _Rule:
    def rule(clause: _Clause, match: re.Match[str]) -> _Made:
        return clause.fact(predicate, match["o"], ends=ends)

    return rule


def _each(predicate: str) -> _Rule:
    """One fact for each part of a list: "nuts, eggs and shellfish"."""

    def rule(clause: _Clause, match: re.Match[str]) -> _Made:
        parts = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", _listed(clause._timeless(match["o"])))
        return [clause.fact(predicate, part) for part in parts if part]

    return rule


def _listed(value: str) -> str:
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


def _ending(predicate: str) -> _Rule:
    return _take(predicate, ends=True)


def _was(predicate: str) -> _Rule:
    """The fact held once: kept as past, and ends what the store still believes."""

    def rule(clause: _Clause, match: re.Match[str]) -> _Made:
        return clause.fact(predicate, match["o"], ends=True, past=True)

    return rule


def _age(clause: _Clause, match: re.Match[str]) -> _Made:
    if not 0 < int(match["o"]) < 120:
        return None
    facts: list[Candidate | None] = [clause.fact("age", match["o"])]
    if match.groupdict().get("p"):
        facts.append(clause.fact("partner:spouse", match["p"], keep_time=True))
    return facts


def _no_more(clause: _Clause, match: re.Match[str]) -> _Made:
    """ "I am not running anymore": whatever slot it stood in."""
    if not clause.ended:
        return None
    value = match["o"]
    text = f"{clause.subject} is no longer {_trim(value)}"
    return [
        clause.fact(slot, value, ends=True, text=text)
        for slot in ("hobby", "doing", "routine", "likes", "learning")
    ]


def _taste(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"]
    if re.match(
        r"^(?:it|that|this|them|you|your|how|what|when|the idea|to see|to hear)\b", value, re.I
    ):
        return None
    if clause.negative:
        text = f"{clause.subject} does not like {_trim(value)}"
        if clause.ended:
            return clause.fact("likes", value, ends=True, text=text + " anymore")
        return clause.fact("dislikes", value, ends=False, text=text)
    verb = match["v"].lower()
    most = re.match(r"^(?P<a>.+?)\s+(?:more than|over|rather than|to)\s+(?P<b>.+)$", value)
    if verb == "prefer":
        kept = most["a"] if most else value
        text = f"{clause.subject} prefers {_trim(value)}"
        return clause.fact("prefers", kept, text=text)
    known = {"love": "loves", "adore": "adores", "enjoy": "enjoys"}.get(verb, "likes")
    return clause.fact(
        "likes", value, text=f"{clause.subject} {known} {_trim(clause._timeless(value))}"
    )


def _hate(clause: _Clause, match: re.Match[str]) -> _Made:
    if re.match(r"^(?:it|that|this|them|to|when|how)\b", match["o"], re.I):
        return None
    if clause.negative and match["v"].lower() != "can stand":
        return clause.fact("dislikes", match["o"], ends=True)
    return clause.fact("dislikes", match["o"], ends=False)


def _job(clause: _Clause, match: re.Match[str]) -> _Made:
    value = clause._timeless(match["o"])
    at = re.match(rf"^(?P<job>.+?) (?:at|for|in|with) (?:the )?(?P<place>{_PLACE})", value)
    title = _trim(at["job"] if at else value)
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


def _employed(clause: _Clause, match: re.Match[str]) -> _Made:
    value = clause._timeless(match["o"])
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
            facts.append(clause.fact("job", job))
    if both["place"]:
        place = re.sub(r" as (?P<job>.+)$", "", both["place"])
        job_after = re.search(r" as (?P<job>.+)$", both["place"])
        if job_after:
            facts.append(clause.fact("job", job_after["job"]))
        if not re.match(
            r"^(?:home|night|the moment|least|a living|myself|free|years|weekends)\b", place, re.I
        ):
            facts.append(clause.fact("works_at", place))
    return facts or None


def _have(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"]
    called = _CALLED.search(value)
    head = _trim(clause._timeless(value[: called.start()] if called else value))
    words = re.split(r"\s+(?:from|with|of|in|at|for|that|on|to)\s+", head)[0].split()
    if not words:
        return None
    noun = words[-1].lower()
    slot = kin_of(noun)
    if slot is not None:
        head = " ".join(words)
    count = re.match(r"^(?:a|an|one|two|three|four|five|six|\d+|another|some|no)\b", value, re.I)
    if slot is not None and (count or called):
        if clause.negative:
            return clause.fact(slot, noun, ends=True)
        name = called["name"] if called else None
        label = re.sub(r"^(?:a|an|one|another) ", "", head, flags=re.I)
        if slot == "partner":
            if name is None:
                return None
            return clause.fact("partner:" + noun, name, keep_time=True)
        facts: list[Candidate | None] = []
        names: list[str | None] = [name] if name else [None]
        if name and called:
            more = re.match(rf"\s*(?:,|and|&)\s*(?P<more>{_NAME})", value[called.end() :])
            if more:
                names.append(more["more"])
        listed = re.search(rf"[,:] (?P<list>{_NAME}(?:(?:,| and|, and| &) {_NAME})*)$", value)
        if listed is not None and called is None:
            names = list(re.split(r", and |, | and | & ", listed["list"]))
        for one in names:
            if re.match(r"^(?:two|three|four|five|six|\d+)\b", label, re.I) and one is not None:
                label_one = noun[:-1] if noun.endswith("s") else noun
                label_one = "child" if noun == "children" else label_one
                facts.append(_has(clause, slot, label_one, one))
            elif re.match(r"^(?:two|three|four|five|six|\d+)\b", label, re.I):
                facts.append(clause.fact(slot, label, ends=False, keep_time=True))
            else:
                facts.append(_has(clause, slot, label, one))
        return facts
    booked = re.match(
        rf"^(?:an? |another |my )?(?P<what>{APPOINTMENTS})(?: with (?P<who>(?:(?:the|my|a|an"
        rf"|dr\.?) )?[\w.'-]+))?(?=\s|$)",
        value,
        re.IGNORECASE,
    )
    if booked is not None and clause.spans:
        who = booked["who"]
        if who is None and (w := re.search(r" with (.+?)(?: on | at | next | this |$)", value)):
            who = clause._timeless(w[1])
        made = _booked(clause, booked["what"], who, value)
        if made is not None:
            return made
    allergy = re.match(
        r"^(?:an? )?(?:(?:severe|bad|serious|mild) )?(?:(?P<a>[\w ]+?) )?allerg(?:y|ies)"
        r"(?: to (?P<b>.+))?$",
        _trim(value),
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
        return clause.fact("owns", value)
    return None


def _bought(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"]
    if not re.match(
        r"^(?:myself )?(?:a|an|another|some|two|three|my first|my own|the|\d+|new)\s", value, re.I
    ):
        return None
    value = re.sub(r"^myself ", "", value)
    called = _CALLED.search(value)
    head = _trim(clause._timeless(value[: called.start()] if called else value))
    first = re.split(r"\s+(?:from|with|of|in|at|for|that|on|to)\s+", head)[0]
    noun = first.split()[-1].lower() if first else ""
    slot = kin_of(noun)
    facts: list[Candidate | None] = []
    if slot == "pet":
        label = re.sub(r"^(?:a|an|another|the|my first) ", "", head, flags=re.I)
        facts.append(_has(clause, "pet", label, called["name"] if called else None))
        return facts
    if match["v"].lower() == "got" and (noun in VAGUE or noun in ("job", "promotion", "offer")):
        return None
    verb = {"got": "got", "adopted": "adopted", "rescued": "rescued"}.get(
        match["v"].lower(), "bought"
    )
    owned = re.sub(r"^(?:my first|my own|the|new|another) ", "a ", head, flags=re.I)
    predicate = "drives" if _CAR.search(first) else "owns"
    facts.append(
        clause.fact(
            predicate,
            owned,
            text=f"{clause.subject} {_dated(verb + ' ' + _third_person(value, ''), clause)}",
        )
        if predicate == "owns"
        else clause.fact(predicate, owned)
    )
    return facts


def _lost(clause: _Clause, match: re.Match[str]) -> _Made:
    value = re.sub(r"^(?:my|our|the|a|an)\s+", "", _trim(clause._timeless(match["o"])), flags=re.I)
    words = value.split()
    if not words:
        return None
    if words[0].lower() in ("job", "position"):
        return [_gone(clause, "works_at"), _gone(clause, "job")]
    slot = kin_of(words[0]) or kin_of(words[-1])
    predicate = slot or ("drives" if words[-1].lower() == "car" else "owns")
    text = f"{clause.subject} {_dated(_third_person(clause.rest, ''), clause)}"
    facts = [clause.fact(predicate, value, ends=True, text=text)]
    if predicate == "drives":
        facts.append(clause.fact("owns", value, ends=True, text=text))
    return facts


def _gone(clause: _Clause, predicate: str) -> Candidate | None:
    """End whatever value a single-valued slot has."""
    text = f"{clause.subject} {_dated(_third_person(clause.rest, ''), clause)}"
    return clause.fact(predicate, ANY, ends=True, text=text)


def _left(clause: _Clause, match: re.Match[str]) -> _Made:
    value = _trim(clause._timeless(match["o"]))
    at = re.match(
        r"^(?:my |the )?(?:old |current )?(?:job|role|position|work|post)(?: (?:at|with|as)"
        r" (?P<p>.+))?$",
        value,
        re.I,
    )
    if at is not None:
        return [_gone(clause, "works_at"), _gone(clause, "job")]
    if re.match(r"^\w+ing\b", value):
        return _stopped(clause, match)
    if value.lower() in ("the city", "the country", "home", "town") or match["v"].lower() == "left":
        if re.match(rf"^(?:my )?(?:the )?(?P<p>{_PLACE})$", value):
            return clause.fact("works_at", value, ends=True)
        return None
    return [clause.fact(p, value, ends=True) for p in ("hobby", "likes", "doing")]


_CAR = re.compile(
    r"\b(?:car|truck|van|suv|tesla|toyota|honda|ford|bmw|kia|volvo|skoda|fiat|audi|vw|volkswagen"
    r"|mercedes|nissan|mazda|renault|hyundai|subaru|jeep|lexus|porsche|citroen|opel|chevrolet)\b",
    re.IGNORECASE,
)
_DRINK = re.compile(
    r"^(?:coffee|tea|alcohol|beer|wine|soda|milk|espresso|decaf|juice|cola)\b", re.I
)


def _stopped(clause: _Clause, match: re.Match[str]) -> _Made:
    value = _trim(clause._timeless(match["o"]))
    words = value.split(" ", 1)
    verb, rest = words[0].lower(), words[1] if len(words) > 1 else ""
    text = f"{clause.subject} stopped {value}"
    if verb == "eating" and rest:
        return [
            clause.fact("avoids", rest, ends=False, text=text),
            clause.fact("likes", rest, ends=True, text=text),
        ]
    if verb == "drinking" and rest:
        return [clause.fact(p, rest, ends=True, text=text) for p in ("drinks", "likes")]
    if verb in ("working",):
        return [_gone(clause, "works_at"), _gone(clause, "job")]
    if verb == "being" and rest:
        return clause.fact("diet", re.sub(r"^an? ", "", rest), ends=True, text=text)
    if verb == "living":
        return _gone(clause, "lives_in")
    if verb in ("learning", "studying"):
        return [clause.fact(p, rest or ANY, ends=True, text=text) for p in ("learning", "studies")]
    if _DRINK.match(value):
        return [clause.fact(p, value, ends=True, text=text) for p in ("drinks", "likes")]
    return [
        clause.fact(p, value, ends=True, text=text) for p in ("hobby", "likes", "routine", "doing")
    ]


def _hobby(clause: _Clause, match: re.Match[str]) -> _Made:
    value = _trim(clause._timeless(match["o"]))
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


def _began(clause: _Clause, match: re.Match[str]) -> _Made:
    value = _trim(clause._timeless(match["o"])) or match["o"]
    value = re.sub(r"\s*,\s*as\b", " as", clause._timeless(match["o"])).strip(" ,")
    value = value if " as " in f" {value}" else _trim(value)
    words = value.split(" ", 1)
    verb, rest = words[0].lower(), words[1] if len(words) > 1 else ""
    when = _dated(clause.rest, clause)
    text = f"{clause.subject} {_third_person(when, '')}"
    job = re.match(
        r"^(?:working|work|a (?:new )?(?:job|position|role)|my new job)(?:,? (?P<o>.+))?$",
        value,
        re.I,
    )
    if job is not None:
        if job["o"]:
            inner = re.match(r"(?P<o>.+)", job["o"])
            assert inner is not None
            return _employed(clause, inner)
        return None
    if re.match(r"^(?:at|as|for|with)\b", value, re.I):
        inner = re.match(r"(?P<o>.+)", value)
        assert inner is not None
        return _employed(clause, inner)
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
    return clause.fact("did", clause.rest, text=text, keep_time=True)


def _plan(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"].strip()
    if clause.negative:
        return clause.fact("plan", value, ends=True)
    if (
        re.match(
            r"^(?:be|say|tell|know|thank|see you|keep|try|check|think|hear|let|get back|need"
            r"|remember|have to|go now|miss)\b",
            value,
            re.I,
        )
        or len(value.split()) < 2
    ):
        return None
    body = _third_person(value, "")
    dated = _dated(body, clause)
    verb = match.group().split(" ", 1)[0].lower()
    how = "plans to"
    if re.match(r"^(?:an?|the|their|some|on|more|new|two|three)\b", body, re.I):
        how = "wants" if verb == "want" else "plans"
    elif body[0].isupper():
        how = "is going to"
    made = clause.fact("plan", body, text=f"{clause.subject} {how} {dated}", keep_time=True)
    return made and replace(made, valid_from=clause.turn.time)


def _appointment_with(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"]
    if not clause.spans or clause.spans[0].end <= clause.turn.time:
        return None
    who = _trim(clause._timeless(value))
    body = f"{match['v'].lower()} {value}"
    made = clause.fact(
        "plan", who, text=f"{clause.subject} is {_dated(_third_person(body, ''), clause)}"
    )
    return made and replace(made, valid_from=clause.turn.time)


def _married(clause: _Clause, match: re.Match[str]) -> _Made:
    how = match["how"].lower()
    noun = {"married": "spouse", "engaged": "fiance"}.get(how, "partner")
    who = match["o"]
    if who:
        return clause.fact(
            f"partner:{noun}",
            who,
            text=f"{clause.subject} is {how} to {_trim(clause._timeless(who))}"
            if how in ("married", "engaged")
            else None,
        )
    return clause.fact("partner:status", how, text=f"{clause.subject} is {how}")


def _split_up(clause: _Clause, match: re.Match[str]) -> _Made:
    text = f"{clause.subject} {_dated(_third_person(clause.rest, ''), clause)}"
    return clause.fact("partner", match["o"] or ANY, ends=True, text=text)


def _think(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"]
    if (
        clause.negative
        or len(value.split()) < 3
        or re.match(r"^(?:i|it|so|that|about|of|you|we)\b", value, re.I)
    ):
        return None
    return clause.fact("thinks", value, keep_time=True)


def _is(clause: _Clause, match: re.Match[str]) -> _Made:
    """What someone is: a name, a job, a state."""
    value = _trim(clause._timeless(match["o"]))
    if re.fullmatch(_NAME, value) and value.split()[0].lower() not in PLAIN and not clause.negative:
        return clause.fact("name", value) if len(value.split()) <= 2 else None
    return None


def _doing(clause: _Clause, match: re.Match[str]) -> _Made:
    if re.match(
        r"^(?:going|trying|thinking|looking forward|feeling|getting|doing|having|saying|being"
        r"|coming|hoping|kidding|wondering|loving|enjoying)\b",
        match["o"],
        re.I,
    ):
        return None
    if clause.negative:
        return clause.fact("doing", match["o"], ends=True)
    return clause.fact("doing", match["o"])


def _swapped(clause: _Clause, match: re.Match[str]) -> _Made:
    """One thing ends and another begins in the same slot; which slot is left to the store."""
    text = f"{clause.subject} {_dated(_third_person(clause.rest, ''), clause)}"
    old = re.sub(r"^(?:my|our|his|her|their|the)\s+", "", match["a"])
    slot = "drives" if _CAR.search(match["a"]) else "hobby"
    slot = "drinks" if _DRINK.match(old) else slot
    ends = [clause.fact(p, old, ends=True, text=text) for p in dict.fromkeys((slot, "owns"))]
    return [*ends, clause.fact(slot, match["o"], ends=False, text=text)]


def _routine(clause: _Clause, match: re.Match[str]) -> _Made:
    verb = match["v"].lower()
    shown = {"go": "goes", "wake": "wakes", "do": "does"}.get(verb, verb + "s")
    text = f"{clause.subject} {shown} {_trim(_third_person(match['o'], ''))}"
    if clause.negative:
        return clause.fact("routine", f"{verb} {match['o']}", ends=True)
    return clause.fact("routine", f"{verb} {match['o']}", text=text, keep_time=True)


def _eat(clause: _Clause, match: re.Match[str]) -> _Made:
    value = match["o"]
    if clause.negative:
        return [
            clause.fact(
                "avoids", value, ends=False, text=f"{clause.subject} does not eat {_trim(value)}"
            ),
        ]
    if re.match(r"^(?:again|meat again)", value):
        return None
    again = re.match(r"^(?P<o>.+?) (?:again|now)$", value)
    if again:
        return [clause.fact("avoids", again["o"], ends=True), clause.fact("diet", ANY, ends=True)]
    return None


def _drink(clause: _Clause, match: re.Match[str]) -> _Made:
    if clause.negative:
        return [
            clause.fact(
                p,
                match["o"],
                ends=True,
                text=f"{clause.subject} does not drink {_trim(match['o'])}",
            )
            for p in ("drinks", "likes")
        ]
    value = re.sub(
        r"^(?:way )?(?:too much|a lot of|lots of|plenty of|mostly|only)\s+", "", match["o"]
    )
    return clause.fact("drinks", value)


def _born(clause: _Clause, match: re.Match[str]) -> _Made:
    place = re.search(rf"\bin (?P<o>{_PLACE})", match["o"])
    facts: list[Candidate | None] = []
    if place and not re.match(r"^(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)", place["o"]):
        made = clause.fact("from", place["o"])
        facts.append(made and replace(made, valid_from=clause.turn.time))
    if clause.spans:
        when = clause.spans[0]
        made = clause.fact("birthday", describe(when), keep_time=True)
        facts.append(made and replace(made, valid_from=clause.turn.time))
    return facts


def _hurt(clause: _Clause, match: re.Match[str]) -> _Made:
    body = _dated(_third_person(clause.rest, ""), clause)
    return clause.fact("health", f"{match['v']} {match['o']}", text=f"{clause.subject} {body}")


def _lives(clause: _Clause, match: re.Match[str]) -> _Made:
    inner = re.match(rf"^(?:a|an|the|our|my) .+? in (?P<place>{_PLACE})", match["o"])
    return clause.fact("lives_in", inner["place"] if inner else match["o"])


def _moved(clause: _Clause, match: re.Match[str]) -> _Made:
    place = clause._timeless(match["o"])
    place = re.sub(
        r"^(?:a new (?:place|flat|apartment|house) in|a (?:flat|house|apartment) in) ", "", place
    )
    if re.match(
        r"^(?:a|an|my|our|the) (?:new |bigger |smaller )?(?:house|place|flat|apartment|home)\b",
        place,
        re.I,
    ):
        return None
    return clause.fact("lives_in", place)


def _compiled(
    table: dict[str, tuple[tuple[str, _Rule], ...]],
) -> dict[str, list[tuple[re.Pattern[str], _Rule]]]:
    return {
        verb: [
            (re.compile(pattern.replace("[A-Z]", "(?-i:[A-Z])"), re.IGNORECASE), rule)
            for pattern, rule in rules
        ]
        for verbs, rules in table.items()
        for verb in verbs.split()
    }


_RULES = _compiled(
    {
        "am": (
            (
                (
                    r"am (?:turning )?(?P<o>\d{1,3})(?: years? old)?(?: now| today)?"
                    r"(?:(?:,| and) (?:married|engaged) to (?P<p>[A-Z]\w+))?(?:(?:,| and) .*)?$"
                ),
                _age,
            ),
            (r"am (?P<o>\w+ing\b.*)$", _no_more),
            (r"am allergic to (?P<o>.+)$", _each("allergic_to")),
            (
                (
                    r"am (?:a |an |strictly )*(?P<o>(?:vegan|vegetarian|pescatarian"
                    r"|flexitarian|lactose[- ]"
                    r"intolerant|gluten[- ](?:free|intolerant)|coeliac|celiac|teetotal)\b.*)$"
                ),
                lambda c, m: c.fact("diet", (DIETS.match(m["o"]) or m)[1]),
            ),
            (r"am (?:originally )?from (?P<o>.+)$", _take("from")),
            (
                r"am (?:now )?(?:based|living|residing|settled) (?:in|at) (?P<o>.+)$",
                _take("lives_in"),
            ),
            (r"am work(?:ing)? (?P<o>(?:at|for|as|with) .+)$", _employed),
            (r"am employed (?P<o>(?:at|by|as) .+)$", _employed),
            (r"am (?:getting )?(?P<how>married|engaged)(?: to (?P<o>.+))?$", _married),
            (
                r"am (?:dating|seeing|going out with|in a relationship with) (?P<o>.+)$",
                _take("partner:partner"),
            ),
            (r"am (?P<how>single|divorced|widowed|separated)(?P<o>$^)?(?: again)?$", _married),
            (r"am (?:learning|taking up) (?P<o>.+)$", _each("learning")),
            (
                r"am (?:studying|majoring in|doing a degree in) (?P<o>.+?)(?: at (?P<p>.+))?$",
                lambda c, m: [
                    c.fact("studies", m["o"]),
                    c.fact("studies_at", m["p"]) if m["p"] else None,
                ],
            ),
            (r"am (?:afraid|scared|terrified|frightened) of (?P<o>.+)$", _take("fears")),
            (
                (
                    r"am (?:really )?(?:a (?:big |huge |massive )?fan of|(?:really )?into"
                    r"|fond of|crazy about"
                    r"|obsessed with|keen on) (?P<o>.+)$"
                ),
                lambda c, m: (
                    c.fact("dislikes", m["o"], ends=False)
                    if c.negative and not c.ended
                    else c.fact("likes", m["o"])
                ),
            ),
            (
                (
                    r"am (?:planning(?: on)?(?: to)?|going to|hoping to|looking to|about to"
                    r"|supposed to) (?P<o>(?!be\b)[a-z].+)$"
                ),
                _plan,
            ),
            (
                (
                    r"am (?P<v>meeting|seeing|flying to|visiting|leaving for|starting|moving to"
                    r"|traveling to|travelling to|running|taking|attending) (?P<o>.+)$"
                ),
                _appointment_with,
            ),
            (
                r"am (?:recovering from|suffering from|dealing with|diagnosed with) (?P<o>.+)$",
                _take("health"),
            ),
            (
                (
                    r"am (?P<o>pregnant|diabetic|asthmatic|colou?r-?blind|left-handed|deaf"
                    r"|dyslexic)\b.*$"
                ),
                lambda c, m: c.fact("health", m["o"], text=f"{c.subject} is {m['o']}"),
            ),
            (r"am (?:called|named) (?P<o>.+)$", _take("name")),
            (
                r"am (?:now )?(?P<o>retired|unemployed|self-employed|between jobs)\b",
                lambda c, m: c.fact("job", m["o"], text=f"{c.subject} is {m['o']}"),
            ),
            (r"am (?:a |an )?(?:proud )?member of (?P<o>.+)$", _take("member_of")),
            (r"am (?:now )?(?:a|an|the) (?:new )?(?P<o>[\w' -]+.*)$", _job),
            (r"am (?P<o>[A-Z][\w'-]+(?: [A-Z][\w'-]+)?)$", _is),
            (
                (
                    r"am (?P<o>(?:training|working|writing|building|reading|preparing|saving"
                    r"|restoring|renovating|volunteering|volunteer|organi[sz]ing|raising"
                    r"|rehearsing|practi[sc]ing|knitting|growing) .+)$"
                ),
                _doing,
            ),
        ),
        "was": (
            (r"was born (?P<o>.+)$", _born),
            (r"was (?:just )?(?:diagnosed with) (?P<o>.+)$", _take("health")),
            (
                r"was (?:laid off|fired|made redundant|let go)(?P<o>.*)$",
                lambda c, m: [_gone(c, "works_at"), _gone(c, "job")],
            ),
            (r"was (?:just )?promoted to (?P<o>.+)$", _take("job")),
            (r"was (?:hired|offered a job) (?P<o>(?:at|by|as|with) .+)$", _employed),
        ),
        "got": (
            (
                (
                    r"got (?:a |the )?(?:new )?(?:job|position|role|offer)(?: offer)? (?P<o>(?:at"
                    r"|as|with|for|from) .+)$"
                ),
                _employed,
            ),
            (r"got promoted to (?P<o>.+)$", _take("job")),
            (
                r"got (?:laid off|fired|made redundant)(?P<o>.*)$",
                lambda c, m: [_gone(c, "works_at"), _gone(c, "job")],
            ),
            (
                (
                    r"got (?P<how>married|engaged|divorced)(?: to (?P<o>.+?))?(?: (?:last|in|on"
                    r"|this|yesterday)\b.*)?$"
                ),
                _married,
            ),
            (r"got rid of (?P<o>.+)$", _lost),
            (r"got (?:diagnosed with) (?P<o>.+)$", _take("health")),
            (r"(?P<v>got) (?P<o>.+)$", _bought),
        ),
        "have": ((r"have (?:got )?(?P<o>.+)$", _have),),
        "had": ((r"had to (?P<o>sell|give up|give away|put down) .+$", lambda c, m: None),),
        "live": ((r"live (?:alone |together )?(?:in|at|near) (?P<o>.+)$", _lives),),
        "lived": ((r"lived (?:in|at) (?P<o>.+)$", _was("lives_in")),),
        "moved": (
            (
                (
                    r"moved (?:back |out |away )?(?:here )?(?:from .+? )?(?:in)?to (?P<o>.+?)(?:"
                    r" from .+)?$"
                ),
                _moved,
            ),
            (r"moved out of (?P<o>.+)$", _ending("lives_in")),
            (rf"moved in (?:with|together with) (?P<w>.+?) in (?P<o>{_PLACE})", _moved),
        ),
        "relocated": ((r"relocated (?:from .+? )?to (?P<o>.+?)(?: from .+)?$", _moved),),
        "settled": ((r"settled (?:down )?in (?P<o>.+)$", _take("lives_in")),),
        "work": ((r"work (?P<o>.+)$", _employed),),
        "worked": (
            (r"worked (?:at|for) (?P<o>.+)$", _was("works_at")),
            (r"worked as (?P<o>.+)$", _was("job")),
        ),
        "teach": (
            (
                r"teach (?P<o>.+)$",
                lambda c, m: c.fact(
                    "job",
                    "teacher of " + _trim(m["o"]),
                    text=f"{c.subject} teaches {_trim(m['o'])}",
                ),
            ),
        ),
        "joined": (
            (
                r"joined (?P<o>.+?)(?: as (?P<j>.+))?$",
                lambda c, m: (
                    [c.fact("works_at", m["o"]), c.fact("job", m["j"])]
                    if m["j"]
                    else c.fact(
                        "member_of",
                        m["o"],
                        text=f"{c.subject} {_dated('joined ' + _third_person(m['o'], ''), c)}",
                    )
                ),
            ),
        ),
        "became": ((r"became (?:a|an|the) (?P<o>.+)$", _job),),
        "switched changed": (
            (
                (
                    r"(?:switched|changed) (?:jobs|companies)(?: and)?(?:,)? ?(?:to|(?:now"
                    r" )?(?:work|working) (?:at|for)) (?P<o>.+)$"
                ),
                _take("works_at"),
            ),
            (
                r"(?:switched|changed) (?:over )?(?:from (?P<a>.+?) )?to (?P<o>.+)$",
                lambda c, m: [
                    *(
                        [
                            c.fact(p, m["a"], ends=True)
                            for p in ("drinks", "likes", "learning", "hobby")
                        ]
                        if m["a"]
                        else []
                    ),
                    c.fact("drinks" if _DRINK.match(m["o"]) else "prefers", m["o"]),
                ],
            ),
        ),
        "retired": (
            (
                r"retired\b(?P<o>.*)$",
                lambda c, m: [
                    _gone(c, "works_at"),
                    c.fact("job", "retired", text=f"{c.subject} is retired"),
                ],
            ),
        ),
        "quit left resigned stopped gave": (
            (r"gave up (?:on )?(?P<o>.+)$", _stopped),
            (r"gave away (?P<o>.+)$", _lost),
            (
                r"resigned(?: from (?P<o>.+))?$",
                lambda c, m: [_gone(c, "works_at"), _gone(c, "job")],
            ),
            (r"stopped (?P<o>\w+ing\b.*)$", _stopped),
            (r"(?P<v>quit|left) (?P<o>.+)$", _left),
        ),
        "love like enjoy adore prefer": (
            (r"(?:prefer|like) to be called (?P<o>.+)$", _take("address")),
            (r"(?P<v>love|like|enjoy|adore|prefer) (?P<o>.+)$", _taste),
        ),
        "loved": ((r"have loved (?P<o>.+)$", _take("likes")),),
        "hate dislike can detest": (
            (r"(?P<v>hate|dislike|detest|can stand) (?P<o>.+)$", _hate),
            (r"can speak (?P<o>.+)$", _each("speaks")),
            (r"can (?:eat|have|tolerate) (?P<o>.+)$", _eat),
        ),
        "play collect": ((r"(?P<v>play|collect) (?P<o>.+)$", _hobby),),
        "speak": (
            (
                r"speak (?:a bit of |a little |some |fluent |only )*(?P<o>[A-Z].+?)(?: fluently)?$",
                _each("speaks"),
            ),
        ),
        "study": (
            (
                r"study (?P<o>.+?) at (?P<p>.+)$",
                lambda c, m: [c.fact("studies", m["o"]), c.fact("studies_at", m["p"])],
            ),
            (r"study at (?P<o>.+)$", _take("studies_at")),
            (r"study (?P<o>.+)$", _take("studies")),
        ),
        "studied": (
            (
                r"studied (?P<o>.+?) at (?P<p>.+)$",
                lambda c, m: [
                    c.fact(
                        "did",
                        f"studied {m['o']} at {m['p']}",
                        text=f"{c.subject} studied {m['o']} at {m['p']}",
                    )
                ],
            ),
        ),
        "own": ((r"own (?P<o>.+)$", _take("owns")),),
        "drive": (
            (
                r"drive (?P<o>(?:a|an|my|the) .+?|[A-Z].+?)(?: (?:to|around|for) .+)?$",
                _take("drives"),
            ),
        ),
        "bought adopted rescued purchased": (
            (r"(?P<v>bought|adopted|rescued|purchased) (?P<o>.+)$", _bought),
        ),
        "sold lost": ((r"(?:sold|lost) (?P<o>(?:my|our|the) .+)$", _lost),),
        "broke": (
            (r"broke up(?: with (?P<o>.+))?$", _split_up),
            (r"(?P<v>broke) (?P<o>my .+)$", _hurt),
        ),
        "split divorced separated": (
            (r"(?:split(?: up)?|divorced|separated)(?: (?:with|from))?(?: (?P<o>.+))?$", _split_up),
        ),
        "are": ((r"are (?:split|broken) up$", _split_up),),
        "sprained twisted injured tore hurt": (
            (r"(?P<v>sprained|twisted|injured|tore|hurt) (?P<o>my .+)$", _hurt),
        ),
        "want plan hope intend": (
            (r"(?:want|plan|hope|intend)(?:ing)?(?: on)?(?: to)? (?P<o>.+)$", _plan),
        ),
        "will": ((r"will (?P<o>.+)$", _plan),),
        "think believe": ((r"(?:think|believe)(?: that)? (?P<o>.+)$", _think),),
        "used": (
            (r"used to live in (?P<o>.+)$", _was("lives_in")),
            (r"used to work (?:at|for) (?P<o>.+)$", _was("works_at")),
            (r"used to work as (?P<o>.+)$", _was("job")),
            (r"used to be (?:a|an|the) (?P<o>.+)$", _was("job")),
            (r"used to be (?P<o>vegan|vegetarian|pescatarian)", _was("diet")),
            (r"used to (?:love|like|enjoy) (?P<o>.+)$", _was("likes")),
            (r"used to (?:hate|dislike) (?P<o>.+)$", _was("dislikes")),
            (r"used to (?:have|own) (?P<o>.+)$", _was("owns")),
            (r"used to drive (?P<o>.+)$", _was("drives")),
            (r"used to (?P<o>play .+|collect .+)$", _was("hobby")),
            (r"used to drink (?P<o>.+)$", _was("drinks")),
            (
                r"used to (?P<o>.+)$",
                lambda c, m: c.fact(
                    "did",
                    f"used to {m['o']}",
                    text=f"{c.subject} used to {_third_person(m['o'], '')}",
                ),
            ),
        ),
        "start": (
            (
                (
                    r"start (?P<o>(?:(?:working|a new job|my new job|at|as|on|next|this"
                    r"|tomorrow)\b).+)$"
                ),
                _began,
            ),
        ),
        "signed enrolled": (
            (
                r"(?:signed up for|enrolled in) (?P<o>.+)$",
                lambda c, m: c.fact(
                    "hobby",
                    m["o"],
                    text=f"{c.subject} {_dated(_third_person(c.rest, ''), c)}",
                ),
            ),
        ),
        "swapped traded replaced": (
            (
                r"(?:swapped|traded|replaced)(?: in)? (?P<a>.+?) (?:for|with|by) (?P<o>.+)$",
                _swapped,
            ),
        ),
        "handed put submitted": (
            (
                r"(?:handed in|put in|submitted) (?:my|their) (?:notice|resignation)\b(?P<o>.*)$",
                lambda c, m: [_gone(c, "works_at"), _gone(c, "job")],
            ),
        ),
        "found rented": (
            (
                (
                    rf"(?:found|rented) (?:a|an|our|my) (?:[\w-]+ ){{0,3}}?(?:flat|house"
                    rf"|apartment|place|home"
                    rf"|studio|room)(?: to rent)? in (?P<o>{_PLACE})"
                ),
                lambda c, m: [
                    c.fact("lives_in", m["o"]),
                    c.fact(
                        "did",
                        c.rest,
                        text=f"{c.subject} {_dated(_third_person(c.rest, ''), c)}",
                        keep_time=True,
                    ),
                ],
            ),
        ),
        "started began took picked": (
            (r"(?:started|began) (?P<o>.+)$", _began),
            (
                r"(?:took|picked) up (?P<o>.+)$",
                lambda c, m: c.fact(
                    "hobby", m["o"], text=f"{c.subject} {_dated(_third_person(c.rest, ''), c)}"
                ),
            ),
        ),
        "go": (
            (r"go by (?P<o>.+)$", _take("address")),
            (
                (
                    r"(?P<v>go) (?P<o>.+\b(?:every|each|twice|once|on (?:mon|tues|wednes|thurs"
                    r"|fri|satur|sun)days|daily|weekly)\b.*)$"
                ),
                _routine,
            ),
        ),
        "run swim wake do meditate walk cycle jog practice practise train": (
            (
                (
                    r"(?P<v>run|swim|wake|do|meditate|walk|cycle|jog|practi[cs]e|train)"
                    r" (?P<o>.+\b(?:every|each|twice|once|days|daily|weekly|at \d)\b.*"
                    r"|(?:every|each|twice|daily).*)$"
                ),
                _routine,
            ),
        ),
        "eat": ((r"eat (?P<o>.+)$", _eat),),
        "drink": ((r"drink (?P<o>.+)$", _drink),),
        "avoid": ((r"avoid (?:eating )?(?P<o>.+)$", _take("avoids")),),
        "volunteer": ((r"volunteer (?:at|for|with) (?P<o>.+)$", _take("volunteers_at")),),
        "grew": ((r"grew up in (?P<o>.+)$", _take("from")),),
        "come": ((r"come from (?P<o>[A-Z].+)$", _take("from")),),
        "turned": ((r"turned (?P<o>\d{1,3})\b.*$", _age),),
        "turn": ((r"turn (?P<o>\d{1,3})\b.*$", lambda c, m: None),),
        "cancelled canceled": (
            (
                rf"cancell?ed (?:my|the|our) (?P<what>{APPOINTMENTS})\b.*$",
                lambda c, m: c.fact(
                    _appointment(m["what"]),
                    "cancelled",
                    ends=True,
                    text=f"{c.subject} cancelled the {m['what']}",
                ),
            ),
        ),
        "moving rescheduled booked scheduled": (
            (
                (
                    rf"(?:rescheduled|booked|scheduled) (?:an? |my |the |our"
                    rf" )?(?P<what>{APPOINTMENTS})(?: with (?P<who>.+?))?(?: to| for| on)?"
                    rf" (?P<o>.+)$"
                ),
                lambda c, m: _booked(c, m["what"], m["who"], m["o"]),
            ),
        ),
        "dated": (),
    }
)
