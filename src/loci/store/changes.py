"""Edits applied, remembered, and taken back.

Every change of an item keeps the item before and after. Undo writes the item before over the item,
as a change of its own; what was done together (a fact and what it superseded) is undone together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loci.core.item import Add, Candidate, Edit, Item, Link, Retire, Revise, Scope
from loci.errors import ParameterError, StoreError
from loci.store import rows
from loci.store.database import Database
from loci.store.times import from_micros, to_micros
from loci.store.writes import insert_item, insert_link, update_item

_COLUMNS = "seq, item, batch, action, before, after, made_by, reason, at, undone_by"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step in the life of an item.

    Attributes:
        action: "add", "revise", "retire", "edit", "link", "undo" or "import".
        before, after: the item at both sides; None before it was there.
        undone: whether a later step took this one back.
    """

    id: str
    item: str
    action: str
    before: Item | None
    after: Item | None
    made_by: str
    reason: str
    at: datetime
    undone: bool = False


class Ledgered:
    """Applies edits inside a transaction and writes each into the history."""

    def __init__(self, database: Database, owner: int, scope: Scope, now: datetime) -> None:
        self.database, self.owner, self.scope, self.now = database, owner, scope, now
        self.changed: list[Item] = []

    def apply(self, edits: Sequence[Edit]) -> None:
        """Carry out edits in their order."""
        for edit in edits:
            if isinstance(edit, Add):
                self.add(self._item(edit.candidate, edit.made_by), "add", edit.reason)
            elif isinstance(edit, Revise):
                self._revise(edit)
            elif isinstance(edit, Retire):
                self._retire(edit)
            elif isinstance(edit, Link):
                self._link(edit)
            else:
                raise ParameterError(
                    "this is no edit", value=edit, allowed="Add, Revise, Retire, Link"
                )

    def add(
        self, item: Item, action: str, reason: str, batch: int | None = None, origin: str = ""
    ) -> Item:
        """Store a new item."""
        item = replace(item, recorded_at=item.recorded_at or self.now)
        item = insert_item(self.database, self.owner, self.scope, item, origin=origin or None)
        self.write(item.id, action, None, item, item.made_by, reason, batch)
        self.changed.append(item)
        return item

    def change(
        self,
        before: Item,
        after: Item,
        action: str,
        made_by: str,
        reason: str,
        batch: int | None = None,
    ) -> int:
        """Write an item over itself and remember how it was; returns the change's number."""
        after = replace(after, version=before.version + 1)
        update_item(self.database, self.owner, after)
        self.changed.append(after)
        return self.write(before.id, action, before, after, made_by, reason, batch)

    def write(
        self,
        id: str,
        action: str,
        before: Item | None,
        after: Item | None,
        made_by: str,
        reason: str,
        batch: int | None = None,
    ) -> int:
        """Append to the history."""
        seq = self.database.next_seq("changes")
        self.database.connection.execute(
            "INSERT INTO changes (seq, owner, item, batch, action, before, after, made_by, reason, "
            "at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq,
                self.owner,
                int(id[1:]),
                seq if batch is None else batch,
                action,
                rows.item_json(before),
                rows.item_json(after),
                made_by,
                reason,
                to_micros(self.now),
            ),
        )
        return seq

    def item(self, id: str) -> Item:
        """Return an item of this owner, or raise NotFoundError."""
        return read_item(self.database, self.owner, id)

    def _item(self, candidate: Candidate, made_by: str) -> Item:
        return Item(
            id="",
            text=candidate.text,
            subject=candidate.subject,
            predicate=candidate.predicate,
            object=candidate.object,
            entities=candidate.entities,
            sources=tuple(dict.fromkeys(candidate.sources)),
            valid_from=candidate.valid_from,
            valid_to=candidate.valid_to,
            made_by=made_by,
        )

    def _revise(self, edit: Revise) -> None:
        before, told = self.item(edit.id), edit.candidate
        sources = tuple(dict.fromkeys((*before.sources, *told.sources)))
        after = replace(before, sources=sources)
        if told.text != before.text:
            after = replace(self._item(told, edit.made_by), id=before.id, sources=sources)
            after = replace(after, kind=before.kind, recorded_at=before.recorded_at)
            after = replace(after, metadata=before.metadata, retired_at=before.retired_at)
        if after != before:
            self.change(before, after, "revise", edit.made_by, edit.reason)

    def _retire(self, edit: Retire) -> None:
        before, batch = self.item(edit.id), None
        if before.is_live:
            after = replace(before, retired_at=self.now, valid_to=edit.at or self.now)
            batch = self.change(before, after, "retire", edit.made_by, edit.reason)
        if edit.superseded_by is not None:
            item = self._item(edit.superseded_by, edit.made_by)
            item = self.add(item, "add", edit.reason, batch)
            self._relate(item.id, "supersedes", before.id, edit.made_by)

    def _link(self, edit: Link) -> None:
        source, target = self.item(edit.source), self.item(edit.target)
        if self._relate(source.id, edit.relation, target.id, edit.made_by):
            reason = f"{edit.relation} {target.id}. {edit.reason}".strip()
            self.write(source.id, "link", source, source, edit.made_by, reason)

    def _relate(self, source: str, relation: str, target: str, made_by: str) -> bool:
        db, at = self.database.connection, to_micros(self.now)
        return insert_link(db, self.owner, int(source[1:]), relation, int(target[1:]), made_by, at)


