"""Yes or no: what a fact or a sentence says about a question that can be answered so."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loci.text.ask import Question
from loci.text.clause import ANY
from loci.text.known import Fact
from loci.text.lemmas import keys, lemma
from loci.text.said import Said
from loci.text.sentences import clauses
from loci.text.slots import slot_of
from loci.text.stem import stem, tokens

_MEAT = frozenset(
    lemma(w)
    for w in [
        "meat",
        "beef",
        "pork",
        "chicken",
        "ham",
        "bacon",
        "steak",
        "turkey",
        "lamb",
        "sausage",
        "burger",
        "fish",
    ]
)
_ANIMAL = _MEAT | frozenset(
    lemma(w)
    for w in ["dairy", "egg", "cheese", "milk", "butter", "honey", "yoghurt", "cream", "seafood"]
)
_EXCLUDES = {
    "vegan": _ANIMAL,
    "vegetarian": _MEAT,
    "pescatarian": _MEAT - {lemma("fish")},
    "lactose intolerant": frozenset(
        lemma(w) for w in ["milk", "dairy", "cheese", "cream", "yoghurt"]
    ),
    "gluten free": frozenset(lemma(w) for w in ["gluten", "bread", "wheat", "pasta"]),
}
_ENDS = re.compile(
    (
        r"\b(?:stop(?:s|ped)?|quit|gave up|give(?:n)? up|giving up|no longer|any ?more"
        r"|left|over|broke up"
        r"|split up|sold)\b"
    ),
    re.IGNORECASE,
)
_NOT = re.compile(r"\b(?:not|never|no|none|cannot|without)\b|n['’]t\b", re.IGNORECASE)


def verdict(asked: Question, facts: Sequence[Fact], said: Said) -> tuple[str, Fact | None]:
    """Return "Yes, ..." or "No, ...", and the fact it rests on; None when it is the sentence."""
    scored = [(score, f) for f in facts if (score := _score(asked, f)) > 0]
    if scored:
        best_score, best = max(scored, key=lambda pair: (pair[0], pair[1].source.time))
        newest = said.source.time > best.source.time and bool(asked.words & said.words)
        if best_score >= 2.0 and not newest:
            return _by_fact(asked, best), best
    ends_asked = _ENDS.search(asked.low) is not None
    parts = [said.text[a:b] for a, b in clauses(said.text)]
    clause = max(parts, key=lambda part: len(asked.words & set(keys(part))))
    ends_said = _ENDS.search(clause) is not None
    negative = _NOT.search(clause) is not None
    agrees = ends_said if ends_asked else not (negative or ends_said)
    text = clause.strip(" .!,")
    if text[1:2].islower():
        text = text[:1].lower() + text[1:]
    return f"{'Yes' if agrees else 'No'}, {text}", None


def _score(asked: Question, fact: Fact) -> float:
    item = fact.item
    subject = (item.subject or "").partition("'s ")[0]
    if (
        asked.people
        and subject not in asked.about
        and not any(subject.split()[:1] == n.split()[:1] for n in asked.about)
    ):
        return 0.0
    others = {lemma(p) for n in asked.about if n != subject for p in n.split()}
    value = set(keys(item.object or "")) | set(keys((item.predicate or "").partition(":")[2]))
    told = set(keys(item.text))
    score = 1.5 * len((asked.words | others) & value) + 0.5 * len(asked.words & told - value)
    if fact.head == "diet" and asked.words & excluded(item.object or ""):
        score += 3.0
    if fact.head in asked.slots and score:
        score += 1.0
    if fact.head == "partner" and item.object == ANY and "partner" in asked.slots:
        score += 2.0
    if fact.head == "did":
        score -= 0.5
    return score


def excluded(diet: str) -> frozenset[str]:
    """Return what a diet leaves out."""
    return _EXCLUDES.get(diet.replace("-", " "), frozenset())


def _by_fact(asked: Question, fact: Fact) -> str:
    item = fact.item
    value = set(keys(item.object or ""))
    named = {stem(part) for name in asked.about for part in tokens(name)}
    named |= {lemma(part) for name in asked.about for part in tokens(name)}
    meant = bool(value & (asked.words | named)) or item.object == ANY
    if fact.head == "diet" and asked.words & excluded(item.object or ""):
        return f"{'No' if fact.live else 'Yes'}, {item.text}"
    slot = slot_of(item.predicate or "")
    negative = fact.head == "avoids" or (
        fact.head == "dislikes" and bool(asked.words & {"like", "love", "enjoy"})
    )
    if not slot.many and not meant:
        return f"No, {item.text}" if fact.live else item.text
    true = (fact.live or not slot.state) != negative
    if asked.mode == "past" and not fact.live:
        true = not negative
    if _ENDS.search(asked.low):
        true = not true
    return f"{'Yes' if true else 'No'}, {item.text}"
