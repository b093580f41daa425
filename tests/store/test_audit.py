"""The chain of what was done: tampering of each kind, several processes, a full disk."""

from __future__ import annotations

import json
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from loci.core.clock import ManualClock
from loci.errors import FormatError, ParameterError, StorageError, StoreError
from loci.store.audit import Audit

WRITER = """
import sys
from loci.store.audit import Audit
audit = Audit(sys.argv[1])
for number in range(25):
    audit.record("put", f"{sys.argv[2]}-{number}")
"""


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    """Five entries about five cubes."""
    audit = Audit(tmp_path / "ada.db.audit", clock=ManualClock())
    for number in range(1, 6):
        audit.record("put", f"cube{number}", nbytes=number * 100, kind="activation")
    return audit


def change(audit: Audit, edit: Callable[[list[str]], list[str]]) -> None:
    """Rewrite the chain's file as a person with an editor would."""
    lines = audit.path.read_text().splitlines()
    audit.path.write_text("".join(line + "\n" for line in edit(lines)))


def test_what_is_recorded_is_read_back_and_verifies(audit: Audit) -> None:
    entry = audit.record("remove", "cube2", freed=200)
    assert entry == audit.entries()[-1]
    assert (entry.seq, entry.what, entry.name, entry.facts) == (
        6,
        "remove",
        "cube2",
        {"freed": 200},
    )
    assert entry.at == "2026-01-01T00:00:00+00:00"
    assert audit.verify() == 6
    head = audit.head()
    assert head is not None and (head.count, head.digest) == (6, entry.digest)


def test_nothing_recorded_verifies_and_makes_no_file(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a.audit")
    assert audit.verify() == 0 and audit.entries() == [] and audit.head() is None
    assert list(tmp_path.iterdir()) == []


def test_files_are_the_owners_alone(audit: Audit) -> None:
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in audit.path.parent.iterdir()}
    assert names == {f"ada.db.audit{end}": 0o600 for end in ("", ".head", ".names")}


def alter(lines: list[str]) -> list[str]:
    return [line.replace('"nbytes": 300', '"nbytes": 301') for line in lines]


def remove(lines: list[str]) -> list[str]:
    return lines[:3] + lines[4:]


