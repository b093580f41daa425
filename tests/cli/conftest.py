"""A command line with a home of its own, and a tiny model in it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from command_line import Done, Loci

from loci.cli import main
from loci.config import FILE_VARIABLE, KEYS
from loci.hw.probe import probe
from loci.run.runtime import runtime


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache for all tests, so that the machine is measured once."""
    cache = tmp_path_factory.mktemp("cache")
    runtime(cache, probe(cache))
    return cache


@pytest.fixture
def home(tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the command line empty folders and nothing of this person's settings."""
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LOCI_CACHE", str(measured))
    monkeypatch.setenv("LOCI_MEMORY", str(tmp_path / "data" / "memory.db"))
    monkeypatch.setenv("LOCI_USER", "ada")
    return tmp_path


@pytest.fixture
def loci(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Loci:
    """Return a function that runs `loci` and returns its exit code and output."""

    def run(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run
