"""Faces of other systems with nothing of this person's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.config import FILE_VARIABLE, KEYS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every face an empty memory file, and no models."""
    for key in KEYS:
        monkeypatch.delenv(key.variable, raising=False)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCI_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LOCI_MEMORY", str(tmp_path / "data" / "memory.db"))
    return tmp_path
