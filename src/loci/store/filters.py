"""The small language of filters, turned into a condition of SQL.

    {"metadata.ref": "D1:3"}                      equal
    {"time": {">=": "2026-01-01", "<": ...}}      compared; both must hold
    {"role": {"in": ["user", "tool"]}}            one of
    {"name": {"contains": "ada"}}                 part of the text, case does not matter
    {"metadata.ref": {"exists": True}}
    {"and": [...]}, {"or": [...]}, {"not": {...}}

A turn is judged by itself. An item is judged together with the turns it came from: it passes when
one of them passes; an item without turns is judged by its own fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any  # values of SQL parameters

from loci.errors import ParameterError
from loci.store.database import Database, Field
from loci.store.messages import plain_text
from loci.store.times import read_time, to_micros
from loci.units import nearest

_INSTANT, _NUMBER, _TEXT = "instant", "number", "text"
# field: (column of the turn, column of the item, what it holds)
_FIELDS: dict[str, tuple[str | None, str | None, str]] = {
    "time": ("t.said_at", None, _INSTANT),
    "role": ("t.role", None, _TEXT),
    "name": ("t.name", None, _TEXT),
    "content": ("t.content", None, _TEXT),
    "position": ("t.position", None, _NUMBER),
    "session": ("t.session", "i.session", _TEXT),
    "agent": ("t.agent", "i.agent", _TEXT),
    "kind": ("'turn'", "i.kind", _TEXT),
    "text": ("t.content", "i.text", _TEXT),
    "subject": (None, "i.subject", _TEXT),
    "predicate": (None, "i.predicate", _TEXT),
    "object": (None, "i.object", _TEXT),
    "made_by": (None, "i.made_by", _TEXT),
    "valid_from": (None, "i.valid_from", _INSTANT),
    "valid_to": (None, "i.valid_to", _INSTANT),
    "recorded_at": ("t.recorded_at", "i.recorded_at", _INSTANT),
}
_ORDER = {"<": "<", "<=": "<=", ">": ">", ">=": ">="}
_OPERATORS = ("=", "!=", *_ORDER, "in", "not in", "contains", "exists")
_JOINED = ("and", "or", "not")
_ALIASES = {
    "eq": "=",
    "==": "=",
    "ne": "!=",
    "lt": "<",
    "lte": "<=",
    "gt": ">",
    "gte": ">=",
    "nin": "not in",
    "AND": "and",
    "OR": "or",
    "NOT": "not",
}
_DEEPEST = 32
GRAMMAR = (
    (
        'a filter: {FIELD: VALUE}, {FIELD: {OP: VALUE, ...}}, {"and": [filter, ...]}, '
        '{"or": [filter, ...]} or {"not": filter}; all parts of one dict must hold'
    ),
    f"OP: {', '.join(_OPERATORS)} ({', '.join(alias for alias in _ALIASES if alias.islower())})",
    f"FIELD: {', '.join(_FIELDS)}, metadata.KEY",
)
"""What every refusal of a filter shows."""

# What a turn or an item does not have: NULL, with a type.
_NO_TEXT, _NO_NUMBER = "CAST(NULL AS TEXT)", "CAST(NULL AS INTEGER)"

Condition = tuple[str, list[Any]]


def for_turns(filters: Mapping[str, Any], assumed: tzinfo, database: Database) -> Condition:
    """Return (SQL, values) over a turn `t`."""
    return _Compiler(assumed, database, item=False).group(filters)


def for_items(filters: Mapping[str, Any], assumed: tzinfo, database: Database) -> Condition:
    """Return (SQL, values) over an item `i`."""
    sql, values = _Compiler(assumed, database, item=True).group(filters)
    joined = "(SELECT 1) one LEFT JOIN item_sources s ON s.item = i.seq LEFT JOIN turns t"
    return f"EXISTS (SELECT 1 FROM {joined} ON t.seq = s.turn WHERE {sql})", values


class _Compiler:
    def __init__(self, assumed: tzinfo, database: Database, *, item: bool) -> None:
        self.assumed, self.database, self.item = assumed, database, item

    def group(self, filters: object, depth: int = 0) -> Condition:
        if not isinstance(filters, Mapping) or not filters:
            raise _refused(
                "a filter is a dict with something in it",
                filters,
                'for example {"metadata.ref": "D1:3"}',
            )
        if depth > _DEEPEST:
            raise _refused(f"a filter is nested more than {_DEEPEST} deep")
        parts, values = [], []
        for key, wanted in filters.items():
            sql, more = self._entry(_ALIASES.get(key, key), wanted, depth)
            parts.append(sql)
            values += more
        return "(" + " AND ".join(parts) + ")", values

    def _entry(self, key: object, wanted: Any, depth: int) -> Condition:
        if key == "not":
            sql, values = self.group(wanted, depth + 1)
            return f"NOT coalesce({sql}, FALSE)", values
        if key in ("and", "or"):
            if isinstance(wanted, (str, Mapping)) or not isinstance(wanted, Sequence) or not wanted:
                raise _refused(f"{key!r} takes a list of filters", wanted)
            made = [self.group(one, depth + 1) for one in wanted]
            joined = f" {str(key).upper()} ".join(f"coalesce({sql}, FALSE)" for sql, _ in made)
            return f"({joined})", [value for _, values in made for value in values]
        field, instant = self._field(key)
        tests = wanted if isinstance(wanted, Mapping) else {"=": wanted}
        if not tests:
            raise _refused("a field is compared with nothing", key)
        parts, values = [], []
        for name, value in tests.items():
            sql, more = self._test(field, _ALIASES.get(name, name), value, instant)
            parts.append(sql)
            values += more
        return "(" + " AND ".join(parts) + ")", values

    def _field(self, key: object) -> tuple[Field, bool]:
        """Return (the field, whether it is an instant)."""
        name = str(key)
        if name.startswith("metadata.") and len(name) > len("metadata."):
            if any(sign in '"\\' or ord(sign) < ord(" ") for sign in name):
                raise _refused(
                    "this key of metadata cannot be asked for",
                    name,
                    "keys without quotes, backslashes and control characters",
                )
            path = plain_text(name, "a field").split(".")[1:]
            said = self.database.field("t.metadata", path)
            if not self.item:
                return said, False
            own = self.database.field("i.metadata", path)  # what an item says of itself wins
            return Field(
                any=f"coalesce({own.any}, {said.any})",
                text=f"coalesce({own.text}, {said.text})",
                number=f"coalesce({own.number}, {said.number})",
            ), False
        if name not in _FIELDS:
            near = nearest(name, [*_FIELDS, "metadata.KEY", *_JOINED])
            raise _refused("a filter names an unknown field", key, near=near)
        of_turn, of_item, holds = _FIELDS[name]
        column = (of_item or of_turn) if self.item else of_turn
        text = column if column is not None and holds is _TEXT else _NO_TEXT
        number = column if column is not None and holds is not _TEXT else _NO_NUMBER
        return Field(any=column or _NO_TEXT, text=text, number=number), holds is _INSTANT

    def _test(self, field: Field, name: object, value: Any, instant: bool) -> Condition:
        if name not in _OPERATORS:
            near = nearest(str(name), _OPERATORS)
            raise _refused("a filter uses an unknown operator", name, near=near)
        if name == "exists":
            if not isinstance(value, bool):
                raise _refused("'exists' takes true or false", value)
            return f"{field.any} IS {'NOT ' if value else ''}NULL", []
        if name in ("in", "not in"):
            if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
                raise _refused(f"{name!r} takes a list", value)
            found = [self._test(field, "=", one, instant) for one in value]
            sql = " OR ".join(sql for sql, _ in found) or "FALSE"
            values = [given for _, more in found for given in more]
            return (f"({sql})" if name == "in" else f"NOT coalesce({sql}, FALSE)"), values
        if name == "contains":
            if not isinstance(value, str):
                raise _refused("'contains' takes text", value)
            part = plain_text(value, "a filter")
            return self.database.holds(field.text, folded=True), [part]
        if value is None and name in ("=", "!="):
            return f"{field.any} IS {'NOT ' if name == '!=' else ''}NULL", []
        wanted = self._value(value, instant)
        column = field.text if isinstance(wanted, str) else field.number
        if name == "!=":
            return f"({column} IS NULL OR {column} <> ?)", [wanted]
        return f"{column} {name} ?", [wanted]

    def _value(self, value: Any, instant: bool) -> Any:
        if instant:
            return to_micros(read_time(value, self.assumed, "time of a filter")[0])
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, str):
            return plain_text(value, "a filter")
        raise _refused("a filter compares with text, numbers, true or false", value)


def _refused(
    what: str, value: object = None, allowed: str | None = None, near: str | None = None
) -> ParameterError:
    """Return the error for a filter that cannot be read, with the grammar of those that can."""
    lines = [f"did you mean {near!r}?"] if near else []
    return ParameterError(what, value=value, allowed=allowed, way_out=[*lines, *GRAMMAR])
