"""Triton's kernels over compressed keys and values, in its interpreter, against plain attention."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

START = """
import math
import torch
from loci.methods import catalogue
from loci.nn import kv_triton
from loci.nn.attend import attend, attend_reference, merge
from loci.methods.kv.base import LevelForm
from loci.nn.coded import Coded, Turned
from loci.nn.kv import KVBlock
draw = torch.Generator().manual_seed(0)
"""


def interpreted(program: str) -> None:
    """Run a program in a process of its own, as Triton decides when it is imported."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + program],
        capture_output=True, text=True, timeout=250,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_codes_are_decoded_on_the_way() -> None:
    interpreted(
        """
for text, size, queries, groups, window in (
    ("bfp(bits=3, block=8)", 24, 9, 2, 17),
    ("kivi(bits=5, group=32)", 32, 1, 2, 30),
    ("comet_kv(group=32)", 20, 3, 1, None),
    ("turboquant(bits_k=3, bits_v=2)", 32, 3, 2, 17),
    ("turboquant", 16, 1, 1, None),
):
    method, tokens = catalogue.find(text, "kv"), 64
    keys, values = torch.randn(2, 1, 2, tokens, size, generator=draw).unbind(0)
    block = KVBlock(keys, values, torch.arange(tokens)[None, None])
    fixed = method.learn(block)
    codes = method.encode(block, fixed)
    form = method.code_form(size)
    if isinstance(form, LevelForm):
        coded = Turned(codes, fixed, *form, head_dim=size)
    else:
        coded = Coded(codes, *form, head_dim=size)
    keys, values = coded.decoded()
    q = torch.randn(1, 2, groups * queries, size, generator=draw)
    places = torch.randint(-1, 60, (1, 2, tokens), generator=draw)
    now = torch.randint(0, 60, (1, queries), generator=draw)
    now[0, -1] = -1  # padding sees nothing
    for placed in (False, True):
        visible = torch.ones(1, 2, queries, tokens, dtype=torch.bool)
        if placed:
            ahead = now[:, None, :, None] - places[:, :, None]
            visible = (places[:, :, None] >= 0) & (ahead >= 0)
            if window is not None:
                visible &= ahead < window
        how = dict(places=places, now_BT=now, window=window) if placed else {}
        expected, expected_lse = attend_reference(
            q.flatten(1, 2).view(1, 2 * groups, queries, size), keys, values, visible, 0.3
        )
        for part in (40, 1024):
            o, lse = kv_triton.attend_codes(q, coded, 0.3, part_tokens=part, **how)
            torch.testing.assert_close(o, expected.view_as(o), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lse, expected_lse.view_as(lse), rtol=1e-4, atol=1e-5)
"""
    )


def test_codes_may_lie_in_a_larger_pool() -> None:
    interpreted(
        """
method = catalogue.find("kivi(bits=3, group=16)", "kv")
keys, values = torch.randn(2, 1, 2, 48, 32, generator=draw).unbind(0)
codes = method.encode(KVBlock(keys, values, torch.arange(48)[None]), {})
pool = {n: torch.zeros(1, 2, 100, *c.shape[3:], dtype=c.dtype) for n, c in codes.items()}
held = {}
for name, part in codes.items():
    pool[name][:, :, :48] = part
    held[name] = pool[name][:, :, :48]
form = method.code_form(32)
make = lambda c: Coded(codes=c, bits=3, block=form.block, group=form.group, head_dim=32)
q = torch.randn(1, 2, 4, 32, generator=draw)
for ours, theirs in zip(*(kv_triton.attend_codes(q, make(c), 0.2) for c in (held, codes))):
    assert torch.equal(ours, theirs)
"""
    )


