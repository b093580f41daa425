"""Adapters at hand: one at work, changed by a pointer, never mixed with another's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Generator

from loci.core.ledger import Ledger
from loci.core.spec import ModelSpec
from loci.errors import BudgetError, FingerprintError, FormatError, NotFoundError, ParameterError
from loci.models.pack import Pack
from loci.nn.patch import Patch
from loci.plan import plan
from loci.run import adapters as bank
from loci.run.adapters import Adapter, Adapters
from loci.run.engine import Session
from loci.run.engine import open as open_session
from loci.run.kvstore import KVStore
from loci.run.lab import NO_LIMIT
from loci.run.runner import Runner
from loci.run.weights import ResidentWeights
from loci.store.shelf import Shelf
from loci.testing.models import tiny_pack

SIZES = {"max_context": 256, "vocab": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    tiny_pack(made / "tiny", **SIZES).close()
    return made


@pytest.fixture
def pack(folder: Path) -> Iterator[Pack]:
    from loci.models.pack import open_pack

    with open_pack(folder / "tiny") as opened:
        yield opened


def patch_of(spec: ModelSpec, seed: int = 0, rank: int = 3, size: float = 0.3) -> Patch:
    draw = Generator().manual_seed(seed)
    shapes = spec.layer_linears()
    return Patch(
        {
            f"layer.{layer}.{name}": (
                size * torch.randn(shapes[name][0], rank, generator=draw),
                size * torch.randn(rank, shapes[name][1], generator=draw),
            )
            for layer, name in ((0, "q_proj"), (1, "v_proj"), (1, "down_proj"))
        }
    )


def dense_logits(pack: Pack, patch: Patch | None, ids: list[int]) -> torch.Tensor:
    """Return logits of a model whose weights have the patch in them."""
    from loci.nn.decoder import decode
    from loci.run.calibrate import PackWeights

    weights = PackWeights(pack)

    def multiply(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = weights(name)
        dense = weight.float() if isinstance(weight, torch.Tensor) else weight.dense()
        if patch is not None and name in patch.parts:
            dense = dense + patch.delta(name)
        return x @ dense.t()

    hidden = decode(pack.spec, pack.embed_rows(ids)[None], multiply, weights.vector)
    return hidden[0] @ weights.table("head").t()


def runner_of(pack: Pack, ledger: Ledger) -> tuple[Runner, ResidentWeights]:
    weights = ResidentWeights(pack, ledger)
    return Runner(pack.spec, weights, ledger, chunk=32), weights


def logits_of(pack: Pack, runner: Runner, ledger: Ledger, ids: list[int]) -> torch.Tensor:
    store = KVStore(pack.spec, (), max_tokens=64, dtype=torch.float32, chunk=32, ledger=ledger)
    try:
        found = runner.forward(torch.tensor([ids]), store)
        assert found is not None
        return found[0].clone()
    finally:
        store.release()


def test_each_answers_as_a_model_with_it_in_its_weights(pack: Pack) -> None:
    ledger = Ledger(NO_LIMIT)
    runner, weights = runner_of(pack, ledger)
    ids = [5, 100, 7, 30]
    before, used = logits_of(pack, runner, ledger, ids), ledger.used("dram")
    held = Adapters(runner, lambda: weights, pack.spec, ledger)
    patches = {name: patch_of(pack.spec, seed) for seed, name in enumerate(("one", "two"))}
    for name, patch in patches.items():
        held.load(Adapter(name=name, patch=patch, base=pack.spec.fingerprint))
    assert held.names() == ["one", "two"] and held.reader == ""
    assert ledger.used("dram") == used + held.nbytes
    readers = set()
    for name in ("two", "one", "two"):
        held.use(name)
        found = logits_of(pack, runner, ledger, ids)
        assert torch.allclose(found, dense_logits(pack, patches[name], ids)[-1], atol=1e-4)
        readers.add(held.reader)
    assert len(readers) == 2
    held.none()
    assert torch.equal(logits_of(pack, runner, ledger, ids), before)
    held.use("one")
    held.drop("one")
    assert held.active is None and torch.equal(logits_of(pack, runner, ledger, ids), before)
    held.close()
    assert ledger.used("dram") == used
    runner.release()
    weights.release()


def test_switching_lays_nothing_out(pack: Pack) -> None:
    ledger = Ledger(NO_LIMIT)
    runner, weights = runner_of(pack, ledger)
    held = Adapters(runner, lambda: weights, pack.spec, ledger)
    held.load(Adapter(name="one", patch=patch_of(pack.spec)))
    used = ledger.used("dram")
    for name in ("one", None) * 50:
        held.use(name)
        assert ledger.used("dram") == used
    held.close()
    runner.release()
    weights.release()


def test_what_does_not_fit_is_refused_and_nothing_changes(pack: Pack) -> None:
    ledger = Ledger(NO_LIMIT)
    runner, weights = runner_of(pack, ledger)
    held = Adapters(runner, lambda: weights, pack.spec, ledger)
    fine = patch_of(pack.spec)
    with pytest.raises(FingerprintError, match="another model"):
        held.load(Adapter(name="one", patch=fine, base="blake2b:0"))
    with pytest.raises(FormatError, match="does not have"):
        held.load(
            Adapter(name="one", patch=Patch({"layer.9.q_proj": fine.parts["layer.0.q_proj"]}))
        )
    with pytest.raises(NotFoundError, match="at hand"):
        held.use("one")
    held.load(Adapter(name="one", patch=fine))
    with pytest.raises(ParameterError, match="of this name"):
        held.load(Adapter(name="one", patch=fine))
    with pytest.raises(NotFoundError, match="did you mean 'one'"):
        held.use("ono")
    assert held.names() == ["one"] and held.active is None
    held.close()
    runner.release()
    weights.release()
    small = Ledger({"dram": pack.total_bytes + 10**6})
    runner, weights = runner_of(pack, small)
    held = Adapters(runner, lambda: weights, pack.spec, small)
    with pytest.raises(BudgetError):
        held.load(Adapter(name="big", patch=patch_of(pack.spec, rank=4000)))
    assert held.names() == []
    runner.release()
    weights.release()


def session_of(folder: Path, adapter: Adapter | None = None, **given: object) -> Session:
    made = plan("tiny", dram="8MiB", disk=0, context=128, folder=folder, cache=folder / ".cache")
    return open_session(made, folder=folder, adapter=adapter, **given)  # type: ignore[arg-type]


def said(session: Session, text: str = "Tell me") -> str:
    return "".join(session.generate(text, max_tokens=8))


def test_a_cache_read_with_another_adapter_is_never_reused(folder: Path, pack: Pack) -> None:
    adapter = Adapter(name="one", patch=patch_of(pack.spec, size=0.5))
    with session_of(folder, adapter) as session:
        alone = said(session)
        first = session.report()
        assert first["adapter"] == "one"
        held = first["bytes"]
    with session_of(folder) as session:
        plain = said(session)
        assert session.report()["adapter"] is None
        without = session.report()["bytes"]
        for what in ("measured", "predicted", "ledger"):
            assert held[what]["dram"] - without[what]["dram"] == 4 * 1152  # numbers of the patch
        assert said(session) == plain and session.stats.reused_tokens > 0
        session.adapters.load(adapter)
        session.use("one")
        assert said(session) == alone and session.stats.reused_tokens == 0
        assert said(session) == alone and session.stats.reused_tokens > 0
        session.use(None)
        assert said(session) == plain and session.stats.reused_tokens == 0
        assert session.kv_form().adapter is None
    assert alone != plain


def test_an_answer_on_its_way_leaves_no_mixed_cache(folder: Path, pack: Pack) -> None:
    adapter = Adapter(name="one", patch=patch_of(pack.spec, size=0.5))
    with session_of(folder) as session:
        plain = said(session)
        session.adapters.load(adapter)
        pieces = session.generate("Tell me", max_tokens=8)
        next(pieces)
        session.use("one")
        list(pieces)
        session.use(None)
        assert said(session) == plain


def test_adapters_are_cubes_on_a_shelf(pack: Pack, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "a.db.cubes")
    adapter = Adapter(name="ada", patch=patch_of(pack.spec), base=pack.spec.fingerprint)
    header, payload = bank.cube_of(adapter, parents=("i1",), facts={"items": ["i1"]})
    shelf.put(header, payload)
    for name in ("ada", header.id, shelf.path(header.id)):
        found = bank.find(name, pack.spec, shelf)
        assert found.patch.fingerprint == adapter.patch.fingerprint
        assert (found.name, found.base, found.id) == ("ada", pack.spec.fingerprint, header.id)
    assert shelf.header(header.id).usage.reads == 2 and payload.facts["rank"] == 3
    with pytest.raises(NotFoundError, match="did you mean 'ada'"):
        bank.find("adaa", pack.spec, shelf)
    shelf.retire(header.id)
    with pytest.raises(FormatError, match="holds no adapter"):
        bank.find(header.id, pack.spec, shelf)


def test_weights_read_from_disk_take_an_adapter_too(folder: Path, pack: Pack) -> None:
    adapter = Adapter(name="one", patch=patch_of(pack.spec, size=0.5))
    with session_of(folder, adapter) as session:
        expected = said(session)
    sizes = {"dram": "8MiB", "disk": "8MiB", "weights": 55_000, "context": 128}
    made = plan("tiny", **sizes, folder=folder, cache=folder / "c")  # type: ignore[arg-type]
    assert made.weights == "streamed"
    with open_session(made, folder=folder, adapter=adapter) as session:
        assert said(session) == expected
        session.use(None)
        assert said(session) != expected


def test_weights_that_change_their_size_keep_the_adapter(folder: Path, pack: Pack) -> None:
    adapter = Adapter(name="one", patch=patch_of(pack.spec, size=0.5))
    with session_of(folder, adapter) as session:
        expected = said(session)
        whole = session.plan.held("weights")
        session.resize(whole * 9 // 10)
        said(session)
        assert session.adapters.active == "one" and session.plan.weights == "stacked"
        assert session.resize(whole) == whole
        session.use(None)
        session.use("one")
        assert said(session) == expected
