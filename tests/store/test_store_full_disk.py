"""A disk that fills up under a memory, for real: what was acknowledged is there."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loci.errors import StorageError
from loci.run.memory import Memory
from loci.store.writes import check_audit

WRITER = """
import json, resource, sys
from loci.errors import StorageError
from loci.run.memory import Memory
memory = Memory(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
kept = []
try:
    for number in range(10_000):
        text = f"I live in Town{number}. " + "word " * 400
        kept.append(memory.add(text, user="ada", session="s").turns[0].id)
except StorageError as error:
    print(json.dumps([kept, str(error)]))
"""


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [1_500_000, 2_500_000])
def test_what_was_acknowledged_before_the_disk_was_full_is_there(tmp_path: Path, room: int) -> None:
    path = tmp_path / "m.db"
    command = [sys.executable, "-c", WRITER, str(path), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    kept, said = json.loads(done.stdout)
    assert "everything acknowledged before is still there" in said and "free some space" in said
    assert len(kept) > 10
    with Memory(path) as memory:
        assert [memory.get(id).content[:9] for id in kept] == ["I live in"] * len(kept)  # type: ignore[union-attr]
        counts = memory.counts(user="ada")
        assert counts["turns"] == len(kept)  # and nothing is half there
        assert counts["items"] + counts["retired"] == len(kept)
        assert memory.store.check_integrity() == []
        assert check_audit(memory.store.database) == 0  # type: ignore[attr-defined]
        memory.add("There is room again.", user="ada")
        assert memory.search("room again", user="ada", mode="lexical")


def test_a_memory_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    with files_of_at_most(10_000), pytest.raises(StorageError, match=r"full|File too large"):
        Memory(tmp_path / "m.db")
    assert list(tmp_path.iterdir()) == []
    Memory(tmp_path / "m.db").close()


def test_an_export_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "ada.jsonl"
    with Memory(tmp_path / "m.db") as memory:
        memory.add("I like tea.", user="ada")
        memory.export(out, user="ada")
        before = out.read_bytes()
        memory.add("word " * 20_000, user="ada", infer=False)
        with files_of_at_most(50_000), pytest.raises(StorageError, match="was not written"):
            memory.export(out, user="ada")
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"m.db", "ada.jsonl"}
