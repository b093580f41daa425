"""Exports of Mem0 and of LangGraph stores (LangMem), as records that `put_records` understands.

Each memory becomes a note with an origin of its own, so that a second import, or one that goes on
after it was cut off, adds nothing twice. What Loci has no field for stays in the metadata.

Read of Mem0 (its packages 0.1 to 2.2): what `get_all` and `search` return, alone or as a list, with
their relations; payloads of its vector stores; its history database. Read of LangGraph: items as
`Item.dict()` writes them; LangMem keeps {"kind", "content"} or {"content"} in their value.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any  # JSON values

from loci.core.item import Item
from loci.errors import FormatError, ParameterError
from loci.store import rows
from loci.store.times import read_time
from loci.text.entities import entities

Record = dict[str, Any]
MEM0, LANGGRAPH = "mem0", "langgraph"
"""What the origins of their memories begin with."""

_SQLITE = b"SQLite format 3\0"
_PROMOTED = ("actor_id", "role", "attributed_to", "expiration_date", "categories")
_MEM0_KEYS = (
    *("id", "memory", "text", "data", "hash", "score", "score_details", "text_lemmatized"),
    *("created_at", "updated_at", "user_id", "agent_id", "run_id", "app_id", "metadata"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """One memory of a file: whose it is, and its records."""

    user: str
    records: tuple[Record, ...]


def is_database(path: Path) -> bool:
    """Return whether the file is an SQLite database."""
    with open(path, "rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def looks_like(data: str) -> str | None:
    """Return which of these formats the beginning of a file of JSON is in, None if neither."""
    if '"namespace"' in data and '"value"' in data:
        return "langmem"
    if any(f'"{key}"' in data for key in ("memory", "payload")) or (
        '"content"' in data and '"role"' not in data and '"conversation"' not in data
    ):
        return "mem0" if '"content"' not in data else "langmem"
    return None


def mem0(path: Path, user: str | None, zone: tzinfo) -> Iterator[Found]:
    """Yield the memories of a file of Mem0.

    Args:
        user: whose they become; None takes the `user_id` of each.
        zone: of times that are written without one.

    Raises:
        FormatError: naming the record that is not as Mem0 writes it.
        ParameterError: if a record names no user and none is given.
    """
    if is_database(path):
        yield from _mem0_history(path, user, zone)
        return
    learned = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    data = _json(path)
    relations: Sequence[Any] = ()
    if isinstance(data, Mapping):
        relations = data.get("relations") or ()
        data = _inner(data)
    if not isinstance(data, list):
        raise FormatError(
            "this file has no memories of Mem0",
            value=str(path),
            allowed='what get_all() returns: {"results": [{"id", "memory", ...}]}',
        )
    users: dict[str, None] = {}
    for number, record in enumerate(data):
        found = _mem0_record(record, number, user, zone, learned)
        users[found.user] = None
        yield found
    for number, relation in enumerate(relations):
        yield _mem0_relation(relation, number, user, tuple(users), learned)


def langgraph(path: Path, user: str | None, zone: tzinfo) -> Iterator[Found]:
    """Yield the items of a LangGraph store: of each namespace, or all as those of one user.

    Raises:
        FormatError: naming the record that is not as LangGraph or LangMem writes it.
        ParameterError: if a record has no namespace and no user is given.
    """
    learned = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    data = _json(path)
    if isinstance(data, Mapping):
        data = _inner(data)
    if not isinstance(data, list):
        raise FormatError(
            "this file has no items of a LangGraph store",
            value=str(path),
            allowed='a list of {"namespace", "key", "value", "created_at", "updated_at"}',
        )
    for number, record in enumerate(data):
        yield _langgraph_record(record, number, user, zone, learned)


def langgraph_item(
    namespace: Sequence[str],
    key: str,
    value: Mapping[str, Any],
    text: str,
    created: datetime,
    updated: datetime,
) -> Item:
    """Return the note that stands for an item of a LangGraph store."""
    about = {"namespace": list(namespace), "key": key, "value": dict(value)}
    return Item(
        id="",
        text=text,
        kind="note",
        entities=tuple(entities(text)),
        valid_from=created,
        recorded_at=created,
        made_by=LANGGRAPH,
        metadata={LANGGRAPH: {**about, "updated_at": updated.isoformat()}},
    )


def langgraph_text(value: Mapping[str, Any]) -> str:
    """Return what a value says: its content, as LangMem writes it, else all of it as JSON."""
    for name in ("content", "memory", "text", "data"):
        inner = value.get(name)
        if isinstance(inner, Mapping):
            inner = inner.get("content")
        if isinstance(inner, str) and inner.strip():
            return inner
    return json.dumps(dict(value), ensure_ascii=False)


def _json(path: Path) -> Any:
    """Return what a file of JSON, or of one JSON value a line, holds."""
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or problem.msg != "Extra data":
            raise FormatError(f"this file is not JSON: {problem}", value=str(path)) from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            raise FormatError(f"line {number} of this file is cut short", value=str(path)) from None
    return found


def _inner(data: Mapping[str, Any]) -> Any:
    """Return the list inside the objects that exports are wrapped in."""
    for name in ("results", "memories", "items", "points", "result", "data"):
        inner = data.get(name)
        if isinstance(inner, list):
            return inner
        if isinstance(inner, Mapping):
            return _inner(inner)
    return [data]  # one memory


def _mem0_record(
    record: Any, number: int, user: str | None, zone: tzinfo, learned: datetime
) -> Found:
    if isinstance(record, Mapping) and isinstance(record.get("payload"), Mapping):
        record = {"id": record.get("id"), **record["payload"]}  # as vector stores keep it
    if not isinstance(record, Mapping):
        raise FormatError(f"memory {number} is no object", value=record)
    text = next((record[key] for key in ("memory", "data", "text") if record.get(key)), None)
    if not isinstance(text, str) or record.get("id") is None:
        raise FormatError(
            f"memory {number} has no {'text' if record.get('id') is not None else 'id'}",
            value=dict(record),
            allowed='{"id", "memory", "user_id", "created_at", ...}',
        )
    whose = user if user is not None else record.get("user_id")
    if not whose:
        raise ParameterError(
            f"memory {number} names no user",
            value=record["id"],
            way_out="say whose they are: --user NAME, or import_(..., user=NAME)",
        )
    created = _time(record.get("created_at"), zone, learned, f"created_at of memory {number}")
    metadata = dict(record.get("metadata") or {})
    metadata |= {key: value for key, value in record.items() if key not in _MEM0_KEYS}
    metadata |= {key: record[key] for key in _PROMOTED if record.get(key) is not None}
    updated = record.get("updated_at")
    if updated and updated != record.get("created_at"):
        metadata["updated_at"] = updated
    item = Item(
        id=str(record["id"]),
        text=text,
        kind="note",
        entities=tuple(entities(text)),
        valid_from=created,
        recorded_at=created,
        made_by=MEM0,
        metadata=metadata,
    )
    place = {"agent": _name(record.get("agent_id")), "session": _name(record.get("run_id"))}
    return Found(user=str(whose), records=_records(item, place))


def _mem0_relation(
    relation: Any, number: int, user: str | None, users: Sequence[str], learned: datetime
) -> Found:
    ends = relation if isinstance(relation, Mapping) else {}
    subject, target = ends.get("source"), ends.get("target", ends.get("destination"))
    between = ends.get("relationship", ends.get("relation"))
    if not all(isinstance(part, str) and part for part in (subject, between, target)):
        raise FormatError(
            f"relation {number} is not as Mem0 writes it",
            value=relation,
            allowed='{"source", "relationship", "target"}',
        )
    if user is None and len(users) != 1:
        raise ParameterError(
            "relations name no user, and these memories are of several",
            value=list(users),
            way_out="say whose they are: --user NAME, or import_(..., user=NAME)",
        )
    words = [str(part).replace("_", " ") for part in (subject, between, target)]
    item = Item(
        id="relation:" + json.dumps([subject, between, target], ensure_ascii=False),
        text=" ".join(words),
        subject=words[0].lower(),
        predicate=words[1].lower(),
        object=words[2].lower(),
        entities=(words[0].lower(), words[2].lower()),
        recorded_at=learned,
        made_by=MEM0,
    )
    return Found(user=user if user is not None else users[0], records=_records(item, {}))


def _mem0_history(path: Path, user: str | None, zone: tzinfo) -> Iterator[Found]:
    """Yield what a history database tells: each memory with its changes, deleted ones retired."""
    if user is None:
        raise ParameterError(
            "a history of Mem0 does not tell whose it is",
            value=str(path),
            way_out="say whose it is: --user NAME, or import_(..., user=NAME)",
        )
    names = "memory_id, old_memory, new_memory, event, created_at, updated_at"
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            found = db.execute(f"SELECT {names} FROM history ORDER BY rowid").fetchall()
        finally:
            db.close()
    except sqlite3.Error as problem:
        raise FormatError(
            f"this database is no history of Mem0: {problem}", value=str(path)
        ) from None
    learned = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    by_memory: dict[str, list[tuple[Any, ...]]] = {}
    for row in found:
        by_memory.setdefault(str(row[0]), []).append(row)
    for id, steps in by_memory.items():
        item: Item | None = None
        changes: list[Record] = []
        for _, old, new, event, created, updated in steps:
            at = _time(updated or created, zone, learned, f"time of {id}")
            before, action = item, {"ADD": "import", "UPDATE": "edit"}.get(event, "retire")
            if action == "retire" and item is not None:
                item = replace(item, retired_at=at, valid_to=at, version=item.version + 1)
            elif new or old:
                version = 1 if item is None else item.version + 1
                first = item.recorded_at if item is not None else at
                item = Item(
                    id=id,
                    text=str(new or old),
                    kind="note",
                    entities=tuple(entities(str(new or old))),
                    valid_from=first,
                    recorded_at=first,
                    made_by=MEM0,
                    version=version,
                )
            if item is not None:
                changes.append(_change(item, before, action, at))
        if item is not None:
            record = {"type": "item", **rows.item_record(item), "agent": None, "session": None}
            yield Found(user=user, records=(record, *changes))


def _langgraph_record(
    record: Any, number: int, user: str | None, zone: tzinfo, learned: datetime
) -> Found:
    if isinstance(record, list) and len(record) == 2 and isinstance(record[0], str):
        record = {"id": record[0], "content": record[1]}  # what LangMem's managers return
    if not isinstance(record, Mapping):
        raise FormatError(f"item {number} is no object", value=record)
    namespace = record.get("namespace")
    if isinstance(namespace, str):
        namespace = namespace.split(".")
    value, key = record.get("value"), record.get("key")
    if value is None and record.get("content") is not None:
        value, key = {"content": record["content"]}, record.get("id")
    if not isinstance(value, Mapping) or key is None:
        raise FormatError(
            f"item {number} has no {'value' if key is not None else 'key'}",
            value=dict(record),
            allowed='{"namespace", "key", "value", "created_at", "updated_at"}',
        )
    if user is None and not namespace:
        raise ParameterError(
            f"item {number} has no namespace",
            value=key,
            way_out="say whose they are: --user NAME, or import_(..., user=NAME)",
        )
    labels = [str(label) for label in namespace or ()]
    created = _time(record.get("created_at"), zone, learned, f"created_at of item {number}")
    updated = _time(record.get("updated_at"), zone, created, f"updated_at of item {number}")
    item = langgraph_item(labels, str(key), value, langgraph_text(value), created, updated)
    id = str(key) if user is None else "/".join([*labels, str(key)])
    item = replace(item, id=id)
    whose = user if user is not None else ".".join(labels)
    return Found(user=whose, records=_records(item, {}))


def _records(item: Item, place: Mapping[str, str | None]) -> tuple[Record, ...]:
    first = item.recorded_at or datetime.now(UTC)
    record = {"type": "item", **rows.item_record(item), "agent": None, "session": None, **place}
    return record, _change(item, None, "import", first)


def _change(item: Item, before: Item | None, action: str, at: datetime) -> Record:
    return {
        "type": "change",
        "item": item.id,
        "action": action,
        "before": None if before is None else rows.item_record(before),
        "after": rows.item_record(item),
        "made_by": item.made_by,
        "reason": f"imported from {item.made_by}",
        "at": at.isoformat(),
    }


def _time(value: Any, zone: tzinfo, otherwise: datetime, what: str) -> datetime:
    if value is None or value == "":
        return otherwise
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    try:
        return read_time(value, zone, what)[0]
    except ParameterError as problem:
        raise FormatError(problem.what, value=value, allowed=problem.allowed) from None


def _name(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
