"""The MemCube header: what a person may care about, whatever kind of memory is inside.

Zhiyu Li et al., "MemOS: An Operating System for Memory-Augmented Generation", 2025,
arXiv:2505.22101, and "MemOS: A Memory OS for AI System", 2025, arXiv:2507.03724. A cube is
plaintext, activation or parametric memory with one header: where it came from, which version it
is, what it was derived from, its state of life, who may use it.

The papers name the states and the rules of access, not their tables: `MOVES` and the order of the
rules in `permit` are a reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from loci.errors import ParameterError, PolicyError


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
    FROZEN = "frozen"  # nothing about it changes until it is unfrozen
    EXPIRED = "expired"  # past its time; it can only be erased
    RETIRED = "retired"
    ERASED = "erased"


class Move(StrEnum):
    """What happens to a cube."""

    USE = "use"
    MERGE = "merge"
    ARCHIVE = "archive"
    RESTORE = "restore"
    EXPIRE = "expire"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    RETIRE = "retire"
    ERASE = "erase"


HALF_LIFE_S = 43_200.0  # tuned on generated weeks (bench/week.py, seeds 0 to 2), of 6 h to 2 days
"""After so long a read counts half."""

_LIVE = (State.GENERATED, State.ACTIVE, State.MERGED, State.ARCHIVED, State.RETIRED)

# Where each move leads. A frozen cube goes back to the state it was frozen in: see `after`.
MOVES: Mapping[tuple[State, Move], State] = MappingProxyType(
    {
        (State.GENERATED, Move.USE): State.ACTIVE,
        (State.MERGED, Move.USE): State.ACTIVE,
        (State.ARCHIVED, Move.USE): State.ACTIVE,
        (State.ACTIVE, Move.MERGE): State.MERGED,
        (State.GENERATED, Move.ARCHIVE): State.ARCHIVED,
        (State.ACTIVE, Move.ARCHIVE): State.ARCHIVED,
        (State.MERGED, Move.ARCHIVE): State.ARCHIVED,
        (State.ARCHIVED, Move.RESTORE): State.ACTIVE,
        (State.RETIRED, Move.RESTORE): State.ACTIVE,
        (State.GENERATED, Move.RETIRE): State.RETIRED,
        (State.ACTIVE, Move.RETIRE): State.RETIRED,
        (State.MERGED, Move.RETIRE): State.RETIRED,
        (State.ARCHIVED, Move.RETIRE): State.RETIRED,
        **{(state, Move.EXPIRE): State.EXPIRED for state in _LIVE},
        **{(state, Move.FREEZE): State.FROZEN for state in _LIVE},
        **{(state, Move.ERASE): State.ERASED for state in (*_LIVE, State.EXPIRED)},
    }
)

ALLOWED: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        state: frozenset(_LIVE)
        if state is State.FROZEN
        else frozenset(new for (old, _), new in MOVES.items() if old is state)
        for state in State
    }
)


def after(state: State, move: Move, frozen_from: State | None = None) -> State:
    """Return the state a move leads to; using what is active leaves it as it is.

    Args:
        frozen_from: the state a frozen cube was frozen in.

    Raises:
        ParameterError: if the move is not allowed there.
    """
    if state is State.FROZEN and move is Move.UNFREEZE and frozen_from is not None:
        return frozen_from
    if state is State.FROZEN and move is Move.USE:
        return State.FROZEN
    if state is State.ACTIVE and move is Move.USE:
        return State.ACTIVE
    try:
        return MOVES[state, move]
    except KeyError:
        raise ParameterError(
            f"what is {state} cannot be moved by {move!s}", allowed=_moves_of(state)
        ) from None


class Sensitivity(StrEnum):
    """How closely a cube is to be kept, from open to closed."""

    PUBLIC = "public"
    NORMAL = "normal"
    PRIVATE = "private"
    SECRET = "secret"

    @property
    def rank(self) -> int:
        """Higher is more closely kept."""
        return list(Sensitivity).index(self)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a cube came from: ids of its sources, who made it, with what.

    Attributes:
        store: the memory whose items and turns are among the parents; elsewhere their ids would
            mean others.
    """

    sources: tuple[str, ...] = ()
    store: str | None = None
    made_by: str = "person"
    model: str | None = None
    at: str | None = None  # ISO 8601


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who may use a cube and for how long.

    Attributes:
        scope: the tenant; nobody outside it ever gets anything.
        owner: the user who may do everything; None lets everybody of the tenant.
        readers, writers: further users of the tenant; who may write may read.
        purposes: what it may be read for; () is anything.
        expires: ISO 8601 with its zone; None never expires.
        pinned: kept where it is, whatever a scheduler would do.

    Raises:
        ParameterError: if the time is none, or has no zone.
    """

    scope: str = "local"
    owner: str | None = None
    readers: tuple[str, ...] = ()
    writers: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    expires: str | None = None
    sensitivity: Sensitivity = Sensitivity.NORMAL
    pinned: bool = False

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "sensitivity", Sensitivity(self.sensitivity))
        except ValueError:
            raise ParameterError(
                "no such sensitivity", value=self.sensitivity, allowed=", ".join(Sensitivity)
            ) from None
        if self.expires is not None:
            moment(self.expires)

    def serves(self, purpose: str | None) -> bool:
        """Return whether it may be read for this."""
        return not self.purposes or purpose in self.purposes

    def is_expired(self, now: datetime) -> bool:
        """Return whether its time is over."""
        return self.expires is not None and now >= moment(self.expires)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How often and how recently a cube was read.

    Attributes:
        heat: reads, of which half are forgotten in `HALF_LIFE_S`.
    """

    reads: int = 0
    last_read: str | None = None
    heat: float = 0.0

    def again(self, now: datetime) -> Usage:
        """Return the usage after one more read."""
        return Usage(reads=self.reads + 1, last_read=now.isoformat(), heat=self._cooled(now) + 1.0)

    def rate(self, now: datetime) -> float:
        """Return how often it is read, in reads per second."""
        return self._cooled(now) * math.log(2) / HALF_LIFE_S

    def _cooled(self, now: datetime) -> float:
        if self.last_read is None:
            return 0.0
        age_s = max(0.0, (now - moment(self.last_read)).total_seconds())
        return float(self.heat * 0.5 ** (age_s / HALF_LIFE_S))


