"""What a memory tells the audit beside it, and that it tells nothing a person said."""

from __future__ import annotations

from pathlib import Path

import pytest

import loci
from loci.errors import StorageError
from loci.run.audited import beside
from loci.run.memory import Memory
from loci.store.audit import Audit


def fact(memory: Memory) -> str:
    memory.add("I am allergic to walnuts.", user="ada lovelace")
    return memory.list(user="ada lovelace")[0].id


def test_forgetting_is_recorded_and_its_names_are_gone(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "m.db.audit")
    with Memory(tmp_path / "m.db", audit=audit) as memory:
        id = fact(memory)
        assert memory.forget(id, dry_run=True).done is False and audit.entries() == []
        erased = memory.forget(id)
        memory.add("I live in Ghent.", user="ada lovelace")
        memory.export(tmp_path / "ada.jsonl", user="ada lovelace")
        memory.forget_all(user="ada lovelace")
    assert erased.clean
    told = [(entry.what, entry.name) for entry in audit.entries()]
    assert told == [("forget", None), ("export", None), ("forget", None)]
    assert audit.entries()[0].facts == {"items": 1, "turns": 1}
    assert audit.verify() == 3
    data = b"".join(path.read_bytes().lower() for path in tmp_path.glob("m.db.audit*"))
    assert b"walnut" not in data and b"lovelace" not in data and f'"{id}"'.encode() not in data


def test_an_export_names_whose_it_is(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "m.db.audit")
    with Memory(tmp_path / "m.db", audit=audit) as memory:
        fact(memory)
        memory.export(tmp_path / "ada.jsonl", user="ada lovelace")
    [entry] = audit.entries()
    assert (entry.what, entry.name) == ("export", "ada%20lovelace")


def test_an_audit_that_was_cut_does_not_keep_anybody_from_forgetting(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "m.db.audit")
    audit.record("put", "cube1")
    audit.path.write_text("")
    with Memory(tmp_path / "m.db", audit=audit) as memory:
        erased = memory.forget(fact(memory))
    assert erased.done and erased.clean
    assert any("does not tell of this" in note for note in erased.out_of_reach)


def test_a_memory_goes_on_with_the_audit_that_was_begun_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with loci.Memory(path, embedder=None) as memory:
        memory.forget(fact(memory))
    assert beside(path) is None, "nobody began one"
    Audit(tmp_path / "m.db.audit").record("put", "cube1")
    with loci.Memory(path, embedder=None) as memory:
        memory.forget(fact(memory))
    found = beside(path)
    assert found is not None and [entry.what for entry in found.entries()] == ["put", "forget"]
    assert beside(f"sqlite:///{path}") is not None and beside("postgresql://host/db") is None


def test_a_name_that_is_no_id_is_written_as_one(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a.audit")
    with Memory(tmp_path / "m.db", audit=audit) as memory, pytest.raises(StorageError):
        fact(memory)
        memory.export(tmp_path / "no" / "such" / "ada.jsonl", user="ada lovelace")
    assert audit.verify() == 0, "what was not done is not told"
