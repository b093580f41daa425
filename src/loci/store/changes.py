"""Edits applied, remembered, taken back, and done again.

Every change of an item keeps the item before and after, and the turns that led to it. Undo writes
the item before over the item, redo the item after, each as a change of its own; what was done
together (a fact and what it superseded) is undone and redone together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any  # columns of a row

from loci.core.item import Add, Candidate, Edit, Item, Link, Retire, Revise, Scope
from loci.errors import BusyError, ParameterError, StoreError
from loci.store import rows
from loci.store.database import Database
from loci.store.times import from_micros, to_micros
from loci.store.writes import insert_item, insert_link, update_item
from loci.text.ladder import Step

_COLUMNS = "seq, item, batch, action, before, after, made_by, reason, at, undone_by, sources"
_COLUMNS += ", ladder"
_STEPS = "action NOT IN ('undo', 'redo')"  # what can be taken back and done again
_NAMED = re.compile(r"(?:undo|redo) (c\d+)$")
_LINKED = re.compile(r"(\S+) (i\d+)(?: ([\d.e+-]+))?\.")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step in the life of an item.

    Attributes:
        action: "add", "revise", "retire", "edit", "link", "state", "undo", "redo" or "import".
        before, after: the item at both sides; None before it was there.
        undone: whether this step is taken back now.
        sources: ids of the turns that led to it; none for what a person did by hand.
        steps: what models were asked for it, and for all that was written with it.
        batch: the first change of what was done together, and is undone together.
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
    sources: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    batch: str = ""


class Ledgered:
    """Applies edits inside a transaction and writes each into the history.

    Args:
        ladder: the number of what models were asked for these edits, None for nothing.
    """

    def __init__(
        self,
        database: Database,
        owner: int,
        scope: Scope,
        now: datetime,
        ladder: int | None = None,
    ) -> None:
        self.database, self.owner, self.scope, self.now = database, owner, scope, now
        self.ladder = ladder
        self.changed: list[Item] = []
        self._made: dict[str, str] = {}  # {key of a candidate: id of its item}

    def apply(self, edits: Sequence[Edit]) -> None:
        """Carry out edits in their order."""
        for edit in edits:
            if isinstance(edit, Add):
                item = self.add(self._item(edit.candidate, edit.made_by), "add", edit.reason)
                self._made[edit.candidate.key] = item.id
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
        self.write(item.id, action, None, item, item.made_by, reason, batch, item.sources)
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
        sources: Sequence[str] = (),
    ) -> int:
        """Write an item over itself and remember how it was; returns the change's number."""
        after = replace(after, version=before.version + 1)
        update_item(self.database, self.owner, after)
        self.changed.append(after)
        return self.write(before.id, action, before, after, made_by, reason, batch, sources)

    def write(
        self,
        id: str,
        action: str,
        before: Item | None,
        after: Item | None,
        made_by: str,
        reason: str,
        batch: int | None = None,
        sources: Sequence[str] = (),
    ) -> int:
        """Append to the history."""
        seq = self.database.next_seq("changes")
        self.database.connection.execute(
            "INSERT INTO changes (seq, owner, item, batch, action, before, after, made_by, reason, "
            "at, sources, ladder) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                json.dumps(list(dict.fromkeys(sources))) if sources else None,
                self.ladder,
            ),
        )
        return seq

    def item(self, id: str) -> Item:
        """Return an item of this owner by its id, or by the key it was made with."""
        return read_item(self.database, self.owner, self._made.get(id, id))

    def _item(self, candidate: Candidate, made_by: str) -> Item:
        return Item(
            id="",
            text=candidate.text,
            kind=candidate.kind,
            subject=candidate.subject,
            predicate=candidate.predicate,
            object=candidate.object,
            entities=candidate.entities,
            sources=tuple(dict.fromkeys(candidate.sources)),
            valid_from=candidate.valid_from,
            valid_to=candidate.valid_to,
            made_by=made_by,
            gloss=candidate.gloss,
        )

    def _revise(self, edit: Revise) -> None:
        before, told = self.item(edit.id), edit.candidate
        sources = tuple(dict.fromkeys((*before.sources, *told.sources)))
        after = replace(before, sources=sources, gloss=told.gloss or before.gloss)
        if told.text != before.text:
            after = replace(self._item(told, edit.made_by), id=before.id, sources=sources)
            after = replace(after, kind=before.kind, recorded_at=before.recorded_at)
            after = replace(after, metadata=before.metadata, retired_at=before.retired_at)
        if after != before:
            self.change(before, after, "revise", edit.made_by, edit.reason, sources=told.sources)

    def _retire(self, edit: Retire) -> None:
        before, batch = self.item(edit.id), None
        if before.is_live:
            after = replace(before, retired_at=self.now, valid_to=edit.at or self.now)
            told = edit.superseded_by.sources if edit.superseded_by is not None else ()
            sources = (*edit.sources, *told)
            batch = self.change(before, after, "retire", edit.made_by, edit.reason, sources=sources)
        if edit.superseded_by is not None:
            item = self._item(edit.superseded_by, edit.made_by)
            item = self.add(item, "add", edit.reason, batch)
            self._made[edit.superseded_by.key] = item.id
            self.relate(item.id, "supersedes", before.id, edit.made_by)

    def _link(self, edit: Link) -> None:
        source, target = self.item(edit.source), self.item(edit.target)
        if source.id == target.id or not re.fullmatch(r"\S+", edit.relation):
            raise ParameterError(
                "a link relates two items by one word",
                value=(source.id, edit.relation, target.id),
            )
        if self.relate(source.id, edit.relation, target.id, edit.made_by, edit.weight):
            reason = f"{edit.relation} {target.id} {edit.weight:.3g}. {edit.reason}".strip()
            self.write(
                source.id, "link", source, source, edit.made_by, reason, sources=source.sources
            )

    def relate(
        self, source: str, relation: str, target: str, made_by: str, weight: float = 1.0
    ) -> bool:
        """Link two items; returns False if they were."""
        db, at = self.database.connection, to_micros(self.now)
        ends = (int(source[1:]), relation, int(target[1:]))
        return insert_link(db, self.owner, *ends, made_by, at, weight)


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


