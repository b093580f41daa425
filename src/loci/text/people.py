"""Who is whose: sisters, bosses, dogs and boats by name, and what follows from two relations.

Read from lines such as "my sister Ilse", "her daughter Pia", "Bram is Tomas's brother", "a man
named Gwyn", "my boss is called Anouk". A sister's daughter is a niece; a niece's name is found
although nobody said the word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from loci.text.kinds import is_kind, kinds_of
from loci.text.phrases import JOBS, kin_of, words
from loci.text.stem import fold

_SAME = {
    "mum": "mother",
    "mom": "mother",
    "mama": "mother",
    "mummy": "mother",
    "dad": "father",
    "papa": "father",
    "daddy": "father",
    "grandma": "grandmother",
    "granny": "grandmother",
    "nan": "grandmother",
    "gran": "grandmother",
    "grandpa": "grandfather",
    "grandad": "grandfather",
    "granddad": "grandfather",
    "kid": "child",
    "baby": "child",
    "toddler": "child",
    "lad": "son",
    "lass": "daughter",
    "kids": "child",
    "hubby": "husband",
    "fiancé": "fiance",
    "fiancée": "fiance",
    "fiancee": "fiance",
    "flatmate": "roommate",
    "housemate": "roommate",
    "neighbor": "neighbour",
    "puppy": "dog",
    "kitten": "cat",
    "manager": "boss",
    "colleague": "coworker",
    "gp": "doctor",
    "physician": "doctor",
    "stepson": "son",
    "stepdaughter": "daughter",
}
_PARENT, _CHILD = ("mother", "father", "parent"), ("daughter", "son", "child")
_SIBLING = ("sister", "brother", "sibling", "twin")
_SPOUSE = ("husband", "wife", "partner", "spouse", "boyfriend", "girlfriend", "fiance")
_GENDER = {
    **dict.fromkeys(
        [
            "mother",
            "grandmother",
            "sister",
            "daughter",
            "aunt",
            "niece",
            "wife",
            "girlfriend",
            "fiancee",
            "landlady",
            "girl",
            "woman",
            "lady",
            "mare",
            "queen",
            "granddaughter",
            "stepsister",
            "mother-in-law",
            "sister-in-law",
        ],
        "f",
    ),
    **dict.fromkeys(
        [
            "father",
            "grandfather",
            "brother",
            "son",
            "uncle",
            "nephew",
            "husband",
            "boyfriend",
            "boy",
            "man",
            "guy",
            "grandson",
            "stepbrother",
            "colt",
            "stallion",
            "father-in-law",
            "brother-in-law",
        ],
        "m",
    ),
}
_GENDERED = {
    ("sibling", "child"): ("niece", "nephew", "niece or nephew"),
    ("child", "child"): ("granddaughter", "grandson", "grandchild"),
    ("parent", "parent"): ("grandmother", "grandfather", "grandparent"),
    ("parent", "sibling"): ("aunt", "uncle", "aunt or uncle"),
    ("spouse", "parent"): ("mother-in-law", "father-in-law", "parent-in-law"),
    ("spouse", "sibling"): ("sister-in-law", "brother-in-law", "sibling-in-law"),
    ("sibling", "spouse"): ("sister-in-law", "brother-in-law", "sibling-in-law"),
    ("child", "spouse"): ("daughter-in-law", "son-in-law", "child-in-law"),
    ("child", "sibling"): ("daughter", "son", "child"),
    ("spouse", "child"): ("daughter", "son", "child"),
    ("parent", "child"): ("sister", "brother", "sibling"),
    ("sibling", "parent"): ("mother", "father", "parent"),
    ("child", "parent"): ("wife", "husband", "partner"),
}
_COUSIN = {("aunt", "child"), ("uncle", "child")}
_INVERSE = {"child": "parent", "parent": "child", "sibling": "sibling", "spouse": "spouse"}


def kin_word(noun: str) -> str:
    """Return one word for all that mean the same: "mum" is "mother", "brothers" is "brother"."""
    low = fold(noun)
    low = _SAME.get(low, low)
    if low not in _GENDER and low.endswith("s") and kin_of(low[:-1]):
        low = _SAME.get(low[:-1], low[:-1])
    return low


def is_somebody(noun: str) -> bool:
    """Whether a noun names a person: kin, an occupation, "man" or "student"."""
    if is_kind(noun) or kin_of(noun) == "pet":
        return False
    return kin_of(noun) is not None or bool(gender_of(noun)) or noun in JOBS or noun in _PEOPLE


_PEOPLE = words(
    "student pupil person guy chap fellow stranger lad lass teenager kid colleague ex "
    "visitor guest customer client patient neighbour newcomer widow widower pensioner"
)


def same_kin(noun: str) -> list[str]:
    """Return all words that mean the same relation: "mother", "mum", "mom"."""
    word = kin_word(noun)
    return [word, *(other for other, same in _SAME.items() if same == word)]


def gender_of(noun: str) -> str:
    """Return "f", "m", or "" when a word for a relative does not tell."""
    return _GENDER.get(kin_word(noun), "")


def _group(kin: str) -> str:
    for name, members in (
        ("parent", _PARENT),
        ("child", _CHILD),
        ("sibling", _SIBLING),
        ("spouse", _SPOUSE),
    ):
        if kin in members:
            return name
    return kin


@dataclass(frozen=True)
class Relation:
    """`name` is `owner`'s `kin`; `order` counts from the first turn read. Names are folded."""

    owner: str
    kin: str
    name: str
    order: int
    shown: str = ""
    turn: str = ""
    over: bool = False


