"""KVTC: bits where they count, streams by hand, and less lost than with equal bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loci.errors import MethodError
from loci.methods.kv.base import LayerGroup
from loci.methods.kv.chain import check_chain
from loci.methods.kv.kvtc import BLOCK, LOSSES, Kvtc, shared_out
from loci.methods.kv.snapkv import SnapKV
from loci.methods.kv.store_plan import predict_store
from loci.methods.kv.streaming_llm import StreamingLLM
from loci.nn.directions import directions_of
from loci.nn.kv import KVBlock
from loci.run.kvstore import KVStore
from loci.testing.kv import FakeLab, Text, prepared, read, spec_of, store_of

SPEC = spec_of(layers=2, kv_heads=2, head_dim=32)
WIDTH = 64


def group_of(method: Kvtc, layer: int = 0, made: object = None) -> LayerGroup:
    made = prepared(method, SPEC) if made is None else made
    shared = method.shared(SPEC, made)  # type: ignore[arg-type]
    return LayerGroup(spec=SPEC, layers=range(layer, layer + 1), shared=dict(shared))


def correlated(tokens: int = 400, seed: int = 0) -> Tensor:
    """Return keys [1, K, T, D] of channels that vary together, few of them much."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))).Q
    sizes = torch.exp(-torch.arange(WIDTH) / 10.0) * 5
    flat = torch.randn(tokens, WIDTH, generator=draw) * sizes @ mix.t()
    return flat.unflatten(1, (2, 32)).transpose(0, 1)[None]


def of_keys(keys: Tensor) -> object:
    """Return what is prepared from keys that are values as well."""
    walk = [(tap, layer, keys) for layer in range(2) for tap in ("keys", "values")]
    found = directions_of(walk, ("keys", "values"), 2, WIDTH)
    tensors = found["keys"].tensors("keys") | found["values"].tensors("values")
    return FakeLab(SPEC).artefact("kvtc", tensors)


def test_by_hand() -> None:
    # Two blocks of eight channels, sixteen times apart in energy: the first bit of the second is
    # worth 1 * 0.6366, the second bit of the first 16 * 0.2446, its third 16 * 0.0814, and so on.
    energy = torch.cat([torch.full((8,), 16.0), torch.ones(8)])
    assert shared_out(energy, 1).tolist() == [1] * 8 + [0] * 8
    assert shared_out(energy, 3).tolist() == [3] * 8 + [0] * 8
    assert shared_out(energy, 4).tolist() == [3] * 8 + [1] * 8
    assert shared_out(energy, 99).tolist() == [8] * 16


def test_no_other_sharing_loses_less() -> None:
    energy = torch.tensor([9.0, 5.0, 2.0, 0.1]).repeat_interleave(BLOCK)

    def left(bits: tuple[int, ...]) -> float:
        return sum(float(energy[BLOCK * i]) * LOSSES[b] for i, b in enumerate(bits))

    for total in (3, 5, 8):
        ours = tuple(shared_out(energy, total)[::BLOCK].tolist())
        assert sum(ours) == total
        others = [
            (a, b, c, total - a - b - c)
            for a in range(total + 1)
            for b in range(total + 1 - a)
            for c in range(total + 1 - a - b)
        ]
        assert left(ours) <= min(left(other) for other in others) + 1e-9


def test_directions_are_those_of_a_decomposition() -> None:
    x = correlated()
    found = directions_of(
        [("keys", 0, x[:, :, :150]), ("keys", 0, x[:, :, 150:])], ("keys",), 1, 64
    )
    flat = x[0].transpose(0, 1).flatten(1)
    _, s, v = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    torch.testing.assert_close(found["keys"].energy[0], s.square() / 400, rtol=1e-3, atol=1e-6)
    assert float((found["keys"].ways[0, :5] @ v[:5].t()).abs().diagonal().min()) > 0.999
    assert found["keys"].tokens == 400