def read_item(database: Database, owner: int | None, id: str) -> Item:
    """Return an item, of one owner if given.

    Raises:
        NotFoundError: if there is none.
    """
    seq = rows.seq_of(id, "i")
    row = None
    if seq is not None:
        sql = f"SELECT {rows.ITEM_COLUMNS}, owner FROM items WHERE seq = ?"
        row = database.one(sql, (seq,))
    if row is None or (owner is not None and row[-1] != owner):
        raise rows.unknown(id)
    found = database.rows("SELECT turn FROM item_sources WHERE item = ? ORDER BY turn", (seq,))
    return rows.item_of(row[:-1], [rows.turn_id(turn) for (turn,) in found])


def history(database: Database, item: int) -> list[Change]:
    """Return all changes of an item, oldest first."""
    sql = f"SELECT {_COLUMNS} FROM changes WHERE item = ? ORDER BY seq"
    return [_change(row) for row in database.rows(sql, (item,))]


def undo(writer: Ledgered, id: str) -> list[Item]:
    """Take back a change, or the last change of an item, with all that was done together.

    Raises:
        NotFoundError: if there is no such change or item.
        StoreError: if the item changed again since, or there is nothing to take back.
    """
    database, db = writer.database, writer.database.connection
    seq = rows.seq_of(id, "c")
    if seq is None:
        item = int(writer.item(id).id[1:])
        sql = "SELECT max(seq) FROM changes WHERE item = ? AND undone_by IS NULL AND action != ?"
        row = database.one(sql, (item, "undo"))
        if row is None or row[0] is None:
            raise StoreError("there is nothing to undo", value=id)
        seq = int(row[0])
    sql = f"SELECT {_COLUMNS}, owner FROM changes WHERE seq = ?"
    row = database.one(sql, (seq,))
    if row is None or row[-1] != writer.owner:
        raise rows.unknown(id, "loci memory history ID shows the changes of an item")
    if row[9] is not None:
        raise StoreError("this change was undone before", value=rows.change_id(seq))
    together = database.rows(
        f"SELECT {_COLUMNS} FROM changes WHERE batch = ? AND undone_by IS NULL ORDER BY seq DESC",
        (row[2],),
    )
    for part in together:
        later = database.one(
            "SELECT min(seq) FROM changes WHERE item = ? AND seq > ? AND undone_by IS NULL "
            "AND action NOT IN ('undo', 'link') AND batch != ?",
            (part[1], part[0], row[2]),
        )
        if later is not None and later[0] is not None and part[3] != "link":
            raise StoreError(
                "the item has changed again since",
                value=rows.change_id(seq),
                way_out=f"undo {rows.change_id(later[0])} first",
            )
    undone: list[Item] = []
    batch: int | None = None
    for part in together:
        change = _change(part)
        now = writer.item(change.item)
        if change.action == "link":
            words = change.reason.split(" ", 1)
            target = words[1].split(".")[0] if len(words) > 1 else ""
            db.execute(
                "DELETE FROM links WHERE source = ? AND relation = ? AND target = ?",
                (part[1], words[0], rows.seq_of(target, "i")),
            )
            after = now
        elif change.before is None:
            after = replace(now, retired_at=writer.now)
            db.execute("DELETE FROM links WHERE source = ? AND relation = 'supersedes'", (part[1],))
        else:
            after = change.before
        batch_now = writer.change(now, after, "undo", "person", f"undo {change.id}", batch)
        batch = batch if batch is not None else batch_now
        db.execute("UPDATE changes SET undone_by = ? WHERE seq = ?", (batch_now, part[0]))
        db.execute("UPDATE changes SET undone_by = NULL WHERE undone_by = ?", (part[0],))
        undone.append(writer.changed[-1])
    return undone


def _change(row: tuple[object, ...]) -> Change:
    seq, item, _, action, before, after, made_by, reason, at, undone_by = row
    return Change(
        id=rows.change_id(int(str(seq))),
        item=rows.item_id(int(str(item))),
        action=str(action),
        before=rows.item_from_json(None if before is None else str(before)),
        after=rows.item_from_json(None if after is None else str(after)),
        made_by=str(made_by),
        reason=str(reason),
        at=from_micros(int(str(at))),
        undone=undone_by is not None,
    )
