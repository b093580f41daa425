"""`loci memory audit`: what was done, and whether anybody changed the record of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Loci

from loci.store.audit import Audit


@pytest.fixture
def chain(loci: Loci, home: Path) -> Audit:
    """A chain beside the configured memory, of one cube."""
    assert loci("memory", "add", "I like tea. I live in Ghent.").code == 0
    audit = Audit(home / "data" / "memory.db.audit")
    audit.record("put", "cube1", nbytes=4096)
    return audit


def test_no_audit_is_said(loci: Loci) -> None:
    loci("memory", "add", "I like tea.")
    none = loci("memory", "audit")
    assert none.code == 1 and "no audit was begun" in none.err


def test_forgetting_is_shown_by_a_hash(loci: Loci, chain: Audit) -> None:
    [id, _] = [item["id"] for item in loci("memory", "list", "--json").json]
    assert loci("memory", "forget", id, "--yes").code == 0
    shown = loci("memory", "audit")
    assert shown.code == 0 and "cube1" in shown.out and "nbytes=4096" in shown.out
    assert "forget" in shown.out and "erased:" in shown.out and "tea" not in shown.out
    entries = loci("memory", "audit", "--json").json
    assert [(entry["what"], entry["name"]) for entry in entries] == [
        ("put", "cube1"),
        ("forget", None),
    ]


def test_verify_tells_the_first_entry_that_was_changed(loci: Loci, chain: Audit) -> None:
    chain.record("remove", "cube1")
    whole = loci("memory", "audit", "--verify", "--json")
    assert whole.code == 0 and whole.json["entries"] == 2
    anchor = whole.json["digest"]
    assert "2 entries, whole" in loci("memory", "audit", "--verify", "--anchor", anchor).out
    other = loci("memory", "audit", "--verify", "--anchor", "0" * 64)
    assert other.code == 1 and "kept elsewhere" in other.err
    chain.path.write_text(chain.path.read_text().replace("4096", "4097"))
    broken = loci("memory", "audit", "--verify")
    assert broken.code == 1 and "entry 1 was altered" in broken.err
    assert loci("memory", "audit", "--anchor", anchor).code == 2