def swap(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


def repeat(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[2], *lines[3:]]


def garble(lines: list[str]) -> list[str]:
    return [*lines[:3], "{]", *lines[4:]]


def cut(lines: list[str]) -> list[str]:
    return lines[:3]


@pytest.mark.parametrize("edit", [alter, remove, swap, repeat, garble, cut])
def test_tampering_is_found_at_the_entry_it_begins_with(
    audit: Audit, edit: Callable[[list[str]], list[str]]
) -> None:
    change(audit, edit)
    with pytest.raises(StoreError, match="entry 3 "):
        audit.verify()


def test_a_renumbered_entry_is_found(audit: Audit) -> None:
    # Entry 3 taken away and the later ones numbered anew: the digests do not follow.
    def edit(lines: list[str]) -> list[str]:
        kept = [json.loads(line) for line in remove(lines)[1:]]
        for number, data in enumerate(kept, start=1):
            data["seq"] = number
        return [lines[0], *(json.dumps(data, sort_keys=True) for data in kept)]

    change(audit, edit)
    with pytest.raises(StoreError, match="entry 3 was altered"):
        audit.verify()


def rebuild(path: Path, subjects: list[str]) -> Audit:
    """Make a chain of one's own in the place of another."""
    for end in ("", ".head", ".names"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    audit = Audit(path, clock=ManualClock())
    for subject in subjects:
        audit.record("put", subject)
    return audit


def test_a_chain_made_anew_is_found_by_the_head_or_by_the_digest_kept_elsewhere(
    audit: Audit,
) -> None:
    head, kept = audit.path.with_name("ada.db.audit.head").read_text(), audit.head()
    assert kept is not None and audit.verify(anchor=kept.digest) == 5
    forged = rebuild(audit.path, [f"cube{number}" for number in range(1, 6)])
    assert forged.verify() == 5  # all three files rewritten: only the anchor tells
    with pytest.raises(StoreError, match="kept elsewhere"):
        forged.verify(anchor=kept.digest)
    audit.path.with_name("ada.db.audit.head").write_text(head)
    with pytest.raises(StoreError, match="written anew"):
        audit.verify()


def test_a_missing_head_or_chain_is_found(audit: Audit) -> None:
    text = audit.path.read_bytes()
    audit.path.unlink()
    with pytest.raises(StoreError, match="entry 1 was cut"):
        audit.verify()
    audit.path.write_bytes(text)
    audit.path.with_name("ada.db.audit.head").unlink()
    for act in (audit.verify, lambda: audit.record("put", "cube6")):
        with pytest.raises(StoreError, match="head is gone"):
            act()


def test_recording_does_not_go_on_after_a_cut(audit: Audit) -> None:
    change(audit, cut)
    before = audit.path.read_bytes()
    with pytest.raises(StoreError, match="ends before entry 5"):
        audit.record("put", "cube6")
    assert audit.path.read_bytes() == before


def test_a_name_that_was_not_recorded_is_found(audit: Audit) -> None:
    names = audit.path.with_name("ada.db.audit.names")
    names.write_text(names.read_text().replace("cube3", "cube9"))
    assert audit.entries()[2].name is None
    with pytest.raises(StoreError, match="name of entry 3"):
        audit.verify()


def test_an_erased_subject_leaves_a_hash_and_no_salt(audit: Audit, tmp_path: Path) -> None:
    audit.record("forget", "cube3")
    salts = [
        json.loads(line)["salt"]
        for line in audit.path.with_name("ada.db.audit.names").read_text().splitlines()
        if json.loads(line)["name"] == "cube3"
    ]
    assert audit.erase(["cube3", "cube8"]) == 2 and audit.erase(["cube3"]) == 0
    entries = audit.entries()
    assert [entry.name for entry in entries] == ["cube1", "cube2", None, "cube4", "cube5", None]
    assert entries[2].subject != entries[5].subject  # a salt of its own each: not even linked
    assert audit.verify() == 6
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"cube3" not in data and not any(salt.encode() in data for salt in salts)


def test_a_line_that_was_never_finished_does_no_harm(audit: Audit) -> None:
    with audit.path.open("ab") as file:
        file.write(b'{"at": "2026')
    assert audit.verify() == 5
    assert audit.record("put", "cube6").seq == 6
    assert audit.verify() == 6


def test_an_entry_whose_head_was_not_written_counts(audit: Audit) -> None:
    head = audit.path.with_name("ada.db.audit.head")
    before = head.read_bytes()
    audit.record("put", "cube6")
    head.write_bytes(before)  # the process ended between the two writes
    assert audit.verify() == 6
    assert audit.record("put", "cube7").seq == 7
    assert audit.verify() == 7


def test_processes_share_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "a.audit"
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b")
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    audit = Audit(path)
    assert audit.verify() == 50
    names = [entry.name for entry in audit.entries()]
    for who in ("a", "b"):
        mine = [name for name in names if name is not None and name.startswith(who)]
        assert mine == [f"{who}-{number}" for number in range(25)]


def test_a_full_disk_leaves_the_chain_as_it_was(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a.audit")
    audit.record("put", "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = 1
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(StorageError, match="free some space"):
            for number in range(100):
                audit.record("put", f"cube{number}")
                done += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 1 < done < 100
    assert audit.verify() == done
    assert audit.record("put", "again").seq == done + 1
    assert audit.verify() == done + 1


def test_a_chain_that_cannot_be_begun_is_not_begun(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a.audit")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        with pytest.raises(StorageError):
            audit.record("put", "first")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert audit.verify() == 0
    assert audit.record("put", "first").seq == 1 and audit.verify() == 1


@pytest.mark.parametrize(
    ("what", "subject", "facts"),
    [
        ("Put it", "cube1", {}),
        ("put", "I am allergic to nuts", {}),
        ("put", "", {}),
        ("put", "cube1", {"text": "I am allergic to nuts"}),
        ("put", "cube1", {"texts": ["fine", "two words"]}),
        ("put", "cube1", {"more": {"a": 1}}),
    ],
)
def test_no_text_of_a_person_enters(
    audit: Audit, what: str, subject: str, facts: dict[str, object]
) -> None:
    with pytest.raises(ParameterError, match=r"one word|never by a text|somebody's text"):
        audit.record(what, subject, **facts)
    assert audit.verify() == 5


def test_a_file_of_another_kind_is_refused(audit: Audit) -> None:
    change(audit, lambda lines: [lines[0].replace('"version": 1', '"version": 2'), *lines[1:]])
    with pytest.raises(FormatError, match="no audit of a version we know"):
        audit.verify()


def test_no_byte_can_be_changed_unseen(audit: Audit) -> None:
    dice = Random(0)
    for end in ("", ".head"):
        path = audit.path.with_name(audit.path.name + end)
        data = path.read_bytes()
        meaning = [at for at, byte in enumerate(data) if byte not in b" \n"]  # a head is padded
        for at in dice.sample(meaning, 60):
            changed = bytearray(data)
            changed[at] ^= 1 << dice.randrange(8)
            path.write_bytes(changed)
            with pytest.raises((StoreError, FormatError)):
                audit.verify()
        path.write_bytes(data)
    assert audit.verify() == 5
