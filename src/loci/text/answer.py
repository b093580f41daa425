"""Answers from memories without a model: the fact that fits the question, or the best sentence.

The turns behind the hits are read again with the extraction rules and reconciled in the order of
their times, which tells what holds now and what held before. A question is typed (who, where, when,
how many, yes or no, what); facts are scored by whom they are about, by the words that ask for their
slot, by the words they share, and by whether the question wants the present or the past. Where no
fact fits, the sentence with most of the question's rare words is cut to the expected type.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loci.core.item import Add, Candidate, Hit, Item, Retire, Revise, Source, Turn
from loci.text.consolidate import decide, related
from loci.text.entities import names
from loci.text.extract import ANY, extract
from loci.text.phrases import KIN, kin_of
from loci.text.slots import slot_of
from loci.text.stem import STOP_WORDS, fold, stem, tokens
from loci.text.times import Span, describe, resolve

_LEMMAS_TEXT = """
go went gone goes, buy bought, get got gotten, meet met, see saw seen, take took taken, make made,
give gave given, come came, run ran, write wrote written, read, swim swam, fly flew, drive drove
driven, build built, begin began begun, find found, lose lost, win won, leave left, break broke
broken, catch caught, teach taught, learn learnt, hear heard, hold held, keep kept, spend spent,
eat ate eaten, drink drank, sleep slept, ride rode, sing sang, send sent, tell told, say said,
speak spoke, stand stood, wear wore, choose chose, draw drew, fall fell, feel felt, grow grew,
hurt, know knew known, lead led, pay paid, put, sell sold, quit, shoot shot, think thought, throw
threw, wake woke, visit visited, child children kids kid, mother mom mum, father dad, favourite
favorite, colour color, neighbour neighbor, purchase, photo picture, film movie
"""
_LEMMA = {
    form: stem(forms[0])
    for entry in _LEMMAS_TEXT.replace("\n", " ").split(",")
    if (forms := entry.split())
    for form in forms
}
_YES_NO = re.compile(
    r"^(?:(?:and|so|but)\s+)?(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would"
    r"|should|am)\b",
    re.IGNORECASE,
)
_PAST_STATE = re.compile(
    r"\b(?:used to|previous(?:ly)?|former(?:ly)?|before|originally|at first|earlier|in the past"
    r"|no longer|ex|(?:did|was|were) .*\b(?:old|first)\b)\b",
    re.IGNORECASE,
)
_NOW = re.compile(
    r"\b(?:now|current(?:ly)?|these days|nowadays|at the moment|still|today|latest|right now)\b",
    re.IGNORECASE,
)
_NUMBER_WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "twenty",
    "thirty",
    "dozen",
    "hundred",
]
_NUMBER = re.compile(
    rf"\b(?:\d[\d,.]*|{'|'.join(_NUMBER_WORDS)}|a couple|a pair)\b(?:\s+(?!\d)[a-z]+)?", re.I
)
_PLACE = re.compile(
    r"\b(?:in|at|to|from|near|on)\s+((?:the\s+)?[A-Z][\w'-]*(?:\s+(?:of\s+|the\s+)?[A-Z][\w'-]*)*)"
)
_SPLIT = re.compile(r"(?<=[.!?])\s+|\n+")
_NAMES = re.compile(r"\b(?:named|called|name is|name was|'s \w+ (?:is|was))\b")
_CALLED = re.compile(r"\b(?:named|called|name is|name's)\s+([A-Z][\w'-]*(?:\s+[A-Z][\w'-]*)*)")
_REASON = re.compile(r"\b(?:because|since|so that|due to|thanks to|in order to|as i)\b(.+)", re.I)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the memories say.

    Attributes:
        text: the shortest answer; "" when the memories do not say.
        why: the sentence or fact it rests on, with who said it and when.
        hits: ids of the hits it rests on.
        confidence: 0 to 1; below 0.5 the answer is a sentence that may only be close.
    """

    text: str
    why: str
    hits: tuple[str, ...]
    confidence: float


@dataclass(frozen=True)
class _Fact:
    """A fact read from the hits, whether it still holds, and where it was said."""

    item: Item
    source: Source
    rank: int
    ended_at: datetime | None = None

    @property
    def live(self) -> bool:
        return self.item.retired_at is None and self.item.valid_to is None


