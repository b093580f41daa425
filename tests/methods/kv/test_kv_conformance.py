"""Every KV method in the catalogue, without being named."""

from __future__ import annotations

import pytest

from loci.core.method import Method
from loci.methods import catalogue
from loci.run.kvstore import KVStore
from loci.testing import kv_rules


@pytest.mark.parametrize("name", catalogue.names("kv"))
def test_keeps_the_rules(name: str) -> None:
    kv_rules.check(KVStore, catalogue.find(name, "kv"))


@pytest.mark.parametrize("name", catalogue.names("kv"))
def test_reads_back_from_its_own_text(name: str) -> None:
    method: Method = catalogue.find(name, "kv")
    assert catalogue.find(str(method), "kv") == method
