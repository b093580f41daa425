"""A JSON schema as an automaton over bytes: which byte may stand where, and how far the end is.

What a schema may hold: type (one or several), properties, required, items, minItems, maxItems,
minLength, maxLength, minimum and maximum of whole numbers, enum, const, anyOf, and references
into $defs that do not come back to themselves. Anything else is refused by name. Objects come with
their properties in the schema's order, and JSON comes as `json.dumps` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import Any  # a schema is whatever JSON can hold

from loci.errors import ParameterError
from loci.units import nearest

Ranges = tuple[tuple[int, int], ...]
"""Bytes from .. to .., both included."""

MAX_STATES = 100_000
FAR = 1 << 30
"""Farther than any end."""

_NOTES = ("title", "description", "examples", "default", "$schema", "$id", "$defs", "deprecated")
_KNOWN: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
    "integer": ("minimum", "maximum"),
    "number": (),
    "boolean": (),
    "null": (),
}
_OTHER = ("type", "enum", "const", "anyOf", "$ref")
_MAX_RANGE = 1000  # whole numbers between minimum and maximum, which are written out
_DIGITS = 15  # of a number: what a double holds exactly
_MAX_COUNT = 256  # largest minItems, maxItems or minLength: each costs states of its own

# Parts of a string: bytes that stand for themselves, and well-formed UTF-8 beyond ASCII.
PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7F))
_NEXT: Ranges = ((0x80, 0xBF),)
UTF8: tuple[tuple[Ranges, ...], ...] = (
    (((0xC2, 0xDF),), _NEXT),
    (((0xE0, 0xE0),), ((0xA0, 0xBF),), _NEXT),
    (((0xE1, 0xEC), (0xEE, 0xEF)), _NEXT, _NEXT),
    (((0xED, 0xED),), ((0x80, 0x9F),), _NEXT),
    (((0xF0, 0xF0),), ((0x90, 0xBF),), _NEXT, _NEXT),
    (((0xF1, 0xF3),), _NEXT, _NEXT, _NEXT),
    (((0xF4, 0xF4),), ((0x80, 0x8F),), _NEXT, _NEXT),
)
_HEX: Ranges = ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))
_UNICODE: tuple[tuple[Ranges, ...], ...] = (  # four digits that are no half of a surrogate pair
    (((0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66)), _HEX, _HEX, _HEX),
    (((0x44, 0x44), (0x64, 0x64)), ((0x30, 0x37),), _HEX, _HEX),
)
QUOTE, BACKSLASH, _U = 0x22, 0x5C, 0x75

# Where a state stands: outside of strings, between two characters of one, or inside a character.
OUT, BETWEEN, INSIDE = 0, 1, 2


class Automaton:
    """A schema as an automaton over bytes, with edges that take none."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.edges: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []
        self.role: list[int] = []
        self.limit: list[int | None] = []
        self._root = schema
        self._closed: dict[int, frozenset[int]] = {}
        self.start, self.end = self._schema(schema, ())

    # -- as a graph --------------------------------------------------------------------------------

    def closure(self, states: frozenset[int]) -> frozenset[int]:
        """Return all that is reached from these states without a byte."""
        found: set[int] = set()
        for state in states:
            if state not in self._closed:
                seen, open_ = {state}, [state]
                while open_:
                    for target in self.free[open_.pop()]:
                        if target not in seen:
                            seen.add(target)
                            open_.append(target)
                # Only what leads on matters; so equal places get equal names.
                self._closed[state] = frozenset(
                    s for s in seen if self.edges[s] or s == self.end or self.role[s]
                )
            found |= self._closed[state]
        return frozenset(found)

    def distances(self, single: frozenset[int]) -> list[int]:
        """Return for each state the least number of bytes to the end, of bytes in `single`."""
        back: list[list[tuple[int, int]]] = [[] for _ in self.edges]
        for state, edges in enumerate(self.edges):
            for low, high, target in edges:
                if any(byte in single for byte in range(low, high + 1)):
                    back[target].append((state, 1))
            for target in self.free[state]:
                back[target].append((state, 0))
        far = [FAR] * len(self.edges)
        far[self.end] = 0
        queue = [(0, self.end)]
        while queue:
            distance, state = heappop(queue)
            if distance > far[state]:
                continue
            for source, cost in back[state]:
                if distance + cost < far[source]:
                    far[source] = distance + cost
                    heappush(queue, (far[source], source))
        return far

    def _new(self, role: int = OUT, limit: int | None = None) -> int:
        if len(self.edges) >= MAX_STATES:
            raise ParameterError(
                "this schema is too large to decode by",
                allowed=f"fewer than {MAX_STATES:,} states",
                way_out="lower minItems, maxItems and minLength",
            )
        self.edges.append([])
        self.free.append([])
        self.role.append(role)
        self.limit.append(limit)
        return len(self.edges) - 1

    def _bytes(self, start: int, text: bytes) -> int:
        for byte in text:
            after = self._new()
            self.edges[start].append((byte, byte, after))
            start = after
        return start

    # -- schemas -----------------------------------------------------------------------------------

    def _schema(self, schema: Any, within: tuple[str, ...]) -> tuple[int, int]:
        if not isinstance(schema, Mapping):
            raise ParameterError("a schema is an object", value=schema)
        if "$ref" in schema:
            return self._ref(str(schema["$ref"]), within)
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            _check(schema, ("type", "enum", "const"))
            if not isinstance(values, list) or not values:
                raise ParameterError("enum is a list of values", value=values)
            return self._any([self._literal(value) for value in values])
        if "anyOf" in schema:
            _check(schema, ("anyOf",))
            if not isinstance(schema["anyOf"], list) or not schema["anyOf"]:
                raise ParameterError("anyOf is a list of schemas", value=schema["anyOf"])
            return self._any([self._schema(part, within) for part in schema["anyOf"]])
        kinds = schema.get("type")
        if isinstance(kinds, str):
            kinds = [kinds]
        if not isinstance(kinds, list) or not kinds or not set(kinds) <= set(_KNOWN):
            raise ParameterError(
                "a schema to decode by names its type",
                value=dict(schema),
                allowed=", ".join(_KNOWN) + ", or enum, const, anyOf",
            )
        _check(schema, ("type", *(key for kind in kinds for key in _KNOWN[kind])))
        return self._any([getattr(self, f"_{kind}")(schema, within) for kind in kinds])

    def _ref(self, name: str, within: tuple[str, ...]) -> tuple[int, int]:
        if name in within:
            raise ParameterError(
                "a schema that comes back to itself cannot be decoded by", value=name
            )
        found: Any = self._root
        for part in name.removeprefix("#/").split("/") if name.startswith("#/") else ("",):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is None:
            raise ParameterError("the schema has no such part", value=name, allowed="#/$defs/...")
        return self._schema(found, (*within, name))

    def _any(self, parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
        if len(parts) == 1:
            return parts[0]
        start, end = self._new(), self._new()
        for first, last in parts:
            self.free[start].append(first)
            self.free[last].append(end)
        return start, end

    def _literal(self, value: Any) -> tuple[int, int]:
        start = self._new()
        return start, self._bytes(start, json.dumps(value, ensure_ascii=False).encode())

    def _object(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, Mapping) or not set(required) <= set(properties):
            raise ParameterError(
                "an object names its properties, and requires only those",
                value={"properties": properties, "required": required},
            )
        if schema.get("additionalProperties", False) is not False:
            raise ParameterError(
                "an object to decode by has only the properties it names",
                value=schema["additionalProperties"],
                allowed="additionalProperties: false",
            )
        start = self._new()
        empty: int | None = self._bytes(start, b"{")  # nothing written yet
        some: int | None = None  # something written: a comma comes first
        for name, part in properties.items():
            key = self._new()
            if empty is not None:
                self.free[empty].append(key)
            if some is not None:
                self.free[self._bytes(some, b", ")].append(key)
            first, last = self._schema(part, within)
            written = json.dumps(name, ensure_ascii=False).encode() + b": "
            self.free[self._bytes(key, written)].append(first)
            after = self._new()
            self.free[last].append(after)
            if name in required:
                empty = None
            elif some is not None:
                self.free[some].append(after)
            some = after
        end = self._new()
        for open_ in (empty, some):
            if open_ is not None:
                self.free[self._bytes(open_, b"}")].append(end)
        return start, end

    def _array(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        if "items" not in schema:
            raise ParameterError("an array to decode by names its items", value=dict(schema))
        least = _whole(schema, "minItems") or 0
        most = _whole(schema, "maxItems")
        if most is not None and most < least:
            raise ParameterError("maxItems is below minItems", value=(least, most))
        start, end = self._new(), self._new()
        here = self._bytes(start, b"[")
        if least == 0:
            self.free[self._bytes(here, b"]")].append(end)
        if most == 0:
            return start, end
        count = max(least, 1) if most is None else most
        for number in range(1, count + 1):
            first, last = self._schema(schema["items"], within)
            self.free[here].append(first)
            if number >= least:
                self.free[self._bytes(last, b"]")].append(end)
            if number < count or most is None:
                here = self._bytes(last, b", ")
                if number == count:  # without an upper limit the last one comes again and again
                    self.free[here].append(first)
        return start, end

    def _string(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        least = _whole(schema, "minLength") or 0
        limit = _whole(schema, "maxLength", most=FAR)
        if limit is not None and limit < least:
            raise ParameterError("maxLength is below minLength", value=(least, limit))
        start, end = self._new(), self._new()
        here = self._new(BETWEEN, limit)
        self.edges[start].append((QUOTE, QUOTE, here))
        for _ in range(least):
            after = self._new(BETWEEN, limit)
            self._character(here, after)
            here = after
        self._character(here, here)
        self.edges[here].append((QUOTE, QUOTE, end))
        return start, end

    def _character(self, here: int, after: int) -> None:
        """One character of a string: itself, in UTF-8, or escaped; no half of a surrogate pair."""
        self.edges[here] += [(low, high, after) for low, high in PLAIN]
        for form in UTF8:
            self._form(here, form, after)
        escape, number = self._new(INSIDE), self._new(INSIDE)
        self.edges[here].append((BACKSLASH, BACKSLASH, escape))
        self.edges[escape] += [(byte, byte, after) for byte in b'"\\/bfnrt']
        self.edges[escape].append((_U, _U, number))
        for form in _UNICODE:
            self._form(number, form, after)

    def _form(self, here: int, form: Sequence[Ranges], after: int) -> None:
        """One byte of each position, one after the other."""
        for place, ranges in enumerate(form, 1):
            target = after if place == len(form) else self._new(INSIDE)
            self.edges[here] += [(low, high, target) for low, high in ranges]
            here = target

    def _integer(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        if "minimum" in schema or "maximum" in schema:
            low: Any = schema.get("minimum")
            high: Any = schema.get("maximum")
            if not _is_whole(low) or not _is_whole(high) or not 0 <= high - low < _MAX_RANGE:
                raise ParameterError(
                    "a range of whole numbers names both ends",
                    value=(low, high),
                    allowed=f"at most {_MAX_RANGE} numbers",
                )
            return self._any([self._literal(number) for number in range(low, high + 1)])
        start, end = self._new(), self._new()
        self._digits(self._sign(start), end)
        return start, end

    def _number(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        start, whole, end = self._new(), self._new(), self._new()
        self._digits(self._sign(start), whole)
        self.free[whole].append(end)
        here = self._bytes(whole, b".")
        for _ in range(_DIGITS):
            after = self._new()
            self.edges[here].append((0x30, 0x39, after))
            self.free[after].append(end)
            here = after
        return start, end

    def _sign(self, start: int) -> int:
        first = self._bytes(start, b"-")
        self.free[start].append(first)
        return first

    def _digits(self, start: int, end: int) -> None:
        self.edges[start].append((0x30, 0x30, end))
        here = self._new()
        self.edges[start].append((0x31, 0x39, here))
        for _ in range(_DIGITS - 1):
            self.free[here].append(end)
            after = self._new()
            self.edges[here].append((0x30, 0x39, after))
            here = after
        self.free[here].append(end)

    def _boolean(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        return self._any([self._literal(True), self._literal(False)])

    def _null(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[int, int]:
        return self._literal(None)


def _check(schema: Mapping[str, Any], allowed: Sequence[str]) -> None:
    every = (*_OTHER, *(key for keys in _KNOWN.values() for key in keys))
    for key in schema:
        if key in _NOTES or key in allowed:
            continue
        near = nearest(str(key), tuple(allowed))
        raise ParameterError(
            "a schema to decode by cannot have this here",
            value=key,
            allowed=", ".join(allowed),
            way_out=f"did you mean {near!r}?" if near and key not in every else (),
        )


def _whole(schema: Mapping[str, Any], key: str, most: int = _MAX_COUNT) -> int | None:
    """Return a count of a schema, None if it names none."""
    if key not in schema:
        return None
    value = schema[key]
    if not _is_whole(value) or not 0 <= value <= most:
        raise ParameterError(f"{key} is a whole number", value=value, allowed=f"0 to {most}")
    return int(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