def test_heads_may_hold_unequal_numbers() -> None:
    interpreted(
        """
counts, size, queries, groups = (5, 40, 1), 24, 6, 2
for dtype in (torch.float32, torch.float16):
    pool = torch.randn(2, 2, sum(counts), size, generator=draw).to(dtype)
    table = torch.arange(sum(counts)).expand(2, -1).contiguous()
    cuts = [pool.split(counts, 2), table.split(counts, 1)]
    keys, values = ([part[:, at] for part in cuts[0]] for at in (0, 1))
    places = [part - part[:, :1] for part in cuts[1]]
    held = torch.cat(places, 1)
    held[1, 2] = -1
    places = list(held.split(counts, 1))
    now = torch.arange(30, 30 + queries).expand(2, -1).contiguous()
    q = torch.randn(2, len(counts), groups * queries, size, generator=draw)
    for window, parts in ((None, (16,)), (9, (1024,))):
        for part in parts:
            o, lse = kv_triton.attend_ragged(
                q, keys, values, places, 0.3, now_BT=now, window=window, part_tokens=part
            )
            for head in range(len(counts)):
                place = places[head][:, None]
                ahead = now[:, None, :, None] - place[:, :, None]
                visible = (place[:, :, None] >= 0) & (ahead >= 0)
                if window is not None:
                    visible &= ahead < window
                expected, expected_lse = attend_reference(
                    q[:, head].view(2, groups, queries, size),
                    keys[head][:, None], values[head][:, None], visible, 0.3,
                )
                found, found_lse = o[:, head], lse[:, head]
                torch.testing.assert_close(found, expected.view_as(found), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    found_lse, expected_lse.view_as(found_lse), rtol=1e-4, atol=1e-5
                )
"""
    )


def test_parts_merge_into_the_whole() -> None:
    interpreted(
        """
parts = torch.randn(5, 2, 3, 21, generator=draw)
lses = torch.randn(5, 2, 3, generator=draw) * 40
lses[1], lses[:, 0, 0] = -math.inf, -math.inf
parts = torch.where(lses[..., None] == -math.inf, 0.0, parts)
o, lse = kv_triton.merge_parts(parts, lses)
total = (parts[0], lses[0])
for at in range(1, 5):
    total = merge(total, (parts[at], lses[at]))
torch.testing.assert_close(o, total[0], rtol=1e-5, atol=1e-6)
torch.testing.assert_close(lse, total[1], rtol=1e-5, atol=1e-5)
assert (o[0, 0] == 0).all() and lse[0, 0] == -math.inf
"""
    )


def test_a_store_reads_through_them() -> None:
    # What a store gives to attention goes to the kernels where tensors lie on a GPU; here the
    # interpreter stands for one.
    interpreted(
        """
from loci.nn import attend as module
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, read, spec_of, store_of

spec, calls = spec_of(), []
for name in ("attend_codes", "attend_ragged"):
    plain = getattr(kv_triton, name)
    setattr(kv_triton, name, lambda *a, _f=plain, _n=name, **k: calls.append(_n) or _f(*a, **k))
text = Text.of(spec, 70)
for chain, keep in (
    ("bfp(bits=4, block=16, window=8)", None),
    ("kivi(bits=4, group=16, waiting=1)", None),
    ("turboquant(window=8)", None),
    ("snapkv | bfp(bits=8, block=16, window=0)", 36),
    ("streaming_llm(sinks=3, window=20) | turboquant(window=4, tail=8)", 24),
):
    store = store_of(KVStore, catalogue.parse_chain(chain, "kv"), keep=keep)
    read(store, text)
    view, q = store.view(0), text.queries_LBHTD[0][:, :, :5]
    now = torch.full((1, 5), 90)
    expected_o, expected_lse = attend(q, view, positions=now, scale=0.25)
    module._has_triton = lambda q: True
    o, lse = attend(q, view, positions=now, scale=0.25)
    module._has_triton = lambda q: False
    assert set(calls) == {"attend_codes"}, calls
    calls.clear()
    torch.testing.assert_close(o, expected_o, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-5)
"""
    )


def test_heads_of_unequal_length_go_through_them() -> None:
    interpreted(
        """
from loci.nn import attend as module
from loci.nn.kv import DenseSegment, KVView, RaggedSegment

parts = []
for count in (3, 40, 17):
    keys, values = torch.randn(2, 1, 1, count, 16, generator=draw).unbind(0)
    places = torch.arange(count).view(1, 1, -1)
    parts.append(DenseSegment(keys, values, count, positions_BKS=places))
view, q = KVView(0, 3, (RaggedSegment(parts),)), torch.randn(1, 6, 4, 16, generator=draw)
now = torch.tensor([[1, 5, 20, 39]])
for window in (None, 7):
    expected = attend(q, view, positions=now, scale=0.3, window=window)
    module._has_triton = lambda q: True
    found = attend(q, view, positions=now, scale=0.3, window=window)
    module._has_triton = lambda q: False
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
"""
    )
