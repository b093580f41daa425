"""Who is whose, as one sentence says: "my sister Ilse", "Bram is Tomas's brother", "she's called".

What has no name yet is kept until one is given: "I've adopted a greyhound! She's called Vesna."
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loci.text import naming
from loci.text.entities import PLAIN
from loci.text.people import People, gender_of, is_kin, kin_word
from loci.text.phrases import kin_of
from loci.text.stem import fold

if TYPE_CHECKING:
    from loci.text.referents import Referents

_OWN = ("my", "our", "his", "her", "their")


class Bonds:
    """Reads the relations of one sentence into the people of the story."""

    def __init__(
        self,
        reader: Referents,
        text: str,
        speaker: str,
        other: str,
        turn: str,
        before: list[tuple[str, str]],
    ) -> None:
        self.reader, self.people = reader, reader.story.people
        self.text, self.speaker, self.other = text, speaker, other
        self.turn, self.before = turn, before
        self.order = len(reader.story.said)
        self.found: list[tuple[int, str]] = []

    def read(self) -> list[tuple[int, str]]:
        """Return (where, whom) of those who are named or meant by a relation."""
        self._owned()
        self._is_owned()
        self._alone()
        self._births()
        self._next_name()
        self._partners()
        self._got()
        self._listed()
        self._called()
        self._is_the()
        return self.found

    def _add(self, owner: str, kin: str, name: str, place: int, over: bool = False) -> None:
        self.people.add(owner, kin, name, self.order, self.turn, over)
        self.found.append((place, fold(name)))
        self.reader.persons.add(fold(name))
        self.reader.recall(fold(name))
        unnamed = f"{owner}'s {kin_word(kin)}"
        if self.people.known(unnamed):
            self.people.rename(unnamed, name)

    def _owner(self, word: str) -> str:
        return self.reader.owner(word, self.speaker, self.other)

    def _owned(self) -> None:
        """ "My sister Ilse", "her daughter, Pia", "my boss is called Anouk", "my father"."""
        taken = [m.span("kin") for m in naming.IS_OWNED.finditer(self.text) if _named(m["name"])]
        for match in naming.OWNED.finditer(self.text):
            owner = self._owner(match["own"])
            if match.span("kin") in taken or not owner:
                continue
            kin = ("ex-" if "ex" in (match["adj"] or "").split() else "") + match["kin"]
            name = _named(match["name"] or "")
            linked = match["link"] is None or match["link"].strip() != "is"
            if name and not match["gen"] and (linked or _ends(self.text, match)):
                self._add(owner, kin, name, match.start())
                self.reader.unnamed = None
            else:
                self._meant(owner, kin, match["kin"], match.start())

    def _meant(self, owner: str, kin: str, noun: str, place: int) -> None:
        """Note somebody who is spoken of by relation only."""
        known = self.people.named(owner, kin)
        whom = known[0].name if known and kin_word(kin) == known[0].kin else ""
        if not whom:
            whom = f"{owner}'s {kin_word(kin)}"
            self.people.add(owner, kin, whom, self.order, self.turn)
            self.people.shown[whom] = f"{self.people.shown.get(owner, owner)}'s {noun}"
        if "'s " in whom:
            self.reader.unnamed = (owner, noun)
        self.found.append((place, whom))
        self.reader.recall(whom)

    def _is_owned(self) -> None:
        """ "Tomas is my boyfriend", "Koen, Ilse's ex"."""
        for match in naming.IS_OWNED.finditer(self.text):
            owner, name = self._owner(match["own"]), _named(match["name"])
            if owner and name:
                self._add(owner, match["kin"], name, match.start())

    def _alone(self) -> None:
        """ "Mum says", "Dad's home"."""
        for match in naming.ALONE_KIN.finditer(self.text):
            known = self.people.named(self.speaker, match["kin"])
            whom = known[0].name if known else f"{self.speaker}'s {kin_word(match['kin'])}"
            if not known:
                self.people.add(self.speaker, match["kin"], whom, self.order, self.turn)
                self.people.shown[whom] = match["kin"]
            self.found.append((match.start(), whom))
            self.reader.recall(whom)

    def _births(self) -> None:
        """ "My sister's had her baby! A girl", "It's a boy! Rohan had him", a bare "the cat"."""
        reader = self.reader
        sexes = {"boy": "son", "girl": "daughter"}
        for match in naming.HAS_CHILD.finditer(self.text):
            last = clean(match["who"].split()[-1])
            before = [w for at, w in self.found if at <= match.start() and w != self.speaker]
            parent = fold(clean(match["who"].split()[0])) if last[:1].isupper() else ""
            parent = parent or (before[0] if before and not last[:1].isupper() else "")
            noun = match["noun"] or (reader.unnamed[1] if reader.unnamed else "")
            if parent and noun in naming.BIRTH:
                reader.unnamed = (parent, sexes.get(noun, noun))
        for match in naming.BARE.finditer(self.text):
            noun = match["kin"]
            if reader.unnamed and noun in naming.BIRTH and reader.unnamed[1] in naming.BIRTH:
                reader.unnamed = (reader.unnamed[0], sexes.get(noun, noun))
            else:
                reader.unnamed = (self.speaker, noun)
        about = naming.ASKS_OF.search(self.text)
        if about is not None:
            reader.unnamed = (self._owner(about["own"]), about["noun"])

    def _next_name(self) -> None:
        """ "Rohan's going to be a dad! My little brother." "My sister agrees. Yumi's a nurse"."""
        reader = self.reader
        alone = naming.ONLY_KIN.match(self.text)
        if alone is not None and self.before and reader.is_someone(self.before[-1][0]):
            whom = self.before[-1][0]
            shown = self.people.shown.get(whom, whom.title())
            self._add(self._owner(alone["own"]), alone["kin"], shown, 0)
        opened = naming.BEGINS_NEW.match(self.text)
        left = reader.just
        if opened is not None and left is not None and left == reader.unnamed:
            name = clean(opened["name"])
            new = fold(name) in reader.persons and fold(name) not in reader.met
            if new and kin_of(left[1]) not in (None, "pet"):
                self._add(left[0], left[1], name, 0)
                reader.unnamed = None

    def _partners(self) -> None:
        """ "I've been seeing someone. Matteo, he's ...", "Joost and I finished it"."""
        reader, text = self.reader, self.text
        opened = naming.OPENS.match(text)
        if opened is not None and reader.unnamed and reader.unnamed[1] == "partner":
            self._add(reader.unnamed[0], "partner", clean(opened["name"]), 0)
            reader.unnamed = None
        parted = naming.WITH_ME.search(text)
        if parted is not None and (name := _named(parted["name"] or parted["too"])):
            begun = re.search(r"engaged|married|together|dating|in$", parted.group()) is not None
            over = parted["too"] is None and not begun
            self._add(self.speaker, "partner", name, parted.start(), over)
        together = naming.SEEING.search(text)
        if together is not None:
            name = clean(together["name"] or "")
            how = together["how"]
            kin = "fiance" if "engaged" in how else "spouse" if "married" in how else "partner"
            if _named(name):
                self._add(self.speaker, kin, name, together.start())
            elif not name:
                reader.unnamed = (self.speaker, "partner")
        gone = naming.IS_GONE.search(text)
        if gone is not None:
            whom = fold(clean(gone["name"]))
            for known in [r for r in self.people.relations if r.name == whom and not r.over]:
                if "partner" in (kin_of(known.kin), known.kin):
                    self.people.add(
                        known.owner, known.kin, known.shown, self.order, self.turn, over=True
                    )

    def _got(self) -> None:
        """ "I bought a cargo bike": what may get a name next."""
        for match in naming.GOT.finditer(self.text):
            if match["noun"] not in ("lot", "bit", "time", "while", "one"):
                self.reader.unnamed = (self.speaker, match["noun"])

    def _listed(self) -> None:
        """ "Two cats, Mahler and Soup", "a dog, Prego, who ..."."""
        for match in naming.SEVERAL.finditer(self.text):
            owner = self._owner(match["own"]) if match["own"] else self.speaker
            for name in re.split(r",\s*(?:and\s+)?|\s+and\s+", match["names"]):
                if owner and clean(name):
                    kin = re.sub(r"s$", "", match["kin"])
                    self._add(owner, kin, clean(name), match.start())
        for match in naming.APPOSED.finditer(self.text):
            first = min(self.found, default=(0, self.speaker))[1]
            name = clean(match["name"])
            self._add(first or self.speaker, match["kin"], name, match.start("name"))

    def _called(self) -> None:
        """ "A folkboat called Petrel", "her name is Biscuit", "they've called her Ada"."""
        for match in naming.CALLED.finditer(self.text):
            noun, det = match["noun"].split()[-1], match["det"].lower()
            lead = self.text[: match.start("name")]
            mine = re.search(r"\b(?:I|We|we|my|our)\b|^(?:She|He|It)'s\b", lead)
            owner = self._owner(det) if det in _OWN else ""
            if name := _named(match["name"]):
                owner = owner or (self.speaker if mine else "")
                self._add(owner, noun, name, match.start("name"))
        for match in naming.NAME_IS.finditer(self.text):
            if name := _named(match["name"]):
                owner, noun = self.reader.unnamed or (self.speaker, "")
                self._add(owner, noun, name, match.start("name"))
                self.reader.unnamed = None

    def _is_the(self) -> None:
        """ "Ellie came. She's the granddaughter", "she's a ginger cat"."""
        recent = [whom for whom, _ in reversed(self.before)]
        for match in naming.SHE_IS_THE.finditer(self.text):
            gender = gender_of(match["kin"]) or {"he": "m", "she": "f"}[match["who"].lower()]
            whom = fitting(recent, gender, self.speaker, self.people)
            if whom and "'s " not in whom:
                shown = self.people.shown.get(whom, whom.title())
                self._add(self.speaker, match["kin"], shown, match.start())
        kind = naming.IS_A.search(self.text)
        if kind is not None and is_kin([kind["noun"]]):
            now = [whom for whom, _ in reversed(self.reader.recent)]
            whom = fitting(now, "", self.speaker, self.people)
            if whom:
                owner = "" if self.people.known(whom) else self.speaker
                shown = self.people.shown.get(whom, whom)
                self.people.add(owner, kind["noun"], shown, self.order, self.turn)


def _named(name: str) -> str:
    """Return a name without what is none, or "" where nothing is left."""
    name = clean(name)
    return name if name and fold(name) not in PLAIN else ""


def clean(name: str) -> str:
    """Return a name without "Little" before it, "'s" behind it, or words that are none."""
    name = re.sub(r"'s?$", "", name.strip(" .,'"))
    words = name.split()
    while words and fold(words[-1]) in PLAIN:
        words = words[:-1]
    while len(words) > 1 and (fold(words[0]) in PLAIN or words[0] in _EPITHETS):
        words = words[1:]
    return " ".join(words)


_EPITHETS = ("Little", "Old", "Young", "Dear", "Poor", "Big", "Tell", "Ask", "Good", "Hence")


def fitting(
    nearest: Sequence[str], gender: str, speaker: str, people: People, unknown: float = 0.9
) -> str:
    """Return whom a pronoun means: the nearest who fits, those of known gender a little sooner."""
    best, least = "", 9.0
    for place, whom in enumerate(dict.fromkeys(nearest)):
        known = people.gender.get(whom, "")
        if whom == speaker or (gender and known and known != gender):
            continue
        far = place + (0.0 if known or not gender else unknown)
        if far < least:
            best, least = whom, far
    return best


def _ends(text: str, match: re.Match[str]) -> bool:
    """Whether a name behind "is" ends its clause: "my sister is Ilse", not "is Belgian"."""
    return re.match(r"\s*(?:[,.;!?)]|$|and\b)", text[match.end() :]) is not None
