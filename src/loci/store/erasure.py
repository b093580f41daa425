"""Forgetting, down to the bytes: rows, full text, history, vectors, write-ahead log, free pages.

`lineage` says what goes. Deleting is one transaction, which also notes that the bytes are still to
be rewritten; a process that is killed in between leaves that to the next one that opens the store.
Afterwards the store is read for the erased texts, for their stems and for pieces of the long ones,
which no page holds whole (`traces`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any  # JSON values

from loci.errors import StorageError, StoreError
from loci.store import rows, traces
from loci.store.base import Erased
from loci.store.changes import read_item
from loci.store.database import Database, Writer
from loci.store.lineage import Plan, strings, within
from loci.store.rows import ITEM, TURN
from loci.store.vectors import VectorIndex
from loci.store.writes import bump, record
from loci.text.stem import fold, stems, tokens

_UNFINISHED = "erasure.unfinished"  # in `meta` while deleted bytes may still be there


def forget(
    database: Database,
    vectors: VectorIndex,
    owner: int,
    ids: Sequence[str],
    now: datetime,
    *,
    dry_run: bool,
    mentions: bool = False,
) -> Erased:
    """Erase items and turns of one owner; a dry run only tells what would go.

    Args:
        mentions: also what only speaks of the same matter.

    Raises:
        NotFoundError: if the owner has nothing with one of these ids; nothing was erased then.
    """
    plan = Plan(database, owner)
    with database.lock:
        if dry_run:
            plan.take(ids, mentions=mentions)
            return _report(plan, done=False)
        with database.write() as db:
            plan.take(ids, mentions=mentions)
            _delete(database, plan)
            gone = [*(i.id for i in plan.items.values()), *(t.id for t in plan.turns.values())]
            record(db, owner, "forget", " ".join(gone), now)
            database.set_meta(_UNFINISHED, "1")
        report = _report(plan, done=True)
        return _finished(database, vectors, owner, report, plan.traces)


def forget_all(
    database: Database,
    vectors: VectorIndex,
    owner: int,
    agent: str | None,
    session: str | None,
    now: datetime,
    *,
    dry_run: bool,
) -> Erased:
    """Erase all of an owner, or all that was told to one agent or in one session."""
    mine, values = "", list[Any]()
    for name, value in (("agent", agent), ("session", session)):
        if value is not None:
            mine += f" AND {name} = ?"
            values.append(value)
    whole = not values
    with database.lock, database.write() as db:
        sql = f"SELECT seq, content, metadata FROM turns WHERE owner = ?{mine} ORDER BY seq"
        turns = database.rows(sql, (owner, *values))
        sql = f"SELECT seq, text FROM items WHERE owner = ?{mine} ORDER BY seq"
        items = {int(seq): str(text) for seq, text in database.rows(sql, (owner, *values))}
        if not whole:  # what rests on these turns alone goes, though it belongs to no one place
            alone = (
                "SELECT i.seq, i.text FROM items i WHERE i.owner = ? AND EXISTS (SELECT 1 FROM "
                "item_sources s WHERE s.item = i.seq) AND NOT EXISTS (SELECT 1 FROM item_sources s "
                "WHERE s.item = i.seq AND s.turn NOT IN "
                f"(SELECT seq FROM turns WHERE owner = ?{mine}))"
            )
            items.update((int(a), str(b)) for a, b in database.rows(alone, (owner, owner, *values)))
        plan = Plan(database, owner)
        for _, content, metadata in turns:
            plan.texts[str(content)] = None
            plan.traces.update(dict.fromkeys(strings(json.loads(metadata) if metadata else {})))
        for seq, text in items.items():
            plan.texts[text] = None
            for version, _ in plan.history(seq):
                plan.texts[version.text] = None
                plan.traces.update(dict.fromkeys(strings(version.metadata)))
        report = Erased(
            done=not dry_run,
            items=tuple(rows.item_id(seq) for seq in sorted(items)),
            turns=tuple(rows.turn_id(seq) for seq, *_ in turns),
            cut={},
            texts=tuple(plan.texts),
            out_of_reach=traces.OUT_OF_REACH,
        )
        if dry_run:
            return report
        _delete_rows(database, owner, list(items), [int(seq) for seq, *_ in turns])
        if whole:
            db.execute("DELETE FROM owners WHERE seq = ?", (owner,))
            db.execute("DELETE FROM ladders WHERE owner = ?", (owner,))
        record(db, owner, "forget", f"all {len(items)} items {len(turns)} turns", now)
        database.set_meta(_UNFINISHED, "1")
    return _finished(database, vectors, owner, report, plan.traces)


def resume(database: Database, vectors: VectorIndex) -> None:
    """Rewrite what an erasure left when its process ended, or another one held the store."""
    if database.meta(_UNFINISHED) is None:
        return
    try:
        _finish(database, vectors)
    except (StoreError, StorageError):
        return  # busy or read-only: the next to open it tries again


def _finished(
    database: Database, vectors: VectorIndex, owner: int, report: Erased, words: Iterable[str]
) -> Erased:
    notes = _finish(database, vectors)
    forms, perhaps, short = traces.forms_of(report.texts, words)
    forms += traces.telling_forms(database, perhaps)
    return replace(
        report,
        found=database.find(forms),
        beside=database.beside(forms),
        elsewhere=traces.elsewhere(database, owner, report.texts),
        too_short=tuple(short),
        out_of_reach=(
            *notes,
            *traces.exports(database, owner),
            *database.out_of_reach,
            *traces.OUT_OF_REACH,
        ),
    )


def _finish(database: Database, vectors: VectorIndex) -> list[str]:
    notes = [*vectors.sweep(), *database.scrub()]
    if not notes:
        with database.write() as db:
            db.execute("DELETE FROM meta WHERE key = ?", (_UNFINISHED,))
    return notes


def _report(plan: Plan, *, done: bool) -> Erased:
    return Erased(
        done=done,
        items=tuple(item.id for item in plan.items.values()),
        turns=tuple(turn.id for turn in plan.turns.values()),
        cut={turn.id: tuple(text.strip() for text in gone) for turn, gone in plan.cut.values()},
        texts=tuple(plan.texts),
        mentions=tuple(plan.mentions()),
        out_of_reach=traces.OUT_OF_REACH,
    )


def _delete(database: Database, plan: Plan) -> None:
    db = database.connection
    _delete_rows(database, plan.owner, list(plan.items), list(plan.turns), cut=list(plan.cut))
    for seq, (turn, _) in plan.cut.items():
        left = plan.left(turn)
        metadata = _untold(dict(turn.metadata), plan)
        db.execute(
            "UPDATE turns SET content = ?, metadata = ? WHERE seq = ?",
            (left, json.dumps(metadata, ensure_ascii=False) if metadata else None, seq),
        )
        database.words.replace("turn", seq, rows.turn_words(left))
        _unvector(db, TURN, seq)
        db.execute(
            "INSERT INTO pending (kind, seq, owner) VALUES (?, ?, ?)", (TURN, seq, plan.owner)
        )
    _unquote(database, plan)
    _unmargin(database, plan)
    db.execute(
        "DELETE FROM speakers WHERE owner = ? AND name NOT IN "
        "(SELECT name FROM turns WHERE owner = ? AND name IS NOT NULL)",
        (plan.owner, plan.owner),
    )
    bump(db)


def _delete_rows(
    database: Database,
    owner: int,
    items: Sequence[int],
    turns: Sequence[int],
    cut: Sequence[int] = (),
) -> None:
    db = database.connection
    asked = _ladders(database, owner, items, [*turns, *cut])
    for seq in items:
        db.execute("DELETE FROM items WHERE seq = ?", (seq,))
        database.words.remove("item", seq)
        db.execute("DELETE FROM item_sources WHERE item = ?", (seq,))
        db.execute("DELETE FROM item_entities WHERE owner = ? AND item = ?", (owner, seq))
        db.execute("DELETE FROM links WHERE source = ? OR target = ?", (seq, seq))
        db.execute("DELETE FROM changes WHERE item = ?", (seq,))
        _unvector(db, ITEM, seq)
    for seq in turns:
        db.execute("DELETE FROM turns WHERE seq = ?", (seq,))
        database.words.remove("turn", seq)
        db.execute("DELETE FROM item_sources WHERE turn = ?", (seq,))
        _unvector(db, TURN, seq)
    db.execute(
        "DELETE FROM speakers WHERE owner = ? AND name NOT IN "
        "(SELECT name FROM turns WHERE owner = ? AND name IS NOT NULL)",
        (owner, owner),
    )
    _hush(database, asked)
    bump(db)


def _ladders(
    database: Database, owner: int, items: Sequence[int], turns: Sequence[int]
) -> dict[int, str]:
    """Return what models were asked when these items were changed or these turns were stored."""
    of_items = "SELECT seq, steps FROM ladders WHERE seq IN (SELECT ladder FROM changes WHERE "
    found = database.many(of_items + "item IN (%s))", items)
    of_turns = "SELECT seq, steps FROM ladders WHERE owner = ? AND at IN (SELECT recorded_at "
    found += database.many(of_turns + "FROM turns WHERE seq IN (%s))", turns, before=(owner,))
    return {int(seq): str(steps) for seq, steps in found}


def _hush(database: Database, asked: dict[int, str]) -> None:
    """Take away why replies were refused: a model's or a server's words may repeat what was said.

    What no change refers to any more goes whole.
    """
    sql = "SELECT DISTINCT ladder FROM changes WHERE ladder IN (%s)"
    used = {int(row[0]) for row in database.many(sql, list(asked))}
    db = database.connection
    for seq, text in asked.items():
        if seq not in used:
            db.execute("DELETE FROM ladders WHERE seq = ?", (seq,))
            continue
        steps = [
            {**step, "refused": ["erased"] * bool(step["refused"])} for step in json.loads(text)
        ]
        db.execute("UPDATE ladders SET steps = ? WHERE seq = ?", (json.dumps(steps), seq))


def _unquote(database: Database, plan: Plan) -> None:
    """Take erased texts out of the metadata and the reasons of what stays."""
    db, owner, quotes = database.connection, plan.owner, _Quotes(plan)
    for table in ("turns", "items"):
        sql = f"SELECT seq, metadata FROM {table} WHERE owner = ? AND metadata IS NOT NULL"
        for seq, data in database.rows(sql, (owner,)):
            if quotes.perhaps(data) and (kept := quotes.out_of(json.loads(data))) != json.loads(
                data
            ):
                db.execute(
                    f"UPDATE {table} SET metadata = ? WHERE seq = ?",
                    (json.dumps(kept, ensure_ascii=False) if kept else None, seq),
                )
    sql = "SELECT seq, reason FROM changes WHERE owner = ? AND reason != ''"
    for seq, reason in database.rows(sql, (owner,)):
        if quotes.perhaps(reason) and quotes.out_of(reason) is None:
            db.execute("UPDATE changes SET reason = '' WHERE seq = ?", (seq,))
    for side in ("before", "after"):
        sql = f"SELECT seq, {side} FROM changes WHERE owner = ? AND {database.holds(side)}"
        for seq, data in database.rows(sql, (owner, '"metadata": {"')):
            if quotes.perhaps(data):
                version = json.loads(data)
                version["metadata"] = quotes.out_of(version["metadata"])
                db.execute(
                    f"UPDATE changes SET {side} = ? WHERE seq = ?",
                    (json.dumps(version, ensure_ascii=False), seq),
                )


class _Quotes:
    """Tells whether a text quotes one that is erased, whatever its case and punctuation."""

    def __init__(self, plan: Plan) -> None:
        self.texts = plan.texts
        self.spoken = [tokens(text) for text in plan.texts if len(stems(text)) > 1]
        self.rare = {max(words, key=len) for words in self.spoken if words}

    def perhaps(self, data: str) -> bool:
        """Return whether it is worth a closer look."""
        folded = fold(data)
        return any(word in folded for word in self.rare)

    def out_of(self, value: Any) -> Any:
        """Return metadata without the texts that quote; None for a text that does."""
        if isinstance(value, dict):
            kept = {key: self.out_of(inner) for key, inner in value.items()}
            return {key: kept[key] for key in kept if kept[key] is not None or value[key] is None}
        if isinstance(value, list):
            some = [(inner, self.out_of(inner)) for inner in value]
            return [left for inner, left in some if left is not None or inner is None]
        if isinstance(value, str):
            said = tokens(value)
            if value in self.texts or any(within(words, said) for words in self.spoken):
                return None
        return value


def _unmargin(database: Database, plan: Plan) -> None:
    """Take away what was written in the margin of other notes because of an erased turn."""
    db, touched = database.connection, plan.touched()
    seen: set[int] = set()
    for id in sorted(touched):
        sql = f"SELECT seq FROM items WHERE owner = ? AND {database.holds('gloss')}"
        for (seq,) in database.rows(sql, (plan.owner, f'"{id}"')):
            item = read_item(database, plan.owner, rows.item_id(int(seq)))
            if seq in seen or item.gloss is None or not touched & set(item.gloss.sources):
                continue
            seen.add(seq)
            bare = replace(item, gloss=None)
            db.execute("UPDATE items SET gloss = NULL WHERE seq = ?", (seq,))
            database.words.replace("item", int(seq), rows.item_words(bare))
            _unvector(db, ITEM, int(seq))
            db.execute(
                "INSERT INTO pending (kind, seq, owner) VALUES (?, ?, ?)", (ITEM, seq, plan.owner)
            )
        for side in ("before", "after"):
            sql = f"SELECT seq, {side} FROM changes WHERE owner = ? AND {database.holds(side)}"
            for seq, data in database.rows(sql, (plan.owner, f'"{id}"')):
                version = json.loads(data)
                gloss = version.get("gloss")
                if gloss and touched & set(gloss.get("sources") or ()):
                    version["gloss"] = None
                    text = json.dumps(version, ensure_ascii=False)
                    db.execute(f"UPDATE changes SET {side} = ? WHERE seq = ?", (text, seq))


def _untold(value: Any, plan: Plan) -> Any:
    """Return the metadata of a cut turn without texts that tell what an erased item told."""
    if isinstance(value, dict):
        kept = {key: _untold(inner, plan) for key, inner in value.items()}
        return {key: kept[key] for key in kept if kept[key] is not None or value[key] is None}
    if isinstance(value, list):
        some = [(inner, _untold(inner, plan)) for inner in value]
        return [left for inner, left in some if left is not None or inner is None]
    if isinstance(value, str) and any(mine <= set(stems(value)) for mine in plan.told):
        return None
    return value


def _unvector(db: Writer, kind: int, seq: int) -> None:
    db.execute("DELETE FROM vectors WHERE kind = ? AND seq = ?", (kind, seq))
    db.execute("DELETE FROM pending WHERE kind = ? AND seq = ?", (kind, seq))
