"""llama.cpp's types against paper and pencil, and against the gguf package's own reading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from loci.errors import MethodError, ParameterError
from loci.methods.kv.ggml_kv import BLOCK, TYPES, GgmlKV
from loci.methods.kv.store_plan import predict_store
from loci.nn.kv import KVBlock
from loci.nn.turn import hadamard
from loci.run.kvstore import KVStore
from loci.testing.kv import Text, read, spec_of, store_of

PLAIN = {kind: GgmlKV(keys=kind, values=kind, turned=False) for kind in TYPES}


def block(x: Tensor) -> KVBlock:
    return KVBlock(x, x, torch.arange(x.shape[2])[None])


def random(size: int = 64, tokens: int = 50, seed: int = 0) -> Tensor:
    return torch.randn(1, 2, tokens, size, generator=torch.Generator().manual_seed(seed))


def test_eight_bits_by_hand() -> None:
    x = torch.zeros(1, 1, 1, BLOCK)
    x[..., 0], x[..., 1], x[..., 31] = 127.0, -63.5, 2.4  # so d is 1
    codes = PLAIN["q8_0"].encode(block(x), {})["keys"].flatten().tolist()
    assert codes[:2] == [0x00, 0x3C], "1.0 in half precision, the low byte first"
    assert codes[2:4] == [127, 256 - 64] and codes[33] == 2 and len(codes) == 34
    packed = torch.tensor(codes, dtype=torch.uint8).view(1, 1, 1, -1)
    keys, _ = PLAIN["q8_0"].decode({"keys": packed, "values": packed}, {}, BLOCK)
    assert keys.flatten()[[0, 1, 31]].tolist() == [127.0, -64.0, 2.0]


def test_four_bits_by_hand() -> None:
    x = torch.zeros(1, 1, 1, BLOCK)
    x[..., 0], x[..., 1], x[..., 16] = 8.0, -7.0, 3.0  # the extreme is 8, so d is -1
    codes = PLAIN["q4_0"].encode(block(x), {})["keys"].flatten().tolist()
    assert codes[:2] == [0x00, 0xBC] and len(codes) == 18
    assert codes[2] == 0 | 5 << 4, "number 0 is -8 steps, number 16 is -3: codes 0 and 5"
    assert codes[3] == 15 | 8 << 4, "7 steps, and zero"


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_are_those_that_gguf_reads(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    theirs = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}[kind]
    x = random() * 3
    codes = PLAIN[kind].encode(block(x), {})
    ours, _ = PLAIN[kind].decode(codes, {}, 64)
    raw = codes["keys"].reshape(-1, 2 * TYPES[kind]).numpy()
    read_by_them = gguf.quants.dequantize(raw, theirs)
    np.testing.assert_array_equal(ours.reshape(-1, 64).numpy(), read_by_them)
    made_by_them = gguf.quants.quantize(x.reshape(-1, 64).numpy(), theirs)
    assert (raw == made_by_them).mean() > 0.999, "but for ties in rounding"


@pytest.mark.parametrize(("kind", "bits"), [("q8_0", 8.5), ("q4_0", 4.5)])
def test_bits_of_an_element(kind: str, bits: float) -> None:
    spec = spec_of(layers=3, head_dim=64)
    method = GgmlKV(keys=kind, values=kind)
    one, two = (predict_store(spec, (method,), max_tokens=n, chunk=16) for n in (1000, 2000))
    elements = 1000 * spec.kv_elements_per_token()
    assert (two - one - 4 * 1000) * 8 / elements == bits, "but for four bytes of a position"


def test_a_step_at_most_is_lost() -> None:
    x = random()
    largest = x.unflatten(-1, (-1, BLOCK)).abs().amax(-1, keepdim=True)
    for kind, steps in (("q8_0", 127), ("q4_0", 8)):
        keys, values = PLAIN[kind].decode(PLAIN[kind].encode(block(x), {}), {}, 64)
        off = (keys - x).unflatten(-1, (-1, BLOCK)).abs()
        # Half a step, and what a scale in half precision adds to 127 of them. Four bits have no
        # code for the end that faces the extreme: there it is a whole step.
        assert (off <= largest / steps * (0.57 if kind == "q8_0" else 1.01)).all()
        assert torch.equal(keys, values)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_hadamard_matrix_is_its_own_inverse(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size))
    assert matrix.abs().unique().numel() == 1


def test_turning_spreads_a_large_channel() -> None:
    # The point of turning: one channel that is large in every token spoils its block no longer.
    x = random(size=128)
    x[..., 5] += 60
    rest = [channel for channel in range(32) if channel != 5]

    def off(method: GgmlKV) -> tuple[float, float]:
        found = method.decode(method.encode(block(x), {}), {}, 128)
        return float((found[0] - x)[..., rest].norm()), float((found[1] - x)[..., rest].norm())

    plain = off(PLAIN["q4_0"])
    turned = off(GgmlKV(keys="q4_0", values="q4_0"))
    assert turned[0] < 0.3 * plain[0] and turned[1] < 0.4 * plain[1]
    assert turned[0] < turned[1], "keys are turned by the whole head, values by 64 channels"


def test_heads_that_are_no_whole_64s_are_not_turned() -> None:
    x = random(size=96)
    for kind in TYPES:
        turned = GgmlKV(keys=kind, values=kind).encode(block(x), {})
        plain = PLAIN[kind].encode(block(x), {})
        assert all(torch.equal(turned[name], plain[name]) for name in plain)


def test_eight_bits_attend_like_the_exact_cache() -> None:
    spec = spec_of(head_dim=64)
    text = Text.of(spec, 80)
    exact = read(store_of(KVStore, (), spec=spec), text)[0]
    eight, four = (
        read(store_of(KVStore, (GgmlKV(keys=kind, values=kind),), spec=spec), text)[0]
        for kind in TYPES
    )
    torch.testing.assert_close(eight, exact, rtol=0.03, atol=0.03)
    assert float((eight - exact).norm()) < 0.2 * float((four - exact).norm())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(MethodError, match="cannot cut a head of 48"):
        store_of(KVStore, (GgmlKV(),), spec=spec_of(head_dim=48))
    with pytest.raises(ParameterError, match="too large for a scale"):
        GgmlKV().encode(block(random() * 1e9), {})
    zero, _ = GgmlKV().decode(GgmlKV().encode(block(torch.zeros(1, 1, 2, 64)), {}), {}, 64)
    assert not zero.any()
