"""A user's memory as JSON records, out and in again.

Records come in an order in which each names only what came before: turns, items, links, changes.
Where a record came from is kept as its origin, so that a second import of the same file, or one
that goes on after an interruption, adds nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any  # JSON values

from loci.core.item import Item, Scope
from loci.errors import FormatError
from loci.store import rows
from loci.store.database import Database
from loci.store.messages import drafts
from loci.store.times import from_micros, to_micros
from loci.store.writes import (
    insert_item,
    insert_link,
    insert_steps,
    insert_turns,
    owner_seq,
    record,
)
from loci.text.ladder import Step

FORMAT, VERSION = "loci-memory", 1
_PAGE = 1000


def records(database: Database, owner: int) -> Iterator[dict[str, Any]]:
    """Yield all of an owner, page by page."""
    for row in _pages(database, "turns", f"{rows.TURN_COLUMNS}, agent, recorded_at", owner):
        turn = rows.turn_record(rows.turn_of(row[:-2]))
        recorded = from_micros(row[-1]).isoformat()
        yield {"type": "turn", **turn, "agent": row[-2], "recorded_at": recorded}
    origin_of = "(SELECT origin FROM items i WHERE i.seq = {})"
    for row in _pages(database, "items", f"{rows.ITEM_COLUMNS}, agent, session, origin", owner):
        sql = "SELECT turn FROM item_sources WHERE item = ? ORDER BY turn"
        sources = [rows.turn_id(turn) for (turn,) in database.rows(sql, (row[0],))]
        item = rows.item_record(rows.item_of(row[:-3], sources))
        yield _named({"type": "item", **item, "agent": row[-3], "session": row[-2]}, origin=row[-1])
    names = "seq, source, relation, target, made_by, recorded_at, weight, "
    names += f"{origin_of.format('links.source')}, {origin_of.format('links.target')}"
    for row in _pages(database, "links", names, owner):
        _, source, relation, target, made_by, at, weight, source_origin, target_origin = row
        link = {
            "type": "link",
            "source": rows.item_id(source),
            "relation": relation,
            "target": rows.item_id(target),
            "made_by": made_by,
            "recorded_at": from_micros(at).isoformat(),
            "weight": weight,
        }
        yield _named(link, source_origin=source_origin, target_origin=target_origin)
    names = "seq, item, batch, action, before, after, made_by, reason, at, undone_by, sources, "
    names += "(SELECT steps FROM ladders WHERE ladders.seq = changes.ladder), "
    names += origin_of.format("changes.item")
    for row in _pages(database, "changes", names, owner):
        seq, item, batch, action, before, after, made_by, reason, at, undone_by = row[:10]
        sources, steps = row[10:12]
        change = {
            "type": "change",
            "id": rows.change_id(seq),
            "item": rows.item_id(item),
            "batch": rows.change_id(batch),
            "action": action,
            "before": json.loads(before) if before else None,
            "after": json.loads(after) if after else None,
            "made_by": made_by,
            "reason": reason,
            "at": from_micros(at).isoformat(),
            "undone_by": None if undone_by is None else rows.change_id(undone_by),
            "sources": json.loads(sources) if sources else [],
        }
        if steps is not None:
            change["steps"] = json.loads(steps)
        yield _named(change, item_origin=row[-1])


def _named(record: dict[str, Any], **origins: str | None) -> dict[str, Any]:
    """Return a record with the origins of items that have one: their name in every store."""
    return {**record, **{key: origin for key, origin in origins.items() if origin is not None}}


def _pages(database: Database, table: str, names: str, owner: int) -> Iterator[tuple[Any, ...]]:
    last = 0
    while True:
        sql = f"SELECT {names} FROM {table} WHERE owner = ? AND seq > ? ORDER BY seq LIMIT ?"
        page = database.rows(sql, (owner, last, _PAGE))
        yield from page
        if len(page) < _PAGE:
            return
        last = int(page[-1][0])


def origins(database: Database, table: str, owner: int, wanted: Sequence[str]) -> dict[str, int]:
    """Return {origin: row number} of those that were imported before."""
    found: dict[str, int] = {}
    for start in range(0, len(wanted), _PAGE):
        part = wanted[start : start + _PAGE]
        marks = ",".join("?" * len(part))
        sql = f"SELECT origin, seq FROM {table} WHERE owner = ? AND origin IN ({marks})"
        found.update((str(name), int(seq)) for name, seq in database.rows(sql, (owner, *part)))
    return found


def put_records(
    database: Database,
    scope: Scope,
    given: Sequence[Mapping[str, Any]],
    store: str,
    now: datetime,
) -> int:
    """Store exported records in one transaction; those that are there already are passed over.

    `store` is the name of the store they were exported from.
    """
    with database.write() as db:
        owner = owner_seq(db, scope)
        put = _Putter(database, scope, owner, store, now)
        for one in given:
            kind = one.get("type")
            if kind not in _Putter.KINDS:
                raise FormatError(
                    "this export has a record of an unknown type",
                    value=kind,
                    allowed=", ".join(_Putter.KINDS),
                )
            try:
                getattr(put, str(kind))(one)
            except (KeyError, TypeError) as problem:
                raise FormatError(
                    f"a record of type {kind} is not complete: {problem}", value=dict(one)
                ) from None
        if put.count:
            record(db, owner, "import", f"{put.count} records", now)
    return put.count


class _Putter:
    """Stores records one by one, translating the ids of the file into those of this store."""

    KINDS = ("turn", "item", "link", "change")

    def __init__(
        self, database: Database, scope: Scope, owner: int, store: str, now: datetime
    ) -> None:
        self.database, self.scope, self.owner, self.now = database, scope, owner, now
        self.store, self.is_own = store, database.meta("store") == store
        self.count = 0

    def turn(self, one: Mapping[str, Any]) -> None:
        if self._seq("turns", one["id"]) is not None:
            return
        message = {key: one.get(key) for key in ("role", "content", "name", "time", "metadata")}
        draft = drafts(message, now=self.now, assumed=UTC)[0]
        draft.origin, draft.zone_assumed = self._origin(one["id"]), bool(one.get("zone_assumed"))
        place = Scope(
            tenant=self.scope.tenant,
            user=self.scope.user,
            agent=one.get("agent"),
            session=one.get("session"),
        )
        recorded = one.get("recorded_at")
        learned = self.now if recorded is None else datetime.fromisoformat(recorded)
        insert_turns(self.database, self.owner, place, [draft], learned)
        self.count += 1

    def item(self, one: Mapping[str, Any]) -> None:
        own = one.get("origin")
        if self._seq("items", one["id"], own) is not None:
            return
        place = replace(self.scope, agent=one.get("agent"), session=one.get("session"))
        origin = self._origin(one["id"]) if own is None else str(own)
        insert_item(self.database, self.owner, place, self._translated(one), origin=origin)
        self.count += 1

    def link(self, one: Mapping[str, Any]) -> None:
        source = self._seq("items", one["source"], one.get("source_origin"))
        target = self._seq("items", one["target"], one.get("target_origin"))
        if source is None or target is None:
            return
        at = to_micros(datetime.fromisoformat(one["recorded_at"]))
        db, relation, by = self.database.connection, str(one["relation"]), str(one["made_by"])
        weight = float(one.get("weight", 1.0))
        self.count += insert_link(db, self.owner, source, relation, target, by, at, weight)

    def change(self, one: Mapping[str, Any]) -> None:
        item = self._seq("items", one["item"], one.get("item_origin"))
        at = to_micros(datetime.fromisoformat(one["at"]))
        db, action = self.database.connection, str(one["action"])
        before, after = (
            rows.item_json(None if one[side] is None else self._translated(one[side], item))
            for side in ("before", "after")
        )
        same = (
            "SELECT 1 FROM changes WHERE item = ? AND at = ? AND action = ? "
            f"AND after {self.database.same} ?"
        )
        if item is None or db.execute(same, (item, at, action, after)).fetchone():
            return
        seq = self.database.next_seq("changes")
        undone = None if one.get("undone_by") is None else seq  # undone, by which is not kept
        told = self._turns(one.get("sources") or ())
        db.execute(
            "INSERT INTO changes (seq, owner, item, batch, action, before, after, made_by, reason, "
            "at, undone_by, sources, ladder) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(seq, self.owner, item, self._batch(one, seq, at), action, before, after),
                # Undo and redo name a change by its number, which is another one here.
                *(one["made_by"], action if action in ("undo", "redo") else one["reason"]),
                *(at, undone, json.dumps(list(told)) if told else None, self._ladder(one, at)),
            ),
        )
        self.count += 1

    def _ladder(self, one: Mapping[str, Any], at: int) -> int | None:
        """Return the number of what models were asked for a change; one write shares it."""
        if not one.get("steps"):
            return None
        steps = [Step.from_record(record) for record in one["steps"]]
        text = json.dumps([step.record() for step in steps], ensure_ascii=False)
        row = self.database.one(
            "SELECT max(seq) FROM ladders WHERE owner = ? AND at = ? AND steps = ?",
            (self.owner, at, text),
        )
        if row is not None and row[0] is not None:
            return int(row[0])
        return insert_steps(self.database.connection, self.owner, steps, from_micros(at))

    def _batch(self, one: Mapping[str, Any], seq: int, at: int) -> int:
        """Return the first change of what was done together: it is the one just before, if any."""
        if one.get("batch", one.get("id")) == one.get("id"):
            return seq
        row = self.database.one(
            "SELECT batch FROM changes WHERE owner = ? AND at = ? AND seq < ? "
            "ORDER BY seq DESC LIMIT 1",
            (self.owner, at, seq),
        )
        return seq if row is None else int(row[0])

    def _translated(self, one: Mapping[str, Any], seq: int | None = None) -> Item:
        item = rows.item_from_record(one)
        if item.gloss is not None:
            item = replace(item, gloss=replace(item.gloss, sources=self._turns(item.gloss.sources)))
        return replace(
            item,
            id="" if seq is None else rows.item_id(seq),
            sources=self._turns(item.sources),
        )

    def _turns(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return the ids here of turns there; those that were not exported are left out."""
        seqs = [self._seq("turns", id) for id in ids]
        return tuple(rows.turn_id(turn) for turn in seqs if turn is not None)

    def _origin(self, id: object) -> str:
        return f"{self.store}:{id}"

    def _seq(self, table: str, id: object, own: object = None) -> int | None:
        """Return the number here of a row there: its own at home, else by its origin."""
        if self.is_own:
            seq = rows.seq_of(str(id), table[0])
            sql = f"SELECT seq FROM {table} WHERE owner = ? AND seq = ?"
            row = self.database.one(sql, (self.owner, seq))
            if row is not None:
                return int(row[0])
        origin = self._origin(id) if own is None else str(own)
        return origins(self.database, table, self.owner, [origin]).get(origin)
