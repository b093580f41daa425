"""Codes as kernels read them, against the methods that make them."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from loci.methods import catalogue
from loci.methods.kv.base import CodeForm, Encode, LevelForm
from loci.nn.coded import Coded, Turned
from loci.nn.kv import KVBlock

CHAINS = (
    *(f"bfp(bits={bits}, block=16)" for bits in (2, 3, 5, 8)),
    "kivi(bits=2, group=16)",
    "kivi(bits=5, group=32)",
    "comet_kv(group=32)",
)


@pytest.mark.parametrize("text", CHAINS)
def test_what_codes_stand_for_is_what_their_method_says(text: str) -> None:
    method = catalogue.find(text, "kv")
    assert isinstance(method, Encode)
    generator = Generator().manual_seed(0)
    keys, values = torch.randn(2, 2, 3, 64, 32, generator=generator).unbind(0)
    keys[:, :, 5] = 0
    codes = method.encode(KVBlock(keys, values, torch.arange(64).expand(2, -1)), {})
    form = method.code_form(32)
    assert isinstance(form, CodeForm)
    coded = Coded(codes=codes, bits=form.bits, block=form.block, group=form.group, head_dim=32)
    assert coded.tokens == 64
    for ours, theirs in zip(coded.decoded(), method.decode(codes, {}, 32), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", ["turboquant", "turboquant(bits_k=2, bits_v=3)"])
def test_what_turned_codes_stand_for_is_what_their_method_says(text: str) -> None:
    method = catalogue.find(text, "kv")
    assert isinstance(method, Encode)
    keys, values = torch.randn(2, 2, 3, 64, 32, generator=Generator().manual_seed(0)).unbind(0)
    block = KVBlock(keys, values, torch.arange(64).expand(2, 1, -1))
    fixed = method.learn(block)
    form = method.code_form(32)
    assert fixed is not None and isinstance(form, LevelForm)
    codes = method.encode(block, fixed)
    turned = Turned(codes, fixed, *form, head_dim=32)
    assert turned.tokens == 64
    for ours, theirs in zip(turned.decoded(), method.decode(codes, fixed, 32), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
