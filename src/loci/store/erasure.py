"""Forgetting, down to the bytes: rows, full text, history, vectors, write-ahead log, free pages.

An item goes with its history, with what was derived from it, with items that say the same thing,
and with the sentences it came from, wherever this user said them. A turn with nothing left but
those sentences goes whole. Afterwards every file of the store is read for the erased texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from loci.core.item import Item, Turn
from loci.store import rows
from loci.store.base import Erased
from loci.store.changes import read_item
from loci.store.database import Database, Writer
from loci.store.rows import ITEM, TURN
from loci.store.vectors import VectorIndex
from loci.store.writes import bump, record
from loci.text.stem import stems

OUT_OF_REACH = (
    "backups and exports made before",
    "copies that other programs hold, such as a model's context or a log",
    "swap, and sectors that the file system or a flash drive has set aside",
)
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+[\"')\]]*|\n|$)\s*|[.!?\n]+\s*")


class _Plan:
    """What goes, found before anything is touched."""

    def __init__(self, database: Database, owner: int) -> None:
        self.database, self.owner = database, owner
        self.items: dict[int, Item] = {}
        self.turns: dict[int, Turn] = {}
        self.cut: dict[int, tuple[Turn, list[str]]] = {}
        self.texts: dict[str, None] = {}

    def take_item(self, item: Item) -> None:
        """Plan an item, all that rests on it, and where it came from."""
        seq = int(item.id[1:])
        if seq in self.items:
            return
        self.items[seq] = item
        self.texts[item.text] = None
        for version in self._versions(seq):
            self.texts[version.text] = None
        derived = self.database.rows(
            "SELECT source FROM links WHERE target = ? AND relation = 'derived_from'", (seq,)
        )
        for (other,) in derived:
            self.take_item(read_item(self.database, self.owner, rows.item_id(other)))
        for version in self._versions(seq) or [item]:
            for turn in self._turns(version.sources):
                self._take_sentences(turn, version)
        self._take_same(item)

    def take_turn(self, turn: Turn) -> None:
        """Plan a whole turn and the items that rest on it alone."""
        seq = int(turn.id[1:])
        if seq in self.turns:
            return
        self.turns[seq] = turn
        self.cut.pop(seq, None)
        self.texts[turn.content] = None
        for item in self._items_of(seq):
            if all(rows.seq_of(id, "t") in self.turns for id in item.sources):
                self.take_item(item)

    def _versions(self, seq: int) -> list[Item]:
        found = self.database.rows("SELECT before, after FROM changes WHERE item = ?", (seq,))
        texts = {text for pair in found for text in pair if text is not None}
        return [item for item in map(rows.item_from_json, sorted(texts)) if item is not None]

    def _turns(self, ids: Iterable[str]) -> list[Turn]:
        found = []
        for id in ids:
            sql = f"SELECT {rows.TURN_COLUMNS} FROM turns WHERE owner = ? AND seq = ?"
            row = self.database.one(sql, (self.owner, rows.seq_of(id, "t")))
            if row is not None:
                found.append(rows.turn_of(row))
        return found

    def _items_of(self, turn: int) -> list[Item]:
        sql = "SELECT item FROM item_sources WHERE turn = ? ORDER BY item"
        found = self.database.rows(sql, (turn,))
        return [read_item(self.database, self.owner, rows.item_id(seq)) for (seq,) in found]

    def _take_sentences(self, turn: Turn, item: Item) -> None:
        """Plan the sentences of a turn that an item came from, and where else they stand."""
        chosen = sentences_of(turn.content, item)
        self._cut(turn, chosen)
        for sentence in chosen:
            text = sentence.strip()
            if len(stems(text)) < 2:
                continue  # "Yes." stands everywhere and tells nothing
            sql = (
                f"SELECT {rows.TURN_COLUMNS} FROM turns "
                f"WHERE owner = ? AND seq != ? AND {self.database.holds('content')}"
            )
            for row in self.database.rows(sql, (self.owner, int(turn.id[1:]), text)):
                other = rows.turn_of(row)
                same = [part for part in split(other.content) if text in part]
                self._cut(other, same or [other.content])

    def _cut(self, turn: Turn, chosen: Sequence[str]) -> None:
        seq = int(turn.id[1:])
        if seq in self.turns:
            return
        before = self.cut[seq][1] if seq in self.cut else []
        gone = list(dict.fromkeys([*before, *chosen]))
        left = "".join(part for part in split(turn.content) if part not in gone)
        if not chosen or not stems(left):
            self.take_turn(turn)
            return
        self.cut[seq] = (turn, gone)
        for sentence in chosen:
            self.texts[sentence.strip()] = None

    def _take_same(self, item: Item) -> None:
        """Plan items of the same turns that say the same thing, in other words or in part."""
        mine = telling(item)
        if not mine:
            return
        for id in item.sources:
            for other in self._items_of(rows.seq_of(id, "t") or 0):
                words = set(stems(f"{other.text} {other.object or ''}"))
                holds = any(text and text in other.text for text in self.texts)
                if mine <= words or holds:
                    self.take_item(other)

    def report(self, *, done: bool) -> Erased:
        return Erased(
            done=done,
            items=tuple(item.id for item in self.items.values()),
            turns=tuple(turn.id for turn in self.turns.values()),
            cut={turn.id: tuple(text.strip() for text in gone) for turn, gone in self.cut.values()},
            texts=tuple(self.texts),
            out_of_reach=OUT_OF_REACH,
        )


def split(text: str) -> list[str]:
    """Return the sentences of a text; joined they are the text again."""
    return _SENTENCE.findall(text)


def telling(item: Item) -> set[str]:
    """Return the stems that make an item what it is: its object, else all but its subject."""
    words = set(stems(item.object)) if item.object else set()
    return words or set(stems(item.text)) - set(stems(item.subject or ""))


def sentences_of(content: str, item: Item) -> list[str]:
    """Return the sentences an item came from; none means that it cannot be told."""
    mine = telling(item)
    return [part for part in split(content) if mine & set(stems(part))]


def forget(
    database: Database, vectors: VectorIndex, owner: int, id: str, now: datetime, *, dry_run: bool
) -> Erased:
    """Erase an item or a turn of one owner; a dry run only tells what would go.

    Raises:
        NotFoundError: if the owner has nothing with this id.
    """
    plan = _Plan(database, owner)
    with database.lock:
        if dry_run:
            _fill(plan, id)
            return plan.report(done=False)
        with database.write() as db:
            _fill(plan, id)
            _delete(database, plan)
            record(db, owner, "forget", " ".join([*_ids(plan)]), now)
        notes = [*vectors.sweep(), *database.scrub()]
        report = plan.report(done=True)
        found = database.find(_forms(plan))
        elsewhere = _elsewhere(database, plan)
    return Erased(
        done=True,
        items=report.items,
        turns=report.turns,
        cut=report.cut,
        texts=report.texts,
        found=found,
        elsewhere=elsewhere,
        out_of_reach=(*notes, *database.out_of_reach, *OUT_OF_REACH),
    )


def _fill(plan: _Plan, id: str) -> None:
    if rows.seq_of(id, "t") is not None:
        turns = plan._turns([id])
        if not turns:
            raise rows.unknown(id)
        turn = turns[0]
        plan.take_turn(turn)
        for item in plan._items_of(int(turn.id[1:])):  # facts other turns support too
            if sentences_of(turn.content, item):
                plan.take_item(item)
        return
    plan.take_item(read_item(plan.database, plan.owner, id))


def _ids(plan: _Plan) -> list[str]:
    return [*(i.id for i in plan.items.values()), *(t.id for t in plan.turns.values())]


def _delete(database: Database, plan: _Plan) -> None:
    db = database.connection
    for seq in plan.items:
        db.execute("DELETE FROM items WHERE seq = ?", (seq,))
        database.words.remove("item", seq)
        db.execute("DELETE FROM item_sources WHERE item = ?", (seq,))
        db.execute("DELETE FROM item_entities WHERE owner = ? AND item = ?", (plan.owner, seq))
        db.execute("DELETE FROM links WHERE source = ? OR target = ?", (seq, seq))
        db.execute("DELETE FROM changes WHERE item = ?", (seq,))
        _unvector(db, ITEM, seq)
    for seq in plan.turns:
        db.execute("DELETE FROM turns WHERE seq = ?", (seq,))
        database.words.remove("turn", seq)
        db.execute("DELETE FROM item_sources WHERE turn = ?", (seq,))
        _unvector(db, TURN, seq)
    for seq, (turn, gone) in plan.cut.items():
        left = "".join(part for part in split(turn.content) if part not in gone).strip()
        metadata = json.dumps(dict(turn.metadata), ensure_ascii=False) if turn.metadata else None
        if metadata is not None and any(_inside(text, metadata) for text in plan.texts):
            metadata = None
        db.execute(
            "UPDATE turns SET content = ?, metadata = ? WHERE seq = ?", (left, metadata, seq)
        )
        database.words.replace("turn", seq, rows.turn_words(left))
        _unvector(db, TURN, seq)
        db.execute(
            "INSERT INTO pending (kind, seq, owner) VALUES (?, ?, ?)", (TURN, seq, plan.owner)
        )
    db.execute(
        "DELETE FROM speakers WHERE owner = ? AND name NOT IN "
        "(SELECT name FROM turns WHERE owner = ? AND name IS NOT NULL)",
        (plan.owner, plan.owner),
    )
    bump(db)


def _unvector(db: Writer, kind: int, seq: int) -> None:
    db.execute("DELETE FROM vectors WHERE kind = ? AND seq = ?", (kind, seq))
    db.execute("DELETE FROM pending WHERE kind = ? AND seq = ?", (kind, seq))


def _inside(text: str, serialised: str) -> bool:
    return bool(text) and json.dumps(text, ensure_ascii=False)[1:-1] in serialised


def _forms(plan: _Plan) -> list[str]:
    """Return the forms in which an erased text could still stand somewhere."""
    forms: dict[str, None] = {}
    for text in plan.texts:
        if len(stems(text)) < 2 and len(text) < 12:
            continue  # a single short word proves nothing
        words = " ".join(stems(text))
        for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
            forms[form] = None
        if words.count(" ") >= 3:
            forms[words] = None
    return list(forms)


def _elsewhere(database: Database, plan: _Plan) -> int:
    """Return how many erased texts stand in what other users said: theirs, so they stay."""
    count = 0
    for text in plan.texts:
        if text:
            sql = f"SELECT 1 FROM turns WHERE owner != ? AND {database.holds('content')} LIMIT 1"
            count += database.one(sql, (plan.owner, text)) is not None
    return count