def write_state(
    writer: Ledgered, items: Sequence[Item], links: Sequence[tuple[str, str, str]], reason: str
) -> None:
    """Write the state of an agent in one batch, unless somebody else wrote to it meanwhile.

    Raises:
        BusyError: if an item changed since it was read, or a new one is there already.
    """
    batch: int | None = None
    for item in items:
        held = _of_slot(writer, item)
        if (held.id if held else "") != item.id or (held and held.version != item.version):
            raise BusyError(
                "somebody else changed this state since it was read",
                value=f"{item.subject} {item.predicate}",
                way_out="read it again and go on from there; nothing was written",
            )
        if held is None:
            writer.add(item, "add", reason, batch)
            batch = batch or _last_change(writer)
        else:
            action = "state" if item.is_live else "retire"
            seq = writer.change(held, item, action, item.made_by, reason, batch)
            batch = batch or seq
    subject = items[0].subject if items else None
    ids = {item.predicate: item.id for item in writer.changed if item.is_live}
    for ends in links:
        for key in (ends[0], ends[2]):
            if key not in ids:
                found = _of_slot(writer, replace(items[0], subject=subject, predicate=key))
                if found is None:
                    raise ParameterError("a link ends at a record that is not there", value=ends)
                ids[key] = found.id
        source, target, by = ids[ends[0]], ids[ends[2]], items[0].made_by
        if source != target and writer.relate(source, ends[1], target, by):
            at = writer.item(source)
            writer.write(source, "link", at, at, by, f"{ends[1]} {target} 1. {reason}", batch)


def _of_slot(writer: Ledgered, item: Item) -> Item | None:
    """Return the live item in the slot of another, in the same place."""
    same, scope = writer.database.same, writer.scope
    row = writer.database.one(
        "SELECT seq FROM items WHERE owner = ? AND subject = ? AND predicate = ? AND kind = ? "
        f"AND retired_at IS NULL AND agent {same} ? AND session {same} ? ORDER BY seq DESC",
        (writer.owner, item.subject, item.predicate, item.kind, scope.agent, scope.session),
    )
    return None if row is None else read_item(writer.database, writer.owner, rows.item_id(row[0]))


def _last_change(writer: Ledgered) -> int:
    row = writer.database.one("SELECT max(seq) FROM changes WHERE owner = ?", (writer.owner,))
    return int(row[0]) if row else 0


def history(database: Database, item: int) -> list[Change]:
    """Return all changes of an item, oldest first."""
    sql = f"SELECT {_COLUMNS} FROM changes WHERE item = ? ORDER BY seq"
    return _changes(database, database.rows(sql, (item,)))


