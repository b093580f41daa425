"""The comparison of banks: recall by hand-made chance, bytes alike, cards from the result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loci.bench import contest
from loci.bench.suite import Context
from loci.bench.suites import bank
from loci.testing.models import tiny_pack


@pytest.fixture(autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "REST", 32)
        yield


def test_banks_are_held_beside_the_method_alone(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "tiny", max_context=2048).close()
    options = {"widths": "1,16", "chunks": "64", "shares": "0.8", "selects": "snapkv"}
    banks = ("longmem(tier=disk,chunk=16)", "longmem-near(tier=disk,bits=8,chunk=16)")
    context = Context(folder=tmp_path, model="tiny", methods=banks, quick=True, options=options)
    result = bank.run(context)
    assert set(result["recall"]) == {"1", "16"}
    for chunk, found in result["recall"].items():
        assert 0 <= found["mean"] <= found["layer"] <= found["head"] <= 1
        assert found["chance"] == pytest.approx(min(1, 16 * int(chunk) / 256))
    assert result["recall"]["16"]["mean"] == 1.0, "every chunk is fetched"
    rows = result["rows"]
    assert [row["bank"] for row in rows] == [None, *banks]
    for row in rows:
        assert row["kv_bytes"] == row["predicted_bytes"] <= row["share"] * row["full_bytes"]
        assert (row["disk_bytes"] > 0) == ("tier=disk" in str(row["bank"]))
    for _, head, lines in bank.sheet(result):
        assert lines and all(len(line) == len(head) for line in lines)
    cards = bank.card_rows(result)
    assert {row.part for row in cards} == {"snapkv/0.8", "recall/256"}
    assert all(row.metrics["kl"]["rivals"] for row in cards if row.part == "snapkv/0.8")
