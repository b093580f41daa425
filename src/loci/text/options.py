"""Possible answers to a question: stretches, clauses and facts, each with its signs."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from loci.text import spans
from loci.text.ask import Question
from loci.text.clause import ANY
from loci.text.kinds import kinds_in, kinds_of
from loci.text.known import Fact
from loci.text.lemmas import keys, lemma
from loci.text.people import gender_of
from loci.text.phrases import kin_of, words
from loci.text.said import Said, Story
from loci.text.sentences import clauses
from loci.text.spans import Found
from loci.text.stem import fold, tokens
from loci.text.times import Span, describe, resolve
from loci.text.weigh import Scale, weighed

TYPES = frozenset(("when", "count", "who", "name", "kind")) | spans.LISTED
_SOFT = {"kind": 0.7, "job": 1.0, "diet": 0.7, "means": 1.0, "often": 0.5}
_REASON = re.compile(
    r"\b(?:because|since (?=i\b|we |he\b|she\b|they\b|it\b|there\b|the \w+ (?:is|was|has)\b)"
    r"|so that|due to|thanks to|in order to|as (?=i |it |he |she |they ))\b.+",
    re.I,
)
_WHY = re.compile(r"\b(?:why|how come|what happened|what's wrong)\b", re.IGNORECASE)
# Who did one thing, told from the side of the other: (asked, told, what leads to the name).
_SIDES = (
    (lemma("bought"), "sold|sell|selling", "to"),
    (lemma("sold"), "bought|buy|buying|got", "from|by"),
    (lemma("lent"), "borrowed|borrow", "from|by"),
    (lemma("borrowed"), "lent|lend", "to"),
    (lemma("taught"), "learned|learnt|learn|learning", "from|with|by"),
    (lemma("gave"), "got|received|from", "from|by"),
)
_SMALL_TALK = frozenset(
    keys(
        "thanks thank asking ask glad happy good great nice lovely awesome amazing cool fun "
        "much lot bit thing things something anything everything really actually way sure yes "
        "hey wow so well right back poor dear sadly going go do did make let know think guess "
        "mean see say said tell told feel felt want like love hope try get got new now just "
        "also too ever never always maybe time"
    )
)
_TRADES = tuple(lemma(w) for w in ("bought", "sold", "cost", "paid"))
_THE = re.compile(r"\b(?:the|an?|my|our|this|that|de|du|rue|via)\s+$", re.IGNORECASE)
_BABY = words("baby babies child children kid kids person man woman girl boy")
_PREMISES = (
    "(?:yard|boatyard|place|house|flat|shop|office|clinic|school|company|farm"
    "|restaurant|cafe|café"
    "|studio|workshop|garage|salon|surgery|firm|bakery|bar|pub|hotel|gym"
    "|bookshop)"
)
# The kinds of question that a slot's value answers.
_ASKS: dict[str, tuple[str, ...]] = {
    "lives_in": ("where", "what"),
    "works_at": ("where", "what", "who"),
    "from": ("where", "what"),
    "studies_at": ("where", "what"),
    "job": ("job", "what"),
    "partner": ("who", "name", "what"),
    "birthday": ("when", "what"),
    "age": ("age",),
    "appointment": ("when", "what"),
    "diet": ("diet", "what"),
    "avoids": ("what",),
    "dislikes": ("what",),
    "speaks": ("language", "what"),
    "learning": ("language", "what"),
    "hobby": ("what", "instrument"),
    **dict.fromkeys(
        ("child", "sibling", "relative", "friend", "boss", "pet"), ("who", "name", "what", "count")
    ),
}
_DENIAL = re.compile(
    (
        r"\b(?:it|that|he|she|they)(?:['’]s| is| was|['’]re| are)? not\b|\b(?:is|was"
        r"|are)n['’]t\b"
        r"|\bno longer\b|\bany ?more\b"
    ),
    re.IGNORECASE,
)
_TOPIC = re.compile(
    r"\b(?P<topic>(?:the|your|my|his|her|their|our) [\w' -]+)"
    r"|\b(?:like|likes|eat|eats|drink|drinks|want|wants|have|has|take|takes|mind|about|to|of|with"
    r"|play|plays|speak|speaks|need|needs|try|tried) (?P<name>(?!an?\b|it\b)[\w'-]+)\?$",
)
_VERB_ASKED = re.compile(
    r"\bwhat (?:(?:does|do|did|has|have|will|would) .*?\b(?P<verb>\w+)"
    r"|(?:is|are|was|were) .*?\b(?P<doing>\w+ing))"
    r"(?: to| with| for| on| about| in| at)?"
    r"(?: now| these days| at first| next| currently)*$"
)


@dataclass(frozen=True, eq=False)
class Option:
    """One possible answer.

    Attributes:
        text: the words of the answer.
        key: what it is the same as; equal keys are one answer.
        said: the sentence it stands in; `clause` its clause.
        fact: the fact it is, where it is one; `live` whether that still holds.
        signs: what speaks for it and against it, without time.
    """

    text: str
    key: Hashable
    said: Said
    clause: str = ""
    fact: Fact | None = None
    live: bool = True
    signs: dict[str, float] = field(default_factory=dict)

    @cached_property
    def score(self) -> float:
        """The weighted sum of its signs."""
        return weighed(self.signs)


class Options:
    """Finds the options of a story for a question."""

    def __init__(self, asked: Question, story: Story, scale: Scale, facts: Sequence[Fact]) -> None:
        self.asked, self.story, self.scale, self.facts = asked, story, scale, facts
        self.signs = [scale.signs(i) for i in range(len(story.said))]
        self.fits = [weighed(signs) for signs in self.signs]

    def all(self) -> list[Option]:
        """Return every option worth weighing."""
        options: list[Option] = []
        floor = max(self.fits, default=0.0) - 2.0
        for index, said in enumerate(self.story.said):
            if self.fits[index] >= floor:
                options += self._of_sentence(index, said)
        return options + self._of_facts()

    # -- sentences -----------------------------------------------------------------------------

    def _of_sentence(self, index: int, said: Said) -> list[Option]:
        asked, base = self.asked, self.signs[index]
        parts = clauses(said.text)
        found = self.found(said.text, said) if asked.kind != "what" else []
        options = []
        for stretch in found:
            a, b = next(((a, b) for a, b in parts if a <= stretch.start < b), (0, len(said.text)))
            signs = base | self._clause_signs(index, said, a, b)
            signs["fit"] = stretch.fit
            words = base["own"] + base["near"]
            if asked.words and words < 0.3:
                signs["thin"] = 1 - words / 0.3
            if asked.kind == "money" and self._other_trade(said):
                signs["trade"] = 1.0
            denied = asked.kind != "diet" and is_denied(said.text, stretch)
            if denied and not asked.negative and asked.mode == "now":
                signs["denied"] = 1.0
            options.append(Option(stretch.text, stretch.key, said, said.text[a:b], signs=signs))
        if found:
            return options
        if asked.kind == "when":
            return self._said_on(index, said)
        if asked.kind == "reason":
            reason = _REASON.search(said.text)
            text = trimmed(reason.group()) if reason else said.text
            why = reason is not None or _WHY.search(said.lead) is not None
            signs = base | {"reason": float(why)}
            return [Option(text, tuple(keys(text)), said, said.text, signs=signs)]
        for a, b in parts:
            clause = said.text[a:b]
            if not keys(clause):
                continue
            signs = base | self._clause_signs(index, said, a, b) | self._untyped()
            if not asked.negated and asked.mode == "now" and _DENIAL.search(clause):
                signs["denial"] = 1.0
            text, is_object = self._object(clause, said)
            signs["object"] = float(is_object)
            signs["empty"] = float(not self._news(text))
            options.append(Option(text, tuple(sorted(keys(text))), said, clause, signs=signs))
        return options

    def _untyped(self) -> dict[str, float]:
        """Return the sign of a clause that stands where a stretch of some kind is asked for."""
        kind = self.asked.kind
        if kind == "what":
            return {}
        if kind in ("who", "name"):
            return {"untyped_who": 1.0}
        return {"untyped_soft": _SOFT[kind]} if kind in _SOFT else {"untyped": 1.0}

    def _clause_signs(self, index: int, said: Said, a: int, b: int) -> dict[str, float]:
        clause = said.text[a:b]
        signs = {"clause": self.scale.clause(clause)}
        other = self.scale.subject(said, a, b)
        signs["other"] = other
        if self.scale.cue_of is not None:
            signs["other_home"] = float(other == 1.0)
            signs["cue"], signs["cue_near"] = self.scale.cue(said, clause, index)
        name = "unreal" if self.scale.cue_of is None else "unreal_home"
        signs[name] = float(self.scale.unreal(clause))
        return signs

    def _said_on(self, index: int, said: Said) -> list[Option]:
        """Return the day of the turn, for what was told on the day it happened."""
        if self.asked.ahead or said.text.rstrip().endswith("?"):
            return []
        beside = [
            o
            for o in self.story.said[max(0, index - 1) : index + 2]
            if o.source.id == said.source.id and resolve(o.text, o.source.time)
        ]
        day = Span(text="", start=said.source.time, end=said.source.time)
        signs = self.signs[index] | {"undated": 1.0, "undated_beside": float(bool(beside))}
        key = ("date", said.source.time.date(), "day")
        return [Option(describe(day), key, said, said.text, signs=signs)]

    def _news(self, text: str) -> bool:
        """Whether words say anything beyond the question and the small change of talk."""
        return bool(set(keys(text)) - self.asked.words - _SMALL_TALK)

    def _object(self, clause: str, said: Said) -> tuple[str, bool]:
        """Return what a clause says of the verb that was asked for, and whether it names it."""
        verb = _VERB_ASKED.search(self.asked.low)
        wanted = lemma(verb["verb"] or verb["doing"]) if verb else ""
        for match in re.finditer(r"[\w'’-]+", clause if verb else ""):
            if lemma(fold(match.group())) == wanted:
                rest = clause[match.end() :].strip(" ,.;:!?")
                if self._news(rest):
                    return trimmed(re.sub(r"^(?:to|with|for|on|about|at)\s+", "", rest)), True
        if said.lead and not self._news(clause):
            topic = _TOPIC.search(said.lead)
            return (
                ((topic["topic"] or topic["name"]).strip(), True)
                if topic
                else (trimmed(clause), False)
            )
        return trimmed(clause), False

    def _other_trade(self, said: Said) -> bool:
        """Whether a price of buying is asked for and one of selling told, or the reverse."""
        asked = self.asked.words
        near = {word for word, weight in said.near.items() if weight >= 0.5} | said.words
        sold, bought = lemma("sold") in near, lemma("bought") in near
        if lemma("sold") in asked:
            return bought and not sold
        buys = bool(asked & {lemma("bought")}) or re.search(r"\bp(?:ay|aid)\b", self.asked.low)
        return bool(buys) and sold and not bought

    # -- stretches of a kind -------------------------------------------------------------------

    def found(self, text: str, said: Said, *, bare: bool = False) -> list[Found]:
        """Return the stretches of the kind asked for; `bare` takes also those less sure."""
        asked, kind = self.asked, self.asked.kind
        if kind == "when":
            return self._dates(text, said)
        if kind == "money":
            before = said.lead + (f" {said.context}" if said.leans else "")
            before += " bought" * (max(map(said.near.get, _TRADES, (0.0,) * len(_TRADES))) >= 0.3)
            priced = bool(
                re.search(r"\b(?:pay|cost|price|rent|charge|much|bought|sold)\b", before, re.I)
            )
            return spans.money(text, priced or bare)
        if kind == "count":
            return spans.count(text, asked.focus)
        if kind in ("who", "name"):
            return self._people(text, said) if kind == "who" else self._names(text, said)
        if kind in spans.LISTED:
            return spans.listed(kind, text)
        if kind == "where":
            return self._places(text, said, bare)
        if kind == "kind":
            found = [
                Found(a, b, text[a:b], ("kind", fold(text[a:b])), 1.0)
                for a, b in kinds_in(asked.noun, text)
            ]
            return [f for f in found if not set(keys(f.text)) <= asked.words]
        finder = spans.FINDERS.get(kind)
        return finder(text) if finder else []

    def _dates(self, text: str, said: Said) -> list[Found]:
        """Return dates; of a stretch the end that is asked for counts more."""
        low = self.asked.low
        lead = said.lead or (said.context if said.leans else "")
        found = spans.date(text, said.source.time, lead=lead, anchor=said.anchor)
        exact = re.search(r"\b(?:date|day)\b", low) is not None
        begins = re.search(r"\b(?:begin|began|start|started|leave|left|fly|depart)\b", low)
        ends = re.search(r"\b(?:end|ended|finish|return|back|until)\b", low)
        result = []
        for stretch in found:
            fit = stretch.fit
            day, grain = stretch.key[1:3]  # type: ignore[index]
            if exact and grain != "day":
                fit -= 0.4
            before = text[max(0, stretch.start - 24) : stretch.start].lower()
            last = re.search(r"\b(?:to|until|till|back on|back|return\w*(?: on)?)\s*$", before)
            if (begins and last) or (ends and not last):
                fit -= 0.4
            if self.asked.ahead and day < said.source.time.date():
                fit -= 0.5  # "When is it?" is not answered by what lay behind
            result.append(replace(stretch, fit=fit))
        return result

    def _places(self, text: str, said: Said, bare: bool) -> list[Found]:
        asked = self.asked
        found = spans.place(text)
        if bare and not found:
            found = spans.named(text)
        known = {("name", n) for p in asked.people for n in p.names}
        found = [f for f in found if f.key not in known and not self._given(f.text)]
        found = [place for f in found if (place := self._as_place(text, f)) is not None]
        if not found and not re.search(r"\b(?:is|are|was|were|has|have|had|\w+ed)\b", text):
            alone = [f for f in spans.named(text) if name_of(f) in self.story.places]
            found += [replace(f, fit=0.7) for f in alone]
        at = re.search(r"\b(?:there|here)\b", text, re.I)
        if said.there and not found and at:
            key = ("name", fold(said.there))
            found.append(Found(at.start(), at.end(), said.there, key, 0.9))
        if asked.noun not in ("city", "town", "country", "place", "state"):
            found += self._organisations(text, found)
        return found

    def _given(self, text: str) -> bool:
        """Whether the question itself says a name: "... before she moved to Delft"."""
        told = set(tokens(text))
        return bool(told) and told <= set(tokens(self.asked.low))

    def _as_place(self, text: str, found: Found) -> Found | None:
        """Return a place as it is; of a person only what is theirs, "Marek's yard", is one."""
        name = fold(found.text)
        own = re.match(rf"['’]s(?: (?:[a-z]+ )?(?P<what>{_PREMISES})\b)?", text[found.end :])
        if own is not None and own["what"]:
            shown = text[found.start : found.end + own.end()]
            return replace(found, text=shown, key=("name", fold(shown)), fit=0.7)
        return None if own is None and self._someone(name) else found

    def _someone(self, name: str) -> bool:
        kin = {r.kin for r in self.story.people.relations if r.name in (name, name.split()[0])}
        return any(kin_of(k) or gender_of(k) for k in kin)

    def _organisations(self, text: str, found: Sequence[Found]) -> list[Found]:
        """Return what is called something, if it is nobody: one may work or go there."""
        called = re.search(
            (
                rf"(?:\b{_PREMISES}(?: in [A-Z]\w+)?|^It['’]s|brewery|yard|winery|mill|agency"
                r"|band|team) "
                r"(?:called|named)\s+(?P<name>[A-Z][\w'-]*(?: [A-Z][\w'-]*)*)"
            ),
            text,
        )
        if called is None or any(f.start == called.start("name") for f in found):
            return []
        name = called["name"]
        if self._someone(fold(name)):
            return []
        return [Found(called.start("name"), called.end("name"), name, ("name", fold(name)), 0.9)]

    def _candidates(self, text: str, said: Said) -> list[tuple[Found, str]]:
        """Return names that may be asked for, with their normal form."""
        asked, story = self.asked, self.story
        drop = set(asked.about) | {
            s for s in story.speakers if not (asked.kind == "who" and s in said.about)
        }
        found = []
        for stretch in spans.named(text):
            key = name_of(stretch)
            if not key or key in drop or key.split()[0] in drop:
                continue
            if any(map(str.isdigit, key)):
                continue
            if stretch.fit < 1.0 and not (key in story.names or story.people.known(key)):
                continue  # a capital that only opens the sentence
            found.append((stretch, key))
        return found

    def _people(self, text: str, said: Said) -> list[Found]:
        """Return people by name, or by what they are to somebody."""
        people = self.story.people
        found = []
        for stretch, key in self._candidates(text, said):
            kin = any(r.name in (key, key.split()[0]) for r in people.relations)
            if kin and not people.someone({key, key.split()[0]}):
                continue  # a bike by the name of Gerda
            fit = stretch.fit
            if not kin and _THE.search(text[: stretch.start]):
                continue  # "the Corsa", "rue de Marseille" are nobody
            if not kin and key not in self.story.persons:
                if key in self.story.places:
                    continue
                fit *= 0.6
            fit = fit * (1.0 if kin else 0.6) + self._other_side(text, stretch)
            found.append(replace(stretch, fit=fit))
        if not found:
            phrases = spans.kin_phrases(text)
            found += [replace(f, fit=f.fit + self._other_side(text, f)) for f in phrases]
        drop = set(self.asked.about) | set(self.story.speakers)
        for whom in sorted(said.about - drop):
            told = people.shown.get(whom, "")
            if not told or not people.someone({whom}) or ("'s " in whom and found):
                continue
            if not any(f.key == ("name", whom) for f in found):
                found.append(Found(0, 0, told, ("name", whom), 0.6))
        return found

    def _names(self, text: str, said: Said) -> list[Found]:
        """Return names of the sort asked for; where nothing speaks of naming they fit badly."""
        found = []
        for stretch, key in self._candidates(text, said):
            place = key in self.story.places
            called = re.search(
                (
                    r"\b(?:called|named|settled on|decided on|going with|went with|chose|name(?:'s"
                    r"| is| was)?|(?:name|call|called|named) (?:him|her|it|them)"
                    r"(?:,? so \w+'s)?)\s+(?:\w+ )?$"
                ),
                text[: stretch.start],
                re.IGNORECASE,
            )
            if self._not_the_sort(key):
                continue
            if self._is_kind(key):
                fit = 2.0
            elif called is not None:
                fit = 1.0
            elif self._naming(said):
                fit = 0.1 if place else 0.9
            else:
                fit = -2.0 if place else -1.0
            found.append(replace(stretch, fit=fit))
        return found

    def _naming(self, said: Said) -> bool:
        """Whether a name was just asked for, or naming was just spoken of."""
        opening = self.story.said[said.order - said.place]
        return (
            re.search(
                r"\b(?:nam(?:e|ed|ing)|call(?:ed|ing)?)\b", f"{opening.lead} {said.context}", re.I
            )
            is not None
        )

    def _other_side(self, text: str, found: Found) -> float:
        """Return what a buyer or seller gains where the other one tells: "sold it to Ben"."""
        before = text[: found.start]
        behind = re.search(r"\b(from|to|with|for|by)$", self.asked.low)
        if behind and re.search(rf"\b{behind[1]}\s+(?:(?:the|an?|my|our)\s+)?(?:\w+\s+)?$", before):
            return 0.5
        for asked, told, joint in _SIDES:
            if asked in self.asked.words and re.search(rf"\b(?:{told})\b", text, re.I):
                link = (
                    rf"\b(?:{joint})\s+(?:(?:an?|my|our|the|his|her)\s+(?:[\w-]+\s+){{1,3}}?"
                    r"(?:(?:named|called)\s+)?)?$"
                )
                return 0.6 if re.search(link, before) else -0.3
        return 0.0

    def _not_the_sort(self, name: str) -> bool:
        """Whether a name is known to be of something else than what is asked for."""
        kins = {r.kin for r in self.story.people.relations if r.name == name and r.kin}
        if kins and self.asked.words and not self._is_kind(name):
            wanted = {word for k in kins for word in keys(k)}
            return not wanted & self.asked.words and not (_BABY & set(self.asked.low.split()))
        asks_person = any(kin_of(w) or gender_of(w) or w in _BABY for w in self.asked.low.split())
        return not asks_person and self.story.people.someone({name, name.split()[0]})

    def _is_kind(self, name: str) -> bool:
        """Whether somebody by this name is what the question calls it: "the foal"."""
        return any(
            {lemma(k) for k in kinds_of(r.kin)} & self.asked.words
            for r in self.story.people.relations
            if r.name == name and r.kin
        )

    # -- facts ---------------------------------------------------------------------------------

    def _of_facts(self) -> list[Option]:
        asked = self.asked
        options = []
        for fact in self.facts:
            predicate = fact.item.predicate or ""
            if fact.head not in asked.slots and predicate not in asked.slots:
                continue
            if asked.kind not in _ASKS.get(fact.head, ("what", "kind")):
                continue
            subject = fact.item.subject or ""
            first = {name.split()[0] for name in asked.main}
            mine = subject in asked.main or ("'s " not in subject and subject.split()[0] in first)
            if (asked.people and not mine) or fact.item.object in (None, ANY):
                continue
            if asked.kind == "where" and self._given(fact.item.object or ""):
                continue
            index = self._sentence_of(fact)
            if index is None:
                continue
            order = asked.slots.index(predicate if predicate in asked.slots else fact.head)
            signs = self.signs[index] | {"fact": 1.0, "slot": float(order)}
            if asked.kind in ("where", "job", "who", "name", "age"):
                signs["fit"] = 1.0
            options.append(
                Option(
                    self._shown(fact),
                    self._key(fact),
                    self.story.said[index],
                    fact=fact,
                    live=fact.live,
                    signs=signs,
                )
            )
        return options

    def _key(self, fact: Fact) -> Hashable:
        if self.asked.kind == "where":
            return ("name", fold(fact.item.object or ""))
        return tuple(sorted(keys(fact.item.object or "")))

    def _sentence_of(self, fact: Fact) -> int | None:
        """Return the sentence of its turn that says most of a fact."""
        told = set(keys(fact.item.text))
        inside = [
            (len(told & said.words), self.fits[index], index)
            for index, said in enumerate(self.story.said)
            if said.source.id == fact.source.id
        ]
        return max(inside)[2] if inside else None

    def _shown(self, fact: Fact) -> str:
        """Return the object as it was written, or only its name when a name is asked for."""
        value, text = fact.item.object or "", fact.item.text
        named = re.search(r"\bnamed (.+)$", text)
        if named and self.asked.kind in ("who", "name"):
            return named[1]
        if named:
            return re.sub(r"^.*?\b(?:has|had) (?:an? )?", "", text)
        place = fold(text).find(value)
        if place >= 0 and len(fold(text)) == len(text):
            return text[place : place + len(value)]
        return value


def name_of(found: Found) -> str:
    """Return the normal form of a stretch that is a name."""
    key = found.key
    return str(key[1]) if isinstance(key, tuple) and key[:1] == ("name",) else ""


def is_denied(text: str, stretch: Found) -> bool:
    """Whether a stretch is what a sentence says is not so."""
    before = text[: stretch.start]
    clause = re.split(r"[,;:.!?]|\bbut\b|\band\b", before)[-1]
    return (
        re.search(r"\b(?:not|never|no|no longer|without|cannot)\b|n['’]t\b", clause, re.I)
        is not None
        or re.match(r"['’]s off\b|[^,.;]*\bany ?more\b", text[stretch.end :]) is not None
        or re.search(r"\binstead of\s*(?:the\s*)?$", before) is not None
    )


def trimmed(text: str) -> str:
    """Return a clause without the words that only join it to another."""
    text = text.strip(' ,;:–—-"“”')
    joint = r"^(?:and|so|but|then|well|oh|also|now|anyway|because|that)\b[, ]+"
    return re.sub(joint, "", text, flags=re.I).rstrip(" .!,;:")
