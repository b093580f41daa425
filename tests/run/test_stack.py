"""Stacks: weights that grow and shrink under a running model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from loci.core.holder import Holder
from loci.core.ledger import Ledger
from loci.errors import BudgetError, FingerprintError, FormatError, ParameterError
from loci.methods.quant.any_precision import AnyPrecision
from loci.methods.quant.base import Nested
from loci.methods.quant.bipolar_int import BipolarInt
from loci.methods.quant.bitstack import BitStack
from loci.models.pack import Pack
from loci.models.stack import StackTable, table_of
from loci.run.calibrate import Calibration, calibration_ids, statistics, walk
from loci.run.kvstore import KVStore
from loci.run.runner import Runner
from loci.run.stack import StackedWeights
from loci.run.stack_build import prepare_stack
from loci.testing.models import tiny_pack
from loci.tiers import blocks

LIMIT = 2**28
METHODS = {
    "bitstack": BitStack(blocks=4),
    "bipolar_int": BipolarInt(group=32, least=3),
    "any_precision": AnyPrecision(group=32, bits=5),
}


def texts(pack: Pack, count: int = 4, length: int = 32) -> Tensor:
    generator = Generator().manual_seed(0)
    return torch.randint(0, pack.spec.vocab, (count, length), generator=generator)


@pytest.fixture(scope="module", params=sorted(METHODS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Yield (pack, method, path, table) of a small model that was made into a stack."""
    folder = tmp_path_factory.mktemp(request.param)
    with tiny_pack(folder, bits=None, tied=request.param == "bitstack") as pack:
        method = METHODS[request.param]
        path = prepare_stack(pack, method, ids_ST=texts(pack))
        table = table_of(path, method=str(method), fingerprint=pack.spec.fingerprint)
        yield pack, method, path, table


def opened(pack: Pack, method: Nested, path: Path, budget: int) -> StackedWeights:
    return StackedWeights(path, method, pack.spec, Ledger({"dram": LIMIT}), budget_bytes=budget)


def logits(pack: Pack, weights: StackedWeights) -> Tensor:
    ledger = Ledger({"dram": LIMIT})
    store = KVStore(pack.spec, max_tokens=16, chunk=16, ledger=ledger)
    runner = Runner(pack.spec, weights, ledger, chunk=16)
    found = runner.forward(texts(pack, 1, 16), store, logits="all")
    assert found is not None
    return found


