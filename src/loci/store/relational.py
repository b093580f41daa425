"""The store over any database: what it promises, carried out by the parts beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any  # JSON values

from loci.core.item import Item, Scope, with_gloss
from loci.store import changes, erasure, rows, transfer
from loci.store.base import Added, Erased, Revise
from loci.store.changes import Change, Ledgered
from loci.store.database import Database
from loci.store.messages import Draft
from loci.store.rows import ITEM, TURN
from loci.store.search import Asked, View
from loci.store.vectors import VectorIndex
from loci.store.writes import insert_steps, insert_turns, owner_seq, record

if TYPE_CHECKING:
    from loci.store.vectors import Floats
    from loci.text.ladder import Step


class RelationalStore:
    """Turns, items, history, audit and vectors of many users. Satisfies `base.Store`."""

    def __init__(self, database: Database, vectors: VectorIndex) -> None:
        self.database, self.vectors = database, vectors
        erasure.resume(database, vectors)

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
        """Store messages, and the edits they lead to, in one transaction."""
        with self.database.write() as db:
            owner = owner_seq(db, scope)
            turns = insert_turns(self.database, owner, scope, drafts, now)
            ladder = insert_steps(db, owner, steps, now)
            writer = Ledgered(self.database, owner, scope, now, ladder)
            edits: Sequence[Any] = ()
            if revise is not None:
                whole = Scope(tenant=scope.tenant, user=scope.user, agent=scope.agent)
                view = View(self.database, self.vectors, whole, owner, now, embed=embed)
                edits = revise(turns, view)
                writer.apply(edits)
            subject = f"{turns[0].id}-{turns[-1].id} items {len(writer.changed)}"
            if ladder is not None:
                subject += f" ladder {ladder}"
            record(db, owner, "add", subject, now)
        return Added(turns=tuple(turns), items=tuple(writer.changed), edits=tuple(edits))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all that is written inside one transaction."""
        with self.database.write():
            yield

    def owner(self, scope: Scope) -> int | None:
        """Return the number of the scope's user, None if nothing was ever stored for them."""
        sql = 'SELECT seq FROM owners WHERE tenant = ? AND "user" = ?'
        row = self.database.one(sql, (scope.tenant, scope.user))
        return None if row is None else int(row[0])

    def view(
        self,
        scope: Scope,
        now: datetime,
        *,
        asked: Asked | None = None,
        embed: Callable[[str], Floats] | None = None,
        zone: tzinfo = UTC,
    ) -> View:
        """Return a view of one scope; of nothing, if the user is not known."""
        owner = self.owner(scope) or 0  # numbers start at 1
        return View(
            self.database, self.vectors, scope, owner, now, asked=asked, embed=embed, zone=zone
        )

    def users(self, tenant: str) -> list[str]:
        """Return the users of a tenant, sorted."""
        found = self.database.rows('SELECT "user" FROM owners WHERE tenant = ?', (tenant,))
        return sorted(str(user) for (user,) in found)

    def scope_of(self, tenant: str, id: str) -> Scope:
        """Return whose item, turn or change this is; NotFoundError outside the tenant."""
        if not isinstance(id, str):
            raise rows.unknown(id)
        for letter, table in (("i", "items"), ("t", "turns"), ("c", "changes")):
            seq = rows.seq_of(id, letter)
            if seq is not None:
                sql = f'SELECT o.tenant, o."user" FROM {table} r JOIN owners o ON o.seq = r.owner'
                row = self.database.one(f"{sql} WHERE r.seq = ? AND o.tenant = ?", (seq, tenant))
                if row is not None:
                    return Scope(tenant=row[0], user=row[1])
        raise rows.unknown(id)

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
        """Write an item over itself by a person's hand, or add a new one (without an id)."""
        with self.database.write() as db:
            owner = owner_seq(db, scope)
            writer = Ledgered(self.database, owner, scope, now)
            if item.id:
                writer.change(writer.item(item.id), item, action, item.made_by, reason)
            else:
                writer.add(item, action, reason, origin=origin)
            changed = writer.changed[-1]
            if derived_from is not None:
                source = writer.item(derived_from).id
                writer.relate(changed.id, "derived_from", source, changed.made_by)
            record(db, owner, action, writer.changed[-1].id, now)
        return writer.changed[-1]

    def write_state(
        self,
        scope: Scope,
        items: Sequence[Item],
        links: Sequence[tuple[str, str, str]],
        reason: str,
        now: datetime,
    ) -> list[Item]:
        """Write items of kind "state" together: one step of the history, undone as one."""
        with self.database.write() as db:
            owner = owner_seq(db, scope)
            writer = Ledgered(self.database, owner, scope, now)
            changes.write_state(writer, items, links, reason)
            record(db, owner, "state", ",".join(item.id for item in writer.changed), now)
        return writer.changed

    def history(self, scope: Scope, id: str) -> list[Change]:
        """Return the changes of an item, oldest first."""
        item = changes.read_item(self.database, self.owner(scope), id)
        return changes.history(self.database, int(item.id[1:]))

    def led_to(self, scope: Scope, id: str) -> list[Change]:
        """Return the changes that a turn led to, oldest first."""
        return changes.led_to(self.database, self.owner(scope) or 0, id)

    def recent(
        self, scope: Scope, limit: int, offset: int = 0, made_by: str | None = None
    ) -> list[Change]:
        """Return the changes of a user's items, newest first; by one maker if named."""
        return changes.recent(self.database, self.owner(scope) or 0, limit, offset, made_by)

    def undo(self, scope: Scope, id: str, now: datetime) -> list[Item]:
        """Take back a change, the last change of an item, or all that a turn led to."""
        with self.database.write() as db:
            owner = owner_seq(db, scope)
            undone = changes.undo(Ledgered(self.database, owner, scope, now), id)
            record(db, owner, "undo", id, now)
        return undone

    def redo(self, scope: Scope, id: str, now: datetime) -> list[Item]:
        """Do again what was undone."""
        with self.database.write() as db:
            owner = owner_seq(db, scope)
            redone = changes.redo(Ledgered(self.database, owner, scope, now), id)
            record(db, owner, "redo", id, now)
        return redone

    def forget(
        self,
        scope: Scope,
        ids: Sequence[str],
        now: datetime,
        *,
        dry_run: bool,
        mentions: bool = False,
    ) -> Erased:
        """Erase items and turns with all that came of them, down to the bytes."""
        return erasure.forget(
            self.database,
            self.vectors,
            self.owner(scope) or 0,
            ids,
            now,
            dry_run=dry_run,
            mentions=mentions,
        )

    def forget_all(self, scope: Scope, now: datetime, *, dry_run: bool) -> Erased:
        """Erase all of a scope's user, agent or session, down to the bytes."""
        return erasure.forget_all(
            self.database,
            self.vectors,
            self.owner(scope) or 0,
            scope.agent,
            scope.session,
            now,
            dry_run=dry_run,
        )

    def record(self, scope: Scope, action: str, subject: str, now: datetime) -> None:
        """Append to the audit what was done outside the store, such as an export."""
        with self.database.write() as db:
            record(db, owner_seq(db, scope), action, subject, now)

    def records(self, scope: Scope) -> Iterator[dict[str, Any]]:
        """Yield all of a user as JSON records, for export."""
        return transfer.records(self.database, self.owner(scope) or 0)

    def put_records(
        self, scope: Scope, records: Sequence[Mapping[str, Any]], store: str, now: datetime
    ) -> int:
        """Store exported records that are not there yet; returns how many were new."""
        return transfer.put_records(self.database, scope, records, store, now)

    def origins(self, scope: Scope, origins: Sequence[str]) -> set[str]:
        """Return which of these origins are among the imported turns."""
        return set(transfer.origins(self.database, "turns", self.owner(scope) or 0, origins))

    def by_origin(self, scope: Scope, origins: Sequence[str]) -> dict[str, str]:
        """Return {origin: id} of the items that have one of these origins, retired ones too."""
        found = transfer.origins(self.database, "items", self.owner(scope) or 0, origins)
        return {origin: rows.item_id(seq) for origin, seq in found.items()}

    def pending(self, owner: int | None, limit: int) -> list[tuple[int, int, int, str]]:
        """Return (layer, number, owner, text) of what waits for a vector, oldest first."""
        sql = (
            "SELECT p.kind, p.seq, p.owner, "
            f"CASE p.kind WHEN {TURN} THEN (SELECT content FROM turns WHERE seq = p.seq) "
            "ELSE (SELECT text FROM items WHERE seq = p.seq) END, "
            f"CASE p.kind WHEN {TURN} THEN NULL "
            "ELSE (SELECT gloss FROM items WHERE seq = p.seq) END "
            f"FROM pending p {_of(owner)} ORDER BY p.kind DESC, p.seq LIMIT ?"
        )
        given = (limit,) if owner is None else (owner, limit)
        found = self.database.rows(sql, given)
        return [(a, b, c, with_gloss(str(d), rows.gloss_of(e))) for a, b, c, d, e in found]

    def count_pending(self, owner: int | None) -> int:
        """Return how many wait for a vector."""
        given = () if owner is None else (owner,)
        row = self.database.one(f"SELECT count(*) FROM pending p {_of(owner)}", given)
        return 0 if row is None else int(row[0])

    def put_vectors(
        self,
        entries: Sequence[tuple[int, int, int]],
        vectors: Floats,
        by: str,
        *,
        texts: Sequence[str] | None = None,
    ) -> int:
        """Store vectors of (layer, number, owner); what was reworded goes on waiting."""
        with self.database.write():
            if texts is not None:
                now = self._texts(entries)
                same = [n for n, entry in enumerate(entries) if now.get(entry[:2]) == texts[n]]
                if len(same) < len(entries):
                    entries, vectors = [entries[n] for n in same], vectors[same]
            return self.vectors.put(entries, vectors, by) if entries else 0

    def _texts(self, entries: Sequence[tuple[int, int, int]]) -> dict[tuple[int, int], str]:
        """Return {(layer, number): what is embedded of it now}."""
        turns, items = ([e[1] for e in entries if e[0] == kind] for kind in (TURN, ITEM))
        found = {}
        sql = "SELECT seq, content FROM turns WHERE seq IN (%s)"
        for seq, content in self.database.many(sql, turns):
            found[TURN, int(seq)] = str(content)
        sql = "SELECT seq, text, gloss FROM items WHERE seq IN (%s)"
        for seq, text, gloss in self.database.many(sql, items):
            found[ITEM, int(seq)] = with_gloss(str(text), rows.gloss_of(gloss))
        return found

    def settle(self) -> None:
        """Build the indexes that searches would build beside them; may take minutes."""
        self.vectors.settle()

    def drop_vectors(self) -> None:
        """Forget all vectors and queue every text anew."""
        self.vectors.drop()

    def meta(self, key: str) -> str | None:
        """Return a fact kept about this store."""
        return self.database.meta(key)

    def set_meta(self, key: str, value: str) -> None:
        """Keep a fact about this store."""
        self.database.set_meta(key, value)

    def counts(self, scope: Scope) -> dict[str, int]:
        """Return how many turns, items and retired items a user has."""
        row = self.database.one(
            "SELECT (SELECT count(*) FROM turns WHERE owner = ?), "
            "(SELECT count(*) FROM items WHERE owner = ? AND retired_at IS NULL), "
            "(SELECT count(*) FROM items WHERE owner = ? AND retired_at IS NOT NULL)",
            (self.owner(scope) or 0,) * 3,
        )
        return dict(zip(("turns", "items", "retired"), row or (0, 0, 0), strict=True))

    def check_integrity(self) -> list[str]:
        """Return what is wrong with the store, in words; nothing if all is well."""
        from loci.store.integrity import check_integrity

        return check_integrity(self.database)

    def close(self) -> None:
        """Close it; closing twice is fine."""
        self.vectors.close()
        self.database.close()


def _of(owner: int | None) -> str:
    return "" if owner is None else "WHERE p.owner = ?"
