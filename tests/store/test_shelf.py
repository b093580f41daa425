"""The folder of cubes: versions, forks, usage, erasing, and a process that is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loci.core.clock import ManualClock
from loci.core.cube import CubeHeader, MemoryKind, Move, Policy, State
from loci.errors import FormatError, NotFoundError, ParameterError, PolicyError
from loci.store.audit import Audit
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf, new_id


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def record(self, what: str, subject: str, **facts: Any) -> None:
        self.told.append((what, subject))


def text(id: str, parents: tuple[str, ...] = (), **more: Any) -> CubeHeader:
    return CubeHeader(id=id, kind=MemoryKind.PLAINTEXT, parents=parents, **more)


def said(words: str) -> Payload:
    return Payload(texts={"text": words}, tensors={"a": torch.full((3,), float(len(words)))})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "ada.db.cubes", clock=ManualClock(), audit=Log())


def test_an_empty_shelf_makes_nothing(shelf: Shelf) -> None:
    assert shelf.headers() == []
    assert shelf.nbytes() == 0
    assert not shelf.folder.exists()
    with pytest.raises(NotFoundError, match="there is no such cube"):
        shelf.header("a")


def test_keeps_what_is_put_there(shelf: Shelf) -> None:
    kept = shelf.put(text("a", ("i1",)), said("tea"))
    assert kept == shelf.header("a") == text("a", ("i1",))
    assert shelf.payload("a").texts == {"text": "tea"}
    assert shelf.folder.stat().st_mode & 0o777 == 0o700
    assert shelf.headers(MemoryKind.ACTIVATION) == []
    assert [h.id for h in shelf.headers()] == ["a"]
    assert shelf.audit.told == [("cube.put", "a")]  # type: ignore[union-attr]


def test_versions_stay_bit_for_bit(shelf: Shelf) -> None:
    shelf.put(text("a"), said("one"))
    first = (shelf.folder / "a.cube").read_bytes()
    second = shelf.put(text("a"), said("two"))
    assert second.version == 2
    assert shelf.versions("a") == [1, 2]
    assert (shelf.folder / "versions" / "a.1.cube").read_bytes() == first
    header, payload = shelf.version("a", 1)
    assert (header.version, payload.texts["text"]) == (1, "one")
    back = shelf.rollback("a", 1)
    assert (back.version, shelf.payload("a").texts["text"]) == (3, "one")
    assert torch.equal(shelf.payload("a").tensors["a"], payload.tensors["a"])
    assert shelf.versions("a") == [1, 2, 3]
    with pytest.raises(NotFoundError, match="allowed: 1, 2, 3"):
        shelf.rollback("a", 7)


def test_a_version_that_is_not_kept_is_overwritten(shelf: Shelf) -> None:
    shelf.put(text("a"), said("one"))
    held = os.open(shelf.path("a"), os.O_RDONLY)
    assert shelf.put(text("a"), said("two"), keep=False).version == 2
    assert set(os.pread(held, 2**20, 0)) == {0}
    os.close(held)
    assert shelf.versions("a") == [2]
    assert shelf.payload("a").texts == {"text": "two"}


def test_a_fork_is_a_child_that_goes_its_own_way(shelf: Shelf) -> None:
    shelf.put(text("a", ("i1",)), said("one"))
    fork = shelf.fork("a", "b")
    assert fork.parents == ("i1", "a")
    shelf.put(fork, said("other"))
    assert shelf.payload("a").texts == {"text": "one"}
    assert [h.id for h in shelf.descendants(["i1"])] == ["a", "b"]
    with pytest.raises(ParameterError, match="a cube of this name"):
        shelf.fork("a", "b")


def test_a_frozen_cube_never_changes(shelf: Shelf) -> None:
    shelf.put(text("a"), said("one"))
    shelf.change(shelf.header("a").to(State.FROZEN))
    data = (shelf.folder / "a.cube").read_bytes()
    frozen = shelf.header("a")
    attempts = (
        lambda: shelf.put(text("a"), said("two")),
        lambda: shelf.change(replace(frozen, parents=("i9",))),
        lambda: shelf.change(replace(frozen, policy=Policy(pinned=True))),
        lambda: shelf.remove("a"),
        lambda: shelf.retire("a"),
    )
    for attempt in attempts:
        with pytest.raises(PolicyError, match="cube a is frozen"):
            attempt()
    shelf.used("a")
    assert shelf.header("a").usage.reads == 1
    assert (shelf.folder / "a.cube").read_bytes() == data
    shelf.change(frozen.to(State.GENERATED))
    shelf.put(text("a"), said("two"))


def test_reads_are_counted_beside_the_file(shelf: Shelf) -> None:
    shelf.put(text("a"), said("one"))
    shelf.used("a")
    data = (shelf.folder / "a.cube").read_bytes()
    shelf.used("a")
    header = shelf.header("a")
    assert (header.usage.reads, header.state) == (2, State.ACTIVE)
    assert header.usage.last_read == "2026-01-01T00:00:00+00:00"
    assert (shelf.folder / "a.cube").read_bytes() == data
    (shelf.folder / "usage.json").write_text("{")
    assert shelf.header("a").usage.reads == 1  # what the file knew when it was written


def test_removing_overwrites_every_version(shelf: Shelf) -> None:
    shelf.put(text("a"), said("canary-77"))
    shelf.put(text("a"), said("canary-77 again"))
    held = [os.open(path, os.O_RDONLY) for path in shelf.files() if path.suffix == ".cube"]
    assert sum(shelf.find(["canary-77"]).values()) >= 2
    shelf.remove("a")
    for descriptor in held:  # the bytes themselves, not only their names
        assert set(os.pread(descriptor, 2**20, 0)) == {0}
        os.close(descriptor)
    assert shelf.headers() == []
    assert not any(path.suffix == ".cube" for path in shelf.files())


def test_retiring_leaves_the_header_alone(shelf: Shelf) -> None:
    shelf.put(text("a", ("i1",)), said("canary-77"))
    shelf.put(text("a", ("i1",)), said("canary-77 again"))
    held = os.open(shelf.path("a"), os.O_RDONLY)
    shelf.retire("a")
    assert set(os.pread(held, 2**20, 0)) == {0}
    os.close(held)
    header, payload = shelf.header("a"), shelf.payload("a")
    assert (header.state, header.parents) == (State.RETIRED, ("i1",))
    assert (payload.texts, payload.tensors, payload.facts) == ({}, {}, {"erased": True})
    assert shelf.versions("a") == [header.version]
    assert not any(shelf.find(["canary-77"]).values())


def test_an_unreadable_cube_is_named_and_can_be_removed(shelf: Shelf) -> None:
    shelf.put(text("a"), said("one"))
    shelf.put(text("b"), said("two"))
    path = shelf.path("a")
    path.write_bytes(path.read_bytes()[:40])
    assert list(shelf.unreadable()) == ["a"]
    assert [h.id for h in shelf.headers(readable=True)] == ["b"]
    with pytest.raises(FormatError, match="damaged"):
        shelf.headers()
    shelf.remove("a")
    assert [h.id for h in shelf.headers()] == ["b"]


def test_moves_as_a_file(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(text("a"), said("one"))
    shelf.used("a")
    shelf.save("a", tmp_path / "gift.safetensors")
    with pytest.raises(ParameterError, match="here already"):
        shelf.load(tmp_path / "gift.safetensors")
    other = Shelf(tmp_path / "other.cubes")
    other.load(tmp_path / "gift.safetensors")
    assert other.header("a").usage.reads == 1
    assert other.payload("a").texts == shelf.payload("a").texts


@pytest.mark.parametrize("bad", ["", "../a", "a/b", ".a", "a.1", "a" * 65, 7])
def test_ids_stay_in_the_folder(shelf: Shelf, bad: Any) -> None:
    with pytest.raises(ParameterError, match="no id of a cube"):
        shelf.put(text(bad), said("one"))
    assert not (shelf.folder / "versions").exists()


def test_ids_say_what_they_are() -> None:
    assert new_id(MemoryKind.ACTIVATION).startswith("cube-")
    assert new_id(MemoryKind.PARAMETRIC) != new_id(MemoryKind.PARAMETRIC)


WRITER = """
import sys
from loci.core.cube import CubeHeader, MemoryKind
from loci.store.audit import Audit
from loci.store.cube_file import Payload
from loci.store.shelf import Shelf
shelf = Shelf(sys.argv[1])
for n in range(10**6):
    words = f"{n} " * 100_000
    shelf.put(CubeHeader(id="a", kind=MemoryKind.PLAINTEXT), Payload(texts={"n": words}))
    print(n, flush=True)
