"""Whole forwards by the native kernels against the same forwards in plain torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from loci.core.ledger import Ledger
from loci.core.work import decoder_work
from loci.errors import ContextError, ModelError, ParameterError
from loci.methods import catalogue
from loci.models.pack import Pack, open_pack
from loci.nn import native
from loci.run.kvstore import KVStore
from loci.run.runner import Runner
from loci.run.weights import RepackedWeights, ResidentWeights, StreamedWeights, WeightSource
from loci.testing.models import RoundToGrid, tiny_pack, tiny_spec

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "")

LIMITS = {"dram": 2**31, "disk": 2**31}
TOLERANCE = 2e-5
MODELS: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3"},
    "mistral": {"architecture": "mistral", "window": 11},
    "gemma": {"architecture": "gemma", "head_dim": 32, "kv_heads": 1},
    "untied": {"tied": False, "vocab": 333, "layers": 3},
}


@contextmanager
def running(
    pack: Pack,
    kernels: bool,
    *,
    batch: int = 1,
    chunk: int = 32,
    chain: str = "",
    weights: WeightSource | None = None,
    **arguments: object,
) -> Iterator[tuple[Runner, KVStore]]:
    """Lend a runner and an empty store, their bytes under one ledger."""
    ledger = Ledger(LIMITS)
    source = weights or ResidentWeights(pack, ledger)
    methods = catalogue.parse_chain(chain, "kv") if chain else ()
    store = KVStore(
        pack.spec, methods, max_tokens=256, batch=batch, chunk=chunk, ledger=ledger, **arguments
    )
    runner = Runner(pack.spec, source, ledger, chunk=chunk, batch=batch, kernels=kernels)
    try:
        yield runner, store
    finally:
        runner.release()
        store.release()
        ledger.check_integrity()


def ids_of(pack: Pack, rows: int, tokens: int, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randint(0, pack.spec.vocab, (rows, tokens), generator=generator)


def logits_of(runner: Runner, store: KVStore, ids: Tensor, steps: list[int]) -> list[Tensor]:
    """Return all logits of ids read in steps of so many tokens."""
    found, start = [], 0
    for count in steps:
        part = runner.forward(ids[:, start : start + count], store, logits="all")
        assert part is not None
        found.append(part)
        start += count
    return found


def check_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bits", [4, 8, 3, None])
@pytest.mark.parametrize("model", MODELS)
def test_every_architecture(
    tmp_path: Path, model: str, bits: int | None, dtype: torch.dtype
) -> None:
    pack = tiny_pack(tmp_path, bits=bits, **MODELS[model])
    ids, steps = ids_of(pack, 1, 71), [20, 1, 1, 16, 17, 1, 15]  # few rows and many, in turns
    with running(pack, True, dtype=dtype) as (runner, store):
        assert runner.is_whole
        found = logits_of(runner, store, ids, steps)
    with running(pack, False, dtype=dtype) as (runner, store):
        assert not runner.is_whole
        expected = logits_of(runner, store, ids, steps)
    if dtype == torch.float16:  # a rounded key may fall to the other side
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() <= 2e-3 * theirs.abs().max()
    else:
        check_same(found, expected)


@pytest.mark.parametrize("level", native.levels() if native.available() else [])
def test_every_set_of_instructions(tmp_path: Path, level: str) -> None:
    pack = tiny_pack(tmp_path, architecture="qwen2", window=9)
    ids, steps = ids_of(pack, 2, 60), [30, 1, 28, 1]
    with native.force_simd(level), running(pack, True, batch=2) as (runner, store):
        assert runner.is_whole
        found = logits_of(runner, store, ids, steps)
    with running(pack, False, batch=2) as (runner, store):
        expected = logits_of(runner, store, ids, steps)
    check_same(found, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bytes_whatever_the_number_of_threads(tmp_path: Path, threads: int) -> None:
    pack = tiny_pack(tmp_path, vocab=700, hidden=128)
    ids, steps, before = ids_of(pack, 1, 200), [*[32] * 6, 1, 1, 1, 1, 1, 1, 1, 1], native.threads()
    results = []
    try:
        for count in (1, threads):
            native.set_threads(count)
            with running(pack, True) as (runner, store):
                results.append(logits_of(runner, store, ids, steps))
    finally:
        native.set_threads(before)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [2, 4, 16, 20])
def test_rows_that_advance_together(tmp_path: Path, rows: int) -> None:
    pack = tiny_pack(tmp_path)
    ids = ids_of(pack, rows, 40)
    with running(pack, True, batch=rows) as (runner, store):
        found = logits_of(runner, store, ids, [32, 1, 1, 6])
    for row in range(rows):
        with running(pack, True) as (runner, store):
            alone = logits_of(runner, store, ids[row : row + 1], [32, 1, 1, 6])
        check_same([part[row : row + 1] for part in found], alone)


def test_the_last_logits_are_those_of_all(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    ids = ids_of(pack, 3, 30)
    with running(pack, True, batch=3) as (runner, store):
        everything = runner.forward(ids, store, logits="all")
        store.crop(0)
        last = runner.forward(ids, store)
        store.crop(0)
        nothing = runner.forward(ids, store, logits=None)
    assert everything is not None and last is not None and nothing is None
    check_same([last], [everything[:, -1]])


@pytest.mark.parametrize(
    "chain", ["bfp(bits=8,block=16)", "bfp(bits=4,block=16)", "snapkv(window=4)", "streaming_llm"]
)
def test_stores_that_compress(tmp_path: Path, chain: str) -> None:
    """Half a layer natively, attention and store in between."""
    pack = tiny_pack(tmp_path)
    ids, steps = ids_of(pack, 1, 110), [32, 32, 32, 1, 1, 12]
    budget = None if "bfp" in chain else 60_000
    results = []
    for kernels in (True, False):
        with running(pack, kernels, chain=chain, budget_bytes=budget) as (runner, store):
            results.append(logits_of(runner, store, ids, steps))
    if "bfp" in chain:  # rounding to few bits may fall to the other side
        for ours, theirs in zip(*results, strict=True):
            assert (ours - theirs).abs().max() <= 0.05 * theirs.abs().max()
    else:
        check_same(*results)


def test_rows_padded_on_the_left(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    ids, pad = ids_of(pack, 2, 20), torch.tensor([0, 6])
    results = []
    for kernels in (True, False):
        with running(pack, kernels, batch=2) as (runner, store):
            parts = [runner.forward(ids, store, pad_B=pad)]
            parts = [part.clone() for part in parts if part is not None]
            for token in (1, 2):
                logits = runner.forward(torch.full((2, 1), token), store, pad_B=pad)
                assert logits is not None
                parts.append(logits.clone())
        results.append(parts)
    check_same(*results)


def test_layers_that_the_kernels_cannot_read(tmp_path: Path) -> None:
    """Every other layer has groups of four inputs, which the kernels leave to torch."""
    pack = tiny_pack(tmp_path, layers=4)

    def repack(name: str, weight: Tensor) -> object:
        odd = int(name.split(".")[1]) % 2
        return RoundToGrid(group=4 if odd else 32).pack_one(weight)

    results = []
    ids, steps = ids_of(pack, 1, 45), [32, 1, 1, 11]
    for kernels in (True, False):
        weights = RepackedWeights(pack, repack, Ledger(LIMITS))  # type: ignore[arg-type]
        with running(pack, kernels, weights=weights) as (runner, store):
            assert not runner.is_whole
            results.append(logits_of(runner, store, ids, steps))
    check_same(*results)


def test_streamed_layers_equal_resident_ones_to_the_bit(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, layers=5)
    ids, steps = ids_of(pack, 1, 60), [32, 1, 1, 20, 6]
    with running(pack, True) as (runner, store):
        expected = logits_of(runner, store, ids, steps)
    unmapped = open_pack(pack.path, mapped=False)
    source = StreamedWeights(unmapped, Ledger(LIMITS), pinned=(), window=2)
    with running(unmapped, True, weights=source) as (runner, store):
        assert not runner.is_whole
        found = logits_of(runner, store, ids, steps)
    source.release()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_forward_into_the_middle_of_a_store(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    ids = ids_of(pack, 1, 40)
    with running(pack, True) as (runner, store):
        logits_of(runner, store, ids, [30])
        store.crop(12)
        found = logits_of(runner, store, ids[:, 12:], [5, 1])
        held = [store.held_tokens(layer) for layer in range(pack.spec.layers)]
    assert held == [18, 18]
    with running(pack, False) as (runner, store):
        logits_of(runner, store, ids, [12])
        expected = logits_of(runner, store, ids[:, 12:], [5, 1])
    check_same(found, expected)


def test_bad_tokens_and_full_stores_change_nothing(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path)
    with running(pack, True) as (runner, store):
        runner.forward(ids_of(pack, 1, 8), store)
        for bad in (-1, pack.spec.vocab):
            with pytest.raises(ParameterError, match="no such token"):
                runner.forward(torch.tensor([[3, bad]]), store)
        with pytest.raises(ParameterError, match="unknown logits"):
            runner.forward(torch.tensor([[3]]), store, logits="first")
        assert store.length == 8
        for _ in range(7):
            runner.forward(ids_of(pack, 1, 32), store)
        with pytest.raises(ContextError, match="--context"):
            runner.forward(ids_of(pack, 1, 25), store)
        assert store.length == 232


def test_keys_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, bits=None)
    block = dict(pack.block("layer.1"))
    weights = ResidentWeights(pack, Ledger(LIMITS))
    broken = block["k_proj"].clone()  # type: ignore[union-attr]
    broken[3, 5] = float("nan")
    weights._layers[1] = block | {"k_proj": broken}
    with running(pack, True, weights=weights) as (runner, store):
        with pytest.raises(ModelError, match="layer 1 are not finite"):
            runner.forward(ids_of(pack, 1, 20), store)
        assert store.length == 0


def test_work_buffers_have_room_for_the_kernels() -> None:
    # The table is arithmetic and knows no kernel; what the kernels ask for must fit into it.
    shapes = [{}, {"head_dim": 128, "heads": 32, "kv_heads": 4, "hidden": 4096, "ffn": 14336}]
    shapes += [{"head_dim": 256, "heads": 8, "kv_heads": 1, "hidden": 2048, "ffn": 16384}]
    shapes += [{"head_dim": 80, "heads": 32, "kv_heads": 32, "hidden": 2560, "ffn": 10240}]
    for shape in shapes:
        spec = tiny_spec(**shape)
        tile = decoder_work(spec, 32)["tile"][0][0]
        for level in native.levels():
            with native.force_simd(level):
                assert native.decoder_floats(spec) <= tile
