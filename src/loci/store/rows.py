"""Rows of the tables, and the turns and items they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from hashlib import blake2b
from typing import Any  # columns and JSON values

from loci.core.item import Gloss, Item, Source, Turn
from loci.errors import NotFoundError
from loci.store.times import from_micros, maybe_micros, maybe_time
from loci.text.stem import stems

TURN_COLUMNS = (
    "seq, role, name, content, said_at, offset_s, zone_assumed, metadata, position, session"
)
ITEM_COLUMNS = (
    "seq, kind, text, subject, predicate, object, entities, valid_from, valid_to, recorded_at, "
    "retired_at, made_by, version, metadata, gloss"
)
TURN, ITEM = 0, 1
"""The two layers, as `pending` and `vectors` number them."""


def turn_id(seq: int) -> str:
    """Return the id people see."""
    return f"t{seq}"


def item_id(seq: int) -> str:
    """Return the id people see."""
    return f"i{seq}"


def change_id(seq: int) -> str:
    """Return the id people see."""
    return f"c{seq}"


def seq_of(id: str, letter: str) -> int | None:
    """Return the number in an id such as "i7", None if it is another kind of id."""
    digits = id[1:]
    if id[:1] == letter and digits.isascii() and digits.isdigit() and len(digits) < 19:
        return int(digits)
    return None


def unknown(id: object, way_out: str = "loci memory list shows what is there") -> NotFoundError:
    """Return the error for an id nobody has in this scope."""
    return NotFoundError("there is nothing with this id", value=id, way_out=way_out)


def turn_of(row: Sequence[Any]) -> Turn:
    """Return the turn of a row of TURN_COLUMNS."""
    seq, role, name, content, said_at, offset_s, assumed, metadata, position, session = row
    return Turn(
        id=turn_id(seq),
        role=role,
        content=content,
        time=from_micros(said_at, offset_s),
        name=name,
        session=session,
        zone_assumed=bool(assumed),
        metadata=json.loads(metadata) if metadata else {},
        position=position,
    )


def item_of(row: Sequence[Any], sources: Sequence[str]) -> Item:
    """Return the item of a row of ITEM_COLUMNS."""
    return Item(
        id=item_id(row[0]),
        kind=row[1],
        text=row[2],
        subject=row[3],
        predicate=row[4],
        object=row[5],
        entities=tuple(json.loads(row[6])) if row[6] else (),
        valid_from=maybe_time(row[7]),
        valid_to=maybe_time(row[8]),
        recorded_at=maybe_time(row[9]),
        retired_at=maybe_time(row[10]),
        made_by=row[11],
        version=row[12],
        metadata=json.loads(row[13]) if row[13] else {},
        gloss=gloss_of(row[14]),
        sources=tuple(sources),
    )


def item_values(item: Item) -> tuple[Any, ...]:
    """Return the values of ITEM_COLUMNS, without the number."""
    return (
        item.kind,
        item.text,
        item.subject,
        item.predicate,
        item.object,
        json.dumps(item.entities, ensure_ascii=False) if item.entities else None,
        maybe_micros(item.valid_from),
        maybe_micros(item.valid_to),
        maybe_micros(item.recorded_at),
        maybe_micros(item.retired_at),
        item.made_by,
        item.version,
        json.dumps(dict(item.metadata), ensure_ascii=False) if item.metadata else None,
        None if item.gloss is None else json.dumps(asdict(item.gloss), ensure_ascii=False),
    )


def gloss_of(text: str | None) -> Gloss | None:
    """Return the gloss that an item's row holds."""
    return None if text is None else _gloss(json.loads(text))


def _gloss(record: Mapping[str, Any]) -> Gloss:
    lists = {name: tuple(record[name]) for name in ("keywords", "tags", "sources")}
    return Gloss(**lists, context=record["context"])


def item_json(item: Item | None) -> str | None:
    """Return an item as JSON, for the history."""
    if item is None:
        return None
    return json.dumps(item_record(item), ensure_ascii=False)


def item_record(item: Item) -> dict[str, Any]:
    """Return an item as a dict of JSON values."""
    record = {name: getattr(item, name) for name in Item.__dataclass_fields__}
    for name in ("valid_from", "valid_to", "recorded_at", "retired_at"):
        moment: datetime | None = record[name]
        record[name] = None if moment is None else moment.isoformat()
    record["entities"], record["sources"] = list(item.entities), list(item.sources)
    record["metadata"] = dict(item.metadata)
    record["gloss"] = None if item.gloss is None else asdict(item.gloss)
    return record


def item_from_record(record: Mapping[str, Any]) -> Item:
    """Return the item that `item_record` wrote."""
    values = {name: record[name] for name in Item.__dataclass_fields__ if name in record}
    for name in ("valid_from", "valid_to", "recorded_at", "retired_at"):
        if values.get(name) is not None:
            values[name] = datetime.fromisoformat(values[name])
    for name in ("entities", "sources"):
        values[name] = tuple(values.get(name) or ())
    if values.get("gloss") is not None:
        values["gloss"] = _gloss(values["gloss"])
    return Item(**values)


def item_from_json(text: str | None) -> Item | None:
    """Return the item of `item_json`."""
    return None if text is None else item_from_record(json.loads(text))


def turn_record(turn: Turn) -> dict[str, Any]:
    """Return a turn as a dict of JSON values."""
    record = {name: getattr(turn, name) for name in Turn.__dataclass_fields__}
    record["time"], record["metadata"] = turn.time.isoformat(), dict(turn.metadata)
    return record


def source_of(turn: Turn) -> Source:
    """Return a turn as the source of a hit."""
    return Source(
        id=turn.id,
        content=turn.content,
        time=turn.time,
        name=turn.name,
        role=turn.role,
        session=turn.session,
        metadata=turn.metadata,
        position=turn.position,
    )


def key_words(owner: int, agent: str | None, session: str | None) -> str:
    """Return the words that mark a row of full text as somebody's."""
    words = f"o{owner}"
    if agent is not None:
        words += f" a{_mark(agent)}"
    if session is not None:
        words += f" s{_mark(session)}"
    return words


def _mark(name: str) -> str:
    return blake2b(name.encode(), digest_size=8).hexdigest()


def turn_words(content: str) -> str:
    """Return what full text keeps of a turn."""
    return " ".join(stems(content))


def item_words(item: Item) -> str:
    """Return what full text keeps of an item: its text and gloss, and names not in them."""
    words = stems(item.indexed)
    have = set(words)
    extra = [word for name in item.entities for word in stems(name) if word not in have]
    return " ".join([*words, *dict.fromkeys(extra)])
