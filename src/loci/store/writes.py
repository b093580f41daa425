"""Writing turns and items: rows, full text, names, the queue for vectors and the audit, together.

Every function here runs inside `Database.write()`; the caller's transaction makes them one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

from loci.core.item import Item, Scope, Turn
from loci.store import rows
from loci.store.database import Database, Writer
from loci.store.fulltext import Whose
from loci.store.messages import Draft
from loci.store.rows import ITEM, TURN
from loci.store.times import to_micros
from loci.text.ladder import Step

_ITEM_NAMES = rows.ITEM_COLUMNS.removeprefix("seq, ")
_INSERT_TURN = (
    f"INSERT INTO turns ({rows.TURN_COLUMNS}, owner, agent, recorded_at, origin) "
    f"VALUES ({','.join('?' * 14)})"
)
_INSERT_ITEM = (
    f"INSERT INTO items (seq, {_ITEM_NAMES}, owner, agent, session, origin) "
    f"VALUES ({','.join('?' * 19)})"
)
_UPDATE_ITEM = (
    "UPDATE items SET " + ", ".join(f"{n} = ?" for n in _ITEM_NAMES.split(", ")) + " WHERE seq = ?"
)


def owner_seq(db: Writer, scope: Scope) -> int:
    """Return the number of the scope's tenant and user, made if new."""
    key = (scope.tenant, scope.user)
    sql = 'SELECT seq FROM owners WHERE tenant = ? AND "user" = ?'
    row = db.execute(sql, key).fetchone()
    if row is None:
        db.execute('INSERT INTO owners (tenant, "user") VALUES (?, ?)', key)
        row = db.execute(sql, key).fetchone()
    return int(row[0])


def insert_turns(
    database: Database, owner: int, scope: Scope, drafts: Sequence[Draft], now: datetime
) -> list[Turn]:
    """Store messages as turns; their positions go on where the session ended."""
    db = database.connection
    seq = database.next_seq("turns", len(drafts))
    place = db.execute(
        f"SELECT max(position) FROM turns WHERE owner = ? AND session {database.same} ?",
        (owner, scope.session),
    ).fetchone()[0]
    position = 0 if place is None else place + 1
    recorded = to_micros(now)
    turns, turn_rows, words = [], [], []
    for draft in drafts:
        offset = draft.said.utcoffset()
        offset_s = 0 if offset is None else round(offset.total_seconds())
        turn_rows.append(
            (
                seq,
                draft.role,
                draft.name,
                draft.content,
                to_micros(draft.said),
                offset_s,
                int(draft.zone_assumed),
                draft.metadata,
                position,
                scope.session,
                owner,
                scope.agent,
                recorded,
                draft.origin,
            )
        )
        words.append((seq, rows.turn_words(draft.content)))
        turns.append(
            Turn(
                id=rows.turn_id(seq),
                role=draft.role,
                content=draft.content,
                time=draft.said,
                name=draft.name,
                session=scope.session,
                zone_assumed=draft.zone_assumed,
                metadata=json.loads(draft.metadata) if draft.metadata else {},
                position=position,
            )
        )
        seq += 1
        position += 1
    db.executemany(_INSERT_TURN, turn_rows)
    database.words.add("turn", Whose(owner, scope.agent, scope.session), words)
    db.executemany(
        f"INSERT INTO pending (kind, seq, owner) VALUES ({TURN}, ?, {owner})",
        [(row[0],) for row in words],
    )
    names = {draft.name for draft in drafts if draft.name is not None}
    if names:
        db.executemany(
            "INSERT INTO speakers (owner, name) VALUES (?, ?) ON CONFLICT DO NOTHING",
            [(owner, name) for name in names],
        )
    return turns


def insert_item(
    database: Database, owner: int, scope: Scope, item: Item, *, origin: str | None = None
) -> Item:
    """Store an item under a number of its own; returns it with its id."""
    db = database.connection
    seq = database.next_seq("items")
    item = replace(item, id=rows.item_id(seq))
    values = rows.item_values(item)
    agent, session = _place(database, owner, item, (scope.agent, scope.session))
    db.execute(_INSERT_ITEM, (seq, *values, owner, agent, session, origin))
    entry = (seq, rows.item_words(item))
    database.words.add("item", Whose(owner, agent, session), [entry])
    _index_item(db, owner, seq, item)
    return item


