"""Messages have four parts, and the drawing on top of errors.py is the tree."""

from __future__ import annotations

import inspect
import re

import pytest

from loci import errors
from loci.errors import LociError, missing_extra

ALL = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LociError)
]


def test_the_four_parts_stand_in_order() -> None:
    error = LociError("the window is too small", value=0, allowed=">= 1", way_out=["a", "b"])
    assert str(error) == "the window is too small; got 0; allowed: >= 1\n  a\n  b"
    assert str(LociError("only this")) == "only this"
    assert str(LociError("one", way_out="mend it")) == "one\n  mend it"


@pytest.mark.parametrize("kind", ALL)
def test_every_error_prints_its_message(kind: type[LociError]) -> None:
    assert str(kind("no item", value="x")) == "no item; got 'x'"
    assert kind.__doc__


def test_errors_are_also_what_python_expects() -> None:
    assert issubclass(errors.ParameterError, ValueError)
    assert issubclass(errors.NotFoundError, KeyError)


def test_the_drawing_is_the_tree() -> None:
    drawn = re.findall(r"^([ |]*)(?:\+-- )?([A-Z]\w+Error)\b", inspect.getdoc(errors) or "", re.M)
    parents: dict[str, str] = {}
    path: list[str] = []
    for indent, name in drawn:
        depth = 0 if name == "LociError" else len(indent.strip("\n")[4:]) // 4 + 1
        path = [*path[:depth], name]
        if depth:
            parents[name] = path[depth - 1]
    assert parents == {
        kind.__name__: kind.__mro__[1].__name__ for kind in ALL if kind is not LociError
    }


def test_a_missing_extra_names_its_line() -> None:
    assert "pip install 'loci[gguf]'" in str(missing_extra("gguf", "gguf"))