@dataclass(frozen=True)
class _Question:
    """A question taken apart."""

    text: str
    kind: str  # who, where, when, number, yesno, why, what
    words: frozenset[str]
    who: tuple[str, ...]  # folded names it is about, longest first
    kin: tuple[str, ...]  # "sister", "dog"
    past: bool
    now: bool
    wants_name: bool
    spans: tuple[Span, ...]


def answer(question: str, hits: Sequence[Hit], now: datetime) -> Answer:
    """Return the best answer that the hits hold.

    >>> from datetime import UTC
    >>> when = datetime(2026, 5, 1, tzinfo=UTC)
    >>> said = Source(id="t1", content="I'm allergic to nuts.", time=when, name="Ada")
    >>> hit = Hit(id="f1", text="Ada is allergic to nuts", score=1.0, sources=(said,))
    >>> answer("What is Ada allergic to?", [hit], when).text
    'nuts'
    """
    if not hits:
        return Answer(text="", why="no memory fits", hits=(), confidence=0.0)
    sources: dict[str, tuple[Source, int, str]] = {}
    for rank, hit in enumerate(hits):
        for source in hit.sources:
            sources.setdefault(source.id, (source, rank, hit.id))
    asked = _taken_apart(question, [s for s, _, _ in sources.values()], now)
    facts = _facts(sources)
    found = _from_facts(asked, facts, sources)
    if found is not None:
        return found
    return _from_sentences(asked, hits, sources)


# -- the question ----------------------------------------------------------------------------------


def _taken_apart(question: str, sources: Sequence[Source], now: datetime) -> _Question:
    low = fold(question).strip()
    words = tokens(question)
    speakers = [s.name or "The user" for s in sources if s.role == "user"]
    user = Counter(speakers).most_common(1)[0][0] if speakers else "The user"
    known = list(dict.fromkeys(fold(name) for name in speakers))
    who = [name for name in known if name.split()[0] in words]
    who += [fold(name) for name in names(question) if fold(name) not in who]
    if not who and re.search(r"\b(?:i|my|me|mine|we|our)\b", low):
        who.append(fold(user))
    kin = tuple(dict.fromkeys(word for word in words if kin_of(word) is not None))
    kin += tuple(w[:-1] for w in kin if w.endswith("s") and w[:-1] in KIN)
    keys = set(_keys(question))
    if re.search(
        r"\bwhat (?:does|do|did|is|was) .+ (?:do|doing)(?: now| for a living| for work)?\W*$", low
    ):
        keys.add("job")
    if re.search(r"\b(?:is|are)\b.* (?:with|married to|engaged to|seeing)\b", low):
        keys.add(stem("partner"))
    if re.search(r"\bwhere\b.*\bfrom\b", low):
        keys.add(stem("hometown"))
    return _Question(
        text=question,
        kind=_kind(low),
        words=frozenset(keys) - {stem(part) for name in who for part in name.split()},
        who=tuple(who),
        kin=kin,
        past=_PAST_STATE.search(low) is not None
        or re.search(
            r"\b(?:where|who|what) (?:did|was|were)\b.*\b(?:live|work|job|drive|date)", low
        )
        is not None,
        now=_NOW.search(low) is not None,
        wants_name=re.search(r"\b(?:named?|names|called|who)\b", low) is not None,
        spans=tuple(s for s in resolve(question, now) if s.relation != "for"),
    )


def _kind(low: str) -> str:
    low = re.sub(
        r"^(?:and|so|but|then|ok|okay|hey|please|tell me|do you (?:know|remember))\W+", "", low
    )
    if re.search(r"\bhow (?:many|much|old|long|often|far|tall|big)\b", low):
        return "number"
    if re.search(
        r"\bwhen\b|\bwhat (?:date|day|time|year|month)\b|\bwhich (?:day|date|year|month)\b", low
    ):
        return "when"
    place = r"(?:city|country|town|place|state|neighbou?rhood|area)"
    if re.search(rf"\bwhere\b|\b(?:what|which) {place}\b", low):
        return "where"
    if re.search(rf"\bwhich (?:of (?:his|her|my|their) )?(?:{'|'.join(KIN)})s?\b", low):
        return "who"
    if re.match(r"(?:who|whom|whose)\b|.*\bwho\b", low):
        return "who"
    if re.search(r"\bwhy\b|\bhow come\b|\bwhat (?:was|is) the reason\b", low):
        return "why"
    if re.search(r"\b(?:what|which|how)\b", low):
        return "what"
    return "yesno" if _YES_NO.match(low) else "what"