def update_item(database: Database, owner: int, item: Item) -> None:
    """Write an item over itself: row, full text, names, sources; its vector is made anew."""
    seq, db = int(item.id[1:]), database.connection
    words = rows.item_words(item)
    db.execute(_UPDATE_ITEM, (*rows.item_values(item), seq))
    db.execute("DELETE FROM item_sources WHERE item = ?", (seq,))
    db.execute("DELETE FROM item_entities WHERE owner = ? AND item = ?", (owner, seq))
    if database.words.replace("item", seq, words):
        db.execute("DELETE FROM vectors WHERE kind = ? AND seq = ?", (ITEM, seq))
        bump(db)
    before = db.execute("SELECT agent, session FROM items WHERE seq = ?", (seq,)).fetchone()
    place = _place(database, owner, item, (before[0], before[1]))
    if place != (before[0], before[1]):
        db.execute("UPDATE items SET agent = ?, session = ? WHERE seq = ?", (*place, seq))
        database.words.remove("item", seq)
        database.words.add("item", Whose(owner, *place), [(seq, words)])
    _index_item(db, owner, seq, item)


def _place(
    database: Database, owner: int, item: Item, given: tuple[str | None, str | None]
) -> tuple[str | None, str | None]:
    """Return the agent and the session an item belongs to: those of all turns it rests on.

    What was told to several belongs to none of them alone, so that none reads what another was
    told. An item that rests on no turn keeps the place it was given.
    """
    seqs = [int(id[1:]) for id in item.sources]
    sql = "SELECT DISTINCT agent, session FROM turns WHERE owner = ? AND seq IN (%s)"
    found = database.many(sql, seqs, before=(owner,))
    agents, sessions = {agent for agent, _ in found}, {session for _, session in found}
    if not found:
        return given
    return (
        agents.pop() if len(agents) == 1 else None,
        sessions.pop() if len(sessions) == 1 else None,
    )


def _index_item(db: Writer, owner: int, seq: int, item: Item) -> None:
    db.executemany(
        "INSERT INTO item_sources (item, turn) VALUES (?, ?) ON CONFLICT DO NOTHING",
        [(seq, int(id[1:])) for id in item.sources],
    )
    db.executemany(
        "INSERT INTO item_entities (owner, name, item) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(owner, name, seq) for name in item.entities],
    )
    have = "SELECT 1 FROM vectors WHERE kind = ? AND seq = ?"
    if db.execute(have, (ITEM, seq)).fetchone() is None:
        db.execute(
            "INSERT INTO pending (kind, seq, owner) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (ITEM, seq, owner),
        )


def insert_link(
    db: Writer,
    owner: int,
    source: int,
    relation: str,
    target: int,
    made_by: str,
    at: int,
    weight: float = 1.0,
) -> bool:
    """Store a link; returns False if it was there."""
    done = db.execute(
        "INSERT INTO links (owner, source, relation, target, made_by, recorded_at, weight) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (owner, source, relation, target, made_by, at, weight),
    )
    return done.rowcount > 0


def insert_steps(db: Writer, owner: int, steps: Sequence[Step], now: datetime) -> int | None:
    """Store what models were asked for a write; returns its number, None if nothing was asked."""
    asked = [step.record() for step in steps if step.calls or step.refused]
    if not asked:
        return None
    row = (owner, to_micros(now), json.dumps(asked, ensure_ascii=False))
    db.execute("INSERT INTO ladders (owner, at, steps) VALUES (?, ?, ?)", row)
    return int(db.execute("SELECT max(seq) FROM ladders WHERE owner = ?", (owner,)).fetchone()[0])


def bump(db: Writer) -> None:
    """Tell every reader that vectors went away, so that what it holds in memory is read anew."""
    db.execute(
        "INSERT INTO meta (key, value) VALUES ('vectors.generation', '1') "
        "ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(meta.value AS INTEGER) + 1 AS TEXT)"
    )


def record(db: Writer, owner: int, action: str, subject: str, now: datetime) -> None:
    """Append to the audit: what was done to which ids, never their text.

    Each row's digest covers the row before it, so a row cannot be changed or taken out unseen.
    """
    last = db.execute("SELECT digest FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    at = to_micros(now.astimezone(UTC))
    db.execute(
        "INSERT INTO audit (at, owner, action, subject, digest) VALUES (?, ?, ?, ?, ?)",
        (at, owner, action, subject, _digest(last[0] if last else b"", at, owner, action, subject)),
    )


def check_audit(database: Database) -> int:
    """Return the number of the first audit row that does not follow, 0 if all do."""
    last = b""
    sql = "SELECT seq, at, owner, action, subject, digest FROM audit ORDER BY seq"
    for seq, at, owner, action, subject, digest in database.rows(sql):
        if digest != _digest(last, at, owner, action, subject):
            return int(seq)
        last = digest
    return 0


def _digest(last: bytes, at: int, owner: int, action: str, subject: str) -> bytes:
    text = json.dumps([at, owner, action, subject])
    return sha256(last + text.encode()).digest()
