"""COMET's KV cache against paper and pencil."""

import pytest
import torch
from torch import Tensor

from loci.core.spec import ModelSpec
from loci.errors import MethodError, ParameterError
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.chain import check_chain
from loci.methods.kv.comet_kv import CometKV
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import predict_store
from loci.nn.kv import KVBlock


def block(keys: Tensor, values: Tensor | None = None) -> KVBlock:
    tokens = keys.shape[2]
    return KVBlock(keys, keys if values is None else values, torch.arange(tokens)[None])


def test_by_hand() -> None:
    # Channel 0 of the keys runs from 0 to 15, so its step is 1; channel 1 never changes.
    keys = torch.zeros(1, 1, 16, 2)
    keys[0, 0, :, 0] = torch.arange(16.0)
    keys[0, 0, :, 1] = 7.0
    values = torch.tensor([[3.0, 18.0]]).expand(1, 1, 16, 2)  # low 3, step 1
    codes = CometKV(group=16).encode(block(keys, values), {})
    assert codes["keys"].flatten().tolist() == list(range(16))  # channel 1 has code 0
    assert codes["value_grid"][0, 0, 5].tolist() == [3.0, 1.0]
    back_keys, back_values = CometKV(group=16).decode(codes, {}, 2)
    assert torch.equal(back_keys, keys) and torch.equal(back_values, values)


def test_a_large_channel_spoils_no_other() -> None:
    # The paper's point: by channel, an outlier channel has a step of its own.
    keys = torch.randn(1, 2, 128, 32, generator=torch.Generator().manual_seed(0))
    keys[..., 5] += 80
    rest = [channel for channel in range(32) if channel != 5]

    def off(method: CometKV | Bfp) -> float:
        found, _ = method.decode(method.encode(block(keys), {}), {}, 32)
        return float((found - keys)[..., rest].norm())

    assert off(CometKV()) < 0.1 * off(Bfp(bits=4, sort="none"))


def test_groups_do_not_see_each_other() -> None:
    keys = torch.randn(1, 1, 64, 8, generator=torch.Generator().manual_seed(1))
    method = CometKV(group=32)
    whole = method.encode(block(keys), {})
    first = method.encode(block(keys[:, :, :32]), {})
    for name, codes in first.items():
        assert torch.equal(whole[name][:, :, :32], codes)


def test_takes_at_most_29_hundredths_of_16_bits() -> None:
    spec = ModelSpec(
        name="paper", layers=2, hidden=64, heads=2, kv_heads=2, head_dim=64, ffn=64, vocab=9,
        max_context=10**6,
    )  # fmt: skip
    table = CometKV().code_table(64)
    sizes = {"uint8": 1, "float16": 2}
    assert sum(shape[0] * sizes[dtype] for shape, dtype in table.values()) <= 0.29 * 2 * 64 * 2
    long = 100_000  # where the exact tail and the staged chunk no longer count
    ours = predict_store(spec, (CometKV(),), max_tokens=long)
    assert ours <= 0.30 * spec.kv_bytes(long)


def test_what_would_break_a_group_is_refused() -> None:
    with pytest.raises(MethodError, match="comet_kv decodes whole groups"):
        check_chain((SnapKV(), CometKV()))
    with pytest.raises(ParameterError, match="whole groups of tokens"):
        CometKV().encode(block(torch.zeros(1, 1, 63, 8)), {})
    with pytest.raises(ParameterError, match="too large for a grid"):
        CometKV(group=16).encode(block(torch.full((1, 1, 16, 8), 1e6)), {})
