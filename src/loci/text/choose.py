"""The option that answers, given when the question looks: at now, at before, at first.

What was said later counts more for a question about now; corrections are followed from a value to
the one that replaced it.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from datetime import datetime

from loci.text import spans
from loci.text.lemmas import akin, keys, lemma
from loci.text.options import TYPES, Option, Options, is_denied, trimmed
from loci.text.said import Mend, Said
from loci.text.sentences import clauses
from loci.text.spans import Found
from loci.text.stem import fold, tokens
from loci.text.weigh import PAST_WORDS, weighed

_MOST, _LIST_TYPED, _LIST = 4, 0.6, 0.35  # answers in a list, and how far below the best
_HABITS = ("weekday", "clock", "age", "diet", "money", "colour")
_VALUES = ("when", "weekday", "clock", "where", "money", "count")
_SHIFTING = frozenset(
    lemma(w)
    for w in ["move", "moved", "push", "postpone", "delay", "change", "shift", "put", "bring"]
)
_NOW_VALUE = re.compile(
    r"\b(?:now|these days|nowadays|from now on|at the moment|instead|in the end)\b", re.IGNORECASE
)
_NEW_VALUE = re.compile(
    (
        r"(?:\b(?:it|that|she|he|they)(?:['’](?:s|ll be)| is| was| will be)|\bnow"
        r"|\bactually|\binstead)"
        r"(?: (?:on|in|at|now|actually|the|only|really|for))*\s*$"
    ),
    re.IGNORECASE,
)


class Chooser:
    """Chooses among the options of one question."""

    def __init__(self, found: Options, options: Sequence[Option]) -> None:
        self.found, self.options = found, options
        self.asked, self.story, self.scale = found.asked, found.story, found.scale

    def best(self) -> Option:
        """Return the option that answers; corrections are followed."""
        scores = [weighed(signs) for signs in self.signs()]
        chosen = self.options[max(range(len(scores)), key=scores.__getitem__)]
        return self.after(chosen)

    def several(self, chosen: Option) -> list[Option]:
        """Return the answers that fit about as well as the chosen one, that one first."""
        typed = "fit" in chosen.signs
        scores = [weighed(signs) for signs in self.signs()]
        least = max(scores) - (_LIST_TYPED if typed else _LIST)
        kept = [chosen]
        for score, option in sorted(
            zip(scores, self.options, strict=True), key=lambda pair: -pair[0]
        ):
            if score < least or len(kept) == _MOST:
                break
            if ("fit" in option.signs) == typed and not any(_same(option, o) for o in kept):
                kept.append(option)
        return kept

    def after(self, chosen: Option) -> Option:
        """Return what stands now in the place of an option."""
        if self.asked.mode in ("past", "first"):
            return chosen
        return self._updated(self._mended(chosen))

    def signs(self) -> list[dict[str, float]]:
        """Return the signs of all options, those of time included."""
        present = [option.signs | self._now(option) for option in self.options]
        if self.asked.mode in ("now", "event"):
            return present
        if self.asked.mode == "first":
            return [
                option.signs
                | {
                    "later_first": self.scale.later(option.said),
                    "replaced": float(self._replaced(option)),
                }
                for option in self.options
            ]
        scores = [weighed(signs) for signs in present]
        current = self.options[max(range(len(scores)), key=scores.__getitem__)]
        typed = "fit" in current.signs
        others = any(
            ("fit" in option.signs) == typed and option.score > current.score - 1.0
            for option in self.options
            if not _same(option, current)
        )
        if not others:  # nothing else is known: what was is what is told
            return present
        return [option.signs | self._past(option, current) for option in self.options]

    # -- time ----------------------------------------------------------------------------------

    def _now(self, option: Option) -> dict[str, float]:
        asked = self.asked
        # What is said later of others tells nothing newer of those who are asked about.
        mine = max(0.0, min(1.0, option.signs.get("people", 1.0))) if asked.people else 1.0
        later = mine * self.scale.later(option.said) * (1.2 if asked.explicit else 1.0)
        told = option.said.text
        changed = max(self.scale.changed(option.clause or told), 0.6 * self.scale.changed(told))
        changed = 0.0 if option.fact else changed
        signs = {"changed_value" if asked.kind in _VALUES else "changed": changed}
        if asked.mode == "event":
            return signs | {"later_event": later}
        if self.scale.cue_of is not None:
            name = "later_home"
        elif asked.kind == "when" and asked.ahead:
            name = "later_ahead"
        else:
            name = "later_habit" if asked.kind in _HABITS else "later"
        return signs | {name: later, "dead": float(not option.live)}

    def _past(self, option: Option, current: Option) -> dict[str, float]:
        past = PAST_WORDS.search(option.clause or option.said.text) is not None
        return {
            "later_past": self.scale.later(option.said),
            "current": float(_same(option, current)),
            "after_current": float(option.said.order > current.said.order),
            "dead_past": float(option.fact is not None and not option.live),
            "past_words": float(past),
            "replaced": float(self._replaced(option)),
        }

    def _replaced(self, option: Option) -> bool:
        """Whether a later correction says that an option does not stand."""
        words = set(keys(option.text))
        for mend in self.story.mends:
            old = set(keys(mend.old))
            later = self.story.said[mend.at].order > option.said.order
            if later and old and len(old) < 4 and (old <= words or words <= old):
                return True
        return False

    # -- corrections ---------------------------------------------------------------------------

    def _mended(self, chosen: Option) -> Option:
        """Follow corrections from a value to the one that stands instead."""
        for _ in range(4):
            for mend in self.story.mends:
                at = self.story.said[mend.at]
                if mend.at < chosen.said.order or at.source.role == "assistant":
                    continue
                new = self._instead(chosen, mend)
                if new is not None:
                    chosen = new
                    break
            else:
                return chosen
        return chosen

    def _instead(self, chosen: Option, mend: Mend) -> Option | None:
        """Return what a correction puts in the place of `chosen`, if it speaks of it."""
        if self.asked.kind in spans.FINDERS or self.asked.kind in TYPES:
            return self._value_instead(chosen, mend)
        of = self.story.said[mend.of]
        if mend.typed or (of.order == chosen.said.order and fold(mend.new) in fold(chosen.text)):
            return None
        old, words = set(keys(mend.old)), set(keys(chosen.text))
        if not old or not words or not (old <= words or words <= old):
            return None
        text = trimmed(mend.new)
        return replace(chosen, text=text, key=tuple(sorted(keys(text))), said=of, fact=None)

    def _value_instead(self, chosen: Option, mend: Mend) -> Option | None:
        """Return the day, amount or name that a correction gives for the chosen one."""
        of = self.story.said[mend.of]
        if of.order < chosen.said.order:
            return None
        old = self.found.found(mend.old, of, bare=True)
        if not any(equal(f.key, chosen.key) for f in old):
            topic = self._topic(mend)
            if old or mend.typed or not topic or not topic <= _around(chosen.said):
                return None
        key = chosen.key
        if self.asked.kind == "when" and isinstance(key, tuple) and key[0] == "date":
            if key[1] < self.story.said[mend.at].source.time.date():
                return None  # it was over by then
            of = replace(of, anchor=datetime.combine(key[1], of.source.time.timetz()))
        told = self.found.found(mend.new, of, bare=True)
        new = [f for f in told if not equal(f.key, key)]
        if not new or (of.order == chosen.said.order and len(new) < len(told)):  # it is new itself
            return None
        first = min(new, key=lambda f: _NEW_VALUE.search(mend.new, 0, f.start) is None)
        whole = self.found.found(of.text, of, bare=True)
        shown = next((f for f in whole if f.key == first.key), first)
        text = _like(shown.text, chosen.text)
        return replace(chosen, text=text, key=first.key, said=of, clause=of.text, fact=None)

    def _topic(self, mend: Mend) -> set[str]:
        """Return the words by which a correction speaks of what is asked."""
        asked, story = self.asked, self.story
        told = set(keys(mend.old))
        things = {
            lemma(word)
            for name in asked.about
            if name not in story.persons and not story.people.known(name)
            for word in tokens(name)
        }
        topic = told & (asked.words | asked.focus | things)
        topic |= {w for w in asked.words if any(akin(w, k) > 0.65 for k in told)}
        return topic - _SHIFTING

    def _updated(self, chosen: Option) -> Option:
        """Return what was said later to be so now of the same thing, by the same person."""
        if self.asked.kind not in TYPES | set(spans.FINDERS) or self.asked.mode != "now":
            return chosen
        mine = (chosen.said.words | self.asked.words) - set(keys(chosen.text))
        best = chosen
        for option in self.options:
            later = option.said
            if later.order <= best.said.order or later.speaker != chosen.said.speaker:
                continue
            at = later.text.find(option.text)
            if option.fact is not None or equal(option.key, best.key) or at < 0:
                continue
            if "fit" in chosen.signs and "fit" not in option.signs:
                continue  # a clause is no newer day, place or job
            clause = next((c for c in clauses_of(later.text) if option.text in c), later.text)
            if not _NOW_VALUE.search(clause):
                continue
            if re.search(rf"\b{re.escape(fold(chosen.text))}\b", fold(option.text)):
                continue
            stretch = Found(at, at + len(option.text), option.text, option.key, 1.0)
            told = fold(chosen.text).rstrip("s") in fold(later.text)
            if len(mine & later.words) + told >= 2 and not is_denied(later.text, stretch):
                best = option
        return best


def clauses_of(text: str) -> list[str]:
    """Return the clauses of a sentence as texts."""
    return [text[a:b] for a, b in clauses(text)]


def equal(left: Hashable, right: Hashable) -> bool:
    """Whether two keys mean the same: one name inside another, a day whatever its year."""
    if left == right:
        return True
    if not (isinstance(left, tuple) and isinstance(right, tuple)) or left[:1] != right[:1]:
        return False
    if len(left) == len(right) == 3 and left[0] == "date":
        days = left[1].timetuple()[1:3] == right[1].timetuple()[1:3]
        return bool(left[2] == right[2] == "day" and days)
    if len(left) != 2 or len(right) != 2 or left[0] != "name":
        return False
    a, b = set(str(left[1]).split()), set(str(right[1]).split())
    return a <= b or b <= a


def _same(left: Option, right: Option) -> bool:
    if left.key == right.key:
        return True
    a, b = set(keys(left.text)), set(keys(right.text))
    return bool(a) and bool(b) and (a <= b or b <= a)


def _around(said: Said) -> set[str]:
    """Return the words a sentence says or takes over from the one it leans on."""
    return {*said.words, *(word for word, weight in said.near.items() if weight >= 0.5)}


def _like(new: str, old: str) -> str:
    """Give a bare new amount the unit that the old one had: "2,250", "2,400 euros"."""
    unit = re.search(r"[\d.,]+(\s?[a-zA-Z€£$ ]+)$", old)
    sign = re.match(r"[£$€]", old)
    if re.fullmatch(r"[\d.,]+", new):
        if sign:
            return sign.group() + new
        if unit:
            return new + unit[1]
    return new
