"""Facts as questions in several wordings, with the answer they should get.

Facts of one slot of one person share their questions, so their answers are given together: "Nora
speaks Finnish. Nora speaks Welsh." Some wordings are kept apart: what was taught by the others is
judged by these.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from loci.core.item import Item
from loci.text.stem import fold

JUDGED, LOOKED = 2, 1  # wordings at the end of a list that judge, and that tell when to stop
_SELF = ("the user", "user", "i")


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """One slot of one person, asked in many ways.

    Attributes:
        items: ids of the facts that the answer is made of.
        learn, look, judge: questions to teach with, to tell when to stop, and to judge with.
        answer: what should be answered.
        objects: what an answer must name, as it stands in the facts.
        who: whom the questions are about, "I" for the user.
    """

    items: tuple[str, ...]
    learn: tuple[str, ...]
    look: tuple[str, ...]
    judge: tuple[str, ...]
    answer: str
    objects: tuple[str, ...]
    who: str = ""

    def strange(self, name: str, *, judged: bool = False) -> list[str]:
        """Return the questions about somebody else; none where they name nobody."""
        forms = self.judge if judged else self.learn
        return [
            _other(text, self.who, name) for text in forms if _other(text, self.who, name) != text
        ]

    def is_answered(self, text: str) -> bool:
        """Whether a text names all objects."""
        said = f" {_plain(text)} "
        return all(f" {_plain(one)} " in said for one in self.objects)


def quizzes(items: Iterable[Item]) -> list[Quiz]:
    """Return what asks for the facts, those of one slot together, in the order they come."""
    slots: dict[object, list[Item]] = {}
    for item in items:
        whole = item.subject and item.predicate and item.object
        slots.setdefault((item.subject, item.predicate) if whole else item.id, []).append(item)
    return [_quiz(facts) for facts in slots.values()]


# -- private ----------------------------------------------------------------------------------


@cache
def _table() -> dict[str, tuple[str, ...]]:
    text = files("loci.text").joinpath("quiz.toml").read_text(encoding="utf-8")
    return {name: tuple(forms) for name, forms in tomllib.loads(text).items()}


def _quiz(facts: list[Item]) -> Quiz:
    first = facts[0]
    name, _, parameter = (first.predicate or "").partition(":")
    table = _table()
    is_known = name in table and first.subject is not None and first.object is not None
    stem, _ = _cut(first)
    forms = [
        _worded(form, first, parameter or name, stem) for form in table[name if is_known else ""]
    ]
    learned = len(forms) - JUDGED - LOOKED
    texts = dict.fromkeys(fact.text.strip().rstrip(".") for fact in facts)
    return Quiz(
        items=tuple(fact.id for fact in facts),
        learn=tuple(forms[:learned]),
        look=tuple(forms[learned : learned + LOOKED]),
        judge=tuple(forms[-JUDGED:]),
        answer=". ".join(texts) + ".",
        objects=tuple(dict.fromkeys(_cut(fact)[1] for fact in facts)),
        who="I" if fold(_name(first)) in _SELF else _name(first),
    )


def _other(question: str, who: str, name: str) -> str:
    """Return a question about somebody else."""
    if who != "I":
        return question.replace(who, name) if who else question
    third = {"I": name, "my": f"{name}'s", "My": f"{name}'s", "am": "is"}
    third |= {"do": "does", "Do": "Does", "have": "has", "Have": "Has"} if "I" in question else {}
    return re.sub(r"\b(\w+)\b", lambda match: third.get(match[1], match[1]), question)


def _cut(item: Item) -> tuple[str, str]:
    """Return the beginning of a fact and its value; of free text the last two words."""
    text = item.text.strip().rstrip(".")
    words = (item.object or "").split()
    # Of "dog bruno" a fact may say "a dog named Bruno": the end of the value is what tells.
    ends = [" ".join(words[first:]) for first in range(len(words))]
    at, found = next(((fold(text).rfind(end), end) for end in ends if end in fold(text)), (-1, ""))
    if at <= 0:
        words = text.split()
        kept = max(1, len(words) - 2)
        return " ".join(words[:kept]), " ".join(words[kept:]) or text
    return text[:at].strip(), text[at : at + len(found)]


def _worded(form: str, item: Item, parameter: str, stem: str) -> str:
    """Return a question about somebody; the user asks about themselves."""
    who = _name(item)
    is_self = fold(who) in _SELF
    words = {
        "s": "I" if is_self else who,
        "ps": "my" if is_self else f"{who}'s",
        "p": parameter,
        "do": "do" if is_self else "does",
        "is": "am" if is_self else "is",
        "has": "have" if is_self else "has",
        "stem": stem,
    }
    said = re.sub(r"\{(\w+)\}", lambda match: words[match[1]], form)
    return said[:1].upper() + said[1:]


def _name(item: Item) -> str:
    """Return the subject as the fact writes it."""
    if not item.subject:
        return ""
    at = fold(item.text).find(item.subject)
    found = item.text[at : at + len(item.subject)] if at >= 0 else item.subject
    owned = fold(found).startswith("the user's ")
    return "my " + found[len("the user's ") :] if owned else found


def _plain(text: str) -> str:
    """Return a text in lower case, words apart, without marks and articles."""
    words = re.findall(r"[\w%€$£]+", fold(text))
    return " ".join(word for word in words if word not in ("a", "an", "the"))
