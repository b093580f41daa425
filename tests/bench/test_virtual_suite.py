"""The suite of virtually contiguous KV memory, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from loci.bench.suite import Context
from loci.bench.suites import virtual
from loci.errors import ParameterError
from loci.tiers.pages import why_not


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_it_commits_little_more_than_is_needed_shares_and_reuses() -> None:
    result = virtual.run(Context(folder=Path("none"), quick=True))
    found = result["results"]
    assert 1 <= found["bytes"]["megacache"] <= 1.15 < found["bytes"]["per_layer"]
    assert found["bytes"]["reserve_longest"] >= 3
    assert found["prefix"]["committed_by_one"] < 1.2
    assert found["reuse"] == {"first_pages": found["reuse"]["first_pages"], "new_pages": 0}
    assert found["attention"]["ratio"] > 0 < found["mapping"]["us_a_token"]
    if "engine" in found:
        held = [found["engine"][name]["held_by_many_bytes"] for name in ("blocks", "pieces")]
        assert 3 * held[0] < held[1]  # what begins alike is there once
    (row,) = virtual.card_rows(result)
    assert row.metrics["committed_by_needed"]["rivals"]["reserve_longest"] >= 3


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ParameterError, match="no such option"):
        virtual.run(Context(folder=Path("none"), options={"page": "4096"}))