@dataclass
class People:
    """All relations read so far, in order, and the gender of those who have one."""

    relations: list[Relation] = field(default_factory=list)
    gender: dict[str, str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def add(
        self, owner: str, kin: str, name: str, order: int, turn: str = "", over: bool = False
    ) -> None:
        """Remember that `name`, as written, is `owner`'s `kin`, or was if it is over."""
        key = fold(name)
        if not key or key == owner:
            return
        self.shown.setdefault(key, name)
        noun = kin_word(kin)
        if gender := _GENDER.get(noun):
            self.gender.setdefault(key, gender)
        self.relations.append(Relation(owner, noun, key, order, name, turn, over))

    def rename(self, old: str, name: str) -> None:
        """Give a person who had no name one: "Nele's father" is called Luc."""
        key = fold(name)
        self.shown.setdefault(key, name)
        if old in self.gender:
            self.gender.setdefault(key, self.gender[old])
        for place, known in enumerate(self.relations):
            left = key if known.owner == old else known.owner
            if known.name == old:
                self.relations[place] = replace(known, owner=left, name=key, shown=name)
            elif left != known.owner:
                self.relations[place] = replace(known, owner=left)

    def known(self, name: str) -> bool:
        """Whether a folded name is of someone or something with an owner."""
        return any(r.name == name for r in self.relations)

    def someone(self, names: Iterable[str]) -> bool:
        """Whether folded names are of a person, and not of a thing or an animal."""
        wanted = set(names)
        return any(r.name in wanted and is_somebody(r.kin) for r in self.relations)

    def named(self, owner: str, noun: str) -> list[Relation]:
        """Return who is `owner`'s `noun`, newest first, by what was said and what follows."""
        wanted = kin_word(noun)
        direct = [
            r
            for r in self.relations
            if r.owner == owner
            and (wanted in {kin_word(r.kin), *kinds_of(r.kin)} or _fits(wanted, r.kin))
        ]
        if direct:
            return sorted(direct, key=lambda r: -r.order)
        found = []
        for first in self.relations:
            if first.owner != owner:
                continue
            for second in self.relations:
                if second.owner == first.name and second.name != owner:
                    derived = self._derived(first, second)
                    if derived and (derived == wanted or _fits(wanted, derived)):
                        found.append(
                            Relation(
                                owner, derived, second.name, second.order, second.shown, second.turn
                            )
                        )
        return sorted(found, key=lambda r: -r.order)

    def between(self, owner: str, name: str) -> list[tuple[str, str]]:
        """Return (what `name` is to `owner`, how that is known), the surest first."""
        direct = [(r.kin, "") for r in self.relations if (r.owner, r.name) == (owner, name)]
        found = list(dict.fromkeys(reversed(direct)))
        for first in self.relations:
            if first.owner != owner:
                continue
            for second in self.relations:
                if (second.owner, second.name) == (first.name, name):
                    derived = self._derived(first, second)
                    via = f"{self.shown.get(first.name, first.name)}'s {second.kin}"
                    found.append((derived or f"{first.kin}'s {second.kin}", via))
        return list(dict.fromkeys(found))

    def _derived(self, first: Relation, second: Relation) -> str:
        pair = (_group(first.kin), _group(second.kin))
        if (first.kin, pair[1]) in _COUSIN:
            return "cousin"
        if pair not in _GENDERED:
            return ""
        she, he, either = _GENDERED[pair]
        gender = self.gender.get(second.name) or _GENDER.get(second.kin, "")
        return she if gender == "f" else he if gender == "m" else either


def _fits(wanted: str, kin: str) -> bool:
    """Whether a relation of unknown gender may be the wanted one: a child may be a son."""
    if wanted in kin.split(" or "):
        return True
    groups = {"child": _CHILD, "sibling": _SIBLING, "parent": _PARENT, "spouse": _SPOUSE}
    if wanted in ("child", "sibling", "parent", "spouse", "partner"):
        return kin in (_SPOUSE if wanted in ("spouse", "partner") else groups[wanted])
    if wanted in ("husband", "wife", "boyfriend", "girlfriend", "fiance"):
        return kin in ("partner", "spouse", "fiance") or (
            kin in _SPOUSE and _GENDER.get(kin, "") == _GENDER.get(wanted, "")
        )
    return kin in groups and wanted in groups[kin]


def inverse(kin: str) -> str:
    """Return the group of the relation the other way round, "" where it is unknown."""
    return _INVERSE.get(_group(kin), "")


def is_kin(words: Iterable[str]) -> list[str]:
    """Return those of the words that name a relation or an animal one has."""
    return [w for w in words if kin_of(w) or kin_word(w) in _GENDER or is_kind(w)]
