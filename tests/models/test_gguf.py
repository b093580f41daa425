"""GGUF: every type without loss, every damage refused with file and offset."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import HEAD_DIM, HEADS, KV_HEADS, LAYERS, raw_of, write_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loci.errors import FormatError, LociError, ModelError
from loci.models.gguf import READABLE, peek, read_header, spec_of_header
from loci.models.gguf_tensors import GgufSource, unpermuted
from loci.models.pack import check_source
from loci.nn.packing import PackedWeight, dequantise

DENSE = ("F32", "F16", "BF16")


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "little.gguf"
    write_llama(path, "Q4_0")
    return path


def _dense(weight: PackedWeight | torch.Tensor) -> np.ndarray:
    found = dequantise(weight) if isinstance(weight, PackedWeight) else weight.float()
    return found.numpy()


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_equals_the_reference_dequantiser(kind: str, tmp_path: Path) -> None:
    truth = write_llama(tmp_path / "m.gguf", kind, untied=True)
    source = GgufSource(tmp_path / "m.gguf", "m")
    check_source(source)
    assert (_dense(source.tensor("embed")) == truth["token_embd.weight"]).all()
    assert (_dense(source.tensor("head")) == truth["output.weight"]).all()
    for layer in range(LAYERS):
        ours = source.tensor(f"layer.{layer}.down_proj")
        assert isinstance(ours, torch.Tensor) == (kind in DENSE)
        assert (_dense(ours) == truth[f"blk.{layer}.ffn_down.weight"]).all()
        for name, heads in (("q", HEADS), ("k", KV_HEADS)):
            stored = truth[f"blk.{layer}.attn_{name}.weight"]
            rows = stored.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2)
            ours = source.tensor(f"layer.{layer}.{name}_proj")
            assert (_dense(ours) == rows.reshape(stored.shape)).all()
    assert (_dense(source.tensor("norm")) == truth["output_norm.weight"]).all()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
@given(seed=st.integers(0, 2**32 - 1), out=st.integers(1, 5), blocks=st.integers(1, 3))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_any_codes_and_scales_survive(kind: str, seed: int, out: int, blocks: int) -> None:
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    from loci.models.gguf_tensors import _DECODERS

    inner = 256 * blocks
    raw = raw_of(kind, (out, inner), np.random.default_rng(seed))
    ours = _DECODERS[kind](torch.from_numpy(raw.copy()), inner)
    assert (dequantise(ours).numpy() == quants.dequantize(raw, Kind[kind])).all()
    assert ours.scales.dtype == (torch.float32 if kind.endswith("K") else torch.float16)


def test_rows_are_read_alone(little: Path) -> None:
    source = GgufSource(little, "m")
    whole = _dense(source.tensor("embed"))
    assert (_dense(source.tensor("embed", slice(7, 12))) == whole[7:12]).all()


def test_only_llama_interleaves_its_heads(tmp_path: Path) -> None:
    truth = write_llama(tmp_path / "m.gguf", "Q8_0", architecture="qwen2")
    source = GgufSource(tmp_path / "m.gguf", "m")
    ours = _dense(source.tensor("layer.0.q_proj"))
    assert (ours == truth["blk.0.attn_q.weight"]).all()


def test_interleaving_by_hand() -> None:
    # One head of 4: the file has pair by pair (a0 b0 a1 b1), we keep halves (a0 a1 b0 b1).
    assert unpermuted(1, 4).tolist() == [0, 2, 1, 3]


def test_spec(little: Path) -> None:
    spec = spec_of_header(read_header(little), "m")
    assert (spec.layers, spec.hidden, spec.heads, spec.kv_heads) == (2, 256, 4, 2)
    assert spec.norm_eps == 1e-5 and spec.tied and spec.max_context == 128


def test_peek_stops_before_the_vocabulary(little: Path) -> None:
    found = peek(little)
    assert found["general.architecture"] == "llama"
    assert "tokenizer.ggml.tokens" not in found


def test_llama3_scaling_is_recognised(tmp_path: Path) -> None:
    from loci.models.gguf import _llama3_divisors

    divisors = np.array(_llama3_divisors(10000.0, HEAD_DIM, 8.0), dtype=np.float32)
    write_llama(tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    source = GgufSource(tmp_path / "m.gguf", "m")
    scaling = dict(source.spec.rope_scaling)
    assert scaling["rope_type"] == "llama3" and scaling["factor"] == 8.0
    check_source(source)
    odd = divisors * np.linspace(1, 2, len(divisors), dtype=np.float32)
    write_llama(tmp_path / "odd.gguf", extra={"rope_freqs.weight": odd})
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        GgufSource(tmp_path / "odd.gguf", "m")


def test_llama3_divisors_are_those_of_transformers() -> None:
    from loci.models.gguf import _llama3_divisors
    from loci.nn.rope import Rope
    from loci.testing.models import tiny_spec

    scaling = (
        ("factor", 8.0),
        ("high_freq_factor", 4.0),
        ("low_freq_factor", 1.0),
        ("original_max_position_embeddings", 8192.0),
        ("rope_type", "llama3"),
    )
    plain = Rope(tiny_spec(head_dim=64)).frequencies
    scaled = Rope(tiny_spec(head_dim=64, rope_scaling=scaling)).frequencies
    ours = torch.tensor(_llama3_divisors(10000.0, 64, 8.0), dtype=torch.float32)
    torch.testing.assert_close(plain / ours, scaled, rtol=1e-5, atol=0)


# -- what is refused --------------------------------------------------------------------------


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", architecture="falcon")
    with pytest.raises(ModelError, match=r"falcon.*llama, qwen2, qwen3, mistral, gemma"):
        GgufSource(tmp_path / "m.gguf", "m")


def test_other_types_are_refused_by_name(tmp_path: Path, little: Path) -> None:
    raw = bytearray(little.read_bytes())
    name = b"blk.1.ffn_down.weight"
    at = raw.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", raw, at)[0] == 2  # Q4_0
    struct.pack_into("<I", raw, at, 20)  # IQ4_NL, of the same size
    (tmp_path / "m.gguf").write_bytes(raw)
    source = GgufSource(tmp_path / "m.gguf", "m")
    with pytest.raises(ModelError, match=r"ffn_down.*IQ4_NL") as caught:
        source.tensor("layer.1.down_proj")
    assert "Q6_K" in str(caught.value)


def test_missing_and_strange_tensors_are_named(tmp_path: Path) -> None:
    write_llama(tmp_path / "a.gguf", without=("blk.1.ffn_up.weight",))
    with pytest.raises(FormatError, match=r"layer\.1\.up_proj is missing"):
        check_source(GgufSource(tmp_path / "a.gguf", "m"))
    sinks = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    write_llama(tmp_path / "b.gguf", extra=sinks)
    with pytest.raises(ModelError, match=r"blk\.0\.attn_sinks\.weight"):
        check_source(GgufSource(tmp_path / "b.gguf", "m"))


@pytest.mark.parametrize("field", [8, 16])
@pytest.mark.parametrize("count", [2**40, 2**63, 2**64 - 1])
def test_absurd_counts_cost_nothing(field: int, count: int, little: Path, tmp_path: Path) -> None:
    raw = bytearray(little.read_bytes())
    struct.pack_into("<Q", raw, field, count)
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match=r"m\.gguf.*at byte 24.*allowed: at most"):
        read_header(tmp_path / "m.gguf")


def test_billions_of_layers_are_refused_at_the_first(little: Path, tmp_path: Path) -> None:
    raw = bytearray(little.read_bytes())
    at = raw.index(b"llama.block_count") + len(b"llama.block_count") + 4
    struct.pack_into("<I", raw, at, 2**32 - 1)
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match=r"layer\.2\.\w+ is missing"):
        check_source(GgufSource(tmp_path / "m.gguf", "m"))


def test_magic_version_and_emptiness(tmp_path: Path, little: Path) -> None:
    raw = little.read_bytes()
    path = tmp_path / "m.gguf"
    for damaged, said in (
        (b"GGML" + raw[4:], "no GGUF file at byte 0"),
        (raw[:4] + struct.pack("<I", 1) + raw[8:], "unknown GGUF version at byte 4; got 1"),
        (raw[:4] + struct.pack(">I", 3) + raw[8:], "little-endian"),
        (b"", "empty"),
        (raw[:-100], "reaches past the end"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=said):
            read_header(path)
    with pytest.raises(ModelError, match="No such file"):
        read_header(tmp_path / "none.gguf")


def test_scales_that_are_not_finite_are_refused(tmp_path: Path, little: Path) -> None:
    info = read_header(little).tensors["blk.0.ffn_up.weight"]
    raw = bytearray(little.read_bytes())
    struct.pack_into("<H", raw, info.offset, 0x7E00)  # a float16 that is no number
    (tmp_path / "m.gguf").write_bytes(raw)
    source = GgufSource(tmp_path / "m.gguf", "m")
    with pytest.raises(FormatError, match=f"scales of blk.0.ffn_up.weight at byte {info.offset}"):
        source.tensor("layer.0.up_proj")


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damage_anywhere_in_the_header_never_crashes(
    data: st.DataObject, little: Path, tmp_path: Path
) -> None:
    raw = bytearray(little.read_bytes())
    header = min(info.offset for info in read_header(little).tensors.values())
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(0, header), label="length")]
    else:
        for _ in range(data.draw(st.integers(1, 4), label="flips")):
            at = data.draw(st.integers(0, min(header, 400) - 1) | st.integers(0, header - 1))
            raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    try:
        check_source(GgufSource(path, "m"))
    except LociError as error:
        assert str(path) in str(error)


@pytest.mark.model
@pytest.mark.slow
def test_smollm2_equals_the_reference_dequantiser(smollm2_gguf: Path) -> None:
    from gguf import GGUFReader, quants

    source = GgufSource(smollm2_gguf, "smollm2")
    check_source(source)
    theirs = {tensor.name: tensor for tensor in GGUFReader(smollm2_gguf).tensors}
    assert set(theirs) == set(source.header.tensors)
    spec = source.spec
    from loci.models.gguf_tensors import _gguf_name
    from loci.models.pack import expected_tensors

    for name, shape in expected_tensors(spec).items():
        tensor = theirs[_gguf_name(name)]
        truth = quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(name.split(".")[-1])
        if heads:
            truth = truth.reshape(heads, spec.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(shape)
        assert (_dense(source.tensor(name)) == truth).all(), name
