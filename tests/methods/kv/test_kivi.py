"""KIVI against paper and pencil."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError, ParameterError
from loci.methods.kv.bfp import Bfp
from loci.methods.kv.chain import check_chain
from loci.methods.kv.keydiff import KeyDiff
from loci.methods.kv.kivi import Kivi
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, read, spec_of, store_of


def block(keys: Tensor, values: Tensor | None = None) -> KVBlock:
    tokens = keys.shape[2]
    return KVBlock(keys, keys if values is None else values, torch.arange(tokens)[None])


def test_by_hand() -> None:
    # Channel 0 of the keys runs 0, 1, 2, 3 four times: step 1. Channel 1 never changes.
    keys = torch.zeros(1, 1, 16, 16)
    keys[0, 0, :, 0] = torch.arange(4.0).repeat(4)
    keys[0, 0, :, 1] = 7.0
    values = torch.linspace(2, 8, 4).repeat(4).expand(1, 1, 16, 16)  # 2, 4, 6, 8: low 2, step 2
    codes = Kivi(group=16).encode(block(keys, values), {})
    assert codes["keys"].shape[-1] == codes["values"].shape[-1] == 4  # 16 codes of 2 bits
    assert (codes["keys"][0, 0, :, 0] & 3).tolist() == [0, 1, 2, 3] * 4
    assert codes["value_grid"][0, 0, 3].tolist() == [2.0, 2.0]
    back_keys, back_values = Kivi(group=16).decode(codes, {}, 16)
    assert torch.equal(back_keys, keys) and torch.equal(back_values, values)


@pytest.mark.parametrize("bits", range(2, 9))
def test_errors_are_at_most_half_a_step_of_the_own_group(bits: int) -> None:
    x = torch.randn(2, 2, 64, 32, generator=torch.Generator().manual_seed(bits))
    x[:, :, :32] *= 100  # another group of tokens
    method = Kivi(bits=bits, group=32)
    keys, values = method.decode(method.encode(block(x), {}), {}, 32)
    for found, axis in ((keys.unflatten(2, (-1, 32)), 3), (values.unflatten(3, (-1, 32)), 4)):
        truth = x.unflatten(axis - 1, (-1, 32))
        span = truth.amax(axis, keepdim=True) - truth.amin(axis, keepdim=True)
        bound = span * (0.5 / (2**bits - 1) + 2e-3)  # grids are kept in float16
        assert ((found - truth).abs() <= bound).all()


def test_a_large_channel_of_the_keys_spoils_no_other() -> None:
    # The paper's point on a toy.
    keys = torch.randn(1, 2, 128, 32, generator=torch.Generator().manual_seed(0))
    keys[..., 5] += 80
    rest = [channel for channel in range(32) if channel != 5]

    def off(method: Kivi | Bfp) -> float:
        found, _ = method.decode(method.encode(block(keys), {}), {}, 32)
        return float((found - keys)[..., rest].norm())

    assert off(Kivi(bits=4)) < 0.1 * off(Bfp(bits=4))


def test_takes_the_bits_the_docstring_says() -> None:
    for bits, group, expected in ((2, 32, 3.0), (3, 32, 4.0), (2, 64, 2.5)):
        table = Kivi(bits=bits, group=group).code_table(64)
        size = sum(shape[0] * {"uint8": 1, "float16": 2}[dtype] for shape, dtype in table.values())
        assert 8 * size / (2 * 64) == expected


def test_the_latest_tokens_are_exact_and_codes_never_change() -> None:
    text = Text.of(spec_of(), 80)
    store = store_of(KVStore, (Kivi(group=32, waiting=1),))
    read(store, text)
    held = store.view(0).dense()
    assert torch.equal(held.keys[:, :, 64:], text.keys_LBKTD[0][:, :, 64:])
    assert not torch.equal(held.keys[:, :, :64], text.keys_LBKTD[0][:, :, :64])


def test_what_would_break_a_group_is_refused() -> None:
    with pytest.raises(MethodError, match="kivi decodes whole groups"):
        check_chain((KeyDiff(), Kivi()))
    with pytest.raises(ParameterError, match="whole groups of tokens"):
        Kivi().encode(block(torch.zeros(1, 1, 33, 32)), {})
    with pytest.raises(MethodError, match="group=16"):
        store_of(KVStore, (Kivi(),), spec=spec_of(head_dim=48))
    with pytest.raises(ParameterError, match="too large for a grid"):
        Kivi(group=16).encode(block(torch.full((1, 1, 16, 16), 1e6)), {})
