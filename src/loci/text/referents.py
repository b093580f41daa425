"""Whom a sentence is about: names, relations and pronouns, followed through a conversation.

Pronouns are followed to the last person they fit; "I" and "my" are the speaker, "you" the other.
Names given to people and things are kept as relations: "my sister Ilse", "she's called Vesna".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from loci.core.item import Source
from loci.text import naming
from loci.text.bonds import Bonds, clean, fitting
from loci.text.entities import PLAIN, names
from loci.text.lemmas import keys
from loci.text.phrases import BASE, JOBS, KIN, PAST, kin_of
from loci.text.said import Said, Story
from loci.text.sentences import sentences
from loci.text.stem import fold
from loci.text.times import resolve


class Referents:
    """Reads turns one after another, keeping who was named last."""

    def __init__(self, story: Story, turns: Sequence[tuple[Source, int]]) -> None:
        self.story, self.turns = story, turns
        self.recent: list[tuple[str, str]] = []  # (person, gender), newest last
        self.unnamed: tuple[str, str] | None = None  # (owner, noun) that has no name yet
        self.there = ""  # the place named last
        self.just: tuple[str, str] | None = None  # what the sentence before left unnamed
        self.met: set[str] = set()  # who has been named so far
        self.session: str | None = None
        self.persons: set[str] = set()
        self.inside = {fold(n) for source, _ in turns for n in names(source.content)}
        self.places = {
            fold(clean(m["name"]))
            for source, _ in turns
            for m in naming.IN.finditer(source.content.replace("’", "'"))
            if not m["name"].endswith("'s")
        }
        story.places |= self.places
        self.small = {
            word
            for source, _ in turns
            for word in re.findall(r"(?<!\w)[a-z][\w-]*", source.content)
        }
        for source, _ in turns:
            self._persons_in(source.content.replace("’", "'"))

    def turn(self, index: int) -> None:
        """Read one turn; its sentences are added to the story."""
        source, rank = self.turns[index]
        if source.session != self.session:
            self.session, self.recent, self.unnamed = source.session, [], None
            self.there = ""
        speaker = fold(source.name or source.role)
        if self.unnamed is not None and not kin_of(self.unnamed[1]):
            self.unnamed = None  # a thing is named at once or not at all
        others = [
            fold(s.name or s.role)
            for s, _ in self.turns
            if s.session == source.session and fold(s.name or s.role) != speaker
        ]
        other = others[0] if others else ""
        before = self.turns[index - 1][0] if index else None
        anchor: datetime | None = None
        if before is not None and before.session == source.session:
            spans = [s for s in resolve(before.content, before.time) if s.grain in ("day", "month")]
            anchor = spans[-1].start if spans else None
        for place, text in enumerate(sentences(source.content)):
            said = self._sentence(text, source, rank, place, speaker, other)
            said = replace(said, anchor=anchor)
            there = self.there if naming.THERE.search(text) else ""
            said = replace(said, there=there)
            self.story.said.append(said)
            for match in naming.AT_PLACE.finditer(text.replace("’", "'")):
                if fold(clean(match["name"])) not in self.persons:
                    self.there = clean(match["name"])
            spans = [s for s in resolve(text, source.time) if s.grain in ("day", "month")]
            anchor = spans[-1].start if spans else anchor

    def _sentence(
        self, text: str, source: Source, rank: int, place: int, speaker: str, other: str
    ) -> Said:
        text_ = text.replace("’", "'")
        found: list[tuple[int, str]] = []  # (where, whom)
        found += [(m.start(), speaker) for m in naming.FIRST.finditer(text_)]
        if other:
            found += [(m.start(), other) for m in naming.SECOND.finditer(text_)]
        before = list(self.recent)
        self.just = self.unnamed if place else None
        found += Bonds(self, text_, speaker, other, source.id, before).read()
        found += self._names(text_)
        birth = self.unnamed is not None and self.unnamed[1] in {"baby", "son", "daughter", "child"}
        plain, third = self._pronouns(text_, speaker, other, found, before)
        found += third
        found.sort()
        self.met.update(whom for _, whom in found)
        for _, whom in found:
            if whom not in (speaker, other) and self.is_someone(whom):
                self.recall(whom)
        owned = {m.start() for m in naming.OWNED.finditer(text_) if fold(m["own"]) in ("my", "our")}
        owned |= {m.start() for m in naming.ALONE_KIN.finditer(text_)}
        mentions = [
            (at, w)
            for at, w in found
            if not (at in owned and w == speaker) and (w in (speaker, other) or self.is_someone(w))
        ]
        mentions += [(m.start(), "") for m in naming.THEY.finditer(text_)]
        named_at = {at for at, _ in mentions}
        unknown = [m.start() for m in naming.THIRD.finditer(text_)]
        mentions += [(at, "") for at in unknown if at not in named_at]
        about = {whom for _, whom in found}
        if not mentions and place == 0:
            about.add(speaker)
        for whom in list(about):
            about.update({whom.split()[0]} if " " in whom and "'s " not in whom else ())
        return Said(
            text=text,
            plain=plain,
            source=source,
            rank=rank,
            order=len(self.story.said),
            place=place,
            speaker=speaker,
            about=frozenset(about),
            mentions=tuple(sorted(mentions)),
            words=frozenset(keys(text))
            | (naming.BORN if naming.HAS_CHILD.search(text_) and birth else frozenset()),
            near={},
        )

    def recall(self, whom: str) -> None:
        """Remember who was named last."""
        title = naming.TITLE.match(whom)
        if title is not None:
            self.story.people.gender.setdefault(whom, "m" if title["he"] else "f")
        gender = self.story.people.gender.get(whom, "")
        self.recent = [(w, g) for w, g in self.recent if w != whom][-8:]
        self.recent.append((whom, gender))

    def owner(self, word: str, speaker: str, other: str) -> str:
        """Return whose something is: "my", "her", "Ada's"; empty where nobody is meant."""
        low = fold(word)
        if re.sub(r"'s$", "", low) in naming.NOBODY:
            return ""
        if low in ("my", "our"):
            return speaker
        if low == "your":
            return other
        if low in ("his", "her", "their"):
            return self._last({"his": "m", "her": "f"}.get(low, ""), speaker)
        return fold(re.sub(r"'s$", "", word))

    def _last(self, gender: str, speaker: str) -> str:
        return fitting([w for w, _ in reversed(self.recent)], gender, speaker, self.story.people)

    def is_someone(self, whom: str) -> bool:
        """Whether a name is of a person, an animal or a thing with an owner."""
        return whom in self.persons or self.story.people.known(whom)

    def _persons_in(self, text: str) -> None:
        """Take names that do something, or own something, for people."""
        for match in naming.SUBJECT.finditer(text):
            name, verb = clean(match["name"]), match["verb"]
            known = (
                verb in BASE or verb in PAST or verb in naming.COMMON_VERBS or verb.endswith("ed")
            )
            if not name or fold(name.split()[0]) in PLAIN or not (match["is"] or known):
                continue
            known_name = fold(name) in self.inside or fold(name.split()[0]) in self.inside
            if not known_name and (" " in name or not self._only_capital(name)):
                continue
            if match["is"] == "'s" and verb in naming.NO_PERSON:
                continue
            if fold(name) not in self.places and not naming.BEHIND_PLACE.search(
                text, 0, match.start()
            ):
                self.persons.add(fold(name))

    def _only_capital(self, name: str) -> bool:
        """Whether a word is never written small here, and is none that often opens sentences."""
        low = fold(name)
        common = (
            low in BASE or low in PAST or low in KIN or low in JOBS or low.endswith(("ly", "ing"))
        )
        return not common and len(low) > 2 and low not in self.small

    def _names(self, text: str) -> list[tuple[int, str]]:
        found = []
        for name in names(text, sorted(self.persons)):
            key = fold(name)
            place = fold(text).find(key)
            whole = key if key in self.persons else ""
            if not whole:
                parts = [p for p in key.split() if p in self.persons]
                whole = parts[0] if parts else key
            found.append((max(place, 0), whole))
        return found

    def _pronouns(
        self,
        text: str,
        speaker: str,
        other: str,
        found: Sequence[tuple[int, str]],
        before: list[tuple[str, str]],
    ) -> tuple[str, list[tuple[int, str]]]:
        """Return the text with names in place of pronouns, and whom "he" and "she" meant."""
        people, third = self.story.people, list[tuple[int, str]]()
        here = sorted((p, w) for p, w in found if w in self.persons or people.known(w))
        here = [(p, w) for p, w in here if w not in (speaker, other)]

        def resolved(match: re.Match[str]) -> str:
            word = match["w"].lower()
            gender = "f" if word.startswith(("she", "her")) else "m"
            said = [w for p, w in here if p < match.start()]
            earlier = [w for w, _ in reversed(before)]
            whom = fitting(said, gender, speaker, people, 0.0)
            whom = whom or fitting(earlier, gender, speaker, people)
            if not whom:
                return match.group()
            people.gender.setdefault(whom, gender)
            third.append((match.start(), whom))
            name = people.shown.get(whom, whom.title())
            own = word in ("his", "hers") or (
                word == "her" and naming.POSSESSED.match(text, match.end()) is not None
            )
            return name + ("'s" if own else "") + (" is" if match["s"] else "")

        plain = naming.THIRD.sub(resolved, text)
        me = people.shown.get(speaker, speaker)
        plain = re.sub(r"\bI'm\b", f"{me} is", plain)
        plain = re.sub(r"\b(?:My|my|Our|our)\b", f"{me}'s", plain)
        plain = re.sub(r"\b(?:I|me|We|we|us)\b", me, plain)
        if other:
            you = people.shown.get(other, other)
            plain = re.sub(r"\b[Yy]our\b", f"{you}'s", plain)
            plain = re.sub(r"\b[Yy]ou\b", you, plain)
        return plain, third
