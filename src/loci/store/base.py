"""What a memory needs of a store, whatever database is behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, Protocol  # JSON values

from loci.core.item import Edit, Item, Scope, Turn
from loci.store.changes import Change
from loci.store.messages import Draft
from loci.store.search import Asked, View

if TYPE_CHECKING:
    from loci.store.vectors import Floats
    from loci.text.ladder import Step

Revise = Callable[[Sequence[Turn], View], Sequence[Edit]]
"""What new turns mean to what is known; called inside the transaction that stores them."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """What one write left behind: all of it is committed."""

    turns: tuple[Turn, ...] = ()
    items: tuple[Item, ...] = ()
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What an erasure took, or would take.

    Attributes:
        done: False after a dry run.
        items, turns: ids that are gone.
        cut: {turn id: the sentences taken out of it}; the rest of the turn stays.
        texts: every text that is gone.
        mentions: ids of this user's turns and items that stay, though they speak of the same.
        found: {file: how often an erased text was found in its bytes afterwards}.
        beside: the same for files that lie beside those of the store and are named like them.
        elsewhere: erased texts that other users' memories hold too, which stay there.
        too_short: erased texts of so few bytes that finding them would prove nothing.
        cubes, retired, retrained: ids of cubes made of what is gone: taken away, emptied for good
            (adapters), or trained anew without it.
        out_of_reach: what may still have a copy.
    """

    done: bool
    items: tuple[str, ...]
    turns: tuple[str, ...]
    cut: Mapping[str, tuple[str, ...]]
    texts: tuple[str, ...]
    mentions: tuple[str, ...] = ()
    found: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    elsewhere: int = 0
    too_short: tuple[str, ...] = ()
    out_of_reach: tuple[str, ...] = ()
    cubes: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    retrained: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the bytes of the store hold none of the erased texts."""
        return self.done and not any(self.found.values())


class Store(Protocol):
    """Turns, items, their history and their vectors, of many users, with search over them."""

    def add(
        self,
        scope: Scope,
        drafts: Sequence[Draft],
        revise: Revise | None,
        now: datetime,
        *,
        steps: Sequence[Step] = (),
        embed: Callable[[str], Floats] | None = None,
    ) -> Added:
        """Store messages, and the edits they lead to, in one transaction.

        Args:
            steps: what models were asked for these edits; kept with them.
            embed: lets `revise` search by meaning.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """Make all that is written inside one transaction."""
        ...

    def owner(self, scope: Scope) -> int | None:
        """Return the number of the scope's user, None if nothing was ever stored for them."""
        ...

    def view(
        self,
        scope: Scope,
        now: datetime,
        *,
        asked: Asked | None = None,
        embed: Callable[[str], Floats] | None = None,
        zone: tzinfo = ...,
    ) -> View:
        """Return a view of one scope."""
        ...

    def users(self, tenant: str) -> list[str]:
        """Return the users of a tenant, sorted."""
        ...

    def scope_of(self, tenant: str, id: str) -> Scope:
        """Return whose item, turn or change this is; NotFoundError outside the tenant."""
        ...

    def change(
        self,
        scope: Scope,
        item: Item,
        action: str,
        reason: str,
        now: datetime,
        *,
        origin: str = "",
        derived_from: str | None = None,
    ) -> Item:
        """Write an item over itself by a person's hand, or add a new one (without an id).

        Args:
            origin: names a new item for `by_origin`; no other item of the user may have it.
            derived_from: an item whose erasure takes this one along.
        """
        ...

    def write_state(
        self,
        scope: Scope,
        items: Sequence[Item],
        links: Sequence[tuple[str, str, str]],
        reason: str,
        now: datetime,
    ) -> list[Item]:
        """Write items of kind "state" together: one step of the history, undone as one.

        Args:
            items: each with its slot (subject and predicate). One without an id is new; one with an
                id goes over the version it was made from.
            links: (predicate, relation, predicate) between live items of this subject.

        Raises:
            BusyError: if one of them changed since it was read; nothing is written then.
        """
        ...

    def history(self, scope: Scope, id: str) -> list[Change]:
        """Return the changes of an item, oldest first."""
        ...

    def led_to(self, scope: Scope, id: str) -> list[Change]:
        """Return the changes that a turn led to, oldest first."""
        ...

    def recent(
        self, scope: Scope, limit: int, offset: int = 0, made_by: str | None = None
    ) -> list[Change]:
        """Return the changes of a user's items, newest first; by one maker if named."""
        ...

    def undo(self, scope: Scope, id: str, now: datetime) -> list[Item]:
        """Take back a change, the last change of an item, or all that a turn led to."""
        ...

    def redo(self, scope: Scope, id: str, now: datetime) -> list[Item]:
        """Do again what was undone."""
        ...

    def forget(
        self,
        scope: Scope,
        ids: Sequence[str],
        now: datetime,
        *,
        dry_run: bool,
        mentions: bool = False,
    ) -> Erased:
        """Erase items and turns with all that came of them, down to the bytes.

        With `mentions`, also what only speaks of the same.
        """
        ...

    def forget_all(self, scope: Scope, now: datetime, *, dry_run: bool) -> Erased:
        """Erase all of a scope's user, agent or session, down to the bytes."""
        ...

    def record(self, scope: Scope, action: str, subject: str, now: datetime) -> None:
        """Append to the audit what was done outside the store, such as an export."""
        ...

    def records(self, scope: Scope) -> Iterator[dict[str, Any]]:
        """Yield all of a user as JSON records, for export."""
        ...

    def put_records(
        self, scope: Scope, records: Sequence[Mapping[str, Any]], store: str, now: datetime
    ) -> int:
        """Store exported records that are not there yet; returns how many were new."""
        ...

    def origins(self, scope: Scope, origins: Sequence[str]) -> set[str]:
        """Return which of these origins are among the imported turns."""
        ...

    def by_origin(self, scope: Scope, origins: Sequence[str]) -> dict[str, str]:
        """Return {origin: id} of the items that have one of these origins, retired ones too."""
        ...

    def pending(self, owner: int | None, limit: int) -> list[tuple[int, int, int, str]]:
        """Return (layer, number, owner, text) of what waits for a vector, oldest first."""
        ...

    def count_pending(self, owner: int | None) -> int:
        """Return how many wait for a vector."""
        ...

    def put_vectors(
        self,
        entries: Sequence[tuple[int, int, int]],
        vectors: Floats,
        by: str,
        *,
        texts: Sequence[str] | None = None,
    ) -> int:
        """Store vectors of (layer, number, owner); what was reworded goes on waiting."""
        ...

    def settle(self) -> None:
        """Build the indexes that searches would build beside them; may take minutes."""
        ...

    def drop_vectors(self) -> None:
        """Forget all vectors and queue every text anew."""
        ...

    def meta(self, key: str) -> str | None:
        """Return a fact kept about this store."""
        ...

    def set_meta(self, key: str, value: str) -> None:
        """Keep a fact about this store."""
        ...

    def counts(self, scope: Scope) -> dict[str, int]:
        """Return how many turns, items and retired items a user has."""
        ...

    def check_integrity(self) -> list[str]:
        """Return what is wrong with the store, in words; nothing if all is well."""
        ...

    def close(self) -> None:
        """Close it; closing twice is fine."""
        ...