"""


def test_a_killed_process_leaves_the_old_cube_or_the_new(quick_path: Path) -> None:
    shelf = Shelf(quick_path / "cubes")
    for pause in (0.0, 0.004):
        command = [sys.executable, "-c", WRITER, str(shelf.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = [int(process.stdout.readline()) for _ in range(3)][-1]
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            last = max([last, *map(int, process.stdout.read().split())])
        words = shelf.payload("a").texts["n"]
        number = int(words.split(" ", 1)[0])
        assert words == f"{number} " * 100_000  # one version, whole
        assert number in (last, last + 1)
        header = shelf.header("a")
        for version in shelf.versions("a"):
            shelf.version("a", version)
        assert shelf.put(header, said("one")).version == header.version + 1
        left = [path for path in shelf.folder.iterdir() if path.name.endswith(".partial")]
        assert left == []


def test_the_newest_versions_stay_and_what_goes_is_told(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit")
    shelf = Shelf(tmp_path / "cubes", audit=audit, keep_versions=2)
    files = []
    for words in ("one", "two", "three", "four"):
        shelf.put(text("a", ("i1",)), said(words))
        files.append((shelf.folder / "a.cube").read_bytes())
    assert shelf.versions("a") == [2, 3, 4]
    (gone,) = shelf.dropped
    digest = hashlib.sha256(files[0]).hexdigest()
    assert (gone.id, gone.version, gone.nbytes, gone.sha256) == ("a", 1, len(files[0]), digest)
    (entry,) = [one for one in audit.entries() if one.what == "cube.drop_version"]
    assert (entry.facts["version"], entry.facts["sha256"]) == (1, digest)
    assert audit.verify() == 5
    assert {name for name, times in shelf.find(["one", "two"]).items() if times} == {
        "cubes/versions/a.2.cube"
    }
    assert shelf.rollback("a", 2).version == 5 and shelf.payload("a").texts["text"] == "two"
    assert shelf.descendants(["i1"])[0].id == "a"
    with pytest.raises(NotFoundError, match="memory audit tells which"):
        shelf.version("a", 1)


def test_pruning_spares_the_present_and_the_frozen(shelf: Shelf) -> None:
    for id in ("a", "b"):
        for words in ("one", "two", "three"):
            shelf.put(text(id), said(words))
    shelf.change(shelf.header("b").moved(Move.FREEZE))
    would = shelf.prune(1, dry_run=True)
    assert [(one.id, one.version) for one in would] == [("a", 1)]
    assert shelf.versions("a") == [1, 2, 3]
    assert shelf.prune(1) == would and shelf.versions("a") == [2, 3]
    assert shelf.prune(1) == [] and len(shelf.versions("b")) == 3
    with pytest.raises(PolicyError):
        shelf.prune(1, "b")
    with pytest.raises(ParameterError, match="at least one earlier version"):
        shelf.prune(0)
    with pytest.raises(ParameterError):
        Shelf(shelf.folder, keep_versions=0)


def test_a_second_name_of_the_present_version_is_never_overwritten(shelf: Shelf) -> None:
    shelf.put(text("a"), said("one"))
    (shelf.folder / "versions").mkdir()
    os.link(shelf.folder / "a.cube", shelf.folder / "versions" / "a.1.cube")  # as if killed there
    shelf.prune(1)
    assert shelf.payload("a").texts["text"] == "one"
