"""Decoding by kernels straight from stores that compress, against the store's own steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from loci.core.ledger import Ledger
from loci.core.method import About, Granularity, Kind, Method, Need
from loci.core.ports import Artefact
from loci.core.spec import ModelSpec
from loci.methods.kv.base import KVMethod, Select
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.comet_kv import CometKV
from loci.methods.kv.cskv import Cskv
from loci.methods.kv.h2o import H2O
from loci.methods.kv.keydiff import KeyDiff
from loci.methods.kv.kivi import Kivi
from loci.methods.kv.kvtc import Kvtc
from loci.methods.kv.prefixkv import PrefixKV
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import budget_for
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.methods.kv.turboquant import TurboQuant
from loci.methods.kv.xkv import Xkv
from loci.models.pack import Pack
from loci.nn import native
from loci.nn.kv import KVView, Seen
from loci.run.kv_native import NativeSteps
from loci.run.kvstore import KVStore
from loci.run.lab import Lab
from loci.run.prefill import Prefiller
from loci.run.runner import Runner
from loci.run.weights import ResidentWeights
from loci.testing.models import tiny_pack

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")

TOKENS, PROMPT = 300, 90


@dataclass(frozen=True, kw_only=True)
class ByHead(Select):
    """Gives later heads more, and keeps large keys."""

    about = About(name="by_head", kind=Kind.KV, paper="none", idea="for tests")
    allocates: ClassVar[Granularity | None] = Granularity.HEAD

    def score(self, view: KVView, seen: Seen | None, generator: object = None) -> Tensor:
        return view.dense().keys.abs().amax(-1)

    def allocate(
        self,
        scores: Sequence[Tensor] | None,
        tokens: int,
        spec: ModelSpec,
        prepared: Mapping[str, Tensor],
        *,
        context: int,
    ) -> Sequence[float] | None:
        return [2.0 + head for head in range(spec.layers * spec.kv_heads)]


CHAINS = [
    (StreamingLLM(),),
    (SnapKV(),),
    (H2O(),),
    (PrefixKV(),),
    (ByHead(),),
    (Bfp(bits=8, window=8),),
    (Bfp(bits=4, window=8),),
    (Bfp(bits=3, block=8, window=0),),
    (Bfp(bits=5, block=16, sort="keys", window=4, sinks=0),),
    (TurboQuant(window=8),),
    (TurboQuant(bits_k=2, bits_v=3, window=0, tail=16),),
    (TurboQuant(bits_k=3, bits_v=2, sinks=0),),
    (Kivi(bits=2, group=16),),
    (Kivi(bits=3, group=32, waiting=1),),
    (CometKV(group=32),),
    (Kvtc(bits_k=2, bits_v=3, window=32),),
    (Kvtc(bits_k=0.5, bits_v=1.25, window=0, sinks=0),),
    (Cskv(density_k=0.25, density_v=0.5),),
    (Cskv(window=16, sinks=0),),
    (SnapKV(), Bfp(bits=4, window=8)),
    (StreamingLLM(), Bfp(bits=8, sort="keys", window=0)),
    (SnapKV(), TurboQuant(window=8)),
    (KeyDiff(), TurboQuant(window=4, tail=8)),
    (KeyDiff(), Bfp(bits=8, window=0, tail=4)),
    (StreamingLLM(sinks=2), TurboQuant(bits_k=2, window=0)),
]


@contextmanager
def opened(
    pack: Pack, chain: tuple[Method, ...], *, batch: int = 1, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Runner, KVStore]]:
    ledger = Ledger({"dram": 2**30})
    budget = None
    if isinstance(chain[0], Select):
        size = dtype.itemsize
        budget = budget_for(
            pack.spec, chain, 96, max_tokens=TOKENS, batch=batch, chunk=32, dtype_bytes=size
        )
    store = KVStore(
        pack.spec,
        chain,
        max_tokens=TOKENS,
        batch=batch,
        dtype=dtype,
        budget_bytes=budget,
        chunk=32,
        ledger=ledger,
        artefacts={
            method.about.name: _artefact(method, pack)
            for method in chain
            if Need.ARTEFACT in method.about.needs
        },
    )
    runner = Runner(pack.spec, ResidentWeights(pack, ledger), ledger, chunk=32, batch=batch)
    yield runner, store
    runner.release()
    store.release()


@cache
def _artefact(method: KVMethod, pack: Pack) -> Artefact:
    lab = Lab(pack, context=64)
    try:
        return lab.prepared(method)
    finally:
        lab.close()


def run(runner: Runner, store: KVStore, steps: int, seed: int = 0) -> torch.Tensor:
    """Read a prompt, then feed tokens one by one; return all logits [steps, B, V]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, runner.spec.vocab, (store.batch, PROMPT + steps), generator=generator)
    prefiller = Prefiller(runner, store)
    if store.batch == 1:
        prefiller.read(ids[0, :PROMPT].tolist())
    else:
        for at in range(0, PROMPT, 30):
            runner.forward(ids[:, at : at + 30], store, logits=None)
    found = []
    for at in range(PROMPT, PROMPT + steps):
        logits = runner.forward(ids[:, at : at + 1], store)
        assert logits is not None
        found.append(logits.clone())
    return torch.stack(found)