def _keys(text: str) -> list[str]:
    """Return stems with irregular forms brought together."""
    return [_LEMMA.get(w) or stem(w) for w in tokens(text) if w not in STOP_WORDS]


# -- facts -----------------------------------------------------------------------------------------


def _facts(sources: dict[str, tuple[Source, int, str]]) -> list[_Fact]:
    """Read the turns again in the order of time, and reconcile what they say."""
    ordered = sorted(sources.values(), key=lambda entry: entry[0].time)
    turns = [
        Turn(id=s.id, role=s.role, content=s.content, time=s.time, name=s.name, session=s.session)
        for s, _, _ in ordered
    ]
    facts: dict[str, _Fact] = {}
    for turn in turns:
        before = [t for t in turns if t.session == turn.session and t.time <= turn.time]
        earlier = before[: before.index(turn)][-4:]
        for number, candidate in enumerate(extract([turn], earlier)):
            source, rank, _ = sources[turn.id]
            predicates = related(candidate)
            near = [
                f.item
                for f in facts.values()
                if f.item.subject == candidate.subject and f.item.predicate in predicates
            ]
            edits = decide(candidate, near)
            if candidate.ends and not edits:  # what it ends was not found; it tells so itself
                item = replace(_item(f"{turn.id}/{number}/-", candidate), retired_at=turn.time)
                facts[item.id] = _Fact(item, source, rank, turn.time)
            for edit in edits:
                made: Candidate | None = None
                if isinstance(edit, Add):
                    made = edit.candidate
                elif isinstance(edit, Retire):
                    old = facts[edit.id]
                    ended = edit.at or turn.time
                    facts[edit.id] = replace(
                        old,
                        item=replace(old.item, retired_at=ended, valid_to=ended),
                        ended_at=ended,
                    )
                    made = edit.superseded_by
                elif isinstance(edit, Revise):
                    old = facts[edit.id]
                    if edit.reason != "said again":
                        item = replace(
                            old.item, text=edit.candidate.text, object=edit.candidate.object
                        )
                        facts[edit.id] = replace(old, item=item, source=source)
                    facts[edit.id] = replace(facts[edit.id], rank=min(rank, old.rank))
                if made is not None:
                    id = f"{turn.id}/{number}/{len(facts)}"
                    facts[id] = _Fact(_item(id, made), source, rank)
    return list(facts.values())


def _item(id: str, made: Candidate) -> Item:
    return Item(
        id=id,
        text=made.text,
        subject=made.subject,
        predicate=made.predicate,
        object=made.object,
        sources=made.sources,
        valid_from=made.valid_from,
        valid_to=made.valid_to,
    )


def _from_facts(
    asked: _Question, facts: Sequence[_Fact], sources: dict[str, tuple[Source, int, str]]
) -> Answer | None:
    kin_names = _names_of_kin(asked, facts)
    scored = sorted(
        (
            (score, -fact.rank, fact)
            for fact in facts
            if (score := _score(asked, fact, kin_names)) > 0
        ),
        key=lambda entry: (-round(2 * entry[0]), -_stamp(entry[2]), -entry[1]),
    )
    if not scored or scored[0][0] < 5.0:
        return None
    best_score, _, best = scored[0]
    chosen = [best]
    if slot_of(best.item.predicate or "").many and asked.kind in ("what", "who", "number"):
        chosen += [
            fact
            for score, _, fact in scored[1:]
            if score >= best_score - 1.0
            and (fact.item.subject, fact.item.predicate) == (best.item.subject, best.item.predicate)
            and fact.live == best.live
            and best.item.predicate != "did"
        ]
    text = _value(asked, best, chosen, facts)
    if not text:
        return None
    said = best.source
    why = f"{best.item.text} ({said.name or said.role}, {said.time:%d %B %Y})"
    if best.ended_at is not None:
        why += f", until {best.ended_at:%d %B %Y}"
    ids = tuple(dict.fromkeys(sources[fact.source.id][2] for fact in chosen))
    return Answer(text=text, why=why, hits=ids, confidence=min(1.0, best_score / 10))


def _stamp(fact: _Fact) -> float:
    return fact.source.time.timestamp()


def _names_of_kin(asked: _Question, facts: Iterable[_Fact]) -> set[str]:
    """Return names of the people the question calls by relation: "Ada's sister" is "lena"."""
    found = set()
    for fact in facts:
        slot = (fact.item.predicate or "").partition(":")[0]
        for noun in asked.kin:
            if kin_of(noun) != slot:
                continue
            words = (fact.item.object or "").split()
            if slot == "partner":
                found.update(words[:1])
            elif noun in words:
                found.update(words[words.index(noun) + 1 :])
    return found


