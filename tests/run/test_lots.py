"""Lots: rows of several stores in one pass, and prompts that go through the layers in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.errors import ContextError
from loci.models.pack import Pack
from loci.run.kvstore import KVStore
from loci.run.runner import Lot, Runner
from loci.run.weights import ResidentWeights, StreamedWeights, execution_order
from loci.testing.models import tiny_pack

LIMITS = {"dram": 2**30}
LENGTHS = (5, 30, 17, 1)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("pack"), layers=5)


def ids_of(pack: Pack, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, pack.spec.vocab, (1, count), generator=generator)


def runner_of(pack: Pack, way: str) -> Runner:
    ledger = Ledger(LIMITS)
    if way == "streamed":
        weights: object = StreamedWeights(pack, ledger, pinned=execution_order(pack)[:2], window=2)
    else:
        weights = ResidentWeights(pack, ledger)
    return Runner(
        pack.spec,
        weights,  # type: ignore[arg-type]
        ledger,
        chunk=32,
        batch=4,
        rows=32,
        kernels=way != "torch",
    )


def stores_of(pack: Pack, runner: Runner) -> list[KVStore]:
    """Return stores that hold as many tokens as `LENGTHS` says."""
    stores = []
    for seed, length in enumerate(LENGTHS):
        store = KVStore(pack.spec, max_tokens=128, chunk=32)
        runner.forward(ids_of(pack, length, seed), store, logits=None)
        stores.append(store)
    return stores


def states(pack: Pack, lot: Lot) -> Lot:
    lot.hidden_Nd = torch.empty(lot.ids_ST.numel(), pack.spec.hidden)
    return lot


@pytest.mark.parametrize("way", ["native", "torch", "streamed"])
def test_rows_of_unlike_length_say_together_what_they_say_alone(pack: Pack, way: str) -> None:
    runner = runner_of(pack, way)
    alone, together = stores_of(pack, runner), stores_of(pack, runner)
    ids_S1 = torch.tensor([[7], [70], [107], [200]])
    expected = [
        runner.forward(ids_S1[i : i + 1], store).clone()  # type: ignore[union-attr]
        for i, store in enumerate(alone)
    ]
    found: list[Tensor] = []
    lot = Lot(stores=together, ids_ST=ids_S1, layers=(0, pack.spec.layers))
    if way != "native":
        states(pack, lot)
    runner.run([lot], lambda _, logits_SV: found.append(logits_SV.clone()))
    assert (found[0] - torch.cat(expected)).abs().max() < TOLERANCE
    assert [store.length for store in together] == [length + 1 for length in LENGTHS]
    for one, other in zip(alone, together, strict=True):
        a, b = (store.view(3).dense() for store in (one, other))
        assert (a.keys - b.keys).abs().max() < TOLERANCE
    runner.weights.release()


@pytest.mark.parametrize("way", ["native", "torch", "streamed"])
def test_what_decodes_and_a_prompt_share_one_pass(pack: Pack, way: str) -> None:
    runner = runner_of(pack, way)
    store = KVStore(pack.spec, max_tokens=128, chunk=32)
    ids = ids_of(pack, 20, 9)
    expected = [runner.forward(ids, store).clone()]  # type: ignore[union-attr]
    alone, together = (stores_of(pack, runner)[:2] for _ in range(2))
    for row, other in enumerate(alone):
        expected.append(runner.forward(torch.tensor([[row]]), other).clone())  # type: ignore[union-attr]
    found: dict[int, Tensor] = {}
    fresh = KVStore(pack.spec, max_tokens=128, chunk=32)
    whole = (0, pack.spec.layers)
    lots = [
        states(pack, Lot(stores=together, ids_ST=torch.tensor([[0], [1]]), layers=whole)),
        states(pack, Lot(stores=[fresh], ids_ST=ids, layers=whole)),
    ]
    before = runner.weights.moved().get(("disk", "dram"), 0)
    runner.run(lots, lambda lot, logits: found.update({lots.index(lot): logits.clone()}))
    read = runner.weights.moved().get(("disk", "dram"), 0) - before
    assert (found[1] - expected[0]).abs().max() < TOLERANCE
    assert (found[0] - torch.cat(expected[1:])).abs().max() < TOLERANCE
    if way == "streamed":  # the weights came once, for all of them
        store_bytes = pack.store.stored_bytes
        one_pass = sum(store_bytes(name) for name in execution_order(pack)[2:])
        assert one_pass <= read < 1.1 * one_pass
    runner.weights.release()


@pytest.mark.parametrize(("way", "tokens"), [("native", 20), ("native", 90), ("torch", 20)])
def test_a_prompt_in_groups_of_layers_is_the_prompt(pack: Pack, way: str, tokens: int) -> None:
    runner = runner_of(pack, way)
    ids = ids_of(pack, tokens, 4)
    store = KVStore(pack.spec, max_tokens=128, chunk=32)
    expected = None
    for start in range(0, tokens, 32):
        expected = runner.forward(ids[:, start : start + 32], store)
    assert expected is not None
    expected = expected.clone()
    fresh, found = KVStore(pack.spec, max_tokens=128, chunk=32), []
    hidden_Nd = torch.empty(tokens, pack.spec.hidden)
    others = stores_of(pack, runner)[:1]
    for layers in ((0, 2), (2, 3), (3, 5)):
        lots = [
            Lot(stores=[fresh], ids_ST=ids, layers=layers, hidden_Nd=hidden_Nd),
            states(pack, Lot(stores=others, ids_ST=torch.tensor([[1]]), layers=(0, 5))),
        ]
        assert fresh.length == 0
        runner.run(
            lots, lambda lot, logits: found.append(logits.clone()) if lot.layers[0] else None
        )
    assert fresh.length == tokens and others[0].length == LENGTHS[0] + 3
    (logits_1V,) = found
    assert (logits_1V - expected).abs().max() < TOLERANCE


def test_a_store_that_is_full_is_named(pack: Pack) -> None:
    runner = runner_of(pack, "native")
    store = KVStore(pack.spec, max_tokens=4, chunk=4)
    lot = Lot(stores=[store], ids_ST=ids_of(pack, 5, 0), layers=(0, 5))
    with pytest.raises(ContextError, match="do not fit"):
        runner.run([lot], lambda *_: None)
    assert store.length == 0
