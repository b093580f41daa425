"""Filters as Mem0 writes them: who is asked about, and the rest in Loci's own language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any  # JSON values

from loci.errors import ParameterError

IDS = ("user_id", "agent_id", "run_id")
GRAMMAR = (
    (
        '{"user_id": "alex", KEY: VALUE, KEY: {OP: VALUE}, KEY: "*", "AND": [...], "OR": [...], '
        '"NOT": [...]}'
    ),
    "OP: eq, ne, in, nin, gt, gte, lt, lte, contains, icontains",
    "user_id, agent_id, run_id: at the top or inside AND, as text or {in: [...]}",
)
_OPERATORS = {
    "eq": "=",
    "ne": "!=",
    "in": "in",
    "nin": "not in",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "contains": "contains",
    "icontains": "contains",
}
_FIELDS = {"actor_id": "name", "role": "role", "data": "text", "memory": "text"}
_FIELDS |= {"created_at": "recorded_at"}


@dataclass
class Who:
    """Whose memories are meant: any of these users, agents and runs; None is any."""

    user_id: list[str] | None = None
    agent_id: list[str] | None = None
    run_id: list[str] | None = None
    rest: dict[str, Any] | None = field(default=None)  # a filter of Loci

    def narrow(self, name: str, values: Sequence[str]) -> None:
        """Keep only these; both the call and its filters may name them.

        Raises:
            ParameterError: if nothing is left.
        """
        before = getattr(self, name)
        kept = list(values) if before is None else [one for one in before if one in values]
        if not kept:
            raise ParameterError(
                f"{name} is given twice, and differently", value=[before, list(values)]
            )
        setattr(self, name, kept)

    @property
    def is_nobody(self) -> bool:
        """Whether no id was given at all."""
        return self.user_id is None and self.agent_id is None and self.run_id is None


def read(filters: Any, **ids: Any) -> Who:
    """Return who is meant by a call's own ids and its filters.

    Raises:
        ParameterError: for a filter that cannot be read; it shows the grammar.
    """
    who = Who()
    for name, value in ids.items():
        if value is not None:
            who.narrow(name, [identity(value, name)])
    if filters is None:
        return who
    if not isinstance(filters, Mapping):
        raise _refused("filters are a dict", filters)
    parts = [_ids_out_of(dict(filters), who)]
    rest = [part for part in parts if part]
    who.rest = _translated(rest[0]) if rest else None
    return who


def identity(value: Any, name: str) -> str:
    """Return an id as text; numbers are taken, as Mem0 takes them.

    Raises:
        ParameterError: if it is empty.
    """
    text = str(value).strip() if not isinstance(value, bytes) else ""
    if not text or isinstance(value, (Mapping, list, tuple, bool)):
        raise ParameterError(f"{name} is empty or no name", value=value, allowed="text")
    return text


def _ids_out_of(filters: dict[str, Any], who: Who) -> dict[str, Any]:
    """Take ids out of a filter and of what is inside its AND; return the rest."""
    rest: dict[str, Any] = {}
    for key, value in filters.items():
        if key in IDS:
            wanted = _one_of(key, value)
            if wanted is not None:
                who.narrow(key, wanted)
        elif key in ("AND", "and"):
            inner = [_ids_out_of(dict(_mapping(part)), who) for part in _parts(key, value)]
            kept = [part for part in inner if part]
            if kept:
                rest[key] = kept
        else:
            rest[key] = value
    return rest


def _one_of(key: str, value: Any) -> list[str] | None:
    """Return the ids a condition names; None for any."""
    if value == "*":
        return None
    if isinstance(value, Mapping):
        if len(value) == 1 and "eq" in value:
            return [identity(value["eq"], key)]
        if len(value) == 1 and isinstance(value.get("in"), (list, tuple)) and value["in"]:
            return [identity(one, key) for one in value["in"]]
        raise _refused(f"{key} is one name or several", value)
    return [identity(value, key)]


def _translated(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the filter in Loci's language."""
    if not filters:
        raise _refused("a filter is a dict with something in it", filters)
    parts: list[dict[str, Any]] = []
    for key, value in filters.items():
        if key in ("AND", "and"):
            parts.append({"and": [_translated(_mapping(one)) for one in _parts(key, value)]})
        elif key in ("OR", "or", "$or"):
            parts.append({"or": [_translated(_mapping(one)) for one in _parts(key, value)]})
        elif key in ("NOT", "not", "$not"):
            inner = [_translated(_mapping(one)) for one in _parts(key, value)]
            parts.append({"not": {"or": inner}})
        elif key in IDS:
            raise _refused(f"{key} stands at the top of a filter or inside AND", {key: value})
        else:
            parts.append(_condition(str(key), value))
    return parts[0] if len(parts) == 1 else {"and": parts}


def _condition(key: str, value: Any) -> dict[str, Any]:
    name = _FIELDS.get(key, f"metadata.{key}")
    if value == "*":
        return {name: {"exists": True}}
    if not isinstance(value, Mapping):
        return {name: {"in": list(value)} if isinstance(value, (list, tuple)) else value}
    tests = {}
    for operator, wanted in value.items():
        if operator not in _OPERATORS:
            raise _refused("unknown operator of a filter", operator)
        tests[_OPERATORS[operator]] = wanted
    if not tests:
        raise _refused("a key is compared with nothing", key)
    return {name: tests}


def _parts(key: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _refused(f"{key} takes a list of filters", value)
    return list(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused("a filter is a dict", value)
    return value


def _refused(what: str, value: object) -> ParameterError:
    return ParameterError(what, value=value, way_out=GRAMMAR)