def _score(asked: _Question, fact: _Fact, kin_names: set[str]) -> float:
    item = fact.item
    head, _, parameter = (item.predicate or "").partition(":")
    slot = slot_of(head)
    subject = item.subject or ""
    value = set(_keys(f"{item.object or ''} {parameter}"))
    told = set(_keys(item.text))
    if head == "diet" and asked.words & _excluded(item.object or ""):
        cue_extra = 1
    else:
        cue_extra = 0
    cue = cue_extra + len(asked.words & {*slot.cues, *(_LEMMA.get(c, c) for c in slot.cues)})
    others = {stem(part) for name in asked.who if name != subject for part in name.split()}
    shared = (asked.words | others) & value
    overlap = len(shared)
    if head in set(KIN.values()) and not asked.kin and not cue and not asked.words & value:
        return 0.0
    if not cue and not overlap and not asked.words & told:
        return 0.0
    score = 2.0 * min(cue, 2) + 1.5 * min(overlap, 3) + 0.5 * len((asked.words & told) - shared)
    score += _subject_score(asked, subject, head, item.object or "", kin_names)
    if head == "favourite" or parameter:
        score += 2.0 if parameter and set(_keys(parameter)) & asked.words else -1.5
    if stem(head) in asked.words:
        score += 1.0
    if "name" in asked.words and not _NAMES.search(item.text):
        score -= 4.0
    if head == "plan" and asked.kind == "when" and re.search(r"\b(?:did|was|were)\b", asked.text):
        score -= 2.0
    if asked.kind == slot.asks and head != "did":
        score += 1.5
    elif asked.kind in ("where", "who", "number") and slot.asks != asked.kind:
        score -= 4.0 if slot.state and asked.kind != "number" else 1.0
        if asked.kind == "number" and re.search(r"\d|\b(?:two|three|four|five|six)\b", item.text):
            score += 2.0
    if asked.kind == "when" and slot.asks != "when":
        score += 0.5 * overlap - (0.0 if overlap else 3.0)
        if resolve(fact.source.content, fact.source.time):
            score += 1.0
    if asked.past and slot.state:
        score += 3.0 if not fact.live else -2.0
        before = re.search(r"\bbefore\b(.*)", asked.text, re.I)
        if before and set(_keys(before[1])) & value:
            score -= 5.0  # it asks for what came before this one
    elif asked.kind not in ("when", "yesno") and not fact.live and slot.state:
        score -= 3.0
    if asked.spans and item.valid_from is not None and asked.kind != "when":
        score += 1.5 if asked.spans[0].holds(item.valid_from) else -0.5
    return score + 0.5 / (1 + fact.rank)


def _subject_score(
    asked: _Question, subject: str, head: str, value: str, kin_names: set[str]
) -> float:
    base, _, relation = subject.partition("'s ")
    if asked.kin:
        if any(kin_of(noun) == head for noun in asked.kin):
            named = any(noun in value.split() for noun in asked.kin) or head == "partner"
            wants = asked.wants_name or asked.kind in ("who", "number", "yesno")
            wants = wants or (
                asked.kind == "what" and "job" not in asked.words and slot_asked(asked)
            )
            fits = not asked.who or base in asked.who
            return (3.0 if wants else 0.0) + (1.0 if named else 0.0) + (0.5 if fits else -3.0)
        if relation and any(noun in relation.split() for noun in asked.kin):
            return 3.5
        if subject in kin_names:
            return 3.0
        return -2.0
    if not asked.who:
        return 1.0
    if subject in asked.who or any(subject.split()[:1] == n.split()[:1] for n in asked.who):
        return 3.0 if not relation else -1.0
    if any(name in subject.split() for name in asked.who):
        return 1.5
    if any(name in value for name in asked.who):
        return 1.5
    return -3.0


_KIN_WORDS = frozenset(_LEMMA.get(w) or stem(w) for w in KIN)


def slot_asked(asked: _Question) -> bool:
    """Whether nothing but the people themselves is asked for: "What pets does Ada have?"."""
    return not asked.words - _KIN_WORDS - {"name", "kind", "type", "sort", "breed", "anim", "pet"}


