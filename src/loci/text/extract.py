"""Facts from dialogue by rules: who, which slot, what value, since when, or that it has ended.

A turn is cut into sentences and clauses; questions, hypotheticals and code are dropped. A clause
is brought into one form - a subject, then a verb in its base form - and the verb selects the rules.
"I" is the speaker; "my sister Lena" and "Lena" are subjects of their own. What no slot fits but
tells of something done is kept as an event with its date made absolute. Assistants' turns yield
nothing, except what the person then confirms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from loci.core.item import Candidate, Turn
from loci.text.clause import ANY, NAME, clause_of
from loci.text.cues import guessed
from loci.text.entities import PLAIN, entities, names
from loci.text.makers import as_list, has
from loci.text.mine import KIN_SUBJECT, SAME_KIN, mine
from loci.text.numbers import value_of
from loci.text.phrases import (
    BASE,
    CONTRACTED,
    CONTRACTIONS,
    FILLERS,
    HYPOTHETICAL,
    KIN,
    PAST,
    kin_of,
    words,
)
from loci.text.restate import restated
from loci.text.sentences import sentences
from loci.text.speech import spoken
from loci.text.stem import fold
from loci.text.straight import straight
from loci.text.times import resolve
from loci.text.verb_table import RULES
from loci.text.wording import LONGEST

__all__ = ["ANY", "extract"]

_CLAUSE = re.compile(
    (
        r"\s*(?:;|\s[-–—]+\s|,?\s+but\s+|,?\s+and\s+(?=(?:now )?(?:i|we|my|our|he|she"
        r"|they)(?:'\w+)?\s)"
        r"|,?\s+since\s+(?=(?:i|we)(?:'m| am| do not| don't| cannot| can't)\b)"
        r"|,\s*(?=(?:now |so now |these days )?(?:i|my|our|we|her name|his name|its "
        r"name|she's|he's|she is"
        r"|he is)(?:'\w+)?\s)"
        r"|,?\s+so\s+(?=(?:i|we|my)(?:'\w+)?\s)"
        r"|,?\s+and\s+(?:now\s+)?(?=(?:moved|started|quit|bought|got|adopted|joined"
        r"|sold|became"
        r"|switched|broke|left|gave|drive|scrapped"
        r"|am|work|live|love|hate|changed|found|took|began)\s)"
        r"|,?\s+because\s+|,?\s+(?:although|though|(?<!a )while)\s+)\s*"
    ),
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|$)|`[^`]*`|https?://\S+|\[shares a picture:[^\]]*\]", re.DOTALL)
_TAG = re.compile(
    (
        r",?\s*(?:(?:did|have|had) i (?:tell|told|mention)[^?,]*|you know|remember"
        r"|right|isn't it"
        r"|can you believe (?:it|that)|how cool is that|crazy,? huh|huh)\?$"
    ),
    re.IGNORECASE,
)
_AS_KNOWN = re.compile(r",?\s*\bas (?:you (?:already )?know|i said|i mentioned)\b,?", re.IGNORECASE)
_ASIDE = re.compile(r"^[^:.]{3,40}:\s+(?=(?:i|my|we|our)\b)", re.IGNORECASE)
_CONFIRM = re.compile(
    r"^(?:yes|yeah|yep|yup|exactly|correct|right|that(?:'s| is) (?:right|correct|true)|indeed)\b",
    re.IGNORECASE,
)
_MEANT = re.compile(
    (
        r"(?:^|\b)(?:i meant(?: to say)?|i mean|(?:actually|sorry|correction|wait"
        r"|oops)\W+(?:no\W+)?"
        r"(?:it|that|he|she)(?:'s| is| was)(?: actually| really)?|make that"
        r"|scratch that\W+"
        r"(?:it(?:'s| is))?)\s+(?P<new>[^,.;!?]+?)(?:\s*,?\s*(?:and"
        r" )?not\s+(?P<old>[^,.;!?]+))?"
        r"\s*(?:[,.;!?]|$)"
    ),
    re.IGNORECASE,
)
_BARE_KIN = re.compile(r"^(?=(?:Mum|Mom|Dad|Grandma|Grandpa|Granny)\b)")
_KIN_WITH_NAME = re.compile(
    r"\b(?i:my"
    rf"|our)\s+(?:[a-z-]+\s+){{0,2}}?(?P<noun>{'|'.join(sorted(KIN, key=len)[::-1])}),?\s+"
    r"(?P<name>[A-Z][\w'-]*)"
)
_HANDED = re.compile(
    r"^(?P<head>\w+ (?:gave|bought|told|showed|got|sent|visited|met|took|called)) (?:her|him)\b"
)
_PRONOUN_FIRST = re.compile(r"\W*(?:(?:well|so|and|yes|yeah|oh|no)\W+)*(?:he|she)\b", re.I)
_MENTION = re.compile(
    (
        r"\b(?:a|an|my|our|another"
        rf"|the)\s+(?:[\w-]+\s+){{0,2}}?({'|'.join(sorted(KIN, key=len)[::-1])})\b"
    ),
    re.IGNORECASE,
)
_IS_CALLED = re.compile(
    r"^(?i:(?:and\s+)?(?:(?:he|she|it|they)(?:'s| is| are)\s+(?:called|named)"
    r"|(?:his|her|its|their)\s+name(?:'s| is)|(?:i|we)\s+(?:called|named)\s+(?:him"
    r"|her|it)))"
    rf"\s+(?P<name>{NAME})"
)
_TOGETHER = re.compile(
    r"^we (?:are|have been) (?:(?:now|officially|already) )?(?:dating|together"
    r"|a couple|seeing each"
    r"|in a relationship|going out)\b"
)
_BARE = words(
    "am moved got bought started quit adopted sold went joined became switched broke left "
    "work live love hate changed found took began just finally"
)
_WITH = re.compile(rf"^(?P<name>{NAME}) and I (?P<rest>.+)$")
_NAMED_SUBJECT = re.compile(rf"^(?P<name>{NAME})\s+(?P<rest>.+)$")
# "Jean's booked a train" is "Jean has booked", "Gareth's a mechanic" is "Gareth is".
_SHORT_VERB = re.compile(
    rf"^(?P<who>(?:[Mm]y (?:[a-z]+ ){{0,2}}|[Oo]ur (?:[a-z]+ ){{0,2}})?{NAME})'s "
    r"(?=(?P<next>an?|the|not|in|at|on|been|got|gone|also|just|already|still|now"
    r"|\w+(?:ing|ed))\b)"
)
_NAME_IS_KIN = re.compile(
    rf"^(?P<name>{NAME}) (?:is|was) (?P<own>my|our"
    rf"|{NAME}'s) (?P<adj>(?:[a-z]+ ){{0,2}}?)"
    rf"(?P<noun>{'|'.join(sorted(KIN, key=len)[::-1])})\b"
)
_THEIR_KIN = re.compile(
    r"\b(?:his|her"
    r"|their) (?P<adj>(?:[a-z]+"
    rf" ){{0,2}}?)(?P<noun>{'|'.join(sorted(KIN, key=len)[::-1])})"
    rf",? (?P<name>(?-i:{NAME}))"
)
# What may stand before "I" without a comma and leave the statement the speaker's own.
_SAFE_LEAD = re.compile(
    (
        r"(?:now|then|also|still|again|today|here|by now|so far|professionally|by "
        r"(?:day|night|trade"
        r"|profession|training|birth)|for (?:fun|a living|pleasure|exercise"
        r"|relaxation|my living)"
        r"|(?:on|at|in|during|over) (?:my |the |our )?(?:[\w-]+ )?(?:weekends?"
        r"|weekdays|weeknights|\w+days|evenings?"
        r"|mornings?|afternoons?|nights?|time|hours|summers?|winters?|holidays?|home"
        r"|days)"
        r"|(?:every|each|most|some) (?:other |second )?\w+|(?:once|twice|\w+ times) "
        r"(?:a|every) \w+"
        r"|(?:among|besides|apart from|alongside) [\w ]+|as of [\w ]+|from [\w ]+ "
        r"on(?:wards)?|(?:the|my) (?:doctor"
        r"|dentist|vet|nurse|physio"
        r"|specialist|optician)s? (?:says?|said|thinks?|tells? me|told me)(?: "
        r"that)?)$"
    ),
    re.IGNORECASE,
)
_HAS_DONE = re.compile(r"(?:been|got|gone|\w+ed)$")
_NOBODY = words(
    "nobody everybody everyone somebody someone anybody anyone both half most none "
    "neither either they he she it we there here this that these those who what which home"
)


_WEAK = words("did doing attribute thinks owns prefers")
# What holds a clause together that is else cut in two.
_ACROSS = re.compile(
    (
        r", (?:my|our)\b|[:?]|\band (?:i|me)\b|^(?:i|me) and\b|\b(?:best|most) of "
        r"all\b|^(?:of|among) all\b"
        r"|\b(?:an?|another|my|our) [\w ]+, (?:an? |(?-i:[A-Z]))|^as an? |^in my \w+ "
        r"as |, where (?:i|we)\b"
        r"|\bused to be\b.*, |\b(?:left|dumped|leaving) me\b|\b(?:changed|switched)\b|\bsome(?:one"
        r"|body)\b"
    ),
    re.IGNORECASE,
)
_SHORT_IS = re.compile(
    r"(?<=[a-z])'s(?= (?:my|our|the|where|what|no|not|over|gone|in|at|been|called"
    r"|named|still|now)\b)"
)


def extract(turns: Sequence[Turn], context: Sequence[Turn] = ()) -> list[Candidate]:
    """Return the facts that `turns` state, in order; `context` are the turns before them."""
    found: list[Candidate] = []
    before = list(context)
    for turn in turns:
        for candidate in _of_turn(turn, before, found):
            if not any(
                (c.text, c.ends, c.sources) == (candidate.text, candidate.ends, candidate.sources)
                and (c.predicate == candidate.predicate or not c.ends)
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
    # "How is Temi?" "Changed her mind." is no news of the speaker.
    aside = bool(
        before
        and before[-1].name != turn.name
        and before[-1].content.rstrip().endswith("?")
        and not re.search(r"\byou(?:r|rs)?\b", _last_sentence(before[-1]), re.I)
    )
    for said in straight(sentences(text.replace("’", "'"))):
        sentence = _TAG.sub(".", said)
        sentence = _AS_KNOWN.sub("", _ASIDE.sub("", sentence))
        if len(sentence) < 5 or sentence.endswith("?") or HYPOTHETICAL.search(sentence):
            continue
        if fixed and _MEANT.search(sentence):
            continue
        whole = sentence
        both = _WITH.match(FILLERS.sub("", sentence))
        if both is not None:  # "Tom and I broke up": the speaker's fact, with Tom
            last_named, rest = both["name"], both["rest"].rstrip(" .!")
            sentence = f"I {rest} with {last_named}" if len(rest.split()) < 4 else f"I {rest}"
        follows: str | None = None
        told_before = len(found)
        early = _plain(whole, speaker, turn) if _ACROSS.search(whole) else []
        found += early
        taken = {_head(c) for c in early}
        for part in _CLAUSE.split(sentence):
            told = _IS_CALLED.match(part.strip())
            if told is not None and mentioned is not None:
                slot, label = mentioned
                clause = clause_of(speaker, part, part, turn)
                found += as_list(has(clause, slot, label, told["name"]))
                last_named = told["name"]
                continue
            before_named = last_named
            new, last_named = _of_clause(part, speaker, turn, last_named, follows, aside)
            new = [c for c in new if _head(c) not in taken]
            if re.match(r"\W*(?:\w+\W+){0,3}?(?:i|we)\b", part, re.I):
                follows = speaker
            elif last_named != before_named or re.match(r"(?:he|she)\b", part, re.I):
                follows = last_named
            found += new
            for seen in _KIN_WITH_NAME.finditer(part):
                name = re.sub(r"'s$", "", seen["name"])
                noun = SAME_KIN.get(seen["noun"], seen["noun"])
                slot_seen = kin_of(noun) or "friend"
                if any(name.lower() in (c.object or "") for c in new) or seen["noun"] == "pet":
                    continue
                clause = clause_of(speaker, part, part, turn)
                if slot_seen == "partner":
                    if "partner" not in taken:
                        found += as_list(clause.fact(f"partner:{noun}", name, keep_time=True))
                else:
                    found += as_list(has(clause, slot_seen, noun, name))
            if last_named is not None:
                for seen in _THEIR_KIN.finditer(part):
                    slot_seen = kin_of(seen["noun"]) or "friend"
                    owner = clause_of(last_named, part, part, turn)
                    if slot_seen == "partner":
                        predicate = f"partner:{seen['noun']}"
                        found += as_list(owner.fact(predicate, seen["name"], keep_time=True))
                    else:
                        label = f"{seen['adj']}{seen['noun']}".strip()
                        found += as_list(has(owner, slot_seen, label, seen["name"]))
            kin = _MENTION.findall(part)
            if kin and (slot_found := kin_of(kin[-1])) not in (None, "partner"):
                mentioned = (str(slot_found), kin[-1].lower())
        if _is_weak(found[told_before:]):
            parts = sentence.split(",") if "," in sentence else []
            for guess in (False, True):
                for part in (*parts, whole) if guess else parts:
                    more = _plain(part, speaker, turn, guess=guess)
                    if more and _is_weak(found[told_before:]):
                        found[told_before:] = [*more, *(c for c in found[told_before:] if c.ends)]
    return found


def _plain(part: str, speaker: str, turn: Turn, *, guess: bool = False) -> list[Candidate]:
    """Return the facts of a clause that speaks of the speaker from elsewhere."""
    clause = part.strip()
    if re.match(r"no\b(?!,)", clause, re.I) is None:
        clause = FILLERS.sub("", clause).strip()
    clause = CONTRACTED.sub(lambda m: CONTRACTIONS[m.group().lower()], clause)
    clause = _SHORT_IS.sub(" is", clause)
    first = clause.split(" ", 1)[0].lower()
    lead = None if first in ("i", "we", "my", "our") else _time_lead(clause, turn.time)
    if lead is not None and (lead[1] or _SAFE_LEAD.match(clause.removesuffix(lead[0]).strip(" ,"))):
        clause = f"{lead[0]} {lead[1]}".strip()
    if len(clause) > LONGEST:
        return []
    found = _from_plain(restated(clause), speaker, turn)
    if found or not guess:
        return found
    plain = guessed(clause)
    return _from_plain([plain] if plain else [], speaker, turn)


def _from_plain(clauses: Sequence[str], speaker: str, turn: Turn) -> list[Candidate]:
    found: list[Candidate] = []
    for plain in clauses:
        if plain.startswith("my "):
            found += mine(plain, speaker, turn, None)[0]
        else:
            found += spoken(speaker, plain.split(" ", 1)[1], turn)
    # What was only said to be over is no event that one tells of.
    begins = f"{speaker} gave up "
    found = [replace(c, text=c.text.replace(begins, f"{speaker} is done with ")) for c in found]
    return [] if _is_weak(found) else found


def _is_weak(found: Sequence[Candidate]) -> bool:
    """Whether facts are none, or none of a slot of its own."""
    return all(_head(c) in _WEAK for c in found)


def _head(candidate: Candidate) -> str:
    """Return the predicate without its parameter."""
    return (candidate.predicate or "").partition(":")[0]


def _named_before(turn: Turn, before: Sequence[Turn]) -> str | None:
    """Return whom the speaker named last, in the two turns before, or whom a question is about."""
    if before and before[-1].content.rstrip().endswith("?") and before[-1].name != turn.name:
        asked = _last_sentence(before[-1])
        about = [n for n in names(f"x {asked}") if n not in (turn.name, before[-1].name)]
        if about:
            return about[0] if len(about) == 1 else None
    mine = [t for t in before[-4:] if (t.name, t.role) == (turn.name, turn.role)]
    for said in reversed(mine[-2:]):
        for sentence in reversed(sentences(said.content)):
            words = FILLERS.sub("", sentence.strip())
            kin = KIN_SUBJECT.match(words)
            if kin is not None and kin["name"] and kin["name"][0].isupper():
                return str(kin["name"].split()[0])
            named = _NAMED_SUBJECT.match(words)
            if named is not None and _is_subject(named["name"], named["rest"]):
                return str(named["name"])
    return None


def _last_sentence(turn: Turn) -> str:
    said = sentences(turn.content.replace("’", "'"))
    return said[-1] if said else ""


def _is_subject(name: str, rest: str) -> bool:
    if name.split()[-1] == "I":
        return False
    verb = rest.split(" ", 1)[0].lower()
    known = verb in BASE or verb in PAST or verb in RULES or verb.endswith("ed")
    first = re.split(r"['’]", name.split()[0])[0].lower()
    someone = first not in PLAIN and first not in _NOBODY and value_of(name) is None
    return known and someone and fold(name) != "i"


def _confirmed(turn: Turn, asked: Turn, speaker: str) -> list[Candidate]:
    """Turn "So you live in Rome?" followed by "Yes" into a fact of the speaker."""
    last = _last_sentence(asked)
    told = re.match(
        (
            r"^(?:so|then|and|ah|oh|i see|got it|if i remember|just to confirm)?[\s,:]*"
            r"(?P<rest>(?:you|your)\b.+?)(?:,?\s*(?:right|correct|yes|is that right"
            r"|don't you"
            r"|aren't you))?[.?!]*$"
        ),
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
    part: str,
    speaker: str,
    turn: Turn,
    named: str | None,
    follows: str | None = None,
    aside: bool = False,
) -> tuple[list[Candidate], str | None]:
    """Return the facts of a clause, and who was named in it or before."""
    found, who = _read(part, speaker, turn, named, follows, aside)
    if _is_weak(found):
        more = _plain(part, speaker, turn)
        found = [*more, *(c for c in found if c.ends)] if more else found
    return found, who


def _read(
    part: str,
    speaker: str,
    turn: Turn,
    named: str | None,
    follows: str | None = None,
    aside: bool = False,
) -> tuple[list[Candidate], str | None]:
    clause = FILLERS.sub("", part.strip()).strip()
    if len(clause) < 4:
        return [], named
    clause = CONTRACTED.sub(lambda m: CONTRACTIONS[m.group().lower()], clause)
    clause = _SHORT_VERB.sub(
        lambda m: f"{m['who']} {'has' if _HAS_DONE.match(m['next']) else 'is'} ", clause
    )
    clause = _BARE_KIN.sub("my ", clause)
    if named:
        clause = _HANDED.sub(rf"\g<head> {named}", clause)
    low = clause.lower()
    found: list[Candidate] = []
    if low.startswith(("call me ", "please call me ", "you can call me ", "just call me ")):
        value = clause.lower().index("call me ") + 8
        made = clause_of(speaker, clause, clause, turn).fact("address", clause[value:])
        return [made] if made else [], named
    first = low.split(" ", 1)[0]
    lead = _time_lead(clause, turn.time) if first not in ("i", "we", "my", "our") else None
    if lead is not None:
        clause, spans_text = lead
        low, first = clause.lower(), clause.lower().split(" ", 1)[0]
        clause = f"{clause} {spans_text}"
    if first in ("my", "our"):
        return mine(clause, speaker, turn, named)
    if first == "we" and named and _TOGETHER.match(low):
        made = clause_of(speaker, clause, clause, turn).fact(
            "partner:partner", named, keep_time=True
        )
        return as_list(made), named
    if first in ("i", "we") and " " in clause:
        return spoken(speaker, clause.split(" ", 1)[1], turn), named
    if first in ("he", "she") and named and " " in clause:
        return spoken(named, clause.split(" ", 1)[1], turn), named
    kin = _NAME_IS_KIN.match(clause)
    if kin is not None and fold(kin["name"].split()[0]) not in _NOBODY:
        return _is_kin(kin, speaker, turn), str(kin["name"])
    named_match = _NAMED_SUBJECT.match(clause)
    if named_match is not None and _is_subject(named_match["name"], named_match["rest"]):
        name = named_match["name"]
        return spoken(name, named_match["rest"], turn, teller=speaker), name
    if first in _BARE and re.match(r"(?:work|live|love) .* (?:is|was|has|had|goes|went)\b", low):
        return found, named  # "work at the mill was busy": a noun
    if first in _BARE and not follows and not aside:
        found = spoken(speaker, clause, turn)
    elif first in _BARE and follows is not None:
        teller = speaker if follows != speaker else None
        found = spoken(follows, clause, turn, teller=teller)
    return found, named


def _is_kin(match: re.Match[str], speaker: str, turn: Turn) -> list[Candidate]:
    """ "Tomas is my boyfriend", "Bram is Tomas's brother"."""
    own = match["own"]
    owner = speaker if own in ("my", "our") else re.sub(r"'s$", "", own)
    noun = SAME_KIN.get(match["noun"], match["noun"])
    slot = kin_of(noun) or "friend"
    clause = clause_of(owner, "", "", turn)
    if slot == "partner":
        return as_list(clause.fact(f"partner:{noun}", match["name"], keep_time=True))
    return as_list(has(clause, slot, f"{match['adj']}{noun}".strip(), match["name"]))


def _time_lead(clause: str, now: datetime) -> tuple[str, str] | None:
    """Move a leading time to the end: "Last week I moved" becomes "I moved last week"."""
    match = re.match(
        r"^(?P<lead>[^,]{3,40}?)(?P<comma>,?)\s+(?P<rest>(?:i|we|my|our)\s.+)$", clause, re.I
    )
    if match is None:
        return None
    if resolve(match["lead"], now):
        return match["rest"].rstrip(" .!"), match["lead"]
    return (match["rest"], "") if match["comma"] or _SAFE_LEAD.match(match["lead"]) else None
