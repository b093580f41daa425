"""Every KV method in the catalogue, without being named."""

from __future__ import annotations

import pytest

from loci.core.method import Method
from loci.methods import catalogue
from loci.run.episodes import CacheReader
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.run.parking import Parking
from loci.testing import kv_rules
from loci.testing.kv_reads import BLOCK, Subjects
from loci.testing.models import tiny_pack
from loci.tiers.dram import DramTier


@pytest.mark.parametrize("name", catalogue.names("kv"))
def test_keeps_the_rules(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    def make_reader() -> CacheReader:
        pack = tiny_pack(tmp_path_factory.mktemp("model"), max_context=2048)
        lab = Lab(pack)
        parking = Parking(DramTier(lab.ledger))
        return CacheReader(
            lab.spec, lab.weights_source, lab.ledger, lab.tokenizer, Subjects(), parking,
            block=BLOCK,
        )  # fmt: skip

    kv_rules.check(KVStore, catalogue.find(name, "kv"), make_reader)


@pytest.mark.parametrize("name", catalogue.names("kv"))
def test_reads_back_from_its_own_text(name: str) -> None:
    method: Method = catalogue.find(name, "kv")
    assert catalogue.find(str(method), "kv") == method
