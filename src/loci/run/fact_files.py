"""Facts to edit as people write them: words with the subject in brackets, or a file of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from loci.core.utf8 import plain_text
from loci.errors import FormatError, ParameterError
from loci.methods.train.base import Fact
from loci.units import nearest

_MARKED = re.compile(r"\[([^\[\]]+)\]")
_FIELDS = ("prompt", "subject", "target")
_EXAMPLE = '"The capital of [France] is" "Lyon"'


def fact_of(prompt: str, target: str) -> Fact:
    """Return a fact whose prompt names its subject in brackets, "The capital of [France] is".

    Raises:
        ParameterError: if no words, or several, stand in brackets, or something is empty.
    """
    marked = _MARKED.findall(prompt)
    if len(marked) != 1:
        raise ParameterError(
            "the prompt of a fact marks its subject once",
            value=prompt,
            allowed=f"one pair of brackets, as in {_EXAMPLE}",
            way_out="put brackets around whom or what the fact is about",
        )
    return Fact(prompt=_MARKED.sub(r"\1", prompt), subject=marked[0].strip(), target=target)


def facts_in(path: Path) -> list[Fact]:
    """Return the facts in a file: a JSON list of objects with "prompt" and "target".

    The subject stands in brackets in the prompt, or in a field "subject" of its own.

    Raises:
        FormatError: if the file is no such list; it names the entry.
        ParameterError: as in `fact_of`.
    """
    try:
        found = json.loads(plain_text(path.read_bytes(), str(path)))
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{path} is no JSON: {error}",
            way_out='[{"prompt": "The capital of [France] is", "target": "Lyon"}]',
        ) from error
    if not isinstance(found, list) or not found:
        raise FormatError(
            f"{path} holds no facts",
            value=type(found).__name__,
            allowed="a list with at least one fact",
            way_out='[{"prompt": "The capital of [France] is", "target": "Lyon"}]',
        )
    return [_fact(path, number, one) for number, one in enumerate(found, start=1)]


def _fact(path: Path, number: int, one: object) -> Fact:
    where = f"fact {number} of {path}"
    if not isinstance(one, Mapping):
        raise FormatError(f"{where} is no object", value=one, allowed=", ".join(_FIELDS))
    for name, value in one.items():
        if name not in _FIELDS:
            near = nearest(str(name), _FIELDS)
            raise FormatError(
                f"{where} has an unknown field",
                value=name,
                allowed=", ".join(_FIELDS),
                way_out=f"did you mean {near!r}?" if near else (),
            )
        if not isinstance(value, str):
            raise FormatError(f"{name} of {where} is no text", value=value, allowed="a text")
    if "prompt" not in one or "target" not in one:
        raise FormatError(
            f"{where} lacks its prompt or target",
            value=", ".join(one),
            allowed='"prompt" and "target"',
        )
    if "subject" in one:
        return Fact(prompt=one["prompt"], subject=one["subject"], target=one["target"])
    return fact_of(one["prompt"], one["target"])
