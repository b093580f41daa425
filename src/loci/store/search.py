"""Candidate lists over one scope: words, meaning, names, time. Recall methods fuse them.

A `View` is what a method may read. Every query names the owner, and agent and session where asked
for, so other people's rows cannot be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from math import log
from typing import TYPE_CHECKING, Any  # values of SQL parameters

from loci.core.item import Item, Link, Scope, Turn
from loci.store import filters as language
from loci.store import rows
from loci.store.database import Database
from loci.store.fulltext import Condition, Layer, Whose
from loci.store.times import to_micros
from loci.store.vectors import Near, VectorIndex
from loci.text.stem import stems as stems_of

if TYPE_CHECKING:
    from loci.store.vectors import Floats

_PAIR = 2  # a turn's words count for the next turn too: look this much further


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a view is limited to, beside its scope.

    Attributes:
        as_of: only what held in the world at that instant, and what was said until then.
        known_at: only what the store believed at that instant.
        filters: as `loci.store.filters` reads them.
    """

    as_of: datetime | None = None
    known_at: datetime | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)


class View:
    """The turns and items of one scope at one time of asking."""

    def __init__(
        self,
        database: Database,
        vectors: VectorIndex,
        scope: Scope,
        owner: int,
        now: datetime,
        *,
        asked: Asked | None = None,
        embed: Callable[[str], Floats] | None = None,
        zone: tzinfo = UTC,
    ) -> None:
        self._database, self._vectors = database, vectors
        self.scope, self._owner, self._now = scope, owner, now
        self._asked = asked or Asked()
        self._embed, self._zone = embed, zone
        self._whose = Whose(owner, scope.agent, scope.session)
        self._limits = {layer: self._limit(layer) for layer in ("turn", "item")}
        self._near: dict[str, Near] = {}

    @property
    def has_dense(self) -> bool:
        """Whether there is an embedder, so that `search_dense` can be asked."""
        return self._embed is not None

    @property
    def notes(self) -> list[str]:
        """Return what made the searches so far slower than they could be."""
        return list(dict.fromkeys(note for near in self._near.values() for note in near.notes))

    def now(self) -> datetime:
        """Return the time of asking."""
        return self._now

    def search_words(
        self, stems: Sequence[str], limit: int, kind: Layer, *, context: float = 0.0
    ) -> list[tuple[str, float]]:
        """Return (id, BM25), best first; `context` adds that much of the turn before."""
        words = list(dict.fromkeys(stems))
        if not words or limit < 1:
            return []
        if kind == "item" or context <= 0:
            found = self._match(words, limit, kind)
            if kind == "item" and self._asked.known_at is not None:
                found = self._as_worded_then(words, found, limit)
            return [(self._id(seq, kind), score) for seq, score in found]
        found = self._match(words, limit * _PAIR, kind)
        own, total = dict(found), dict(found)
        for seq, after in self._followers(list(own)):
            total[after] = total.get(after, 0.0) + context * own[seq]
        return [(self._id(seq, kind), score) for seq, score in _best(total, limit)]

    def search_dense(self, text: str, limit: int, kind: Layer) -> list[tuple[str, float]]:
        """Return (id, cosine) of the nearest embeddings, best first."""
        if self._embed is None or limit < 1:
            return []
        if text not in self._near:
            self._near[text] = self._vectors.near(self._embed(text), self._owner)
        found = self._near[text].best(kind, limit, self._condition(kind))
        return [(self._id(seq, kind), score) for seq, score in found]

    def search_entities(
        self, names: Sequence[str], limit: int, kind: Layer
    ) -> list[tuple[str, float]]:
        """Return (id, number of these names it mentions), most first."""
        count: dict[int, float] = {}
        for name in dict.fromkeys(names):
            for seq in self._mentions(name, limit, kind):
                count[seq] = count.get(seq, 0.0) + 1.0
        return [(self._id(seq, kind), number) for seq, number in _best(count, limit)]

    def search_time(self, start: datetime, end: datetime, limit: int, kind: Layer) -> list[str]:
        """Return ids of turns said, or items that held, in start <= t < end; oldest first."""
        first, last = to_micros(_aware(start)), to_micros(_aware(end))
        condition, values = self._condition(kind)
        if kind == "turn":
            sql = (
                f"SELECT t.seq FROM turns t WHERE t.owner = ? AND t.said_at >= ? AND t.said_at < ? "
                f"{condition} ORDER BY t.said_at, t.seq LIMIT ?"
            )
            given: list[Any] = [self._owner, first, last, *values, limit]
        else:
            sql = (
                "SELECT i.seq FROM items i WHERE i.owner = ? AND i.valid_from < ? "
                f"AND (i.valid_to > ? OR i.valid_to IS NULL AND i.valid_from >= ?) {condition} "
                "ORDER BY i.valid_from, i.seq LIMIT ?"
            )
            given = [self._owner, last, first, first, *values, limit]
        return [self._id(seq, kind) for (seq,) in self._database.rows(sql, given)]

    def turn(self, id: str) -> Turn:
        """Return a turn, or raise NotFoundError."""
        found = self.turns([id])
        if id not in found:
            raise rows.unknown(id)
        return found[id]

    def turns(self, ids: Sequence[str]) -> dict[str, Turn]:
        """Return many turns; unknown ids, and what was said after `as_of`, are left out."""
        seqs = [seq for seq in (rows.seq_of(id, "t") for id in ids) if seq is not None]
        mine, values = self._mine("t")
        if self._asked.as_of is not None:
            mine, values = f"{mine} AND t.said_at <= ?", [*values, to_micros(self._asked.as_of)]
        names = ", ".join(f"t.{name}" for name in rows.TURN_COLUMNS.split(", "))
        sql = f"SELECT {names} FROM turns t WHERE +t.owner = ? AND t.seq IN (%s){mine}"
        found = {f"t{row[0]}": rows.turn_of(row) for row in self._many(sql, seqs, values)}
        return {id: found[id] for id in ids if id in found}

    def item(self, id: str) -> Item:
        """Return an item, live or retired, or raise NotFoundError."""
        found = self.items([id])
        if id not in found:
            raise rows.unknown(id)
        return found[id]

    def items(self, ids: Sequence[str]) -> dict[str, Item]:
        """Return many items, live or retired; unknown ids are left out.

        Asked for what was known at a time, they are as they were then, and those that did not hold
        are left out.
        """
        seqs = [seq for seq in (rows.seq_of(id, "i") for id in ids) if seq is not None]
        sources: dict[int, list[str]] = {}
        for item, turn in self._many(
            "SELECT s.item, s.turn FROM item_sources s JOIN items i ON i.seq = s.item "
            "WHERE +i.owner = ? AND s.item IN (%s) ORDER BY s.item, s.turn",
            seqs,
        ):
            sources.setdefault(item, []).append(rows.turn_id(turn))
        mine, values = self._mine("i")
        names = ", ".join(f"i.{name}" for name in rows.ITEM_COLUMNS.split(", "))
        sql = f"SELECT {names} FROM items i WHERE +i.owner = ? AND i.seq IN (%s){mine}"
        found = {
            f"i{row[0]}": rows.item_of(row, sources.get(row[0], ()))
            for row in self._many(sql, seqs, values)
        }
        if self._asked.known_at is not None:
            found = self._as_known(found, to_micros(self._asked.known_at))
        return {id: found[id] for id in ids if id in found}

    def _as_known(self, found: Mapping[str, Item], known: int) -> dict[str, Item]:
        """Return these items in the version of a time; one without a history is as it is."""
        sql = (
            "SELECT h.after FROM changes h WHERE h.owner = ? AND h.seq IN "
            "(SELECT max(c.seq) FROM changes c WHERE c.item IN (%s) AND c.at <= ? GROUP BY c.item)"
        )
        seqs = [int(id[1:]) for id in found]
        versions = [rows.item_from_json(row[0]) for row in self._many(sql, seqs, [known])]
        then = {**found, **{item.id: item for item in versions if item is not None}}
        at = self._asked.as_of
        if at is None:
            return then
        return {
            id: item
            for id, item in then.items()
            if (item.is_live or item.valid_to is not None)
            and (item.valid_from is None or item.valid_from <= at)
            and (item.valid_to is None or item.valid_to > at)
        }

    def _as_worded_then(
        self, stems: Sequence[str], found: Sequence[tuple[int, float]], limit: int
    ) -> list[tuple[int, float]]:
        """Return matches with the items that were worded otherwise at the time asked about.

        The index has the words of today. Items that changed since are few; they are scored here,
        by BM25 without a length.
        """
        sql = "SELECT DISTINCT item FROM changes WHERE owner = ? AND at > ? AND before IS NOT NULL"
        known = to_micros(_aware(self._asked.known_at or self._now))
        changed = [int(row[0]) for row in self._database.rows(sql, (self._owner, known))]
        condition, values = self._condition("item")
        sql = f"SELECT i.seq FROM items i WHERE +i.owner = ? AND i.seq IN (%s) {condition}"
        allowed = [f"i{row[0]}" for row in self._many(sql, changed, values)]
        score = dict(found)
        for gone in set(changed) & set(score):
            del score[gone]
        total = self._database.one("SELECT count(*) FROM items WHERE owner = ?", (self._owner,))
        count = int(total[0]) if total else 0
        rare: dict[str, float] = {}
        for item in self.items(allowed).values():
            words = rows.item_words(item).split()
            for stem in stems:
                often = words.count(stem)
                if not often:
                    continue
                if stem not in rare:
                    have = len(self._match([stem], count, "item"))
                    rare[stem] = max(log((count - have + 0.5) / (have + 0.5)), 1e-6)
                seq = int(item.id[1:])
                score[seq] = score.get(seq, 0.0) + rare[stem] * often * 2.2 / (often + 1.2)
        return _best(score, limit)

    def allows(self, id: str, kind: Layer) -> bool:
        """Return whether what this view is limited to has a turn or an item in it."""
        table, letter = ("turns", "t") if kind == "turn" else ("items", "i")
        condition, values = self._condition(kind)
        sql = f"SELECT 1 FROM {table} {letter} WHERE {letter}.owner = ? AND {letter}.seq = ?"
        given = (self._owner, rows.seq_of(id, letter), *values)
        found = self._database.one(f"{sql} {condition}", given) is not None
        return found and (kind == "turn" or id in self.items([id]))

    def items_of_turn(self, id: str) -> list[Item]:
        """Return what was made of a turn and is allowed in this view, oldest first."""
        condition, values = self._condition("item")
        sql = (
            "SELECT i.seq FROM item_sources s JOIN items i ON i.seq = s.item "
            f"WHERE i.owner = ? AND s.turn = ? {condition} ORDER BY i.seq"
        )
        given = [self._owner, rows.seq_of(id, "t"), *values]
        return list(self.items([f"i{seq}" for (seq,) in self._database.rows(sql, given)]).values())

    def neighbours_of_turn(self, id: str, before: int, after: int) -> list[Turn]:
        """Return the turns around this one in its session, in order, without itself."""
        mine, values = self._mine()
        sql = (
            f"SELECT {rows.TURN_COLUMNS} FROM turns "
            f"WHERE owner = ? AND session {self._database.same} ? "
            f"AND position BETWEEN ? AND ? AND seq != ?{mine} ORDER BY position, seq"
        )
        seq = rows.seq_of(id, "t")
        place = self._database.one(
            f"SELECT session, position FROM turns WHERE owner = ? AND seq = ?{mine}",
            (self._owner, seq, *values),
        )
        if place is None:
            raise rows.unknown(id)
        given = (self._owner, place[0], place[1] - before, place[1] + after, seq, *values)
        return [rows.turn_of(row) for row in self._database.rows(sql, given)]

    def by_slot(self, subject: str, predicate: str) -> list[Item]:
        """Return allowed items about the same subject and predicate, oldest first."""
        condition, values = self._condition("item")
        sql = (
            "SELECT i.seq FROM items i WHERE i.owner = ? AND i.subject = ? AND i.predicate = ? "
            f"{condition} ORDER BY coalesce(i.valid_from, i.recorded_at), i.seq"
        )
        given = [self._owner, subject, predicate, *values]
        return list(self.items([f"i{seq}" for (seq,) in self._database.rows(sql, given)]).values())

    def links(self, ids: Sequence[str]) -> list[Link]:
        """Return the links between allowed items that touch any of these, oldest first."""
        seqs = [seq for seq in (rows.seq_of(id, "i") for id in ids) if seq is not None]
        known = "" if self._asked.known_at is None else " AND l.recorded_at <= ?"
        values = [] if self._asked.known_at is None else [to_micros(self._asked.known_at)]
        found: dict[int, tuple[Any, ...]] = {}
        for end in ("source", "target"):
            sql = (
                "SELECT l.seq, l.source, l.relation, l.target, l.made_by, l.weight FROM links l "
                f"WHERE +l.owner = ? AND l.{end} IN (%s){known}"
            )
            found.update((row[0], row[1:]) for row in self._many(sql, seqs, values))
        condition, more = self._condition("item")
        sql = f"SELECT i.seq FROM items i WHERE +i.owner = ? AND i.seq IN (%s) {condition}"
        ends = sorted({row[place] for row in found.values() for place in (0, 2)})
        allowed = {row[0] for row in self._many(sql, ends, more)}
        return [
            Link(source=f"i{a}", relation=word, target=f"i{b}", made_by=by, weight=weight)
            for _, (a, word, b, by, weight) in sorted(found.items())
            if a in allowed and b in allowed
        ]

    def mark(self) -> tuple[int, int]:
        """Return a mark that is another one after items of this owner changed or were forgotten."""
        row = self._database.one(
            "SELECT (SELECT coalesce(max(seq), 0) FROM changes WHERE owner = ?), "
            "(SELECT count(*) FROM items WHERE owner = ?)",
            (self._owner, self._owner),
        )
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def last(self, session: str | None) -> str | None:
        """Return the id of the last turn of a session, None where there is none."""
        mine, values = self._mine()
        sql = (
            f"SELECT seq FROM turns WHERE owner = ? AND session {self._database.same} ?{mine} "
            "ORDER BY position DESC, seq DESC LIMIT 1"
        )
        row = self._database.one(sql, (self._owner, session, *values))
        return None if row is None else f"t{row[0]}"

    def speakers(self) -> list[str]:
        """Return the names of those who spoke to this user's memory."""
        sql = "SELECT name FROM speakers WHERE owner = ? ORDER BY name"
        return [name for (name,) in self._database.rows(sql, (self._owner,))]

    def listed(
        self, layer: Layer, limit: int, offset: int = 0, *, kinds: Sequence[str] = ()
    ) -> list[str]:
        """Return the ids of all that is allowed here, newest first; items of these kinds."""
        condition, values = self._condition(layer)
        if kinds:
            condition += f" AND i.kind IN ({','.join('?' * len(kinds))})"
            values = [*values, *kinds]
        table, letter = ("turns", "t") if layer == "turn" else ("items", "i")
        sql = (
            f"SELECT {letter}.seq FROM {table} {letter} WHERE {letter}.owner = ? {condition} "
            f"ORDER BY {letter}.seq DESC LIMIT ? OFFSET ?"
        )
        found = self._database.rows(sql, [self._owner, *values, limit, offset])
        return [f"{letter}{seq}" for (seq,) in found]

    def _match(self, phrases: Sequence[str], limit: int, kind: Layer) -> list[tuple[int, float]]:
        """Return (number, BM25) of rows with any of these phrases."""
        words = self._database.words
        return words.match(kind, phrases, limit, self._whose, self._limits[kind])

    def _followers(self, seqs: Sequence[int]) -> list[tuple[int, int]]:
        """Return (turn, the next turn of its session), where that one is allowed here."""
        condition, values = self._condition("turn")
        sql = (
            "SELECT p.seq, t.seq FROM turns p JOIN turns t ON t.owner = p.owner "
            f"AND t.session {self._database.same} p.session AND t.position = p.position + 1 "
            f"WHERE +p.owner = ? AND p.seq IN (%s) {condition}"
        )
        return [(int(a), int(b)) for a, b in self._many(sql, seqs, values)]

    def _mentions(self, name: str, limit: int, kind: Layer) -> list[int]:
        if kind == "item":
            condition, values = self._condition("item")
            sql = (
                "SELECT i.seq FROM item_entities e JOIN items i ON i.seq = e.item "
                f"WHERE e.owner = ? AND e.name = ? {condition} ORDER BY i.seq DESC LIMIT ?"
            )
            given = [self._owner, name, *values, limit]
            return [int(seq) for (seq,) in self._database.rows(sql, given)]
        return [seq for seq, _ in self._match([" ".join(stems_of(name))], limit, kind)]

    def _limit(self, layer: str) -> Condition | None:
        """Return the condition beyond owner, agent and session; None where there is none."""
        asked, parts, values = self._asked, [], []
        at = None if asked.as_of is None else to_micros(asked.as_of)
        known = None if asked.known_at is None else to_micros(asked.known_at)
        if layer == "turn":
            if at is not None:
                parts.append("t.said_at <= ?")
                values.append(at)
            if known is not None:
                parts.append("t.recorded_at <= ?")
                values.append(known)
        else:
            if known is not None:
                parts.append(self._believed())
                values += [known, known, known]
            elif at is None:
                parts.append("i.retired_at IS NULL")
            else:  # what was given up since still held until its end
                parts.append("(i.retired_at IS NULL OR i.valid_to IS NOT NULL)")
            if at is not None and known is None:  # else `_as_known` looks at the version of then
                parts.append("(i.valid_from IS NULL OR i.valid_from <= ?)")
                parts.append("(i.valid_to IS NULL OR i.valid_to > ?)")
                values += [at, at]
        if asked.filters:
            compile_ = language.for_turns if layer == "turn" else language.for_items
            sql, more = compile_(asked.filters, self._zone, self._database)
            parts.append(sql)
            values += more
        return (" AND ".join(parts), values) if parts else None

    def _believed(self) -> str:
        """Return the condition that an item was live at a time: so its history says, if any.

        With `as_of`, what was given up by then still held until its end.
        """
        retired = self._database.field("h.after", ["retired_at"]).any
        ended = self._database.field("h.after", ["valid_to"]).any
        then = f"{retired} IS NULL"
        now = "i.retired_at IS NULL OR i.retired_at > ?"
        if self._asked.as_of is not None:
            then, now = f"{then} OR {ended} IS NOT NULL", f"{now} OR i.valid_to IS NOT NULL"
        history = (
            f"SELECT CASE WHEN {then} THEN 1 ELSE 0 END FROM changes h WHERE h.seq = "
            "(SELECT max(c.seq) FROM changes c WHERE c.item = i.seq AND c.at <= ?)"
        )
        now = f"CASE WHEN {now} THEN 1 ELSE 0 END"
        return f"i.recorded_at <= ? AND coalesce(({history}), {now}) = 1"

    def _mine(self, letter: str = "") -> Condition:
        """Return the condition that a row is of this agent and session."""
        sql, values = "", list[Any]()
        for name, value in (("agent", self.scope.agent), ("session", self.scope.session)):
            if value is not None:
                sql += f" AND {letter}.{name} = ?" if letter else f" AND {name} = ?"
                values.append(value)
        return sql, values

    def _condition(self, kind: Layer) -> Condition:
        """Return the whole condition after the owner, to be put behind a WHERE."""
        sql, values = self._mine("t" if kind == "turn" else "i")
        limit = self._limits[kind]
        if limit is not None:
            sql += f" AND {limit[0]}"
            values = [*values, *limit[1]]
        return sql, values

    def _many(
        self, sql: str, seqs: Sequence[int], values: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a query for many rows by number; its `%s` is the list, the owner comes first.

        The queries write `+owner`, so that rows are looked up by number and not by their owner.
        """
        return self._database.many(sql, seqs, [self._owner], values)

    def _id(self, seq: int, kind: Layer) -> str:
        return f"t{seq}" if kind == "turn" else f"i{seq}"


def _best(scores: Mapping[int, float], limit: int) -> list[tuple[int, float]]:
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
