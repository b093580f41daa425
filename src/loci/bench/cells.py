"""Results that are kept as they come: what was measured once is not measured again.

A long comparison is many cells: one method at one size on one item. Each goes to the end of a file
as a line of JSON when it is known, so that a run that was stopped goes on where it was. What the
figures depend on (model, task, the code of the method) is part of the file's name and of the cell's
key: a cell is only found again when it would come out the same.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any  # records are JSON values

from loci.core.method import Method
from loci.errors import FormatError, StorageError


class Cells:
    """Records by (item, key) in one file.

    Args:
        folder: where files are kept.
        name: what people call the file.
        depends: everything the figures depend on, as JSON values.
    """

    def __init__(self, folder: Path, name: str, depends: Mapping[str, Any]) -> None:
        text = json.dumps(depends, sort_keys=True)
        mark = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        self.path = folder / f"{name}-{mark}.jsonl"
        self._found: dict[tuple[int, str], dict[str, Any]] = {}
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            for number, line in enumerate(lines, 1):
                if number == len(lines) and not line.endswith("\n"):
                    break  # it was stopped while writing this one
                self._read(line, number)

    def get(self, item: int, key: str) -> dict[str, Any] | None:
        """Return a record, or None when it was not measured."""
        return self._found.get((item, key))

    def add(self, item: int, key: str, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        self._found[item, key] = dict(record)
        line = json.dumps({"item": item, "key": key, **record}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file():
                self._drop_unfinished()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def _drop_unfinished(self) -> None:
        """Take away a last line without an end, which a stopped run left."""
        with self.path.open("r+b") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)

    def _read(self, line: str, number: int) -> None:
        try:
            record = json.loads(line)
            self._found[record.pop("item"), record.pop("key")] = record
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise FormatError(
                f"line {number} of {self.path} is no record: {error}",
                way_out="delete the file; its cells are measured again",
            ) from None


def code_of(things: Iterable[Method | ModuleType]) -> str:
    """Return a short hash of the source of methods and modules."""
    digest = hashlib.blake2b(digest_size=6)
    for thing in things:
        module = inspect.getmodule(type(thing)) if isinstance(thing, Method) else thing
        assert module is not None
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()