@dataclass(frozen=True, kw_only=True)
class CubeHeader:
    """The header of a MemCube. `parents` is its lineage: erasing follows it downwards.

    Attributes:
        fingerprint: of the model that activation and parametric memory belongs to.
        frozen_from: the state a frozen cube goes back to; None of every other.
    """

    id: str
    kind: MemoryKind
    version: int = 1
    parents: tuple[str, ...] = ()
    state: State = State.GENERATED
    provenance: Provenance = field(default_factory=Provenance)
    policy: Policy = field(default_factory=Policy)
    usage: Usage = field(default_factory=Usage)
    fingerprint: str | None = None
    frozen_from: State | None = None

    def __post_init__(self) -> None:
        is_frozen = self.state is State.FROZEN
        if is_frozen != (self.frozen_from in _LIVE) or (not is_frozen and self.frozen_from):
            raise ParameterError(
                f"cube {self.id} is {self.state} and was frozen from {self.frozen_from}",
                allowed="a frozen cube names the state it goes back to, another none",
            )

    def to(self, state: State) -> CubeHeader:
        """Return the header in another state of life, one version later."""
        allowed = ALLOWED[self.state]
        if self.frozen_from is not None:
            allowed = frozenset({self.frozen_from})
        if state not in allowed:
            raise ParameterError(
                f"cube {self.id} is {self.state} and cannot become {state}",
                allowed=", ".join(sorted(allowed)) or "nothing; it is erased",
            )
        frozen_from = self.state if state is State.FROZEN else None
        return replace(self, state=state, frozen_from=frozen_from, version=self.version + 1)

    def moved(self, move: Move) -> CubeHeader:
        """Return the header after a move; the same one where nothing changes.

        Raises:
            ParameterError: if the move is not allowed.
        """
        try:
            state = after(self.state, move, self.frozen_from)
        except ParameterError as error:
            raise ParameterError(
                f"cube {self.id} is {self.state}; it cannot be moved by {move!s}",
                allowed=error.allowed,
            ) from None
        return self if state is self.state else self.to(state)

    def used(self, now: datetime) -> CubeHeader:
        """Return the header after one more read; what is frozen only counts."""
        return replace(self.moved(Move.USE), usage=self.usage.again(now))

    def is_over(self, now: datetime) -> bool:
        """Return whether its time is over, whether or not anybody noticed."""
        return self.state is State.EXPIRED or self.policy.is_expired(now)

    def check_unfrozen(self) -> None:
        """Raise PolicyError if nothing about the cube may change."""
        if self.state is State.FROZEN:
            raise PolicyError(
                f"cube {self.id} is frozen: nothing about it may change",
                way_out=f"loci cube freeze {self.id} --off",
            )


