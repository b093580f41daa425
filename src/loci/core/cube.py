"""The MemCube header: what a person may care about, whatever kind of memory is inside.

Zhiyu Li et al., "MemOS: An Operating System for Memory-Augmented Generation", 2025,
arXiv:2505.22101. A cube is plaintext, activation or parametric memory with one header: where it
came from, which version it is, what it was derived from, its state of life, who may use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from loci.errors import ParameterError


class MemoryKind(StrEnum):
    """The three kinds of memory that one budget serves."""

    PLAINTEXT = "plaintext"
    ACTIVATION = "activation"
    PARAMETRIC = "parametric"


class State(StrEnum):
    """Where a cube stands in its life."""

    GENERATED = "generated"
    ACTIVE = "active"
    MERGED = "merged"
    ARCHIVED = "archived"
    RETIRED = "retired"
    ERASED = "erased"


ALLOWED: Mapping[State, frozenset[State]] = {
    State.GENERATED: frozenset({State.ACTIVE, State.RETIRED, State.ERASED}),
    State.ACTIVE: frozenset({State.MERGED, State.ARCHIVED, State.RETIRED, State.ERASED}),
    State.MERGED: frozenset({State.ACTIVE, State.ARCHIVED, State.RETIRED, State.ERASED}),
    State.ARCHIVED: frozenset({State.ACTIVE, State.RETIRED, State.ERASED}),
    State.RETIRED: frozenset({State.ACTIVE, State.ERASED}),
    State.ERASED: frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a cube came from: ids of its sources, who made it, with what."""

    sources: tuple[str, ...] = ()
    made_by: str = "person"
    model: str | None = None
    at: str | None = None  # ISO 8601


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who may use a cube and for how long."""

    scope: str = "local"
    readers: tuple[str, ...] = ()
    expires: str | None = None  # ISO 8601; None never expires
    sensitivity: str = "normal"
    pinned: bool = False


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How often and how recently a cube was read."""

    reads: int = 0
    last_read: str | None = None


@dataclass(frozen=True, kw_only=True)
class CubeHeader:
    """The header of a MemCube. `parents` is its lineage: erasing follows it downwards."""

    id: str
    kind: MemoryKind
    version: int = 1
    parents: tuple[str, ...] = ()
    state: State = State.GENERATED
    provenance: Provenance = field(default_factory=Provenance)
    policy: Policy = field(default_factory=Policy)
    usage: Usage = field(default_factory=Usage)
    fingerprint: str | None = None

    def to(self, state: State) -> CubeHeader:
        """Return the header in another state of life, one version later."""
        if state not in ALLOWED[self.state]:
            raise ParameterError(
                f"cube {self.id} is {self.state} and cannot become {state}",
                allowed=", ".join(sorted(ALLOWED[self.state])) or "nothing; it is erased",
            )
        return replace(self, state=state, version=self.version + 1)


def descendants(roots: Iterable[str], headers: Iterable[CubeHeader]) -> set[str]:
    """Return the ids of everything derived from `roots`, directly or not; roots not included."""
    children: dict[str, list[str]] = {}
    for header in headers:
        for parent in header.parents:
            children.setdefault(parent, []).append(header.id)
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found