@pytest.mark.parametrize("bits", [1.0, 2.0, 3.0, 4.0])
def test_error_is_what_the_bits_leave(bits: float) -> None:
    # Near what theory leaves of normal variables with these bits, on other texts than it was
    # prepared from; and far less than if all channels had the same number of bits.
    method = Kvtc(bits_k=bits, bits_v=bits)
    group = group_of(method, made=of_keys(correlated()))
    keys = correlated(seed=1)
    rows, bases = method.encode([KVBlock(keys, keys, torch.arange(400)[None])], group)
    back, values = method.decode(rows, bases, 0, group, None)
    off = float((back - keys).square().mean())
    energy, given = group.shared["keys_size"][0].square(), group.shared["keys_bits"][0].long()
    theory = float((energy * torch.tensor(LOSSES)[given]).sum()) / WIDTH
    even = float(keys.square().mean()) * LOSSES[int(bits)]
    assert off < 1.5 * theory and off < 0.5 * even
    assert torch.equal(back, values)
    assert (
        rows["keys"].shape == (1, 400, int(bits * WIDTH) // 8) and rows["keys"].dtype == torch.uint8
    )


def test_large_tokens_are_scaled_not_clipped() -> None:
    method = Kvtc(bits_k=4, bits_v=4)
    group = group_of(method, made=of_keys(correlated()))
    keys = correlated(seed=2)
    keys[:, :, 7] *= 50
    rows, bases = method.encode([KVBlock(keys, keys, torch.arange(400)[None])], group)
    back, _ = method.decode(rows, bases, 0, group, None)
    off = (back - keys).norm(dim=(1, 3)) / keys.norm(dim=(1, 3))
    assert float(off[0, 7]) < 0.3


def test_sinks_and_window_stay_exact() -> None:
    method = Kvtc(bits_k=1, bits_v=1, sinks=3, window=20)
    store, text = store_of(KVStore, (method,), max_tokens=200, spec=SPEC), Text.shared(SPEC, 200)
    read(store, text)
    for layer in range(2):
        block = store.view(layer).dense()
        for part in (slice(0, 3), slice(180, 200)):
            assert torch.equal(block.keys[:, :, part], text.keys_LBKTD[layer][:, :, part])
        assert not torch.equal(block.keys[:, :, 3:50], text.keys_LBKTD[layer][:, :, 3:50])


def test_eight_bits_answer_as_nothing_coded() -> None:
    text = Text.shared(SPEC, 300)
    method = Kvtc(bits_k=8, bits_v=8, window=8)
    store = store_of(KVStore, (method,), max_tokens=300, spec=SPEC)
    plain = store_of(KVStore, (), max_tokens=300, spec=SPEC)
    got, want = read(store, text)[0], read(plain, text)[0]
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


def test_bytes_are_bits_and_two_gains() -> None:
    one, two = (
        predict_store(SPEC, (Kvtc(bits_k=2.5, bits_v=1.5),), max_tokens=n, chunk=16)
        for n in (1000, 2024)
    )
    # 160 and 96 bits and two gains for each of two layers, and a position.
    assert two - one == 1024 * (2 * (20 + 12 + 4) + 4)


def test_tokens_may_leave_by_layer() -> None:
    chain = (StreamingLLM(sinks=2, window=60), Kvtc(window=8))
    store, text = store_of(KVStore, chain, max_tokens=300, spec=SPEC), Text.shared(SPEC, 300)
    read(store, text)
    block = store.view(1).dense()
    places = block.positions[0, 0]
    assert len(places) < 110
    want = text.keys_LBKTD[1][:, :, places]
    assert float((block.keys - want).norm() / want.norm()) < 0.2
    with pytest.raises(MethodError, match="evicts by head"):
        check_chain((SnapKV(), Kvtc()))


def test_widths_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(MethodError, match="8 channels at a time"):
        store_of(KVStore, (Kvtc(),), spec=spec_of(kv_heads=1, heads=1, head_dim=12))
