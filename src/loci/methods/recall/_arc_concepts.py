"""Concepts: parts that solved programs share, with holes where they differ, and their cues.

`anti_unify` gives the least general program of which two are instances: where they differ stands a
hole, the same hole for the same pair. What many programs share and saves more than it costs to
write down becomes a concept:

    saved(c) = size(c) (uses - 1) - (size(c) + holes(c))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any  # arrays and JSON values

import numpy as np

from loci.methods.recall._arc_dsl import (
    FUNCTIONS,
    Call,
    Grid,
    Tree,
    Var,
    chained,
    choices,
    from_json,
    parts,
    size,
    steps,
    to_json,
)

Pairs = Sequence[tuple[Grid, Grid]]


@dataclass(frozen=True)
class Concept:
    """A routine with holes.

    Attributes:
        tree: works on INPUT; holes are numbered from 0.
        used_in: ids of the problems whose programs have it.
        cues: {feature of those problems: in how many of them}.
        tries, wins: how often it was selected for a puzzle that was solved, and was part of the
            solution then.
    """

    tree: Tree
    used_in: tuple[str, ...] = ()
    cues: Mapping[str, int] = field(default_factory=dict)
    tries: int = 0
    wins: int = 0

    @property
    def name(self) -> str:
        """A name that follows from what it does: equal routines have equal names."""
        return "c" + blake2b(str(self.tree).encode(), digest_size=4).hexdigest()

    @property
    def holes(self) -> tuple[Var, ...]:
        """The holes, in order."""
        return tuple(sorted(_holes(self.tree), key=lambda var: var.number))

    @property
    def saved(self) -> int:
        """How much shorter it makes the programs that have it, itself written down once."""
        uses = len(self.used_in)
        return size(self.tree) * (uses - 1) - size(self.tree) - len(self.holes)

    @property
    def utility(self) -> float:
        """Share of selections that helped, with one win and two tries before any."""
        return (self.wins + 1) / (self.tries + 2)

    def to_json(self) -> dict[str, Any]:
        """Return the concept as JSON."""
        return {
            "tree": to_json(self.tree),
            "used_in": list(self.used_in),
            "cues": dict(self.cues),
            "tries": self.tries,
            "wins": self.wins,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Concept:
        """Return the concept that `to_json` wrote."""
        return cls(
            tree=from_json(value["tree"]),
            used_in=tuple(value["used_in"]),
            cues=dict(value["cues"]),
            tries=int(value["tries"]),
            wins=int(value["wins"]),
        )

    def described(self) -> str:
        """Return the concept in a line, for people and models."""
        words = [
            f"{call.name}({', '.join(map(_word, call.args[1:]))})" for call in steps(self.tree)
        ]
        return f"{self.name}: {', then '.join(words)} [used in {len(self.used_in)}]"


def _word(arg: Tree) -> str:
    return f"?{arg.type}{arg.number}" if isinstance(arg, Var) else str(arg)


def anti_unify(a: Tree, b: Tree) -> Tree | None:
    """Return the least general tree of which both are instances; None if a function differs.

    Only constants get holes: a program works on the grid as it comes. Holes are numbered in the
    order in which they stand, from 0.
    """
    if [call.name for call in steps(a)] != [call.name for call in steps(b)]:
        return None
    return _numbered(_merged(a, b))


def routines(tree: Tree, longest: int = 6) -> list[Tree]:
    """Return the parts of a program of two calls or more, each working on the input."""
    calls = steps(tree)
    found: dict[Tree, None] = {}
    for start in range(len(calls)):
        for end in range(start + 2, min(len(calls), start + longest) + 1):
            found[chained(calls[start:end])] = None
    return list(found)


def learnt(
    known: Iterable[Concept], solved: Mapping[str, tuple[Tree, frozenset[str]]]
) -> list[Concept]:
    """Return the concepts that solved problems share; wins and tries of known ones are kept.

    Args:
        solved: {problem: (program, features)}.
    """
    by_shape: dict[tuple[str, ...], list[tuple[str, Tree]]] = {}
    for problem, (whole, _) in solved.items():
        for part in routines(whole):
            shape = tuple(call.name for call in steps(part))
            by_shape.setdefault(shape, []).append((problem, part))
    before = {concept.tree: concept for concept in known}
    found: dict[Tree, Concept] = {}
    for entries in by_shape.values():
        if len({problem for problem, _ in entries}) < 2:
            continue
        tree: Tree | None = entries[0][1]
        for _, part in entries[1:]:
            tree = None if tree is None else anti_unify(tree, part)
        if tree is None:
            continue
        problems = tuple(dict.fromkeys(problem for problem, _ in entries))
        cues = Counter(cue for problem in problems for cue in solved[problem][1])
        old = before.get(tree, Concept(tree))
        made = Concept(tree, problems, dict(cues), old.tries, old.wins)
        if made.saved > 0:
            found[tree] = made
    return [c for c in found.values() if not _within(c, found.values())]


def _within(concept: Concept, others: Iterable[Concept]) -> bool:
    """Return whether a longer concept of the same problems says all that this one does."""
    mine = [call.name for call in steps(concept.tree)]
    for other in others:
        theirs = [call.name for call in steps(other.tree)]
        if len(theirs) <= len(mine) or set(other.used_in) != set(concept.used_in):
            continue
        if any(theirs[n : n + len(mine)] == mine for n in range(len(theirs) - len(mine) + 1)):
            return True
    return False


def _merged(general: Tree, part: Tree) -> Tree:
    """Return the least general tree of a tree that may have holes and an instance of its shape."""
    pairs: dict[tuple[Tree, Tree], Var] = {}

    def merge(a: Tree, b: Tree, type_: str) -> Tree:
        if isinstance(a, Call) and isinstance(b, Call):
            types = ("grid", *FUNCTIONS[a.name].types)
            args = [merge(x, y, t) for x, y, t in zip(a.args, b.args, types, strict=True)]
            return Call(a.name, tuple(args))
        if a == b:
            return a
        return pairs.setdefault((a, b), Var(100 + len(pairs), type_))

    return merge(general, part, "grid")


def _numbered(tree: Tree) -> Tree:
    """Return a tree whose holes are numbered in the order in which they stand, from 0."""
    numbers: dict[Var, Var] = {}

    def visit(one: Tree) -> Tree:
        if isinstance(one, Call):
            return Call(one.name, tuple(visit(arg) for arg in one.args))
        if isinstance(one, Var):
            return numbers.setdefault(one, Var(len(numbers), one.type))
        return one

    return visit(tree)


def _holes(tree: Tree) -> set[Var]:
    if isinstance(tree, Var):
        return {tree}
    return set().union(*map(_holes, tree.args)) if isinstance(tree, Call) else set()


def filled(concept: Concept, palette: Mapping[str, Sequence[int]], most: int = 40) -> list[Tree]:
    """Return the programs that constants of a problem make of a concept, at most so many."""
    found: list[dict[int, Tree]] = [{}]
    for hole in concept.holes:
        found = [
            {**one, hole.number: value} for one in found for value in choices(hole.type, palette)
        ][:most]
    return [_put(concept.tree, one) for one in found]


def _put(tree: Tree, values: Mapping[int, Tree]) -> Tree:
    if isinstance(tree, Var):
        return values[tree.number]
    if isinstance(tree, Call):
        return Call(tree.name, tuple(_put(arg, values) for arg in tree.args))
    return tree


# -- features and selection -------------------------------------------------------------------


def features(pairs: Pairs) -> frozenset[str]:
    """Return what can be seen of a problem: sizes, colours, parts, what changes."""
    every: list[set[str]] = []
    for before, after in pairs:
        mine: set[str] = set()
        ratio = (after.shape[0] / before.shape[0], after.shape[1] / before.shape[1])
        mine.add(f"size {_change(before.size, after.size)}")
        if ratio[0] == ratio[1] and ratio[0] in (2, 3, 0.5):
            mine.add(f"size x{ratio[0]:g}")
        if ratio[0] != ratio[1]:
            mine.add("other shape")
        if before.shape == after.shape[::-1]:
            mine.add("turned shape")
        old, new = set(np.unique(before)) - {0}, set(np.unique(after)) - {0}
        mine.add(f"colors {_change(len(old), len(new))}")
        if new - old:
            mine.add("new color")
        if old - new:
            mine.add("color gone")
        if len(new) <= 1:
            mine.add("one color left")
        mine.add(f"cells {_change(int((before > 0).sum()), int((after > 0).sum()))}")
        if before.shape == after.shape:
            mine.add("kept" if ((before == after) | (before == 0)).all() else "moved or changed")
        for name, flipped in (("rows", after[::-1]), ("columns", after[:, ::-1])):
            if np.array_equal(after, flipped):
                mine.add(f"symmetric {name}")
        count = (len(parts(before)), len(parts(after)))
        mine.add(f"parts {_change(*count)}")
        if count[1] == 1:
            mine.add("one part left")
        every.append(mine)
    return frozenset(set.intersection(*every)) if every else frozenset()


def _change(before: int, after: int) -> str:
    return "same" if before == after else "more" if after > before else "less"


def relevance(concept: Concept, seen: frozenset[str], rarity: Mapping[str, float]) -> float:
    """Return how well the cues of a concept fit a problem, times how often it helped."""
    uses = max(len(concept.used_in), 1)
    weights = {cue: rarity.get(cue, 1.0) * n / uses for cue, n in concept.cues.items()}
    own = math.sqrt(sum(w * w for w in weights.values()))
    mine = math.sqrt(sum(rarity.get(cue, 1.0) ** 2 for cue in seen))
    shared = sum(weights.get(cue, 0.0) * rarity.get(cue, 1.0) for cue in seen)
    return (shared / (own * mine) if own and mine else 0.0) * (0.5 + concept.utility)


def rarity_of(concepts: Sequence[Concept]) -> dict[str, float]:
    """Return {cue: how much it tells}: the fewer concepts have it, the more."""
    counts = Counter(cue for concept in concepts for cue in concept.cues)
    return {cue: 1.0 + math.log(len(concepts) / n) for cue, n in counts.items()}