class Counter:
    """Counts the steps that kernels took, or forbids them."""

    def __init__(self, patch: pytest.MonkeyPatch, allowed: bool) -> None:
        self.steps = 0
        real = NativeSteps.pasts

        def pasts(this: NativeSteps, with_spans: bool) -> list[native.Past] | None:
            found = real(this, with_spans) if allowed else None
            self.steps += found is not None
            return found

        patch.setattr(NativeSteps, "pasts", pasts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " | ".join(map(str, chain)))
def test_kernels_decode_what_the_store_would(
    tmp_path: Path, chain: tuple[Method, ...], dtype: torch.dtype
) -> None:
    pack = tiny_pack(tmp_path, head_dim=32, heads=4, kv_heads=2, hidden=64)
    with pytest.MonkeyPatch.context() as patch, opened(pack, chain, dtype=dtype) as (runner, store):
        count = Counter(patch, allowed=False)
        expected = run(runner, store, 140)
        plain, facts = store.snapshot()
        plain = {name: tensor.clone() for name, tensor in plain.items()}
        assert count.steps == 0
    for level in native.levels():
        with (
            pytest.MonkeyPatch.context() as patch,
            native.force_simd(level),
            opened(pack, chain, dtype=dtype) as (runner, store),
        ):
            count = Counter(patch, allowed=True)
            found = run(runner, store, 140)
            assert count.steps > 70, "the kernels were hardly asked"
            # A key that differs in its last bit may be rounded to the next code, and all later
            # tokens see it; the next test is strict.
            torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
            held, ours = store.snapshot()
            assert ours["state"] == facts["state"]
            assert held.keys() == plain.keys()
            for name in ("slot_positions", "positions"):
                if name in held:
                    assert torch.equal(held[name], plain[name])


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " | ".join(map(str, chain)))
def test_one_step_from_the_same_store_is_the_same(
    tmp_path: Path, chain: tuple[Method, ...]
) -> None:
    pack = tiny_pack(tmp_path, head_dim=32, heads=4, kv_heads=2, hidden=64)
    with opened(pack, chain) as (runner, store):
        run(runner, store, 33)
        token = torch.tensor([[11]])
        while store.pasts(True) is None:  # this step evicts or encodes
            runner.forward(token, store)
        other = store.fork()
        with pytest.MonkeyPatch.context() as patch:
            Counter(patch, allowed=False)
            expected = runner.forward(token, other)
            assert expected is not None
            expected = expected.clone()
        with pytest.MonkeyPatch.context() as patch:
            count = Counter(patch, allowed=True)
            found = runner.forward(token, store)
            assert found is not None
            assert count.steps == 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        other.release()


def test_rows_of_a_batch_and_of_several_stores_are_kept_apart(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, head_dim=32, heads=4, kv_heads=2, hidden=64)
    chain = (SnapKV(), Bfp(bits=4, window=8))
    with opened(pack, chain, batch=2) as (runner, store), pytest.MonkeyPatch.context() as patch:
        expected_count = Counter(patch, allowed=False)
        expected = run(runner, store, 60)
        assert expected_count.steps == 0
    with opened(pack, chain, batch=2) as (runner, store):
        torch.testing.assert_close(run(runner, store, 60), expected, rtol=0, atol=0.03)


def test_a_fork_and_a_crop_are_noticed(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, head_dim=32, heads=4, kv_heads=2, hidden=64)
    with opened(pack, (Bfp(bits=8, window=8),)) as (runner, store):
        run(runner, store, 20)
        other = store.fork()
        token = torch.tensor([[7]])
        first = runner.forward(token, store)
        assert first is not None
        first = first.clone()
        second = runner.forward(token, other)
        assert second is not None
        torch.testing.assert_close(second, first)
        store.crop(store.length - 1)
        again = runner.forward(token, store)
        assert again is not None
        torch.testing.assert_close(again, first)
        other.release()


def test_stores_that_kernels_cannot_read_take_their_own_steps(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, head_dim=32, heads=4, kv_heads=2, hidden=64)
    with opened(pack, (Xkv(),)) as (runner, store), pytest.MonkeyPatch.context() as patch:
        count = Counter(patch, allowed=True)
        run(runner, store, 5)
        assert count.steps == 0