def _value(asked: _Question, best: _Fact, chosen: Sequence[_Fact], facts: Sequence[_Fact]) -> str:
    item = best.item
    head = (item.predicate or "").partition(":")[0]
    if asked.kind == "yesno":
        return _yes_no(asked, best)
    if asked.kind == "when" and head not in ("birthday", "appointment"):
        return _when(best, asked)
    if asked.kind == "number":
        return _how_many(asked, best, chosen)
    if item.object == ANY:
        return item.text
    if head == "did" or (asked.kind == "why"):
        return _cut(asked, best)
    shown = [_shown(asked, fact) for fact in chosen]
    return ", ".join(dict.fromkeys(text for text in shown if text))


def _shown(asked: _Question, fact: _Fact) -> str:
    """Return the object as it was written, or only its name when a name is asked for."""
    value = fact.item.object or ""
    text = fact.item.text
    named = re.search(r"\bnamed (.+)$", text)
    if named and asked.wants_name:
        return named[1]
    if named:
        return re.sub(r"^.*?\b(?:has|had) (?:an? )?", "", text)
    place = fold(text).find(value)
    if place >= 0 and len(fold(text)) == len(text):
        return text[place : place + len(value)]
    return value


_MEAT = frozenset(
    [
        "meat",
        "beef",
        "pork",
        "chicken",
        "ham",
        "bacon",
        "steak",
        "turkey",
        "lamb",
        "sausag",
        "burger",
        "fish",
    ]
)
_ANIMAL = _MEAT | frozenset(
    ["dairi", "egg", "chees", "milk", "butter", "honey", "yoghurt", "yogurt", "cream", "seafood"]
)
_EXCLUDES = {
    "vegan": _ANIMAL,
    "vegetarian": _MEAT,
    "pescatarian": _MEAT - {"fish"},
    "lactose intolerant": frozenset(("milk", "dairi", "chees", "cream", "yogurt")),
    "gluten free": frozenset(("gluten", "bread", "wheat", "pasta")),
}


def _excluded(diet: str) -> frozenset[str]:
    return _EXCLUDES.get(diet.replace("-", " "), frozenset())


def _yes_no(asked: _Question, fact: _Fact) -> str:
    item = fact.item
    head = (item.predicate or "").partition(":")[0]
    value = set(_keys(item.object or ""))
    named = {stem(part) for name in asked.who for part in name.split()}
    meant = bool(value & (asked.words | named)) or item.object == ANY
    if head == "diet" and asked.words & _excluded(item.object or ""):
        return f"{'No' if fact.live else 'Yes'}, {item.text}"
    if head == "partner" and not meant:
        meant = bool(asked.words & {"marri", "engag", "date", "relationship"})
    slot = slot_of(head)
    negative = head in ("avoids", "dislikes") and not asked.words & set(slot.cues[:1])
    if head == "avoids":
        negative = True
    if head == "dislikes":
        negative = bool(asked.words & {"like", "love", "enjoy"})
    if not slot.many and not meant:
        kind = set(_keys(item.text)) & asked.words
        if not kind and head not in ("lives_in", "works_at", "job", "diet", "from"):
            return item.text
        return f"No, {item.text}" if fact.live else item.text
    true = (fact.live or not slot.state) != negative
    if asked.past and not fact.live:
        true = not negative
    return f"{'Yes' if true else 'No'}, {item.text}"


def _when(fact: _Fact, asked: _Question) -> str:
    said = fact.source
    ends = r"\b(?:stop|quit|leave|left|end|break|broke|sell|sold|split|lose|lost|give up|cancel)"
    if fact.ended_at is not None and re.search(ends, asked.text, re.I):
        day = fact.ended_at
        return describe(Span(text="", start=day, end=day))
    sentences = [s for s in _SPLIT.split(said.content) if s.strip()]
    best = max(sentences, key=lambda s: len(set(_keys(s)) & asked.words), default=said.content)
    for text in (best, said.content):
        spans = resolve(text, said.time)
        if spans:
            return describe(spans[0])
    if fact.ended_at is not None and re.search(
        r"\b(?:stop|quit|leave|end|break|sell|sold)", asked.text
    ):
        return describe(Span(text="", start=fact.ended_at, end=fact.ended_at))
    when = fact.item.valid_from or said.time
    return describe(Span(text="", start=when, end=when))


