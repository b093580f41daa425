"""Examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import loci
from loci.config import FILE_VARIABLE, KEYS


def with_examples() -> list[str]:
    """Return the modules whose source has an example."""
    found = []
    for info in pkgutil.walk_packages(loci.__path__, "loci."):
        origin = getattr(info.module_finder, "path", "")
        file = Path(origin, info.name.rpartition(".")[2] + ".py")
        if file.is_file() and ">>>" in file.read_text(encoding="utf-8"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path))
    failed, tried = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert tried > 0
    assert failed == 0
