"""A clause as the extraction rules see it: who, the words from the verb on, and the times.

A value is cut to what it names; a clause that leans on words said elsewhere makes no fact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loci.core.item import Candidate, Turn
from loci.text.entities import entities
from loci.text.slots import sentence_of, slot_of
from loci.text.stem import STOP_WORDS, fold
from loci.text.times import Span, describe, resolve

ANY = "*"  # the value of an ending that names none: whatever the slot holds

_TAIL = re.compile(
    (
        r"(?:\s*(?:,|\(|\s[-–—]+\s)|\s+more$|\s+(?:because|but|which|who|since|so that"
        r"|so i|when|where|while"
        r"|after|before|until|although|though|as well|too|these days|nowadays"
        r"|right now|at the moment"
        r"|any ?more|now|lately|again|together|and (?:i|we|my|it|she|he|they|am|have"
        r"|love|really)\b"
        r"|with (?:my|our|his|her|their|a|an|two|three)|for (?:my|our)|instead|so far"
        r"|by the way|though|for"
        r" (?:some time|a (?:while|long time|bit)|many|ages|years)\b|and that"
        r"|originally|by (?:trade|profession|day|training)"
        r"|for a living|for good|professionally|in the end|a while (?:ago|back)|after all|if you"
        r"|you know|to be"
        r" honest|btw|thank god|thankfully|actually|haha|lol)\b).*$"
    ),
    re.IGNORECASE,
)
_ASIDE = re.compile(
    (
        r",?\s*\b(?:by the way|as it happens|as a matter of fact|of all (?:places"
        r"|things|people)|mind you"
        r"|believe it or not|to be honest|honestly|i think|i suppose|i must say"
        r"|i guess|thank goodness"
        r"|of course|for once|as usual|as always)\b,?|,\s*(?:mind|though|too|anyway"
        r"|then)\b,?"
    ),
    re.IGNORECASE,
)
# Where a statement goes on with another subject, or with what is only said of something in it.
_GOES_ON = re.compile(
    (
        r"(?:,\s+(?:which|who|whose|where|so|as|or else|then)\b"
        r"|,?\s+(?:when|while|because|since|although|though|where|if|until|before"
        r"|after|so that|so|that"
        r"|which|who|whom|as if|as|what|how)\s+(?:i|we|he|she|they|it|you|my|our|his"
        r"|her|their|nobody"
        r"|somebody|someone|there|this|that)\b"
        r"|,?\s+(?:and|but|or)\s+(?:(?:i|we|he|she|they|it|you|there|that|this|nobody"
        r"|somebody)\b"
        r"|(?:the|my|our|his|her|their|a|an)\s+(?:\S+\s+){1,2}?(?:is|was|are|were|has"
        r"|had|will|\w+ed)\b)"
        r"|,?\s+and\s+(?-i:[A-Z][\w-]+)\s+(?:is|was|has|had|will|still|\w+(?:ed|s))\b"
        r"|\s(?:[-–—]+|\.\.\.)\s|[;:(])"
    ),
    re.IGNORECASE,
)
_ONLY_THEN = re.compile(r"[\s,]*(?:when|if|until|before|after|while|as if|unless)\b", re.IGNORECASE)
# Words that mean something said elsewhere: what holds them cannot stand alone as a fact.
_LEANS = re.compile(
    (
        r"\b(?:it|its|itself|him|himself|them|they|he|she|this|that|these|those|there"
        r"|here|ones|i|we|me"
        r"|us|mine|ours|myself|ourselves|you|your|yours|something|someone|somebody"
        r"|anything|anyone"
        r"|everything|the same|the other|another one)\b|\bone\s*$|\bn't\b|\b(?:i|it|he"
        r"|she|they|we)'"
    ),
    re.IGNORECASE,
)
_OTHERS = re.compile(r"\b(?:his|her|hers|herself)\b", re.IGNORECASE)
PLACE = r"(?:[A-Z][\w'’.-]*)(?:[ ,]+(?:[A-Z][\w'’.-]*|(?:de|la|of|the|upon)\b))*"
_WORD = r"[A-Z](?:[\w-]|['’](?!s\b)\w)*"
NAME = rf"(?:(?:Mr|Mrs|Ms|Dr|Prof)\.?\s)?{_WORD}(?:\s+{_WORD}){{0,2}}"
COUNTED = re.compile(r"(?:two|three|four|five|six|seven|eight|several|many|\d+)\b", re.I)
CALLED = re.compile(rf"\b(?:named|called|whose name is|by the name of)\s+(?P<name>{NAME})")


@dataclass(frozen=True)
class Clause:
    """What rules see: who, the words from the verb on, and the circumstances."""

    subject: str
    rest: str
    turn: Turn
    spans: tuple[Span, ...]
    ended: bool = False
    negative: bool = False
    said: str = ""  # the words as they were, where `rest` has plainer ones
    other: bool = False  # whether somebody else than the speaker is the subject

    def leans(self, words: str) -> bool:
        """Whether words mean something that was said elsewhere: "it", "that choir", "her"."""
        if _LEANS.search(words) is not None:
            return True
        return not self.other and _OTHERS.search(words) is not None

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
        value = value if keep_time else trim(self.timeless(value))
        value = value.strip(" .,!?;:'\"")
        if predicate.startswith("partner"):
            value = re.sub(r"^an? \w+ (?:named|called) (?=[A-Z])", "", value)
        if not value or value.lower() in STOP_WORDS or fold(value) == fold(self.subject):
            return None
        if value != ANY and predicate != "did" and self.leans(value):
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

    def told(self, words: str | None = None) -> str | None:
        """Return a sentence of what was done, dates made absolute; None where it leans."""
        whole = (self.said or self.rest) if words is None else words
        body = statement(whole)
        if _ONLY_THEN.match(whole[len(body) :]):
            return None  # "when I was nineteen": without that it would be said of today
        if len(body.split()) < 2 or self.leans(body):
            return None
        return f"{self.subject} {dated(third_person(body), self)}"

    def timeless(self, value: str) -> str:
        """Return a value without the times in it."""
        for span in self.spans:
            place = value.lower().find(span.text.lower())
            if place >= 0:
                before = re.sub(
                    r"\b(?:on|in|at|since|for|from|by|around|about)\s*$", "", value[:place].rstrip()
                )
                value = f"{before.rstrip()} {value[place + len(span.text) :].lstrip()}".strip()
        return value


def statement(words: str) -> str:
    """Return words from a verb on, cut where another statement begins.

    >>> statement("paid £2,400 for the boat in spring and the surveyor laughed")
    'paid £2,400 for the boat in spring'
    """
    words = _ASIDE.sub("", words)
    cut = _GOES_ON.search(words)
    words = words[: cut.start()] if cut else words
    first, comma, rest = words.partition(", ")
    if comma and not re.search(r"\b(?:and|or)\b", rest):
        words = first  # no list: what follows only colours it
    return words.strip(" .,!?;:'\"")


def clause_of(subject: str, rest: str, whole: str, turn: Turn) -> Clause:
    """Return a clause of a turn with the times that the whole of it names."""
    return Clause(subject, rest, turn, tuple(resolve(whole, turn.time)))


def dated(body: str, clause: Clause) -> str:
    """Return words with the first relative time replaced by the date it means."""
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
        lead = re.sub(r"\bas of$", "", lead).rstrip()
        after = body[place + len(span.text) :]
        till = re.match(r"\s+(?P<to>to|until|till)\s+", after)
        if till is not None:  # a stretch: both ends become dates
            other = next((s for s in clause.spans if after.find(s.text) == till.end()), None)
            if other is not None:
                rest = after[till.end() + len(other.text) :]
                return f"{lead} from {describe(span)} to {describe(other)}{rest}".strip()
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


def told_by(text: str, teller: str) -> str:
    """Return what somebody told of another, with the teller's name for "me" and "my"."""
    text = re.sub(r"\bmy\b", f"{teller}'s", text, flags=re.I)
    return re.sub(r"\bme\b", teller, text, flags=re.I)


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


def third_person(text: str) -> str:
    """Return words of the first person in the third."""
    return _PRONOUN.sub(lambda m: _PRONOUNS[m.group().lower()], text)


def trim(value: str) -> str:
    """Return a value without what only hangs on it."""
    return _TAIL.sub("", value).strip(" .,!?;:'\"")