def recent(
    database: Database, owner: int, limit: int, offset: int = 0, made_by: str | None = None
) -> list[Change]:
    """Return what was changed in an owner's items, newest first; by one maker if named."""
    by, given = ("", ()) if made_by is None else ("AND made_by = ? ", (made_by,))
    sql = f"SELECT {_COLUMNS} FROM changes WHERE owner = ? {by}ORDER BY seq DESC LIMIT ? OFFSET ?"
    return _changes(database, database.rows(sql, (owner, *given, limit, offset)))


def led_to(database: Database, owner: int, turn: str) -> list[Change]:
    """Return the changes that a turn led to, oldest first."""
    sql = f"SELECT {_COLUMNS} FROM changes WHERE owner = ? AND {database.holds('sources')} "
    return _changes(database, database.rows(f"{sql}ORDER BY seq", (owner, f'"{turn}"')))


def undo(writer: Ledgered, id: str) -> list[Item]:
    """Take back a change; the last change of an item; or all that a turn led to.

    What was done together is taken back together. Given a change that was an undo, it is redone.

    Raises:
        NotFoundError: if there is no such change, item or turn.
        StoreError: if the item changed again since, or there is nothing to take back.
    """
    if rows.seq_of(id, "t") is not None:
        steps = _led_to(writer, id, "undone_by IS NULL", "DESC")
        if not steps:
            raise StoreError("this message led to no change that stands", value=id)
    elif rows.seq_of(id, "c") is not None:
        step = _step(writer, id)
        if step[3] == "undo":
            return redo(writer, _original(step))
        steps = [_step(writer, _original(step)) if step[3] == "redo" else step]
        if steps[0][9] is not None:
            raise StoreError("this change was undone before", value=rows.change_id(steps[0][0]))
    else:
        item = int(writer.item(id).id[1:])
        last = writer.database.one(
            f"SELECT max(seq) FROM changes WHERE item = ? AND undone_by IS NULL AND {_STEPS}",
            (item,),
        )
        if last is None or last[0] is None:
            raise StoreError("there is nothing to undo", value=id)
        steps = [_step(writer, rows.change_id(int(last[0])))]
    done: set[int] = set()
    undone: list[Item] = []
    for step in steps:
        if step[0] not in done:
            together = _together(writer, step, "undone_by IS NULL", "DESC")
            done.update(part[0] for part in together)
            undone += _take_back(writer, together)
    return undone


def redo(writer: Ledgered, id: str) -> list[Item]:
    """Do again what was undone: a change, an item's next one, or all that a turn led to.

    Raises:
        NotFoundError: if there is no such change, item or turn.
        StoreError: if the item changed again since, or there is nothing to do again.
    """
    if rows.seq_of(id, "t") is not None:
        steps = _led_to(writer, id, "undone_by IS NOT NULL", "ASC")
    elif rows.seq_of(id, "c") is not None:
        step = _step(writer, id)
        steps = [_step(writer, _original(step)) if step[3] in ("undo", "redo") else step]
        if steps[0][9] is None:
            raise StoreError("this change is not undone", value=rows.change_id(steps[0][0]))
    else:
        item = int(writer.item(id).id[1:])
        first = writer.database.one(
            # A step made after an undo closes the way back to what that undo took away.
            f"SELECT min(seq) FROM changes WHERE item = ? AND {_STEPS} AND undone_by > "
            f"(SELECT coalesce(max(seq), 0) FROM changes WHERE item = ? AND {_STEPS})",
            (item, item),
        )
        found = first is not None and first[0] is not None
        steps = [_step(writer, rows.change_id(int(first[0])))] if first and found else []
    if not steps:
        raise StoreError("there is nothing to redo", value=id)
    done: set[int] = set()
    redone: list[Item] = []
    for step in steps:
        if step[0] not in done:
            together = _together(writer, step, "undone_by IS NOT NULL", "ASC")
            done.update(part[0] for part in together)
            redone += _do_again(writer, together)
    return redone


Row = tuple[Any, ...]


def _step(writer: Ledgered, id: str) -> Row:
    sql = f"SELECT {_COLUMNS}, owner FROM changes WHERE seq = ?"
    row = writer.database.one(sql, (rows.seq_of(id, "c"),))
    if row is None or row[-1] != writer.owner:
        raise rows.unknown(id, "loci memory history ID shows the changes of an item")
    return row[:-1]


def _original(step: Row) -> str:
    """Return the id of the change that an undo or a redo was about."""
    named = _NAMED.search(str(step[7]))
    if named is None:
        raise StoreError("nothing tells what this step was about", value=rows.change_id(step[0]))
    return named[1]


