"""The page about PostgreSQL says what is true."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from loci.config import FILE_VARIABLE
from loci.run.memory import Memory
from loci.store.postgres import OUT_OF_REACH

PAGE = Path(__file__).parents[2] / "docs/how-to/postgres.md"


def test_its_example_runs(
    postgres_place: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "config.toml"))
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    url = re.search(r'"(postgresql://[^"]+)"', example)
    assert url is not None
    exec(example.replace(url[1], postgres_place("page")), {})
    assert "nuts" in capsys.readouterr().out


def test_what_it_says_of_forgetting(postgres_memory: Memory) -> None:
    page = PAGE.read_text("utf-8")
    for word in ("write-ahead log", "replicas", "backups", "log of statements"):
        assert word in page and word in " ".join(OUT_OF_REACH)
    added = postgres_memory.add("a secret of some words", user="ada", infer=False)
    report = postgres_memory.forget(added.turns[0].id)
    assert report.clean and set(OUT_OF_REACH) <= set(report.out_of_reach)
