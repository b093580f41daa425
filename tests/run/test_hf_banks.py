"""Banks of dropped tokens through transformers: generate, padding, copies, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from loci.errors import MethodError
from loci.run import hf
from loci.testing.models import tiny_pair

ALL = "streaming_llm(sinks=2,window=14) | longmem(chunks=64)"


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return tiny_pair(tmp_path)[1]


def _logits(model: Any, cache: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Read a prompt in two parts and decode; return the logits of what is no padding."""
    found, seen = [], 0
    for count in (24, 16, *([1] * 8)):
        part = ids[:, seen : seen + count]
        seen += count
        places = (mask[:, :seen].cumsum(1) - 1).clamp(min=0)[:, -count:]
        with torch.inference_mode():
            out = hf.forward_with(
                model, part, cache, attention_mask=mask[:, :seen], position_ids=places
            ).logits
        found.append(out)
    return torch.cat(found, 1)[:, 8:]


def test_a_bank_that_is_fetched_whole_is_the_dynamic_cache(model: Any) -> None:
    ids = torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :8] = 0  # the second row is padded on the left
    expected = _logits(model, DynamicCache(), ids, mask)
    with hf.cache(model, ALL, context=64) as cache:
        found = _logits(model, cache, ids, mask)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    with hf.cache(model, ALL.partition(" |")[0], context=64) as cache:
        dropped = _logits(model, cache, ids, mask)
    assert float((dropped - expected).abs().max()) > 0.1


def test_on_disk_it_generates_forks_and_leaves_no_file(model: Any, tmp_path: Path) -> None:
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    folder, chain = tmp_path / "bank", "snapkv(window=4) | longmem(tier=disk,chunk=8)"
    with hf.cache(model, chain, budget="24KiB", context=64, folder=folder) as cache:
        made = model.generate(ids, **{hf.cache_argument(model): cache}, max_new_tokens=6,
                              do_sample=False)  # fmt: skip
        assert made.shape[1] == 46 and cache.store is not None
        held = cache.store.nbytes()
        assert held["dram"] <= 24 * 1024 and held["disk"] == cache.ledger.used("disk") > 0
        fork = cache.fork()
        assert fork.get_seq_length() == cache.get_seq_length()
        fork.close()
    assert not list(folder.iterdir())
    with (
        hf.cache(model, chain, budget="24KiB", context=64) as cache,
        pytest.raises(MethodError, match="no folder"),
    ):
        model.generate(ids, **{hf.cache_argument(model): cache}, max_new_tokens=2)