def _how_many(asked: _Question, best: _Fact, chosen: Sequence[_Fact]) -> str:
    head = (best.item.predicate or "").partition(":")[0]
    if head == "age":
        return best.item.object or ""
    for fact in chosen:
        counted = _NUMBER.search(fact.item.text)
        if counted is not None:
            return counted.group()
    if re.search(r"\bhow long\b", asked.text, re.I):
        spans = resolve(best.source.content, best.source.time)
        held = [s for s in spans if s.relation in ("for", "since")]
        if held:
            return held[0].text if held[0].relation == "for" else describe(held[0])
        return ""
    if re.search(r"\bhow often\b", asked.text, re.I):
        return _shown(asked, best)
    if head in ("pet", "child", "sibling", "friend", "owns", "relative", "allergic_to", "speaks"):
        return str(len(chosen))
    return ""


def _cut(asked: _Question, fact: _Fact) -> str:
    if asked.kind == "why":
        reason = _REASON.search(fact.source.content)
        return reason.group().strip(" .!") if reason else ""
    if asked.kind == "where":
        place = _PLACE.search(fact.item.text)
        return place[1] if place else fact.item.text
    if asked.kind == "who":
        found = [n for n in names(f"x {fact.item.text}") if fold(n) not in asked.who]
        return (found or [fact.item.text])[0]
    return fact.item.text


# -- sentences -------------------------------------------------------------------------------------


def _from_sentences(
    asked: _Question, hits: Sequence[Hit], sources: dict[str, tuple[Source, int, str]]
) -> Answer:
    entries: list[tuple[str, Source | None, int, str]] = []
    for source, rank, hit in sources.values():
        for sentence in _SPLIT.split(source.content):
            if len(sentence.split()) > 1:
                entries.append((sentence.strip(), source, rank, hit))
    for rank, hit_ in enumerate(hits):
        if not hit_.sources:
            entries.append((hit_.text, None, rank, hit_.id))
    seen = Counter(word for text, _, _, _ in entries for word in set(_keys(text)))
    best: tuple[float, str, Source | None, str] | None = None
    for text, said_by, rank, hit in entries:
        words = set(_keys(text))
        shared = words & asked.words
        score = sum(math.log(1 + len(entries) / seen[word]) for word in shared)
        score += 1.5 / (1 + rank)
        if text.endswith("?"):
            score -= 1.5
        if said_by is not None:
            whole = set(_keys(said_by.content)) & asked.words
            score += 0.3 * len(whole - shared)
            if asked.who and said_by.name and fold(said_by.name) in asked.who:
                score += 1.0
            if said_by.role == "assistant":
                score -= 0.5
        score += 1.0 if _of_type(asked, text, said_by) else 0.0
        if best is None or score > best[0]:
            best = (score, text, said_by, hit)
    if best is None:
        return Answer(text="", why="no memory fits", hits=(), confidence=0.0)
    score, text, origin, hit = best
    said = f" ({origin.name or origin.role}, {origin.time:%d %B %Y})" if origin else ""
    return Answer(
        text=_span_of(asked, text, origin),
        why=text + said,
        hits=(hit,),
        confidence=max(0.0, min(0.49, score / 20)),
    )


def _of_type(asked: _Question, text: str, source: Source | None) -> bool:
    if "name" in asked.words and _CALLED.search(text):
        return True
    if asked.kind == "when":
        return source is not None and bool(resolve(text, source.time))
    if asked.kind == "number":
        return _NUMBER.search(text) is not None
    if asked.kind == "where":
        return _PLACE.search(text) is not None
    if asked.kind == "who":
        return any(fold(name) not in asked.who for name in names(f"x {text}"))
    if asked.kind == "why":
        return _REASON.search(text) is not None
    return False


def _span_of(asked: _Question, text: str, source: Source | None) -> str:
    if "name" in asked.words and (called := _CALLED.search(text)):
        return called[1]
    if asked.kind == "when" and source is not None:
        spans = resolve(text, source.time) or resolve(source.content, source.time)
        time = source.time
        return describe(spans[0]) if spans else describe(Span(text="", start=time, end=time))
    if asked.kind == "number" and (count := _NUMBER.search(text)):
        return count.group()
    if asked.kind == "where" and (place := _PLACE.search(text)):
        return place[1]
    if asked.kind == "who":
        found = [name for name in names(f"x {text}") if fold(name) not in asked.who]
        if found:
            return found[0]
    if asked.kind == "why" and (reason := _REASON.search(text)):
        return reason.group().strip(" .!")
    return text
