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
from loci.store.messages import plain_text
from loci.store.times import read_time, to_micros
from loci.units import nearest

# field: (column of the turn, column of the item, whether it is an instant)
_FIELDS: dict[str, tuple[str | None, str | None, bool]] = {
    "time": ("t.said_at", None, True),
    "role": ("t.role", None, False),
    "name": ("t.name", None, False),
    "content": ("t.content", None, False),
    "position": ("t.position", None, False),
    "session": ("t.session", "i.session", False),
    "agent": ("t.agent", "i.agent", False),
    "kind": ("'turn'", "i.kind", False),
    "text": ("t.content", "i.text", False),
    "subject": (None, "i.subject", False),
    "predicate": (None, "i.predicate", False),
    "object": (None, "i.object", False),
    "made_by": (None, "i.made_by", False),
    "valid_from": (None, "i.valid_from", True),
    "valid_to": (None, "i.valid_to", True),
    "recorded_at": ("t.recorded_at", "i.recorded_at", True),
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

Condition = tuple[str, list[Any]]


def for_turns(filters: Mapping[str, Any], assumed: tzinfo) -> Condition:
    """Return (SQL, values) over a turn `t`."""
    return _Compiler(assumed, item=False).group(filters)


def for_items(filters: Mapping[str, Any], assumed: tzinfo) -> Condition:
    """Return (SQL, values) over an item `i`."""
    sql, values = _Compiler(assumed, item=True).group(filters)
    joined = "(SELECT 1) LEFT JOIN item_sources s ON s.item = i.seq LEFT JOIN turns t"
    return f"EXISTS (SELECT 1 FROM {joined} ON t.seq = s.turn WHERE {sql})", values


class _Compiler:
    def __init__(self, assumed: tzinfo, *, item: bool) -> None:
        self.assumed, self.item = assumed, item

    def group(self, filters: object, depth: int = 0) -> Condition:
        if not isinstance(filters, Mapping) or not filters:
            raise ParameterError(
                "a filter is a dict with something in it",
                value=filters,
                allowed='for example {"metadata.ref": "D1:3"}',
            )
        if depth > _DEEPEST:
            raise ParameterError(f"a filter is nested more than {_DEEPEST} deep")
        parts, values = [], []
        for key, wanted in filters.items():
            sql, more = self._entry(_ALIASES.get(key, key), wanted, depth)
            parts.append(sql)
            values += more
        return "(" + " AND ".join(parts) + ")", values

    def _entry(self, key: object, wanted: Any, depth: int) -> Condition:
        if key == "not":
            sql, values = self.group(wanted, depth + 1)
            return f"NOT coalesce({sql}, 0)", values
        if key in ("and", "or"):
            if isinstance(wanted, (str, Mapping)) or not isinstance(wanted, Sequence) or not wanted:
                raise ParameterError(f"{key!r} takes a list of filters", value=wanted)
            made = [self.group(one, depth + 1) for one in wanted]
            joined = f" {str(key).upper()} ".join(f"coalesce({sql}, 0)" for sql, _ in made)
            return f"({joined})", [value for _, values in made for value in values]
        column, instant = self._field(key)
        tests = wanted if isinstance(wanted, Mapping) else {"=": wanted}
        if not tests:
            raise ParameterError("a field is compared with nothing", value=key)
        parts, values = [], []
        for name, value in tests.items():
            sql, more = self._test(column, _ALIASES.get(name, name), value, instant)
            parts.append(sql)
            values += more
        return "(" + " AND ".join(parts) + ")", values

    def _field(self, key: object) -> tuple[str, bool]:
        """Return (column, whether it is an instant)."""
        name = str(key)
        if name.startswith("metadata.") and len(name) > len("metadata."):
            path = "$" + "".join(f'."{part}"' for part in name.split(".")[1:])
            if any(sign in '"\\' or ord(sign) < ord(" ") for sign in name):
                raise ParameterError(
                    "this key of metadata cannot be asked for",
                    value=name,
                    allowed="keys without quotes, backslashes and control characters",
                )
            path = plain_text(path, "a field").replace("'", "''")
            own = "i.metadata" if self.item else "t.metadata"
            data = f"coalesce(t.metadata, {own})" if self.item else own
            return f"json_extract({data}, '{path}')", False
        if name not in _FIELDS:
            names = [*_FIELDS, "metadata.KEY", *_JOINED]
            near = nearest(name, names)
            raise ParameterError(
                "a filter names an unknown field",
                value=key,
                allowed=", ".join(names),
                way_out=f"did you mean {near!r}?" if near else (),
            )
        of_turn, of_item, instant = _FIELDS[name]
        column = (of_item or of_turn) if self.item else of_turn
        return column or "NULL", instant

    def _test(self, column: str, name: object, value: Any, instant: bool) -> Condition:
        if name not in _OPERATORS:
            near = nearest(str(name), _OPERATORS)
            raise ParameterError(
                "a filter uses an unknown operator",
                value=name,
                allowed=", ".join(_OPERATORS),
                way_out=f"did you mean {near!r}?" if near else (),
            )
        if name == "exists":
            if not isinstance(value, bool):
                raise ParameterError("'exists' takes true or false", value=value)
            return f"{column} IS {'NOT ' if value else ''}NULL", []
        if name in ("in", "not in"):
            if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
                raise ParameterError(f"{name!r} takes a list", value=value)
            marks = ",".join("?" * len(value))
            sql = f"{column} IN ({marks})"
            values = [self._value(one, instant) for one in value]
            return (sql if name == "in" else f"NOT coalesce({sql}, 0)"), values
        if name == "contains":
            if not isinstance(value, str):
                raise ParameterError("'contains' takes text", value=value)
            return f"instr(lower({column}), lower(?)) > 0", [plain_text(value, "a filter")]
        if value is None and name in ("=", "!="):
            return f"{column} IS {'NOT ' if name == '!=' else ''}NULL", []
        wanted = self._value(value, instant)
        if name in ("=", "!="):
            return f"{column} IS {'NOT ' if name == '!=' else ''}?", [wanted]
        return f"{column} {name} ? AND typeof({column}) {_same_type(wanted)}", [wanted]

    def _value(self, value: Any, instant: bool) -> Any:
        if instant:
            return to_micros(read_time(value, self.assumed, "time of a filter")[0])
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, str):
            return plain_text(value, "a filter")
        raise ParameterError("a filter compares with text, numbers, true or false", value=value)


def _same_type(value: object) -> str:
    return "= 'text'" if isinstance(value, str) else "IN ('integer', 'real')"
