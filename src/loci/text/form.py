"""Whether JSON has the form that was asked for: the part of JSON Schema that we ask in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # JSON values

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def misfit(data: Any, schema: Mapping[str, Any], where: str = "the reply") -> str | None:
    """Return in words the first place where `data` leaves the schema, None if it fits.

    >>> misfit({"a": [1, "x"]}, {"type": "object", "properties": {"a": {"type": "array",
    ...     "items": {"type": "integer"}}}, "required": ["a"]})
    'a[1] is no integer'
    """
    if "enum" in schema:
        return None if data in schema["enum"] else f"{where} is none of the allowed values"
    if "anyOf" in schema:
        fits = any(misfit(data, part, where) is None for part in schema["anyOf"])
        return None if fits else f"{where} has none of the allowed forms"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_is_a(data, kind) for kind in kinds):
        return f"{where} is no {' or '.join(kinds)}"
    if isinstance(data, dict):
        return _object(data, schema, where)
    if isinstance(data, list):
        if len(data) > schema.get("maxItems", len(data)) or len(data) < schema.get("minItems", 0):
            return f"{where} has {len(data)} entries"
        found = (misfit(one, schema["items"], f"{where}[{i}]") for i, one in enumerate(data))
        return next((problem for problem in found if problem is not None), None)
    if isinstance(data, str):
        if len(data) > schema.get("maxLength", len(data)):
            return f"{where} is too long"
        if len(data) < schema.get("minLength", 0):
            return f"{where} is too short"
    elif isinstance(data, int) and not isinstance(data, bool):
        low, high = schema.get("minimum", data), schema.get("maximum", data)
        if not low <= data <= high:
            return f"{where} is not between {low} and {high}"
    return None


def _object(data: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    properties = schema.get("properties", {})
    begin = "" if where == "the reply" else f"{where}."
    for name in schema.get("required", ()):
        if name not in data:
            return f"{begin}{name} is missing"
    for name, value in data.items():
        if name not in properties:
            return f"{begin}{name[:40]} was not asked for"
        problem = misfit(value, properties[name], f"{begin}{name}")
        if problem is not None:
            return problem
    return None


def _is_a(data: object, kind: str) -> bool:
    if isinstance(data, bool):
        return kind == "boolean"
    return isinstance(data, _TYPES[kind])