class Action(StrEnum):
    """What somebody wants to do with a cube."""

    READ = "read"
    WRITE = "write"
    SHARE = "share"
    ERASE = "erase"  # its owner may, also when its time is over


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and what for.

    Attributes:
        clearance: the most closely kept thing they may see.
    """

    tenant: str = "local"
    user: str | None = None
    clearance: Sensitivity = Sensitivity.SECRET
    purpose: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether something is permitted, and the rule that said so."""

    is_allowed: bool
    rule: str


def permit(caller: Caller, header: CubeHeader, action: Action, now: datetime) -> Decision:
    """Decide on (who, what, context): any rule that denies wins, and without a grant it is no.

    The tenant comes first, always.
    """
    policy, user = header.policy, caller.user
    denials = (
        (caller.tenant != policy.scope, "another tenant"),
        (header.state is State.ERASED, "erased"),
        (action is not Action.ERASE and header.is_over(now), "expired"),
        (action in (Action.WRITE, Action.ERASE) and header.state is State.FROZEN, "frozen"),
        (policy.sensitivity.rank > caller.clearance.rank, "sensitivity above clearance"),
        (action is Action.READ and not policy.serves(caller.purpose), "another purpose"),
    )
    for is_denied, rule in denials:
        if is_denied:
            return Decision(is_allowed=False, rule=rule)
    if policy.owner is None:
        return Decision(is_allowed=True, rule="open to its tenant")
    if user is not None and user == policy.owner:
        return Decision(is_allowed=True, rule="owner")
    if user is not None and user in policy.writers and action in (Action.READ, Action.WRITE):
        return Decision(is_allowed=True, rule="writer")
    if user is not None and user in policy.readers and action is Action.READ:
        return Decision(is_allowed=True, rule="reader")
    return Decision(is_allowed=False, rule="no grant")


def require(caller: Caller, header: CubeHeader, action: Action, now: datetime) -> None:
    """Raise PolicyError unless it is permitted; strangers are not told what there is."""
    decision = permit(caller, header, action, now)
    if not decision.is_allowed:
        raise PolicyError(
            f"cube {header.id} may not be {_DONE[action]} by this user",
            value=caller.user,
            allowed=f"denied by the rule: {decision.rule}",
        )


@lru_cache(maxsize=4096)
def moment(text: str) -> datetime:
    """Return a time with its zone from ISO 8601."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        raise ParameterError(
            "this is no time with a zone", value=text, allowed="such as 2026-05-01T10:00:00+00:00"
        )
    return found


def expiry(now: datetime, ttl_s: float) -> str:
    """Return when something ends that is kept for so many seconds."""
    if not ttl_s > 0:
        raise ParameterError("a time to live is above 0 seconds", value=ttl_s)
    try:
        return (now + timedelta(seconds=ttl_s)).isoformat()
    except OverflowError:
        raise ParameterError("a time to live ends before the year 10000", value=ttl_s) from None


def strictest(policies: Iterable[Policy]) -> Sensitivity:
    """Return the closest of some sensitivities: what is made of several things keeps that."""
    found = (policy.sensitivity for policy in policies)
    return max(found, key=lambda one: one.rank, default=Sensitivity.NORMAL)


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


_DONE = {
    Action.READ: "read",
    Action.WRITE: "changed",
    Action.SHARE: "shared",
    Action.ERASE: "erased",
}


def _moves_of(state: State) -> str:
    if state is State.FROZEN:
        return Move.UNFREEZE
    return ", ".join(move for (old, move) in MOVES if old is state) or "nothing; it is erased"
