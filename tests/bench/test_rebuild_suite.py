"""The suite of xKV's selective reconstruction: what it counts, and what it puts on the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loci.bench.suite import Context
from loci.bench.suites import rebuild
from loci.core.spec import ModelSpec
from loci.errors import ParameterError
from loci.methods import catalogue
from loci.methods.kv.xkv import Xkv
from loci.testing.kv import spec_of
from loci.testing.models import tiny_pack

PRODUCT = "xkv(group=2,rank_k=8,rank_v=8,segment=64,window=8,sinks=4)"
TOKENS = 400


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    tiny_pack(folder / "tiny", max_context=1024).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "REST", 4)
        patch.setattr(rebuild, "DECODED", 1)
        return rebuild.run(
            Context(
                folder=folder,
                model="tiny",
                methods=(PRODUCT,),
                quick=True,
                options={"tokens": str(TOKENS), "chunks": "4,1000"},
            )
        )


def test_every_number_of_chunks_stands_beside_the_whole(result: dict[str, Any]) -> None:
    whole, few, every = result["rows"]
    assert [row["chunks"] for row in (whole, few, every)] == [None, 4, 1000]
    assert result["coded_tokens"] == 384
    # All chunks are the whole product, in loss and in work; four are neither.
    assert every["kl"] == whole["kl"] and every["needle"] == whole["needle"]
    assert few["kl"]["value"] != whole["kl"]["value"]
    assert every["operations"] == whole["operations"] > few["operations"]
    # Landmarks are held, and nothing else comes on top.
    assert whole["kv_bytes"] == whole["predicted_bytes"] < few["kv_bytes"] == every["kv_bytes"]
    assert all(row["decode"]["value"] > 0 for row in result["rows"])


def test_tables_and_cards_come_from_the_result(result: dict[str, Any]) -> None:
    ((title, head, lines),) = rebuild.sheet(result)
    assert f"{TOKENS} tokens" in title and [line[0] for line in lines] == [
        "all",
        "4 of 48",
        "1000 of 48",
    ]
    assert all(len(line) == len(head) for line in lines)
    whole, few, _ = rebuild.card_rows(result)
    assert catalogue.find(whole.method, "kv") == catalogue.find(PRODUCT, "kv")
    assert few.part == f"{TOKENS} tokens" and few.metrics["kl"]["rivals"].keys() >= {whole.method}
    assert few.metrics["operations"]["this"] < whole.metrics["operations"]["this"]
    assert few.bytes["predicted"] == few.bytes["measured"]


def test_operations_by_hand() -> None:
    # Two layers of two key heads and four query heads of size 32; rows of 6 + 10 numbers.
    spec: ModelSpec = spec_of(layers=2)
    whole = Xkv(group=2, rank_k=6, rank_v=10, segment=64, sinks=0)
    assert rebuild.operations(whole, spec, 640) == 2 * 2 * 16 * 640 * 2 * 32
    some = Xkv(group=2, rank_k=6, rank_v=10, segment=64, sinks=4, chunks=3)
    # Three chunks and the first; eighty landmarks for each query head.
    assert rebuild.operations(some, spec, 640) == 2 * 2 * 16 * 32 * 2 * 32 + 2 * 2 * 4 * 32 * 80


def test_only_a_product_is_taken(tmp_path: Path) -> None:
    for named in (("snapkv",), ("xkv(chunks=4)",), ("xkv", "xkv(group=1)")):
        with pytest.raises(ParameterError, match="takes one product"):
            rebuild.run(Context(folder=tmp_path, methods=named))