def state(weights: StackedWeights) -> dict[str, Tensor]:
    """Return a copy of every stored tensor."""
    return {
        f"{name}/{key}": tensor.clone()
        for name, form in weights._forms.items()
        for key, tensor in form.tensors().items()
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_every_budget_is_met_within_one_block_and_counted_to_the_byte(made) -> None:
    pack, method, path, table = made
    largest = max(b - a for a, b in itertools.pairwise(table.sizes))
    for share in range(13):
        budget = table.least_bytes + (table.sizes[-1] - table.sizes[0]) * share // 12
        weights = opened(pack, method, path, budget)
        held = weights.nbytes()["dram"]
        assert budget - largest < held <= budget
        assert held == table.held_bytes(budget) == weights._lease.nbytes
        weights.release()


def test_shrinking_and_growing_again_is_bit_identical(made) -> None:
    pack, method, path, table = made
    full = table.sizes[-1] + table.buffer_bytes
    weights = opened(pack, method, path, full)
    assert isinstance(weights, Holder)
    before, said = state(weights), logits(pack, weights)
    weights.resize(table.least_bytes)
    assert weights.nbytes()["dram"] == table.least_bytes
    assert not torch.allclose(logits(pack, weights), said)
    weights.resize(full)
    assert same(state(weights), before)
    assert torch.equal(logits(pack, weights), said)
    fresh = opened(pack, method, path, table.least_bytes)
    weights.resize(table.least_bytes)
    assert same(state(weights), state(fresh))
    weights.release()
    fresh.release()


def test_a_change_reads_no_more_than_what_it_adds(made) -> None:
    pack, method, path, table = made
    weights = opened(pack, method, path, table.least_bytes)
    middle = (table.sizes[0] + table.sizes[-1]) // 2 + table.buffer_bytes
    for budget in (middle, table.sizes[-1] + table.buffer_bytes):
        before, moved = weights.nbytes()["dram"], weights.moved()["disk", "dram"]
        after = weights.resize(budget)
        count = sum(before < size + table.buffer_bytes <= after for size in table.sizes)
        padding = count * 4096  # every block is whole pages on the disk
        assert 0 < weights.moved()["disk", "dram"] - moved <= after - before + padding
    moved = weights.moved()
    weights.resize(table.least_bytes)
    assert weights.moved() == moved  # letting go reads nothing
    weights.release()


def test_offers_one_option_a_block_and_takes_it_back(made) -> None:
    pack, method, path, table = made
    weights = opened(pack, method, path, table.sizes[-1] + table.buffer_bytes)
    options = weights.shrink_options()
    assert len(options) == len(table.order)
    assert sum(o.bytes_freed for o in options) == table.sizes[-1] - table.sizes[0]
    assert all(o.loss is not None and o.loss >= 0 for o in options)
    before, held = state(weights), weights.nbytes()["dram"]
    undo = weights.apply(options[0])
    assert weights.nbytes()["dram"] == held - options[0].bytes_freed == weights._lease.nbytes
    with pytest.raises(ParameterError, match="cannot be dropped now"):
        weights.apply(options[0])
    undo()
    assert same(state(weights), before) and weights.nbytes()["dram"] == held
    with pytest.raises(ParameterError, match="cannot come back"):
        undo()
    for option in options:
        weights.apply(option)
    assert weights.nbytes()["dram"] == table.least_bytes and not weights.shrink_options()
    weights.release()


def test_more_bytes_lose_less(made) -> None:
    *_, table = made
    losses = [kl for _, kl, _ in table.curve]
    assert len(losses) >= 3
    # The model is random and the estimate rough, so a few per cent up are no surprise.
    assert all(b <= 1.05 * a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]
    assert table.loss(table.curve[0][0] - 5) == losses[0]
    middle = (table.curve[0][0] + table.curve[1][0]) // 2
    assert losses[1] <= table.loss(middle) <= losses[0]


def test_a_budget_below_the_smallest_is_refused_and_changes_nothing(made) -> None:
    pack, method, path, table = made
    ledger = Ledger({"dram": LIMIT})
    with pytest.raises(BudgetError, match=r"at least .*short\)\n.*--weights \d+MiB"):
        StackedWeights(path, method, pack.spec, ledger, budget_bytes=table.least_bytes - 1)
    assert ledger.used("dram") == 0
    weights = opened(pack, method, path, table.sizes[3] + table.buffer_bytes)
    before = state(weights)
    with pytest.raises(BudgetError, match="short"):
        weights.resize(1000)
    assert same(state(weights), before)
    weights.release()


def test_no_room_to_grow_changes_nothing(made) -> None:
    pack, method, path, table = made
    ledger = Ledger({"dram": table.least_bytes + 10})
    weights = StackedWeights(path, method, pack.spec, ledger, budget_bytes=table.least_bytes)
    with pytest.raises(BudgetError):
        weights.resize(table.sizes[-1] + table.buffer_bytes)
    assert weights.nbytes()["dram"] == table.least_bytes == ledger.used("dram")
    weights.release()
    assert ledger.used("dram") == 0
    ledger.check_integrity()


def test_a_stack_of_another_model_method_or_version_is_refused(made, tmp_path: Path) -> None:
    pack, method, path, _ = made
    for other in ({"method": "bitstack(blocks=3)", "fingerprint": pack.spec.fingerprint},
                  {"method": str(method), "fingerprint": "blake2b:0"}):  # fmt: skip
        with pytest.raises(FingerprintError, match="made for something else"):
            table_of(path, **other)
    with blocks.BlockWriter(tmp_path / "new.loci", {"format": "loci-stack", "version": 2}):
        pass
    with pytest.raises(FormatError, match="no stack of this version"):
        table_of(tmp_path / "new.loci", method="x", fingerprint="y")
    cut = tmp_path / "cut.loci"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="cut short"):
        table_of(cut, method=str(method), fingerprint=pack.spec.fingerprint)


class Stopped(Exception):
    pass