def _led_to(writer: Ledgered, turn: str, state: str, order: str) -> list[Row]:
    sql = "SELECT 1 FROM turns WHERE owner = ? AND seq = ?"
    if writer.database.one(sql, (writer.owner, rows.seq_of(turn, "t"))) is None:
        raise rows.unknown(turn)
    sql = (
        f"SELECT {_COLUMNS} FROM changes WHERE owner = ? AND {state} AND {_STEPS} "
        f"AND {writer.database.holds('sources')} ORDER BY seq {order}"
    )
    return writer.database.rows(sql, (writer.owner, f'"{turn}"'))


def _together(writer: Ledgered, step: Row, state: str, order: str) -> list[Row]:
    """Return what was done together with a step, and check that nothing came after."""
    sql = f"SELECT {_COLUMNS} FROM changes WHERE batch = ? AND {state} ORDER BY seq {order}"
    together = writer.database.rows(sql, (step[2],))
    for part in together:
        if part[3] == "link":
            continue
        later = writer.database.one(
            "SELECT min(seq) FROM changes WHERE item = ? AND seq > ? AND undone_by IS NULL "
            f"AND {_STEPS} AND action != 'link' AND batch != ?",
            (part[1], part[0], step[2]),
        )
        if later is not None and later[0] is not None:
            raise StoreError(
                "the item has changed again since",
                value=rows.change_id(step[0]),
                way_out=f"undo {rows.change_id(later[0])} first",
            )
    return together


def _take_back(writer: Ledgered, together: Sequence[Row]) -> list[Item]:
    db, undone = writer.database.connection, list[Item]()
    batch: int | None = None
    for part in together:
        change = _change(part)
        now = writer.item(change.item)
        after = now
        if change.action == "link":
            link = _LINKED.match(change.reason)
            if link is not None:
                db.execute(
                    "DELETE FROM links WHERE source = ? AND relation = ? AND target = ?",
                    (part[1], link[1], int(link[2][1:])),
                )
        elif change.before is None:
            after = replace(now, retired_at=writer.now)
            db.execute("DELETE FROM links WHERE source = ? AND relation = 'supersedes'", (part[1],))
        else:
            after = _kept(writer, change.before)
        seq = writer.change(now, after, "undo", "person", f"undo {change.id}", batch)
        batch = seq if batch is None else batch
        db.execute("UPDATE changes SET undone_by = ? WHERE seq = ?", (seq, part[0]))
        undone.append(writer.changed[-1])
    return undone


def _do_again(writer: Ledgered, together: Sequence[Row]) -> list[Item]:
    db, redone = writer.database.connection, list[Item]()
    batch: int | None = None
    retired: str | None = None
    for part in together:
        change = _change(part)
        now = writer.item(change.item)
        after = now if change.after is None else _kept(writer, change.after)
        if change.action == "link":
            after, link = now, _LINKED.match(change.reason)
            if link is not None:
                weight = float(link[3] or 1.0)
                writer.relate(change.item, link[1], link[2], change.made_by, weight)
        elif change.action == "retire":
            retired = change.item
        elif change.before is None and retired is not None:
            writer.relate(change.item, "supersedes", retired, change.made_by)
        seq = writer.change(now, after, "redo", "person", f"redo {change.id}", batch)
        batch = seq if batch is None else batch
        db.execute("UPDATE changes SET undone_by = NULL WHERE seq = ?", (part[0],))
        redone.append(writer.changed[-1])
    return redone


def _kept(writer: Ledgered, item: Item) -> Item:
    """Return an item of the past without the turns that were forgotten since."""
    seqs = [seq for seq in (rows.seq_of(id, "t") for id in item.sources) if seq is not None]
    sql = "SELECT seq FROM turns WHERE owner = ? AND seq IN (%s)"
    have = {int(row[0]) for row in writer.database.many(sql, seqs, before=(writer.owner,))}
    return replace(item, sources=tuple(id for id in item.sources if int(id[1:]) in have))


def _changes(database: Database, found: Sequence[Row]) -> list[Change]:
    """Return the changes of rows, each with what models were asked for it."""
    numbers = sorted({int(row[11]) for row in found if row[11] is not None})
    steps = {
        int(seq): tuple(Step.from_record(record) for record in json.loads(text))
        for seq, text in database.many("SELECT seq, steps FROM ladders WHERE seq IN (%s)", numbers)
    }
    return [replace(_change(row), steps=steps.get(row[11], ())) for row in found]


def _change(row: tuple[object, ...]) -> Change:
    seq, item, batch, action, before, after, made_by, reason, at, undone_by, sources, _ = row
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
        sources=tuple(json.loads(str(sources))) if sources else (),
        batch=rows.change_id(int(str(batch))),
    )
