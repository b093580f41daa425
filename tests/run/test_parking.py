"""Parked stores: the same to the bit, or close in four bits, in memory and on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.core.ledger import Ledger
from loci.errors import BudgetError, FingerprintError, ParameterError
from loci.methods.kv._patched import PatchedPromptByHead
from loci.methods.kv.random import Random
from loci.methods.kv.snapkv import SnapKV
from loci.run.kvstore import KVStore
from loci.run.parking import Parking
from loci.testing.kv import Text, read, spec_of, store_of
from loci.tiers.disk import DiskTier
from loci.tiers.dram import DramTier

# Heads that hold unequal numbers, so that slots nobody uses lie between those in use.
BY_HEAD = PatchedPromptByHead(ids=(3, 4, 5), sinks=2)


def _filled(chain: tuple[SnapKV] | tuple[PatchedPromptByHead]) -> tuple[KVStore, Text]:
    text = Text.of(spec_of(), 90)
    store = store_of(KVStore, chain, keep=30, dtype=torch.float16)
    read(store, text, stop=80)
    return store, text


@pytest.mark.parametrize("chain", [(SnapKV(window=4),), (BY_HEAD,)])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_store_comes_back_and_the_parked_one_stays(
    chain: tuple[SnapKV] | tuple[PatchedPromptByHead], bits: int, tmp_path: Path
) -> None:
    ledger = Ledger({"dram": 2**24, "disk": 2**24})
    for tier in (DramTier(ledger), DiskTier(tmp_path, ledger, direct=False)):
        store, text = _filled(chain)
        parking = Parking(tier, bits)
        parking.put("a", store, range(80))
        whole = sum(store.nbytes().values())
        assert parking.nbytes() < whole if bits == 16 else parking.nbytes() < 0.7 * whole
        kept, _ = read(store, text, start=80)
        for _ in range(2):
            back, ids = parking.take("a", spec_of(), chain)
            assert ids == list(range(80)) and back.length == 80
            again, _ = read(back, text, start=80)
            limit = {16: 0.0, 8: 0.05, 4: 0.8}[bits]
            assert float((again - kept).abs().max()) <= limit
        parking.clear()
        assert parking.names == []
        tier.close() if isinstance(tier, DiskTier) else None
    assert ledger.used("dram") == ledger.used("disk") == 0


def test_a_method_that_draws_goes_on_with_its_own_stream() -> None:
    text, chain = Text.of(spec_of(), 90), (Random(window=4),)
    store = store_of(KVStore, chain, keep=30)
    read(store, text, stop=60)
    parking = Parking(DramTier(Ledger({"dram": 2**22})))
    parking.put("a", store, range(60))
    back, _ = parking.take("a", spec_of(), chain)
    assert torch.equal(read(store, text, start=60)[0], read(back, text, start=60)[0])


def test_another_chain_model_or_no_room_is_refused() -> None:
    store, _ = _filled((SnapKV(window=4),))
    parking = Parking(DramTier(Ledger({"dram": 2**22})))
    parking.put("a", store, range(80))
    with pytest.raises(FingerprintError, match="another chain"):
        parking.take("a", spec_of(), (SnapKV(window=8),))
    with pytest.raises(FingerprintError, match="another"):
        parking.take("a", spec_of(layers=3), (SnapKV(window=4),))
    small = Parking(DramTier(Ledger({"dram": 1000})))
    with pytest.raises(BudgetError):
        small.put("a", store, range(80))
    assert small.names == []
    with pytest.raises(ParameterError):
        Parking(DramTier(Ledger({"dram": 1000})), bits=3)