def test_a_build_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    method, work = BitStack(blocks=2), []

    def stop(what: str, done: int, total: int) -> None:
        work.append(what)
        if what == "taking weights apart" and done == 5:
            raise Stopped

    with tiny_pack(tmp_path, bits=None) as pack:
        with pytest.raises(Stopped):
            prepare_stack(pack, method, ids_ST=texts(pack), progress=stop)
        assert not list(tmp_path.glob("bitstack-*.loci"))  # nothing half written
        assert len(list(tmp_path.glob(".*.parts/*.safetensors"))) == 5
        later: list[str] = []
        resumed = prepare_stack(
            pack, method, ids_ST=texts(pack), progress=lambda what, *_: later.append(what)
        )
        assert "looking at what matters" in work and "looking at what matters" not in later
        assert not list(tmp_path.glob(".*.parts"))
        first = blocks.BlockStore(resumed)
        sums = {name: first.place(name).checksum for name in first.names()}
        resumed.unlink()
        again = prepare_stack(pack, method, ids_ST=texts(pack))
        second = blocks.BlockStore(again)  # made in one go
        assert {name: second.place(name).checksum for name in second.names()} == sums
        assert second.header["order"] == first.header["order"]
        assert second.header["parts"] == first.header["parts"]
        before = again.stat().st_mtime_ns
        assert prepare_stack(pack, method, ids_ST=texts(pack)) == again
        assert again.stat().st_mtime_ns == before


def test_sorted_beats_random_and_deep_first_is_the_papers(tmp_path: Path) -> None:
    found: dict[str, StackTable] = {}
    with tiny_pack(tmp_path, bits=None, layers=3) as pack:
        for sort in ("gain", "random"):
            method = BitStack(blocks=3, sort=sort)
            path = prepare_stack(pack, method, ids_ST=texts(pack))
            found[sort] = table_of(path, method=str(method), fingerprint=pack.spec.fingerprint)
    middle = len(found["gain"].curve) // 2
    assert found["gain"].curve[middle][1] < found["random"].curve[middle][1]


def test_statistics_are_what_flows_through(tmp_path: Path) -> None:
    with tiny_pack(tmp_path, bits=None) as pack:
        found = statistics(pack, texts(pack, 2, 16))
        assert isinstance(found, Calibration)
        names = [f"layer.{i}.{n}" for i in range(2) for n in pack.spec.layer_linears()]
        assert sorted(found.linears) == sorted(names)
        seen = {}
        walk(pack, texts(pack, 2, 16), lambda name, w, s: seen.setdefault(name, s) and w_form(w))
        for name in names:  # nothing was changed on the way, so both see the same
            torch.testing.assert_close(
                seen[name].squares_K, found.linears[name].squares_K, rtol=0.1, atol=0.1
            )
        assert found.linears[names[0]].slopes_N is not None
        assert found.head.slopes_N.sum() <= 1 and found.embed.slopes_N.sum() == pytest.approx(1)


def w_form(weight: Tensor):  # a packed form that changes nothing to speak of
    from loci.methods.quant.groupwise import Groupwise

    return Groupwise(bits=8, group=8, scale_bits=32).pack_one(weight)


def test_the_estimated_loss_is_about_the_measured_one(tmp_path: Path) -> None:
    from loci.methods.quant.groupwise import Groupwise
    from loci.run.calibrate import kl_of

    with tiny_pack(tmp_path, bits=None) as pack:
        ids = texts(pack, 8, 64)
        found = statistics(pack, ids)
        for name in ("layer.0.v_proj", "layer.1.down_proj"):
            block, _, tensor = name.rpartition(".")
            weight = pack.block(block)[tensor]
            assert isinstance(weight, Tensor)
            form = Groupwise(bits=4).pack_one(weight)
            estimate = found.linears[name].loss(weight - form.dense())
            measured = kl_of(pack, ids, {name: form})
            assert 0.4 < estimate / measured < 2.5, (name, estimate, measured)


def test_a_calibration_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    from loci.models.tokenizer import Tokenizer

    with tiny_pack(tmp_path) as pack:
        tokenizer = Tokenizer(pack.folder)
        with pytest.raises(ParameterError, match="the calibration text has 12 tokens"):
            calibration_ids(tokenizer, texts=4, length=8, source="twelve bytes")
        ids = calibration_ids(tokenizer, texts=3, length=4, source="twelve bytes")
        assert ids.shape == (3, 4)
