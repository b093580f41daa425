"""The runner against transformers' own forward, for every architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.errors import ContextError, ParameterError
from loci.models.load import resolve
from loci.models.pack import Pack, open_pack
from loci.nn import native
from loci.nn.decoder import decode
from loci.nn.form import Form
from loci.run.kvstore import KVStore
from loci.run.prefill import Prefiller
from loci.run.runner import Runner
from loci.run.weights import (
    RepackedWeights,
    ResidentWeights,
    StreamedWeights,
    WeightSource,
    execution_order,
    head_names,
)
from loci.testing.models import tiny_pack, tiny_pair

LIMITS = {"dram": 2**30}
TOLERANCE = 1e-4


@contextmanager
def reading(
    pack: Pack, weights: WeightSource, *, chunk: int = 16, batch: int = 1, tokens: int = 96
) -> Iterator[Prefiller]:
    ledger = Ledger(LIMITS)
    store = KVStore(pack.spec, max_tokens=tokens, batch=batch, chunk=chunk, ledger=ledger)
    runner = Runner(pack.spec, weights, ledger, chunk=chunk, batch=batch)
    yield Prefiller(runner, store)
    runner.release()
    store.release()
    ledger.check_integrity()
    assert ledger.used("dram") == 0


def ids_of(pack: Pack, count: int, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, pack.spec.vocab, (batch, count), generator=generator)


@pytest.mark.parametrize("bits", [4, None])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_agrees_with_transformers(tmp_path: Path, architecture: str, bits: int | None) -> None:
    pack, model = tiny_pair(tmp_path, bits=bits, architecture=architecture)
    ids = ids_of(pack, 40)
    with torch.inference_mode():
        expected = model(ids).logits
    with reading(pack, ResidentWeights(pack, Ledger(LIMITS)), chunk=40) as prefiller:
        found = prefiller.runner.forward(ids, prefiller.store, logits="all")
    assert found is not None
    assert (found - expected).abs().max() < TOLERANCE


def test_chunks_and_single_tokens_give_what_one_pass_gives(tmp_path: Path) -> None:
    pack, model = tiny_pair(tmp_path)
    ids = ids_of(pack, 40)
    with torch.inference_mode():
        expected = model(ids).logits[0]
    with reading(pack, ResidentWeights(pack, Ledger(LIMITS)), chunk=7) as prefiller:
        first = prefiller.read(ids[0, :30].tolist())
        assert (first[0] - expected[29]).abs().max() < TOLERANCE
        for at in range(30, 40):
            logits = prefiller.runner.forward(ids[:, at : at + 1], prefiller.store)
            assert logits is not None
            assert (logits[0] - expected[at]).abs().max() < TOLERANCE


def test_rows_padded_on_the_left_equal_rows_alone(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    weights = ResidentWeights(pack, Ledger(LIMITS))
    long, short = ids_of(pack, 12, seed=1), ids_of(pack, 8, seed=2)
    with reading(pack, weights) as prefiller:
        alone = prefiller.read(short[0].tolist()).clone()
    both = torch.cat([long, torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1)])
    with reading(pack, weights, batch=2) as prefiller:
        store = prefiller.store
        logits = prefiller.runner.forward(both, store, pad_B=torch.tensor([0, 4]))
    assert logits is not None
    assert (logits[1] - alone[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("pinned", "window"), [(0, 2), (1, 2), (3, 2), (0, 3), (3, 3), (-1, 1), (99, 0)]
)
def test_streamed_weights_give_the_same_logits(tmp_path: Path, window: int, pinned: int) -> None:
    pack = tiny_pack(tmp_path, layers=5)
    ids = ids_of(pack, 30)[0].tolist()
    with reading(pack, ResidentWeights(pack, Ledger(LIMITS))) as prefiller:
        expected = [prefiller.read(ids).clone()]
        for token in (3, 5, 8):
            logits = prefiller.runner.forward(torch.tensor([[token]]), prefiller.store)
            assert logits is not None
            expected.append(logits.clone())
    unmapped = open_pack(pack.path, mapped=False)
    ledger = Ledger(LIMITS)
    source = StreamedWeights(
        unmapped, ledger, pinned=execution_order(unmapped)[:pinned], window=window
    )
    with reading(unmapped, source) as prefiller:
        found = [prefiller.read(ids).clone()]
        for token in (3, 5, 8):
            logits = prefiller.runner.forward(torch.tensor([[token]]), prefiller.store)
            assert logits is not None
            found.append(logits.clone())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    moved = source.moved()["disk", "dram"]
    streamed = execution_order(unmapped)[pinned:]
    once = sum(unmapped.store.nbytes(name) for name in streamed)
    assert moved >= 4 * once  # one prompt of two chunks and three tokens
    source.release()
    assert ledger.used("dram") == 0
    ledger.check_integrity()


def test_streaming_refuses_a_window_of_one(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    with pytest.raises(ParameterError, match="two blocks"):
        StreamedWeights(pack, Ledger(LIMITS), pinned=(), window=1)


def test_a_failing_disk_reaches_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tiny_pack(tmp_path)
    source = StreamedWeights(pack, Ledger(LIMITS), pinned=(), window=2)
    source.layer(0)

    def broken(*arguments: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(pack.store, "read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        for index in (1, 0, 1, 0, 1):
            source.layer(index)
    source.release()


def test_repacking_with_the_same_weights_changes_nothing(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    ids = ids_of(pack, 12)[0].tolist()
    with reading(pack, ResidentWeights(pack, Ledger(LIMITS))) as prefiller:
        expected = prefiller.read(ids).clone()
    repacked = RepackedWeights(pack, lambda name, weight: weight, Ledger(LIMITS))
    with reading(pack, repacked) as prefiller:
        found = prefiller.read(ids)
    assert (found - expected).abs().max() < TOLERANCE


def test_a_probe_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    weights = ResidentWeights(pack, Ledger(LIMITS))
    ids = ids_of(pack, 20)[0].tolist()
    with reading(pack, weights) as prefiller:
        expected = prefiller.read(ids).clone()
    with reading(pack, weights) as prefiller:
        prefiller.prefill(ids[:-1])
        layers = [seen.layer for seen in prefiller.probe([1, 2, 3])]
        assert layers == list(range(pack.spec.layers))
        found = prefiller.read(ids[-1:])
    assert (found - expected).abs().max() < 1e-5


def test_more_tokens_than_the_context_are_refused(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    with reading(pack, ResidentWeights(pack, Ledger(LIMITS)), tokens=16) as prefiller:
        prefiller.prefill(range(10))
        with pytest.raises(ContextError, match="--context"):
            prefiller.prefill(range(10))


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model_agrees_with_transformers(models_folder: Path) -> None:
    from loci.run.hf import model_of

    pack = resolve("smollm2", models_folder)
    ids = ids_of(pack, 64)
    model = model_of(pack)
    with torch.inference_mode():
        expected = model(ids).logits
    with reading(pack, ResidentWeights(pack, Ledger(LIMITS)), chunk=64) as prefiller:
        found = prefiller.runner.forward(ids, prefiller.store, logits="all")
    assert found is not None
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


def rounded(x_NK: Tensor) -> Tensor:
    """Return what rows are rounded to: whole numbers up to 127, every eight with a step."""
    eights = x_NK.view(x_NK.shape[0], -1, 8)
    largest = eights.abs().amax(-1, keepdim=True)
    numbers = (eights * torch.where(largest > 0, 127 / largest, 0)).round()
    return (numbers * (largest / 127)).view(x_NK.shape)


@pytest.mark.skipif(not native.available(), reason=native.why_not() or "")
def test_activations_of_8_bits_follow_the_oracle(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128)
    spec, ids = pack.spec, ids_of(pack, 12)
    blocks = [pack.block(f"layer.{index}") for index in range(spec.layers)]

    def weight(name: str) -> Tensor:
        _, index, tensor = name.split(".", 2)
        return dense(blocks[int(index)][tensor])

    def vector(name: str) -> Tensor | None:
        if name == "norm":
            return dense(next(iter(pack.block("norm").values())))
        _, index, tensor = name.split(".", 2)
        found = blocks[int(index)].get(tensor)
        return None if found is None else dense(found)

    embedded = torch.empty(12, spec.hidden)
    pack.embed_rows(ids[0], out=embedded)
    hidden = decode(spec, embedded[None], lambda at, x: rounded(x) @ weight(at).T, vector)
    head = torch.cat([dense(pack.block(name)["weight"]) for name in head_names(pack)])
    expected = rounded(hidden[0]) @ head.T
    ledger = Ledger(LIMITS)
    weights = ResidentWeights(pack, Ledger(LIMITS))
    store = KVStore(spec, max_tokens=96, chunk=32)
    runner = Runner(spec, weights, ledger, chunk=32, activation_bits=8)
    found = runner.forward(ids, store, logits="all")
    assert found is not None
    assert (found[0] - expected).abs().max() < 1e-4 * expected.abs().max()
    store.crop(0)
    long = ids_of(pack, 32)
    many = runner.forward(long, store, logits="all")  # prompts are read in float32
    with reading(pack, weights, chunk=32) as prefiller:
        exact = prefiller.runner.forward(long, prefiller.store, logits="all")
        few = prefiller.runner.forward(ids, prefiller.store, logits="all")
    assert many is not None and exact is not None and few is not None
    assert torch.equal(many, exact)
    assert not torch.equal(found[0], few[0])


def test_activations_of_other_widths_are_refused(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    weights = ResidentWeights(pack, Ledger(LIMITS))
    with pytest.raises(ParameterError, match="8, 32"):
        Runner(pack.spec, weights, Ledger(LIMITS), activation_bits=16)
    with pytest.raises(ParameterError, match="native kernels"):
        Runner(pack.spec, weights, Ledger(LIMITS), activation_bits=8, kernels=False)


def dense(weight: Form | Tensor) -> Tensor:
    return weight.float() if isinstance(weight, Tensor) else weight.dense()
