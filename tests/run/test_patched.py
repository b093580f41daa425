"""A patch at work: the same as weights it was added to, and gone without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loci.core.ledger import Ledger
from loci.errors import BudgetError
from loci.models.pack import Pack, open_pack
from loci.nn import native
from loci.nn.patch import Patch
from loci.run.kvstore import KVStore
from loci.run.patched import with_patch
from loci.run.runner import Runner
from loci.run.weights import RepackedWeights, ResidentWeights, StreamedWeights, WeightSource
from loci.testing.models import tiny_pack


def patch_of(pack: Pack, seed: int = 0) -> Patch:
    generator = torch.Generator().manual_seed(seed)
    shapes = pack.spec.layer_linears()
    return Patch(
        {
            f"layer.{index}.{name}": (
                0.05 * torch.randn(shapes[name][0], 2, generator=generator),
                torch.randn(2, shapes[name][1], generator=generator),
            )
            for index, name in ((0, "q_proj"), (1, "down_proj"), (1, "v_proj"))
        }
    )


def logits(pack: Pack, source: WeightSource, ledger: Ledger) -> torch.Tensor:
    ids = torch.arange(1, 21)[None] % pack.spec.vocab
    store = KVStore(pack.spec, max_tokens=32, chunk=16, ledger=ledger)
    runner = Runner(pack.spec, source, ledger, chunk=16)
    parts = []
    for start, stop in ((0, 12), (12, 19), (19, 20)):
        out = runner.forward(ids[:, start:stop], store, logits="all")
        assert out is not None
        parts.append(out)
    runner.release()
    store.release()
    return torch.cat(parts, 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_patch_is_added_and_goes_without_a_trace(tmp_path: Path, streamed: bool) -> None:
    path = tiny_pack(tmp_path, bits=4).path
    pack = open_pack(path, mapped=not streamed)
    ledger = Ledger({"dram": 2**30})
    source: WeightSource
    if streamed:
        source = StreamedWeights(pack, ledger, pinned=["layer.0"], window=2)
    else:
        source = ResidentWeights(pack, ledger)
    before, held = logits(pack, source, ledger), ledger.used("dram")
    patch = patch_of(pack)
    put_on = with_patch(source, patch, pack.spec, ledger)
    assert ledger.used("dram") == held + patch.nbytes  # it is float32 already
    found = logits(pack, put_on, ledger)
    whole = Ledger({"dram": 2**30})
    dense = RepackedWeights(
        open_pack(path),
        lambda name, weight: weight + patch.delta(name) if name in patch.parts else weight,
        whole,
    )
    assert torch.allclose(found, logits(pack, dense, whole), atol=1e-4)
    assert (found - before).abs().max() > 1e-2
    put_on.release()
    assert torch.equal(logits(pack, source, ledger), before)
    assert ledger.used("dram") == held
    source.release()
    pack.close()


def test_a_patch_pays_for_its_bytes(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, bits=4)
    ledger = Ledger({"dram": pack.total_bytes + 10})
    source = ResidentWeights(pack, ledger)
    with pytest.raises(BudgetError):
        with_patch(source, patch_of(pack), pack.spec, ledger)
    assert ledger.used("dram") == pack.total_bytes


@pytest.mark.parametrize("chunk", [4, 40])
@pytest.mark.parametrize("bits", [4, 8, None])
def test_the_kernels_add_it_themselves(tmp_path: Path, bits: int | None, chunk: int) -> None:
    pack = tiny_pack(tmp_path, bits=bits)
    shapes, generator = pack.spec.layer_linears(), torch.Generator().manual_seed(3)
    patch = Patch(
        {
            f"layer.{index}.{name}": (
                0.05 * torch.randn(out, 3, generator=generator),
                torch.randn(3, inner, generator=generator),
            )
            for index in range(pack.spec.layers)
            for name, (out, inner) in shapes.items()
        }
    )
    ledger = Ledger({"dram": 2**30})
    source = with_patch(ResidentWeights(pack, ledger), patch, pack.spec, ledger)
    ids = torch.arange(1, 41)[None] % pack.spec.vocab
    found = []
    for kernels in (True, False):
        runner = Runner(pack.spec, source, ledger, chunk=chunk, kernels=kernels)
        assert runner.is_whole == (kernels and native.available())
        store = KVStore(pack.spec, max_tokens=48, chunk=chunk, ledger=ledger)
        parts = [
            runner.forward(ids[:, at : at + chunk], store, logits="all")
            for at in range(0, 40, chunk)
        ]
        found.append(torch.cat([part for part in parts if part is not None], 1))
    assert torch.allclose(*found, atol=1e-4)
